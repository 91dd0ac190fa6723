"""Evaluations: every optimizer on every problem, repeated, each kept as soon as it is over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from l2o.amalgamation.optimizee import KerasOptimizee, as_batch
from l2o.evaluation.contenders import Contender
from l2o.evaluation.fit import Course, Fit, plain_gradient
from l2o.evaluation.privacy import ACCOUNTING, DELTA, DPSGD, check_network
from l2o.evaluation.results import VERSION, Key, Result
from l2o.evaluation.store import ResultsDirectory, is_image
from l2o.rules import WarmUp


@dataclass(frozen=True)
class Task:
    """A problem as it is evaluated: anything with a catalogue problem's attributes, and its data.

    Attributes:
        problem: Has `name`, `batch_size`, `private`, `loss` and `build(dataset)`.
        dataset: The data really used.
    """

    problem: Any
    dataset: Any

    @property
    def data(self) -> str:
        """The data as tables name it."""
        used = self.dataset.name
        return f"{used} for {self.dataset.requested}" if self.dataset.substituted else used

    @property
    def privacy(self) -> DPSGD | None:
        """How the problem is made private, if it is."""
        return DPSGD() if self.problem.private else None

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch."""
        return len(self.dataset.train) // self.problem.batch_size

    def optimizee(self) -> KerasOptimizee:
        """The network and its loss."""
        return KerasOptimizee(lambda: self.problem.build(self.dataset), self.problem.loss)


@dataclass(frozen=True)
class Plan:
    """How often and how long.

    Attributes:
        repeats: Evaluations of each optimizer on each problem.
        epochs: Of each.
        seed: Repeat j, from 1, has the seed `seed + j - 1`, whatever the optimizer.
    """

    repeats: int
    epochs: int
    seed: int = 0

    def key(self, task: Task, contender: Contender, repeat: int) -> Key:
        """The name of one evaluation."""
        return Key(
            task.problem.name,
            task.data,
            contender.name,
            contender.origin,
            contender.replicate,
            repeat,
            self.seed + repeat - 1,
            self.epochs,
        )


def missing(
    tasks: Sequence[Task], contenders: Sequence[Contender], plan: Plan, directory: ResultsDirectory
) -> list[tuple[Task, int, Contender]]:
    """The evaluations still to be run, a problem and then a repeat at a time.

    So what is there when a run is stopped can be compared in pairs.
    """
    return [
        (task, repeat, contender)
        for task, repeat, contender in _planned(tasks, contenders, plan)
        if plan.key(task, contender, repeat) not in directory
    ]


def warmup_notes(tasks: Sequence[Task], contenders: Sequence[Contender], plan: Plan) -> list[str]:
    """What to say of warm-ups that differ, and of tasks whose steps are all or mostly warm-up."""
    warmup = min(c.warmup for c in contenders)
    names: dict[int, dict[str, None]] = {}
    for contender in sorted(contenders, key=lambda c: (c.warmup == WarmUp.steps, c.warmup)):
        names.setdefault(contender.warmup, {})[contender.name] = None
    if len(names.get(WarmUp.steps, ())) > 1:
        names[WarmUp.steps] = {"the others": None}
    notes = []
    if len(names) > 1:
        each = ", ".join(f"{steps} for {' and '.join(who)}" for steps, who in names.items())
        notes.append(f"steps of warm-up differ: {each}. In a short fit fewer are an advantage")
    for task in tasks:
        number = plan.epochs * task.steps_per_epoch
        where = f"steps of {task.problem.name} on {task.data} are"
        if number <= warmup:
            notes.append(f"the {number} {where} all warm-up, {warmup} steps of SGD: optimizers "
                         "cannot differ; give more --epochs")  # fmt: skip
        elif number < 2 * warmup:
            notes.append(f"{warmup} of the {number} {where} warm-up, SGD for every optimizer; give "
                         "more --epochs")  # fmt: skip
    return notes


