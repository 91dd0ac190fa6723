"""Fitting a network: the compiled loop behind tuning and evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from l2o.amalgamation.unroll import Runner, inner_step
from l2o.problems.dataset import Batch
from l2o.rules import Horizon, UpdateRule
from l2o.tasks.batches import batch_indices, entry
from l2o.tasks.gradient import Gradient, correct, plain_gradient
from l2o.tasks.task import Task

_SCORING_BATCH = 1000
# A compiled call is a whole epoch, or as many steps as take so long: Ctrl-C waits for its end.
_CALL_SECONDS, _FIRST_CALL_STEPS = 3.0, 20


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to; losses are means, accuracies in [0, 1], NaN without classes.

    Attributes:
        steps: Steps so far, warm-up included.
        seconds: Training time so far, without compiling and measuring.
        cpu_seconds: Of this process's processor, for the same.
        train_loss, train_accuracy: Over the epoch's batches, each before its step; at epoch 0
            those of the first batch.
        validation_loss, validation_accuracy: After the epoch, over all examples.
        test_loss, test_accuracy: The same; NaN where there are no test examples.
        diverged_at: The step, from the start of the fit, with the first loss that is not finite.
    """

    steps: int
    seconds: float
    cpu_seconds: float
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    test_loss: float
    test_accuracy: float
    diverged_at: int | None = None


@dataclass(frozen=True)
class History:
    """One fit.

    Attributes:
        epochs: From epoch 0, before the first step; they end where the fit diverged.
        losses, accuracies: Of every step's batch, before its step, float32 [steps].
    """

    epochs: list[Epoch]
    losses: np.ndarray
    accuracies: np.ndarray


