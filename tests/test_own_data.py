"""A user's data read, and losses made one an example."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from made_examples import IMAGES, SERIES, TABLE, TARGETS, WORDS

from l2o.problems import Batch, Problem, ProblemError
from l2o.tasks.batches import rows
from l2o.tasks.examples import as_examples, digest
from l2o.tasks.keras_loss import per_example, takes_class_indices
from l2o.tasks.task import Task

layers = keras.layers


def test_arrays_in_the_types_that_networks_take():
    cases = [
        (TABLE.astype("float64"), "float32"),
        (WORDS.astype("int64"), "int32"),
        (WORDS.astype("int8"), "int32"),
        (WORDS + 2**40, "int64"),
        (WORDS > 4, "int32"),
        ((IMAGES > 0).astype("uint8"), "uint8"),
        (TABLE.tolist(), "float32"),
        (tf.constant(TABLE), "float32"),
    ]
    for inputs, dtype in cases:
        examples, batch_size = as_examples((inputs, np.arange(40)))
        assert examples.inputs.dtype == dtype and batch_size is None
        np.testing.assert_allclose(examples.inputs, np.asarray(inputs), rtol=1e-6)
        assert examples.labels.dtype == "int32" and len(examples.labels) == 40


def test_dataset_is_read_whole_with_its_batch_size():
    dataset = tf.data.Dataset.from_tensor_slices((TABLE, TARGETS)).batch(16)
    for one in (dataset, dataset.filter(lambda x, y: True)):  # the latter knows no length
        examples, batch_size = as_examples(one)
        assert batch_size == 16
        np.testing.assert_array_equal(examples.inputs, TABLE)
        np.testing.assert_array_equal(examples.labels, TARGETS)


def _slices(*parts):
    return tf.data.Dataset.from_tensor_slices(parts)


_BAD_DATA = {
    "not a pair": (TABLE, "must be arrays .* Received: ndarray of float32, shape"),
    "four": ((TABLE, TARGETS, TARGETS, TARGETS), "Received: tuple of 4"),
    "weights below 0": ((TABLE, TARGETS, np.arange(40) - 1), "weight .* at least 0 .* from -1"),
    "weights of labels": ((TABLE, TARGETS, TABLE), "one number .* Received: shape .40, 3."),
    "lengths": ((TABLE, TARGETS[:-1]), "differ in length. Received: 40 and 39"),
    "none": ((TABLE[:0], TARGETS[:0]), "no examples"),
    "nan": ((np.where(TABLE > 2, np.nan, TABLE), TARGETS), r"x holds \d+ values that are NaN"),
    "infinite in float32": ((np.full((40, 2), 1e300), TARGETS), "x holds 80 values .* in float32"),
    "infinite": ((TABLE, TARGETS + np.inf), "y holds 40 values"),
    "words": ((np.array(["a"] * 40), TARGETS), "one array of numbers"),
    "inputs by name": (({"a": TABLE}, TARGETS), "x must be one array of numbers. Received: dict"),
    "lists of lengths": (([[1], [1, 2]], [0, 1]), "x is not one array"),
    "ragged": ((tf.ragged.constant([[1], [1, 2]]), [0, 1]), "dense array. Received: RaggedTensor"),
    "scalar": ((1.0, 2.0), "array of examples"),
    "flat uint8": ((WORDS.astype("uint8"), TARGETS), "float32 or int32"),
    "not batched": (_slices(TABLE, TARGETS), "must be batched"),
    "not batched, wide": (_slices(TABLE, SERIES), "must be batched, x and y alike"),
    "repeats": (_slices(TABLE, TARGETS).batch(8).repeat(), "must be finite"),
    "four of a dataset": (_slices(*[TABLE] * 4).batch(8), r"must yield \(x, y\)"),
    "dataset of ragged": (
        tf.data.Dataset.from_tensor_slices((tf.ragged.constant([[1], [1, 2]]), [0, 1])).batch(2),
        "dense tensors",
    ),
    "batch of several lengths": (tf.data.Dataset.from_generator(
        lambda: (([0.0] * n, 0) for n in (3, 4)), output_signature=(
            tf.TensorSpec([None]), tf.TensorSpec([], tf.int32))).batch(2),
        "data cannot be read: Cannot batch"),
    "masked": ((np.ma.masked_greater(TABLE, 1), TARGETS), "data's x must be a dense array"),
    "beyond int64": ((TABLE, np.full(40, 2**63, "uint64")), r"below 2\*\*63. Received: 92233720"),
    "empty dataset": (_slices(TABLE, TARGETS).batch(8).take(0), "no examples"),
    "shapes": (_slices(TABLE, TARGETS).bucket_by_sequence_length(
        lambda x, y: 1, [2], [8, 8]).map(lambda x, y: (x[:, : tf.cast(y[0] > 0, tf.int32) + 1], y)),
        "all have one shape"),
    "shapes of y": (_slices(TABLE, TARGETS).padded_batch(8).map(
        lambda x, y: (x, tf.zeros((tf.shape(x)[0], 1 + tf.cast(y[0] > 0, tf.int32))))),
        "all have one shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", _BAD_DATA)
def test_data_that_is_refused(name):
    data, message = _BAD_DATA[name]
    with pytest.raises(ProblemError, match=message):
        as_examples(data)


def test_data_without_an_end(monkeypatch):
    monkeypatch.setattr("l2o.tasks.examples.MOST_UNKNOWN", 10_000)
    endless = _slices(TABLE, TARGETS).batch(8).repeat().filter(lambda x, y: True)
    with pytest.raises(ProblemError, match="no end within"):
        as_examples(endless)


def test_digest_tells_data_apart():
    one = Batch(TABLE, TARGETS)
    assert digest(one) == digest(Batch(TABLE.copy(), TARGETS))
    others = [rows(one, slice(-1)), Batch(TABLE, -TARGETS), Batch(TABLE.astype("int32"), TARGETS)]
    assert len({digest(one), *map(digest, others)}) == 4
    assert digest(one, one) != digest(one)


# --- losses -----------------------------------------------------------------------------------

_RANDOM = np.random.default_rng(1)
_LOGITS = _RANDOM.normal(size=(40, 3)).astype("float32")
_CLASSES = _RANDOM.integers(0, 3, 40).astype("int32")


def _own_loss(labels, outputs):
    """Written as for `compile`: of labels [B] and outputs [B, 1] it would be every pair's."""
    return tf.reduce_mean(tf.square(labels - outputs), -1)


