"""Averaging: a rule whose network stands near the moving average of where the rule has led."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

from keras import ops

from l2o.rules.analytical import zeros
from l2o.rules.base import State, UpdateRule
from l2o.rules.layout import Layout

WINDOW = 500.0  # steps that the average goes over, once there were so many
_START = 9.0  # until then it goes over about a ninth of them
RAMP = 2000.0  # steps over which averaging comes in


@dataclass(frozen=True)
class Averaged(UpdateRule):
    """Another rule's steps, taken by an iterate that the network follows at a distance.

    The rule moves an iterate z, of which x is a moving average; the network stands at
    y = (1 - s) z + s x, where the gradients come from too (Defazio et al. 2024, *The Road Less
    Scheduled*, Eq. 3-5; they average over all steps, and use x after training). After the t-th
    step s = share min(t / RAMP, 1): far from the end an average is only behind. It goes over about
    `WINDOW` steps, in the beginning over fewer: z enters it with the weight
    max(1 / WINDOW, 9 / (9 + t)). The state has one number a coordinate more, x - z.

    Attributes:
        inner: The other rule.
        share: Of x in the end, above 0 and below 1.
    """

    inner: UpdateRule
    share: float = 0.8
    name: ClassVar[str] = "averaged"

    def __post_init__(self):
        if not isinstance(self.inner, UpdateRule) or isinstance(self.inner, Averaged):
            raise ValueError(f"Averaged needs another update rule. Received: {self.inner!r}")
        if not isinstance(self.share, float) or not 0 < self.share < 1:
            raise ValueError(f"share must be above 0 and below 1. Received: {self.share!r}")

    @property
    def coordinatewise(self) -> bool:  # type: ignore[override]
        return self.inner.coordinatewise

    def initial_weights(self, seed: int) -> list:
        return self.inner.initial_weights(seed)

    def initial_state(self, layout: Layout) -> State:
        return _joined(self.inner.initial_state(layout), zeros(layout), ops.zeros(()))

    def observe(self, weights, gradient, state, layout):
        held, lag, count = _parted(state)
        return _joined(self.inner.observe(weights, gradient, held, layout), lag, count)

    def update(self, weights, gradient, state, layout):
        held, lag, count = _parted(state)
        step, held = self.inner.update(weights, gradient, held, layout)
        t = ops.cast(count + 1, step.dtype)
        weight = ops.maximum(1 / WINDOW, _START / (_START + t))
        before, now = (self.share * ops.minimum(n / RAMP, 1.0) for n in (t - 1, t))
        moved = (1 - weight) * (lag + step)
        return step - (now * moved - before * lag), _joined(held, moved, count + 1)


def averaged(rule: UpdateRule, share: float) -> UpdateRule:
    """The rule with this share of averaging in place of its own; 0 is none.

    Raises:
        ValueError: If the share is not from 0 to below 1.
    """
    if not isinstance(share, Real) or not 0 <= share < 1:
        raise ValueError(f"averaging must be a number from 0 to below 1. Received: {share!r}")
    bare = rule.inner if isinstance(rule, Averaged) else rule
    return Averaged(bare, float(share)) if share else bare


def averaging(rule: UpdateRule) -> float:
    """The share of averaging that a rule has; 0 is none."""
    return rule.share if isinstance(rule, Averaged) else 0.0


def _joined(held: State, lag, count) -> State:
    coordinate, shared = held.coordinate | {"lag": lag}, held.shared | {"averaged": count}
    return State(coordinate, held.tensor, shared)


def _parted(state: State) -> tuple:
    """The inner rule's state, x - z, and the number of steps."""
    coordinate, shared = dict(state.coordinate), dict(state.shared)
    lag, count = coordinate.pop("lag"), shared.pop("averaged")
    return State(coordinate, state.tensor, shared), lag, count
