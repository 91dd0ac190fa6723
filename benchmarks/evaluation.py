"""Steps a second of the evaluation loop, beside `model.fit` and plain gradients of the same run.

    python benchmarks/evaluation.py [--repeats R] [--steps S]

The Train CNN at batch 128 on noise of MNIST's shape, which costs what MNIST costs. The cases take
turns, so that other load on the machine hits all of them. Prints a table and one JSON line.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent.parent))

import keras
import numpy as np
import tensorflow as tf

from benchmarks.measuring import CLASSES, SHAPE, count, parser, report, seconds, traced_gradient
from l2o.evaluation import Fit, get_candidates
from l2o.problems import Batch, Problem, networks
from l2o.rules import Choice, RNNProp, UpdateRule, core, get_pool
from l2o.tasks.gradient import plain_gradient
from l2o.tasks.privacy import DPSGD
from l2o.tasks.task import Task

BATCH = 128


def build() -> keras.Model:
    """The Train network."""
    return networks.cnn(SHAPE, CLASSES)


def cases(steps: int) -> dict[str, Callable[[], float]]:
    """Each takes so many steps, the first time compiles before, and returns seconds a step."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (steps * BATCH, *SHAPE)).astype("uint8")
    labels = generator.integers(0, CLASSES, steps * BATCH).astype("int32")
    data = Batch(tf.constant(images), tf.constant(labels))
    few = Batch(data.inputs[:BATCH], data.labels[:BATCH])
    task = Task(Problem(build))

    def gradients() -> Callable[[], float]:
        plain, parameters = traced_gradient()
        return lambda: (
            seconds(lambda: [plain(parameters) for _ in range(steps)][-1].numpy()) / steps
        )

    def loop(rule: UpdateRule, gradient=plain_gradient) -> Callable[[], float]:
        weights = rule.initial_weights(0)
        fit = Fit(task, rule, weights, data, few, BATCH, gradient=gradient)
        return lambda: fit.run(0, 1).epochs[-1].seconds / steps

    def keras_fit(jit: str | bool) -> Callable[[], float]:
        model, inputs = build(), images.astype("float32") / 255
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, metrics=["accuracy"], jit_compile=jit)
        fit = partial(model.fit, inputs, labels, BATCH, epochs=1, verbose=0)
        return lambda: seconds(fit) / steps

    adam, keras_adam = (core(get_candidates(name)[0].rule) for name in ("adam", "keras:Adam"))
    return {
        "plain gradient": gradients(),
        "model.fit, Adam": keras_fit("auto"),
        "model.fit, Adam, no XLA": keras_fit(False),
        "loop, keras:Adam": loop(keras_adam),
        "loop, adam": loop(adam),
        "loop, RNNProp": loop(RNNProp()),
        "loop, Choice large": loop(Choice(get_pool("large"))),
        "private loop, adam": loop(adam, DPSGD()),
        "private loop, RNNProp": loop(RNNProp(), DPSGD()),
    }


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--steps", type=count, default=50, metavar="S",
                         help="of a case's turn; default 50")  # fmt: skip
    options = command.parse_args()
    tf.get_logger().setLevel("ERROR")
    tf.keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    runs = cases(options.steps)
    for run in runs.values():
        run()
    rounds = [{name: run() for name, run in runs.items()} for _ in range(options.repeats)]

    def ratio(name: str, to: str) -> float:
        return statistics.median(each[name] / each[to] for each in rounds)

    print(f"{'':24} {'step':>9} {'steps/s':>8} {'in plain gradients':>19}")
    results = []
    for name in runs:
        median = statistics.median(each[name] for each in rounds)
        results.append(
            {"case": name, "step_ms": 1e3 * median, "step_pg": ratio(name, "plain gradient")}
        )
        print(f"{name:24} {1e3 * median:6.1f} ms {1 / median:8.1f} {results[-1]['step_pg']:19.2f}")
    shares = {
        "loop_to_fit": ratio("model.fit, Adam", "loop, keras:Adam"),
        "loop_to_fit_no_xla": ratio("model.fit, Adam, no XLA", "loop, keras:Adam"),
        "private_to_plain": ratio("loop, adam", "private loop, adam"),
    }
    print(f"steps a second, the loop's to model.fit's: {shares['loop_to_fit']:.0%}; without XLA "
          f"{shares['loop_to_fit_no_xla']:.0%}")  # fmt: skip
    print(f"steps a second, private to plain: {shares['private_to_plain']:.0%}")
    report("evaluation", repeats=options.repeats, steps=options.steps, results=results, **shares)


if __name__ == "__main__":
    main()
