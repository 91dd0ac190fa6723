"""AmalgamatedOptimizer on ten million parameters."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_ten_million_parameters_train_in_24_gigabytes():
    command = [sys.executable, str(ROOT / "benchmarks" / "optimizer.py"), "--network", "dense10m"]
    options = "--batch 8 --steps 2 --repeats 1 --executions 1".split()
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["results"][0]["parameters"] >= 1e7
    assert report["results"][0]["bytes_per_parameter"] == pytest.approx(328, abs=1)
    assert report["peak_gb"] < 24
