"""`python train.py`: meta-trains an optimizer, or searches the teachers' rates."""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

from l2o.commands.terminal import (
    Parser,
    UserError,
    count,
    duration,
    known,
    positive,
    quiet_start,
    run_command,
    whole,
)

STRATEGIES = ("choice", "mean", "minmax", "none")
PRESETS = ("paper", "cpu", "smoke")
DESCRIPTION = """\
Trains one optimizer from a pool of analytical ones (Huang et al., Optimizer
Amalgamation, ICLR 2022).

The result is a policy directory; use it with
    model.compile(optimizer=l2o.AmalgamatedOptimizer.load("runs/choice-large/policy"))"""
EXAMPLES = """\
examples:
  python train.py --strategy choice --pool large        the paper's best recipe
  python train.py --preset smoke                        every stage of it in three minutes
  python train.py --strategy minmax --pool small --problem fmnist_cnn
  python train.py --strategy mean --unrolls 100 --alphas 0.2 --updates 200
                                                        one stage of 200 meta-updates
  python train.py --tune                                search the teachers' learning rates

A run that was stopped goes on where it was when the same command is given again."""


def parser(problems: tuple[str, ...], pools: tuple[str, ...]) -> Parser:
    """The command line, given the names there are."""
    # fmt: off
    p = Parser(prog="train.py", description=DESCRIPTION, epilog=EXAMPLES)
    g = p.add_argument_group("what is trained")
    g.add_argument(
        "--strategy", type=known(STRATEGIES), default="choice", metavar="NAME",
        help="how teachers are amalgamated: choice (train a policy that mixes them, then distil "
        "it), mean or minmax (imitate the mean or the worst-imitated of them), none (meta loss "
        "alone); default choice",
    )
    g.add_argument("--pool", type=known(pools), default="large", metavar="NAME",
                   help="teachers: large (six) or small (Adam, RMSProp); default large")
    g.add_argument("--problem", type=known(problems), default="mnist_cnn", metavar="NAME",
                   help=f"what to train on; default mnist_cnn. One of {', '.join(problems)}")
    g = p.add_argument_group("data")
    g.add_argument("--data", type=known(("auto", "tfds", "digits")), default="auto", metavar="HOW",
                   help="auto: the embedded digits stand in where the dataset cannot be had, and "
                   "that is said; tfds: that is an error; digits: use them. Default auto")
    g.add_argument("--data-dir", metavar="DIR",
                   help="prepared TFDS data or raw official files")
    g = p.add_argument_group("schedule (a preset, and what departs from it)")
    g.add_argument("--preset", type=known(PRESETS), metavar="NAME",
                   help="paper: the paper's, hours on a GPU; cpu: its stages with one trajectory "
                   "an update, 1-2 hours on two cores; smoke: every stage, minutes, no useful "
                   "policy. Default paper where there is a GPU, else cpu")
    g.add_argument("--unrolls", type=count, nargs="+", metavar="N",
                   help="inner steps of an unroll, one value a stage")
    g.add_argument("--alphas", type=float, nargs="+", metavar="A",
                   help="weight of the distance to the teachers, one value a stage")
    g.add_argument("--last-validation", type=count, metavar="N",
                   help="inner steps of the last stage's validation; the others have the next "
                   "stage's")
    g.add_argument("--choice-unrolls", type=count, nargs="+", metavar="N",
                   help="the same for the Choice policy, one value a period")
    g.add_argument("--choice-validation", type=count, metavar="N",
                   help="inner steps of the Choice policy's validation")
    g.add_argument("--updates", type=count, metavar="U",
                   help="one stage of U meta-updates in a single period, with the first of "
                   "--unrolls and --alphas")
    g.add_argument("--truncation", type=count, metavar="T", help="inner steps a meta-update")
    g.add_argument("--period", type=count, metavar="P",
                   help="trajectories a period, after which the policy is validated")
    g.add_argument("--meta-batch", type=count, metavar="M", help="trajectories a meta-update")
    g.add_argument("--min-periods", type=count, metavar="P", help="fewest periods of a stage")
    g.add_argument("--max-periods", type=count, metavar="P", help="most periods of a stage")
    g.add_argument("--patience", type=count, metavar="P",
                   help="periods without a new best that end a stage")
    g.add_argument("--max-repeats", type=whole, metavar="R",
                   help="how often a period that made things worse is undone and repeated")
    g.add_argument("--tolerance", type=positive, metavar="F",
                   help="share of the reference by which a validation may be worse")
    g.add_argument("--validation-trajectories", type=count, metavar="V",
                   help="fixed trajectories a validation averages over")
    g = p.add_argument_group("meta-training")
    g.add_argument("--learning-rate", type=positive, default=1e-3, metavar="RATE",
                   help="of the meta-optimizer, Adam; default 0.001")
    g.add_argument("--warmup-steps", type=whole, default=100, metavar="W",
                   help="plain SGD steps before an unroll; default 100")
    g.add_argument("--warmup-rate", type=positive, default=0.01, metavar="RATE",
                   help="their learning rate; default 0.01")
    g.add_argument("--no-scaling", action="store_true",
                   help="no random scaling of the coordinates (Lv et al. 2017)")
    g.add_argument("--first-order", action="store_true",
                   help="stop the meta-gradient at the network's gradient: faster, less exact")
    g.add_argument("--recompute", type=count, default=0, metavar="S",
                   help="compute segments of S steps again in the backward pass: a quarter of the "
                   "memory for about a quarter more time; default is to keep everything")
    g.add_argument("--devices", type=count, metavar="R",
                   help="replicas: so many GPUs, or logical devices of a machine without any; "
                   "default all GPUs, or 1")
    g = p.add_argument_group("run")
    g.add_argument("--seed", type=whole, default=0, help="fixes everything random; default 0")
    g.add_argument("--replicates", type=count, default=1, metavar="R",
                   help="run seeds SEED to SEED + R - 1, each in a subdirectory; default 1")
    g.add_argument("--output", metavar="DIR", type=Path,
                   help="run directory; default runs/STRATEGY-POOL, or runs/tuning for --tune")
    g.add_argument("--fresh", action="store_true",
                   help="move the run that is in the directory aside and begin anew")
    g.add_argument("--tensorboard", action="store_true", help="write TensorBoard event files too")
    g = p.add_argument_group("search of the teachers' learning rates")
    g.add_argument("--tune", action="store_true",
                   help="fit the problem with every teacher at every rate of the 1-2-5 series from "
                   "0.0005 to 1, write the table and print the best; resumes")
    g.add_argument("--epochs", type=count, default=5, metavar="E", help="of a fit; default 5")
    g.add_argument("--tune-seeds", type=count, default=3, metavar="S",
                   help="seeds a rate; default 3")
    g.add_argument("--rates", type=positive, nargs="+", metavar="RATE",
                   help="another grid")
    g.add_argument("--jobs", type=count, default=os.cpu_count() or 1, metavar="J",
                   help="processes of one thread each; default one a core")
    # fmt: on
    return p


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; exits with status 0, 2 for a user's error, 130 when stopped."""
    run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    with quiet_start():
        from l2o.rules import POOLS
        from problems import PROBLEMS
    options = parser(tuple(PROBLEMS), tuple(POOLS)).parse_args(arguments)
    if options.tune:
        return _tune(options)
    directories = [options.output or Path("runs") / f"{options.strategy}-{options.pool}"]
    if options.replicates > 1:
        directories = [directories[0] / str(k + 1) for k in range(options.replicates)]
    for k, directory in enumerate(directories):
        if options.replicates > 1:
            print(f"Replicate {k + 1} of {options.replicates}, seed {options.seed + k}")
        status = _train(options, options.seed + k, directory)
        if status:
            return status
    return 0


