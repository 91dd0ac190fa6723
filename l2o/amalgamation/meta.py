"""The meta-update: trajectories on every replica, their mean meta-gradient, one step of Adam."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from l2o.amalgamation.unroll import (
    SCALE_LIMIT,
    Amalgamation,
    TruncationResult,
    all_finite,
    begin,
    choose,
    truncation,
    validate_truncation,
    warm_up,
)
from l2o.problems.dataset import Batch
from l2o.rules.analytical import Adam
from l2o.rules.base import State
from l2o.rules.layout import Layout
from l2o.tasks.batches import Stream, batches, held_out

CLIP_RATIO, CLIP_FLOOR = 0.1, 1e-3


class MetaState(NamedTuple):
    """What meta-training changes.

    Attributes:
        weights: The policy's.
        optimizer: Adam's moments over all weights as one vector.
        skipped: int32 scalar, the updates left out because something was not finite.
    """

    weights: list
    optimizer: State
    skipped: Any


class Cut(NamedTuple):
    """The batches of one truncation.

    Attributes:
        steps: To train on.
        judged: Held out for the meta loss, or ().
    """

    steps: Batch
    judged: Batch | tuple


def meta_optimizer(learning_rate: float) -> Adam:
    """Adam as Keras has it: 1e-7 outside the root is about 1e-14 inside."""
    return Adam(learning_rate, epsilon=1e-14)


def initial_state(weights: Sequence) -> MetaState:
    """The state before the first meta-update."""
    weights = [tf.convert_to_tensor(w) for w in weights]
    moments = meta_optimizer(0.0).initial_state(Layout.of(weights))
    return MetaState(weights, moments, tf.zeros((), tf.int32))


def meta_update(state: MetaState, gradient, finite, learning_rate) -> MetaState:
    """One step of Adam along a clipped meta-gradient [K], unless something is not finite."""
    layout = Layout.of(state.weights)
    flat = layout.flatten(state.weights)
    adam = meta_optimizer(learning_rate)
    move, optimizer = adam.update([], gradient, flat, state.optimizer, layout)
    new = MetaState(layout.unflatten(flat - move), optimizer, state.skipped)
    finite &= all_finite(new)
    return choose(finite, new, state._replace(skipped=state.skipped + 1))


def clip(
    gradient: Sequence, weights: Sequence, ratio: float = CLIP_RATIO, floor: float = CLIP_FLOOR
) -> list:
    """Adaptive gradient clipping, tensor by tensor, by Frobenius norms (paper, Appendix B).

    A gradient longer than `ratio` of its weight tensor (of at least `floor`) is cut to that length.
    """
    longest, lengths = ratio * tf.maximum(_norms(weights), floor), _norms(gradient)
    factors = tf.where(lengths > longest, tf.math.divide_no_nan(longest, lengths), 1)
    return [g * factor for g, factor in zip(gradient, tf.unstack(factors), strict=True)]


def _norms(tensors: Sequence):
    """Frobenius norms [K], also of what is so large that its square overflows."""

    def norm(x):
        largest = tf.reduce_max(tf.abs(x))
        shares = tf.math.divide_no_nan(x, largest)
        return largest * tf.sqrt(tf.reduce_sum(tf.square(shares)))

    return tf.stack([norm(x) for x in tensors])


@dataclass(frozen=True)
class MetaTraining:
    """Meta-updates of one policy on one problem, over the replicas of a strategy.

    Every number drawn derives from (key, trajectory index), so R replicas with A trajectories
    each do what one device with R A trajectories does.

    Attributes:
        job: Who learns what from whom.
        data: The training examples, as NumPy arrays.
        batch_size: Examples an inner step.
        truncation: T, inner steps a meta-update.
        meta_batch: Trajectories a meta-update, over all replicas.
        strategy: A `tf.distribute` strategy.
        learning_rate: Adam's.
        scaled: Whether training uses random scaling.
        scale_limit: Largest logarithm of a scale.
        clip_ratio, clip_floor: See `clip`.
        held_out: Whether the meta loss is measured on examples that its unroll never trains on.
    """

    job: Amalgamation
    data: Batch
    batch_size: int
    truncation: int
    meta_batch: int
    strategy: tf.distribute.Strategy
    learning_rate: float = 1e-3
    scaled: bool = True
    scale_limit: float = SCALE_LIMIT
    clip_ratio: float = CLIP_RATIO
    clip_floor: float = CLIP_FLOOR
    held_out: bool = False

    def __post_init__(self):
        replicas = self.strategy.num_replicas_in_sync
        if self.meta_batch < 1 or self.meta_batch % replicas:
            raise ValueError(
                f"The meta-batch must be a positive multiple of the {replicas} replicas. "
                f"Received: {self.meta_batch}"
            )

    def begin(self, weights: list, key: Sequence[int], first: int, warmup: int):
        """Trajectories after their warm-up, spread over the replicas.

        Args:
            weights: The policy's, whose moments follow the warm-up.
            key: Names the stream of trajectories.
            first: Index of the first one; `meta_batch` of them begin.
            warmup: Steps.
        """
        fresh = self._spread(
            lambda key: begin(self.job, key, self.scaled, self.scale_limit), key, first
        )
        if not warmup:
            return fresh
        early = self._spread(lambda key: self._early(key, warmup), key, first)
        return self._warm_up(weights, fresh, early)

    def update(
        self,
        state: MetaState,
        trajectories,
        key: Sequence[int],
        first: int,
        behind: int,
        alpha: float,
    ) -> tuple[MetaState, Any, TruncationResult]:
        """One truncation of every trajectory, and the meta-update.

        Args:
            state: Policy and meta-optimizer.
            trajectories: From `begin` or the previous update of this unroll.
            key: Names the stream of trajectories.
            first: Index of the first one.
            behind: Steps of this unroll already behind, warm-up included.
            alpha: Weight of the distance.

        Returns:
            The new state and trajectories, and the result of this truncation, averaged.
        """
        cuts = self._spread(lambda key: self._cut(key, behind), key, first)
        return self._update(state, trajectories, cuts, tf.constant(alpha, keras.config.floatx()))

    def validate(
        self,
        weights: list,
        key: Sequence[int],
        trajectories: int,
        unroll: int,
        warmup: int,
        tick: Callable[[float], None] = lambda seconds: None,
    ) -> np.ndarray:
        """Meta losses [trajectories] of whole unrolls, unscaled and without teachers.

        Args:
            weights: The policy's.
            key: Names the fixed trajectories.
            trajectories: How many.
            unroll: N, a multiple of the truncation.
            warmup: Steps.
            tick: Called after every truncation with the seconds it took.
        """
        losses = []
        for index in range(trajectories):
            here, total, begun = [*key, index], 0.0, time.monotonic()
            trajectory = begin(self._validation, here, scaled=False)
            if warmup:
                trajectory = self._warm_up_alone(weights, trajectory, self._early(here, warmup))
            for start in range(warmup, warmup + unroll, self.truncation):
                trajectory, loss = self._validate_truncation(
                    weights, trajectory, *self._cut(here, start)
                )
                total += float(loss)
                tick(time.monotonic() - begun)
                begun = time.monotonic()
            losses.append(total * self.truncation / unroll)
        return np.array(losses)

    @cached_property
    def _validation(self) -> Amalgamation:
        return replace(self.job, teachers=(), scheme="none", recompute=0)

    def _early(self, key: Sequence[int], warmup: int) -> Batch:
        """What the warm-up of a trajectory sees."""
        kept = held_out(len(self.data.labels), key)[0] if self.held_out else None
        return _tensors(batches(self.data, key, self.batch_size, 0, warmup, kept))

    def _cut(self, key: Sequence[int], behind: int) -> Cut:
        """What one truncation of a trajectory sees."""
        kept, tenth = held_out(len(self.data.labels), key) if self.held_out else (None, None)
        some = partial(batches, self.data, key, self.batch_size, behind, self.truncation)
        return _tensors(
            Cut(some(kept), some(tenth, stream=Stream.HELD_OUT_BATCHES) if self.held_out else ())
        )

    def _spread(self, make: Callable, key: Sequence[int], first: int):
        """`make([*key, index])` for every trajectory, stacked [A, ...] on each replica."""
        replicas = self.strategy.num_replicas_in_sync
        share = self.meta_batch // replicas

        def stack(replica):
            start = first + replica * share
            items = [make([*key, index]) for index in range(start, start + share)]
            return tf.nest.map_structure(lambda *x: tf.stack(x), *items)

        if replicas == 1:  # as an update returns it, so that the next one is not traced again
            return stack(0)
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: stack(context.replica_id_in_sync_group)
        )

    @cached_property
    def _warm_up(self):
        def replica(weights, trajectories, early):
            return one_by_one(partial(warm_up, self.job, weights), trajectories, early)

        return tf.function(lambda *values: self.strategy.run(replica, values), autograph=False)

    @cached_property
    def _update(self):
        def replica(state, trajectories, cuts, alpha):
            def one(trajectory, cut):
                return truncation(self.job, state.weights, trajectory, cut.steps, alpha, cut.judged)

            gradients, trajectories, result = one_by_one(one, trajectories, cuts)
            mean = [tf.reduce_mean(x, axis=0) for x in [*gradients, *result]]
            context = tf.distribute.get_replica_context()
            mean = context.all_reduce(tf.distribute.ReduceOp.MEAN, mean)
            gradient, result = mean[: len(gradients)], TruncationResult(*mean[len(gradients) :])
            return self._apply(state, gradient, result.finite >= 1), trajectories, result

        @tf.function(autograph=False)
        def update(state, trajectories, cuts, alpha):
            state, trajectories, result = self.strategy.run(
                replica, (state, trajectories, cuts, alpha)
            )
            first = lambda x: self.strategy.experimental_local_results(x)[0]  # noqa: E731
            state, result = tf.nest.map_structure(first, (state, result))
            return state, trajectories, result

        return update

    def _apply(self, state: MetaState, gradient: list, finite) -> MetaState:
        cut = clip(gradient, state.weights, self.clip_ratio, self.clip_floor)
        flat = Layout.of(state.weights).flatten(cut)
        return meta_update(state, flat, finite, self.learning_rate)

    @cached_property
    def _warm_up_alone(self):
        return tf.function(partial(warm_up, self._validation), autograph=False)

    @cached_property
    def _validate_truncation(self):
        return tf.function(partial(validate_truncation, self._validation), autograph=False)


def _tensors(structure):
    return tf.nest.map_structure(tf.convert_to_tensor, structure)


def one_by_one(function: Callable, *stacked):
    """`function` of every row of nested tensors, its results stacked again.

    A row waits for the one before, so that memory is that of one.
    """
    rows = list(zip(*(tf.unstack(x) for x in tf.nest.flatten(stacked)), strict=True))
    results: list = []
    # Several calls are calls of one graph; one alone is faster as a part of the graph around it.
    once = {"_noinline": len(rows) > 1}
    function = tf.function(function, autograph=False, experimental_attributes=once)
    for row in rows:
        with tf.control_dependencies(tf.nest.flatten(results[-1:])):
            results.append(function(*tf.nest.pack_sequence_as(stacked, row)))
    return tf.nest.map_structure(lambda *x: tf.stack(x), *results)
