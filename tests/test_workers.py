"""Two processes on loopback that train as one, by TF_CONFIG."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ports import free_ports

from l2o.errors import RunError
from l2o.policies.checkpoint import load_policy
from l2o.runs.cluster import check_place, workers
from l2o.runs.lock import DirectoryError

_ROOT = Path(__file__).parent.parent
_LINE = (
    "--strategy none --data digits --problem mnist_mlp --preset smoke --truncation 2 --unrolls 2 4 "
    "--alphas 0.2 0.2 --last-validation 4 --warmup-steps 2 --meta-batch 2 --period 4 --output run"
).split()


def start(folder: Path, *more: str, config: dict | None = None) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, _ROOT / "train.py", *_LINE, *more],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | ({"TF_CONFIG": json.dumps(config)} if config else {}),
    )  # fmt: skip


def start_two(folder: Path, *more: str) -> list[subprocess.Popen]:
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    tasks = [{"type": "worker", "index": k} for k in range(2)]
    return [start(folder, *more, config={"cluster": {"worker": addresses}, "task": t})
            for t in tasks]  # fmt: skip


def end(process: subprocess.Popen) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=400)
    return process.returncode, out[-500:], error[-2000:]


def rows(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def assert_alike(run: Path, expected: Path) -> None:
    for a, b in zip(
        load_policy(run / "policy").weights, load_policy(expected / "policy").weights, strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for here, there in zip(rows(run / "updates.csv"), rows(expected / "updates.csv"), strict=True):
        assert here["update"] == there["update"]
        assert float(here["meta_loss"]) == pytest.approx(float(there["meta_loss"]), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--estimator", "es", "--set", "shortest=2")], ids=str)
def test_two_workers_train_as_one_and_go_on_after_a_death(more, tmp_path):
    for name in ("alone", "two", "killed"):
        (tmp_path / name).mkdir()
    assert end(start(tmp_path / "alone", *more))[0] == 0
    for process in start_two(tmp_path / "two", *more):
        status, out, error = end(process)
        assert (status, error) == (0, ""), out
    assert_alike(tmp_path / "two" / "run", tmp_path / "alone" / "run")
    files = lambda name: {p.name for p in (tmp_path / name).rglob("*") if p.suffix != ".h5"}  # noqa: E731
    assert files("two") == files("alone")  # nothing of the other worker's

    chief, other = start_two(tmp_path / "killed", *more)
    deadline = time.monotonic() + 300
    while not (tmp_path / "killed" / "run" / "policy" / "policy.json").exists():
        assert chief.poll() is None and time.monotonic() < deadline, end(chief)
        time.sleep(0.05)
    other.kill()
    other.communicate()
    status, out, error = end(chief)
    assert status == 2 and "A worker is gone" in error and error.count("error: ") == 1, error
    assert "Traceback" not in error
    for process in start_two(tmp_path / "killed", *more):
        status, out, error = end(process)
        assert (status, error) == (0, ""), out
    assert_alike(tmp_path / "killed" / "run", tmp_path / "alone" / "run")
    for process in start_two(tmp_path / "killed", *more):  # there is nothing left to do
        assert end(process)[::2] == (0, "")


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "7", '{"cluster": {}}', '{"cluster": {"worker": []}, "task": {"index": 0}}',
        '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 2}}',
        '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "ps", "index": 0}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["b:2"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": [1, 2]}, "task": {"type": "worker", "index": 0}}',
    ],
)  # fmt: skip
def test_a_wrong_tf_config_is_one_line(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(RunError, match="TF_CONFIG must be as") as error:
        workers()
    assert "\n" not in str(error.value)


def test_only_the_chief_needs_to_write_and_none_moves_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may do anything
    cluster = {"worker": ["a:1", "b:2"]}
    for index in (0, 1):
        task = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(task))
        with pytest.raises(DirectoryError, match="--fresh: with several workers"):
            check_place(tmp_path, fresh=True)
        if index == 0:
            with pytest.raises(DirectoryError, match="no permission to write"):
                check_place(tmp_path, fresh=False)
    check_place(tmp_path, fresh=False)


def test_one_worker_is_no_cluster(monkeypatch):
    assert workers() is None
    task = {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(task))
    assert workers() is None
