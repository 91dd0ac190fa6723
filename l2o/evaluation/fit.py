"""Fitting a network with an update rule: the compiled loop behind tuning and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from l2o.amalgamation.optimizee import (
    Batch,
    KerasOptimizee,
    batch_indices,
    loss_and_gradient,
    take,
)
from l2o.rules.base import UpdateRule

_EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class Warmup:
    """Plain SGD before the rule takes over, which watches meanwhile (paper, Appendix C).

    Attributes:
        steps: Number of steps.
        learning_rate: SGD's rate.
    """

    steps: int = 100
    learning_rate: float = 0.01


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        train_loss: Mean of the losses of the steps' batches, each before its step.
        validation_loss: Mean loss of the validation examples after the epoch.
        validation_accuracy: In [0, 1].
        diverged_at: The step, from the start of the fit, with the first loss that is not finite.
    """

    train_loss: float
    validation_loss: float
    validation_accuracy: float
    diverged_at: int | None = None


class Fit:
    """A network being fitted by a rule.

    Args:
        optimizee: The network.
        rule: The update rule, with its `weights`.
        weights: As from the rule's `initial_weights`.
        train, validation: Examples.
        batch_size: Examples a step.
        warmup: Plain SGD at the start.
    """

    def __init__(
        self,
        optimizee: KerasOptimizee,
        rule: UpdateRule,
        weights: list,
        train: Batch,
        validation: Batch,
        batch_size: int,
        warmup: Warmup = Warmup(),
    ):
        self._optimizee, self._rule, self._weights = optimizee, rule, weights
        self._train, self._validation = train, validation
        self._batch_size, self._warmup = batch_size, warmup
        self._steps = tf.function(self._run_steps)
        self._score = tf.function(self._run_score)

    def run(self, seed: int, epochs: int) -> list[Epoch]:
        """Fits fresh parameters; stops early, with a record of it, when the loss diverges.

        Initial parameters and batches derive from `seed` alone, so that rules can be compared in
        pairs.
        """
        parameters, carried = self._optimizee.initial(seed)
        state = self._rule.initial_state(self._optimizee.layout)
        examples = int(self._train.labels.shape[0])
        per_epoch = examples // self._batch_size
        records = []
        for epoch in range(epochs):
            start = epoch * per_epoch
            indices = batch_indices([seed], examples, self._batch_size, start, per_epoch)
            warmup = np.clip(self._warmup.steps - start, 0, per_epoch)
            losses, done, parameters, carried, state = self._steps(
                tf.constant(indices), int(warmup), parameters, carried, state
            )
            losses = losses.numpy()[: int(done)]
            if not np.isfinite(losses[-1]):
                records.append(Epoch(np.inf, np.inf, 0.0, start + len(losses) - 1))
                break
            loss, accuracy = (float(x) for x in self._score(parameters, carried))
            records.append(Epoch(float(losses.mean()), loss, accuracy))
        return records

    def _run_steps(self, indices, warmup, parameters, carried, state):
        rule, optimizee = self._rule, self._optimizee

        def proceed(i, loss, limit):
            return (i < limit) & tf.math.is_finite(loss)

        def warm(i, loss, losses, parameters, carried, state):
            loss, gradient, carried = self._gradient(parameters, carried, indices[i])
            state = rule.observe(self._weights, gradient, state, optimizee.layout)
            parameters -= self._warmup.learning_rate * gradient
            return i + 1, loss, losses.write(i, loss), parameters, carried, state

        def step(i, loss, losses, parameters, carried, state):
            loss, gradient, carried = self._gradient(parameters, carried, indices[i])
            step, state = rule.update(self._weights, gradient, state, optimizee.layout)
            return i + 1, loss, losses.write(i, loss), parameters - step, carried, state

        steps = tf.shape(indices)[0]
        losses = tf.TensorArray(tf.float32, size=steps)
        loop = (0, 0.0, losses, parameters, carried, state)
        loop = tf.while_loop(lambda i, loss, *_: proceed(i, loss, warmup), warm, loop)
        loop = tf.while_loop(lambda i, loss, *_: proceed(i, loss, steps), step, loop)
        done, _, losses, parameters, carried, state = loop
        return losses.stack(), done, parameters, carried, state

    def _gradient(self, parameters, carried, indices):
        batch = take(self._train, indices)
        return loss_and_gradient(self._optimizee, parameters, carried, batch)

    def _run_score(self, parameters, carried):
        """Mean loss and accuracy over all validation examples, the last smaller batch included."""
        inputs, labels = self._validation
        count = int(labels.shape[0])

        def add(start, loss, correct):
            stop = tf.minimum(start + _EVALUATION_BATCH, count)
            batch = Batch(inputs[start:stop], labels[start:stop])
            mean, _ = self._optimizee.loss(parameters, carried, batch, training=False)
            guess = tf.argmax(self._optimizee.predict(parameters, carried, batch.inputs), -1)
            right = tf.reduce_sum(tf.cast(tf.cast(guess, labels.dtype) == batch.labels, tf.int32))
            return stop, loss + mean * tf.cast(stop - start, mean.dtype), correct + right

        loop = tf.while_loop(lambda start, *_: start < count, add, (0, 0.0, 0))
        return loop[1] / count, tf.cast(loop[2], tf.float32) / count