_KERAS_LOSSES = {
    "mse": (TARGETS, _LOGITS[:, :1]),
    "mae": (TARGETS[:, None], _LOGITS[:, :1]),
    "huber": (_LOGITS[::-1], _LOGITS),
    "poisson": (np.abs(TARGETS), np.abs(_LOGITS[:, :1])),
    "binary_crossentropy": (_CLASSES % 2, tf.sigmoid(_LOGITS[:, :1])),
    "sparse_categorical_crossentropy": (_CLASSES, tf.nn.softmax(_LOGITS)),
    "categorical_crossentropy": (np.eye(3, dtype="int32")[_CLASSES], tf.nn.softmax(_LOGITS)),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True): (_CLASSES[:, None], _LOGITS),
    keras.losses.MeanSquaredError(reduction="none"): (TARGETS, _LOGITS[:, :1]),
    keras.losses.CategoricalCrossentropy(True, label_smoothing=0.1): (np.eye(3)[_CLASSES], _LOGITS),
    keras.losses.mean_squared_error: (TARGETS, _LOGITS[:, :1]),
    _own_loss: (TARGETS, _LOGITS[:, :1]),
    lambda y, p: (y - p[:, 0]) ** 2: (_CLASSES, _LOGITS[:, :2]),
}


@pytest.mark.parametrize(
    "loss", _KERAS_LOSSES, ids=lambda loss: getattr(loss, "name", None) or str(loss)[:9]
)
def test_mean_of_the_losses_is_what_keras_fit_minimizes(loss):
    labels, outputs = (tf.constant(part) for part in _KERAS_LOSSES[loss])
    losses = per_example(loss)(labels, outputs)
    assert losses.shape[0] == 40
    model = keras.Sequential([layers.Input(outputs.shape[1:]), layers.Activation("linear")])
    model.compile(loss=loss if not getattr(loss, "reduction", "") == "none" else "mse")
    assert float(tf.reduce_mean(losses)) == pytest.approx(
        model.evaluate(outputs, labels, batch_size=40, verbose=0), rel=1e-5
    )


def test_default_loss_is_cross_entropy_from_logits():
    keras_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for labels in (_CLASSES, _CLASSES[:, None]):
        losses = per_example(None)(tf.constant(labels), tf.constant(_LOGITS))
        assert losses.shape == (40,)
        assert float(tf.reduce_mean(losses)) == pytest.approx(float(keras_loss(labels, _LOGITS)))


def test_which_losses_take_class_indices():
    taking = [None, "sparse_categorical_crossentropy", keras.losses.SparseCategoricalCrossentropy()]
    assert all(map(takes_class_indices, taking))
    others = ["mse", keras.losses.CategoricalCrossentropy(), lambda y, p: p]
    assert not any(map(takes_class_indices, others))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("meen_squared_error", "'meen"),
        (3, "3"),
        (keras.losses.Huber(reduction="sum"), "Huber with reduction='sum'"),
        (keras.losses.SparseCategoricalCrossentropy(ignore_class=-1), ".* with ignore_class=-1"),
    ],
)
def test_losses_that_are_refused(loss, message):
    with pytest.raises(ProblemError, match=f"Received: {message}"):
        per_example(loss)


def test_weights_of_examples_weigh_as_in_keras():
    weight = np.linspace(0, 3, 40).astype("float32")
    (batch, _) = as_examples((TABLE, TARGETS, weight))
    np.testing.assert_array_equal(batch.weight, weight)
    build = lambda: keras.Sequential([layers.Input((3,)), layers.Dense(1)])  # noqa: E731
    task = Task(Problem(build, loss="mse"))
    parameters, carried = task.initial(3)
    found, _ = task.loss(tf.constant(parameters), carried, batch, True)
    task.model.set_weights(task.layout.unflatten(parameters))
    task.model.compile(loss="mse")
    expected = task.model.evaluate(TABLE, TARGETS, 40, sample_weight=weight, verbose=0)
    assert float(found) == pytest.approx(expected, rel=1e-5)