def _tune(options: argparse.Namespace) -> int:
    from l2o.commands.tune import Search, tune
    from l2o.evaluation.tuning import RATES, TrialsError

    data = _load_data(options)
    search = Search(
        problem=options.problem,
        data=options.data,
        data_dir=options.data_dir,
        rates=tuple(options.rates or RATES),
        seeds=options.tune_seeds,
        first_seed=options.seed,
        epochs=options.epochs,
    )
    try:
        tune(search, data, options.output or Path("runs/tuning"), options.jobs)
    except TrialsError as error:
        raise UserError(str(error)) from error
    except KeyboardInterrupt:
        print("\nStopped. The fits that ended are kept; the same command goes on.")
        return 130
    return 0


def _load_data(options: argparse.Namespace):
    from problems import DatasetUnavailable, get_problem, load_dataset

    try:
        data = load_dataset(get_problem(options.problem).dataset, options.data, options.data_dir)
    except DatasetUnavailable as error:
        raise UserError(str(error)) from error
    print(f"Data: {data.description}")
    return data


def schedules(options: argparse.Namespace, preset: str):
    """The curricula of the policy and of the Choice policy that a command line asks for.

    Raises:
        UserError: If the values do not go together.
    """
    from l2o.amalgamation.curriculum import PRESETS, amalgamation_stages, choice_schedule

    chosen = PRESETS[preset]
    names = ("truncation", "meta_batch", "period", "min_periods", "max_periods", "patience",
             "max_repeats", "tolerance", "validation_trajectories")  # fmt: skip
    changes = {n: v for n in names if (v := getattr(options, n)) is not None}
    unrolls = tuple(options.unrolls or chosen.unrolls)
    alphas = tuple(options.alphas or chosen.alphas)
    last = options.last_validation or chosen.last_validation
    if options.updates:
        unrolls, alphas = unrolls[:1], alphas[:1]
        last = options.last_validation or unrolls[0]
        truncation = options.truncation or chosen.schedule.truncation
        meta_batch = options.meta_batch or chosen.schedule.meta_batch
        each = max(unrolls[0] // truncation, 1)
        if options.updates % each:
            raise UserError(
                f"--updates must be a multiple of the {each} updates of an unroll of "
                f"{unrolls[0]} steps. Received: {options.updates}"
            )
        changes |= {"period": options.updates // each * meta_batch,
                    "min_periods": 1, "max_periods": 1, "patience": 1}  # fmt: skip
    try:
        schedule = replace(
            chosen.schedule, stages=amalgamation_stages(unrolls, alphas, last), **changes
        )
        choice = choice_schedule(
            schedule,
            tuple(options.choice_unrolls or chosen.choice_unrolls),
            options.choice_validation or chosen.choice_validation,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    return schedule, choice


def _train(options: argparse.Namespace, seed: int, directory: Path) -> int:
    begun = time.monotonic()
    with quiet_start():
        import tensorflow as tf

    import l2o
    from l2o.amalgamation.optimizee import Batch, KerasOptimizee
    from l2o.amalgamation.rundir import RunDirectory, RunError
    from l2o.amalgamation.trainer import Meta, Stopped, Trainer, plan
    from l2o.commands.watch import Watch, expected_seconds
    from problems import get_problem

    preset, reason = options.preset, "as asked"
    gpus = tf.config.list_physical_devices("GPU")
    if preset is None:
        preset, reason = ("paper", "there is a GPU") if gpus else ("cpu", "there is no GPU")
    schedule, choice = schedules(options, preset)
    if options.recompute and schedule.truncation % options.recompute:
        raise UserError(
            f"--recompute must divide the truncation, {schedule.truncation}. "
            f"Received: {options.recompute}"
        )
    strategy = _strategy(tf, gpus, options.devices)
    replicas = strategy.num_replicas_in_sync
    if schedule.meta_batch % replicas:
        raise UserError(
            f"The meta-batch must be a multiple of the {replicas} devices. "
            f"Received: {schedule.meta_batch}"
        )
    phases = plan(options.strategy, options.pool, schedule, choice)
    meta = Meta(
        seed, options.learning_rate, options.warmup_steps, options.warmup_rate,
        not options.no_scaling, options.first_order, options.recompute,
    )  # fmt: skip
    problem = get_problem(options.problem)
    data = _load_data(options)
    origin = {
        "strategy": options.strategy,
        "pool": options.pool,
        "problem": problem.name,
        "data": data.description,
        "preset": preset,
        "devices": f"{replicas} {'GPU' if gpus else 'CPU'}",
        "meta": asdict(meta),
    }
    config = origin | {
        "phases": [
            {"name": p.name, "rule": p.rule.get_config(), "scheme": p.scheme,
             "teachers": _teachers(p), "schedule": asdict(p.schedule)}
            for p in phases
        ]
    }  # fmt: skip
    try:
        run = RunDirectory(directory, _plain(config), options.fresh)
        tf.keras.utils.set_random_seed(seed)
        tf.config.experimental.enable_op_determinism()
        optimizee = KerasOptimizee(lambda: problem.build(data))
        seconds = expected_seconds(phases, optimizee, data, problem.batch_size)
        print(f"Preset: {preset}, because {reason}" if options.preset is None else
              f"Preset: {preset}")  # fmt: skip
        print(f"Expected time: about {duration(seconds)} on {origin['devices']} as it is now")
        print(f"Run directory: {directory}", flush=True)
        versions = {"l2o": l2o.__version__, "tensorflow": tf.__version__,
                    "keras": tf.keras.__version__}  # fmt: skip
        card = config | {"seed": seed, "versions": versions}
        watch = Watch(directory, phases, options.tensorboard)
        trainer = Trainer(
            phases, meta, optimizee, Batch(data.train.images, data.train.labels),
            problem.batch_size, strategy, run, _plain(card), watch,
        )  # fmt: skip
        trainer.run()
    except RunError as error:
        raise UserError(str(error)) from error
    except Stopped:
        watch.close()
        print(f"Stopped. The run is kept in {directory}; the same command goes on with it.")
        return 130
    watch.close()
    print(f"Done in {duration(time.monotonic() - begun)}. The policy is in {directory / 'policy'}:")
    print(f'    model.compile(optimizer=l2o.AmalgamatedOptimizer.load("{directory}/policy"))')
    return 0


def _strategy(tf, gpus: list, devices: int | None):
    """MirroredStrategy over GPUs, or over logical devices of the CPU."""
    if gpus:
        if (devices or 1) > len(gpus):
            raise UserError(f"--devices: there are {len(gpus)} GPUs. Received: {devices}")
        return tf.distribute.MirroredStrategy([f"/gpu:{k}" for k in range(devices or len(gpus))])
    cpu = tf.config.list_physical_devices("CPU")[0]
    if devices and devices > 1 and not tf.config.get_logical_device_configuration(cpu):
        logical = [tf.config.LogicalDeviceConfiguration()] * devices
        tf.config.set_logical_device_configuration(cpu, logical)
    return tf.distribute.MirroredStrategy([f"/cpu:{k}" for k in range(devices or 1)])


def _teachers(phase) -> list | str:
    if phase.teachers is None:
        return "the policy of the phase before"
    return [teacher.rule.get_config() for teacher in phase.teachers]


def _plain(value):
    """As JSON gives it back: tuples are lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
