"""How long evaluations will take, and how much of that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from l2o.amalgamation.optimizee import Batch, KerasOptimizee
from l2o.evaluation.contenders import Contender
from l2o.evaluation.fit import plain_gradient
from l2o.evaluation.run import Plan, Task

# Measuring is a forward pass; tracing is paid once by an optimizer on a problem.
_FORWARD_SHARE, _TRACING_SECONDS = 0.3, 3.0
_MOST_SECONDS, _MOST_RUNS = 2.0, 10


class Forecast:
    """Expected seconds of evaluations, mended by how long those took that are behind.

    Args:
        todo: As from `missing`.
        plan: How long they are.
    """

    def __init__(self, todo: Sequence[tuple[Task, int, Contender]], plan: Plan):
        self._begun = time.monotonic()
        self._starts, self._costs, self.total = {}, {}, 0.0
        gradients, layouts, steps = {}, {}, {}
        for task, repeat, contender in todo:
            name = task.problem.name
            if name not in gradients:
                gradients[name], layouts[name] = _gradient_seconds(task)
            if contender.learned and contender.name not in steps:
                steps[contender.name] = _step_seconds(contender, layouts[name])
            size = layouts[name].size * steps.get(contender.name, 0.0)
            held_out = len(task.dataset.validation) + len(task.dataset.test)
            scoring = held_out / task.problem.batch_size * gradients[name] * _FORWARD_SHARE
            cost = (gradients[name] + size) * plan.epochs * task.steps_per_epoch
            cost += scoring * (plan.epochs + 1)
            first = (name, contender) not in self._costs
            self._costs[name, contender] = cost / (plan.epochs * task.steps_per_epoch)
            self._starts[name, contender, repeat] = self.total
            self.total += cost + first * _TRACING_SECONDS
        self._begun = time.monotonic()

    def at(self, task: Task, contender: Contender, repeat: int, steps: int) -> tuple[float, float]:
        """Expected seconds of what is behind, and seconds left, `steps` into an evaluation."""
        name = task.problem.name
        done = self._starts[name, contender, repeat] + steps * self._costs[name, contender]
        spent = time.monotonic() - self._begun
        speed = spent / done if done > 0 and spent > 10 else 1.0
        return done, (self.total - done) * speed


def _gradient_seconds(task: Task) -> tuple[float, object]:
    """A gradient of the problem, and its layout."""
    optimizee = KerasOptimizee(lambda: task.problem.build(task.dataset))
    parameters, carried = optimizee.initial(0)
    count = task.problem.batch_size
    batch = Batch(*map(tf.constant, (task.dataset.train.images[:count],
                                     task.dataset.train.labels[:count])))  # fmt: skip
    key = tf.zeros(2, tf.int64)
    rule = task.privacy or plain_gradient
    gradient = tf.function(lambda p: rule(optimizee, p, carried, batch, key).gradient)
    parameters = tf.constant(parameters)
    return _fastest(lambda: gradient(parameters).numpy()), optimizee.layout


def _step_seconds(contender: Contender, layout) -> float:
    """A step of a policy, a coordinate."""
    stepper = contender.stepper()
    vector = tf.constant(np.random.default_rng(0).normal(size=layout.size).astype("float32"))
    state = tf.nest.map_structure(tf.convert_to_tensor, stepper.initial_state(vector, layout))
    step = tf.function(lambda p, s: stepper.step(p, vector, s, layout)[0])
    return _fastest(lambda: step(vector, state).numpy()) / layout.size


def _fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs, after a first one that compiles."""
    run()
    times, begun = [], time.perf_counter()
    while len(times) < _MOST_RUNS and (not times or time.perf_counter() - begun < _MOST_SECONDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
