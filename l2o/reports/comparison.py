"""What evaluations came to: outcomes of each, statistics of each optimizer."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, isnan, log, nan
from typing import NamedTuple

import numpy as np

from l2o.evaluation.results import Key, Result, by_evaluation, data_in_words
from l2o.reports.stability import (
    LOG_OFFSET,
    Difference,
    Stability,
    mixed_effects,
    optimization_stability,
    paired_difference,
)
from l2o.rules.pools import TEACHERS


class Case(NamedTuple):
    """What makes evaluations comparable.

    Attributes:
        problem, data, epochs, in_place_of: As in the results.
        apart: Whether there is one of other data beside it.
    """

    problem: str
    data: str
    epochs: int
    in_place_of: str = ""
    apart: bool = False

    @property
    def used(self) -> str:
        """The data really used, in words."""
        return data_in_words(self.data, self.in_place_of)

    @property
    def title(self) -> str:
        """The case in words."""
        unit = "epoch" if self.epochs == 1 else "epochs"
        data = f", {self.data}" if self.apart else ""
        data = f", ON {self.used.upper()}" if self.in_place_of else data
        return f"{self.problem}, {self.epochs} {unit}{data}"


@dataclass(frozen=True)
class Evaluation:
    """One evaluation. Where it diverged its outcomes are nan, and it is only counted."""

    key: Key
    label: str
    rows: tuple[Result, ...]

    @property
    def case(self) -> Case:
        """The evaluations this can be compared with."""
        return Case(self.key.problem, self.key.data, self.key.epochs, self.key.in_place_of)

    @property
    def teacher(self) -> bool:
        """Whether the optimizer is one of the teachers at its tuned rate."""
        return self.key.optimizer in TEACHERS

    @property
    def diverged_at(self) -> int:
        """The step with the first loss that was not finite, or -1."""
        return self.rows[-1].diverged_at

    @cached_property
    def chosen(self) -> Result | None:
        """The epoch with the best validation loss, from the first on; None where it diverged."""
        finite = [row for row in self.rows[1:] if isfinite(row.validation_loss)]
        return min(finite, key=lambda r: r.validation_loss) if self._whole and finite else None

    @property
    def _whole(self) -> bool:
        return self.diverged_at < 0

    @property
    def best(self) -> float:
        """Best log validation loss."""
        return nan if self.chosen is None else log_loss(self.chosen.validation_loss)

    @property
    def test(self) -> float:
        """Log test loss at the epoch chosen on validation."""
        return nan if self.chosen is None else log_loss(self.chosen.test_loss)

    @property
    def best_test(self) -> float:
        """Best log test loss of any epoch: the epoch chosen on test, as the paper has it."""
        finite = [row.test_loss for row in self.rows[1:] if isfinite(row.test_loss)]
        return log_loss(min(finite)) if self._whole and finite else nan

    @property
    def final(self) -> float:
        """Log validation loss after the last epoch."""
        return log_loss(self.rows[-1].validation_loss) if self._whole else nan

    @property
    def final_train(self) -> float:
        """Log training loss of the last epoch."""
        return log_loss(self.rows[-1].train_loss) if self._whole else nan

    def within(self, seconds: float) -> float:
        """Log validation loss of the last epoch that ends in so many processor seconds."""
        rows = [row for row in self.rows if row.cpu_seconds <= seconds + 1e-9]
        return log_loss(rows[-1].validation_loss) if self._whole and rows else nan

    @property
    def jitter(self) -> float:
        """Optimization stability."""
        return optimization_stability([row.validation_loss for row in self.rows[1:]])


def log_loss(loss: float) -> float:
    """Logarithm of a loss that may be zero; nan of one below."""
    return log(loss + LOG_OFFSET) if loss >= 0 else nan


def evaluations(results: Iterable[Result]) -> list[Evaluation]:
    """The evaluations of a table, each with its optimizer's label.

    An optimizer's name is its label, with which its replicates stand together, unless the name
    has meant two things under one replicate number: then the origin's first letters tell them
    apart.
    """
    groups = by_evaluation(results)
    origins = defaultdict(set)
    for key in groups:
        origins[key.optimizer, key.replicate].add(key.origin)
    unclear = {name for (name, _), found in origins.items() if len(found) > 1}
    return [
        Evaluation(key, f"{key.optimizer} [{key.origin[:6]}]" if key.optimizer in unclear
                   else key.optimizer, tuple(rows))
        for key, rows in groups.items()
    ]  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """An optimizer's evaluations on one case, and their statistics; nan where all diverged.

    Means are of the replicates' means. An evaluation that diverged is in none, nor is one whose
    loss fell below zero, where it has no logarithm.

    Attributes:
        performance: Of the best log validation loss.
        optimization: Of the optimization stability.
        test: Mean log test loss at the epoch chosen on validation.
        best_test: Mean log test loss at the epoch chosen on test.
        final: Mean log validation loss after the last epoch.
        final_train: Mean log training loss of the last epoch.
        validation_accuracy, test_accuracy: Means, at the epoch chosen on validation.
        seconds, cpu_seconds: Mean training time of an evaluation, by the clock and the processor.
        within: Mean log validation loss within the processor seconds of the fastest optimizer.
        epsilon: Privacy spent by the end, the largest; infinite where training is not private.
        diverged: How many evaluations diverged.
    """

    case: Case
    label: str
    evaluations: tuple[Evaluation, ...]
    performance: Stability
    optimization: Stability
    test: float
    best_test: float
    final: float
    final_train: float
    validation_accuracy: float
    test_accuracy: float
    seconds: float
    cpu_seconds: float
    within: float
    epsilon: float
    diverged: int

    @property
    def teacher(self) -> bool:
        """Whether this is one of the teachers at its tuned rate."""
        return self.evaluations[0].teacher

    @property
    def costs(self) -> tuple[float, float]:
        """Seconds of a fit, by the clock and the processor."""
        return self.seconds, self.cpu_seconds


def summarize(results: Iterable[Result]) -> dict[Case, list[Summary]]:
    """Statistics of every optimizer on every case, the best mean first."""
    groups: dict[Case, dict[str, list[Evaluation]]] = {}
    known = evaluations(results)
    titles = Counter(case.title for case in {evaluation.case for evaluation in known})
    for evaluation in known:
        case = evaluation.case._replace(apart=titles[evaluation.case.title] > 1)
        groups.setdefault(case, {}).setdefault(evaluation.label, []).append(evaluation)
    found = {}
    for case, labels in groups.items():
        ends = [np.mean([e.rows[-1].cpu_seconds for e in members]) for members in labels.values()]
        limit = float(np.min(ends))
        found[case] = sorted(
            (_summary(case, label, members, limit) for label, members in labels.items()),
            key=lambda s: (isnan(s.performance.mean), s.performance.mean, s.label),
        )
    return found


def _summary(case: Case, label: str, members: Sequence[Evaluation], limit: float) -> Summary:
    replicates, seeds = [e.key.replicate for e in members], [e.key.seed for e in members]
    whole = [(e, e.chosen) for e in members if e.chosen is not None and isfinite(e.best)]

    def mean(outcome: Callable[[Evaluation, Result], float]) -> float:
        """Of the replicates' means; nan if none."""
        of_replicate = defaultdict(list)
        for e, chosen in whole:
            of_replicate[e.key.replicate].append(outcome(e, chosen))
        return float(np.mean([np.mean(o) for o in of_replicate.values()])) if whole else nan

    return Summary(
        case=case,
        label=label,
        evaluations=tuple(members),
        performance=mixed_effects([e.best for e in members], replicates, seeds),
        optimization=mixed_effects([e.jitter for e in members], replicates, seeds),
        test=mean(lambda e, chosen: e.test),
        best_test=mean(lambda e, chosen: e.best_test),
        final=mean(lambda e, chosen: e.final),
        final_train=mean(lambda e, chosen: e.final_train),
        validation_accuracy=mean(lambda e, chosen: chosen.validation_accuracy),
        test_accuracy=mean(lambda e, chosen: chosen.test_accuracy),
        seconds=mean(lambda e, chosen: e.rows[-1].seconds),
        cpu_seconds=mean(lambda e, chosen: e.rows[-1].cpu_seconds),
        within=mean(lambda e, chosen: e.within(limit)),
        epsilon=max(e.rows[-1].epsilon for e in members),
        diverged=sum(e.diverged_at >= 0 for e in members),
    )


