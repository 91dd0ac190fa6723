"""`l2o train`: meta-trains an optimizer."""

from __future__ import annotations

import argparse
import io
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf

from l2o.amalgamation.amalgamate import load_tasks, train
from l2o.amalgamation.plan import Phase
from l2o.amalgamation.settings import Settings
from l2o.amalgamation.trainer import Diverged, Stopped
from l2o.commands.flags import in_float32
from l2o.commands.terminal import STOPPED, again, run_command
from l2o.commands.train_options import check, output, parser, settings
from l2o.errors import UserError
from l2o.policies.checkpoint import doubts
from l2o.runs.cluster import check_place
from l2o.runs.devices import make_strategy
from l2o.runs.directory import CONFIG
from l2o.runs.jobs import Workers, gpus_for
from l2o.runs.lock import move_aside
from l2o.runs.progress import duration
from l2o.tasks.task import Task


def main(arguments: list[str] | None = None, prog: str = "python train.py") -> None:
    """Runs the command.

    Exits with status 0, 1 where a run diverged, 2 for a user's error, 130 when stopped.
    """
    run_command(lambda: _train(parser(prog).parse_args(arguments)))


def _train(options: argparse.Namespace) -> int:
    """Every run; what can be wrong with the command line is found before data is read."""
    check(options)
    tf.get_logger().setLevel("ERROR")  # it warns of every second network that is traced
    work = _prepare(options)
    _check_places(work)
    print(f"Preset: {work.preset}{work.reason}", flush=True)
    tasks, count, status = _load_tasks(work), len(work.runs), 0
    for directory, _ in work.runs if work.options.fresh else ():
        move_aside(directory, CONFIG)  # all of them now: what is stopped goes on without --fresh
    if work.options.jobs > 1 and count > 1:
        return _spread(work)
    for k, (_, chosen) in enumerate(work.runs):
        if count > 1:
            noise = chosen.meta.perturbation
            magnitude = f", magnitude {noise.magnitude:g}" if noise else ""
            print(f"Run {k + 1} of {count}: seed {chosen.meta.seed}{magnitude}")
        status = max(status, _run(work, tasks, k))
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


def _prepare(options: argparse.Namespace) -> Work:
    gpus = gpus_for(options.jobs)
    preset = options.preset or ("paper" if gpus else "cpu")
    reason = "" if options.preset else f", because there is {'a' if gpus else 'no'} GPU"
    runs = settings(options, preset)
    first = runs[0][1]
    strategy = make_strategy(options.devices, first.curriculum.meta_batch)
    try:
        phases = first.phases()
    except ValueError as error:
        raise UserError(str(error)) from error
    return Work(options, preset, reason, runs, phases, strategy)


def _load_tasks(work: Work) -> list[Task]:
    options = work.options
    in_float32()
    meta = work.runs[0][1].meta
    return load_tasks(options.problem, meta, options.data or "auto", options.data_dir)


def _run(work: Work, tasks: list[Task], k: int) -> int:
    """One run, and the exit status it asks for."""
    options, (directory, chosen), begun = work.options, work.runs[k], time.monotonic()
    try:
        policy = train(
            tasks, preset=chosen, output=directory, devices=work.strategy,
            tensorboard=options.tensorboard,
        )  # fmt: skip
    except Stopped:
        print(f"Stopped. The run is kept in {directory}; {again(options.fresh)} goes on with it.")
        return STOPPED
    except Diverged as error:
        there = [p for phase in reversed(work.phases) if (p := directory / phase.name).exists()]
        kept = f"Its last good policy is in {there[0]}" if there else "It has no policy yet"
        print(f"error: {error}. {kept}; a smaller --learning-rate may help", file=sys.stderr)
        return 1
    path = directory / work.phases[-1].name
    for doubt in doubts(policy.card):
        print(f"Note: this policy was trained {doubt}")
    print(f"Done in {duration(time.monotonic() - begun)}. The policy is in {path}:")
    print(f'    model.compile(optimizer=l2o.AmalgamatedOptimizer.load("{path}"))', flush=True)
    return 0


def _spread(work: Work) -> int:
    """The runs in several processes, whose own words are not heard; their tables tell."""
    options, status = work.options, 0
    numbers = [(k,) for k in range(len(work.runs))]
    jobs = min(options.jobs, len(numbers))
    print(f"{len(numbers)} runs in {jobs} processes; see periods.csv in each run directory",
          flush=True)  # fmt: skip
    try:
        with Workers(jobs) as workers:
            name = lambda k: f"Run {k + 1} of {len(numbers)}"  # noqa: E731
            results = workers.spread(_run_one, numbers, _start_worker, (options,), name)
            for k, ended, text in results:
                print(f"{name(k)}: {text}", flush=True)
                status = max(status, ended)
    except KeyboardInterrupt:
        print(f"\nStopped. The runs are kept; {again(options.fresh)} goes on with them.")
        return STOPPED
    return status


def _start_worker(options: argparse.Namespace) -> tuple[Work, list[Task]]:
    """What a process of --jobs holds."""
    with redirect_stdout(io.StringIO()):
        work = _prepare(options)
        tasks = _load_tasks(work)
    return work, tasks


def _run_one(held: tuple[Work, list[Task]], k: int) -> tuple[int, int, str]:
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        status = _run(*held, k)
    return k, status, said.getvalue().strip().splitlines()[-1].strip()
