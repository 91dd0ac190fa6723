"""Evaluations: every optimizer on every problem, repeated, each kept as soon as it is over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import tensorflow as tf

from l2o.evaluation.baselines import Candidate
from l2o.evaluation.fit import Fit, History
from l2o.evaluation.results import VERSION, Key, Result
from l2o.evaluation.store import ResultsDirectory, is_image
from l2o.tasks.gradient import plain_gradient
from l2o.tasks.privacy import ACCOUNTING, DELTA, privacy_of
from l2o.tasks.task import Task

EPOCHS = 5  # of a fit, where nobody says anything else


@dataclass(frozen=True)
class Plan:
    """How often and how long.

    Attributes:
        repeats: Evaluations of each optimizer on each problem.
        epochs: Of each; None for a problem's own number, or `EPOCHS`.
        seed: Repeat j, from 1, has the seed `seed + j - 1`, whatever the optimizer.
    """

    repeats: int
    epochs: int | None = None
    seed: int = 0

    def epochs_of(self, task: Task) -> int:
        """Epochs of a fit."""
        return self.epochs or task.problem.epochs or EPOCHS

    def key(self, task: Task, candidate: Candidate, repeat: int) -> Key:
        """The name of one evaluation."""
        return Key(
            task.name,
            task.dataset.name,
            candidate.name,
            candidate.origin,
            candidate.replicate,
            repeat,
            self.seed + repeat - 1,
            self.epochs_of(task),
            task.dataset.in_place_of,
        )


def missing(
    tasks: Sequence[Task], candidates: Sequence[Candidate], plan: Plan, directory: ResultsDirectory
) -> list[tuple[Task, int, Candidate]]:
    """The evaluations still to be run, a problem and then a repeat at a time.

    So what is there when a run is stopped can be compared in pairs.
    """
    return [
        (task, repeat, candidate)
        for task, repeat, candidate in _planned(tasks, candidates, plan)
        if plan.key(task, candidate, repeat) not in directory
    ]


def present(
    tasks: Sequence[Task], candidates: Sequence[Candidate], plan: Plan, directory: ResultsDirectory
) -> list[Result]:
    """The results that are there of all these evaluations, whichever repeat their seeds are."""
    planned = _planned(tasks, candidates, plan)
    fits = {plan.key(task, candidate, repeat).fit for task, repeat, candidate in planned}
    return [result for result in directory.results if result.key.fit in fits]


def _planned(tasks, candidates, plan: Plan) -> list[tuple[Task, int, Candidate]]:
    repeats = range(1, plan.repeats + 1)
    return [(t, repeat, c) for t in tasks for repeat in repeats for c in candidates]


class Bench:
    """Runs evaluations; an optimizer on a problem is compiled once as long as the problem stays.

    Args:
        plan: How long, and which seeds.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self._task: Task | None = None

    def run(
        self,
        task: Task,
        repeat: int,
        candidate: Candidate,
        report: Callable[[int], None] = lambda steps: None,
    ) -> tuple[Key, list[Result], History]:
        """One evaluation; `report` is told now and then how many of its steps are behind."""
        if task is not self._task:
            splits = task.dataset.train, task.dataset.validation, task.dataset.test
            self._examples = [
                tf.nest.map_structure(tf.constant, split) if len(split.labels) else None
                for split in splits
            ]
            self._fits: dict[Candidate, Fit] = {}
            self._task = task
        if candidate not in self._fits:
            train, validation, test = self._examples
            self._fits[candidate] = Fit(
                task, candidate.rule, candidate.weights, train, validation,
                task.batch_size, test, privacy_of(task) or plain_gradient,
            )  # fmt: skip
        key = self.plan.key(task, candidate, repeat)
        history = self._fits[candidate].run(key.seed, key.epochs, report)
        return key, as_results(key, task, history), history


def run_evaluations(
    todo: Sequence[tuple[Task, int, Candidate]],
    plan: Plan,
    directory: ResultsDirectory,
    callback: Callable[[Task, Candidate, int, int], None],
) -> None:
    """Runs evaluations and keeps each as soon as it is over.

    Args:
        todo: As from `missing`.
        plan: How long, and which seeds.
        directory: Where they are kept.
        callback: Told task, candidate, repeat and the number of its steps that are behind.
    """
    bench = Bench(plan)
    keep(todo, directory)
    for task, repeat, candidate in todo:
        callback(task, candidate, repeat, 0)
        told = partial(callback, task, candidate, repeat)
        directory.add(*bench.run(task, repeat, candidate, told))


def keep(todo: Sequence[tuple[Task, int, Candidate]], directory: ResultsDirectory) -> None:
    """Keeps what belongs to evaluations: cards, samples, and what they are made with."""
    directory.keep_made()
    for dataset in {id(task.dataset): task.dataset for task, _, _ in todo}.values():
        if is_image(dataset.test.inputs):
            directory.keep_samples(dataset.name, dataset.test.inputs)
    for candidate in {candidate: None for _, _, candidate in todo}:
        if candidate.card:
            directory.keep_card(candidate.origin, candidate.card)


def as_results(key: Key, task: Task, history: History) -> list[Result]:
    """The rows of an evaluation."""
    return [
        Result(
            VERSION,
            **key._asdict(),
            epoch=number,
            steps=epoch.steps,
            seconds=round(epoch.seconds, 3),
            cpu_seconds=round(epoch.cpu_seconds, 3),
            train_loss=epoch.train_loss,
            train_accuracy=epoch.train_accuracy,
            validation_loss=epoch.validation_loss,
            validation_accuracy=epoch.validation_accuracy,
            test_loss=epoch.test_loss,
            test_accuracy=epoch.test_accuracy,
            diverged_at=-1 if epoch.diverged_at is None else epoch.diverged_at,
            **_privacy(task, epoch.steps),
        )
        for number, epoch in enumerate(history.epochs)
    ]


def _privacy(task: Task, steps: int) -> dict:
    privacy = privacy_of(task)
    if privacy is None:
        return {"epsilon": float("inf"), "delta": 0.0, "privacy": ""}
    epsilon = privacy.epsilon(len(task.dataset.train.labels), task.batch_size, steps)
    return {"epsilon": epsilon, "delta": DELTA, "privacy": ACCOUNTING}
