"""The short table at the end of an evaluation: what each optimizer came to on each problem."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from l2o.evaluation.results import Result, by_evaluation
from l2o.rules.pools import TEACHERS

LOG_FLOOR = 1e-10  # a float32 loss can reach zero


@dataclass(frozen=True)
class Row:
    """An optimizer on a problem; means over replicates and repeats.

    Attributes:
        best: Log validation loss of the best epoch.
        test_accuracy: At that epoch.
        epsilon: Privacy spent at the end; infinite where training is not private.
        seconds: Training time.
        evaluations, diverged: How many, and how many of them diverged.
    """

    problem: str
    data: str
    optimizer: str
    best: float
    test_accuracy: float
    epsilon: float
    delta: float
    seconds: float
    evaluations: int
    diverged: int


def chosen_epoch(rows: Sequence[Result]) -> Result:
    """The epoch of an evaluation with the least validation loss, the first of equals."""
    return min(rows, key=lambda row: row.validation_loss)


def summarize(results: Iterable[Result]) -> list[Row]:
    """A row for each optimizer on each problem, in the order they first come."""
    groups: dict[tuple, list[list[Result]]] = {}
    for key, rows in by_evaluation(results).items():
        groups.setdefault((key.problem, key.data, key.optimizer), []).append(rows)
    table = []
    for names, evaluations in groups.items():
        chosen = [chosen_epoch(rows) for rows in evaluations]
        last = [rows[-1] for rows in evaluations]
        table.append(
            Row(
                *names,
                best=fmean(math.log(row.validation_loss + LOG_FLOOR) for row in chosen),
                test_accuracy=fmean(row.test_accuracy for row in chosen),
                epsilon=max(row.epsilon for row in last),
                delta=last[0].delta,
                seconds=fmean(row.seconds for row in last),
                evaluations=len(evaluations),
                diverged=sum(row.diverged_at >= 0 for row in last),
            )
        )
    return table


def oracle(rows: Sequence[Row], problem: str) -> Row | None:
    """The row of the tuned teacher that is best on a problem's validation data.

    `None` where not all six were evaluated.
    """
    teachers = [row for row in rows if row.problem == problem and row.optimizer in TEACHERS]
    if {row.optimizer for row in teachers} != set(TEACHERS):
        return None
    return min(teachers, key=lambda row: row.best)


def as_text(rows: Sequence[Row], with_oracle: bool) -> str:
    """The table as lines of text, the oracle last in each problem.

    Args:
        rows: As from `summarize`.
        with_oracle: Whether each problem has a line for the oracle.
    """
    head = ("optimizer", "best log val. loss", "test acc.", "epsilon", "seconds", "n")
    lines = []
    for problem, data in dict.fromkeys((row.problem, row.data) for row in rows):
        mine = [row for row in rows if (row.problem, row.data) == (problem, data)]
        cells = [head, *((row.optimizer, *_cells(row)) for row in mine)]
        best = oracle(mine, problem) if with_oracle else None
        if best:
            cells.append((f"oracle ({best.optimizer})", *_cells(best)))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += ["", f"{problem}, data: {data}"]
        for first, *others in cells:
            padded = [first.ljust(widths[0])]
            padded += [cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True)]
            lines.append("  ".join(padded).rstrip())
    return "\n".join(lines[1:])


def _cells(row: Row) -> tuple[str, ...]:
    private = math.isfinite(row.epsilon)
    return (
        f"{row.best:.4f}",
        f"{row.test_accuracy:.2%}",
        f"{row.epsilon:.3f}" if private else "-",
        f"{row.seconds:.1f}",
        f"{row.evaluations}" + (f" ({row.diverged} diverged)" if row.diverged else ""),
    )
