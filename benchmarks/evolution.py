"""Inner steps a second of evolution strategies, many small networks at once.

    python benchmarks/evolution.py                 # every problem and rule
    python benchmarks/evolution.py --pairs 8       # of fewer particles

Each problem trains a window of 50 steps at a time, on all cores, as `train.py --estimator es` does
it. What trains: Adam with one weight, its rate, whose arithmetic is the least there is; the general
policy; RNNProp with one layer of two units. Batches are noise of the data's shape. Prints a table
and one JSON line.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import ClassVar

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measuring import count, parser, report

WINDOW = 50


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--pairs", type=count, default=16, metavar="P",
                         help="pairs of particles of each problem; default 16")  # fmt: skip
    options = command.parse_args()
    print(f"{'problem':24} {'weights':>7} {'rule':14} {'compiling':>9} {'steps a second':>14}")
    results = []
    for name, task in tasks().items():
        for rule in rules():
            first, speed = measured(task, rule, options.pairs, options.repeats)
            row = {"problem": name, "weights": task.layout.size, "rule": rule.name,
                   "compiling_s": first, "steps_per_s": speed}  # fmt: skip
            results.append(row)
            print(f"{name:24} {task.layout.size:7,} {rule.name:14} {first:7.1f} s {speed:14,.0f}",
                  flush=True)  # fmt: skip
    report("evolution", pairs=options.pairs, results=results)


def rules() -> list:
    """What trains."""
    from keras import ops

    from l2o.rules import Adam, RNNProp, TensorChoice

    @dataclass(frozen=True)
    class LearnedRate(Adam):
        """Adam whose rate is the policy's one weight."""

        name: ClassVar[str] = "adam, its rate"

        def initial_weights(self, seed):
            return [ops.zeros((1,))]

        def update(self, weights, gradient, parameters, state, layout, horizon=None):
            step, state = super().update([], gradient, parameters, state, layout, horizon)
            return ops.exp(weights[0][0]) * step, state

    return [LearnedRate(1e-3), TensorChoice(), RNNProp(units=2, layers=1)]


def tasks() -> dict:
    """A problem of each kind, by what it is."""
    import numpy as np

    from l2o.problems import Batch, Dataset, Problem, small
    from l2o.tasks.task import Task

    generator = np.random.default_rng(0)

    def task(network, shape: tuple[int, ...], classes: int, batch_size: int) -> Task:
        inputs = generator.integers(0, 256, (4096, *shape)).astype("uint8")
        labels = generator.integers(0, classes, 4096).astype("int32")
        if len(shape) == 1:  # a text, whose next characters are the labels
            inputs = labels = generator.integers(0, classes, (4096, *shape)).astype("int32")
        data = Batch(inputs, labels)
        dataset = Dataset("noise", data, data, data, classes=classes)
        problem = Problem(network, "noise", batch_size=batch_size, name=network.__name__)
        return Task(problem, dataset)

    def batchnorm(shape, classes):
        return small.cnn(shape, classes, norm="batch")

    return {
        "MLP 64-32-10, batch 64": task(small.mlp, (8, 8, 1), 10, 64),
        "transformer 16, batch 8": task(small.transformer, (16,), 65, 8),
        "conv + batch norm, 32": task(batchnorm, (8, 8, 1), 10, 32),
    }


def measured(task, rule, pairs: int, repeats: int) -> tuple[float, float]:
    """Seconds of the first window, and inner steps a second of the later ones."""
    import tensorflow as tf

    from l2o.amalgamation.episodes import Evolution
    from l2o.amalgamation.evolution import EvolutionTraining
    from l2o.amalgamation.meta import initial_state
    from l2o.amalgamation.plan import Place
    from l2o.amalgamation.unroll import Amalgamation

    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    job = Amalgamation(rule, (), "none", task)
    training = EvolutionTraining((job,), Evolution(), WINDOW, pairs, strategy, scale_limit=0.0)
    place = Place((0, 0), 0, 0, 0, 1000, 0)
    state = initial_state(rule.initial_weights(0))
    particles, seconds = training.begin(state.weights, place, []), []
    for number in range(3 * repeats + 1):
        begun = time.perf_counter()
        state, particles, result = training.update(
            state, particles, place._replace(number=number), 0, 0.0
        )
        float(result.meta_loss)
        seconds.append(time.perf_counter() - begun)
    return seconds[0], training.inner_steps() / median(seconds[1:])


if __name__ == "__main__":
    main()
