"""`python train.py`: meta-trains an optimizer, or searches the teachers' rates."""

from __future__ import annotations

import argparse
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import tensorflow as tf

import l2o
from l2o.amalgamation.conduct import RunError, conduct, described_devices, make_strategy
from l2o.amalgamation.optimizee import Batch, KerasOptimizee
from l2o.amalgamation.plan import plan
from l2o.amalgamation.rundir import CONFIG
from l2o.amalgamation.trainer import Stopped
from l2o.claim import DirectoryError, check_free
from l2o.commands.terminal import UserError, quiet_start, run_command
from l2o.commands.train_options import check, meta_settings, parser, schedules
from l2o.commands.tune import Search, tune
from l2o.evaluation.tables import TableError
from l2o.evaluation.tuning import RATES
from l2o.progress import duration
from problems import DatasetUnavailable, get_problem, load_dataset


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
        data=options.data,
        data_dir=options.data_dir,
        rates=tuple(dict.fromkeys(options.rates or RATES)),
        seeds=options.tune_seeds,
        first_seed=options.seed,
        epochs=options.epochs,
    )
    output = options.output or Path("runs/tuning")
    try:
        tune(search, lambda: _load_data(options), output, options.jobs, options.fresh)
    except KeyboardInterrupt:
        print("\nStopped. The fits that ended are kept; the same command goes on.")
        return 130
    return 0


def _load_data(options: argparse.Namespace):
    data = load_dataset(get_problem(options.problem).dataset, options.data, options.data_dir)
    print(f"Data: {data.description}", flush=True)
    return data


def _train(options: argparse.Namespace) -> int:
    """Every replicate; what can be wrong with the command line is found before data is read."""
    with quiet_start():
        gpus = tf.config.list_physical_devices("GPU")
    preset, reason = options.preset, ""
    if preset is None:
        preset, reason = ("paper", "there is a GPU") if gpus else ("cpu", "there is no GPU")
        reason = f", because {reason}"
    schedule, choice = schedules(options, preset)
    strategy = make_strategy(options.devices, schedule.meta_batch)
    phases = plan(options.strategy, options.pool, schedule, choice)
    directories = [options.output or Path("runs") / f"{options.strategy}-{options.pool}"]
    if options.replicates > 1:
        directories = [directories[0] / str(k + 1) for k in range(options.replicates)]
    for directory in directories:
        check_free(directory, CONFIG)
    print(f"Preset: {preset}{reason}", flush=True)
    data = _load_data(options)
    origin = {
        "strategy": options.strategy,
        "pool": options.pool,
        "problem": options.problem,
        "data": data.description,
        "preset": preset,
        "devices": described_devices(strategy),
    }
    for k, directory in enumerate(directories):
        if options.replicates > 1:
            print(f"Replicate {k + 1} of {options.replicates}, seed {options.seed + k}")
        try:
            _replicate(options, options.seed + k, directory, phases, strategy, data, origin)
        except Stopped:
            again = "the same command" + " without --fresh" * options.fresh
            print(f"Stopped. The run is kept in {directory}; {again} goes on with it.")
            return 130
    return 0


def _replicate(options, seed: int, directory: Path, phases, strategy, data, origin) -> None:
    begun = time.monotonic()
    problem = get_problem(options.problem)
    conduct(
        phases, meta_settings(options, seed), KerasOptimizee(lambda: problem.build(data)),
        Batch(data.train.images, data.train.labels), problem.batch_size, strategy, directory,
        origin, options.fresh, options.tensorboard,
    )  # fmt: skip
    policy = directory / phases[-1].name
    print(f"Done in {duration(time.monotonic() - begun)}. The policy is in {policy}:")
    print(f'    model.compile(optimizer=l2o.AmalgamatedOptimizer.load("{policy}"))', flush=True)
