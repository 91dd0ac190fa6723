"""Time to target: when an optimizer is as good as the oracle, or as tuned AdamW in the end.

After AlgoPerf (Dahl et al. 2023) and Celo (Moudgil et al. 2025). Validation is measured once an
epoch, so times are whole epochs'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, isnan, nan
from statistics import fmean, median

import numpy as np

from l2o.reports.comparison import Case, Evaluation, Summary, oracle, oracle_name
from l2o.reports.page import Block, Column, Table, Value
from l2o.reports.stability import LOG_OFFSET

FALL = 0.95
REFERENCE = "tuned:AdamW"  # whose last loss is a target, and whose steps are the unit
NEEDS = f"needs fits of {REFERENCE} whose loss falls, and others beside them"


@dataclass(frozen=True)
class Target:
    """A validation loss to reach.

    Attributes:
        name: "best" for the oracle's best loss, "95% of the fall" from epoch 0 to it, "last" for
            the last loss of `REFERENCE`.
        loss: The loss. The best is that at the mean of the oracle's best log losses, the last that
            at the mean of the last log losses, the fall's start the mean of losses at epoch 0.
    """

    name: str
    loss: float


@dataclass(frozen=True)
class Time:
    """When an evaluation reached a target, warm-up included; infinite if it never did."""

    steps: float
    seconds: float
    cpu_seconds: float

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

    @property
    def cpu_seconds(self) -> float:
        """The median; nan where one was not measured."""
        each = [time.cpu_seconds for time in self.each]
        return nan if any(map(isnan, each)) else median(each)


def targets(summaries: Sequence[Summary]) -> tuple[Target, ...]:
    """The targets of a case, the harder last; none without an oracle that improved at all."""
    best = oracle(summaries)
    if best is None:
        return ()
    goal, start = exp(best.performance.mean), _start(best)
    if not goal < start:
        return ()
    return (
        Target(f"{FALL:.0%} of the fall", start - FALL * (start - goal)),
        Target("best", goal),
    )


def _start(summary: Summary) -> float:
    """The mean of the losses at epoch 0."""
    return float(np.mean([e.rows[0].validation_loss for e in summary.evaluations]))


def time_to(target: Target, evaluation: Evaluation) -> Time:
    """When an evaluation's validation loss first was at or below the target."""
    # With a margin for rounding: an oracle of one evaluation reaches itself.
    limit = (target.loss + LOG_OFFSET) * exp(1e-9)
    for row in evaluation.rows:
        if row.validation_loss + LOG_OFFSET <= limit:
            return Time(row.steps, row.seconds, row.cpu_seconds)
    return Time(inf, inf, inf)


def times(summaries: Sequence[Summary]) -> list[list[Times]]:
    """When each optimizer of a case reached each of `targets`: those that did soonest first."""
    goals = targets(summaries)
    ordered = sorted(
        ([Times(goal, s.label, tuple(time_to(goal, e) for e in s.evaluations)) for goal in goals]
         for s in summaries),
        key=lambda of: [(t.steps, -t.reached, t.label) for t in reversed(of)],
    )  # fmt: skip
    return [list(column) for column in zip(*ordered, strict=True)]


@dataclass(frozen=True)
class Race:
    """How soon the optimizers of a case were where `REFERENCE` ended.

    Attributes:
        target: Its last loss.
        steps: Of its whole fit.
        times: Of all others, in the order of the case.
    """

    target: Target
    steps: int
    times: tuple[Times, ...]

    def share(self, times: Times) -> float:
        """Of the reference's steps; infinite if half or more of the evaluations never did."""
        return times.steps / self.steps


def race(summaries: Sequence[Summary]) -> Race | None:
    """A case's race; None where `REFERENCE` has no last loss below its first, or nobody else is.

    The target is its final log validation loss in the tables: the mean over seeds after the last
    epoch. So it takes 1 itself, by definition, and is not among the times.
    """
    reference = next((s for s in summaries if s.label == REFERENCE), None)
    if reference is None or not exp(reference.final) < _start(reference):
        return None
    goal = Target("last", exp(reference.final) - LOG_OFFSET)
    steps = max(e.rows[-1].steps for e in reference.evaluations if e.diverged_at < 0)
    others = tuple(
        Times(goal, s.label, tuple(time_to(goal, e) for e in s.evaluations))
        for s in summaries
        if s is not reference
    )
    return Race(goal, steps, others) if others else None


def interquartile_mean(values: Sequence[float]) -> float:
    """The mean without the lowest and the highest quarter, each rounded down to whole values.

    An infinite value is one like any other: up to a quarter of them are left out with the highest,
    more make the mean infinite.
    """
    cut = len(values) // 4
    return fmean(sorted(values)[cut : len(values) - cut])


