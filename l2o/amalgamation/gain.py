"""The loss that a problem begins with, and how much there is to gain on it.

Where there are several problems, each one's meta loss is divided by that: an autoencoder's falls by
log 8 where a classifier's falls by log 4, and would count for more in a meta-gradient of both.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from l2o.amalgamation.recompute import scan
from l2o.amalgamation.unroll import Runner, choose, inner_step
from l2o.rules import Adam, Scheduled, cosine
from l2o.tasks.batches import batches
from l2o.tasks.task import Task

STEPS, RATE = 500, 3e-3  # of the fit that is the measure
LOOKS = 20  # batches that the loss at the start is the mean of
LEAST = 0.05  # of the measured loss at the start, in case that fit gains nothing


def attainable(task: Task, measured: Callable, steps: int) -> tuple[float, float]:
    """The loss before a fit, and what Adam on a cosine schedule gains on it, as it is measured.

    Args:
        task: The problem.
        measured: What becomes of a loss in the meta loss.
        steps: Of the fit, 500 at most.
    """
    steps = min(steps, STEPS)
    rule = Scheduled(Adam(RATE), cosine(0.05, steps))
    parameters, carried = task.initial(0)
    runner = Runner(parameters, carried, rule.initial_state(task.layout))
    runner = tf.nest.map_structure(tf.convert_to_tensor, runner)
    drawn = batches(task.dataset.train, [0], task.batch_size, 0, LOOKS + steps)
    entries = drawn, np.arange(LOOKS + steps) >= LOOKS

    @tf.function(autograph=False)
    def losses(runner, entries):
        def step(runner, given):
            batch, moving = given
            seen, after = inner_step(task, rule, [], runner, batch)
            return choose(moving, after, runner), seen.loss

        return scan(step, runner, entries, like=runner.parameters)[1]

    found = losses(runner, tf.nest.map_structure(tf.convert_to_tensor, entries))
    before, after = (tf.reduce_mean(x) for x in (found[:LOOKS], found[-max(steps // 5, 1) :]))
    gained = float(measured(before) - measured(after))
    return float(before), max(gained, LEAST * abs(float(measured(before))), 1e-3)
