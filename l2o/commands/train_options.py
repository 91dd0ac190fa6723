"""The command line of `l2o train`: its flags, and the runs they ask for."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from l2o.amalgamation.perturbation import KINDS
from l2o.amalgamation.plan import MOST_SEED, POLICIES, Meta
from l2o.amalgamation.presets import ESTIMATORS, RECIPE_PROBLEMS, RECIPES, default_problems
from l2o.amalgamation.settings import (
    CHOICES,
    PRESETS,
    STRATEGIES,
    Settings,
    check_names,
    get_preset,
    parsed,
    with_choices,
)
from l2o.commands.flags import add_data_flags, add_problems_flag, check_trainable
from l2o.commands.terminal import Parser, count, devices, known, positive, weight, whole
from l2o.errors import UserError
from l2o.rules import POOLS

DESCRIPTION = """\
Trains one optimizer from a pool of analytical ones (Huang et al., Optimizer
Amalgamation, ICLR 2022).

  {prog} --preset smoke --data digits     every stage, in minutes
  {prog} --strategy choice --pool large   the paper's best, in hours
  {prog} --problem mine:tumours           your own: docs/amalgamate.md

Ctrl-C stops it, and the same command goes on. The result is a directory; use it
as l2o.AmalgamatedOptimizer.load("runs/choice-large/policy")."""
EXAMPLES = """\
examples:
  one stage of 200 meta-updates on unrolls of 100 steps
    {prog} --strategy mean --unrolls 100 --alphas 0.2 --updates 200
  a baseline; a sweep over two sizes of noise, two seeds each
    {prog} --recipe rnnprop
    {prog} --perturbation gaussian --magnitude 5e-4 1e-3 --replicates 2
  what has no flag (docs/commands.md has it all)
    {prog} --set clip_ratio=0.2 meta_loss=difference"""


PAPERS = [name for name in RECIPES if name not in RECIPE_PROBLEMS]


def parser(prog: str = "l2o train") -> Parser:
    """The command line.

    Args:
        prog: How the command was called.
    """
    # fmt: off
    p = Parser(prog, DESCRIPTION, EXAMPLES)
    g = p.add_argument_group("what is trained")
    g.add_argument("--strategy", dest="scheme", type=known(STRATEGIES), metavar="NAME",
                   help="choice (train a policy that mixes the teachers, then distil it), mean or "
                   "minmax (imitate their mean or the worst-imitated of them) or none (meta loss "
                   "alone); default choice")
    g.add_argument("--pool", dest="teachers", type=known(tuple(POOLS)), metavar="NAME",
                   help="teachers: large (six), small (Adam, RMSProp) or adam; default large")
    g.add_argument("--policy", type=known(tuple(POLICIES)), metavar="NAME",
                   help=f"the network that is trained: {', '.join(POLICIES)}; default rnnprop")
    g.add_argument("--recipe", type=known(tuple(RECIPES)), metavar="NAME",
                   help="instead of these three: general, an optimizer for any network, from "
                   f"families of small ones; or a baseline of the paper's, {', '.join(PAPERS)}")
    g.add_argument("--finetune", metavar="POLICY",
                   help="begin with this policy's weights: a directory or a shipped name")
    add_problems_flag(g)
    add_data_flags(p)
    g = p.add_argument_group("schedule: a preset, and what departs from it")
    g.add_argument("--preset", type=known(tuple(PRESETS)), metavar="NAME",
                   help="paper: hours on a GPU; cpu: its stages with one trajectory an update, "
                   "hours on two cores; smoke: every stage, minutes, no useful policy. Default "
                   "paper where there is a GPU, else cpu")
    g.add_argument("--unrolls", type=count, nargs="+", metavar="N",
                   help="inner steps of an unroll, one value a stage")
    g.add_argument("--alphas", type=weight, nargs="+", metavar="A",
                   help="weight of the distance to teachers, one value a stage")
    g.add_argument("--last-validation", type=count, metavar="N",
                   help="inner steps of the last stage's validation")
    g.add_argument("--choice-unrolls", type=count, nargs="+", metavar="N",
                   help="of the Choice policy, one value a period")
    g.add_argument("--choice-validation", type=count, metavar="N",
                   help="inner steps of the Choice policy's validation")
    g.add_argument("--updates", type=count, metavar="U",
                   help="one stage of U meta-updates in a single period, with the first of "
                   "unrolls and alphas")
    g.add_argument("--truncation", type=count, metavar="T", help="inner steps a meta-update")
    g.add_argument("--meta-batch", type=count, metavar="M", help="trajectories a meta-update")
    g.add_argument("--period", type=count, metavar="P",
                   help="trajectories between two validations")
    g = p.add_argument_group("meta-training")
    g.add_argument("--estimator", type=known(ESTIMATORS), metavar="NAME",
                   help="of the meta-gradient: backprop, through truncations, or es, an evolution "
                   "strategy, which sees whole fits; default backprop")
    g.add_argument("--learning-rate", type=positive, metavar="RATE",
                   help=f"of the meta-optimizer, Adam; default {Meta.learning_rate:g}")
    g.add_argument("--warmup-steps", type=whole, metavar="W",
                   help=f"plain SGD steps before an unroll; default {Meta.warmup_steps}")
    g.add_argument("--first-order", action="store_true",
                   help="stop the meta-gradient at the network's: faster")
    g.add_argument("--held-out", action="store_true",
                   help="measure the meta loss on data not trained on")
    g.add_argument("--perturbation", type=known(("none", *KINDS)), metavar="KIND",
                   help=f"of the policy while it is trained: none, {', '.join(KINDS)}; default "
                   "none")
    g.add_argument("--magnitude", type=weight, nargs="+", metavar="M",
                   help="of the perturbation; several make a run of each")
    rest = g.add_argument("--set", nargs="+", action="extend", metavar="NAME=VALUE", default=[])
    g = p.add_argument_group("run")
    g.add_argument("--seed", type=whole, default=0, metavar="SEED",
                   help="fixes everything random; default 0")
    g.add_argument("--replicates", type=count, default=1, metavar="R",
                   help="run R seeds from SEED on, each in a subdirectory")
    g.add_argument("--jobs", type=count, default=1, metavar="J",
                   help="processes of one thread each, for several runs where there is no GPU; "
                   "default 1, which uses all cores")
    g.add_argument("--devices", type=devices, metavar="R",
                   help="so many GPUs, or logical devices of a machine without any; or chosen "
                   "GPUs, as gpu:0,gpu:2. Default all GPUs, or 1")
    g.add_argument("--output", metavar="DIR", type=Path,
                   help="run directory; default runs/choice-large, say")
    g.add_argument("--fresh", action="store_true",
                   help="move the run that is there aside and begin anew")
    g.add_argument("--tensorboard", action="store_true", help="write TensorBoard event files too")
    # fmt: on
    flags = {action.dest: action.option_strings[0] for action in p._actions}
    names = sorted(set(CHOICES) - set(flags))
    rest.type = partial(_setting, flags, names)
    rest.help = f"any other setting, by name and value: {', '.join(names)}"
    return p


def _setting(flags: dict[str, str], names: list[str], text: str) -> tuple[str, Any]:
    """An argument of --set."""
    name, equals, value = text.partition("=")
    if name in flags and name in CHOICES:
        raise argparse.ArgumentTypeError(f"{name} is set by {flags[name]}")
    try:
        check_names([name], names)
    except TypeError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not equals:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, not '{text}'")
    return name, parsed(value)


def check(options: argparse.Namespace) -> None:
    """What can be said of a command line before anything else is looked at.

    Raises:
        UserError: If its values do not go together.
    """
    if options.problem is None:
        options.problem = default_problems(options.recipe)
    check_trainable(options.problem, options)
    for name, most in (("replicates", 10_000), ("jobs", 1_000)):
        if (value := getattr(options, name)) > most:
            raise UserError(f"--{name} must be at most {most}. Received: {value}")
    if options.seed > (most := MOST_SEED - options.replicates + 1):
        raise UserError(f"--seed must be at most {most}. Received: {options.seed}")
    of = {"strategy": options.scheme, "pool": options.teachers, "policy": options.policy,
          "estimator": options.estimator}  # fmt: skip
    if options.recipe and (given := [f"--{name}" for name, value in of.items() if value]):
        raise UserError(f"--recipe says what is trained, so {', '.join(given)} cannot be set")
    if options.scheme == "none" and options.teachers:
        raise UserError("--strategy none imitates no teachers, so --pool cannot be set")


def settings(options: argparse.Namespace, preset: str) -> list[tuple[Path, Settings]]:
    """The runs that a command line asks for, and their directories.

    Args:
        options: From `parser`.
        preset: What `--preset` says or stands for.

    Raises:
        UserError: If the values do not go together.
    """
    choices = {name: value for name, value in vars(options).items() if name in CHOICES}
    choices |= dict(options.set)
    runs: list[tuple[Path, Settings]] = []
    root = output(options)
    magnitudes = list(dict.fromkeys(options.magnitude or [None]))
    for magnitude in magnitudes:
        for k in range(options.replicates):
            directory = root
            if len(magnitudes) > 1:
                directory /= f"magnitude-{magnitude:g}"
            if options.replicates > 1:
                directory /= str(k + 1)
            if directory in dict(runs):
                raise UserError(f"Two values of --magnitude are {magnitude:g} in their run's name")
            one = choices | {"magnitude": magnitude, "seed": options.seed + k}
            try:
                runs.append((directory, with_choices(get_preset(preset), one)))
            except ValueError as error:
                raise UserError(str(error)) from error
    return runs


def output(options: argparse.Namespace) -> Path:
    """The directory of the run, or of all the runs that a command line asks for."""
    return options.output or Path("runs") / _name(options)


def _name(options: argparse.Namespace) -> str:
    name = options.recipe
    if name is None:
        policy = options.policy or Settings.policy
        name = f"{options.scheme or Settings.scheme}-{options.teachers or Settings.teachers}"
        name += f"-{policy}" * (policy != Settings.policy)
    name += "-es" * (options.estimator == "es")
    if options.perturbation not in (None, "none"):
        name += f"-{options.perturbation}"
        if options.magnitude and len(options.magnitude) == 1:
            name += f"-{options.magnitude[0]:g}"
    return name + "-smoke" * (options.preset == "smoke")  # the real run is not in its way
