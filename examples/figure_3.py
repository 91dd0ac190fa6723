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

import l2o
from l2o.commands.terminal import Parser, count, run_command
from l2o.evaluation import distinct
from l2o.reports import drawings, png, summarize
from l2o.runs.files import write_atomically


def main() -> int:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("policy", help="a run's or a policy's directory, or a shipped policy")
    parser.add_argument("--problem", default="mnist_cnn", help="its name")
    parser.add_argument("--epochs", type=count, default=25, help="epochs of each fit")
    parser.add_argument("--repeats", type=count, default=1, help="fits of each optimizer")
    arguments = parser.parse_args()
    if arguments.epochs < 2:
        parser.error(f"--epochs must be at least 2. Received: {arguments.epochs}")
    tf.get_logger().setLevel("ERROR")  # each optimizer is traced anew, which it warns of
    folder = Path("results/figure-3")
    results = l2o.evaluate(
        arguments.problem, (arguments.policy, "oracle"), output=folder,
        repeats=arguments.repeats, epochs=arguments.epochs,
    )  # fmt: skip
    cases = summarize(distinct(results))
    # Of the larger problems it is the paper's Figure 8.
    figure, draw = next((d, d.draw) for d in drawings(cases)
                        if d.draw and d.file in ("figure-3", "figure-8"))  # fmt: skip
    path = folder / "figure-3.png"
    write_atomically(path, png(draw))
    case = next(iter(cases))
    print(f"{path}: {figure.title}, of {case.problem} on {case.used}")
    return 0


if __name__ == "__main__":
    run_command(main)
