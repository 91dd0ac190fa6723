"""Teachers of today: AdamW, NAdam, Lion, Muon; no pool of the paper has them.

Letters as in `analytical`; epsilon stands inside the root here too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keras import ops

from l2o.rules.analytical import Adam, AnalyticalRule, moments, step_count
from l2o.rules.base import State
from l2o.rules.layout import Layout

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c of Jordan et al. 2024


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam's step and lr w θ (Loshchilov and Hutter 2019)."""

    learning_rate: float = 1e-3
    weight_decay: float = 4e-3
    name: ClassVar[str] = "adamw"

    def update(self, weights, gradient, parameters, state, layout, horizon=None):
        step, state = super().update(weights, gradient, parameters, state, layout, horizon)
        return step + self.shrinkage(parameters, layout), state

    def shrinkage(self, parameters, layout):
        return self.learning_rate * self.weight_decay * parameters


@dataclass(frozen=True)
class Lion(AnalyticalRule):
    """lr sign(b1 m + (1 - b1) g); then m <- b2 m + (1 - b2) g (Chen et al. 2023, Algorithm 2)."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.99
    name: ClassVar[str] = "lion"
    moment_names: ClassVar[tuple[str, ...]] = ("first",)

    def _step(self, gradient, state, count):
        first = state.coordinate["first"]
        step = self.learning_rate * ops.sign(self.beta1 * first + (1 - self.beta1) * gradient)
        return step, {"first": self.beta2 * first + (1 - self.beta2) * gradient}


@dataclass(frozen=True)
class NAdam(AnalyticalRule):
    """Adam with Nesterov's momentum, which grows with the time (Dozat 2016, Algorithm 2).

    With u_t = b1 (1 - 0.96^t / 2) and U_t the product of u_1 to u_t, the step is lr times
    (u_{t+1} m / (1 - U_{t+1}) + (1 - u_t) g / (1 - U_t)) / sqrt(v^ + epsilon).
    """

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-10
    name: ClassVar[str] = "nadam"
    moment_names: ClassVar[tuple[str, ...]] = ("first", "second")

    def initial_state(self, layout: Layout) -> State:
        state = super().initial_state(layout)
        return state._replace(shared=state.shared | {"product": ops.zeros(())})

    def update(self, weights, gradient, parameters, state, layout, horizon=None):
        seen = step_count(state)
        t = ops.cast(seen + 1, gradient.dtype)
        here, following = (self.beta1 * (1 - ops.power(0.96, n) / 2) for n in (t, t + 1))
        product = here * ops.where(seen > 0, state.shared["product"], 1.0)
        first, second = moments(gradient, state, self.beta1, self.beta2)
        mean = following * first / (1 - product * following)
        mean = mean + (1 - here) * gradient / (1 - product)
        power = second / (1 - ops.power(self.beta2, t))
        step = self.learning_rate * mean / ops.sqrt(power + self.epsilon)
        shared = {"count": seen + 1, "product": product}
        return step, State({"first": first, "second": second}, {}, shared)


@dataclass(frozen=True)
class Muon(AnalyticalRule):
    """Orthogonalized momentum for hidden matrices, Adam for all else (Jordan et al. 2024).

    Of a matrix [n, k] the step is lr 0.2 sqrt(max(n, k)) O(g + b m), m <- b m + g, where O is five
    Newton-Schulz iterations towards the nearest orthogonal matrix; the factor gives it Adam's size
    (Liu et al. 2025). A matrix whose name has "embedding" in it is Adam's.

    With a = min(n, k) and b = max(n, k) the iterations are 5 (2 a^2 b + a^3) multiplications a
    matrix, whatever the batch: as many as the gradient, 3 a b an example, of 3.3 a to 5 a examples.
    """

    learning_rate: float = 1e-3
    momentum: float = 0.95
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-10
    name: ClassVar[str] = "muon"
    coordinatewise: ClassVar[bool] = False
    moment_names: ClassVar[tuple[str, ...]] = ("first", "second")

    def update(self, weights, gradient, parameters, state, layout, horizon=None):
        adam = Adam(self.learning_rate, self.beta1, self.beta2, self.epsilon)
        whole, moved = adam.update(weights, gradient, parameters, state, layout, horizon)
        vectors = (gradient, state.coordinate["first"], whole, moved.coordinate["first"])
        steps, firsts = [], []
        for name, g, before, step, first in zip(
            layout.names, *map(layout.unflatten, vectors), strict=True
        ):
            if is_hidden_matrix(name, g.shape):
                first = self.momentum * before + g
                size = self.learning_rate * 0.2 * max(g.shape) ** 0.5
                step = size * orthogonalized(g + self.momentum * first)
            steps.append(step)
            firsts.append(first)
        coordinate = moved.coordinate | {"first": layout.flatten(firsts)}
        return layout.flatten(steps), moved._replace(coordinate=coordinate)


def is_hidden_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is what Muon is for; as in Keras' Muon, an output's matrix is one too."""
    return len(shape) == 2 and min(shape) > 0 and "embedding" not in name.lower()


def orthogonalized(matrix):
    """Matrices [..., n, k] with all singular values brought near 1 (Jordan et al. 2024).

    Newton-Schulz: X <- a X + (b A + c A A) X with A = X X^T, five times.
    """
    a, b, c = _NEWTON_SCHULZ
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = ops.swapaxes(matrix, -1, -2) if tall else matrix
    x = x / (ops.sqrt(ops.sum(ops.square(x), (-2, -1), keepdims=True)) + 1e-7)
    for _ in range(5):
        square = ops.matmul(x, ops.swapaxes(x, -1, -2))
        x = a * x + ops.matmul(b * square + c * ops.matmul(square, square), x)
    return ops.swapaxes(x, -1, -2) if tall else x
