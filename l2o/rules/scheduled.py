"""Learning-rate schedules around a rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

from keras import ops

from l2o.rules.analytical import step_count
from l2o.rules.wrapper import Wrapper

SHAPES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class Schedule:
    """The factor of step t, counted from 0, in a fit of T steps.

    It rises linearly over the first warm-up steps, to 1 at the last of them, and then falls to
    `end` at T, where it stays.

    Attributes:
        shape: How it falls: "constant" (not at all), "linear" or "cosine".
        steps: T; 0 is the fit's own number of steps, which must be known then.
        warmup: Share of T over which it rises.
        end: Where it falls to.
    """

    shape: str = "constant"
    steps: int = 0
    warmup: float = 0.0
    end: float = 0.0

    def __post_init__(self):
        if self.shape not in SHAPES:
            allowed = ", ".join(SHAPES)
            raise ValueError(f"Unknown schedule. Allowed: {allowed}. Received: {self.shape!r}")
        numbers = (self.steps, self.warmup, self.end)
        if not all(isinstance(n, Real) and n >= 0 for n in numbers) or self.warmup > 1:
            raise ValueError(
                "A schedule's steps, warm-up and end are numbers of at least 0, and the warm-up, a "
                f"share of the steps, is at most 1. Received: {numbers}"
            )

    @property
    def open(self) -> bool:
        """Whether it depends on the number of steps of the fit."""
        return not self.steps and (self.shape != "constant" or self.warmup > 0)

    def factor(self, count, horizon=None):
        """What the step after `count` others is multiplied by, a scalar.

        Raises:
            ValueError: If the number of steps is not known.
        """
        total = self.steps or (horizon.steps if horizon else None)
        if total is None:
            if not self.open:
                return ops.ones_like(count)
            raise ValueError(f"A {self.shape} schedule needs the number of steps of the fit")
        total = ops.cast(total, count.dtype)
        start = ops.floor(self.warmup * total)
        rise = ops.minimum((count + 1) / ops.maximum(start, 1.0), 1.0) if self.warmup else 1.0
        done = ops.clip((count - start) / ops.maximum(total - start, 1.0), 0.0, 1.0)
        fall = {
            "constant": lambda: 1.0,
            "linear": lambda: 1 - (1 - self.end) * done,
            "cosine": lambda: self.end + (1 - self.end) * (1 + ops.cos(math.pi * done)) / 2,
        }[self.shape]()
        return rise * fall * ops.ones_like(count)


def constant(warmup: float = 0.0, steps: int = 0) -> Schedule:
    """1 after the warm-up."""
    return Schedule("constant", steps, warmup)


def linear(warmup: float = 0.0, steps: int = 0, end: float = 0.0) -> Schedule:
    """Down to `end` in a straight line."""
    return Schedule("linear", steps, warmup, end)


def cosine(warmup: float = 0.0, steps: int = 0, end: float = 0.0) -> Schedule:
    """Down to `end` along half a cosine (Loshchilov and Hutter 2017)."""
    return Schedule("cosine", steps, warmup, end)


@dataclass(frozen=True)
class Scheduled(Wrapper):
    """A rule's step times a factor that depends on the time.

    Attributes:
        schedule: The factor.
    """

    schedule: Schedule = Schedule()
    name: ClassVar[str] = "scheduled"

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.schedule, dict):  # of a configuration
            object.__setattr__(self, "schedule", Schedule(**self.schedule))
        if not isinstance(self.schedule, Schedule):
            raise ValueError(f"Scheduled needs a Schedule. Received: {self.schedule!r}")

    @property
    def needs_horizon(self) -> bool:  # type: ignore[override]
        return self.schedule.open or self.inner.needs_horizon

    def update(self, weights, gradient, parameters, state, layout, horizon=None, *chosen):
        factor = self.schedule.factor(step_count(state), horizon)
        step, state = self.inner.update(
            weights, gradient, parameters, state, layout, horizon, *chosen
        )
        return factor * step, state
