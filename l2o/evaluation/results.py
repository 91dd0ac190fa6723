"""The results of evaluations: one tidy row an epoch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, isnan
from pathlib import Path
from typing import NamedTuple

from l2o.evaluation.tables import Cells, TableError, read_table, write_table

VERSION = 3
_EARLIER = {1: ("in_place_of", "cpu_seconds"), 2: ("in_place_of",)}  # columns they had not
TABLE = "results.csv"  # its name in a directory of results
_FOR = " for "
_MOST = 2**53  # of what is counted, as a float can


class Key(NamedTuple):
    """What tells one evaluation from another."""

    problem: str
    data: str
    optimizer: str
    origin: str
    replicate: int
    repeat: int
    seed: int
    epochs: int
    in_place_of: str = ""

    @property
    def fit(self) -> Key:
        """What is evaluated: the seed alone makes two repeats differ."""
        return self._replace(repeat=1)


@dataclass(frozen=True)
class Result:
    """One epoch of one evaluation.

    Attributes:
        version: Of this table's form.
        problem: Name of the problem.
        data: The dataset really used.
        in_place_of: The dataset that it stood in for; empty where it is the problem's own.
        optimizer: Name, with the rate where it is not the tuned one: "adam", "adam@0.01".
        origin: What the name stands for: a digest of rule and weights.
        replicate: Which training of the policy, from 1; 1 for what is not trained.
        repeat: Which evaluation of it, from 1.
        seed: Fixes initial parameters and batches: the same for every optimizer of a repeat.
        epochs: How many were asked for.
        epoch: After how many epochs this was measured; 0 is before the first step.
        steps: Steps so far, warm-up included.
        seconds: Training time so far; measuring is not counted.
        cpu_seconds: Of the process's processor, for the same; nan where nobody measured it.
        train_loss, train_accuracy: Means over the epoch's batches, each before its step; at epoch
            0 those of the first batch. Accuracies are nan where labels are no classes.
        validation_loss, validation_accuracy, test_loss, test_accuracy: After the epoch.
        diverged_at: The step with the first loss that was not finite, or -1. It ends the
            evaluation; the losses of that epoch are infinite.
        epsilon: Privacy spent so far at `delta`; infinite where training is not private.
        delta: 0 where training is not private.
        privacy: Accountant and sampling assumption; empty where training is not private.

    Raises:
        ValueError: If a value cannot be.
    """

    version: int
    problem: str
    data: str
    in_place_of: str
    optimizer: str
    origin: str
    replicate: int
    repeat: int
    seed: int
    epochs: int
    epoch: int
    steps: int
    seconds: float
    cpu_seconds: float
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    test_loss: float
    test_accuracy: float
    diverged_at: int
    epsilon: float
    delta: float
    privacy: str

    def __post_init__(self):
        if "E+" in self.origin:
            raise ValueError(
                f"origin cannot be {self.origin[:30]}, the number that a spreadsheet took it for"
            )
        least = {"replicate": 1, "repeat": 1, "epochs": 1, "diverged_at": -1, "train_loss": -inf,
                 "validation_loss": -inf}  # fmt: skip
        least["steps"] = min(self.epoch, 1)
        for name in ("seed", "epoch", "seconds", "epsilon", "delta", *least):
            value = getattr(self, name)
            most = _MOST if isinstance(value, int) or name == "seconds" else inf
            if not least.get(name, 0) <= value <= most:  # NaN is no value either
                raise ValueError(f"{name} cannot be {str(value)[:30]}")
        if not (0 <= self.cpu_seconds <= _MOST or isnan(self.cpu_seconds)):
            raise ValueError(f"cpu_seconds cannot be {self.cpu_seconds}")
        for name in ("train_accuracy", "validation_accuracy", "test_accuracy"):
            value = getattr(self, name)
            if not (0 <= value <= 1 or isnan(value)):
                raise ValueError(f"{name} cannot be {value}")

    @property
    def key(self) -> Key:
        """The evaluation this is an epoch of."""
        return Key(*(getattr(self, name) for name in Key._fields))


def read_results(*paths: Path | str) -> list[Result]:
    """Reads tables of results, or directories with one, into one.

    Raises:
        TableError: If one cannot be read, an evaluation is not whole, or two tables tell
            different things of the same evaluation.
    """
    merged: dict[Key, list[Result]] = {}
    for path in map(Path, paths):
        if path.is_dir() and not (path / TABLE).exists():
            raise TableError(f"{path} holds no {TABLE}")
        path = path / TABLE if path.is_dir() else path
        for key, rows in by_evaluation(
            read_table(path, Result, VERSION, _EARLIER, _upgraded)
        ).items():
            epochs = [row.epoch for row in rows]
            whole = rows[-1].diverged_at >= 0 or epochs[-1] == key.epochs
            if epochs != list(range(len(rows))) or not whole:
                raise TableError(f"{path}: evaluation {describe(key)} is not whole")
            # As text: a number that is not one equals nothing, not even itself.
            if repr(merged.setdefault(key, rows)) != repr(rows):
                raise TableError(f"{path}: evaluation {describe(key)} differs from another table's")
    return [row for rows in merged.values() for row in rows]


def _upgraded(cells: Cells) -> Cells:
    """A line of an earlier version, whose data were "digits for mnist" where they stood in."""
    *data, last = cells["data"].rsplit(_FOR, 1)
    named, meant = (*data, last) if data else (last, "")
    now = {"version": str(VERSION), "data": named, "in_place_of": meant}
    return {"cpu_seconds": "nan"} | cells | now


def data_in_words(data: str, in_place_of: str) -> str:
    """The data of a result: "digits for mnist" where they stood in."""
    return data + (_FOR + in_place_of) * bool(in_place_of)


def write_results(path: Path | str, results: Sequence[Result]) -> None:
    """Writes a table of results in one piece, in the order given."""
    write_table(path, results, Result)


def by_evaluation(results: Iterable[Result]) -> dict[Key, list[Result]]:
    """The epochs of each evaluation, in order."""
    evaluations: dict[Key, list[Result]] = {}
    for result in results:
        evaluations.setdefault(result.key, []).append(result)
    return {key: sorted(rows, key=lambda r: r.epoch) for key, rows in evaluations.items()}


def distinct(results: Iterable[Result]) -> list[Result]:
    """The results, of evaluations alike in all but the repeat the first one's: it is one fit."""
    first: dict[Key, int] = {}
    return [r for r in results if first.setdefault(r.key.fit, r.repeat) == r.repeat]


def describe(key: Key) -> str:
    """An evaluation in words."""
    return f"{key.problem} with {key.optimizer} (replicate {key.replicate}, repeat {key.repeat})"
