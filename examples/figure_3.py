"""Draws the paper's Figure 3 for one policy: validation loss by epoch, beside the tuned teachers.

    python examples/figure_3.py choice-large
    python examples/figure_3.py runs/digits --problem digits_cnn --epochs 25

Fits the problem with the policy and the teachers and writes results/figure-3/figure-3.png. Fits
that are there are not run again. `l2o report` draws all the figures there are.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tensorflow as tf

from l2o.commands.problem import named_task, problem_name
from l2o.commands.report import counted
from l2o.commands.terminal import Parser, count, run_command
from l2o.evaluation import (
    Plan,
    ResultsDirectory,
    evaluate,
    get_candidates,
    missing,
    present,
    warmup_notes,
)
from l2o.reports.comparison import summarize
from l2o.reports.figures import drawings
from l2o.reports.plots import png
from l2o.runs.files import write_atomically


def announce(task, candidate, repeat: int, steps: int) -> None:
    """Says which fit begins."""
    if not steps:
        print(f"{task.problem.name} with {candidate.name}, repeat {repeat}", flush=True)


def main() -> int:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("policy", help="a run's or a policy's directory, or a shipped policy")
    parser.add_argument("--problem", type=problem_name, default="mnist_cnn", help="its name")
    parser.add_argument("--epochs", type=count, default=25, help="epochs of each fit")
    parser.add_argument("--repeats", type=count, default=1, help="fits of each optimizer")
    arguments = parser.parse_args()
    if arguments.epochs < 2:
        parser.error(f"--epochs must be at least 2. Received: {arguments.epochs}")
    tf.get_logger().setLevel("ERROR")  # each optimizer is traced anew, which it warns of
    plan = Plan(arguments.repeats, arguments.epochs)
    named = [c for name in (arguments.policy, "oracle") for c in get_candidates(name)]
    candidates = list({(c.name, c.replicate): c for c in named}.values())
    task = named_task(arguments.problem, None, None)
    for note in warmup_notes([task], candidates, plan):
        print(f"Note: {note}")
    with ResultsDirectory(Path("results/figure-3")) as directory:
        todo = missing([task], candidates, plan, directory)
        evaluate(todo, plan, directory, announce)
    cases = summarize(counted(present([task], candidates, plan, directory)))
    # Of the larger problems it is the paper's Figure 8.
    figure, draw = next((d, d.draw) for d in drawings(cases)
                        if d.draw and d.file in ("figure-3", "figure-8"))  # fmt: skip
    path = directory.path / "figure-3.png"
    write_atomically(path, png(draw))
    print(f"{path}: {figure.title}, of {task.name} on {task.dataset.name}")
    return 0


if __name__ == "__main__":
    run_command(main)
