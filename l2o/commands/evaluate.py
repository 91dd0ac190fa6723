"""`l2o evaluate`: how good an optimizer is, on the paper's problems."""

from __future__ import annotations

import argparse
import io
import time
from contextlib import redirect_stdout
from pathlib import Path
from textwrap import fill

import tensorflow as tf

from l2o import pretrained
from l2o.amalgamation.plan import MOST_SEED
from l2o.commands.forecast import Forecast
from l2o.commands.jobs import gpus_for, spread
from l2o.commands.problem import (
    ALL,
    OWN,
    add_data_flags,
    check_data_flags,
    named_task,
    problem_name,
)
from l2o.commands.report import counted
from l2o.commands.terminal import STOPPED, Parser, count, fraction, known, run_command, whole
from l2o.errors import UserError
from l2o.evaluation.baselines import get_candidates, keras_optimizers
from l2o.evaluation.made import MADE, made_with
from l2o.evaluation.protocol import Bench, Plan, evaluate, keep, missing, present, warmup_notes
from l2o.evaluation.results import TABLE, describe
from l2o.evaluation.store import ResultsDirectory
from l2o.optimizer import WEIGHT_DECAY_LIMIT
from l2o.policies.checkpoint import doubts
from l2o.problems import PROBLEMS, Dataset
from l2o.reports.comparison import summary_table
from l2o.rules import TUNED_RATES
from l2o.runs.devices import take_cores
from l2o.runs.lock import check_free
from l2o.runs.progress import ProgressBar, duration
from l2o.tasks.examples import BATCH_SIZE

PRESETS = {"paper": (10, 25), "cpu": (3, 5), "smoke": (1, 1)}  # repeats, epochs
RESULTS = Path("results")
DESCRIPTION = """\
Fits the paper's problems with optimizers and compares them (Huang et al.,
Optimizer Amalgamation, ICLR 2022, Section 5).

  {prog} --problem mnist_dp       the shipped policy, and Adam
  {prog} --optimizer runs/choice-large oracle
  {prog} --problem mine:tumours   your own: docs/amalgamate.md

In each repeat all optimizers start from the same weights and see the same
batches. What is there is not run again: the same command goes on after Ctrl-C."""
ADDED = ("averaging", "weight_decay")  # what a policy can bring and a flag can set
OPTIMIZERS = """\
optimizers:
  choice-large         a shipped policy; choice-large/3 is one of its replicates
  runs/choice-large    the policy of a run, or of all its replicates
  mine=runs/x/policy   a policy directory, under a name of your own
  oracle               the six tuned teachers; reports take the best
  adam, adam@0.01      a teacher at its tuned rate, or at another
  keras:AdamW, keras:Adam@0.001
                       any Keras optimizer, at its default rate or at another
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
                   nargs="+", metavar="NAME", default=["mnist_cnn"],
                   help=f"default mnist_cnn. {ALL}, or some of {', '.join(PROBLEMS)}; or your own "
                   f"as {OWN}, which returns an l2o.Problem")
    g.add_argument("--optimizer", nargs="+", metavar="WHAT",
                   default=["choice-large", "adam"],
                   help="see below; default the shipped policy choice-large, and adam")
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
                   help="paper: 10 repeats of 25 epochs; cpu: 3 of 5; smoke: 1 of 1. Default "
                   "paper where there is a GPU, else cpu")
    g.add_argument("--repeats", type=count, metavar="R",
                   help="evaluations of each optimizer on each problem")
    g.add_argument("--epochs", type=count, metavar="E", help="epochs of each")
    g.add_argument("--seed", type=whole, default=0, metavar="S",
                   help="repeat j has the seed S + j - 1, which fixes initial weights, batches and "
                   "noise; default 0")
    g.add_argument("--jobs", type=count, default=1, metavar="J",
                   help="processes of one thread each that evaluations are spread over; default 1, "
                   "which uses all cores")
    g.add_argument("--list", action="store_true", help="name all problems and optimizers")
    add_data_flags(p)
    g = p.add_argument_group("results")
    g.add_argument("--output", type=Path, metavar="DIR",
                   help=f"where results.csv and steps/ are kept; default {RESULTS}/PRESET")
    # fmt: on
    return p


def main(arguments: list[str] | None = None, prog: str = "python evaluate.py") -> None:
    """Runs the command; exits with status 0, 2 for a user's error, 130 when stopped."""
    run_command(lambda: _main(parser(prog).parse_args(arguments)))


