"""Keras' optimizers as update rules, so that whatever is compared is fitted by one loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from l2o.rules import Layout, Schedule, State, UpdateRule


class KerasRule(UpdateRule):
    """Any Keras optimizer, whose variables are set before each step and read after it.

    Its state is those variables. What they hold at the start, constants or copies of the
    parameters, is set at count 0.

    Args:
        build: Makes the optimizer.
        schedule: What its learning rate is multiplied by, step by step; None for a constant.
    """

    _build: Callable[[], keras.optimizers.Optimizer]
    _schedule: Schedule | None
    _made: Callable[[Layout], tuple[Any, list, list]]
    _layouts: list[Layout]  # the last one is the network's

    def __init__(
        self,
        build: Callable[[], keras.optimizers.Optimizer],
        schedule: Schedule | None = None,
    ):
        object.__setattr__(self, "_build", build)
        object.__setattr__(self, "_schedule", schedule)
        object.__setattr__(self, "_made", lru_cache(maxsize=1)(self._make))
        object.__setattr__(self, "_layouts", [])

    __eq__, __hash__ = object.__eq__, object.__hash__

    @property
    def needs_horizon(self) -> bool:  # type: ignore[override]
        return self._schedule is not None and self._schedule.open

    def _make(self, layout: Layout) -> tuple[Any, list, list]:
        """The optimizer, variables of the layout, and what its own start as.

        That is a number or an array, or the place of the tensor it copies.
        """
        self._layouts.append(layout)
        generator, floatx = np.random.default_rng(0), keras.config.floatx()
        # At random, so that a copy is known for one.
        variables = [
            keras.Variable(generator.normal(size=shape).astype(floatx), name=name.replace("/", "_"))
            for shape, name in zip(layout.shapes, layout.names, strict=True)
        ]
        optimizer = self._build()
        optimizer.build(variables)
        copied = {v.numpy().tobytes(): k for k, v in enumerate(variables) if v.numpy().size}
        starts = [v.numpy() for v in optimizer.variables]
        return optimizer, variables, [copied.get(x.tobytes(), x) for x in starts]

    def initial_state(self, layout):
        held = {
            str(k): tf.zeros_like(v.value) for k, v in enumerate(self._made(layout)[0].variables)
        }
        return State({}, {}, {"count": tf.zeros(())} | held)

    def observe(self, weights, gradient, parameters, state, layout):
        return self.update(weights, gradient, parameters, state, layout)[1]

    def update(self, weights, gradient, parameters, state, layout, horizon=None):
        optimizer, variables, starts = self._made(layout)
        tensors, count = layout.unflatten(parameters), state.shared["count"]
        for k, (variable, start) in enumerate(zip(optimizer.variables, starts, strict=True)):
            start = tensors[start] if isinstance(start, int) else start
            variable.assign(tf.where(count > 0, state.shared[str(k)], start))
        if self._schedule is not None:
            rate = starts[_place(optimizer, optimizer._learning_rate)]
            optimizer.learning_rate = rate * self._schedule.factor(count, horizon)
        for variable, tensor in zip(variables, tensors, strict=True):
            variable.assign(tensor)
        optimizer.apply(layout.unflatten(gradient), variables)
        moved = layout.flatten([tf.convert_to_tensor(v.value) for v in variables])
        held = {str(k): tf.convert_to_tensor(v.value) for k, v in enumerate(optimizer.variables)}
        return parameters - moved, State({}, {}, {"count": count + 1} | held)

    def evaluated(self, parameters, state):
        """The parameters [D]; of a schedule-free optimizer their average, which Keras does not set.

        Keras' variables are at y = (1 - beta_1) z + beta_1 x (Defazio et al. 2024, Equation 1);
        what should be scored is x.
        """
        optimizer, _, _ = self._made(self._layouts[-1])
        if not isinstance(optimizer, keras.optimizers.ScheduleFreeAdamW):
            return parameters
        moved = [state.shared[str(_place(optimizer, z))] for z in optimizer._momentums]
        z = tf.concat([tf.reshape(x, (-1,)) for x in moved], 0)
        average = (parameters - (1 - optimizer.beta_1) * z) / optimizer.beta_1
        return tf.where(state.shared["count"] > 0, average, parameters)


def _place(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> int:
    """Which of an optimizer's variables this is."""
    return next(k for k, other in enumerate(optimizer.variables) if other is variable)
