"""Steps a second of the evaluation loop, beside `model.fit` and plain gradients of the same run.

    python benchmarks/evaluation.py [--rounds R]

The Train CNN at batch 128 on noise of MNIST's shape, which costs what MNIST costs. The cases take
turns, so that other load on the machine hits all of them. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent.parent))

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from l2o.amalgamation.optimizee import Batch, KerasOptimizee  # noqa: E402
from l2o.evaluation.contenders import get_contenders  # noqa: E402
from l2o.evaluation.fit import Fit, Warmup, plain_gradient  # noqa: E402
from l2o.evaluation.privacy import DPSGD  # noqa: E402
from l2o.evaluation.steppers import RuleStepper, Stepper  # noqa: E402
from l2o.rules import Choice, RNNProp, get_pool  # noqa: E402
from problems import networks  # noqa: E402

BATCH, STEPS, SHAPE, CLASSES = 128, 50, (28, 28, 1), 10


def build() -> keras.Model:
    """The Train network."""
    return networks.cnn(SHAPE, CLASSES)


def cases() -> dict[str, Callable[[], float]]:
    """Each takes `STEPS` steps, the first time compiles before, and returns seconds a step."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (STEPS * BATCH, *SHAPE)).astype("uint8")
    labels = generator.integers(0, CLASSES, STEPS * BATCH).astype("int32")
    data = Batch(tf.constant(images), tf.constant(labels))
    few = Batch(data.inputs[:BATCH], data.labels[:BATCH])
    optimizee = KerasOptimizee(build)

    def gradients() -> Callable[[], float]:
        parameters, carried = optimizee.initial(0)
        key = tf.zeros(2, tf.int64)
        plain = tf.function(lambda p: plain_gradient(optimizee, p, carried, few, key).gradient)
        parameters = tf.constant(parameters)
        return lambda: _seconds(lambda: [plain(parameters) for _ in range(STEPS)][-1].numpy())

    def loop(stepper: Stepper, gradient=plain_gradient) -> Callable[[], float]:
        fit = Fit(optimizee, stepper, data, few, BATCH, warmup=Warmup(steps=0), gradient=gradient)
        return lambda: fit.run(0, 1).epochs[-1].seconds / STEPS

    def keras_fit(jit: str | bool) -> Callable[[], float]:
        model, inputs = build(), images.astype("float32") / 255
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, metrics=["accuracy"], jit_compile=jit)
        return lambda: _seconds(lambda: model.fit(inputs, labels, BATCH, epochs=1, verbose=0))

    def policy(rule) -> Stepper:
        return RuleStepper(rule, rule.initial_weights(0))

    def adam() -> Stepper:
        return get_contenders("adam")[0].stepper()

    return {
        "plain gradient": gradients(),
        "model.fit, Adam": keras_fit("auto"),
        "model.fit, Adam, no XLA": keras_fit(False),
        "loop, keras:Adam": loop(get_contenders("keras:Adam")[0].stepper()),
        "loop, adam": loop(adam()),
        "loop, RNNProp": loop(policy(RNNProp())),
        "loop, Choice large": loop(policy(Choice(get_pool("large")))),
        "private loop, adam": loop(adam(), DPSGD()),
        "private loop, RNNProp": loop(policy(RNNProp()), DPSGD()),
    }


def _seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return (time.perf_counter() - begun) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, metavar="R", help="default 7")
    rounds = parser.parse_args().rounds
    tf.get_logger().setLevel("ERROR")
    tf.keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    runs = cases()
    for run in runs.values():
        run()
    seconds = [{name: run() for name, run in runs.items()} for _ in range(rounds)]

    def ratio(name: str, to: str) -> float:
        return statistics.median(each[name] / each[to] for each in seconds)

    print(f"{'':24} {'step':>9} {'steps/s':>8} {'in plain gradients':>19}")
    results = []
    for name in runs:
        median = statistics.median(each[name] for each in seconds)
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
    machine = {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
    print(json.dumps({"machine": machine, "rounds": rounds, "results": results} | shares))


if __name__ == "__main__":
    main()
