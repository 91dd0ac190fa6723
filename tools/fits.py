"""Fits the Train network a hundred times at once on a GPU, in JAX: what rates and decays are worth.

    python tools/fits.py mnist.npz fits.csv --optimizer choice-large/1 adam@0.005 \\
        --weight-decay 0 3e-4 6e-4

What `evaluate.py --problem mnist_cnn` does with `--weight-decay` and `--ema`, for optimizers,
decays and seeds in every combination, with other initial weights and batches. A policy's own decay
and averaging are left aside. It needs Keras and JAX, but no TensorFlow; mnist.npz holds inputs
uint8 [N, 28, 28] and labels [N], and the same as validation_inputs, test_labels and so on.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

os.environ["KERAS_BACKEND"] = "jax"
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from draws import BATCH, begin, read_examples  # noqa: E402
from jax_unroll import LAYOUT, network_loss  # noqa: E402

import l2o  # noqa: E402
from l2o.amalgamation.draws import batch_indices  # noqa: E402
from l2o.rules import TEACHERS, UpdateRule, WarmUp, get_teacher, layer  # noqa: E402

SCORED_AT_ONCE = 1000
STREAM = 9  # of random numbers, apart from those of replicates.py
COLUMNS = ("optimizer", "weight_decay", "seed", "epoch", "validation_loss", "test_loss",
           "averaged_validation_loss", "averaged_test_loss")  # fmt: skip


class Fit(NamedTuple):
    """Where a fit stands: parameters [D], their moving average, the rule's state."""

    parameters: Any
    average: Any
    state: Any


def begun(rule: UpdateRule, parameters) -> Fit:
    """A fit before its first step."""
    return Fit(parameters, parameters, rule.initial_state(LAYOUT))


def advance(rule: UpdateRule, weights: list, decay, momentum, data, fit: Fit, batches) -> Fit:
    """The fit after the steps of `batches`, int32 [S, B]; the rule has a warm-up."""
    start = layer(rule, WarmUp)

    def step(fit: Fit, chosen):
        gradient = jax.grad(network_loss)(fit.parameters, data, chosen)
        count = fit.state.shared["count"]
        step, state = rule.update(weights, gradient, fit.parameters, fit.state, LAYOUT)
        rate = jnp.where(count < start.steps, start.rate, 1.0)
        parameters = fit.parameters - step - rate * decay * fit.parameters
        kept = jnp.where(count > 0, momentum, 0.0)
        average = kept * fit.average + (1 - kept) * parameters
        return Fit(parameters, average, state), None

    return jax.lax.scan(step, fit, batches)[0]


def program(rule: UpdateRule, weights: list, momentum: float, data):
    """What advances fits [F] of decays [F]; `which` [F] of the batches [seeds, S, B] is each's."""

    def one(decay, fit, batches, which):
        return advance(rule, weights, decay, momentum, data, fit, batches[which])

    return jax.jit(jax.vmap(one, (0, 0, None, 0)))


def score(data, parameters):
    """Log losses [F] of all examples, of parameters [F, D]."""
    several = jax.vmap(network_loss, (0, None, None))
    rows = jnp.arange(len(data[1])).reshape(-1, SCORED_AT_ONCE)
    return jnp.log(jax.lax.map(lambda chosen: several(parameters, data, chosen), rows).mean(axis=0))


def optimizer(name: str) -> tuple[UpdateRule, list]:
    """A rule and its weights: a policy's directory or name, a teacher, or one at another rate."""
    teacher, at, rate = name.partition("@")
    if teacher in TEACHERS:
        return WarmUp(get_teacher(teacher, float(rate) if at else None)), []
    policy = l2o.AmalgamatedOptimizer.load(name, averaging=0, weight_decay=None).policy
    return policy.rule, [jnp.asarray(w) for w in policy.weights]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    # fmt: off
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("data", type=Path, help="mnist.npz")
    p.add_argument("output", type=Path, help="table of all fits by epoch, a new one")
    p.add_argument("--optimizer", nargs="+", default=["choice-large", "adam"], metavar="WHAT",
                   help="shipped policies, policy directories, teachers (adam, adam@0.005)")
    p.add_argument("--weight-decay", type=float, nargs="+", default=[0.0], metavar="W",
                   help="as in evaluate.py, several; default 0")
    p.add_argument("--ema", type=float, default=0.998, metavar="M",
                   help="momentum of the averages, which are scored too; default 0.998")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="S",
                   help="one fit each; default 0 1 2")
    p.add_argument("--epochs", type=int, default=25, metavar="E", help="default 25")
    # fmt: on
    return p


def main() -> None:
    command = parser()
    options = command.parse_args()
    if options.output.exists():
        command.error(f"there is something in {options.output}")
    try:
        contenders = {name: optimizer(name) for name in options.optimizer}
    except ValueError as error:  # PolicyError too
        command.error(str(error))
    train, validation, test = (
        tuple(map(jnp.asarray, read_examples(options.data, part)))
        for part in ("", "validation_", "test_")
    )
    seeds, per_epoch, started = options.seeds, len(train[1]) // BATCH, time.monotonic()
    places, _ = begin([[[s, STREAM, 0]] for s in seeds], False)
    lanes = list(product(options.weight_decay, range(len(seeds))))  # of every optimizer
    decays, which = (jnp.asarray(column) for column in zip(*lanes, strict=True))

    fits, programs = {}, {}
    for name, (rule, weights) in contenders.items():
        fits[name] = jax.vmap(partial(begun, rule))(jnp.asarray(places[:, 0])[which])
        programs[name] = program(rule, weights, options.ema, train)
    measure = jax.jit(lambda places: [score(data, places) for data in (validation, test)])
    with options.output.open("x", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for epoch in range(options.epochs):
            start = epoch * per_epoch
            keys, examples = [[s, STREAM, 1] for s in seeds], len(train[1])
            batches = [batch_indices(key, examples, BATCH, start, per_epoch) for key in keys]
            batches = jnp.asarray(np.stack(batches))
            for name, proceed in programs.items():
                fits[name] = proceed(decays, fits[name], batches, which)
                losses = [*measure(fits[name].parameters), *measure(fits[name].average)]
                for (decay, k), *row in zip(lanes, *np.asarray(losses), strict=True):
                    table.writerow([name, decay, seeds[k], epoch + 1, *(f"{x:.4f}" for x in row)])
            file.flush()
            print(f"epoch {epoch + 1} after {time.monotonic() - started:.0f} s", flush=True)
    print(summary(options.output))


def summary(path: Path) -> str:
    """Of each optimizer and decay the mean over seeds of the best log validation loss.

    NaN where one of its fits diverged.
    """
    fits: dict[tuple, dict] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            found = fits.setdefault((row["optimizer"], row["weight_decay"]), {})
            for kind in ("", "averaged_"):
                losses = [float(row[f"{kind}{part}_loss"]) for part in ("validation", "test")]
                found.setdefault((kind, row["seed"]), []).append(losses)
    lines = ["optimizer, weight decay: validation, test; averaged: validation, test"]
    for (name, decay), found in fits.items():
        best = {key: min(epochs) if np.isfinite(epochs).all() else [np.nan] * 2
                for key, epochs in found.items()}  # fmt: skip
        means = [np.mean([v for (k, _), v in best.items() if k == kind], axis=0)
                 for kind in ("", "averaged_")]  # fmt: skip
        lines.append(f"{name}, {decay}: " + "; ".join(f"{a:.3f}, {b:.3f}" for a, b in means))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
