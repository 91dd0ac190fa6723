"""Writes the tables of docs/results.md, and README.md's, from the data of docs/results.

    python docs/tables.py

Those of docs/method.md are of the problems themselves.

A table stands between `<!-- table: NAME -->` and the next blank line. A test fails where one is
stale.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

from l2o.evaluation import read_results
from l2o.policies.shipped import pretrained, pretrained_path
from l2o.problems import Batch, Dataset, Problem
from l2o.problems.families import FAMILIES, HELD_OUT
from l2o.reports.comparison import Evaluation, evaluations, log_loss
from l2o.reports.stability import mixed_effects, paired_difference
from l2o.rules import TEACHERS
from l2o.tasks.task import Task

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "method.md", ROOT / "docs" / "results.md")
ADDED = "+avg0.8+wd0.0003"  # to the names of policies that bring both
DEFAULT = "choice-large"
SETTINGS = (  # problem, epochs
    ("mnist_cnn", 25), ("mnist_cnn", 5), ("fmnist_cnn", 25), ("fmnist_cnn", 5), ("mnist_mlp", 5),
    ("mnist_deeper", 5), ("mnist_wider", 5), ("mnist_small_batch", 5), ("cifar10_wider", 5),
    ("cifar10_resnet28", 2), ("mnist_dp", 5),
)  # fmt: skip
FORMS = {  # of an example, and how many classes
    "digits": ((28, 28, 1), 10), "mnist": ((28, 28, 1), 10), "fashion_mnist": ((28, 28, 1), 10),
    "cifar10": ((32, 32, 3), 10), "tiny_shakespeare": ((64,), 65), "diabetes": ((10,), None),
    "breast_cancer": ((30,), 2), "wine": ((13,), 3),
}  # fmt: skip


class Fit(NamedTuple):
    """Of one fit: best log validation loss, log test loss at that epoch, last validation loss."""

    best: float
    test: float
    last: float


Fits = dict[tuple[int, int], Fit]  # by replicate and seed


def read() -> dict[tuple[str, int, str], dict[tuple[int, int], Evaluation]]:
    """All evaluations: by problem, epochs and optimizer, by replicate and seed."""
    found: dict[tuple[str, int, str], dict[tuple[int, int], Evaluation]] = {}
    for e in evaluations(read_results(ROOT / "docs" / "results" / "data")):
        fits = found.setdefault((e.key.problem, e.key.epochs, e.key.optimizer), {})
        fits[e.key.replicate, e.key.seed] = e
    return found


EVALUATIONS = read()


def fits(name: str, problem: str, epochs: int, within: int = 0) -> Fits:
    """Of an optimizer, all fits or a replicate's: "choice-large", "choice-large/2+wd0.0003"."""
    head, plus, rest = name.partition("+")
    bare, _, number = head.partition("/")
    found = {}
    of_name = EVALUATIONS.get((problem, epochs, bare + plus + rest), {})
    for (replicate, seed), e in of_name.items():
        if not number or replicate == int(number):
            e = replace(e, rows=e.rows[: within + 1]) if within else e  # from epoch 0 on
            found[replicate, seed] = Fit(e.best, e.test, log_loss(e.rows[-1].validation_loss))
    return found


def mean(fits: Fits, what: str = "best") -> float:
    """The mean of the replicates' means; NaN without fits."""
    replicates: dict[int, list[float]] = {}
    for (replicate, _), fit in fits.items():
        replicates.setdefault(replicate, []).append(getattr(fit, what))
    return float(np.mean([np.mean(values) for values in replicates.values()])) if fits else np.nan


def shown(value: float) -> str:
    return "" if np.isnan(value) else f"{round(value, 2) + 0.0:.2f}"  # no -0.00


def bold_least(values: list[float], cells: list[str]) -> list[str]:
    """The cells, those bold whose values are the least to the digits that are shown."""
    numbers = [round(v, 2) for v in values]
    least = np.nanmin(numbers)
    return [f"**{c}**" if v == least else c for v, c in zip(numbers, cells, strict=True)]


def ahead(first: Fits, second: Fits) -> str:
    """The paired difference with its interval."""
    sides = [{key: fit.best for key, fit in side.items()} for side in (first, second)]
    d = paired_difference(*sides)
    return f"{shown(d.mean)} [{shown(d.low)}, {shown(d.high)}]" if d.pairs > 1 else ""


def replicate() -> int:
    """Which replicate the default is."""
    return int(pretrained_path(DEFAULT).name)


def default(problem: str, epochs: int, within: int = 0) -> Fits:
    """The default's fits, counted as of one replicate, so that they pair with others'."""
    found = fits(f"{DEFAULT}/{replicate()}{ADDED}", problem, epochs, within)
    return {(1, seed): fit for (_, seed), fit in found.items()}


