"""A user's loss as losses of single examples, which is what a mean over a batch is taken of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from l2o.problems.dataset import ProblemError

Loss: TypeAlias = str | keras.losses.Loss | Callable[[Any, Any], Any] | None
_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight", "none", None)
_CLASS_INDICES = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.sparse_categorical_crossentropy,
)


def per_example(loss: Loss) -> Callable[[Any, Any], Any]:
    """(labels, outputs) -> losses [B, ...], of any loss.

    Args:
        loss: The name of a Keras loss, or such a loss, which take probabilities unless
            `from_logits` says otherwise; or a function as for `compile`, which gets labels as
            floats, [B, 1] where outputs are [B, 1]; or None for softmax cross-entropy of class
            indices, from logits.

    Raises:
        ProblemError: If it is none of these, or sums where l2o takes the mean.
    """
    if loss is None:
        return cross_entropy
    try:
        found = keras.losses.get(loss)
    except ValueError:
        raise ProblemError(
            "loss must be the name of a Keras loss, a keras.losses.Loss or a function (labels, "
            f"outputs) -> losses. Received: {loss!r}"
        ) from None
    if not isinstance(found, keras.losses.Loss):
        return _as_in_compile(found)
    if found.reduction not in _MEANS:
        raise ProblemError(
            f"l2o takes the mean of a batch's losses. Received: {type(found).__name__} with "
            f"reduction={found.reduction!r}"
        )
    if getattr(found, "ignore_class", None) is not None:
        raise ProblemError(
            "l2o takes the mean of all of a batch's losses, and ignore_class leaves some out. "
            f"Received: {type(found).__name__} with ignore_class={found.ignore_class!r}"
        )
    # What Keras does before it reduces. `found` itself would reduce.
    return lambda labels, outputs: found.call(tf.cast(labels, found.dtype), outputs)


def _as_in_compile(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A function as `compile` calls it: labels are floats, [B, 1] where outputs are [B, 1]."""

    def losses(labels, outputs):
        labels = tf.cast(labels, outputs.dtype)
        if outputs.shape.rank == labels.shape.rank + 1 and outputs.shape[-1] == 1:
            labels = labels[..., tf.newaxis]
        return function(labels, outputs)

    return losses


def takes_class_indices(loss: Loss) -> bool:
    """Whether a loss is the cross-entropy of class indices: then accuracy has a meaning."""
    if loss is None:
        return True
    loss = keras.losses.get(loss)
    kind, function = _CLASS_INDICES
    return isinstance(loss, kind) or loss is function


def cross_entropy(labels, logits):
    """Softmax cross-entropy [B, ...] of class indices [B, ...] and logits [B, ..., classes]."""
    labels = tf.reshape(tf.cast(labels, tf.int32), tf.shape(logits)[:-1])  # [B, 1] is [B]
    labels = tf.one_hot(labels, tf.shape(logits)[-1], dtype=logits.dtype)
    return -tf.reduce_sum(labels * tf.nn.log_softmax(logits), axis=-1)