class Fit:
    """A network that a rule fits.

    Args:
        task: The network.
        rule: The optimizer, wrapped as it is to be used.
        weights: The rule's.
        train, validation: Examples.
        batch_size: Examples a step.
        test: Examples, or None.
        gradient: `plain_gradient`, or a private one.
    """

    def __init__(
        self,
        task: Task,
        rule: UpdateRule,
        weights: Sequence,
        train: Batch,
        validation: Batch,
        batch_size: int,
        test: Batch | None = None,
        gradient: Callable[..., Gradient] = plain_gradient,
    ):
        self._task, self._rule, self._weights = task, rule, list(weights)
        self._train, self._held_out = train, [validation] + ([test] if test else [])
        self._batch_size, self._gradient = batch_size, gradient
        self._steps: Any = None  # compiled by TensorFlow, which has no types
        self._pace = 0.0
        self._score = tf.function(self._run_score, autograph=False)

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch; a smaller last one is left out."""
        return int(self._train.labels.shape[0]) // self._batch_size

    def run(
        self, seed: int, epochs: int, report: Callable[[int], None] = lambda steps: None
    ) -> History:
        """Fits fresh parameters; stops early, with a record of it, when the loss diverges.

        Initial parameters and batches derive from `seed` alone, so that optimizers can be compared
        in pairs.

        Args:
            seed: Of everything random.
            epochs: How many.
            report: Told now and then how many steps are behind.
        """
        parameters, carried = self._task.initial(seed)
        held = Runner(parameters, carried, self._rule.initial_state(self._task.layout))
        held = tf.nest.map_structure(tf.convert_to_tensor, held)
        self._horizon = Horizon(float(epochs * self.steps_per_epoch), float(epochs))
        if self._steps is None:
            self._steps = self._compiled(held)
            self._call(held, seed, 0, 0)
        scores = self._scores(held)
        rows: list[Epoch] = []
        records, done, spent = [np.zeros((2, 0), "float32")], 0, np.zeros(2)
        for epoch in range(epochs):
            begun = _now()
            held, record = self._run_epoch(held, seed, epoch, report)
            spent += _now() - begun
            records.append(record)
            if not rows:
                loss, accuracy = map(float, record[:, 0])
                rows.append(
                    Epoch(0, 0.0, 0.0, _loss(loss), accuracy, _loss(scores[0]), *scores[1:])
                )
            done += record.shape[1]
            scores = self._scores(held)
            if not np.isfinite(record[0, -1]):
                rows.append(self._diverged(done, spent, done - 1))
                break
            if not np.isfinite(scores[: 2 * len(self._held_out) : 2]).all():
                rows.append(self._diverged(done, spent, done))  # the step that would be next
                break
            loss, accuracy = map(float, record.mean(1, dtype="float64"))
            rows.append(Epoch(done, float(spent[0]), float(spent[1]), loss, accuracy, *scores))
        return History(rows, *np.concatenate(records, axis=1))

    def _compiled(self, held):
        """`_run_steps` for any number of steps."""
        indices = tf.TensorSpec([None, self._batch_size], tf.int32)
        key, horizon = tf.TensorSpec([2], tf.int64), tf.TensorSpec([2], tf.float32)
        specs = tf.nest.map_structure(tf.TensorSpec.from_tensor, held)
        function = tf.function(self._run_steps, autograph=False)
        return function.get_concrete_function(indices, key, horizon, specs)

    def _run_epoch(self, held, seed: int, epoch: int, report) -> tuple:
        """The steps of an epoch, or as many as there are until the loss diverges."""
        done, stop = epoch * self.steps_per_epoch, (epoch + 1) * self.steps_per_epoch
        records: list[np.ndarray] = []
        while done < stop and (not records or np.isfinite(records[-1][0, -1])):
            count = int(_CALL_SECONDS / self._pace) if self._pace else _FIRST_CALL_STEPS
            begun = time.perf_counter()
            record, held = self._call(held, seed, done, min(stop - done, max(count, 1)))
            self._pace = (time.perf_counter() - begun) / record.shape[1]
            records.append(record)
            done += record.shape[1]
            report(done)
        return held, np.concatenate(records, axis=1)

    def _diverged(self, steps: int, spent: np.ndarray, step: int) -> Epoch:
        scores = (np.inf, 0.0 if self._task.classifies else np.nan)
        test = scores if len(self._held_out) > 1 else (np.nan, np.nan)
        return Epoch(steps, float(spent[0]), float(spent[1]), *scores, *scores, *test, step)

    def _call(self, held, seed: int, start: int, count: int):
        """Runs `count` steps; losses and accuracies [2, steps], shorter where the loss diverged."""
        examples = int(self._train.labels.shape[0])
        indices = batch_indices([seed], examples, self._batch_size, start, count)
        key, horizon = tf.constant([seed, start], tf.int64), tf.constant(self._horizon)
        record, done, held = self._steps(tf.constant(indices), key, horizon, held)
        return record.numpy()[: int(done)].T, held

    def _scores(self, held) -> tuple[float, float, float, float]:
        """Loss and accuracy of validation, and of test."""
        parameters, carried, state = held
        parameters = self._rule.evaluated(parameters, state)

        def score(k: int) -> tuple[float, float]:
            loss, accuracy = self._score(parameters, carried, k)
            return float(loss), float(accuracy)

        return *score(0), *(score(1) if len(self._held_out) > 1 else (np.nan, np.nan))

    def _run_steps(self, indices, key, horizon, held):
        steps, horizon = tf.shape(indices)[0], Horizon(*tf.unstack(horizon))

        def proceed(i, loss, *_):
            return (i < steps) & tf.math.is_finite(loss)

        def step(i, loss, record, held):
            batch = entry(self._train, indices[i])
            now = tf.stack([key[0], key[1] + tf.cast(i, key.dtype)])
            gradient_of = lambda *here: self._gradient(*here, now)  # noqa: E731
            seen, held = inner_step(
                self._task, self._rule, self._weights, held, batch, gradient_of, horizon
            )
            loss, accuracy = (tf.cast(x, tf.float32) for x in (seen.loss, seen.accuracy))
            return i + 1, loss, record.write(i, tf.stack([loss, accuracy])), held

        record = tf.TensorArray(tf.float32, size=steps, element_shape=(2,))
        done, _, record, held = tf.while_loop(proceed, step, (0, 0.0, record, held))
        return record.stack(), done, held

    def _run_score(self, parameters, carried, which: int):
        """Mean loss and accuracy over all held-out examples, the last smaller batch included."""
        examples = self._held_out[which]
        count = int(examples.labels.shape[0])
        tensors = self._task.layout.unflatten(parameters)

        def add(start, loss, hits):
            stop = tf.minimum(start + _SCORING_BATCH, count)
            batch = tf.nest.map_structure(lambda x: x[start:stop], examples)  # noqa: B023
            mean, _, outputs = self._task.outcome(tensors, carried, batch, training=False)
            if self._task.classifies:
                hits += tf.reduce_sum(tf.cast(correct(outputs, batch.labels), tf.int32))
            return stop, loss + mean * tf.cast(stop - start, mean.dtype), hits

        loss = tf.zeros((), parameters.dtype)
        loop = tf.while_loop(lambda start, *_: start < count, add, (0, loss, 0))
        accuracy = loop[2] / tf.size(examples.labels) if self._task.classifies else np.nan
        return loop[1] / count, accuracy


def _loss(value: float) -> float:
    """A loss; one that is no number is infinite, as where a fit diverged."""
    return math.inf if math.isnan(value) else value


def _now() -> np.ndarray:
    """Seconds by the clock, and of this process's processor, [2]."""
    return np.array([time.perf_counter(), time.process_time()])
