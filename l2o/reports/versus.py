"""Who is ahead of whom at the end of a fit: paired t-tests over seeds, corrected over problems."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan

import numpy as np

from l2o.reports.comparison import Case, Summary
from l2o.reports.page import COSTS, Block, Column, Table, Value
from l2o.rules import TEACHERS
from l2o.rules.scheduled import SHAPES

LEVEL = 0.05  # of significance, after the correction


@dataclass(frozen=True)
class Duel:
    """Two optimizers on one case, first minus second; nan is what the pairs cannot tell.

    Attributes:
        difference: Mean over seeds of the difference of the log validation losses after the last
            epoch; below 0 the first is ahead.
        low, high: Its 95% confidence interval, of Student's t.
        pairs: Seeds that both have.
        p: Two-sided, of the paired t-test.
        costs: Seconds of a fit, by clock and processor, of the first and then of the second.
        corrected: The same after Holm's correction over the cases of these two.
    """

    case: Case
    first: str
    second: str
    difference: float
    low: float
    high: float
    pairs: int
    p: float
    costs: tuple[float, ...]
    corrected: float = nan

    @property
    def verdict(self) -> str:
        """Of the first: a win, a loss, or a tie where the corrected test does not tell."""
        if not self.corrected < LEVEL:
            return "tie"
        return "win" if self.difference < 0 else "loss"


def duels(cases: Mapping[Case, Sequence[Summary]], first: str, second: str) -> list[Duel]:
    """Two optimizers on every case that has both."""
    found = []
    for case, summaries in cases.items():
        by_label = {s.label: s for s in summaries}
        if first in by_label and second in by_label:
            found.append(_duel(case, by_label[first], by_label[second]))
    corrected = holm([duel.p for duel in found])
    return [replace(duel, corrected=p) for duel, p in zip(found, corrected, strict=True)]


def _duel(case: Case, first: Summary, second: Summary) -> Duel:
    from scipy.stats import t, ttest_1samp

    one, two, costs = _finals(first), _finals(second), (*first.costs, *second.costs)
    samples = np.array([one[seed] - two[seed] for seed in one if seed in two])
    if not len(samples):
        return Duel(case, first.label, second.label, nan, nan, nan, 0, nan, costs)
    mean, half, p = float(samples.mean()), nan, nan
    if len(samples) > 1 and np.ptp(samples):
        half = float(samples.std(ddof=1) / len(samples) ** 0.5 * t.ppf(0.975, len(samples) - 1))
        p = float(ttest_1samp(samples, 0).pvalue)
    interval = mean - half, mean + half
    return Duel(case, first.label, second.label, mean, *interval, len(samples), p, costs)


def _finals(summary: Summary) -> dict[int, float]:
    """Log losses after the last epoch by seed, replicates averaged; none where one diverged."""
    values: dict[int, list[float]] = defaultdict(list)
    for e in summary.evaluations:
        values[e.key.seed].append(e.final)
    return {seed: float(np.mean(v)) for seed, v in values.items() if all(map(isfinite, v))}


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979); nan is none, and stays."""
    order = sorted((p, k) for k, p in enumerate(values) if isfinite(p))
    corrected, highest = [nan] * len(values), 0.0
    for rank, (p, k) in enumerate(order):
        highest = max(highest, min((len(order) - rank) * p, 1.0))
        corrected[k] = highest
    return corrected


def is_baseline(label: str) -> bool:
    """Whether a label is a tuned optimizer's, or one's with a schedule."""
    shapes = tuple(f"+{shape}" for shape in SHAPES)
    return label.startswith("tuned:") or any(shape in label for shape in shapes)


def blocks(cases: Mapping[Case, Sequence[Summary]]) -> list[Block]:
    """Policies against baselines of today; nothing where there are not both."""
    labels = list(dict.fromkeys(s.label for found in cases.values() for s in found))
    baselines = [label for label in labels if is_baseline(label)]
    others = [x for x in labels if x not in baselines and not x.startswith("keras:")]
    policies = [x for x in others if x.split("@")[0].split("+")[0] not in TEACHERS]
    counts: list[list[Value]] = []
    rows: list[list[Value]] = []
    for policy in policies:
        for baseline in baselines:
            found = duels(cases, policy, baseline)
            verdicts = [duel.verdict for duel in found]
            if found:
                each = [verdicts.count(word) for word in ("win", "tie", "loss")]
                ahead = sum(duel.difference < 0 for duel in found)
                counts.append([policy, baseline, *each, ahead])
            rows += [
                [d.case.title, policy, baseline, d.difference, (d.low, d.high), d.pairs, d.p,
                 d.corrected, d.verdict, *d.costs]
                for d in found
            ]  # fmt: skip
    if not rows:
        return []
    return [
        "After the last epoch, paired by problem and seed. A win or a loss is what a paired t-test "
        f"over seeds tells at {LEVEL:.0%} after Holm's correction over the problems; all else is a "
        "tie, however large its mean. Differences are of log validation losses: below zero the "
        "policy is ahead.",
        Table(
            "wins",
            [Column("policy"), Column("baseline"), Column("wins"), Column("ties"),
             Column("losses"), Column("means ahead")],
            counts,
        ),
        Table(
            "versus",
            [Column("problem"), Column("policy"), Column("baseline"), Column("difference"),
             Column("95% interval", interval=True), Column("pairs"), Column("p", 4),
             Column("p, corrected", 4), Column("verdict"), *COSTS,
             *(Column(f"baseline's {cost.name}", 1) for cost in COSTS)],
            rows,
        ),
    ]  # fmt: skip
