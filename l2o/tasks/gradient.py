"""A training batch's loss, accuracy and gradient, as a fit takes them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from l2o.problems.dataset import Batch
from l2o.tasks.task import Task


class Gradient(NamedTuple):
    """A training batch: its mean loss, accuracy, gradient [D] and what the network carries on."""

    loss: Any
    accuracy: Any
    gradient: Any
    carried: list


def plain_gradient(task: Task, parameters, carried: list, batch: Batch, key) -> Gradient:
    """The gradient of a batch's mean loss; `key` (seed and step, int [2]) is not needed."""
    tensors = task.layout.unflatten(parameters)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(tensors)
        loss, carried, outputs = task.outcome(tensors, carried, batch, training=True)
    gradient = tape.gradient(loss, tensors, unconnected_gradients="zero")
    accuracy = tf.constant(np.nan, loss.dtype)
    if task.classifies:
        accuracy = tf.reduce_mean(tf.cast(correct(outputs, batch.labels), loss.dtype))
    return Gradient(loss, accuracy, task.layout.flatten(gradient), carried)


def correct(outputs, labels):
    """Which of the outputs [B, ..., classes] are greatest at the label, bools [B, ...]."""
    greatest = tf.argmax(outputs, -1, labels.dtype)
    return greatest == tf.reshape(labels, tf.shape(greatest))  # [B, 1] is [B]
