"""A user's data as arrays in memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from l2o.problems.dataset import Batch, ProblemError

BATCH_SIZE = 128
MOST_UNKNOWN = 2**32  # bytes read of a dataset that does not know its own length


def as_examples(data: Any, name: str = "data") -> tuple[Batch, int | None]:
    """Reads a user's data.

    Floats become Keras' default float type, whole numbers int32, or int64 where they need it.
    uint8 inputs of at least three dimensions (examples, height, width and perhaps channels) are
    pixels: they stay uint8, and the network sees them divided by 255.

    Args:
        data: Arrays (x, y) or (x, y, weight), or a finite, batched `tf.data.Dataset` of such.
        name: What the data is called in messages.

    Returns:
        The examples, and a dataset's batch size.

    Raises:
        ProblemError: If it is anything else, or holds what is not a finite number.
    """
    batch_size = None
    if isinstance(data, tf.data.Dataset):
        data, batch_size = _read(data, name)
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise ProblemError(
            f"{name} must be arrays (x, y) or (x, y, weight), or a batched tf.data.Dataset of "
            f"such. Received: {_kind(data)}"
        )
    parts = zip(data, ("x", "y", "weight"), strict=False)
    x, y, *weight = (_array(part, f"{name}'s {which}") for part, which in parts)
    if len(x) != len(y):
        raise ProblemError(f"{name}'s x and y differ in length. Received: {len(x)} and {len(y)}")
    if not len(x):
        raise ProblemError(f"{name} holds no examples")
    if x.dtype == np.uint8 and x.ndim < 3:
        raise ProblemError(
            f"{name}'s x is uint8 of shape {x.shape}: neither images, which would be divided by "
            "255, nor plainly numbers. Make it float32 or int32"
        )
    x = x if x.dtype == np.uint8 else _plain(x)
    if weight and (weight[0].shape != y.shape[:1] or weight[0].min() < 0):
        raise ProblemError(
            f"{name}'s weight must be one number of at least 0 for each of {len(y)} examples. "
            f"Received: shape {weight[0].shape}, from {weight[0].min():.4g}"
        )
    return Batch(x, _plain(y), *(w.astype(keras.config.floatx()) for w in weight)), batch_size


def digest(*splits: Batch) -> str:
    """What tells these examples from others, 8 characters."""
    found = hashlib.sha256()
    for split in splits:
        for array in tf.nest.flatten(split):
            found.update(f"{array.dtype} {array.shape}".encode())
            # As bytes, since bfloat16 has no buffer of its own.
            found.update(np.ascontiguousarray(array).view(np.uint8).data)
    return found.hexdigest()[:8]


def example_shape(inputs: Any) -> Any:
    """The shapes of nested arrays, without their first dimension."""
    return tf.nest.map_structure(lambda x: tuple(x.shape[1:]), inputs)


def in_one_line(error: BaseException) -> str:
    """An error's message in one line, without Keras' colours and what follows it."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)) or type(error).__name__
    return " ".join(text.split("Arguments received by")[0].split())[:300]


def _read(dataset: tf.data.Dataset, name: str) -> tuple[tuple[np.ndarray, ...], int]:
    spec = dataset.element_spec
    plain = isinstance(spec, tuple) and len(spec) in (2, 3)
    if not plain or not all(isinstance(part, tf.TensorSpec) for part in spec):
        raise ProblemError(
            f"{name} must yield (x, y) or (x, y, weight), all dense tensors. Received: {spec}"
        )
    if any(part.shape.rank == 0 for part in spec):
        raise ProblemError(f"{name} must be batched: .batch({BATCH_SIZE}). Received: {spec}")
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ProblemError(f"{name} must be finite: drop its .repeat() or add .take(...)")
    unknown = dataset.cardinality() == tf.data.UNKNOWN_CARDINALITY
    batches: list[tuple[np.ndarray, ...]] = []
    read = 0
    for batch in _batches(dataset, name):
        x, y, *_ = batch
        if len(x) != len(y):
            raise ProblemError(
                f"{name} must be batched, x and y alike. Received: shapes {x.shape} and {y.shape}"
            )
        shapes = example_shape((x, y))
        if batches and shapes != (first := example_shape(batches[0][:2])):
            raise ProblemError(
                f"{name}'s examples must all have one shape. Received x and y of {first} and "
                f"{shapes}"
            )
        batches.append(batch)
        read += sum(part.nbytes for part in batch)
        if unknown and read > MOST_UNKNOWN:
            raise ProblemError(
                f"{name} does not say how long it is and has no end within {read / 2**30:.0f} GiB: "
                "add .take(...), or tf.data.experimental.assert_cardinality"
            )
    if not batches:
        raise ProblemError(f"{name} holds no examples")
    parts = tuple(np.concatenate(part) for part in zip(*batches, strict=True))
    return parts, max(len(batch[0]) for batch in batches)


def _batches(dataset: tf.data.Dataset, name: str) -> Iterator[tuple[np.ndarray, ...]]:
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
