"""What the start of a fit costs: a policy's loss after one warm-up or another.

    python benchmarks/warmup.py                                         # every problem; an hour
    python benchmarks/warmup.py gru digits_cnn --warmups sgd-20 none    # minutes

A fit takes so many steps in all after each warm-up, from the same initial weights and with the same
batches. "sgd-20" is 20 steps of SGD at 0.01 while the policy watches, "sgd-20@0.1" the same at 0.1;
"none" is the policy's own steps from the first; "ramp-20" those, the first 20 growing linearly;
"rms-20" is 20 steps of SGD, each with a root mean square of 1e-3. "adam" is Keras' Adam as it
comes, without a warm-up. Problems are those of the catalogue, and three that it has nothing like: a
character GRU and a one-block transformer on tiny_shakespeare ("gru", "transformer"), and a
convolutional autoencoder on Fashion-MNIST ("autoencoder").

A fit is kept in a table as soon as it is over, and is not run again. Prints the natural logarithm
of the validation loss half way and at the end, mean over seeds; for other warm-ups than 100 steps
of SGD, its difference to that, seed by seed, with the standard error; and one JSON line.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import numpy as np
import tensorflow as tf
from keras import ops

import l2o
from benchmarks.measuring import count, parser, report
from l2o.evaluation import Fit, get_candidates
from l2o.evaluation.tables import read_table, write_table
from l2o.problems import PROBLEMS, Batch, Dataset, DatasetUnavailable, Problem, load_dataset
from l2o.rules import Scheduled, UpdateRule, WarmUp, constant, core, rewrapped, warmed_up
from l2o.tasks.gradient import plain_gradient
from l2o.tasks.load import load_task
from l2o.tasks.privacy import privacy_of
from l2o.tasks.task import Task

ADAM, BEFORE = "adam", "sgd-100"
RATE, SIZE = 0.01, 1e-3  # SGD's, and the root mean square of a step of "rms"
WARMUPS = (ADAM, "sgd-20")
CATALOGUE = (
    "digits_cnn", "mnist_cnn", "mnist_mlp", "mnist_wider", "mnist_deeper", "mnist_deeper_strided",
    "mnist_small_batch", "mnist_dp", "fmnist_cnn", "cifar10_wider",
)  # fmt: skip
PLAIN = (ADAM, BEFORE)  # of which tables have the loss itself
CHARACTERS = 64  # of a sequence


@dataclass(frozen=True)
class Row:
    """A fit: logarithms of the validation loss half way and at the end."""

    policy: str
    problem: str
    warmup: str
    seed: int
    steps: int
    half: float
    end: float


@dataclass(frozen=True)
class Sized(WarmUp):
    """A warm-up whose steps have `rate` for a root mean square; for comparison alone."""

    name = ""

    def update(self, weights, gradient, parameters, state, layout, horizon=None):
        def start():
            size = ops.sqrt(ops.mean(ops.square(gradient)) + 1e-30)
            after = self.observe(weights, gradient, parameters, state, layout)
            return self.rate / size * gradient, after

        def go_on():
            return self.inner.update(weights, gradient, parameters, state, layout, horizon)

        return ops.cond(state.shared["count"] < self.steps, start, go_on)


# --- problems ---------------------------------------------------------------------------------


def of_catalogue(name: str) -> Task:
    """A problem of the catalogue, as `evaluate.py` has it."""
    return load_task(name, "tfds", report=lambda text: None)


def given(build: Callable, train: Batch, validation: Batch, batch_size: int, loss=None) -> Task:
    """A network on examples that are at hand."""
    problem = Problem(build, loss=loss, batch_size=batch_size)
    return Task(problem, Dataset("made here", train, validation, validation))


def text() -> tuple[Batch, Batch, int]:
    """Sequences of tiny_shakespeare, each with itself a character later, and how many there are."""
    import tensorflow_datasets as tfds

    try:
        found = tfds.load("tiny_shakespeare", download=False)
    except (AssertionError, tfds.core.DatasetNotFoundError) as error:
        raise DatasetUnavailable("tiny_shakespeare is not there; TFDS prepares it") from error
    parts = [next(iter(found[k].as_numpy_iterator()))["text"] for k in ("train", "validation")]
    known = np.unique(np.frombuffer(b"".join(parts), "uint8"))
    train, validation = (
        sequences(np.searchsorted(known, np.frombuffer(part, "uint8"))) for part in parts
    )
    return train, validation, len(known)


def sequences(indices: np.ndarray) -> Batch:
    """A text, as indices of characters, cut into sequences: each, and the same a place later."""
    stop = (len(indices) - 1) // CHARACTERS * CHARACTERS
    both = (indices[k : k + stop].reshape(-1, CHARACTERS).astype("int32") for k in (0, 1))
    return Batch(*both)


def gru() -> Task:
    """The next character of a text, by 128 units."""
    train, validation, characters = text()

    def build() -> keras.Model:
        layers = keras.layers
        stack = [layers.Embedding(characters, 32), layers.GRU(128, return_sequences=True)]
        inputs = layers.Input((CHARACTERS,), dtype="int32")
        return keras.Sequential([inputs, *stack, layers.Dense(characters)])

    return given(build, train, validation, 64)


def transformer() -> Task:
    """The next character of a text, by one pre-norm block of width 64."""
    train, validation, characters = text()

    def build() -> keras.Model:
        layers = keras.layers
        inputs = layers.Input((CHARACTERS,), dtype="int32")
        places = layers.Embedding(CHARACTERS, 64)(ops.arange(CHARACTERS)[None])
        x = layers.Embedding(characters, 64)(inputs) + places
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, 16)(y, y, use_causal_mask=True)
        y = layers.Dense(128, "gelu")(layers.LayerNormalization()(x))
        x = layers.LayerNormalization()(x + layers.Dense(64)(y))
        return keras.Model(inputs, layers.Dense(characters)(x))

    return given(build, train, validation, 64)


def autoencoder() -> Task:
    """Images by way of 32 numbers; the mean square of the pixels' errors."""
    data = load_dataset("fashion_mnist", "tfds")

    def build() -> keras.Model:
        layers = keras.layers
        convolution = {"kernel_size": 3, "strides": 2, "padding": "same"}
        stack = [
            layers.Conv2D(16, activation="relu", **convolution),
            layers.Conv2D(8, activation="relu", **convolution),
            layers.Flatten(),
            layers.Dense(32),
            layers.Dense(7 * 7 * 8, "relu"),
            layers.Reshape((7, 7, 8)),
            layers.Conv2DTranspose(16, activation="relu", **convolution),
            layers.Conv2DTranspose(1, activation="sigmoid", **convolution),
        ]
        return keras.Sequential([layers.Input((28, 28, 1)), *stack])

    train, validation = (
        Batch(s.inputs, s.inputs / np.float32(255)) for s in (data.train, data.validation)
    )
    return given(build, train, validation, 128, "mse")


