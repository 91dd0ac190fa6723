"""Weight decay, decoupled from the gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

from keras import ops

from l2o.rules.base import UpdateRule
from l2o.rules.wrapper import Wrapper, core, layer, rewrapped

WEIGHT_DECAY_LIMIT = 1e-3  # more, each step, is a lot: Keras' optimizers multiply theirs by a rate


@dataclass(frozen=True)
class Decayed(Wrapper):
    """A rule's step and a fraction of the parameters (Loshchilov and Hutter 2019).

    Attributes:
        rate: The fraction; there is no learning rate to multiply it.
        exclude: Words; a tensor with one of them in its name does not decay.
    """

    rate: float = 0.0
    exclude: tuple[str, ...] = ()
    name: ClassVar[str] = "decayed"
    rank: ClassVar[int] = 2

    def __post_init__(self):
        super().__post_init__()
        rate = self.rate
        if not isinstance(rate, Real) or isinstance(rate, bool) or not 0 <= rate < math.inf:
            raise ValueError(f"weight_decay must be a number >= 0. Received: {rate!r}")
        words = self.exclude
        if not isinstance(words, list | tuple) or not all(isinstance(w, str) for w in words):
            raise ValueError(f"exclude must be a tuple of words. Received: {words!r}")
        object.__setattr__(self, "rate", float(rate))
        object.__setattr__(self, "exclude", tuple(words))

    def update(self, weights, gradient, parameters, state, layout, horizon=None, *chosen):
        step, state = self.inner.update(
            weights, gradient, parameters, state, layout, horizon, *chosen
        )
        return step + self.shrinkage(parameters, layout), state

    def shrinkage(self, parameters, layout):
        decays = [not any(word in name for word in self.exclude) for name in layout.names]
        taken = self.rate * parameters
        if not all(decays):
            taken = ops.where(layout.spread(decays), taken, ops.zeros_like(taken))
        return taken + self.inner.shrinkage(parameters, layout)


def decayed(rule: UpdateRule, rate: float, exclude: tuple[str, ...] = ()) -> UpdateRule:
    """The rule with this weight decay in place of its own; 0 is none.

    Raises:
        ValueError: If the rate is no number of at least 0.
    """
    wrap = lambda r: Decayed(r, rate, exclude)  # noqa: E731
    return rewrapped(rule, Decayed, wrap if wrap(core(rule)).rate else None)


def decaying(rule: UpdateRule) -> float:
    """The weight decay that a rule has; 0 is none."""
    own = layer(rule, Decayed)
    return own.rate if own else 0.0


def with_decay(rule: UpdateRule, rate: float | None, exclude: tuple[str, ...] = ()) -> UpdateRule:
    """The rule with this weight decay, which leaves out what its own did, and `exclude` as well.

    Where the rate is the rule's own the rule stays as it is; None is no decay.
    """
    own = layer(rule, Decayed)
    if not exclude and decaying(rule) == (0 if rate is None else rate):
        return rule
    return decayed(rule, rate or 0, (*(own.exclude if own else ()), *exclude))
