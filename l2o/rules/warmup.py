"""Warm-up: plain SGD at the start, while a rule watches the gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import ClassVar

from keras import ops

from l2o.rules.analytical import step_count
from l2o.rules.base import UpdateRule
from l2o.rules.wrapper import Wrapper, checked_state, core, layer, rewrapped

# Steps at the start of a fit with a newly trained policy: benchmarks/warmup.py. `WarmUp` itself has
# as many as there were before a policy could bring its own.
SHORT = 20


@dataclass(frozen=True)
class WarmUp(Wrapper):
    """SGD for the first steps; the inner rule's moments follow (Huang et al. 2022, Appendix C).

    A step of the warm-up is rate (g + d), d what weight decay would take.

    Attributes:
        steps: How many.
        rate: SGD's.
    """

    steps: int = 100
    rate: float = 0.01
    name: ClassVar[str] = "warmup"
    rank: ClassVar[int] = 3

    def __post_init__(self):
        super().__post_init__()
        steps, rate = self.steps, self.rate
        if not isinstance(steps, Integral) or isinstance(steps, bool) or steps < 0:
            raise ValueError(f"warmup_steps must be an integer >= 0. Received: {steps!r}")
        if not isinstance(rate, Real) or isinstance(rate, bool) or not 0 <= rate < math.inf:
            raise ValueError(f"warmup_learning_rate must be >= 0. Received: {rate!r}")
        object.__setattr__(self, "steps", int(steps))
        object.__setattr__(self, "rate", float(rate))

    def update(self, weights, gradient, parameters, state, layout, horizon=None, *chosen):
        def start():
            step = self.rate * (gradient + self.shrinkage(parameters, layout))
            new = self.observe(weights, gradient, parameters, state, layout)
            return step, checked_state(self, state, new)

        def go_on():
            step, new = self.inner.update(
                weights, gradient, parameters, state, layout, horizon, *chosen
            )
            return step, checked_state(self, state, new)

        return ops.cond(step_count(state) < self.steps, start, go_on)


def warmed_up(rule: UpdateRule, steps: int = 100, rate: float = 0.01) -> UpdateRule:
    """The rule with this warm-up in place of its own; 0 steps are none.

    Raises:
        ValueError: If steps or rate cannot be.
    """
    wrap = lambda r: WarmUp(r, steps, rate)  # noqa: E731
    return rewrapped(rule, WarmUp, wrap if wrap(core(rule)).steps else None)


def warming(rule: UpdateRule) -> tuple[int, float]:
    """Steps and rate of the warm-up that a rule has; zeros are none."""
    own = layer(rule, WarmUp)
    return (own.steps, own.rate) if own else (0, 0.0)


def with_warmup(rule: UpdateRule, steps: int | None, rate: float | None) -> UpdateRule:
    """The rule with this warm-up; what is None is as in its own, or as `WarmUp` has it."""
    if steps is None and rate is None:
        return rule
    own = layer(rule, WarmUp) or WarmUp
    return warmed_up(
        rule, own.steps if steps is None else steps, own.rate if rate is None else rate
    )
