"""Threads: one a core that a process may use, whatever the machine has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from l2o.runs.devices import cores

if not hasattr(os, "sched_getaffinity"):
    pytest.skip("this system binds no process to a core", allow_module_level=True)
_ROOT = Path(__file__).parents[1]
_TOLD = """
import tensorflow as tf
from l2o.runs.devices import make_strategy
make_strategy(None, 1)
threading = tf.config.threading
print(threading.get_intra_op_parallelism_threads(), threading.get_inter_op_parallelism_threads())
"""


def told(**environment: str) -> str:
    """The threads that a run gives TensorFlow in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"} | environment
    command = [sys.executable, "-c", _TOLD]
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout.strip()


def test_cores_are_those_that_a_process_is_bound_to(monkeypatch):
    """As joblib counts them, which heeds a container's quota too."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert cores() <= len(before)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core is one thread anyway")
def test_a_run_has_a_thread_for_each_core():
    """Joblib's own variable stands for a quota here, as tests have no container."""
    assert told() == f"{cores()} {cores()}"
    assert told(LOKY_MAX_CPU_COUNT="1") == "1 1"
    assert told(LOKY_MAX_CPU_COUNT="1", TF_NUM_INTRAOP_THREADS="2") == "0 1"  # 0: as it is told
