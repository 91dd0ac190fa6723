"""Keras' optimizers as update rules, so that whatever is compared is fitted by one loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from l2o.rules import Layout, State, UpdateRule


class KerasRule(UpdateRule):
    """Any Keras optimizer, whose variables are set before each step and read after it.

    Its state is those variables. What they hold at the start, constants or copies of the
    parameters, is set at count 0.

    Args:
        build: Makes the optimizer.
    """

    _build: Callable[[], keras.optimizers.Optimizer]
    _made: Callable[[Layout], tuple[Any, list, list]]

    def __init__(self, build: Callable[[], keras.optimizers.Optimizer]):
        object.__setattr__(self, "_build", build)
        object.__setattr__(self, "_made", lru_cache(maxsize=1)(self._make))

    __eq__, __hash__ = object.__eq__, object.__hash__

    def _make(self, layout: Layout) -> tuple[Any, list, list]:
        """The optimizer, variables of the layout, and what its own start as.

        That is a number or an array, or the place of the tensor it copies.
        """
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
        for variable, tensor in zip(variables, tensors, strict=True):
            variable.assign(tensor)
        optimizer.apply(layout.unflatten(gradient), variables)
        moved = layout.flatten([tf.convert_to_tensor(v.value) for v in variables])
        held = {str(k): tf.convert_to_tensor(v.value) for k, v in enumerate(optimizer.variables)}
        return parameters - moved, State({}, {}, {"count": count + 1} | held)