def _main(options: argparse.Namespace) -> int:
    tf.get_logger().setLevel("ERROR")
    return _list() if options.list else _evaluate(options)


def _evaluate(options: argparse.Namespace) -> int:
    take_cores()
    gpus = gpus_for(options.jobs)
    preset = options.preset or ("paper" if gpus else "cpu")
    reason = "" if options.preset else f", because there is {'a' if gpus else 'no'} GPU"
    repeats, epochs = PRESETS[preset]
    plan = Plan(options.repeats or repeats, options.epochs or epochs, options.seed)
    for name, value, most in (("repeats", plan.repeats, 10_000), ("jobs", options.jobs, 1_000)):
        if value > most:
            raise UserError(f"--{name} must be at most {most}. Received: {value}")
    if plan.seed > (most := MOST_SEED - plan.repeats + 1):
        raise UserError(f"--seed must be at most {most}. Received: {plan.seed}")
    candidates, output = _candidates(options), options.output or RESULTS / preset
    check_free(output, TABLE)
    tasks = _tasks(options)
    with ResultsDirectory(output, made_with(task.dataset for task in tasks)) as directory:
        print(f"Preset: {preset}{reason}")
        return _fill(directory, options, plan, tasks, candidates, len(gpus))


def _fill(directory, options: argparse.Namespace, plan, tasks, candidates, gpus: int) -> int:
    """Runs what the directory lacks, and prints the table."""
    tf.config.experimental.enable_op_determinism()
    todo = missing(tasks, candidates, plan, directory)
    wanted = len(tasks) * len(candidates) * plan.repeats
    print(f"Repeats: {plan.repeats}, epochs: {plan.epochs}")
    print(f"Optimizers: {', '.join(_named(candidates))}")
    print(f"Results: {directory.table}, {wanted - len(todo)} of {wanted} "
          "evaluations are there", flush=True)  # fmt: skip
    if directory.results and not (directory.path / MADE).exists():
        print(
            f"Note: the results in {directory.path} do not say of what release and data they are; "
            "they are taken for this one's"
        )
    for name in dict.fromkeys(c.name for c in candidates if _replaces(c, directory)):
        print(
            f"Note: there are also results of another {name}, from before it changed; they stay, "
            "and reports tell the two apart"
        )
    for name, doubt in dict.fromkeys(
        (c.name, doubt) for c in candidates for doubt in doubts(c.card)
    ):
        print(f"Note: {name} was trained {doubt}")
    for name, what, own in dict.fromkeys(
        (c.bare_name, what, getattr(c, what))
        for c in candidates
        for what in ADDED
        if getattr(c, what) and getattr(options, what) is None
    ):
        words = what.replace("_", " ")
        flag = f"--{what.replace('_', '-')}"
        print(f"Note: {name} brings {words} of {own:g}; {flag} gives all the same, 0 none")
    if (options.weight_decay or 0) > WEIGHT_DECAY_LIMIT:
        print(
            f"Note: weight decay of {options.weight_decay:g} a step is a lot: Keras' optimizers "
            "multiply theirs by the rate, here that is 1"
        )
    for note in warmup_notes(tasks, candidates, plan):
        print(f"Note: {note}")
    if todo:
        bar = ProgressBar("evaluating")
        try:
            if options.jobs > 1:
                _spread(options, todo, plan, directory, bar)
            else:
                _in_turn(todo, plan, directory, bar, f"{gpus} GPU" if gpus else "the CPU")
        except KeyboardInterrupt:
            bar.close()
            print(f"Stopped. What was over is kept in {directory.path}; the same command goes on.")
            return STOPPED
        bar.close()
    print(f"\n{summary_table(counted(present(tasks, candidates, plan, directory)))}")
    print("Means over n evaluations. Test accuracy is at the epoch chosen on validation.")
    if not all(task.problem.private for task in tasks):
        print("Log train is of the last epoch's mean loss, each batch's before its step.")
    if any(task.problem.private for task in tasks):
        print("ε is what privacy was spent.")
    print(f"Figures and a page: python -m l2o report {directory.path}")
    return 0


