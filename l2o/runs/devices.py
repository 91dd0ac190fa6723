"""The devices and the cores that a run computes on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

import joblib
import tensorflow as tf

from l2o.errors import RunError
from l2o.runs.cluster import make_cluster, workers

MOST_LOGICAL = 64  # devices that one CPU is divided into


def make_strategy(devices: int | Sequence[str] | None, meta_batch: int) -> tf.distribute.Strategy:
    """MirroredStrategy over GPUs or logical devices of the CPU, or several workers.

    Args:
        devices: See `chosen_devices`.
        meta_batch: Trajectories a meta-update.

    Raises:
        RunError: If there are no such devices, or they do not divide the meta-batch; or TF_CONFIG
            cannot be.
    """
    take_cores()
    if workers():
        if devices:
            raise RunError("--devices: with several workers, each uses all of its GPUs or one CPU")
        return make_cluster(meta_batch)
    names = chosen_devices(devices, len(tf.config.list_physical_devices("GPU")))
    if meta_batch % len(names):
        raise RunError(
            f"The meta-batch, {meta_batch}, must be a multiple of the devices. "
            f"Received: {len(names)}"
        )
    cpu = tf.config.list_physical_devices("CPU")[0]
    logical = [tf.config.LogicalDeviceConfiguration()] * len(names)
    if "/cpu:1" in names and not tf.config.get_logical_device_configuration(cpu):
        try:
            tf.config.set_logical_device_configuration(cpu, logical)
        except RuntimeError as error:
            raise RunError(
                f"--devices: TensorFlow is in use already, with the CPU as one device; ask for "
                f"{len(names)} before anything is computed"
            ) from error
    return tf.distribute.MirroredStrategy(names)


def chosen_devices(devices: int | Sequence[str] | None, gpus: int) -> list[str]:
    """TensorFlow's names of the devices to train on.

    Args:
        devices: How many, or which GPUs ("gpu:0"); all GPUs, or the CPU, by default.
        gpus: GPUs this machine has; without any, a number is one of the CPU's logical devices.

    Raises:
        RunError: If there are no such devices.
    """
    named = [f"gpu:{k}" for k in range(gpus)]
    devices = [devices] if isinstance(devices, str) else devices
    if not isinstance(devices, Sequence):
        count = (gpus or 1) if devices is None else devices
        names = named or [f"cpu:{k}" for k in range(MOST_LOGICAL)]
        if not 1 <= count <= len(names):
            most = f"there are {gpus} GPUs" if gpus else f"at most {MOST_LOGICAL} logical ones"
            raise RunError(f"--devices: {most}. Received: {count}")
        names = names[:count]
    else:
        names, there = list(dict.fromkeys(devices)), ", ".join(named) or "no GPU"
        if unknown := [name for name in names if name not in named]:
            raise RunError(f"--devices: there is {there}. Received: {', '.join(unknown)}")
    return [f"/{name}" for name in names]


def cores() -> int:
    """How many cores this process may use: by its affinity, and by its container's quota."""
    return joblib.cpu_count()


def take_cores() -> None:
    """Has TensorFlow compute with a thread for each of these cores, unless it was told otherwise.

    It heeds affinity by itself, but no quota: threads beyond that wait for one another
    (docs/performance.md). Where TensorFlow is in use already, its threads stay as they are.
    """
    for kind in ("intra", "inter"):
        if f"TF_NUM_{kind.upper()}OP_THREADS" not in os.environ:
            with suppress(RuntimeError):
                getattr(tf.config.threading, f"set_{kind}_op_parallelism_threads")(cores())
