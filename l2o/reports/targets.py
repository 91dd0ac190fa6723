"""Time to target: when an optimizer is as good as the oracle, after AlgoPerf's protocol.

Validation is measured once an epoch, so times are whole epochs'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite
from statistics import median

import numpy as np

from l2o.reports.comparison import Evaluation, Summary, oracle
from l2o.reports.stability import LOG_OFFSET

FALL = 0.95


@dataclass(frozen=True)
class Target:
    """A validation loss to reach.

    Attributes:
        name: "best" for the oracle's best loss, "95% of the fall" from epoch 0 to it.
        loss: The loss. The best is that at the mean of the oracle's best log losses, the fall's
            start the mean of its losses at epoch 0.
    """

    name: str
    loss: float


@dataclass(frozen=True)
class Time:
    """When an evaluation reached a target, warm-up included; infinite if it never did."""

    steps: float
    seconds: float

    @property
    def reached(self) -> bool:
        """Whether it ever did."""
        return isfinite(self.steps)


@dataclass(frozen=True)
class Times:
    """When an optimizer's evaluations reached a target.

    Attributes:
        each: One an evaluation, in their order. One that diverged may have reached it before.
    """

    target: Target
    label: str
    each: tuple[Time, ...]

    @property
    def reached(self) -> int:
        """How many did."""
        return sum(time.reached for time in self.each)

    @property
    def steps(self) -> float:
        """The median; infinite if half or more never did."""
        return median(time.steps for time in self.each)

    @property
    def seconds(self) -> float:
        """The median; infinite if half or more never did."""
        return median(time.seconds for time in self.each)


def targets(summaries: Sequence[Summary]) -> tuple[Target, ...]:
    """The targets of a case, the harder last; none without an oracle that improved at all."""
    best = oracle(summaries)
    if best is None:
        return ()
    goal = exp(best.performance.mean)
    start = float(np.mean([e.rows[0].validation_loss for e in best.evaluations]))
    if not goal < start:
        return ()
    return (
        Target(f"{FALL:.0%} of the fall", start - FALL * (start - goal)),
        Target("best", goal),
    )


def time_to(target: Target, evaluation: Evaluation) -> Time:
    """When an evaluation's validation loss first was at or below the target."""
    # With a margin for rounding: an oracle of one evaluation reaches itself.
    limit = (target.loss + LOG_OFFSET) * exp(1e-9)
    for row in evaluation.rows:
        if row.validation_loss + LOG_OFFSET <= limit:
            return Time(row.steps, row.seconds)
    return Time(inf, inf)


def times(summaries: Sequence[Summary]) -> list[list[Times]]:
    """When each optimizer of a case reached each of `targets`: those that did soonest first."""
    goals = targets(summaries)
    ordered = sorted(
        ([Times(goal, s.label, tuple(time_to(goal, e) for e in s.evaluations)) for goal in goals]
         for s in summaries),
        key=lambda of: [(t.steps, -t.reached, t.label) for t in reversed(of)],
    )  # fmt: skip
    return [list(column) for column in zip(*ordered, strict=True)]
