"""Evolution strategies: meta-updates from the losses of whole fits, without backpropagation.

Noise-reuse evolution strategies, where a fit keeps its noise (Li et al. 2023), or persistent ones,
where every window adds its own (Vicol et al. 2021). What a window is stands in `particles`, who
begins a fit when in `episodes`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from l2o.amalgamation.episodes import Entry, Evolution, Timetable
from l2o.amalgamation.meta import MetaState, meta_update, one_by_one
from l2o.amalgamation.particles import Particles, estimate, resting, window
from l2o.amalgamation.plan import Place
from l2o.amalgamation.unroll import SCALE_LIMIT, Amalgamation, TruncationResult
from l2o.rules.layout import Layout
from l2o.runs.cluster import workers
from l2o.runs.devices import cores
from l2o.runs.progress import ProgressBar
from l2o.tasks.convolution import side_by_side
from l2o.tasks.examples import in_one_line

# Networks that are faster many at once and under XLA: their parameters, and an example's entries.
MOST_PARAMETERS, MOST_ENTRIES = 16_000, 512


@dataclass(frozen=True)
class EvolutionTraining:
    """Meta-updates of one policy on some problems, over the replicas of a strategy.

    What is random derives from (key, pair, episode), so R replicas with A pairs each do what one
    device with R A pairs does.

    Attributes:
        jobs: Who learns what from whom, on each problem; each has a window in every meta-update.
        evolution: Settings.
        truncation: W, inner steps of a window.
        meta_batch: Pairs of each problem, over all replicas.
        strategy: A `tf.distribute` strategy.
        learning_rate: Adam's.
        warmup: Steps of plain SGD at the start of a fit.
        scale_limit: Largest logarithm of a random scale; 0 for none.
        held_out: Whether the meta loss is measured on examples that its fit never trains on.
    """

    jobs: tuple[Amalgamation, ...]
    evolution: Evolution
    truncation: int
    meta_batch: int
    strategy: tf.distribute.Strategy
    learning_rate: float = 1e-3
    warmup: int = 0
    scale_limit: float = SCALE_LIMIT
    held_out: bool = False

    def span(self, unroll: int) -> int:
        """Meta-updates between which nothing is saved: one, as particles are kept."""
        return 1

    def inner_steps(self) -> int:
        """Inner steps of a meta-update."""
        return 2 * self.truncation * self.meta_batch * len(self.jobs)

    def begin(self, weights: list, place: Place, kept: list) -> list[Particles]:
        """The particles of every problem, as they were kept, or before their first fit."""
        if kept and isinstance(kept[0], Particles):
            return kept
        whole = [resting(job, self.meta_batch) for job in self.jobs]
        if kept:  # as tensors, from a checkpoint
            whole = tf.nest.pack_sequence_as(whole, kept)
        share = self.meta_batch // self.strategy.num_replicas_in_sync
        mine = lambda replica, x: x[replica * share : (replica + 1) * share]  # noqa: E731
        return self._spread(lambda replica: tf.nest.map_structure(partial(mine, replica), whole))

    def kept(self, particles: list[Particles]) -> list:
        """All of their tensors, [P, ...], of all replicas."""
        tensors = tf.nest.flatten(particles)
        if workers():
            return [self.strategy.gather(x, axis=0) for x in tensors]
        return [tf.concat(self.strategy.experimental_local_results(x), 0) for x in tensors]

    def update(
        self,
        state: MetaState,
        particles: list[Particles],
        place: Place,
        step: int,
        alpha: float,
    ) -> tuple[MetaState, list[Particles], TruncationResult]:
        """One window of every particle, and the meta-update.

        Args:
            state: Policy and meta-optimizer.
            particles: From `begin`, or the update before.
            place: Which piece of which period.
            step: 0, as a piece has one update.
            alpha: Weight of the distance.

        Returns:
            The new state and particles, and the result of the window, averaged.
        """
        flat = Layout.of(state.weights).flatten(state.weights)
        alpha = tf.constant(alpha, keras.config.floatx())
        key, longest = (*place.key, place.origin), place.unroll
        number = (place.behind - place.origin) // self.meta_batch * (longest // self.truncation)
        entry_of = partial(self._entry, key, longest, number + place.number)

        def given(k: int) -> tuple:
            return flat, particles[k], self._spread(partial(entry_of, k)), alpha

        estimates, particles = self._at_once("windows", self._windows, given)
        fall = (1 + math.cos(math.pi * place.share)) / 2 if self.evolution.cosine else 1.0
        rate = tf.constant(self.learning_rate * fall, keras.config.floatx())
        state, result = self._update(state, estimates, rate)
        return state, particles, result

    def validate(
        self,
        weights: list,
        key: Sequence[int],
        trajectories: int,
        unroll: int,
        tick: Callable[[float, float], None] = lambda seconds, share: None,
    ) -> np.ndarray:
        """Meta losses of whole fits, unscaled and without teachers, of all problems in turn.

        Args:
            weights: The policy's.
            key: Names the fits.
            trajectories: How many of each problem, their lengths evenly spread.
            unroll: Of the longest, a multiple of the window.
            tick: Called after every window with the seconds it took, and its share of the work.
        """
        flat, begun = Layout.of(weights).flatten(weights), time.monotonic()
        plain = replace(self.evolution, reparameterised=0.0, untold=0.0, noisy=0.0)
        tables = [
            Timetable(
                job.task, (*key, k), range(trajectories), plain, self.truncation, unroll,
                len(flat), held_out=self.held_out, abreast=True,
            )
            for k, job in enumerate(self.jobs)
        ]  # fmt: skip
        particles = [resting(job, trajectories, 1) for job in self._validated]
        still, total = tf.zeros((), flat.dtype), np.zeros(trajectories * len(self.jobs))
        for number in range(unroll // self.truncation):
            entries = [_tensors(table.entry(number)) for table in tables]
            given = lambda k: (flat, particles[k], entries[k], still)  # noqa: B023, E731
            outcomes, particles = self._at_once("validations", self._validation, given)
            each = [outcome.meta_loss[:, 0] / entry.steps
                    for outcome, entry in zip(outcomes, entries, strict=True)]  # fmt: skip
            total += self.truncation * np.concatenate(each)
            tick(time.monotonic() - begun, self.truncation / unroll)
            begun = time.monotonic()
        return total

    def _at_once(self, what: str, functions: list, given: Callable[[int], tuple]) -> list[list]:
        """What function k returns of `given(k)`, for every problem, several at the same time.

        At first they are traced, one after the other: what Keras calls is replaced meanwhile.
        """
        count = len(functions)
        if what not in self._traced:
            bar = ProgressBar(f"tracing {what}")
            for k, function in enumerate(functions):
                if count > 1:
                    bar.show(k, count, self.jobs[k].task.name)
                function.get_concrete_function(*given(k))
            bar.close()
            self._traced.add(what)
        with ThreadPoolExecutor(self._abreast) as pool:
            done = list(pool.map(lambda k: functions[k](*given(k)), range(count)))
        return list(map(list, zip(*done, strict=True)))

    @cached_property
    def _windows(self) -> list[Any]:
        return [self._window(job) for job in self.jobs]

    def _window(self, job: Amalgamation) -> Callable:
        """A window of a problem's particles, in a part for each core."""
        run = self._compiled(job, (1.0, -1.0))
        parts = max(cores() // self.strategy.num_replicas_in_sync // self._abreast, 1)

        def replica(weights, particles, entry, alpha):
            pairs = entry.fresh.shape[0]
            count = max(n for n in range(1, parts + 1) if pairs % n == 0)
            flat = [tf.split(x, count) for x in tf.nest.flatten((particles, entry))]
            cut = [
                tf.nest.pack_sequence_as((particles, entry), part)
                for part in zip(*flat, strict=True)
            ]
            done = [run(weights, *part, alpha) for part in cut]
            outcome, after = tf.nest.map_structure(lambda *x: tf.concat(x, 0), *done)
            return estimate(self.evolution, outcome, entry.total), after

        return tf.function(lambda *values: self.strategy.run(replica, values), autograph=False)

    def _compiled(self, job: Amalgamation, signs: tuple[float, ...]) -> Callable:
        """(weights, particles, entry, alpha) -> (outcome, particles)."""
        data, task = _tensors(job.task.dataset.train), job.task
        entries = max(math.prod(x.shape[1:]) for x in tf.nest.flatten(data.inputs))
        small = task.layout.size <= MOST_PARAMETERS and entries <= MOST_ENTRIES
        small &= sys.platform != "darwin"  # TensorFlow has no XLA there
        spread = vectorized(task.name) if small else one_by_one

        def run(weights, particles, entry, alpha):
            with side_by_side() if small else nullcontext():
                return window(
                    job, self.evolution, self.warmup, weights, tf.constant(signs, weights.dtype),
                    particles, entry, data, alpha, spread,
                )  # fmt: skip

        return tf.function(run, autograph=False, jit_compile=small)

    @cached_property
    def _validated(self) -> list[Amalgamation]:
        return [replace(job, teachers=(), scheme="none") for job in self.jobs]

    @cached_property
    def _validation(self) -> list[Any]:
        return [self._compiled(job, (0.0,)) for job in self._validated]

    @cached_property
    def _update(self) -> Callable:
        def replica(state, estimates, rate):
            mean = tf.nest.map_structure(lambda *x: tf.add_n(x) / len(x), *estimates)
            context = tf.distribute.get_replica_context()
            flat = context.all_reduce(tf.distribute.ReduceOp.MEAN, tf.nest.flatten(mean))
            gradient, result = tf.nest.pack_sequence_as(mean, flat)
            gradient = tf.clip_by_norm(gradient, self.evolution.gradient_norm)
            finite = result.finite >= 1
            return meta_update(state, gradient, finite, rate), result

        @tf.function(autograph=False)
        def update(state, estimates, rate):
            both = self.strategy.run(replica, (state, estimates, rate))
            first = lambda x: self.strategy.experimental_local_results(x)[0]  # noqa: E731
            return tf.nest.map_structure(first, both)

        return update

    @cached_property
    def _abreast(self) -> int:
        """Problems whose windows are taken at the same time, a core each."""
        return min(cores(), len(self.jobs)) if self.strategy.num_replicas_in_sync == 1 else 1

    @cached_property
    def _traced(self) -> set[str]:
        return set()

    @cached_property
    def _tables(self) -> dict[tuple[int, int], Timetable]:
        return {}

    def _entry(
        self, key: tuple[int, ...], longest: int, number: int, k: int, replica: int
    ) -> Entry:
        """What a window is given on problem k, on one replica."""
        job, share = self.jobs[k], self.meta_batch // self.strategy.num_replicas_in_sync
        table = self._tables.get((k, replica))
        if table is None or (table.key, table.longest) != ((*key, k), longest):
            pairs = range(replica * share, (replica + 1) * share)
            weights = Layout.of(job.rule.initial_weights(0)).size
            table = self._tables[k, replica] = Timetable(
                job.task, (*key, k), pairs, self.evolution, self.truncation, longest, weights,
                self.scale_limit, self.held_out,
            )  # fmt: skip
        return table.entry(number)

    def _spread(self, make: Callable[[int], Any]):
        """`make(replica)` on each replica, as tensors."""
        if self.strategy.num_replicas_in_sync == 1:
            return _tensors(make(0))
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: _tensors(make(context.replica_id_in_sync_group))
        )


def vectorized(name: str) -> Callable:
    """`tf.vectorized_map`, or one by one where that cannot be had, which is said once."""
    said: list[str] = []

    def spread(function: Callable, stacked):
        try:
            return tf.vectorized_map(function, stacked, fallback_to_while_loop=False)
        except ValueError as error:
            if not said:
                print(f"Note: {name} is trained one particle after another, as TensorFlow cannot "
                      f"vectorize it: {in_one_line(error)}", flush=True)  # fmt: skip
            said.append(name)
            return one_by_one(function, stacked)

    return spread


def _tensors(structure):
    return tf.nest.map_structure(tf.convert_to_tensor, structure)
