"""Real processes stopped again and again, at every kind of moment, come to the same end.

`stopped.py` says what a moment is. Every list of stops is of one run: each process goes on where
the one before it was stopped, and the last is left alone. The run it is compared with was never
stopped.
"""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from l2o.policies.checkpoint import load_policy

_HELPER = Path(__file__).parent / "stopped.py"
_TRAIN = (
    "train.py --data digits --problem mnist_mlp --preset smoke --truncation 2 "
    "--warmup-steps 2 --last-validation 4"
).split()
_SHORT = [*_TRAIN, *"--strategy none --unrolls 2 --alphas 0.2".split()]
_LONG = [
    *_TRAIN,
    *"--pool small --unrolls 2 4 --alphas 0.2 0.1".split(),
    *"--choice-unrolls 2 4 --choice-validation 4".split(),
    *"--set min_periods=14 max_periods=14 patience=14".split(),
]
_EVALUATE = (  # so many repeats that a fast machine is not through before the last stop
    "evaluate.py --data digits --problem mnist_mlp --optimizer adam sgd --repeats 64 --epochs 1"
).split()
_NEVER = ("", 10**9, 0, "SIGKILL")
# What a checkpoint's file operations are called.
_NEW, _OLD = "rename .checkpoint.npz.next.tmp checkpoint.npz", "rename checkpoint.npz"


def run(stop, command, folder) -> tuple[int, str, str]:
    """Exit status (minus the signal that ended it), stdout and stderr of a process."""
    folder.mkdir(exist_ok=True)
    words = [sys.executable, _HELPER, json.dumps(stop), *command, "--output", "run"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout, done.stderr


def rows(path: Path) -> list[dict]:
    """A table's rows without the seconds they took."""
    with open(path, newline="") as file:
        found = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ("seconds", "cpu_seconds")} for row in found]


def assert_same_policy(path: Path, expected: Path) -> None:
    here, there = load_policy(path), load_policy(expected)
    for a, b in zip(here.weights, there.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert here.rule == there.rule
    assert here.card | {"seconds": 0} == there.card | {"seconds": 0}


def assert_stopped(stop, status: int, out: str, error: str, graceful: bool) -> None:
    """The process ended as `stop` has it end, and said so in a line."""
    _, _, delay, action = stop
    said = (stop, status, out[-300:], error)
    assert "Traceback" not in error, said
    if action == "full":
        assert status == 2, said
        assert error.startswith("error: ") and error.count("\n") == 1, said
        assert "File too large: '" in error and "What had been saved is kept" in error, said
    elif action == "SIGKILL" or not graceful:
        assert status in (-signal.Signals[action], 130), said
    else:
        assert status == 130 and "the same command goes on with it" in out, said


def trained_alike(command, stops, path: Path) -> None:
    assert run(_NEVER, command, path / "whole")[0] == 0
    for stop in stops:
        assert_stopped(stop, *run(stop, command, path / "often"), graceful=stop[1] > 0)
    status, out, error = run(_NEVER, command, path / "often")
    assert (status, error) == (0, "") and "gone on with" in out
    often, whole = path / "often" / "run", path / "whole" / "run"
    for name in (p.name for p in whole.iterdir() if p.is_dir()):
        assert_same_policy(often / name, whole / name)
    for table in ("updates.csv", "periods.csv"):
        assert rows(often / table) == rows(whole / table)
    leavings = {p.name for p in often.rglob("*")} ^ {p.name for p in whole.rglob("*")}
    assert leavings == set()


def evaluated_alike(stops, path: Path) -> None:
    assert run(_NEVER, _EVALUATE, path / "whole")[0] == 0
    for stop in stops:
        assert_stopped(stop, *run(stop, _EVALUATE, path / "often"), graceful=False)
    status, out, error = run(_NEVER, _EVALUATE, path / "often")
    assert (status, error) == (0, "")
    often, whole = path / "often" / "run", path / "whole" / "run"
    assert rows(often / "results.csv") == rows(whole / "results.csv")
    files = {str(p.relative_to(whole)) for p in whole.rglob("*")}
    assert {str(p.relative_to(often)) for p in often.rglob("*")} == files
    for steps in whole.glob("steps/*.npz"):
        assert (often / "steps" / steps.name).read_bytes() == steps.read_bytes()


def test_training_stopped_three_times(tmp_path):
    stops = [
        (_NEW, 3, 0, "SIGKILL"),  # a period is over; its checkpoint has no name at this moment
        ("open periods.csv", 1, 3.0, "SIGTERM"),  # in the first update, or its tracing
        (_OLD, 1, 0, "full"),  # the period's unrolls are behind; its end cannot be written
    ]
    trained_alike(_SHORT, stops, tmp_path)


def test_evaluation_stopped(tmp_path):
    """Where an evaluation's steps are there and its rows are not."""
    evaluated_alike([("rename .results.csv", 3, 0, "SIGKILL")], tmp_path)


_PLACES = [  # file operations, and the latest of each kind that a stop waits for
    (_NEW, 2), (_OLD, 2), ("rename ..checkpoint", 2), ("open ..checkpoint", 2),
    ("open .weights", 1), ("open .policy.json", 1), ("rename .policy.json", 1),
    ("remove weights", 1), ("rename .updates.csv", 1), ("open periods.csv", 1),
]  # fmt: skip
_ACTIONS = ["SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "full"]


def draw(generator: np.random.Generator, number: int, places: list, wait: float) -> list[tuple]:
    """Stops at random: half of them at a file operation, half some time after it."""
    stops = []
    for _ in range(number):
        event, latest = places[generator.integers(len(places))]
        delay = generator.choice([0, round(generator.uniform(0, wait), 3)])
        action = _ACTIONS[generator.integers(len(_ACTIONS))]
        stops.append((event, int(generator.integers(latest)) + 1, float(delay), action))
    return stops


@pytest.mark.slow
def test_training_stopped_thirty_times(tmp_path):
    """Two phases, three stages."""
    stops = [
        ("", 0, 0.5, "SIGKILL"),  # while libraries are loaded
        ("", 0, 6.0, "SIGTERM"),
        ("rename .progress.png", 1, 0, "SIGKILL"),  # the first phase is over
        (_OLD, 1, 0, "SIGKILL"),  # the second begins
        (_NEW, 1, 0, "SIGKILL"),
        *draw(np.random.default_rng(10), 25, _PLACES, wait=1.0),
    ]
    trained_alike(_LONG, stops, tmp_path)


@pytest.mark.slow
def test_evaluation_stopped_eight_times(tmp_path):
    places = [
        ("rename .results.csv", 2), ("open .results.csv", 2), ("open .mnist_mlp", 2),
        ("rename .mnist_mlp", 2), ("open .digits.npy", 1),
    ]  # fmt: skip
    stops = draw(np.random.default_rng(11), 8, places, wait=1.0)
    evaluated_alike(stops, tmp_path)
