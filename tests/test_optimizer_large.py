"""AmalgamatedOptimizer on ten million parameters."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_ten_million_parameters_train_in_24_gigabytes():
    command = [sys.executable, str(ROOT / "benchmarks" / "optimizer.py"), "dense10m"]
    options = "--batch 8 --steps 2 --repeats 1".split()
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    adam, policy = (report["results"][0][name] for name in ("adam", "policy"))
    assert policy["parameters"] >= 1e7
    assert policy["state_mb"] * 2**20 / policy["parameters"] == pytest.approx(332, abs=1)
    assert policy["peak_mb"] < 1.5 * adam["peak_mb"] + 2 * policy["state_mb"]
