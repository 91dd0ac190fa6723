"""How much there is to gain on a problem: what its meta loss is divided by where there are several.

The meta loss of an autoencoder falls by log 8 where a classifier's falls by log 4; without this the
one would count for more than the other in a meta-gradient of both.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from l2o.amalgamation.recompute import scan
from l2o.amalgamation.unroll import Runner, inner_step
from l2o.rules import Adam, Scheduled, cosine
from l2o.tasks.batches import batches
from l2o.tasks.task import Task

STEPS, RATE = 500, 3e-3  # of the fit that is the measure
LEAST = 0.05  # of the measured loss at the start, in case that fit gains nothing


def attainable(task: Task, measured: Callable, steps: int) -> float:
    """What Adam on a cosine schedule gains in `steps` steps, or in 500 if that is fewer.

    Args:
        task: The problem.
        measured: What becomes of a loss in the meta loss.
        steps: Of the longest unroll.
    """
    steps = min(steps, STEPS)
    rule = Scheduled(Adam(RATE), cosine(0.05, steps))
    parameters, carried = task.initial(0)
    runner = Runner(parameters, carried, rule.initial_state(task.layout))
    runner = tf.nest.map_structure(tf.convert_to_tensor, runner)
    drawn = batches(task.dataset.train, [0], task.batch_size, 0, steps)

    @tf.function(autograph=False)
    def losses(runner, drawn):
        def step(runner, batch):
            seen, runner = inner_step(task, rule, [], runner, batch)
            return runner, seen.loss

        return scan(step, runner, drawn, like=runner.parameters)[1]

    found = losses(runner, tf.nest.map_structure(tf.convert_to_tensor, drawn))
    first, last = (
        float(measured(tf.reduce_mean(part))) for part in (found[:1], found[-steps // 5 :])
    )
    gained = first - last
    return gained if gained > LEAST * abs(first) else max(LEAST * abs(first), 1e-3)
