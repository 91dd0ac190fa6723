"""The six teachers: Huang et al. 2022, Table 3 and Equations 7-8.

Written g for the gradient and m, v for its first and second moments
(m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2). Epsilon stands inside the root: the
meta-gradient goes through sqrt at g = 0 and must stay finite there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keras import ops

from l2o.rules.base import State, UpdateRule
from l2o.rules.layout import Layout

BIAS_CORRECTIONS = ("exact", "constant")


def zeros(layout: Layout):
    """A vector [D] of zeros in Keras' float type."""
    return ops.zeros((layout.size,))


def step_count(state: State):
    """The number of gradients seen before this one, a float scalar."""
    return state.shared["count"]


def moments(gradient, state: State, beta1: float, beta2: float):
    """The new first and second moments [D] of the gradient."""
    first = beta1 * state.coordinate["first"] + (1 - beta1) * gradient
    second = beta2 * state.coordinate["second"] + (1 - beta2) * ops.square(gradient)
    return first, second


def corrected(first, second, count, beta1: float, beta2: float, correction: str):
    """Bias-corrected moments after `count` gradients (Kingma and Ba 2015).

    Correction "constant" divides by 1 - beta at every step, as the paper's published code does;
    it makes Adam move at 0.316 of its stated rate.
    """
    if correction == "constant":
        return first / (1 - beta1), second / (1 - beta2)
    count = ops.cast(count, first.dtype)
    return first / (1 - ops.power(beta1, count)), second / (1 - ops.power(beta2, count))


def check_correction(correction: str) -> None:
    """Raises ValueError for a bias correction that does not exist."""
    if correction not in BIAS_CORRECTIONS:
        allowed = ", ".join(BIAS_CORRECTIONS)
        raise ValueError(f"bias_correction must be one of {allowed}. Received: {correction}")


@dataclass(frozen=True)
class AnalyticalRule(UpdateRule):
    """An analytical rule: `_step` gives the step and the moments from gradient and state."""

    learning_rate: float
    moment_names: ClassVar[tuple[str, ...]] = ()

    def initial_state(self, layout: Layout) -> State:
        coordinate = {name: zeros(layout) for name in self.moment_names}
        return State(coordinate, {}, {"count": ops.zeros(())})

    def observe(self, weights, gradient, parameters, state, layout):
        return self.update(weights, gradient, parameters, state, layout)[1]

    def update(self, weights, gradient, parameters, state, layout, horizon=None):
        count = step_count(state) + 1
        step, coordinate = self._step(gradient, state, count)
        return step, State(coordinate, {}, {"count": count})

    def _step(self, gradient, state: State, count) -> tuple:
        raise NotImplementedError


@dataclass(frozen=True)
class SGD(AnalyticalRule):
    """lr g."""

    name: ClassVar[str] = "sgd"

    def _step(self, gradient, state, count):
        return self.learning_rate * gradient, {}


@dataclass(frozen=True)
class Momentum(AnalyticalRule):
    """lr m."""

    beta: float = 0.9
    name: ClassVar[str] = "momentum"
    moment_names: ClassVar[tuple[str, ...]] = ("first",)

    def _step(self, gradient, state, count):
        first = self.beta * state.coordinate["first"] + (1 - self.beta) * gradient
        return self.learning_rate * first, {"first": first}


@dataclass(frozen=True)
class RMSProp(AnalyticalRule):
    """lr g / sqrt(v + epsilon)."""

    decay: float = 0.9
    epsilon: float = 1e-10
    name: ClassVar[str] = "rmsprop"
    moment_names: ClassVar[tuple[str, ...]] = ("second",)

    def _step(self, gradient, state, count):
        second = self.decay * state.coordinate["second"] + (1 - self.decay) * ops.square(gradient)
        step = self.learning_rate * gradient / ops.sqrt(second + self.epsilon)
        return step, {"second": second}


@dataclass(frozen=True)
class Adam(AnalyticalRule):
    """lr m^ / sqrt(v^ + epsilon), moments bias-corrected."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-10
    bias_correction: str = "exact"
    name: ClassVar[str] = "adam"
    moment_names: ClassVar[tuple[str, ...]] = ("first", "second")

    def __post_init__(self):
        check_correction(self.bias_correction)

    def _step(self, gradient, state, count):
        first, second = moments(gradient, state, self.beta1, self.beta2)
        mean, power = corrected(first, second, count, self.beta1, self.beta2, self.bias_correction)
        step = self.learning_rate * mean / ops.sqrt(power + self.epsilon)
        return step, {"first": first, "second": second}


@dataclass(frozen=True)
class _SignRule(AnalyticalRule):
    """Rules that weigh g by its agreement with m: tanh(g/s) tanh(m/s), s = sqrt(v + epsilon).

    Bello et al. 2017 with sign(.) replaced by the scaled tanh, to be differentiable.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-10
    moment_names: ClassVar[tuple[str, ...]] = ("first", "second")

    def _step(self, gradient, state, count):
        first, second = moments(gradient, state, self.beta1, self.beta2)
        scale = ops.sqrt(second + self.epsilon)
        agreement = ops.tanh(gradient / scale) * ops.tanh(first / scale)
        step = self.learning_rate * self._weight(agreement) * gradient
        return step, {"first": first, "second": second}

    def _weight(self, agreement):
        raise NotImplementedError


@dataclass(frozen=True)
class AddSign(_SignRule):
    """lr (1 + agreement) g (Equation 7)."""

    name: ClassVar[str] = "addsign"

    def _weight(self, agreement):
        return 1 + agreement


@dataclass(frozen=True)
class PowerSign(_SignRule):
    """lr exp(agreement) g (Equation 8)."""

    name: ClassVar[str] = "powersign"

    def _weight(self, agreement):
        return ops.exp(agreement)
