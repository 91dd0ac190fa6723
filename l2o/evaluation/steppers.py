"""Steppers: whatever moves a network's parameters, as pure functions for the compiled loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras
import tensorflow as tf

from l2o.rules.base import UpdateRule
from l2o.rules.layout import Layout


class Stepper(Protocol):
    """What the loop sees of an optimizer. Parameters and gradients are vectors [D]."""

    def initial_state(self, layout: Layout) -> Any:
        """The state before the first step, a nest of tensors."""

    def observe(self, parameters, gradient, state, layout: Layout) -> Any:
        """The state after a step of the warm-up, which another takes."""

    def step(self, parameters, gradient, state, layout: Layout) -> tuple[Any, Any]:
        """The new parameters and the new state."""


class RuleStepper:
    """Steps of an update rule, with its weights: teachers and policies."""

    def __init__(self, rule: UpdateRule, weights: Sequence = ()):
        self.rule, self.weights = rule, list(weights)

    def initial_state(self, layout):
        return self.rule.initial_state(layout)

    def observe(self, parameters, gradient, state, layout):
        return self.rule.observe(self.weights, gradient, state, layout)

    def step(self, parameters, gradient, state, layout):
        step, state = self.rule.update(self.weights, gradient, state, layout)
        return parameters - step, state


class KerasStepper:
    """Steps of any Keras optimizer, whose variables are set before each step and read after it.

    It serves one layout.

    Args:
        build: Makes the optimizer.
    """

    def __init__(self, build: Callable[[], keras.optimizers.Optimizer]):
        self._optimizer, self._variables = build(), []

    def initial_state(self, layout):
        if not self._variables:
            pairs = zip(layout.names, layout.shapes, strict=True)
            self._variables = [
                keras.Variable(tf.zeros(shape), name=name.replace("/", "_"))
                for name, shape in pairs
            ]
            self._optimizer.build(self._variables)
            self._initial = [tf.constant(v.numpy()) for v in self._optimizer.variables]
        return self._initial

    def observe(self, parameters, gradient, state, layout):
        return self.step(parameters, gradient, state, layout)[1]

    def step(self, parameters, gradient, state, layout):
        held = [*self._variables, *self._optimizer.variables]
        for variable, value in zip(held, [*layout.unflatten(parameters), *state], strict=True):
            variable.assign(value)
        self._optimizer.apply(layout.unflatten(gradient), self._variables)
        values = [tf.convert_to_tensor(variable.value) for variable in held]
        count = len(self._variables)
        return layout.flatten(values[:count]), values[count:]
