"""`python train.py`: meta-trains an optimizer, or searches the teachers' rates."""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

import tensorflow as tf

import l2o
from l2o.amalgamation.optimizee import Batch, KerasOptimizee
from l2o.amalgamation.plan import Phase
from l2o.amalgamation.rundir import CONFIG, RunDirectory
from l2o.amalgamation.settings import Settings
from l2o.amalgamation.trainer import Diverged, Stopped, Trainer
from l2o.checkpoint import fingerprint
from l2o.claim import DirectoryError, check_free
from l2o.commands.pool import spread
from l2o.commands.terminal import UserError, duration, quiet_start, run_command
from l2o.commands.train_options import check, parser, settings
from l2o.commands.tune import Search, tune
from l2o.commands.watch import Watch, expected_seconds
from l2o.evaluation.tables import TableError
from l2o.evaluation.tuning import RATES
from problems import Dataset, DatasetUnavailable, get_problem, load_dataset

STOPPED = 130  # the exit status of what a signal ended


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Exits with status 0, 1 where a run diverged, 2 for a user's error, 130 when stopped.
    """
    run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    options = parser().parse_args(arguments)
    check(options)
    tf.get_logger().setLevel("ERROR")  # it warns of every second network that is traced
    try:
        return _tune(options) if options.tune else _train(options)
    except (DirectoryError, TableError, l2o.PolicyError, DatasetUnavailable) as error:
        raise UserError(str(error)) from error


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
        jobs = options.jobs or os.cpu_count() or 1
        tune(search, lambda: _load_data(options), output, jobs, options.fresh)
    except KeyboardInterrupt:
        print("\nStopped. The fits that ended are kept; the same command goes on.")
        return 130
    return 0


def _load_data(options: argparse.Namespace):
    problem = get_problem(options.problem)
    data = load_dataset(problem.dataset, options.data, options.data_dir)
    problem.check(data)
    print(f"Data: {data.description}", flush=True)
    return data


def _train(options: argparse.Namespace) -> int:
    """Every run; what can be wrong with the command line is found before data is read."""
    work = _prepare(options)
    for directory, _ in work.runs:
        check_free(directory, CONFIG)
    print(f"Preset: {work.preset}{work.reason}", flush=True)
    data, count = _load_data(options), len(work.runs)
    if (options.jobs or 1) > 1 and count > 1:
        return _spread(work)
    status = 0
    for k, (_, chosen) in enumerate(work.runs):
        if count > 1:
            magnitude = "" if chosen.magnitude is None else f", magnitude {chosen.magnitude:g}"
            print(f"Run {k + 1} of {count}: seed {chosen.seed}{magnitude}")
        status = max(status, said := _run(work, data, k))
        if said == STOPPED:
            break
    return status


@dataclass(frozen=True)
class Work:
    """What a command line asks for.

    Attributes:
        options: The command line.
        preset, reason: Which, and why where it does not say.
        runs: Directories and settings.
        phases: Of each run.
        strategy: Its devices.
        devices: In words.
    """

    options: argparse.Namespace
    preset: str
    reason: str
    runs: list[tuple[Path, Settings]]
    phases: tuple[Phase, ...]
    strategy: tf.distribute.Strategy
    devices: str


def _prepare(options: argparse.Namespace) -> Work:
    with quiet_start():
        gpus = tf.config.list_physical_devices("GPU")
    preset, reason = options.preset, ""
    if preset is None:
        preset, reason = ("paper", "there is a GPU") if gpus else ("cpu", "there is no GPU")
        reason = f", because {reason}"
    if gpus and (options.jobs or 1) > 1:
        raise UserError("--jobs spreads runs over the cores of a machine without a GPU")
    runs = settings(options, preset)
    first = runs[0][1]
    strategy = _strategy(gpus, options.devices, first.schedules()[0].meta_batch)
    try:
        phases = first.phases()
    except ValueError as error:
        raise UserError(str(error)) from error
    devices = f"{strategy.num_replicas_in_sync} {'GPU' if gpus else 'CPU'}"
    return Work(options, preset, reason, runs, phases, strategy, devices)


def _spread(work: Work) -> int:
    """The runs in several processes, whose own words are not heard; their tables tell."""
    options, status = work.options, 0
    jobs = min(options.jobs, len(work.runs))
    print(f"{len(work.runs)} runs in {jobs} processes; see periods.csv in each run directory",
          flush=True)  # fmt: skip
    numbers = [(k,) for k in range(len(work.runs))]
    try:
        for k, ended, text in spread(_run_one, numbers, jobs, _start_worker, (options,)):
            print(f"Run {k + 1} of {len(numbers)}: {text}", flush=True)
            status = max(status, ended)
    except KeyboardInterrupt:
        print("\nStopped. The runs are kept; the same command goes on with them.")
        return STOPPED
    return status


_worker: dict = {}  # what a process of --jobs holds


def _start_worker(options: argparse.Namespace) -> None:
    with redirect_stdout(io.StringIO()):
        _worker.update(work=_prepare(options), data=_load_data(options))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)


def _run_one(k: int) -> tuple[int, int, str]:
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        status = _run(_worker["work"], _worker["data"], k)
    return k, status, said.getvalue().strip().splitlines()[-1].strip()


def _run(work: Work, data: Dataset, k: int) -> int:
    """One run, and the exit status it asks for."""
    (directory, chosen), begun = work.runs[k], time.monotonic()
    try:
        _meta_train(work, chosen, directory, data)
    except Stopped:
        again = "the same command" + " without --fresh" * work.options.fresh
        print(f"Stopped. The run is kept in {directory}; {again} goes on with it.")
        return STOPPED
    except Diverged as error:
        there = [p for phase in reversed(work.phases) if (p := directory / phase.name).exists()]
        kept = f"Its last good policy is in {there[0]}" if there else "It has no policy yet"
        print(f"error: {error}. {kept}; a smaller --learning-rate may help", file=sys.stderr)
        return 1
    policy = directory / work.phases[-1].name
    print(f"Done in {duration(time.monotonic() - begun)}. The policy is in {policy}:")
    print(f'    model.compile(optimizer=l2o.AmalgamatedOptimizer.load("{policy}"))', flush=True)
    return 0


def _meta_train(work: Work, chosen: Settings, directory: Path, data: Dataset) -> None:
    options, phases, meta = work.options, work.phases, chosen.meta()
    origin = {
        "strategy": chosen.strategy,
        "pool": chosen.pool,
        "problem": options.problem,
        "data": data.description,
        "preset": work.preset,
        "devices": work.devices,
    }
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
                problem.batch_size, work.strategy, run, card, watch,
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
        print(f"Expected time: about {duration(seconds)}{left} on {work.devices} as it is now",
              flush=True)  # fmt: skip
        trainer.run()


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
    if replicas > 64:
        raise UserError(f"--devices: at most 64 logical ones. Received: {devices}")
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