def oracle(summaries: Iterable[Summary]) -> Summary | None:
    """The tuned teacher with the best mean best log validation loss; None without teachers.

    The best of those that were evaluated: `oracle_name` says whether that is all of them. It is
    chosen on validation and reported on test. A teacher that diverged is not chosen, nor one whose
    loss fell below zero: its mean lacks these evaluations.
    """
    teachers = [s for s in summaries if s.teacher and not s.performance.excluded]
    return min(teachers, key=lambda s: s.performance.mean, default=None)


def oracle_name(summaries: Iterable[Summary]) -> str:
    """What to call the best teacher: the oracle only where all six were evaluated."""
    return "oracle" if len(_teachers(summaries)) == len(TEACHERS) else "best teacher"


def winner(summaries: Sequence[Summary]) -> Summary:
    """The first, best mean first, that was evaluated with every seed of the best teacher.

    So a single fit that went well does not come before several of another. Without teachers all
    will do.
    """
    reference = oracle(summaries)
    wanted = _seeds(reference) if reference else set()
    return next(s for s in summaries if wanted <= _seeds(s))


def _seeds(summary: Summary) -> set[int]:
    return {e.key.seed for e in summary.evaluations}


def no_oracle(summaries: Iterable[Summary]) -> str:
    """Why a case has no oracle; empty if it has, or has nothing that could be taken for one."""
    present = _teachers(summaries)
    if len(present) in (0, len(TEACHERS)):
        return ""
    verb = "was" if len(present) == 1 else "were"
    return f"no oracle, as of the six teachers only {', '.join(present)} {verb} evaluated"


def _teachers(summaries: Iterable[Summary]) -> list[str]:
    return sorted({s.evaluations[0].key.optimizer for s in summaries if s.teacher})


def difference(first: Summary, second: Summary) -> Difference:
    """Paired difference of the best log validation losses; pairs share problem and seed."""
    sides = [
        {(e.key.replicate, e.key.seed): e.best for e in side.evaluations}
        for side in (first, second)
    ]
    return paired_difference(*sides)
