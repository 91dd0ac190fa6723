"""The command line of `train.py`: its flags, and the schedules they ask for."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from l2o.amalgamation.curriculum import (
    PRESETS,
    Schedule,
    amalgamation_stages,
    choice_schedule,
)
from l2o.amalgamation.meta import CLIP_FLOOR, CLIP_RATIO
from l2o.amalgamation.plan import Meta
from l2o.amalgamation.unroll import SCALE_LIMIT
from l2o.commands.terminal import (
    MOST_SEED,
    Parser,
    UserError,
    count,
    known,
    positive,
    weight,
    whole,
)
from l2o.rules import POOLS
from problems import PROBLEMS, get_problem

STRATEGIES = ("choice", "mean", "minmax", "none")
DESCRIPTION = """\
Trains one optimizer from a pool of analytical ones (Huang et al., Optimizer
Amalgamation, ICLR 2022). The result is a policy directory; use it with
    policy = "runs/choice-large/policy"
    model.compile(optimizer=l2o.AmalgamatedOptimizer.load(policy))"""
EXAMPLES = """\
examples:
  the paper's best recipe, with the schedule that suits this machine
    python train.py --strategy choice --pool large
  every stage of it in three minutes, on the digits that need no download
    python train.py --preset smoke --data digits --output runs/smoke
  another scheme, pool and problem
    python train.py --strategy minmax --pool small --problem fmnist_cnn
  one stage of 200 meta-updates on unrolls of 100 steps
    python train.py --strategy mean --unrolls 100 --alphas 0.2 --updates 200
  three seeds of it, each in its own directory below runs/three
    python train.py --replicates 3 --output runs/three
  search the teachers' learning rates
    python train.py --tune

