"""The command line of `train.py`: its flags, and the runs they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path

from l2o.amalgamation.curriculum import PRESETS
from l2o.amalgamation.losses import META_LOSSES
from l2o.amalgamation.perturbation import KINDS
from l2o.amalgamation.plan import MOST_SEED, POLICIES
from l2o.amalgamation.settings import RECIPES, STRATEGIES, Settings
from l2o.commands.problem import OWN, check_data_flags, is_private, problem_name
from l2o.commands.terminal import (
    Parser,
    UserError,
    count,
    devices,
    given_beside,
    known,
    positive,
    weight,
    whole,
)
from l2o.problems import PROBLEMS
from l2o.rules import POOLS, Original, RNNProp
from l2o.rules.warmup import SHORT

_SEARCH = ("epochs", "tune_seeds", "rates")  # the flags of --tune
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
  a baseline, and a sweep over two sizes of noise, two seeds each
    python train.py --recipe rnnprop
    python train.py --perturbation gaussian --magnitude 5e-4 1e-3 --replicates 2
  your own network and data, from a function in mine.py (docs/amalgamate.md)
    python train.py --problem mine:tumours
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
        "--strategy", type=known(STRATEGIES), metavar="NAME",
        help="how teachers are amalgamated: choice (train a policy that mixes them, then distil "
        "it), mean or minmax (imitate the mean or the worst-imitated of them), none (meta loss "
        "alone); default choice",
    )
    g.add_argument("--pool", type=known(tuple(POOLS)), metavar="NAME",
                   help="teachers: large (six), small (Adam, RMSProp) or adam; default large")
    g.add_argument("--policy", type=known(tuple(POLICIES)), metavar="NAME",
                   help="the network that is trained: rnnprop (Lv et al. 2017), original "
                   "(Andrychowicz et al. 2016) or scale (Wichrowska et al. 2017); default rnnprop")
    g.add_argument("--recipe", type=known(tuple(RECIPES)), metavar="NAME",
                   help="instead of these three, a learned optimizer that the paper compares with: "
                   "original, scale or rnnprop on the meta loss alone, or stronger, rnnprop that "
                   "also imitates Adam (Chen et al. 2020)")
    g.add_argument("--output-scale", type=positive, metavar="F",
                   help="factor of the policy's output, which for rnnprop is its largest step; "
                   f"default {RNNProp.scale:g} for rnnprop, {Original.scale:g} for original; "
                   "scale has none")
    g.add_argument("--finetune", type=Path, metavar="POLICY",
                   help="begin with the weights of this policy, a directory or a shipped one's "
                   "name, in the phase that trains its kind, not with random ones; its averaging "
                   "and weight decay stay behind")
    g.add_argument("--problem", type=problem_name, default="mnist_cnn", metavar="NAME",
                   help=f"what to train on; default mnist_cnn. One of {', '.join(PROBLEMS)}; or "
                   f"your own as {OWN}, which returns an l2o.Problem")
    g = p.add_argument_group("data")
    g.add_argument("--data", type=known(("auto", "tfds", "digits")), metavar="HOW",
                   help="auto: the embedded digits stand in where the dataset cannot be had, and "
                   "that is said; tfds: that is an error; digits: use them. Default auto")
    g.add_argument("--data-dir", metavar="DIR",
                   help="prepared TFDS data or raw official files")
    g = p.add_argument_group("schedule (a preset, and what departs from it)")
    g.add_argument("--preset", type=known(tuple(PRESETS)), metavar="NAME",
                   help="paper: the paper's, hours on a GPU; cpu: its stages with one trajectory "
                   "an update, hours on two cores; smoke: every stage, minutes, no "
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
                   "--unrolls, --alphas and --choice-unrolls; validated on that unroll where "
                   "--last-validation is not given. The Choice policy's period has no warm-up, "
                   "unless --choice-cold-periods is 0")
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
    g.add_argument("--clip-ratio", type=positive, default=Settings.clip_ratio, metavar="F",
                   help="longest meta-gradient of a weight tensor, in lengths of the tensor; "
                   f"default {Settings.clip_ratio:g}")
    g.add_argument("--clip-floor", type=positive, default=Settings.clip_floor, metavar="L",
                   help=f"a shorter tensor counts as this long; default {Settings.clip_floor:g}")
    g.add_argument("--warmup-steps", type=whole, default=Settings.warmup_steps, metavar="W",
                   help=f"plain SGD steps before an unroll; default {Settings.warmup_steps}. "
                   f"A fit with the policy begins with as many, but {SHORT} at most")
    g.add_argument("--warmup-rate", type=positive, default=Settings.warmup_rate, metavar="RATE",
                   help=f"their learning rate; default {Settings.warmup_rate:g}")
    g.add_argument("--scale-limit", type=positive, default=Settings.scale_limit, metavar="S",
                   help="random scaling of the coordinates by exp(U(-S, S)) with a random sign "
                   f"(after Lv et al. 2017, where S is 3); default {Settings.scale_limit:g}")
    g.add_argument("--no-scaling", dest="scaling", action="store_false", help="no random scaling")
    g.add_argument("--first-order", action="store_true",
                   help="stop the meta-gradient at the network's gradient: faster, less exact")
    g.add_argument("--recompute", type=whole, default=10, metavar="S",
                   help="keep the policy's memory every S steps alone, and compute it again "
                   "between; default 10; 0 keeps it at every step: a little faster, more memory")
    g.add_argument("--devices", type=devices, metavar="R",
                   help="replicas: so many GPUs, or logical devices of a machine without any; or "
                   "chosen GPUs, as gpu:0,gpu:2. Default all GPUs, or 1")
    g.add_argument("--held-out", action="store_true",
                   help="measure the meta loss on a tenth of the data, drawn for each unroll, that "
                   "the unroll never trains on (after Metz et al. 2019)")
    g.add_argument("--meta-loss", type=known(tuple(META_LOSSES)), default="log", metavar="HOW",
                   help="log: of log loss; difference: of the loss itself, which may then be zero "
                   "or negative. Default log")
    g = p.add_argument_group("perturbation of the policy while it is trained")
    g.add_argument("--perturbation", type=known(("none", *KINDS)), default="none", metavar="KIND",
                   help="gaussian: noise on the weights; adversarial, pgd, fgsm: weights moved to "
                   "where the loss is higher; input: noise on the gradients it sees; default none")
    g.add_argument("--magnitude", type=weight, nargs="+", metavar="M",
                   help="how much: relative to each weight tensor's size for gaussian and "
                   "adversarial (try 0.001), absolute otherwise; several make a run of each")
    g.add_argument("--absolute", action="store_true", help="gaussian noise of absolute size")
    g.add_argument("--attack-steps", type=count, default=1, metavar="A",
                   help="of adversarial and pgd, each as dear as a meta-gradient; default 1")
    g = p.add_argument_group("run")
    g.add_argument("--seed", type=whole, default=0, metavar="SEED",
                   help="fixes everything random; default 0")
    g.add_argument("--replicates", type=count, default=1, metavar="R",
                   help="run seeds SEED to SEED + R - 1, each in a subdirectory; default 1")
    g.add_argument("--jobs", type=count, metavar="J",
                   help="processes of one thread each, for several runs or for --tune, where there "
                   "is no GPU; default one a core there for --tune, else 1, which uses all cores")
    g.add_argument("--output", metavar="DIR", type=Path,
                   help="run directory; default runs/ and a name such as choice-large that says "
                   "what is trained, or runs/tuning for --tune")
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
    # fmt: on
    return p


def check(options: argparse.Namespace, parser: Parser) -> None:
    """What can be said of a command line before anything else is looked at.

    Args:
        options: Of the command line.
        parser: Theirs, for what they are when they are not given.

    Raises:
        UserError: If its values do not go together.
    """
    where = ("problem", "data", "data_dir", "seed", "jobs", "output", "fresh")
    if options.tune:
        if useless := given_beside(options, parser, (*where, "tune", *_SEARCH)):
            raise UserError(f"--tune trains no policy: no use for {', '.join(useless)}")
    elif useless := given_beside(options, parser, vars(options).keys() - {*_SEARCH}):
        raise UserError(f"Without --tune there is no use for {', '.join(useless)}")
    check_data_flags([options.problem], options)
    if is_private(options.problem):
        raise UserError(
            f"--problem: {options.problem} is trained with DP-SGD, which train.py does not do; "
            "name the same problem without it"
        )
    for name, most in (("replicates", 10_000), ("tune_seeds", 10_000), ("jobs", 1_000)):
        if (value := getattr(options, name) or 1) > most:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} must be at most {most}. Received: {value}")
    most = MOST_SEED - max(options.replicates, options.tune_seeds * options.tune) + 1
    if options.seed > most:
        raise UserError(f"--seed must be at most {most}. Received: {options.seed}")
    given = [f"--{name}" for name in ("strategy", "pool", "policy") if getattr(options, name)]
    if options.recipe and given:
        raise UserError(f"--recipe says what is trained, so {', '.join(given)} cannot be set")


def settings(options: argparse.Namespace, preset: str) -> list[tuple[Path, Settings]]:
    """The runs that a command line asks for, and their directories.

    Args:
        options: From `parser`.
        preset: What `--preset` says or stands for.

    Raises:
        UserError: If the values do not go together.
    """
    choices = {name: value for name, value in vars(options).items() if value is not None}
    choices |= {"preset": preset} | RECIPES.get(options.recipe, {})
    root, runs = output(options), []
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
                runs.append((directory, Settings.of(one)))
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
        name = f"{options.strategy or Settings.strategy}-{options.pool or Settings.pool}"
        name += f"-{policy}" * (policy != Settings.policy)
    if options.perturbation != "none":
        name += f"-{options.perturbation}"
        if options.magnitude and len(options.magnitude) == 1:
            name += f"-{options.magnitude[0]:g}"
    return name + "-smoke" * (options.preset == "smoke")  # the real run is not in its way
