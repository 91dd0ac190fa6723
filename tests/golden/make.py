"""Writes the golden files that are not there; those that are stay as they are, for ever.

    python tests/golden/make.py

The first were written by the code of commit 4af106a. What is written for a later form of a file
gets a name of its own.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import chdir
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import numpy as np
from made_golden import (
    EVALUATION,
    GOLDEN,
    MODELS,
    RULES,
    RUN,
    STEPS,
    STOPPED,
    TRUNCATIONS,
    applied,
    model,
    optimizer,
    policy,
    precision,
    shipped,
    trained,
    truncated,
)

from l2o import AmalgamatedOptimizer, Policy, pretrained
from l2o.commands import evaluate, train
from l2o.rules import decayed
from l2o.runs.directory import CSVLog


def absent(folder: str, names: Iterable[str], ending: str) -> list[tuple[str, Path]]:
    """Names whose files are not there, and the files."""
    (GOLDEN / folder).mkdir(exist_ok=True)
    paths = [(name, GOLDEN / folder / f"{name}{ending}") for name in names]
    return [(name, path) for name, path in paths if not path.exists()]


def models() -> None:
    """Saved models, their weights, their optimizers' configurations, and steps before and after."""
    for name, path in absent("models", MODELS, ".npz"):
        with precision("mixed_float16" if name == "mixed_float16" else "float32"):
            compiled = model(optimizer(name))
            config = keras.saving.serialize_keras_object(compiled.optimizer)
            path.with_suffix(".json").write_text(json.dumps(config, indent=1) + "\n")
            first = trained(compiled, range(STEPS))
            compiled.save(path.with_suffix(".keras"))
            compiled.save_weights(path.with_suffix(".weights.h5"))
            following = trained(compiled, range(STEPS, 2 * STEPS))
            np.savez_compressed(path, first=first, following=following)


def policies() -> None:
    """Policy directories, and the last steps of 104 from each, whose warm-up takes 100."""
    for name, path in absent("policies", (*RULES, "decayed"), ""):
        decays = name == "decayed"
        made = policy("rnnprop" if decays else name)
        Policy(decayed(made.rule, 1e-3 * decays), made.weights, made.card).save(path)
        np.savez_compressed(path / "steps.npz", steps=applied(AmalgamatedOptimizer.load(path), 104))


def runs() -> None:
    """A run that was never stopped, as tables and policies, and one stopped in each phase."""
    (GOLDEN / "runs").mkdir(exist_ok=True)
    for name, updates in {"whole": 0, **STOPPED}.items():
        if not (path := GOLDEN / "runs" / name).exists():
            command(train.main, f"{RUN} --output {path}", stop_after=updates)
            for file in ("checkpoint.previous.npz", "progress.png", ".lock"):
                (path / file).unlink(missing_ok=True)
    (GOLDEN / "runs" / "whole" / "checkpoint.npz").unlink(missing_ok=True)


def command(main: Callable, line: str, stop_after: int = 0) -> None:
    """Runs a command, and stops it with a signal once its run has so many meta-updates."""
    append, rows = CSVLog.append, 0

    def counted(table, row) -> None:
        nonlocal rows
        append(table, row)
        rows += "update" in row
        if rows == stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    CSVLog.append = counted
    try:
        with chdir(GOLDEN / "policies"):
            main(line.split())
    except SystemExit as end:
        if end.code != (130 if stop_after else 0):
            raise
    finally:
        CSVLog.append = append


def results() -> None:
    """A directory of results."""
    if not (path := GOLDEN / "results").exists():
        command(evaluate.main, f"{EVALUATION} --output {path}")
        (path / ".lock").unlink(missing_ok=True)
        shutil.rmtree(path / "samples")


def truncations() -> None:
    """One truncation of each case, in both precisions."""
    for floatx in ("float64", "float32"):
        for name, path in absent(f"truncations/{floatx}", TRUNCATIONS, ".npz"):
            with precision(floatx):
                np.savez_compressed(path, **truncated(TRUNCATIONS[name]))


def steps() -> None:
    """The first 50 steps of every shipped policy."""
    names = [name for name in pretrained() if "/" in name]
    for name, path in absent("shipped", (n.replace("/", "-") for n in names), ".npz"):
        np.savez_compressed(path, **shipped("/".join(name.rsplit("-", 1))))


if __name__ == "__main__":
    (GOLDEN / "truncations").mkdir(exist_ok=True)
    for make in (models, policies, runs, results, truncations, steps):
        make()