def present(
    tasks: Sequence[Task], contenders: Sequence[Contender], plan: Plan, directory: ResultsDirectory
) -> list[Result]:
    """The results that are there of all these evaluations, whichever repeat their seeds are."""
    planned = _planned(tasks, contenders, plan)
    fits = {plan.key(task, contender, repeat).fit for task, repeat, contender in planned}
    return [result for result in directory.results if result.key.fit in fits]


def _planned(tasks, contenders, plan: Plan) -> list[tuple[Task, int, Contender]]:
    repeats = range(1, plan.repeats + 1)
    return [(t, repeat, c) for t in tasks for repeat in repeats for c in contenders]


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
        contender: Contender,
        report: Callable[[int], None] = lambda steps: None,
    ) -> tuple[Key, list[Result], Course]:
        """One evaluation; `report` is told now and then how many of its steps are behind.

        Raises:
            PrivacyError: If a network cannot be trained privately.
        """
        if task is not self._task:
            self._optimizee = task.optimizee()
            if task.privacy:
                check_network(self._optimizee.model)
            splits = task.dataset.train, task.dataset.validation, task.dataset.test
            self._examples: list[Any] = [as_batch(s) if len(s) else None for s in splits]
            self._fits, self._task = {}, task
        if contender not in self._fits:
            train, validation, test = self._examples
            self._fits[contender] = Fit(
                self._optimizee, contender.rule, contender.weights, train, validation,
                task.problem.batch_size, test, task.privacy or plain_gradient,
            )  # fmt: skip
        key = self.plan.key(task, contender, repeat)
        course = self._fits[contender].run(key.seed, self.plan.epochs, report)
        return key, as_results(key, task, course), course


def evaluate(
    todo: Sequence[tuple[Task, int, Contender]],
    plan: Plan,
    directory: ResultsDirectory,
    watch: Callable[[Task, Contender, int, int], None],
) -> None:
    """Runs evaluations and keeps each as soon as it is over.

    Args:
        todo: As from `missing`.
        plan: How long, and which seeds.
        directory: Where they are kept.
        watch: Told task, contender, repeat and the number of its steps that are behind.

    Raises:
        PrivacyError: If a network cannot be trained privately.
    """
    bench = Bench(plan)
    keep(todo, directory)
    for task, repeat, contender in todo:
        watch(task, contender, repeat, 0)
        told = partial(watch, task, contender, repeat)
        directory.add(*bench.run(task, repeat, contender, told))


def keep(todo: Sequence[tuple[Task, int, Contender]], directory: ResultsDirectory) -> None:
    """Keeps what belongs to evaluations: cards, samples, and what they are made with."""
    directory.keep_made()
    for dataset in {id(task.dataset): task.dataset for task, _, _ in todo}.values():
        if is_image(dataset.test.inputs):
            directory.keep_samples(dataset.name, dataset.test.inputs)
    for contender in {contender: None for _, _, contender in todo}:
        if contender.card:
            directory.keep_card(contender.origin, contender.card)


def as_results(key: Key, task: Task, course: Course) -> list[Result]:
    """The rows of an evaluation."""
    return [
        Result(
            VERSION,
            *key,
            epoch=number,
            steps=epoch.steps,
            seconds=round(epoch.seconds, 3),
            train_loss=epoch.train_loss,
            train_accuracy=epoch.train_accuracy,
            validation_loss=epoch.validation_loss,
            validation_accuracy=epoch.validation_accuracy,
            test_loss=epoch.test_loss,
            test_accuracy=epoch.test_accuracy,
            diverged_at=-1 if epoch.diverged_at is None else epoch.diverged_at,
            **_privacy(task, epoch.steps),
        )
        for number, epoch in enumerate(course.epochs)
    ]


def _privacy(task: Task, steps: int) -> dict:
    if task.privacy is None:
        return {"epsilon": float("inf"), "delta": 0.0, "privacy": ""}
    examples, batch_size = len(task.dataset.train), task.problem.batch_size
    epsilon = task.privacy.epsilon(examples, batch_size, steps)
    return {"epsilon": epsilon, "delta": DELTA, "privacy": ACCOUNTING}