OWN = {"gru": gru, "transformer": transformer, "autoencoder": autoencoder}
EVERY = {name: partial(of_catalogue, name) for name in PROBLEMS} | OWN


# --- fits -------------------------------------------------------------------------------------


def with_warmup(rule: UpdateRule, name: str) -> UpdateRule:
    """A rule with another warm-up in place of its own.

    Raises:
        ValueError: If none has that name.
    """
    bare, found = warmed_up(rule, 0), re.fullmatch(r"(sgd|ramp|rms)-(\d+)(@[\d.]+)?", name)
    if name == "none":
        return bare
    if not found:
        raise ValueError(f"no warm-up is called {name!r}; there are sgd-N, ramp-N, rms-N and none")
    kind, steps, rate = found[1], int(found[2]), float((found[3] or "@0.01")[1:])
    if kind == "sgd":
        return WarmUp(bare, steps, rate)
    if kind == "rms":
        return Sized(bare, steps, SIZE)
    return rewrapped(bare, Scheduled, lambda r: Scheduled(r, constant(1.0, steps)))


def fitted(task: Task, rule: UpdateRule, weights: Sequence, steps: int) -> Callable:
    """What fits a task from a seed, and returns the two losses; infinite where it diverged."""

    class InTwo(Fit):
        """Two epochs are as many steps as are wanted."""

        steps_per_epoch = steps // 2

    data = task.dataset.train, task.dataset.validation
    examples = tf.nest.map_structure(tf.constant, data)
    gradient = privacy_of(task) or plain_gradient
    fit = InTwo(task, rule, weights, *examples, task.batch_size, gradient=gradient)

    def run(seed: int) -> list[float]:
        epochs = fit.run(seed, 2).epochs[1:]
        losses = [math.inf if e.diverged_at is not None else e.validation_loss for e in epochs]
        return [math.log(loss) for loss in (losses + losses[-1:])[:2]]

    return run


