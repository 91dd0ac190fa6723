"""The two halves of a step as the meta-gradient goes through them: the network's and the policy's.

Both keep only their arguments for the backward pass: at 18,122 coordinates some 7 MB a step in
place of 48. The policy is compiled by XLA; the network is not, as XLA's convolutions are slow on a
CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import tensorflow as tf

from l2o.amalgamation.recompute import compiled, recomputed
from l2o.rules.base import UpdateRule
from l2o.rules.layout import Layout
from l2o.tasks.task import Scaled, Task, loss_and_gradient


class ValueAndGradient(NamedTuple):
    """What a step sees of the network: the loss measured, the gradient [D], the new carried."""

    loss: Any
    gradient: Any
    carried: list


@lru_cache(maxsize=32)
def compiled_update(rule: UpdateRule, layout: Layout) -> Callable:
    """`rule.update` of weights, gradient, parameters and state, compiled; no gates are kept."""

    def update(weights, gradient, parameters, state):
        return rule.update(weights, gradient, parameters, state, layout)

    return compiled(update)


def value_and_gradient(
    optimizee: Task, first_order: bool, place: tuple, start: tuple, known=None
) -> ValueAndGradient:
    """The `ValueAndGradient` at some parameters.

    Args:
        optimizee: The network.
        first_order: Whether the meta-gradient stops at the network's gradient.
        place: The scale [D], the batch to train on, and the batch whose loss is measured if that is
            another, else an empty tuple. No gradient goes there.
        start: Parameters [D], in coordinates divided by the scale, and carried values.
        known: The value, if it was taken before.
    """
    evaluate, (parameters, carried) = _recomputed(optimizee), start
    if not first_order:
        return evaluate(place, parameters, carried, known=known)
    scale, _, judged = place
    resting = tf.stop_gradient(parameters)
    value = evaluate(place, resting, carried, known=known)
    slope = evaluate((scale, judged, ()), resting, carried).gradient if judged else value.gradient
    value, slope = tf.nest.map_structure(tf.stop_gradient, (value, slope))
    # The loss as a plane with its gradient, which is at hand: the network is not run again.
    return value._replace(loss=value.loss + tf.reduce_sum(slope * (parameters - resting)))


@lru_cache(maxsize=32)
def _recomputed(optimizee: Task) -> Callable:
    def differentiate(place, parameters, carried):
        scale, batch, judged = tf.nest.map_structure(tf.stop_gradient, place)
        scaled = Scaled(optimizee, scale)
        loss, gradient, after = loss_and_gradient(scaled, parameters, carried, batch)
        if judged:
            loss, _ = scaled.loss(parameters, carried, judged, training=True)
        return ValueAndGradient(loss, gradient, after)

    return recomputed(differentiate)
