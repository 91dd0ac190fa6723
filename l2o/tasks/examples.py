"""A user's data as arrays in memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

BATCH_SIZE = 128
MOST_UNKNOWN = 2**32  # bytes read of a dataset that does not know its own length


class ProblemError(ValueError):
    """A problem of the user's that cannot be trained on; the message says why in one line."""


@dataclass(frozen=True)
class Examples:
    """Examples in memory.

    Attributes:
        inputs: [n, ...]; float32, int32 or int64, or uint8 for pixels.
        labels: [n, ...]; float32, int32 or int64.
    """

    inputs: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice) -> Examples:
        return Examples(self.inputs[part], self.labels[part])


def as_examples(data: Any, name: str = "data") -> tuple[Examples, int | None]:
    """Reads a user's data.

    Floats become Keras' default float type, whole numbers int32, or int64 where they need it.
    uint8 inputs of at least three dimensions (examples, height, width and perhaps channels) are
    pixels: they stay uint8, and the network sees them divided by 255.

    Args:
        data: Arrays (x, y), or a finite, batched `tf.data.Dataset` of (x, y).
        name: What the data is called in messages.

    Returns:
        The examples, and a dataset's batch size.

    Raises:
        ProblemError: If it is anything else, or holds what is not a finite number.
    """
    batch_size = None
    if isinstance(data, tf.data.Dataset):
        data, batch_size = _read(data, name)
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise ProblemError(
            f"{name} must be arrays (x, y) or a batched tf.data.Dataset of (x, y). "
            f"Received: {_kind(data)}"
        )
    x, y = (_array(part, f"{name}'s {which}") for part, which in zip(data, "xy", strict=True))
    if len(x) != len(y):
        raise ProblemError(f"{name}'s x and y differ in length. Received: {len(x)} and {len(y)}")
    if not len(x):
        raise ProblemError(f"{name} holds no examples")
    if x.dtype == np.uint8 and x.ndim < 3:
        raise ProblemError(
            f"{name}'s x is uint8 of shape {x.shape}: neither images, which would be divided by "
            "255, nor plainly numbers. Make it float32 or int32"
        )
    return Examples(x if x.dtype == np.uint8 else _plain(x), _plain(y)), batch_size


def digest(*splits: Examples) -> str:
    """What tells these examples from others, 8 characters."""
    found = hashlib.sha256()
    for split in splits:
        for array in (split.inputs, split.labels):
            found.update(f"{array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array))
    return found.hexdigest()[:8]


def _read(dataset: tf.data.Dataset, name: str) -> tuple[tuple[np.ndarray, np.ndarray], int]:
    spec = dataset.element_spec
    plain = isinstance(spec, tuple) and len(spec) == 2
    if not plain or not all(isinstance(part, tf.TensorSpec) for part in spec):
        raise ProblemError(f"{name} must yield (x, y), both dense tensors. Received: {spec}")
    if any(part.shape.rank == 0 for part in spec):
        raise ProblemError(f"{name} must be batched: .batch({BATCH_SIZE}). Received: {spec}")
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ProblemError(f"{name} must be finite: drop its .repeat() or add .take(...)")
    unknown = dataset.cardinality() == tf.data.UNKNOWN_CARDINALITY
    batches, read = [], 0
    for x, y in _batches(dataset, name):
        if len(x) != len(y):
            raise ProblemError(
                f"{name} must be batched, x and y alike. Received: shapes {x.shape} and {y.shape}"
            )
        shapes = x.shape[1:], y.shape[1:]
        if batches and shapes != (first := tuple(part.shape[1:] for part in batches[0])):
            raise ProblemError(
                f"{name}'s examples must all have one shape. Received x and y of {first} and "
                f"{shapes}"
            )
        batches.append((x, y))
        read += x.nbytes + y.nbytes
        if unknown and read > MOST_UNKNOWN:
            raise ProblemError(
                f"{name} does not say how long it is and has no end within {read / 2**30:.0f} GiB: "
                "add .take(...), or tf.data.experimental.assert_cardinality"
            )
    if not batches:
        raise ProblemError(f"{name} holds no examples")
    x, y = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return (x, y), max(len(x) for x, _ in batches)


def _batches(dataset: tf.data.Dataset, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    try:
        yield from dataset.as_numpy_iterator()
    except tf.errors.OpError as error:  # examples of several lengths in a batch, most of all
        line = " ".join(re.sub(r"{{.*?}}|\[Op:.*", "", str(error.message)).split())[:300]
        raise ProblemError(f"{name} cannot be read: {line}") from error


def _array(part: Any, name: str) -> np.ndarray:
    if isinstance(part, tf.RaggedTensor | tf.SparseTensor | np.ma.MaskedArray):
        raise ProblemError(f"{name} must be a dense array. Received: {_kind(part)}")
    try:
        array = np.asarray(part)
    except ValueError as error:  # lists of different lengths
        raise ProblemError(f"{name} is not one array: {error}") from error
    if array.dtype.kind not in "biuf":
        raise ProblemError(f"{name} must be one array of numbers. Received: {_kind(part)}")
    if array.ndim == 0:
        raise ProblemError(f"{name} must be an array of examples. Received: {array}")
    if array.dtype.kind != "f":
        return array
    array = _plain(array)
    if bad := np.count_nonzero(~np.isfinite(array)):
        raise ProblemError(f"{name} holds {bad:,} values that are NaN or infinite in {array.dtype}")
    return array


def _plain(array: np.ndarray) -> np.ndarray:
    """Numbers in the types that networks and losses take."""
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return array.astype(keras.config.floatx(), copy=False)
    if array.size and array.max() >= 2**63:
        raise ProblemError(f"Whole numbers must be below 2**63. Received: {array.max()}")
    small = not array.size or (array.min() >= -(2**31) and array.max() < 2**31)
    return array.astype("int32" if small else "int64", copy=False)


def _kind(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, np.ndarray):
        return f"{kind} of {value.dtype}, shape {value.shape}"
    return f"{kind} of {len(value)}" if isinstance(value, tuple | list) else kind
