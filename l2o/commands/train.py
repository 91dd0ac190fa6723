"""`python train.py`: meta-trains an optimizer, or searches the teachers' rates."""

from __future__ import annotations

import argparse
import time
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import tensorflow as tf

import l2o
from l2o.amalgamation.optimizee import Batch, KerasOptimizee
from l2o.amalgamation.plan import Meta, Phase
from l2o.amalgamation.rundir import CONFIG, RunDirectory
from l2o.amalgamation.trainer import Stopped, Trainer
from l2o.checkpoint import fingerprint
from l2o.claim import DirectoryError, check_free
from l2o.commands.terminal import UserError, duration, quiet_start, run_command
from l2o.commands.train_options import check, parser, settings
from l2o.commands.tune import Search, tune
from l2o.commands.watch import Watch, expected_seconds
from l2o.evaluation.tables import TableError
from l2o.evaluation.tuning import RATES
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
    except (DirectoryError, TableError, l2o.PolicyError, DatasetUnavailable) as error:
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
    """Every run; what can be wrong with the command line is found before data is read."""
    with quiet_start():
        gpus = tf.config.list_physical_devices("GPU")
    preset, reason = options.preset, ""
    if preset is None:
        preset, reason = ("paper", "there is a GPU") if gpus else ("cpu", "there is no GPU")
        reason = f", because {reason}"
    runs = settings(options, preset)
    first = runs[0][1]
    strategy = _strategy(gpus, options.devices, first.schedules()[0].meta_batch)
    for directory, _ in runs:
        check_free(directory, CONFIG)
    try:
        phases = first.phases()
    except ValueError as error:
        raise UserError(str(error)) from error
    print(f"Preset: {preset}{reason}", flush=True)
    data = _load_data(options)
    origin = {
        "strategy": first.strategy,
        "pool": first.pool,
        "problem": options.problem,
        "data": data.description,
        "preset": preset,
        "devices": f"{strategy.num_replicas_in_sync} {'GPU' if gpus else 'CPU'}",
    }
    for k, (directory, chosen) in enumerate(runs):
        if len(runs) > 1:
            magnitude = f", magnitude {chosen.magnitude:g}" * (chosen.magnitude is not None)
            print(f"Run {k + 1} of {len(runs)}: seed {chosen.seed}{magnitude}")
        try:
            _run(options, chosen.meta(), directory, phases, strategy, data, origin)
        except Stopped:
            again = "the same command" + " without --fresh" * options.fresh
            print(f"Stopped. The run is kept in {directory}; {again} goes on with it.")
            return 130
    return 0


def _run(options, meta: Meta, directory: Path, phases, strategy, data, origin) -> None:
    begun = time.monotonic()
    problem = get_problem(options.problem)
    config = origin | {"meta": asdict(meta), "phases": [_described(p) for p in phases]}
    versions = {"l2o": l2o.__version__, "tensorflow": tf.__version__, "keras": tf.keras.__version__}
    card = config | {"seed": meta.seed, "versions": versions}
    if meta.perturbation:
        card["perturbation"] = asdict(meta.perturbation)
    with (
        RunDirectory(directory, config, options.fresh) as run,
        closing(Watch(directory, phases, options.tensorboard)) as watch,
    ):
        tf.keras.utils.set_random_seed(meta.seed)
        tf.config.experimental.enable_op_determinism()
        optimizee = KerasOptimizee(lambda: problem.build(data))
        try:
            trainer = Trainer(
                phases, meta, optimizee, Batch(data.train.images, data.train.labels),
                problem.batch_size, strategy, run, card, watch,
            )  # fmt: skip
        except ValueError as error:
            raise UserError(str(error)) from error
        if run.moved_to:
            print(f"The run that was there is now in {run.moved_to}")
        print(f"Run directory: {directory}" + (", which is gone on with" * trainer.resumed))
        seconds = expected_seconds(
            phases, meta, *trainer.position(), optimizee, data, problem.batch_size
        )
        left = " left" * trainer.resumed
        print(f"Expected time: about {duration(seconds)}{left} on {origin['devices']} as it is now",
              flush=True)  # fmt: skip
        trainer.run()
    policy = directory / phases[-1].name
    if not policy.exists():
        raise UserError(f"No validation was ever finite, so {directory} has no policy")
    print(f"Done in {duration(time.monotonic() - begun)}. The policy is in {policy}:")
    print(f'    model.compile(optimizer=l2o.AmalgamatedOptimizer.load("{policy}"))', flush=True)


def _strategy(gpus: list, devices: int | None, meta_batch: int) -> tf.distribute.Strategy:
    """MirroredStrategy over GPUs, or over logical devices of the CPU."""
    replicas = devices or len(gpus) or 1
    if gpus and replicas > len(gpus):
        raise UserError(f"--devices: there are {len(gpus)} GPUs. Received: {devices}")
    if meta_batch % replicas:
        raise UserError(
            f"The meta-batch, {meta_batch}, must be a multiple of the devices. Received: {replicas}"
        )
    if gpus:
        return tf.distribute.MirroredStrategy([f"/gpu:{k}" for k in range(replicas)])
    cpu = tf.config.list_physical_devices("CPU")[0]
    if replicas > 1 and not tf.config.get_logical_device_configuration(cpu):
        logical = [tf.config.LogicalDeviceConfiguration()] * replicas
        tf.config.set_logical_device_configuration(cpu, logical)
    return tf.distribute.MirroredStrategy([f"/cpu:{k}" for k in range(replicas)])


def _described(phase: Phase) -> dict:
    """A phase as the configuration has it."""
    teachers = "the policy of the phase before"
    if phase.teachers is not None:
        teachers = [teacher.rule.get_config() for teacher in phase.teachers]
    return {
        "name": phase.name,
        "rule": phase.rule.get_config(),
        "scheme": phase.scheme,
        "teachers": teachers,
        "schedule": asdict(phase.schedule),
        "start": "random" if phase.start is None else fingerprint(phase.start),
    }
