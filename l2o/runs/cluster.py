"""Several machines: processes of one command that share a run by TF_CONFIG.

Every process draws the same numbers and validates by itself; only meta-gradients travel. The chief
writes the run directory, which all must be able to read; the others begin where it begins. What it
may have saved by the time they look is what they would come to by themselves, since nobody gets
past a meta-update alone.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import tensorflow as tf

from l2o.errors import RunError
from l2o.runs.directory import CONFIG, RunDirectory, compare, load
from l2o.runs.files import write_atomically
from l2o.runs.lock import DirectoryError, check_free


def workers() -> tuple[int, int] | None:
    """This process's number among the workers, and how many there are; None if it is alone.

    Raises:
        RunError: If TF_CONFIG is set and does not name them.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        return None
    try:
        config = json.loads(text)
        addresses, task = config["cluster"]["worker"], config["task"]
        names = set(config["cluster"])
        index, count = int(task["index"]), len(addresses)
        good = names == {"worker"} and task["type"] == "worker" and 0 <= index < count
        good = good and all(isinstance(a, str) and ":" in a for a in addresses)
    except (KeyError, TypeError, ValueError, AttributeError):
        good = False
    if not good:
        raise RunError(
            'TF_CONFIG must be as {"cluster": {"worker": ["HOST:PORT", ...]}, '
            f'"task": {{"type": "worker", "index": 0}}}}. Received: {text[:200]}'
        )
    return (index, count) if count > 1 else None


class Follower:
    """What a process that is not the chief has for a run directory: it reads and never writes.

    Args:
        path: The chief's run directory.
        config: The configuration.

    Attributes:
        path: A folder for what it would have written, gone when it is closed.

    Raises:
        DirectoryError: If the run that is there has another configuration.
    """

    def __init__(self, path: Path, config: dict[str, Any]):
        self._chief = Path(path)
        if (self._chief / CONFIG).exists():
            compare(self._chief, config)
        self._folder = tempfile.TemporaryDirectory(prefix="l2o-")
        self.path = Path(self._folder.name)
        write_atomically(self.path / CONFIG, json.dumps(config))

    def save(self, arrays: dict, status: dict) -> None:
        """Leaves it to the chief."""

    def load(self) -> tuple | None:
        """The chief's newest checkpoint that is whole."""
        return load(self._chief)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._folder.cleanup()


def check_place(path: Path, fresh: bool) -> None:
    """Looks, and only looks, whether a run may be kept there by this process.

    Args:
        path: The run directory, which need not exist.
        fresh: Whether a run that is there is to be moved aside.

    Raises:
        DirectoryError: If it may not.
    """
    if fresh and workers():
        raise DirectoryError("--fresh: with several workers, move the run aside yourself")
    if not _follows():
        check_free(path, CONFIG, fresh)


def open_directory(path: Path, config: dict[str, Any]) -> RunDirectory | Follower:
    """The run directory as this process may use it.

    Raises:
        DirectoryError: If it cannot be used.
    """
    return Follower(path, config) if _follows() else RunDirectory(path, config)


def _follows() -> bool:
    """Whether another process, the chief, writes the run directory."""
    place = workers()
    return place is not None and place[0] > 0


def make_cluster(meta_batch: int) -> tf.distribute.Strategy:
    """MultiWorkerMirroredStrategy; waits until all workers are there.

    Raises:
        RunError: If they do not divide the meta-batch.
    """
    _, count = workers() or (0, 1)
    replicas = count * max(len(tf.config.list_physical_devices("GPU")), 1)
    if meta_batch % replicas:
        raise RunError(
            f"The meta-batch, {meta_batch}, must be a multiple of all workers' devices. "
            f"Received: {replicas}"
        )
    return tf.distribute.MultiWorkerMirroredStrategy()
