"""Optimizee: a network and its loss as pure functions of one flat vector."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf

from l2o.rules.layout import Layout
from l2o.tasks.keras_loss import Loss, per_example, takes_class_indices
from l2o.tasks.second_order import second_derivatives

# Here, where all comes through that trains and evaluates.
if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "l2o trains and evaluates policies on Keras' tensorflow backend alone; trained ones run on "
        f"any. Received: KERAS_BACKEND={keras.backend.backend()}"
    )

SEED = "seed_generator_state"  # what Keras calls the variable of a dropout's seed


class Batch(NamedTuple):
    """Examples.

    Attributes:
        inputs: [B, ...]; uint8 means pixels, which the network sees divided by 255.
        labels: [B, ...], whatever the loss takes; class indices [B] by default.
    """

    inputs: Any
    labels: Any


def as_batch(split) -> Batch:
    """The examples of a split with `inputs` and `labels` arrays, on the device."""
    return Batch(tf.convert_to_tensor(split.inputs), tf.convert_to_tensor(split.labels))


class Optimizee(Protocol):
    """What meta-training and evaluation see of a problem."""

    layout: Layout

    def initial(self, seed: int) -> tuple[np.ndarray, list]:
        """Fresh parameters [D] and what else the network carries along (batch-norm statistics)."""

    def loss(self, parameters, carried: list, batch: Batch, training: bool) -> tuple[Any, list]:
        """The mean loss of a batch, a scalar, and the new carried values."""


@contextmanager
def keras_seed(seed: int) -> Iterator[None]:
    """Layers built within have initial values fixed by `seed`; global randomness is left alone.

    A Keras initializer without a seed draws one from Python's generator; layers of a user's own
    may draw from NumPy's.
    """
    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)


class KerasOptimizee:
    """A Keras model and its loss as an optimizee.

    Args:
        build: Makes the model, with fresh weights at every call. Its outputs are logits unless
            `loss` says otherwise.
        loss: See `keras_loss.per_example`; softmax cross-entropy from logits by default.

    Attributes:
        model: One such model, which is called with other weights than its own.
        losses: (labels, outputs) -> losses [B, ...].
        classifies: Whether labels are class indices, so that there is an accuracy.
        layout: Of the trainable weights.
    """

    def __init__(self, build: Callable[[], keras.Model], loss: Loss = None):
        self._build = build
        self.losses, self.classifies = per_example(loss), takes_class_indices(loss)
        self.model = build()
        variables = self.model.trainable_variables
        self.layout = Layout.of(variables, [v.path for v in variables])

    def initial(self, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
        with keras_seed(seed):
            model = self._build()
        parameters = [v.numpy().ravel() for v in model.trainable_variables]
        generator = np.random.default_rng(seed)
        # A layer may have a seed of its own, which would be every trajectory's.
        carried = [
            np.array([generator.integers(2**31), 0], v.dtype) if v.name == SEED else v.numpy()
            for v in model.non_trainable_variables
        ]
        return np.concatenate(parameters), carried

    def loss(self, parameters, carried, batch, training):
        return self.outcome(self.layout.unflatten(parameters), carried, batch, training)[:2]

    def outcome(self, tensors, carried, batch, training):
        """As `loss`, of the layout's tensors, with the network's outputs [B, ...] as a third."""
        with second_derivatives(self.model):
            outputs, carried, penalties = self.model.stateless_call(
                tensors,
                carried,
                as_inputs(batch.inputs),
                return_losses=True,
                **mode(self.model, training),
            )
        loss = tf.reduce_mean(self.losses(batch.labels, outputs))
        return tf.add_n([loss, *penalties]), carried, outputs


@dataclass(frozen=True)
class Scaled:
    """Random scaling (Lv et al. 2017): an optimizee in coordinates divided by `scale`.

    Parameters become theta / s, so the gradient becomes s * g; the loss is the same.

    Attributes:
        optimizee: What is scaled.
        scale: [D], of either sign, not zero.
    """

    optimizee: Optimizee
    scale: Any

    @property
    def layout(self) -> Layout:
        return self.optimizee.layout

    def loss(self, parameters, carried, batch, training):
        return self.optimizee.loss(parameters * self.scale, carried, batch, training)


def mode(model: keras.Model, training: bool) -> dict[str, bool]:
    """A model of the user's own need not ask for `training`, and then does not bear it."""
    return {"training": training} if model._call_has_training_arg else {}


def as_inputs(inputs):
    """Pixels (uint8) as floats in [0, 1]; anything else as it is."""
    if inputs.dtype == tf.uint8:
        return tf.cast(inputs, keras.config.floatx()) / 255
    return inputs


class ValueAndGradient(NamedTuple):
    """What a step sees of the network: the loss, its gradient [D], the new carried values."""

    loss: Any
    gradient: Any
    carried: list


def loss_and_gradient(
    optimizee: Optimizee, parameters, carried: list, batch: Batch
) -> ValueAndGradient:
    """The training loss, its gradient [D], and the new carried values."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(parameters)
        loss, carried = optimizee.loss(parameters, carried, batch, training=True)
    return ValueAndGradient(loss, tape.gradient(loss, parameters), carried)
