"""`python train.py`: meta-trains an optimizer, or searches the teachers' rates."""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf

import l2o
from l2o.amalgamation.amalgamate import meta_train, origin_of
from l2o.amalgamation.plan import Phase
from l2o.amalgamation.settings import Settings
from l2o.amalgamation.trainer import Diverged, Stopped
from l2o.commands.jobs import spread
from l2o.commands.problem import named_task
from l2o.commands.terminal import UserError, run_command
from l2o.commands.train_options import check, output, parser, settings
from l2o.commands.tune import Search, tune
from l2o.evaluation.tables import TableError
from l2o.evaluation.tuning import RATES
from l2o.policies.checkpoint import doubts
from l2o.runs.cluster import ClusterError, check_place
from l2o.runs.devices import RunError, cores, make_strategy
from l2o.runs.directory import CONFIG
from l2o.runs.lock import DirectoryError, move_aside
from l2o.runs.progress import duration
from l2o.runs.quiet import quiet
from l2o.tasks.task import Task

STOPPED = 130  # the exit status of what a signal ended


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Exits with status 0, 1 where a run diverged, 2 for a user's error, 130 when stopped.
    """
    run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    command = parser()
    options = command.parse_args(arguments)
    check(options, command)
    tf.get_logger().setLevel("ERROR")  # it warns of every second network that is traced
    try:
        return _tune(options) if options.tune else _train(options)
    except (ClusterError, DirectoryError, RunError, TableError, l2o.PolicyError) as error:
        raise UserError(str(error)) from error


def _tune(options: argparse.Namespace) -> int:
    search = Search(
        problem=options.problem,
        data=options.data or "auto",
        data_dir=options.data_dir,
        rates=tuple(dict.fromkeys(options.rates or RATES)),
        seeds=options.tune_seeds,
        first_seed=options.seed,
        epochs=options.epochs,
    )
    place, path = (search.problem, search.data, search.data_dir), options.output
    gpus = _gpus(options)
    jobs = options.jobs or (1 if gpus else cores())
    try:
        tune(search, lambda: named_task(*place), path or Path("runs/tuning"), jobs, options.fresh)
    except KeyboardInterrupt:
        print(f"\nStopped. The fits that ended are kept; {_again(options)} goes on.")
        return STOPPED
    return 0


def _train(options: argparse.Namespace) -> int:
    """Every run; what can be wrong with the command line is found before data is read."""
    work = _prepare(options)
    _check_places(work)
    print(f"Preset: {work.preset}{work.reason}", flush=True)
    task, count, status = _load_task(work), len(work.runs), 0
    for directory, _ in work.runs if work.options.fresh else ():
        move_aside(directory, CONFIG)  # all of them now: what is stopped goes on without --fresh
    if (options.jobs or 1) > 1 and count > 1:
        return _spread(work)
    for k, (_, chosen) in enumerate(work.runs):
        if count > 1:
            magnitude = "" if chosen.magnitude is None else f", magnitude {chosen.magnitude:g}"
            print(f"Run {k + 1} of {count}: seed {chosen.seed}{magnitude}")
        status = max(status, _run(work, task, k))
        if status == STOPPED:
            break
    return status


def _check_places(work: Work) -> None:
    """Whether every run has a directory, and none lies in another's."""
    root = output(work.options)
    for directory, _ in work.runs:
        above = root
        for part in directory.relative_to(root).parts:
            if (above / CONFIG).exists():
                raise UserError(
                    f"{above} is the directory of one run, and {directory} would lie in it: give "
                    "another --output"
                )
            above /= part
        check_place(directory, work.options.fresh)


@dataclass(frozen=True)
class Work:
    """What a command line asks for.

    Attributes:
        options: The command line.
        preset, reason: Which, and why where it does not say.
        runs: Directories and settings.
        phases: Of each run.
        strategy: Its devices.
    """

    options: argparse.Namespace
    preset: str
    reason: str
    runs: list[tuple[Path, Settings]]
    phases: tuple[Phase, ...]
    strategy: tf.distribute.Strategy