def _named(candidates) -> list[str]:
    """The optimizers, and which replicates of each stand together, but for the first alone."""
    numbers: dict[str, list[int]] = {}
    for candidate in candidates:
        numbers.setdefault(candidate.name, []).append(candidate.replicate)
    return [
        name if found == [1] else
        f"{name} (replicate{'s' * (len(found) > 1)} {', '.join(map(str, found))})"
        for name, found in numbers.items()
    ]  # fmt: skip


def _replaces(candidate, directory: ResultsDirectory) -> bool:
    """Whether there are results of another optimizer by that name and number."""
    return any(
        (r.optimizer, r.replicate) == (candidate.name, candidate.replicate)
        and r.origin != candidate.origin
        for r in directory.results
    )


def _in_turn(todo, plan, directory, bar: ProgressBar, device: str) -> None:
    """Evaluates in this process, and says before how long that may take."""
    forecast = Forecast(todo, plan)
    print(f"Expected time: about {duration(forecast.total)} on {device} as it is now", flush=True)

    def callback(task, candidate, repeat, steps) -> None:
        done, left = forecast.at(task, candidate, repeat, steps)
        text = f"{task.problem.name}, {candidate.name}, repeat {repeat}: step {steps}"
        bar.show(done, forecast.total, f"{text}, {duration(left)} left")

    evaluate(todo, plan, directory, callback)


def _spread(options: argparse.Namespace, todo, plan, directory, bar: ProgressBar) -> None:
    """Evaluates in several processes; what they find is kept by this one."""
    keep(todo, directory)
    keys = [(plan.key(task, candidate, repeat),) for task, repeat, candidate in todo]
    results = spread(_run_one, keys, options.jobs, _start_worker, (options, plan))
    begun = time.monotonic()
    for done, result in enumerate(results, start=1):
        directory.add(*result)
        key, left = result[0], (time.monotonic() - begun) / done * (len(keys) - done)
        text = f"{describe(key)} is over, {duration(left)} left"
        bar.show(done, len(keys), text)


def _start_worker(options: argparse.Namespace, plan: Plan) -> tuple:
    """What a process of --jobs holds."""
    with redirect_stdout(io.StringIO()):
        return Bench(plan), _tasks(options), _candidates(options)


def _run_one(held: tuple, key):
    bench, tasks, candidates = held
    for task in tasks:
        for candidate in candidates:
            if bench.plan.key(task, candidate, key.repeat) == key:
                return bench.run(task, key.repeat, candidate)
    raise UserError(f"{key.problem} or {key.optimizer} has changed since the evaluation began")


def _candidates(options: argparse.Namespace) -> list:
    words = options.optimizer
    given = options.averaging, options.weight_decay, options.ema
    candidates = [c.using(*given) for word in words for c in get_candidates(word)]
    different = {}
    for c in candidates:
        same = different.setdefault((c.name, c.replicate), c)
        together = [d.source for d in different.values() if d.name == c.name]
        if same.origin != c.origin or (same is c and set(together) != {c.source}):
            raise UserError(
                f"Two different optimizers are called {c.name}; name one yourself, as in "
                f"--optimizer other=DIR. Received: {' '.join(words)}"
            )
    return list(different.values())


def _tasks(options: argparse.Namespace) -> list:
    words = dict.fromkeys(options.problem)
    names = [n for word in words for n in (PROBLEMS if word == ALL else [word])]
    names = list(dict.fromkeys(names))
    check_data_flags(names, options)
    tf.keras.utils.set_random_seed(options.seed)  # data of the user's own may be drawn
    loaded: dict[str, Dataset] = {}
    return [named_task(n, options.data, options.data_dir, loaded) for n in names]


def _list() -> int:
    print("Problems:")
    for problem in PROBLEMS.values():
        private = ", DP-SGD" if problem.private else ""
        print(
            f"  {problem.name:20} {problem.data}, batch {problem.batch_size or BATCH_SIZE}{private}"
        )
    rates = ", ".join(f"{name} ({rate:g})" for name, rate in TUNED_RATES.items())
    for line in (
        f"Shipped policies: {', '.join(pretrained()) or 'none in this version'}",
        f"Teachers, with their tuned rates: {rates}; oracle stands for all six",
        f"Keras: {', '.join(f'keras:{name}' for name in keras_optimizers())}",
    ):
        print(fill(line, 80, subsequent_indent="  ", break_on_hyphens=False))
    return 0