def compared() -> Iterator[tuple[str, tuple[str, int, int]]]:
    """Titles, with problem, epochs, and within how many of them; long fits have short ones."""
    for problem, epochs in SETTINGS:
        if epochs < 25 and (problem, 25) in SETTINGS:
            yield f"{problem}, {epochs} of 25", (problem, 25, epochs)
        else:
            yield f"{problem}, {epochs}", (problem, epochs, epochs)


def readme() -> Iterator[list[str]]:
    others = ("adam", "rmsprop", "keras:Adam")
    yield ["", "epochs", DEFAULT, "tuned Adam", "tuned RMSProp", "Keras' Adam"]
    for title, where in compared():
        values = [mean(default(*where)), *(mean(fits(name, *where)) for name in others)]
        problem, _, epochs = title.partition(", ")
        problem += " (DP-SGD)" * problem.endswith("_dp")
        yield [problem, epochs, *bold_least(values, [*map(shown, values)])]


def against() -> Iterator[list[str]]:
    """The default beside tuned Adam, the best teacher and Keras' Adam."""
    yield ["problem, epochs", "fits", DEFAULT, "Adam", "difference [95%]", "best teacher",
           "difference [95%]", "Keras' Adam", "difference [95%]"]  # fmt: skip
    for title, where in compared():
        ours, keras = default(*where), fits("keras:Adam", *where)
        teachers = {name: fits(name, *where) for name in TEACHERS}
        name = min(TEACHERS, key=lambda n: np.nan_to_num(mean(teachers[n]), nan=np.inf))
        cells = [shown(mean(teachers["adam"])), ahead(ours, teachers["adam"]),
                 f"{shown(mean(teachers[name]))} {name}",
                 "" if name == "adam" else ahead(ours, teachers[name]), shown(mean(keras)),
                 ahead(ours, keras)]  # fmt: skip
        yield [title, str(len(ours)), shown(mean(ours)), *cells]


def same() -> Iterator[list[str]]:
    """The default beside Adam and RMSProp with the averaging and decay that it brings."""
    yield ["problem, epochs", "fits", DEFAULT, "Adam, both", "difference [95%]", "RMSProp, both",
           "difference [95%]"]  # fmt: skip
    for title, where in compared():
        ours, others = default(*where), [fits(name + ADDED, *where) for name in ("adam", "rmsprop")]
        if all(others):
            cells = [cell for other in others for cell in (shown(mean(other)), ahead(ours, other))]
            yield [title, str(len(ours)), shown(mean(ours)), *cells]


def added() -> Iterator[list[str]]:
    """Without decay and averaging, with decay, with both: the same seeds in a row."""
    names = (*(f"{DEFAULT}/{k}" for k in (1, 2, 3, 4)), "choice-large-cpu", "adam", "rmsprop")
    kinds = ("", "+wd0.0003", ADDED)
    yield ["problem, epochs", "optimizer", "fits"] + [
        cell for what in ("validation", "test", "last epoch") for cell in (what, "decay", "both")
    ]
    for problem, epochs in SETTINGS:
        if (problem, epochs) == ("mnist_cnn", 5):
            continue
        title = f"{problem}, {epochs}"
        for name in names:
            sides = [fits(name + kind, problem, epochs) for kind in kinds]
            if not sides[1] and not sides[2]:
                continue
            shared = set.intersection(*(set(side) for side in sides if side))
            sides = [{key: side[key] for key in shared if side} for side in sides]
            cells = [shown(mean(side, what)) for what in Fit._fields for side in sides]
            yield [title, name, str(len(shared)), *cells]
            title = ""


def every() -> Iterator[list[str]]:
    """All optimizers as they are, without decay and averaging."""
    recipes = [name for name in pretrained() if "/" not in name and not name.startswith(DEFAULT)]
    names = [DEFAULT, f"{DEFAULT}/{replicate()}", "choice-large-long", "choice-large-cpu",
             *sorted(recipes), *TEACHERS, "keras:Adam"]  # fmt: skip
    yield ["optimizer", *(p if e == 5 else f"{p}, {e}" for p, e in SETTINGS)]
    columns = []
    for problem, epochs in SETTINGS:
        values, cells = [], []
        for name in names:
            found, star = fits(name, problem, epochs), ""
            if not found and epochs == 5:
                found, star = fits(name, problem, 25, 5), " *"
            values.append(mean(found))
            cell = "diverged" if found and np.isnan(values[-1]) else shown(values[-1])
            cells.append(cell + star * bool(found))
        columns.append(bold_least(values, cells))
    for row, name in enumerate(names):
        yield [name, *(column[row] for column in columns)]


