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

    def initial_state(self, parameters, layout: Layout) -> Any:
        """The state before the first step, a nest of tensors."""

    def observe(self, parameters, gradient, state, layout: Layout) -> Any:
        """The state after a step of the warm-up, which another takes."""

    def step(self, parameters, gradient, state, layout: Layout) -> tuple[Any, Any]:
        """The new parameters and the new state."""


class RuleStepper:
    """Steps of an update rule, with its weights: teachers and policies."""

    def __init__(self, rule: UpdateRule, weights: Sequence = ()):
        self.rule, self.weights = rule, list(weights)

    def initial_state(self, parameters, layout):
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
        self._build, self._optimizer, self._variables = build, None, []

    def initial_state(self, parameters, layout):
        tensors = layout.unflatten(parameters)
        if not self._variables:
            pairs = zip(tensors, layout.names, strict=True)
            self._variables = [keras.Variable(t, name=n.replace("/", "_")) for t, n in pairs]
        for variable, value in zip(self._variables, tensors, strict=True):
            variable.assign(value)
        fresh = self._build()  # anew each time: some keep a copy of the parameters
        fresh.build(self._variables)
        self._optimizer = self._optimizer or fresh
        return [tf.convert_to_tensor(v.numpy()) for v in fresh.variables]

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
