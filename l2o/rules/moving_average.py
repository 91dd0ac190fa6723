"""The moving average of the parameters, where a rule may be scored."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

from keras import ops

from l2o.rules.analytical import step_count
from l2o.rules.wrapper import Wrapper


@dataclass(frozen=True)
class MovingAverage(Wrapper):
    """A rule that is scored at the exponential moving average of its parameters.

    After each step the average is m times its last value and 1 - m times the parameters, as Keras'
    `use_ema` has it; after the first, the parameters. Steps are the inner rule's, and so are those
    of `AmalgamatedOptimizer`, where Keras' `use_ema` says what is kept.

    Attributes:
        momentum: m.
    """

    momentum: float = 0.99
    name: ClassVar[str] = "moving_average"
    rank: ClassVar[int] = 4
    own: ClassVar[tuple[str, ...]] = ("average",)

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.momentum, Real) or not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be from 0 to below 1. Received: {self.momentum!r}")

    def update(self, weights, gradient, parameters, state, layout, horizon=None, *chosen):
        held, own = self._parted(state)
        step, held = self.inner.update(
            weights, gradient, parameters, held, layout, horizon, *chosen
        )
        kept = self.momentum * ops.cast(step_count(state) > 0, step.dtype)
        average = kept * own["average"] + (1 - kept) * (parameters - step)
        return step, self._joined(held, {"average": average})

    def evaluated(self, parameters, state):
        return ops.where(step_count(state) > 0, state.coordinate["average"], parameters)
