"""What the trainer asks of an estimator of the meta-gradient, and the two that there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from l2o.amalgamation.evolution import EvolutionTraining
from l2o.amalgamation.gain import attainable
from l2o.amalgamation.meta import MetaState, MetaTraining
from l2o.amalgamation.plan import Meta, Phase, Place
from l2o.amalgamation.unroll import Amalgamation, Teacher, TruncationResult
from l2o.rules.warmup import SHORT
from l2o.runs.progress import ProgressBar
from l2o.tasks.task import Task


class Estimator(Protocol):
    """An estimator of the meta-gradient, with the meta-updates that are made of it."""

    def span(self, unroll: int) -> int:
        """Meta-updates of a piece of a period."""

    def inner_steps(self) -> int:
        """Inner steps of a meta-update, of all that goes on side by side."""

    def begin(self, weights: list, place: Place, kept: list) -> Any:
        """Trajectories of a piece; `kept` are those of the one before, their tensors, or []."""

    def update(
        self, state: MetaState, trajectories: Any, place: Place, step: int, alpha: float
    ) -> tuple[MetaState, Any, TruncationResult]:
        """Meta-update number `step` of a piece."""

    def kept(self, trajectories: Any) -> list:
        """Tensors from which the next piece goes on, to be saved."""

    def validate(
        self,
        weights: list,
        key: Sequence[int],
        trajectories: int,
        unroll: int,
        tick: Callable[[float, float], None],
    ) -> np.ndarray:
        """Meta losses on fixed trajectories; `tick` hears of seconds and the share of the work."""


@dataclass(frozen=True)
class Backpropagation:
    """Unrolls that begin together and are forgotten, on one problem after the other.

    Attributes:
        parts: One for each problem.
        warmup: Steps of plain SGD before an unroll of a validation.
    """

    parts: tuple[MetaTraining, ...]
    warmup: int

    def span(self, unroll):
        return unroll // self.parts[0].truncation

    def inner_steps(self):
        return self.parts[0].truncation * self.parts[0].meta_batch

    def begin(self, weights, place, kept):
        part, first = self._of(place)
        return part.begin(weights, place.key, first, place.warmup)

    def update(self, state, trajectories, place, step, alpha):
        part, first = self._of(place)
        behind = place.warmup + step * part.truncation
        return part.update(state, trajectories, place.key, first, behind, alpha)

    def kept(self, trajectories):
        return []

    def validate(self, weights, key, trajectories, unroll, tick):
        share = self.parts[0].truncation / (len(self.parts) * trajectories * unroll)
        told = lambda seconds: tick(seconds, share)  # noqa: E731
        return np.concatenate(
            [
                part.validate(weights, key, trajectories, unroll, self.warmup, told)
                for part in self.parts
            ]
        )

    def _of(self, place: Place) -> tuple[MetaTraining, int]:
        each = self.parts[0].meta_batch
        first = place.behind + place.number * each
        return self.parts[first // each % len(self.parts)], first


def make_estimator(
    phase: Phase,
    meta: Meta,
    tasks: Sequence[Task],
    teachers: tuple[Teacher, ...],
    strategy: tf.distribute.Strategy,
) -> Estimator:
    """The estimator that the settings ask for.

    Args:
        phase: What is trained.
        meta: Settings.
        tasks: The problems; where there are several, losses are divided by what there is to gain.
        teachers: The phase's.
        strategy: A `tf.distribute` strategy.
    """
    schedule = phase.schedule
    longest = max(max(stage.unrolls) for stage in schedule.stages)
    jobs = [
        Amalgamation(
            phase.rule,
            teachers,
            phase.scheme,
            task,
            warmup_rate=meta.warmup_rate,
            first_order=meta.first_order,
            recompute=meta.recompute,
            perturbation=meta.perturbation,
            meta_loss=meta.meta_loss,
        )
        for task in tasks
    ]
    if len(jobs) > 1 or meta.evolution:
        bar = ProgressBar("measuring what there is to gain")
        for k, job in enumerate(jobs):
            bar.show(k, len(jobs), job.task.name)
            steps = longest if len(jobs) > 1 else 1  # alone, its loss is not divided
            start, gain = attainable(job.task, job.measured, steps)
            jobs[k] = replace(job, start=start, gain=gain if len(jobs) > 1 else 1.0)
        bar.close()
    scaled = meta.scaling and phase.rule.scaled
    if meta.evolution:
        return EvolutionTraining(
            tuple(jobs),
            meta.evolution,
            schedule.truncation,
            schedule.meta_batch,
            strategy,
            learning_rate=meta.learning_rate,
            warmup=min(SHORT, meta.warmup_steps),
            scale_limit=meta.scale_limit if scaled else 0.0,
            held_out=meta.held_out,
        )
    return Backpropagation(
        tuple(
            MetaTraining(
                job,
                job.task.dataset.train,
                job.task.batch_size,
                schedule.truncation,
                schedule.meta_batch,
                strategy,
                learning_rate=meta.learning_rate,
                scaled=scaled,
                scale_limit=meta.scale_limit,
                clip_ratio=meta.clip_ratio,
                clip_floor=meta.clip_floor,
                held_out=meta.held_out,
            )
            for job in jobs
        ),
        meta.warmup_steps,
    )
