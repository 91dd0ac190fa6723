"""Shapes and the flat vector."""

import numpy as np
import pytest

from l2o.packing import Columns
from l2o.rules import Layout

_SHAPES = ((), (0,), (3,), (2, 0, 4), (2, 3), (1, 2, 1, 3, 2), (2, 1, 2, 2), (1,))


def tensors(shapes=_SHAPES) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(size=shape).astype("float32") for shape in shapes]


def test_round_trip_of_tensors():
    values = tensors()
    layout = Layout.of(values)
    back = layout.unflatten(layout.flatten(values))
    assert [tuple(b.shape) for b in back] == list(_SHAPES)
    for value, same in zip(values, back, strict=True):
        np.testing.assert_array_equal(value, same)


def test_round_trip_of_a_vector():
    layout = Layout.of(tensors())
    vector = np.arange(layout.size, dtype="float32")
    np.testing.assert_array_equal(layout.flatten(layout.unflatten(vector)), vector)


def test_tensors_lie_in_order_and_row_major():
    layout = Layout.of([np.zeros((2, 2)), np.zeros(()), np.zeros(1)])
    flat = layout.flatten([np.array([[1.0, 2], [3, 4]]), np.array(5.0), np.array([6.0])])
    np.testing.assert_array_equal(flat, [1, 2, 3, 4, 5, 6])


def test_places():
    layout = Layout(("a", "b", "c", "d"), ((), (2, 0), (3,), (1, 1, 1, 1, 2)))
    assert (layout.size, layout.tensors) == (6, 4)
    assert layout.sizes == (1, 0, 3, 2)
    assert layout.offsets == (0, 1, 1, 4)
    np.testing.assert_array_equal(layout.segments, [0, 2, 2, 2, 3, 3])
    np.testing.assert_array_equal(layout.ranks, [0, 1, 1, 1, 4, 4])


def test_names():
    values = tensors(((2,), ()))
    assert Layout.of(values, ["kernel", "bias"]).names == ("kernel", "bias")
    assert len(set(Layout.of(values).names)) == 2


@pytest.mark.parametrize("shapes", [((3,), (2, 2)), ((2, 2),), ((2, 2), (3,), ()), ((4,), (3,))])
def test_other_shapes_are_an_error(shapes):
    layout = Layout(("a", "b"), ((2, 2), (3,)))
    with pytest.raises(ValueError, match="Received"):
        layout.flatten(tensors(shapes))


@pytest.mark.parametrize("size", [6, 8])
def test_a_vector_of_another_length_is_an_error(size):
    layout = Layout(("a", "b"), ((2, 2), (3,)))
    with pytest.raises(ValueError, match="Received"):
        layout.unflatten(np.zeros(size))


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_columns(rows):
    """Round trip, places, sums over tensors and values of tensors, as in the flat layout."""
    values, names = tensors(), [f"t{k}" for k in range(len(_SHAPES))]
    flat = Layout.of(values, names)
    columns = Columns(flat.names, flat.shapes, rows)
    array = columns.flatten(values)
    assert array.shape[0] == rows and columns.size == flat.size
    back = columns.unflatten(array)
    for value, same, place in zip(values, back, columns.places, strict=True):
        np.testing.assert_array_equal(value, same)
        np.testing.assert_array_equal(np.ravel(array)[place], value.ravel())
    assert np.sum(array) == pytest.approx(flat.flatten(values).numpy().sum(), rel=1e-5)

    vector = flat.flatten(values)
    sums = columns.sums(lambda x, y: [x * y, x], array, 2 * array)
    wanted = [[(2 * v * v).sum() for v in values], [v.sum() for v in values]]
    np.testing.assert_allclose(sums, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(flat.sums(lambda x, y: [x * y, x], vector, 2 * vector), wanted,
                               rtol=1e-5, atol=1e-6)  # fmt: skip
    numbers = np.arange(2.0 * len(values)).reshape(2, -1)
    spread = np.broadcast_to(columns.over(numbers)[1], array.shape).ravel()
    for number, place in zip(numbers[1], columns.places, strict=True):
        assert np.all(spread[place] == number)
    np.testing.assert_array_equal(flat.over(numbers)[1], flat.spread(numbers[1]))
    np.testing.assert_array_equal(columns.over(numbers)[0], columns.spread(numbers[0]))