def summary(rows: Sequence[Row], problem: str, warmup: str) -> dict:
    """Means over seeds, and of the differences to `BEFORE`, seed by seed, with standard errors."""
    here = {(r.warmup, r.seed): r for r in rows if r.problem == problem}
    seeds = [seed for name, seed in here if name == warmup]
    found: dict[str, Any] = {"problem": problem, "warmup": warmup, "seeds": len(seeds)}
    for part in ("half", "end"):
        losses = [getattr(here[warmup, seed], part) for seed in seeds]
        pairs = [(loss, here.get((BEFORE, seed))) for loss, seed in zip(losses, seeds, strict=True)]
        found[part] = mean(losses)
        found[f"{part}_difference"], found[f"{part}_error"] = mean_and_error(
            [loss - getattr(before, part) for loss, before in pairs if before]
        )
    return found


def mean(values: Sequence[float]) -> float:
    """NaN where there are none."""
    return sum(values) / len(values) if values else math.nan


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """A mean and its standard error, which of a single value is not known."""
    if len(values) < 2 or not np.isfinite(values).all():
        return mean(values), math.nan
    return mean(values), float(np.std(values, ddof=1) / math.sqrt(len(values)))


def show(results: list[dict], part: str, title: str, warmups: Sequence[str]) -> None:
    """Prints the table of one part."""
    print(f"{title:22}" + "".join(f"{w:>8}" if w in PLAIN else f"{w:>16}" for w in warmups))
    for problem in dict.fromkeys(r["problem"] for r in results):
        cells = []
        for warmup in warmups:
            (r,) = [r for r in results if (r["problem"], r["warmup"]) == (problem, warmup)]
            difference = f"{r[f'{part}_difference']:+.3f} ± {r[f'{part}_error']:.3f}"
            cells.append(f"{r[part]:8.2f}" if warmup in PLAIN else f"{difference:>16}")
        print(f"{problem:22}" + "".join(cells))
    print()


def fit_missing(options, policy: l2o.Policy, rules: dict[str, UpdateRule], rows: list[Row]) -> None:
    """Adds the rows that are not there yet, to the file as well."""
    kept = {(r.policy, r.problem, r.warmup, r.seed, r.steps) for r in rows}
    for problem in options.problem:
        task = None
        for warmup, rule in rules.items():
            fit, weights = None, [] if warmup == ADAM else policy.weights
            for seed in range(options.seeds):
                name = (options.policy, problem, warmup, seed, options.steps)
                if name not in kept:
                    task = task or EVERY[problem]()
                    fit = fit or fitted(task, rule, weights, options.steps)
                    rows.append(Row(*name, *fit(seed)))
                    write_table(options.output, rows, Row)


def main() -> None:
    command = parser(__doc__, repeats=False)
    every = [*CATALOGUE, *OWN]
    command.add_argument("problem", nargs="*", help=f"default {' '.join(every)}")
    command.add_argument("--warmups", nargs="+", default=WARMUPS, metavar="W",
                         help=f"beside {BEFORE}; default {' '.join(WARMUPS)}")  # fmt: skip
    command.add_argument("--policy", default="choice-large", metavar="NAME",
                         help="a shipped policy or a directory; default choice-large")  # fmt: skip
    command.add_argument("--steps", type=partial(count, least=2), default=700, metavar="S",
                         help="of a fit; default 700")  # fmt: skip
    command.add_argument("--seeds", type=count, default=3, metavar="N", help="default 3")
    command.add_argument("--output", type=Path, default=Path("runs/warmup.csv"), metavar="FILE",
                         help="where fits are kept; default runs/warmup.csv")  # fmt: skip
    options = command.parse_args()
    options.problem = options.problem or every
    if unknown := set(options.problem) - set(EVERY):
        command.error(f"unknown problem {', '.join(unknown)}; allowed: {', '.join(EVERY)}")
    tf.get_logger().setLevel("ERROR")
    first = [w for w in PLAIN if w == BEFORE or w in options.warmups]
    warmups = list(dict.fromkeys([*first, *options.warmups]))
    try:
        policy = l2o.AmalgamatedOptimizer.load(options.policy).policy
        adam = core(get_candidates("keras:Adam")[0].rule)
        rules = {w: adam if w == ADAM else with_warmup(policy.rule, w) for w in warmups}
        rows = read_table(options.output, Row) if options.output.exists() else []
        fit_missing(options, policy, rules, rows)
    except (ValueError, DatasetUnavailable) as error:  # of a policy or a table too
        command.error(str(error))
    rows = [
        row for row in rows
        if (row.policy, row.steps) == (options.policy, options.steps) and row.seed < options.seeds
    ]  # fmt: skip
    results = [summary(rows, problem, w) for problem in options.problem for w in warmups]
    show(results, "half", f"after {options.steps // 2} steps", warmups)
    show(results, "end", f"after {options.steps // 2 * 2} steps", warmups)
    report("warmup", policy=options.policy, steps=options.steps, results=results)


if __name__ == "__main__":
    main()