@dataclass(frozen=True)
class Shares:
    """How soon an optimizer was where `REFERENCE` ended, as shares of its steps, by case."""

    label: str
    by_case: Mapping[Case, float]

    @property
    def reached(self) -> int:
        """In how many cases it was."""
        return sum(map(isfinite, self.by_case.values()))

    @property
    def mean(self) -> float:
        """The interquartile mean over cases."""
        return interquartile_mean([*self.by_case.values()])


def races(cases: Mapping[Case, Sequence[Summary]]) -> dict[Case, Race]:
    """The race of each case that has one."""
    found = {case: race(summaries) for case, summaries in cases.items()}
    return {case: one for case, one in found.items() if one is not None}


def shares(races: Mapping[Case, Race]) -> list[Shares]:
    """What each optimizer's races came to, the soonest first."""
    by_label: dict[str, dict[Case, float]] = {}
    for case, one in races.items():
        for times in one.times:
            by_label.setdefault(times.label, {})[case] = one.share(times)
    found = [Shares(label, by_case) for label, by_case in by_label.items()]
    return sorted(found, key=lambda s: (s.mean, -s.reached, s.label))


def blocks(cases: Mapping[Case, Sequence[Summary]]) -> list[Block]:
    """The shares of tuned AdamW's steps, and the times behind them; nothing without a race."""
    found = races(cases)
    if not found:
        return []
    without = [case.title for case in cases if case not in found]
    rows: list[list[Value]] = [
        [case.title, one.target.loss, one.steps, t.label, f"{t.reached} of {len(t.each)}",
         one.share(t), float(t.steps), float(t.seconds), float(t.cpu_seconds)]
        for case, one in found.items()
        for t in one.times
    ]  # fmt: skip
    return [
        f"The target is where {REFERENCE} ends: the mean over its seeds of the log validation loss "
        "after the last epoch. A fit's time is the first epoch at whose end its validation loss is "
        "at or below that, warm-up included, and an optimizer's the median of its fits, here as a "
        f"share of the steps of {REFERENCE}'s whole fit: below 1 is sooner, and it takes 1 itself. "
        "Never is infinite and has no cap. The interquartile mean over settings leaves out the "
        "lowest and the highest quarter of them, each rounded down; where more than that quarter "
        "was never reached, it is never."
        + f" Without {REFERENCE}, or where it did not improve: {', '.join(without)}."
        * bool(without),
        Table(
            "time_to_tuned",
            [Column("optimizer"), Column("settings"), Column("reached"),
             Column("interquartile mean of shares", infinite="never")],
            [[s.label, len(s.by_case), s.reached, s.mean] for s in shares(found)],
        ),
        Table(
            "time_to_tuned_by_problem",
            [Column("problem"), Column("target loss", 4), Column(f"steps of {REFERENCE}"),
             Column("optimizer"), Column("fits that reached it"),
             *(Column(name, digits, "never") for name, digits in
               (("share", 3), ("steps", 0), ("seconds", 1), ("CPU seconds", 1)))],
            rows,
        ),
    ]  # fmt: skip


def case_blocks(found: Sequence[Summary], prefix: dict[str, str | int]) -> list[Block]:
    """When each optimizer of a case was as good as the oracle; why not, where there is none."""
    goals, best = times(found), oracle(found)
    if best is None:
        return ["No tuned teacher without divergence, or a loss below zero, is in these results: "
                "there is no oracle, and no time to target."]  # fmt: skip
    if not goals:
        return []
    columns = [Column("optimizer")]
    rows: list[list[Value]] = [[t.label] for t in goals[-1]]
    for goal in goals:
        name, of = goal[0].target.name, {t.label: t for t in goal}
        columns += [Column(f"{name}: reached"), Column(f"{name}: steps", 0, "never"),
                    Column(f"{name}: seconds", 1, "never"),
                    Column(f"{name}: CPU seconds", 1, "never")]  # fmt: skip
        for row, last in zip(rows, goals[-1], strict=True):
            t = of[last.label]
            row += [
                f"{t.reached} of {len(t.each)}",
                *map(float, (t.steps, t.seconds, t.cpu_seconds)),
            ]
    losses = " and ".join(f"{t.loss:.4f} ({t.name})" for t in targets(found))
    return [
        "Time to target: median steps and seconds, warm-up included, until the validation loss is "
        f"at that of the {oracle_name(found)}, {best.label}: {losses}. Measured once an epoch; "
        "never means that half or more of the evaluations did not.",
        Table("time_to_target", columns, rows, prefix),
    ]
