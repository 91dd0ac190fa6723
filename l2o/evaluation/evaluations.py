"""A whole evaluation, from names to a table: `l2o.evaluate`, which is what `l2o evaluate` calls."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow as tf

from l2o.errors import UserError
from l2o.evaluation.baselines import DEFAULTS, Candidate, get_candidates
from l2o.evaluation.forecast import Forecast
from l2o.evaluation.made import check_made, made_with
from l2o.evaluation.notes import announce
from l2o.evaluation.protocol import (
    Bench,
    Plan,
    keep,
    missing,
    present,
    run_evaluations,
)
from l2o.evaluation.results import TABLE, Key, Result, describe
from l2o.evaluation.search import TRIAL, TRIALS, TUNED, best_of_search, space_of
from l2o.evaluation.store import ResultsDirectory
from l2o.policies.checkpoint import Policy
from l2o.problems import Dataset, Problem
from l2o.rules import UpdateRule
from l2o.runs.devices import take_cores
from l2o.runs.files import directory_or_temporary
from l2o.runs.jobs import Workers, gpus_for, unless_unwanted
from l2o.runs.lock import check_free
from l2o.runs.progress import ProgressBar, duration
from l2o.runs.quiet import untold_tracing
from l2o.tasks.load import load_task
from l2o.tasks.task import Task

Optimizer = str | Policy | UpdateRule | Candidate


@dataclass(frozen=True)
class Comparison:
    """What is compared, as it can go to another process.

    Attributes:
        problems, optimizers: As `evaluate` takes them.
        searched: Of the optimizers, what is tuned first: "tuned:AdamW".
        plan: How often and how long.
        using: Averaging, weight decay and momentum of all optimizers; None for their own.
        data, data_dir: Of datasets by name.
    """

    problems: tuple[Problem | Task | str, ...]
    optimizers: tuple[Optimizer, ...]
    searched: tuple[str, ...]
    plan: Plan
    using: tuple[float | None, float | None, float | None] = (None, None, None)
    data: str = "auto"
    data_dir: str | None = None

    def candidates(self) -> list[Candidate]:
        """The optimizers, each once.

        Raises:
            UserError: If one cannot be had, or two of one name differ.
        """
        found = [c.using(*self.using) for one in self.optimizers for c in get_candidates(one)]
        different: dict[tuple[str, int], Candidate] = {}
        for c in found:
            same = different.setdefault((c.name, c.replicate), c)
            together = [d.source for d in different.values() if d.name == c.name]
            if same.origin != c.origin or (same is c and set(together) != {c.source}):
                words = " ".join(map(str, self.optimizers))[:200]
                raise UserError(
                    f"Two different optimizers are called {c.name}; name one yourself, as in "
                    "other=DIR, or in Python in a dictionary, as in {'other': policy}. "
                    f"Received: {words}"
                )
        return list(different.values())

    def tasks(self) -> list[Task]:
        """The problems with their data.

        Raises:
            ProblemError: If one cannot be had, or evaluated.
        """
        tf.keras.utils.set_random_seed(self.plan.seed)  # data of the user's own may be drawn
        loaded: dict[str, Dataset] = {}
        return [
            problem
            if isinstance(problem, Task)
            else load_task(problem, self.data, self.data_dir, loaded=loaded)
            for problem in self.problems
        ]


def evaluate(
    problems: Sequence[Problem | Task | str] | Problem | Task | str = "mnist_cnn",
    optimizers: Mapping[str, Optimizer] | Sequence[Optimizer] | Optimizer = DEFAULTS,
    *,
    repeats: int = 3,
    epochs: int | None = None,
    seed: int = 0,
    output: Path | str | None = None,
    averaging: float | None = None,
    weight_decay: float | None = None,
    ema: float | None = None,
    data: str = "auto",
    data_dir: str | None = None,
    tune: int = TRIALS,
    jobs: int = 1,
    scheduler: str | None = None,
) -> list[Result]:
    """Fits problems with optimizers, and says how each did: what `l2o evaluate` calls.

    In each repeat all optimizers start from the same weights and see the same batches. Shows how
    it goes. Sets the global seeds, and TensorFlow's operations to be repeatable, for the whole
    process.

    Args:
        problems: Problems, or their names.
        optimizers: Names as `get_candidates` takes them ("choice-large", "oracle", "adam@0.01",
            "keras:AdamW@0.003+cosine", a directory), "tuned:AdamW" (the best of a search on each
            problem), policies, or rules; by names of your own in a dictionary.
        repeats: Fits of each optimizer on each problem.
        epochs: Of each fit; a problem's own number, or 5, by default.
        seed: Of the first repeat; each later one has one more.
        output: A directory of results: what is there is not fitted again, and the same call goes on
            with what was stopped. By default a temporary one.
        averaging, weight_decay, ema: Of all optimizers; see `Candidate.using`.
        data, data_dir: Of a dataset by name; see `l2o.problems.load_dataset`.
        tune: Trials of each search, for optimizers named "tuned:AdamW" and so on.
        jobs: Processes of one thread each that fits are spread over, where problems and optimizers
            are named; 1 uses all cores.
        scheduler: The address of a `dask scheduler` whose workers fit instead, likewise.

    Returns:
        One row an epoch of each fit, from epoch 0, those of a search's trials last:
        `pandas.DataFrame(rows)` is the table.

    Raises:
        ValueError: For what cannot be: a problem (ProblemError), an optimizer (UserError), a policy
            (PolicyError), the directory (DirectoryError), the results in it (TableError), or the
            scheduler (UserError).
    """
    if isinstance(problems, str | Problem | Task):
        problems = (problems,)
    if isinstance(optimizers, str | Policy | UpdateRule | Candidate):
        optimizers = (optimizers,)
    if isinstance(optimizers, Mapping):
        optimizers = [
            replace(candidate, bare_name=name)
            for name, one in optimizers.items()
            for candidate in get_candidates(one)
        ]
    counts = {"repeats": repeats, "epochs": epochs, "tune": tune, "jobs": jobs}
    for name, value in counts.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UserError(f"{name} must be a whole number of at least 1. Received: {value!r}")
    if not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed must be a whole number of at least 0. Received: {seed!r}")
    for name, several in {"problems": problems, "optimizers": optimizers}.items():
        if not isinstance(several, Sequence) or not several:
            raise UserError(f"{name} must be one or several. Received: {several!r}")
    searched = [o for o in optimizers if isinstance(o, str) and o.lower().startswith(TUNED)]
    for word in searched:
        space_of(word)
    chosen = tuple(dict.fromkeys(problems))
    comparison = Comparison(
        chosen, tuple(o for o in optimizers if o not in searched), tuple(dict.fromkeys(searched)),
        Plan(repeats, epochs, seed), (averaging, weight_decay, ema), data, data_dir,
    )  # fmt: skip
    take_cores()
    gpus = len(gpus_for(jobs))
    several = jobs > 1 or scheduler is not None
    if several and not all(isinstance(x, str) for x in (*chosen, *comparison.optimizers)):
        raise UserError("Several jobs need problems and optimizers by their names")
    candidates = comparison.candidates()
    with directory_or_temporary(output) as path, untold_tracing(), ExitStack() as opened:
        check_free(path, TABLE)
        workers = opened.enter_context(Workers(jobs, scheduler)) if several else None
        tasks = comparison.tasks()
        made = made_with(task.dataset for task in tasks)
        with ResultsDirectory(path, made) as directory:
            tf.config.experimental.enable_op_determinism()
            device = f"{gpus} GPU" if gpus else "the CPU"
            run = partial(_run, comparison, made, directory, workers, device)
            plan = comparison.plan
            announce(plan, tasks, candidates, comparison.searched, comparison.using[:2], directory)
            compared = {
                task: [
                    *candidates,
                    *(
                        best_of_search(word, task, plan, directory, tune, run).using(
                            *comparison.using
                        )
                        for word in comparison.searched
                    ),
                ]
                for task in tasks
            }
            todo = [x for task in tasks for x in missing([task], compared[task], plan, directory)]
            wanted = sum(map(len, compared.values())) * plan.repeats
            print(f"Results: {directory.table}, {wanted - len(todo)} of {wanted} "
                  "evaluations are there", flush=True)  # fmt: skip
            run(todo, plan)
            trials = [r for r in directory.results if r.optimizer.startswith(TRIAL)]
            named = {task.name for task in tasks}
            return [
                *(r for task in tasks for r in present([task], compared[task], plan, directory)),
                *(r for r in trials if searched and r.problem in named),
            ]


def _run(
    comparison: Comparison,
    made: dict[str, str],
    directory: ResultsDirectory,
    workers: Workers | None,
    device: str,
    todo,
    plan: Plan,
) -> None:
    """Runs evaluations that are not there yet, in this process or several."""
    if not todo:
        return
    bar = ProgressBar("evaluating")
    try:
        if workers:
            _spread(comparison, made, todo, plan, directory, workers, bar)
        else:
            _in_turn(todo, plan, directory, bar, device)
    finally:
        bar.close()


def _in_turn(todo, plan: Plan, directory: ResultsDirectory, bar: ProgressBar, device: str) -> None:
    """Evaluates in this process, and says before how long that may take."""
    forecast = Forecast(todo, plan)
    print(f"Expected time: about {duration(forecast.total)} on {device} as it is now", flush=True)

    def callback(task: Task, candidate: Candidate, repeat: int, steps: int) -> None:
        done, left = forecast.at(task, candidate, repeat, steps)
        text = f"{task.name}, {candidate.name}, repeat {repeat}: step {steps}"
        bar.show(done, forecast.total, f"{text}, {duration(left)} left")

    run_evaluations(todo, plan, directory, callback)


def _spread(
    comparison: Comparison, made: dict[str, str], todo, plan: Plan, directory: ResultsDirectory,
    workers: Workers, bar: ProgressBar,
) -> None:  # fmt: skip
    """Evaluates in several processes; what they find is kept by this one."""
    keep(todo, directory)
    calls = [
        (plan, plan.key(task, candidate, repeat), candidate.described)
        for task, repeat, candidate in todo
    ]
    results = workers.spread(
        _run_one, calls, _start_worker, (comparison, made), lambda plan, key, _: describe(key)
    )
    begun = time.monotonic()
    for done, result in enumerate(results, start=1):
        directory.add(*result)
        key, left = result[0], (time.monotonic() - begun) / done * (len(calls) - done)
        text = f"{describe(key)} is over, {duration(left)} left"
        bar.show(done, len(calls), text)


def _start_worker(
    comparison: Comparison, made: dict[str, str]
) -> tuple[Bench, list[Task], list[Candidate]]:
    """What a process of several jobs holds."""
    with redirect_stdout(io.StringIO()):
        tasks = comparison.tasks()
        check_made(made, made_with(task.dataset for task in tasks))
        return Bench(comparison.plan), tasks, comparison.candidates()


def _run_one(
    held: tuple[Bench, list[Task], list[Candidate]], plan: Plan, key: Key, described: tuple
) -> Any:
    bench, tasks, candidates = held
    bench.plan = plan
    if described:  # of a search, which a worker does not repeat
        word, using, renamed = described
        (candidate,) = get_candidates(word)
        candidates = [replace(candidate.using(*using), **renamed)]
    for task in tasks:
        for candidate in candidates:
            if plan.key(task, candidate, key.repeat) == key:
                return bench.run(task, key.repeat, candidate, unless_unwanted)
    raise UserError(f"{key.problem} or {key.optimizer} has changed since the evaluation began")