def _gpus(options: argparse.Namespace) -> list:
    """The GPUs that there are, which --jobs do not share."""
    with quiet():
        gpus = tf.config.list_physical_devices("GPU")
    if gpus and (options.jobs or 1) > 1:
        raise UserError("--jobs spreads runs over the cores of a machine without a GPU")
    return gpus


def _prepare(options: argparse.Namespace) -> Work:
    gpus = _gpus(options)
    preset = options.preset or ("paper" if gpus else "cpu")
    reason = "" if options.preset else f", because there is {'a' if gpus else 'no'} GPU"
    runs = settings(options, preset)
    first = runs[0][1]
    strategy = make_strategy(options.devices, first.schedules()[0].meta_batch)
    try:
        phases = first.phases()
    except ValueError as error:
        raise UserError(str(error)) from error
    return Work(options, preset, reason, runs, phases, strategy)


def _load_task(work: Work) -> Task:
    options, first = work.options, work.runs[0][1]
    needs = {"first_order": first.first_order, "positive": first.meta_loss == "log"}
    return named_task(options.problem, options.data, options.data_dir, **needs)


def _run(work: Work, task: Task, k: int) -> int:
    """One run, and the exit status it asks for."""
    options, (directory, chosen), begun = work.options, work.runs[k], time.monotonic()
    origin = origin_of(chosen, task, work.strategy)
    try:
        meta_train(
            work.phases, chosen.meta(), task, work.strategy, directory, origin,
            options.tensorboard,
        )  # fmt: skip
    except Stopped:
        print(f"Stopped. The run is kept in {directory}; {_again(options)} goes on with it.")
        return STOPPED
    except Diverged as error:
        there = [p for phase in reversed(work.phases) if (p := directory / phase.name).exists()]
        kept = f"Its last good policy is in {there[0]}" if there else "It has no policy yet"
        print(f"error: {error}. {kept}; a smaller --learning-rate may help", file=sys.stderr)
        return 1
    policy = directory / work.phases[-1].name
    for doubt in doubts(origin | {"in_place_of": task.dataset.in_place_of}):
        print(f"Note: this policy was trained {doubt}")
    print(f"Done in {duration(time.monotonic() - begun)}. The policy is in {policy}:")
    print(f'    model.compile(optimizer=l2o.AmalgamatedOptimizer.load("{policy}"))', flush=True)
    return 0


def _spread(work: Work) -> int:
    """The runs in several processes, whose own words are not heard; their tables tell."""
    options, status = work.options, 0
    numbers = [(k,) for k in range(len(work.runs))]
    jobs = min(options.jobs, len(numbers))
    print(f"{len(numbers)} runs in {jobs} processes; see periods.csv in each run directory",
          flush=True)  # fmt: skip
    try:
        for k, ended, text in spread(_run_one, numbers, jobs, _start_worker, (options,)):
            print(f"Run {k + 1} of {len(numbers)}: {text}", flush=True)
            status = max(status, ended)
    except KeyboardInterrupt:
        print(f"\nStopped. The runs are kept; {_again(options)} goes on with them.")
        return STOPPED
    return status


def _again(options: argparse.Namespace) -> str:
    return "the same command" + " without --fresh" * options.fresh


def _start_worker(options: argparse.Namespace) -> tuple[Work, Task]:
    """What a process of --jobs holds."""
    with redirect_stdout(io.StringIO()):
        work = _prepare(options)
        task = _load_task(work)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    return work, task


def _run_one(held: tuple[Work, Task], k: int) -> tuple[int, int, str]:
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        status = _run(*held, k)
    return k, status, said.getvalue().strip().splitlines()[-1].strip()


if __name__ == "__main__":  # where only the wheel is installed: python -m l2o.commands.train
    main()
