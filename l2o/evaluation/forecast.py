"""How long evaluations will take, and how much of that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from l2o.evaluation.baselines import Candidate
from l2o.evaluation.protocol import Plan
from l2o.rules import Horizon, Layout, warmed_up
from l2o.tasks.batches import rows
from l2o.tasks.gradient import plain_gradient
from l2o.tasks.privacy import privacy_of
from l2o.tasks.task import Task

# Scoring is a forward pass. An optimizer on a problem is compiled once, with the scoring, which
# takes about twice what compiling the gradient alone does.
_FORWARD_SHARE, _COMPILING = 0.3, 2.0
_MOST_SECONDS, _MOST_RUNS = 2.0, 10


class Forecast:
    """Expected seconds of evaluations, mended by how long those took that are behind.

    Args:
        todo: As from `missing`.
        plan: How long they are.
    """

    def __init__(self, todo: Sequence[tuple[Task, int, Candidate]], plan: Plan):
        self._starts: dict[tuple[str, Candidate, int], tuple[float, float]] = {}
        self._costs: dict[tuple[str, Candidate], float] = {}
        self.total = 0.0
        problems: dict[str, tuple[float, float, Layout]] = {}
        policies: dict[str, float] = {}
        for task, repeat, candidate in todo:
            name, steps = task.name, plan.epochs_of(task) * task.steps_per_epoch
            if name not in problems:
                problems[name] = _gradient_seconds(task)
            gradient, compiling, layout = problems[name]
            if candidate.learned and candidate.origin not in policies:
                policies[candidate.origin] = _step_seconds(candidate, layout)
            held_out = sum(task.dataset.sizes[1:])
            scoring = held_out / task.batch_size * gradient * _FORWARD_SHARE
            before = self.total
            if (name, candidate) not in self._costs:
                self.total += _COMPILING * compiling
            self._starts[name, candidate, repeat] = before, self.total
            seconds = gradient + layout.size * policies.get(candidate.origin, 0.0)
            self._costs[name, candidate] = seconds + scoring * (plan.epochs_of(task) + 1) / steps
            self.total += self._costs[name, candidate] * steps
        self._begun = time.monotonic()

    def at(self, task: Task, candidate: Candidate, repeat: int, steps: int) -> tuple[float, float]:
        """Expected seconds of what is behind, and seconds left, `steps` into an evaluation."""
        name = task.name
        before, compiled = self._starts[name, candidate, repeat]
        done = compiled + steps * self._costs[name, candidate] if steps else before
        # The forecast counts as a tenth of the whole that went as expected.
        spent, prior = time.monotonic() - self._begun, 0.1 * self.total
        return done, (self.total - done) * (spent + prior) / (done + prior)


def _gradient_seconds(task: Task) -> tuple[float, float, Layout]:
    """A gradient of the problem, its compiling, and the layout."""
    parameters, carried = task.initial(0)
    batch = tf.nest.map_structure(tf.constant, rows(task.dataset.train, slice(task.batch_size)))
    key = tf.zeros(2, tf.int64)
    rule = privacy_of(task) or plain_gradient
    gradient = tf.function(lambda p: rule(task, p, carried, batch, key).gradient, autograph=False)
    parameters = tf.constant(parameters)
    return *_fastest(lambda: gradient(parameters).numpy()), task.layout


def _step_seconds(candidate: Candidate, layout: Layout) -> float:
    """A step of a policy, a coordinate."""
    rule, weights = warmed_up(candidate.rule, 0), list(candidate.weights)
    vector = tf.constant(np.random.default_rng(0).normal(size=layout.size).astype("float32"))
    state = tf.nest.map_structure(tf.convert_to_tensor, rule.initial_state(layout))
    step = tf.function(
        lambda p, s: rule.update(weights, vector, p, s, layout, Horizon(1e3, 1.0))[0],
        autograph=False,
    )
    return _fastest(lambda: step(vector, state).numpy())[0] / layout.size


def _fastest(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the fastest of some runs, and of a first one that compiles."""
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 2 or (
        len(times) < _MOST_RUNS and time.perf_counter() - begun < times[0] + _MOST_SECONDS
    ):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:]), times[0]