Ctrl-C stops a run, and the same command goes on with it where it was."""


def parser() -> Parser:
    """The command line."""
    # fmt: off
    p = Parser(prog="train.py", usage="train.py [OPTION ...]", description=DESCRIPTION,
               epilog=EXAMPLES)
    g = p.add_argument_group("what is trained")
    g.add_argument(
        "--strategy", type=known(STRATEGIES), default="choice", metavar="NAME",
        help="how teachers are amalgamated: choice (train a policy that mixes them, then distil "
        "it), mean or minmax (imitate the mean or the worst-imitated of them), none (meta loss "
        "alone); default choice",
    )
    g.add_argument("--pool", type=known(tuple(POOLS)), default="large", metavar="NAME",
                   help="teachers: large (six) or small (Adam, RMSProp); default large")
    g.add_argument("--problem", type=known(tuple(PROBLEMS)), default="mnist_cnn", metavar="NAME",
                   help=f"what to train on; default mnist_cnn. One of {', '.join(PROBLEMS)}")
    g = p.add_argument_group("data")
    g.add_argument("--data", type=known(("auto", "tfds", "digits")), default="auto", metavar="HOW",
                   help="auto: the embedded digits stand in where the dataset cannot be had, and "
                   "that is said; tfds: that is an error; digits: use them. Default auto")
    g.add_argument("--data-dir", metavar="DIR",
                   help="prepared TFDS data or raw official files")
    g = p.add_argument_group("schedule (a preset, and what departs from it)")
    g.add_argument("--preset", type=known(tuple(PRESETS)), metavar="NAME",
                   help="paper: the paper's, hours on a GPU; cpu: its stages with one trajectory "
                   "an update, about two hours on two cores; smoke: every stage, minutes, no "
                   "useful policy. Default paper where there is a GPU, else cpu")
    g.add_argument("--unrolls", type=count, nargs="+", metavar="N",
                   help="inner steps of an unroll, one value a stage")
    g.add_argument("--alphas", type=weight, nargs="+", metavar="A",
                   help="weight of the distance to the teachers, one value a stage")
    g.add_argument("--last-validation", type=count, metavar="N",
                   help="inner steps of the last stage's validation; the others have the next "
                   "stage's")
    g.add_argument("--choice-unrolls", type=count, nargs="+", metavar="N",
                   help="inner steps of the Choice policy's unrolls, one value a period")
    g.add_argument("--choice-validation", type=count, metavar="N",
                   help="inner steps of the Choice policy's validation")
    g.add_argument("--choice-cold-periods", type=whole, default=1, metavar="P",
                   help="first periods of the Choice policy without warm-up; default 1")
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
    g.add_argument("--clip-ratio", type=positive, default=CLIP_RATIO, metavar="F",
                   help="longest meta-gradient of a weight tensor, in lengths of the tensor; "
                   f"default {CLIP_RATIO:g}")
    g.add_argument("--clip-floor", type=positive, default=CLIP_FLOOR, metavar="L",
                   help=f"a shorter tensor counts as this long; default {CLIP_FLOOR:g}")
    g.add_argument("--warmup-steps", type=whole, default=100, metavar="W",
                   help="plain SGD steps before an unroll; default 100")
    g.add_argument("--warmup-rate", type=positive, default=0.01, metavar="RATE",
                   help="their learning rate; default 0.01")
    g.add_argument("--scale-limit", type=positive, default=SCALE_LIMIT, metavar="S",
                   help="random scaling of the coordinates by exp(U(-S, S)) (Lv et al. 2017); "
                   f"default {SCALE_LIMIT:g}")
    g.add_argument("--no-scaling", action="store_true", help="no random scaling")
    g.add_argument("--first-order", action="store_true",
                   help="stop the meta-gradient at the network's gradient: faster, less exact")
    g.add_argument("--recompute", type=count, default=0, metavar="S",
                   help="compute segments of S steps again in the backward pass: a quarter of the "
                   "memory for about a quarter more time; default is to keep everything")
    g.add_argument("--devices", type=count, metavar="R",
                   help="replicas: so many GPUs, or logical devices of a machine without any; "
                   "default all GPUs, or 1")
    g = p.add_argument_group("run")
    g.add_argument("--seed", type=whole, default=0, metavar="SEED",
                   help="fixes everything random; default 0")
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


def check(options: argparse.Namespace) -> None:
    """What can be said of a command line before anything else is looked at.

    Raises:
        UserError: If its values do not go together.
    """
    if get_problem(options.problem).private:
        raise UserError(
            f"--problem: {options.problem} is trained with DP-SGD, which train.py does not do; "
            "name the same problem without it"
        )
    for name, most in (("replicates", 10_000), ("tune_seeds", 10_000), ("jobs", 1_000)):
        if (value := getattr(options, name)) > most:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} must be at most {most}. Received: {value}")
    most = MOST_SEED - max(options.replicates, options.tune_seeds * options.tune) + 1
    if options.seed > most:
        raise UserError(f"--seed must be at most {most}. Received: {options.seed}")
    fixed = ("period", "min_periods", "max_periods", "patience")
    given = [f"--{name.replace('_', '-')}" for name in fixed if getattr(options, name)]
    if options.updates and given:
        raise UserError(f"--updates makes one period of all, so {', '.join(given)} cannot be set")


def meta_settings(options: argparse.Namespace, seed: int) -> Meta:
    """The settings of the meta-training."""
    return Meta(
        seed=seed,
        learning_rate=options.learning_rate,
        clip_ratio=options.clip_ratio,
        clip_floor=options.clip_floor,
        warmup_steps=options.warmup_steps,
        warmup_rate=options.warmup_rate,
        scaled=not options.no_scaling,
        scale_limit=options.scale_limit,
        first_order=options.first_order,
        recompute=options.recompute,
    )


def schedules(options: argparse.Namespace, preset: str) -> tuple[Schedule, Schedule | None]:
    """The curricula of the policy and, where there is one, of the Choice policy.

    Raises:
        UserError: If the values do not go together.
    """
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
    except ValueError as error:
        raise UserError(str(error)) from error
    if options.recompute and schedule.truncation % options.recompute:
        raise UserError(
            f"--recompute must divide the truncation, {schedule.truncation}. "
            f"Received: {options.recompute}"
        )
    if options.strategy != "choice":
        return schedule, None
    try:
        choice = choice_schedule(
            schedule,
            tuple(options.choice_unrolls or chosen.choice_unrolls),
            options.choice_validation or chosen.choice_validation,
            options.choice_cold_periods,
        )
    except ValueError as error:
        raise UserError(f"Schedule of the Choice policy: {error}") from error
    return schedule, choice
