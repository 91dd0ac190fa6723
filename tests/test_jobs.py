"""`--jobs`: the same results from several processes, and none of them outlives the command."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from l2o.evaluation.results import by_evaluation, read_results
from l2o.policies.checkpoint import PolicyError, load_policy
from l2o.runs.jobs import spread

_ROOT = Path(__file__).parent.parent
_TRAIN = (
    "train.py --strategy none --data digits --problem mnist_mlp --preset smoke --truncation 2 "
    "--unrolls 2 --alphas 0.2 --updates 2 --warmup-steps 2 --replicates 2"
).split()
_EVALUATE = (
    "evaluate.py --data digits --problem mnist_mlp --optimizer adam sgd --repeats 2 --epochs 1"
).split()


def start(folder, *words) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, _ROOT / words[0], *words[1:], "--output", "out"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(process: subprocess.Popen, status: int = 0) -> str:
    out, error = process.communicate(timeout=300)
    assert (process.returncode, error) == (status, ""), out
    return out


@pytest.mark.slow
def test_replicates_in_two_processes(tmp_path):
    (tmp_path / "one").mkdir()
    out = end(start(tmp_path, *_TRAIN, "--jobs", "2"))
    assert "2 runs in 2 processes" in out and out.count("of 2: model.compile(") == 2
    alone = _TRAIN[: _TRAIN.index("--replicates")]
    end(start(tmp_path / "one", *alone, "--seed", "1"))
    expected = load_policy(tmp_path / "one" / "out" / "policy")
    for a, b in zip(
        load_policy(tmp_path / "out" / "2" / "policy").weights, expected.weights, strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # threads sum in another order


def test_why_a_process_could_not_start_is_told():
    with pytest.raises(PolicyError, match="nowhere"):
        list(spread(print, [()], 1, load_policy, ("nowhere",)))


def wait_for(process: subprocess.Popen, *paths: Path) -> None:
    deadline = time.monotonic() + 200
    while not all(path.exists() for path in paths):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_command(number, tmp_path):
    line = [*_TRAIN, "--jobs", "2"]
    line[line.index("--updates") + 1] = "1000"
    process = start(tmp_path, *line)
    wait_for(process, *(tmp_path / "out" / k / "updates.csv" for k in "12"))
    process.send_signal(number)
    if number == signal.SIGINT:
        out = end(process, 130)
        assert out.endswith("Stopped. The runs are kept; the same command goes on with them.\n")
    process.communicate()
    deadline = time.monotonic() + (0 if number == signal.SIGINT else 100)
    while not all(is_free(tmp_path / "out" / k) for k in "12"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert all((tmp_path / "out" / k / "checkpoint.npz").exists() for k in "12")


def is_free(run: Path) -> bool:
    """Whether no process holds a run's directory."""
    with open(run / ".lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.slow
def test_evaluations_in_two_processes(tmp_path):
    (tmp_path / "one").mkdir()
    end(start(tmp_path, *_EVALUATE, "--jobs", "2"))
    end(start(tmp_path / "one", *_EVALUATE))
    several = by_evaluation(read_results(tmp_path / "out"))
    alone = by_evaluation(read_results(tmp_path / "one" / "out"))
    assert several.keys() == alone.keys() and len(alone) == 4
    for key, rows in alone.items():
        for a, b in zip(several[key], rows, strict=True):
            assert a.validation_loss == pytest.approx(b.validation_loss, rel=1e-5)
    steps = lambda path: {p.name for p in (path / "out" / "steps").iterdir()}  # noqa: E731
    assert steps(tmp_path) == steps(tmp_path / "one")
    before = os.stat(tmp_path / "out" / "results.csv").st_mtime_ns
    end(start(tmp_path, *_EVALUATE, "--jobs", "2"))  # there is nothing left to do
    assert os.stat(tmp_path / "out" / "results.csv").st_mtime_ns == before
