"""`l2o evaluate`: how good an optimizer is, on the paper's problems."""

from __future__ import annotations

import argparse
from pathlib import Path
from textwrap import fill

import tensorflow as tf

from l2o import pretrained
from l2o.amalgamation.plan import MOST_SEED
from l2o.commands.flags import (
    ALL,
    add_data_flags,
    add_scheduler_flag,
    check_data_flags,
    check_scheduler,
    in_float32,
    is_private,
    problem_name,
)
from l2o.commands.report import counted
from l2o.commands.terminal import STOPPED, Parser, count, fraction, known, run_command, whole
from l2o.errors import UserError
from l2o.evaluation.baselines import DEFAULTS, MODERN_BASELINES, keras_optimizers
from l2o.evaluation.evaluations import evaluate
from l2o.evaluation.search import TRIALS
from l2o.problems import PROBLEMS
from l2o.problems.catalog import ALLOWED, SUITES
from l2o.reports.text import summary_table
from l2o.rules import TUNED_RATES
from l2o.runs.jobs import gpus_for
from l2o.tasks.examples import BATCH_SIZE

PRESETS = {"paper": (10, 25), "cpu": (3, None), "smoke": (1, 1)}  # repeats, epochs
RESULTS = Path("results")
_ALL = (*SUITES["paper"], *SUITES["modern"])
DESCRIPTION = """\
Fits problems with optimizers and compares them.

  {prog} --problem mnist_dp       the shipped policy, Adam and AdamW
  {prog} --suite modern           problems, tuned baselines of today
  {prog} --problem mine:tumours   your own: docs/amalgamate.md

In each repeat all optimizers start from the same weights and see the same
batches. What is there is not run again: the same command goes on after Ctrl-C."""
OPTIMIZERS = """\
optimizers:
  choice-large         a shipped policy; choice-large/3 is one of its replicates
  runs/choice-large    the policy of a run, or of all its replicates
  mine=runs/x/policy   a policy directory, under a name of your own
  oracle               the six tuned teachers; reports take the best
  adam, adam@0.01      a teacher at its tuned rate, or at another
  keras:Adam+constant, keras:AdamW@0.003+cosine+decay0.1
                       a Keras optimizer: rate, schedule (constant, linear or
                       cosine, after a rise over 5%), weight decay
  keras:Adam, keras:Adam@0.001
                       the same after the paper's 100 steps of SGD, as teachers
  tuned:AdamW, tuned:Lion, tuned:Muon
                       the best of --tune trials of rate, decay and schedule
"""


def parser(prog: str = "l2o evaluate") -> Parser:
    """The command line.

    Args:
        prog: How the command was called.
    """
    # fmt: off
    p = Parser(prog, DESCRIPTION, OPTIMIZERS)
    g = p.add_argument_group("what is evaluated")
    g.add_argument("--problem", type=lambda text: text if text == ALL else problem_name(text),
                   nargs="+", metavar="NAME",
                   help=f"default mnist_cnn. {ALL}, or some of {ALLOWED}, which returns an "
                   "l2o.Problem")
    g.add_argument("--suite", type=known(tuple(SUITES)), metavar="NAME",
                   help=f"problems together: {', '.join(SUITES)}")
    g.add_argument("--optimizer", nargs="+", metavar="WHAT",
                   help=f"see below; default {', '.join(DEFAULTS)}, and with --suite modern "
                   f"{', '.join(MODERN_BASELINES[2:])}")
    g.add_argument("--tune", type=count, default=TRIALS, metavar="K",
                   help=f"trials of each search on each problem; default {TRIALS}")
    g.add_argument("--averaging", type=fraction, metavar="S",
                   help="keep all networks at 1 - S times where their optimizer has led and S "
                   "times the moving average of that; optimizers are then called adam+avg0.8 and "
                   "so on, and are no teachers any more. Keras' own have none. In "
                   "AmalgamatedOptimizer that is averaging=S. Default a policy's own, and 0 for "
                   "others")
    g.add_argument("--weight-decay", type=fraction, metavar="W",
                   help="subtract W times the parameters with each step of all optimizers, which "
                   "are then called adam+wd0.0003 and so on, and are no teachers any more; beyond "
                   "what a Keras optimizer has by itself. In AmalgamatedOptimizer that is "
                   "weight_decay=W; in keras.optimizers.AdamW, W divided by the rate. Default a "
                   "policy's own, and 0 for others")
    g.add_argument("--ema", type=fraction, metavar="M",
                   help="score all optimizers at the exponential moving average of their "
                   "parameters, of momentum M, as Keras' use_ema and SwapEMAWeights do; they are "
                   "then called adam+ema0.995 and so on. Default a policy's own, and 0 for others: "
                   "the parameters as they are")
    g.add_argument("--preset", type=known(tuple(PRESETS)), metavar="NAME",
                   help="paper: 10 repeats of 25 epochs; cpu: 3 of 5, or of as many as a problem "
                   "of today has; smoke: 1 of 1. Default "
                   "paper where there is a GPU, else cpu")
    g.add_argument("--repeats", type=count, metavar="R",
                   help="evaluations of each optimizer on each problem")
    g.add_argument("--epochs", type=count, metavar="E", help="epochs of each")
    g.add_argument("--seed", type=whole, default=0, metavar="S",
                   help="repeat j has the seed S + j - 1, which fixes initial weights, batches and "
                   "noise; default 0")
    g.add_argument("--jobs", type=count, metavar="J",
                   help="processes of one thread each that evaluations are spread over; default 1, "
                   "which uses all cores")
    add_scheduler_flag(g)
    g.add_argument("--list", action="store_true", help="name all problems and optimizers")
    add_data_flags(p)
    g = p.add_argument_group("results")
    g.add_argument("--output", type=Path, metavar="DIR",
                   help=f"where results.csv and steps/ are kept; default {RESULTS}/PRESET or SUITE")
    # fmt: on
    return p


