"""Averaging: a rule whose network stands near the moving average of where the rule has led."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

from keras import ops

from l2o.rules.base import UpdateRule
from l2o.rules.wrapper import Wrapper, layer, rewrapped

WINDOW = 500.0  # steps that the average goes over, once there were so many
_START = 9.0  # until then it goes over about a ninth of them
RAMP = 2000.0  # steps over which averaging comes in


@dataclass(frozen=True)
class Averaged(Wrapper):
    """Another rule's steps, taken by an iterate that the network follows at a distance.

    The rule moves an iterate z, of which x is a moving average; the network stands at
    y = (1 - s) z + s x, where the gradients come from too (Defazio et al. 2024, *The Road Less
    Scheduled*, Eq. 3-5; they average over all steps, and use x after training). After the t-th
    step s = share min(t / RAMP, 1): far from the end an average is only behind. It goes over about
    `WINDOW` steps, in the beginning over fewer: z enters it with the weight
    max(1 / WINDOW, 9 / (9 + t)). The state has one number a coordinate more, x - z.

    Attributes:
        share: Of x in the end, above 0 and below 1.
    """

    share: float = 0.8
    name: ClassVar[str] = "averaged"
    rank: ClassVar[int] = 1
    own: ClassVar[tuple[str, ...]] = ("lag",)
    own_shared: ClassVar[tuple[str, ...]] = ("averaged",)

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.share, float) or not 0 < self.share < 1:
            raise ValueError(f"share must be above 0 and below 1. Received: {self.share!r}")

    def update(self, weights, gradient, parameters, state, layout, horizon=None, *chosen):
        held, own = self._parted(state)
        step, held = self.inner.update(
            weights, gradient, parameters, held, layout, horizon, *chosen
        )
        lag, t = own["lag"], ops.cast(own["averaged"] + 1, step.dtype)
        weight = ops.maximum(1 / WINDOW, _START / (_START + t))
        before, now = (self.share * ops.minimum(n / RAMP, 1.0) for n in (t - 1, t))
        moved = (1 - weight) * (lag + step)
        own = {"lag": moved, "averaged": own["averaged"] + 1}
        return step - (now * moved - before * lag), self._joined(held, own)


def averaged(rule: UpdateRule, share: float) -> UpdateRule:
    """The rule with this share of averaging in place of its own; 0 is none.

    Raises:
        ValueError: If the share is not from 0 to below 1.
    """
    if not isinstance(share, Real) or not 0 <= share < 1:
        raise ValueError(f"averaging must be a number from 0 to below 1. Received: {share!r}")
    return rewrapped(rule, Averaged, (lambda r: Averaged(r, float(share))) if share else None)


def averaging(rule: UpdateRule) -> float:
    """The share of averaging that a rule has; 0 is none."""
    own = layer(rule, Averaged)
    return own.share if own else 0.0
