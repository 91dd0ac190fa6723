"""2,000 meta-updates leave memory, threads, open files and files on disk as they were."""

import os
import resource
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from made_tasks import with_data

from l2o.amalgamation.curriculum import Stage, Stages
from l2o.amalgamation.plan import Meta, Phase
from l2o.amalgamation.trainer import Trainer
from l2o.rules import RNNProp
from l2o.rules.layout import Layout
from l2o.runs.directory import RunDirectory

_PERIODS = 40


class Parabola:
    """A loss of four parameters: a meta-update is all bookkeeping."""

    layout = Layout(("x",), ((4,),))

    def initial(self, seed):
        return np.random.default_rng(seed).normal(size=4).astype("float32"), []

    def loss(self, parameters, carried, batch, training):
        return tf.reduce_mean(tf.square(parameters - tf.reduce_mean(batch.inputs))), carried


def measured(path: Path) -> dict[str, int]:
    """What must not grow."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory": pages * resource.getpagesize(),
        "threads": len(os.listdir("/proc/self/task")),
        "python threads": threading.active_count(),
        "open files": len(os.listdir("/proc/self/fd")),
        "files": sum(1 for _ in path.rglob("*")),
    }


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_thousand_updates(data, tmp_path):
    stage = Stage((2,), 2)
    schedule = Stages(
        (stage,), truncation=2, meta_batch=1, period=2000 // _PERIODS, min_periods=_PERIODS,
        max_periods=_PERIODS, patience=_PERIODS, validation_trajectories=1,
    )  # fmt: skip
    phases = (Phase("policy", RNNProp(units=3), "none", schedule),)
    strategy, seen = tf.distribute.MirroredStrategy(["CPU:0"]), []

    def callback(event, facts):
        if event == "period":
            seen.append(measured(tmp_path))

    with RunDirectory(tmp_path / "run", {}) as directory:
        trainer = Trainer(
            phases, Meta(), [with_data(Parabola(), data, 8)], strategy, directory, {}, callback
        )
        trainer.run()
    assert len(seen) == _PERIODS
    early, late = seen[_PERIODS // 4], seen[-1]  # by then everything has been traced
    assert late["memory"] - early["memory"] < 10 * 2**20
    for name in ("threads", "python threads", "open files", "files"):
        assert late[name] <= early[name], name