def main(arguments: list[str] | None = None, prog: str = "python evaluate.py") -> None:
    """Runs the command; exits with status 0, 2 for a user's error, 130 when stopped."""
    run_command(lambda: _main(parser(prog).parse_args(arguments)))


def _main(options: argparse.Namespace) -> int:
    tf.get_logger().setLevel("ERROR")
    return _list() if options.list else _evaluate(options)


def _evaluate(options: argparse.Namespace) -> int:
    check_scheduler(options)
    gpus = gpus_for(options.jobs or 1)
    preset = options.preset or ("paper" if gpus else "cpu")
    reason = "" if options.preset else f", because there is {'a' if gpus else 'no'} GPU"
    repeats, epochs = PRESETS[preset]
    repeats, epochs = options.repeats or repeats, options.epochs or epochs
    for name, value, most in (("repeats", repeats, 10_000), ("jobs", options.jobs or 1, 1_000)):
        if value > most:
            raise UserError(f"--{name} must be at most {most}. Received: {value}")
    if options.seed > (most := MOST_SEED - repeats + 1):
        raise UserError(f"--seed must be at most {most}. Received: {options.seed}")
    if options.suite and options.problem:
        raise UserError("--suite names problems, so --problem cannot be given too")
    words = options.problem or ([] if options.suite else ["mnist_cnn"])
    problems = [n for word in words for n in (_ALL if word == ALL else [word])]
    problems += SUITES[options.suite] if options.suite else ()
    optimizers = options.optimizer or (MODERN_BASELINES if options.suite == "modern" else DEFAULTS)
    check_data_flags(problems, options)
    in_float32()
    output = options.output or RESULTS / (options.suite or preset)
    print(f"Preset: {preset}{reason}", flush=True)
    try:
        results = evaluate(
            problems, optimizers, repeats=repeats, epochs=epochs, seed=options.seed,
            output=output, averaging=options.averaging, weight_decay=options.weight_decay,
            ema=options.ema, data=options.data or "auto", data_dir=options.data_dir,
            tune=options.tune, jobs=options.jobs or 1, scheduler=options.scheduler,
        )  # fmt: skip
    except KeyboardInterrupt:
        print(f"Stopped. What was over is kept in {output}; the same command goes on.")
        return STOPPED
    print(f"\n{summary_table(counted(results))}")
    print("Means over n evaluations. Test accuracy is at the epoch chosen on validation.")
    print("Seconds are of one fit: by the clock (wall), and of the processor (CPU).")
    private = {name for name in problems if is_private(name)}
    if private != set(problems):
        print("Log train is of the last epoch's mean loss, each batch's before its step.")
    if private:
        print("ε is what privacy was spent.")
    print(f"Figures and a page: python -m l2o report {output}")
    return 0


def _list() -> int:
    for suite, names in SUITES.items():
        print(f"Problems of the suite {suite}:")
        for problem in map(PROBLEMS.__getitem__, names):
            private = ", DP-SGD" if problem.private else ""
            batch_size = problem.batch_size or BATCH_SIZE
            print(f"  {problem.name:34} {problem.data}, batch {batch_size}{private}")
    rates = ", ".join(f"{name} ({rate:g})" for name, rate in TUNED_RATES.items())
    for line in (
        f"Shipped policies: {', '.join(pretrained()) or 'none in this version'}",
        f"Teachers, with their tuned rates: {rates}; oracle stands for all six",
        f"Keras: {', '.join(f'keras:{name}' for name in keras_optimizers())}",
    ):
        print(fill(line, 80, subsequent_indent="  ", break_on_hyphens=False))
    return 0
