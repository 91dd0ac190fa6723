"""A whole run, from its phases to its policy: what `train.py` and `l2o.amalgamate` share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from numbers import Integral
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import l2o
from l2o.amalgamation.cluster import ClusterError, make_cluster, open_directory, workers
from l2o.amalgamation.optimizee import Batch, KerasOptimizee
from l2o.amalgamation.plan import Meta, Phase
from l2o.amalgamation.settings import Settings
from l2o.amalgamation.trainer import Trainer
from l2o.amalgamation.watch import Watch
from l2o.checkpoint import Policy, fingerprint, load_policy
from l2o.claim import DirectoryError
from l2o.threads import take_cores

MOST_LOGICAL = 64  # devices that one CPU is divided into


class RunError(ValueError):
    """A run that cannot be, or came to nothing; the message says why in one line."""


def conduct(
    phases: tuple[Phase, ...],
    meta: Meta,
    optimizee: KerasOptimizee,
    data: Batch,
    batch_size: int,
    strategy: tf.distribute.Strategy,
    directory: Path,
    origin: dict[str, Any],
    tensorboard: bool = False,
    named: bool = True,
) -> Policy:
    """Trains in a run directory, or goes on with the run that is there, and shows how it goes.

    Sets the global seeds, and TensorFlow's operations to be repeatable, for the whole process.

    Args:
        phases: In order.
        meta: Settings.
        optimizee: The network.
        data: The training examples, as NumPy arrays.
        batch_size: Examples an inner step.
        strategy: A `tf.distribute` strategy.
        directory: Where the run is kept.
        origin: From `origin_of`.
        tensorboard: Whether to write event files.
        named: Whether to say where the run is.

    Raises:
        DirectoryError: If the directory cannot be used, or holds another run.
        Stopped: After SIGINT or SIGTERM, once what there is has been saved.
        Diverged: If it cannot recover.
        ClusterError: If another worker is gone.
        RunError: If there are not examples enough.
    """
    config = origin | {"meta": asdict(meta), "phases": [_described(p) for p in phases]}
    versions = {"l2o": l2o.__version__, "tensorflow": tf.__version__, "keras": keras.__version__}
    card = config | {"seed": meta.seed, "versions": versions}
    if meta.perturbation:
        card["perturbation"] = asdict(meta.perturbation)
    with (
        open_directory(directory, config) as run,
        closing(Watch(run.path, phases, tensorboard)) as watch,
    ):
        keras.utils.set_random_seed(meta.seed)
        tf.config.experimental.enable_op_determinism()
        try:
            trainer = Trainer(
                phases, meta, optimizee, data, batch_size, strategy, run, card, watch
            )  # fmt: skip
        except DirectoryError:
            raise
        except ValueError as error:
            raise RunError(str(error)) from error
        if named:
            again = ", which is gone on with" * trainer.resumed
            print(f"Run directory: {directory}{again}", flush=True)
        try:
            policy = trainer.run()
        except tf.errors.OpError as error:
            if not workers():
                raise
            raise ClusterError(
                "A worker is gone, so this one ends too. The same commands go on from the last "
                "checkpoint"
            ) from error
        saved = run.path / phases[-1].name
        if not saved.exists():  # of another worker, which keeps the files
            return policy
        policy = load_policy(saved)
        loss = policy.card["validation"]["validation_loss"]
        if loss > 0:
            print(
                f"Warning: with this policy the loss grows (validation meta loss {loss:+.3f}). "
                "A smaller --learning-rate, other seeds or longer training may help"
            )
        return policy


def make_strategy(devices: int | Sequence[str] | None, meta_batch: int) -> tf.distribute.Strategy:
    """MirroredStrategy over GPUs or logical devices of the CPU, or several workers.

    Args:
        devices: See `chosen_devices`.
        meta_batch: Trajectories a meta-update.

    Raises:
        RunError: If there are no such devices, or they do not divide the meta-batch.
        ClusterError: The same, where TF_CONFIG names several workers.
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
    if devices is None or isinstance(devices, Integral):
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


def origin_of(
    settings: Settings,
    problem: str,
    data: str,
    strategy: tf.distribute.Strategy,
    network: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Where a run's policy comes from, as its configuration and cards say it.

    Args:
        settings: What was chosen.
        problem: Its name.
        data: The data in words.
        strategy: The devices.
        network: What tells the network from others, where the problem's name does not.
    """
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    origin = {
        "strategy": settings.strategy,
        "pool": settings.pool if settings.strategy != "none" else "none",
        "problem": problem,
        "data": data,
        "preset": settings.preset,
        "devices": f"{strategy.num_replicas_in_sync} {kind}",
    }
    return origin if network is None else origin | {"network": network}


def _described(phase: Phase) -> dict:
    """A phase as the configuration has it."""
    teachers = "the policy of the phase before"
    if phase.teachers is not None:
        teachers = [teacher.rule.get_config() for teacher in phase.teachers]
    return {
        "name": phase.name,
        "rule": phase.rule.get_config(),
        "scheme": phase.scheme,
        "teachers": teachers,
        "schedule": asdict(phase.schedule),
        "start": "random" if phase.start is None else fingerprint(phase.start),
    }
