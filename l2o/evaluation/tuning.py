"""Grid search of the teachers' learning rates (Huang et al. 2022, Table 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from statistics import mean

from l2o.evaluation.tables import write_table
from l2o.rules.pools import TEACHERS

RATES = (5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1, 5e-1, 1.0)


@dataclass(frozen=True)
class Trial:
    """One fit and its outcome.

    Attributes:
        dataset: The data really used.
        validation_loss: After the last epoch; infinite where the fit diverged.
        diverged_at: The step of the first loss that was not finite, or -1.

    Raises:
        ValueError: If there is no such teacher.
    """

    problem: str
    dataset: str
    epochs: int
    teacher: str
    rate: float
    seed: int
    validation_loss: float
    validation_accuracy: float
    diverged_at: int

    def __post_init__(self):
        if self.teacher not in TEACHERS:
            raise ValueError(f"there is no teacher {self.teacher!r}")


def write_trials(path: Path, trials: Sequence[Trial]) -> None:
    """Writes a table of trials, sorted, in one piece; `read_table` reads it."""
    order = list(TEACHERS)
    write_table(path, sorted(trials, key=lambda t: (order.index(t.teacher), t.rate, t.seed)), Trial)


@dataclass(frozen=True)
class BestRate:
    """The best rate of a teacher.

    Attributes:
        rate: The rate with the lowest mean validation loss, or None where every rate diverged.
        validation_loss: That mean.
        at_edge: Whether the rate is the grid's first or last, so that a better one may lie beyond.
    """

    rate: float | None
    validation_loss: float
    at_edge: bool


def mean_losses(trials: Sequence[Trial], teacher: str) -> dict[float, float]:
    """Mean validation loss over seeds by rate; infinite where a seed diverged."""
    by_rate: dict[float, list[float]] = {}
    for trial in trials:
        if trial.teacher == teacher:
            by_rate.setdefault(trial.rate, []).append(trial.validation_loss)
    return {rate: mean(losses) for rate, losses in sorted(by_rate.items())}


def choose(trials: Sequence[Trial], teacher: str) -> BestRate:
    """The best rate of a teacher."""
    losses = mean_losses(trials, teacher)
    finite = {rate: loss for rate, loss in losses.items() if isfinite(loss)}
    if not finite:
        return BestRate(None, inf, False)
    best = min(finite, key=finite.__getitem__)
    return BestRate(best, finite[best], best in (min(losses), max(losses)))


def table(trials: Sequence[Trial]) -> str:
    """The search as Markdown: a row a rate, a column a teacher, the best in bold."""
    teachers = [name for name in TEACHERS if any(t.teacher == name for t in trials)]
    columns = {name: mean_losses(trials, name) for name in teachers}
    best = {name: choose(trials, name) for name in teachers}
    lines = ["| rate | " + " | ".join(teachers) + " |", "|---" * (len(teachers) + 1) + "|"]
    for rate in sorted({trial.rate for trial in trials}):
        cells = []
        for name in teachers:
            loss = columns[name].get(rate)
            text = "" if loss is None else f"{loss:.4f}" if isfinite(loss) else "diverged"
            cells.append(f"**{text}**" if rate == best[name].rate else text)
        lines.append(f"| {rate:g} | " + " | ".join(cells) + " |")
    edges = [f"{name} ({best[name].rate:g})" for name in teachers if best[name].at_edge]
    note = f"\nAt the edge of the grid: {', '.join(edges)}.\n" if edges else ""
    return "\n".join(lines) + "\n" + note
