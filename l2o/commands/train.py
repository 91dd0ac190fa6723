"""`python train.py`: meta-trains an optimizer, or searches the teachers' rates."""

from __future__ import annotations

import argparse
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import tensorflow as tf

import l2o
from l2o.amalgamation.conduct import RunError, conduct, described_devices, make_strategy
from l2o.amalgamation.optimizee import Batch
from l2o.amalgamation.plan import Meta
from l2o.amalgamation.rundir import CONFIG
from l2o.amalgamation.trainer import Stopped
from l2o.claim import DirectoryError, check_free
from l2o.commands.problem import is_own, load_problem
from l2o.commands.terminal import UserError, quiet_start, run_command
from l2o.commands.train_options import check, parser, settings
from l2o.commands.tune import Search, tune
from l2o.evaluation.run import Task
from l2o.evaluation.tables import TableError
from l2o.evaluation.tuning import RATES
from l2o.progress import duration
from problems import DatasetUnavailable


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; exits with status 0, 2 for a user's error, 130 when stopped."""
    run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    options = parser().parse_args(arguments)
    check(options)
    tf.get_logger().setLevel("ERROR")  # it warns of every second network that is traced
    try:
        return _tune(options) if options.tune else _train(options)
    except BrokenProcessPool as error:
        raise UserError(
            "A process of the search was killed, perhaps for memory; the fits that ended are "
            "kept. The same command, with fewer --jobs, goes on"
        ) from error
    except (DirectoryError, RunError, TableError, l2o.PolicyError, DatasetUnavailable) as error:
        raise UserError(str(error)) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"{error}. What had been saved is kept") from error


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
    place, output = (search.problem, search.data, search.data_dir), options.output
    output = output or Path("runs/tuning")
    try:
        tune(search, lambda: load_problem(*place), output, options.jobs, options.fresh)
    except KeyboardInterrupt:
        print("\nStopped. The fits that ended are kept; the same command goes on.")
        return 130
    return 0


def _train(options: argparse.Namespace) -> int:
    """Every run; what can be wrong with the command line is found before data is read."""
    with quiet_start():
        gpus = tf.config.list_physical_devices("GPU")
    preset, reason = options.preset, ""
    if preset is None:
        preset, reason = ("paper", "there is a GPU") if gpus else ("cpu", "there is no GPU")
        reason = f", because {reason}"
    runs = settings(options, preset)
    first = runs[0][1]
    strategy = make_strategy(options.devices, first.schedules()[0].meta_batch)
    for directory, _ in runs:
        check_free(directory, CONFIG)
    try:
        phases = first.phases()
    except ValueError as error:
        raise UserError(str(error)) from error
    print(f"Preset: {preset}{reason}", flush=True)
    needs = {"first_order": first.first_order, "positive": first.meta_loss == "log"}
    task = Task(*load_problem(options.problem, options.data, options.data_dir, **needs))
    origin = {
        "strategy": first.strategy,
        "pool": first.pool,
        "problem": options.problem,
        "data": task.dataset.description,
        "preset": preset,
        "devices": described_devices(strategy),
    }
    if is_own(options.problem):  # a name of the catalogue says all of this
        origin["network"] = task.problem.network
    for k, (directory, chosen) in enumerate(runs):
        if len(runs) > 1:
            magnitude = f", magnitude {chosen.magnitude:g}" * (chosen.magnitude is not None)
            print(f"Run {k + 1} of {len(runs)}: seed {chosen.seed}{magnitude}")
        try:
            _run(options, chosen.meta(), directory, phases, strategy, task, origin)
        except Stopped:
            again = "the same command" + " without --fresh" * options.fresh
            print(f"Stopped. The run is kept in {directory}; {again} goes on with it.")
            return 130
    return 0


def _run(options, meta: Meta, directory: Path, phases, strategy, task: Task, origin) -> None:
    begun = time.monotonic()
    train = task.dataset.train
    conduct(
        phases, meta, task.optimizee(), Batch(train.inputs, train.labels), task.problem.batch_size,
        strategy, directory, origin, options.fresh, options.tensorboard,
    )  # fmt: skip
    policy = directory / phases[-1].name
    print(f"Done in {duration(time.monotonic() - begun)}. The policy is in {policy}:")
    print(f'    model.compile(optimizer=l2o.AmalgamatedOptimizer.load("{policy}"))', flush=True)