def moving() -> Iterator[list[str]]:
    """As they are, and scored at the moving average of the parameters."""
    yield ["problem, within epochs", "momentum", "optimizer", "as it is", "averaged",
           "test, as it is", "test, averaged"]  # fmt: skip
    for problem, epochs, within, momentum in (
        ("mnist_cnn", 25, 5, 0.998), ("mnist_cnn", 25, 25, 0.998), ("mnist_cnn", 25, 25, 0.999),
        ("fmnist_cnn", 5, 5, 0.998), ("fmnist_cnn", 25, 25, 0.998), ("mnist_mlp", 5, 5, 0.998),
        ("mnist_dp", 5, 5, 0.99),
    ):  # fmt: skip
        title = [f"{problem}, {within}" + (" of 25" if within < epochs else ""), str(momentum)]
        for name in (f"{DEFAULT}/1", "rmsprop", "adam", "choice-large-cpu"):
            bare, averaged = (
                fits(name + kind, problem, epochs, within) for kind in ("", f"+ema{momentum}")
            )
            if averaged:
                bare = {key: bare[key] for key in averaged}
                sides = (bare, averaged)
                cells = [shown(mean(side, what)) for what in Fit._fields[:2] for side in sides]
                yield [*title, name, *cells]
                title = ["", ""]


def authors() -> Iterator[list[str]]:
    """All 60,000 images to train on, and the epoch chosen on test."""
    yield ["optimizer", "fits", "within 5 epochs", "within 25"]
    yield ["the authors' choice-large, 8 replicates", "", "-3.43", "-3.49 [-3.54, -3.44]"]
    for title, name in (
        ("choice-large, 4 replicates, as shipped", DEFAULT + ADDED),
        ("the same, averaging off", f"{DEFAULT}+wd0.0003"),
        ("the same, averaging and decay off", DEFAULT),
        ("rmsprop", "rmsprop"), ("adam", "adam"),
        ("rmsprop, both as shipped", f"rmsprop{ADDED}"),
        ("adam, both as shipped", f"adam{ADDED}"),
        ("choice-large, 4 replicates, no decay, `--ema 0.998`", f"{DEFAULT}+ema0.998"),
        ("rmsprop, `--ema 0.998`", "rmsprop+ema0.998"), ("adam, `--ema 0.998`", "adam+ema0.998"),
    ):  # fmt: skip
        cells = []
        for within in (5, 25):
            found = fits(name, "benchmarks.published:mnist_cnn", 25, within)
            s = mixed_effects([f.best for f in found.values()], *zip(*found, strict=True))
            interval = f" [{s.low:.2f}, {s.high:.2f}]" if s.replicates > 1 else ""
            cells.append(shown(s.mean) + interval)
        yield [title, str(len(found)), *cells]


def form(name: str) -> Dataset:
    """A dataset of the form of the one of that name, of two examples a split."""
    shape, classes = FORMS[name]
    x = np.zeros((2, *shape), {1: "float32", 3: "uint8"}[len(shape)])
    y = np.zeros((2,) if classes else (2, 1), "int32" if classes else "float32")
    split = Batch(x.astype("int32"), x.astype("int32")) if shape == (64,) else Batch(x, y)
    return Dataset(name, split, split, split, classes=classes)


def small(problems: Iterable[Problem]) -> Iterator[list[str]]:
    """Small problems: what they are trained on, and how large they are."""
    yield ["problem", "data", "input", "weights", "batch", "epochs"]
    for problem in problems:
        dataset = form(problem.data)
        dataset = problem.prepare(dataset) if problem.prepare else dataset
        shape, weights = "×".join(map(str, dataset.shape)), Task(problem, dataset).layout.size
        numbers = (f"{weights:,}", problem.batch_size, problem.epochs)
        yield [problem.name, problem.data, shape, *map(str, numbers)]


def families() -> Iterator[list[str]]:
    return small(FAMILIES)


def held_out() -> Iterator[list[str]]:
    return small(HELD_OUT)


TABLES = {
    table.__name__: table
    for table in (readme, against, same, added, every, moving, authors, families, held_out)
}


def markdown(rows: Iterable[list[str]]) -> str:
    head, *rest = rows
    lines = ["|".join(f" {cell} " if cell else " " for cell in cells) for cells in (head, *rest)]
    return "\n".join(f"|{line}|" for line in (lines[0], "|".join(["---"] * len(head)), *lines[1:]))


def page(text: str) -> str:
    """A page with its tables written anew."""

    def written(match: re.Match) -> str:
        return f"{match[1]}\n\n{markdown(TABLES[match[2]]())}"

    return re.sub(r"(<!-- table: (\w+) -->)\n\n.*?(?=\n\n|\n*\Z)", written, text, flags=re.DOTALL)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(page(path.read_text()))
