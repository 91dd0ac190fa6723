"""Steps per second of `fit` with AmalgamatedOptimizer(RNNProp), beside Keras' Adam in the same run.

    python benchmarks/optimizer.py                         # the Train CNN
    python benchmarks/optimizer.py --network resnet28
    python benchmarks/optimizer.py --network dense10m --batch 8 --steps 2

Both train the same network on random images, in turns, so that whatever else the machine does hits
both; then each is applied alone, to gradients that are there. Prints a table and one JSON line.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import numpy as np
import tensorflow as tf

import l2o
from benchmarks.measuring import count, parser, report, seconds
from l2o.rules import RNNProp
from problems import networks

NETWORKS = {
    "cnn": ((28, 28, 1), networks.cnn),
    "resnet28": ((32, 32, 3), lambda shape, classes: networks.resnet(shape, classes, 28)),
    "dense10m": ((28, 28, 1), lambda shape, classes: _dense(shape, classes, (2850, 2750))),
}


def _dense(shape, classes: int, widths: tuple[int, ...]) -> keras.Model:
    layers = keras.layers
    hidden = [layers.Dense(width, "relu") for width in widths]
    return keras.Sequential([layers.Input(shape), layers.Flatten(), *hidden, layers.Dense(classes)])


def policy() -> l2o.AmalgamatedOptimizer:
    """RNNProp as it is made; what its weights are makes no difference to the time."""
    rule = RNNProp()
    weights = [np.asarray(w) for w in rule.initial_weights(0)]
    return l2o.AmalgamatedOptimizer(l2o.Policy(rule, weights), warmup_steps=1)


class Runner:
    """A model in training.

    Args:
        arguments: The command line's.
        optimizer: The optimizer.
        steps_per_execution: As for `compile`.
    """

    def __init__(self, arguments, optimizer, steps_per_execution: int):
        shape, build = NETWORKS[arguments.network]
        keras.utils.set_random_seed(0)
        self.model = build(shape, 10)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(
            optimizer,
            loss,
            steps_per_execution=steps_per_execution,
            jit_compile={"auto": "auto", "on": True, "off": False}[arguments.jit],
        )
        generator, examples = np.random.default_rng(0), arguments.batch * arguments.steps
        self._images = generator.random((examples, *shape), "float32")
        self._labels = generator.integers(0, 10, examples)
        self._batch = arguments.batch

    def seconds_per_step(self) -> float:
        fit = partial(self.model.fit, self._images, self._labels, self._batch)
        return seconds(lambda: fit(verbose=0, shuffle=False)) * self._batch / len(self._labels)

    def alone(self) -> Callable[[], float]:
        """What applies the optimizer once to given gradients, and returns the seconds it took."""
        variables = self.model.trainable_variables
        gradients = [tf.random.stateless_normal(v.shape, (0, 1)) for v in variables]
        apply = tf.function(lambda: self.model.optimizer.apply(gradients, variables))
        return lambda: seconds(lambda: (apply(), np.asarray(variables[-1])))


def in_turns(runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """The median of what each returns; the first round, which compiles and warms up, left out."""
    rounds = [{name: run() for name, run in runs.items()} for _ in range(repeats + 1)][1:]
    return {name: statistics.median(each[name] for each in rounds) for name in runs}


def compare(arguments, steps_per_execution: int) -> dict:
    """Medians of both, in turns: milliseconds of a step of `fit`, and of the optimizer alone."""
    runners = {
        "adam": Runner(arguments, keras.optimizers.Adam(), steps_per_execution),
        "policy": Runner(arguments, policy(), steps_per_execution),
    }
    fits = in_turns({k: r.seconds_per_step for k, r in runners.items()}, arguments.repeats)
    alone = in_turns({k: r.alone() for k, r in runners.items()}, arguments.repeats)
    optimizer = runners["policy"].model.optimizer
    parameters = sum(int(np.prod(v.shape)) for v in runners["policy"].model.trainable_variables)
    return {
        "network": arguments.network,
        "parameters": parameters,
        "batch": arguments.batch,
        "steps_per_execution": steps_per_execution,
        "adam_ms": 1e3 * fits["adam"],
        "policy_ms": 1e3 * fits["policy"],
        "adam_alone_ms": 1e3 * alone["adam"],
        "policy_alone_ms": 1e3 * alone["policy"],
        "bytes_per_parameter": sum(v.value.numpy().nbytes for v in optimizer.variables)
        / parameters,
    }


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--network", choices=NETWORKS, default="cnn", help="what is trained")
    command.add_argument("--batch", type=count, default=128, metavar="N", help="examples a step")
    command.add_argument(
        "--steps", type=count, default=100, metavar="S", help="steps a measurement; default 100"
    )
    command.add_argument(
        "--executions",
        type=count,
        nargs="+",
        default=[1, 20],
        metavar="K",
        help="steps_per_execution, one measurement each; default 1 20",
    )
    command.add_argument(
        "--jit", choices=["auto", "on", "off"], default="auto", help="jit_compile, as for compile"
    )
    arguments = command.parse_args()
    results = [compare(arguments, steps) for steps in arguments.executions]
    print(
        "network    parameters  batch  steps/execution  Adam ms  policy ms  ratio  alone: Adam ms  "
        "policy ms  bytes/parameter"
    )
    for r in results:
        print(
            f"{r['network']:9}  {r['parameters']:10,}  {r['batch']:5}  "
            f"{r['steps_per_execution']:15}  {r['adam_ms']:7.2f}  {r['policy_ms']:9.2f}  "
            f"{r['policy_ms'] / r['adam_ms']:5.2f}  {r['adam_alone_ms']:14.2f}  "
            f"{r['policy_alone_ms']:9.2f}  {r['bytes_per_parameter']:15.0f}"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    report("optimizer", results=results, peak_gb=peak, jit=arguments.jit)


if __name__ == "__main__":
    main()
