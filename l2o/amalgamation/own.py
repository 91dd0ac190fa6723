"""A problem of one's own, and the amalgamation of an optimizer on it."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from l2o.amalgamation.cluster import check_place
from l2o.amalgamation.conduct import RunError, conduct, make_strategy, origin_of
from l2o.amalgamation.examples import BATCH_SIZE, Examples, ProblemError, as_examples, digest
from l2o.amalgamation.keras_loss import Loss
from l2o.amalgamation.optimizee import Batch, KerasOptimizee, loss_and_gradient
from l2o.amalgamation.refusals import builder, checked_optimizee
from l2o.amalgamation.rundir import CONFIG
from l2o.amalgamation.settings import RECIPES, Settings
from l2o.amalgamation.trainer import Diverged, Stopped
from l2o.checkpoint import Policy
from l2o.claim import move_aside

# Of settings, what has the names of layers, which Keras numbers as they are made.
_NAMES = {"name", "inbound_nodes", "input_layers", "output_layers"}
_ALIKE = (
    "makes the same initial weights every time, so all unrolls and all repeats start from them; if "
    "that is not meant, it should set no seed, and make each initializer anew"
)


@dataclass(frozen=True)
class OwnProblem:
    """Your own network on your own data, for `--problem package.module:function`.

    Attributes:
        model_fn: Makes the Keras model, with fresh weights at every call.
        data: To train on: arrays (x, y), or a finite, batched `tf.data.Dataset` of (x, y).
        validation: Likewise; by default the last min(5,000, a sixth) of `data`.
        test: Likewise, or None.
        loss: The name of a Keras loss, a `keras.losses.Loss`, or a function (labels, outputs) ->
            one loss an example, as for `compile`; softmax cross-entropy of class indices, from
            logits, by default.
        batch_size: Examples a step; a dataset's own, or 128, by default.
    """

    model_fn: Callable[[], keras.Model]
    data: Any
    validation: Any = None
    test: Any = None
    loss: Loss = None
    batch_size: int | None = None


@dataclass(frozen=True)
class OwnDataset:
    """A user's examples, as `problems.Dataset` has those of a dataset by name.

    Attributes:
        name: Tells these data and the network on them from others.
        train, validation: Examples.
        test: Examples; none at all where the user gave none.
    """

    name: str
    train: Examples
    validation: Examples
    test: Examples
    substituted = False

    @property
    def description(self) -> str:
        """One line."""
        sizes = f"{len(self.train):,} train, {len(self.validation):,} validation"
        return f"{self.name} ({sizes}, {len(self.test):,} test)"


@dataclass(frozen=True)
class NamedProblem:
    """A user's problem, as `problems.Problem` is one of the catalogue.

    Attributes:
        name: As the user typed it.
        own: What it is.
        batch_size: Examples a step.
        network: What tells its network and loss from others.
    """

    name: str
    own: OwnProblem
    batch_size: int
    network: dict[str, Any]
    private = False

    @property
    def loss(self) -> Loss:
        """See `OwnProblem`."""
        return self.own.loss

    def build(self, dataset: OwnDataset) -> keras.Model:
        """A new model."""
        return builder(self.own.model_fn, dataset.train)()


def prepare(
    own: OwnProblem,
    name: str,
    first_order: bool = True,
    positive: bool = False,
    report: Callable[[str], None] = print,
) -> tuple[NamedProblem, OwnDataset]:
    """Reads a user's problem and refuses what cannot be done.

    Args:
        own: The problem.
        name: What to call it.
        first_order: Whether it need not be differentiated twice.
        positive: Whether its loss must be positive.
        report: Told what is not refused and may yet not be meant.

    Raises:
        ProblemError: If it cannot be used.
    """
    train, batch_size = _train(own)
    validation, test = (
        None if part is None else as_examples(part, name)[0]
        for part, name in ((own.validation, "validation"), (own.test, "test"))
    )
    if validation is None:
        kept = len(train) - min(5_000, len(train) // 6)
        if kept == len(train):
            raise ProblemError(f"{kept} examples are too few to split a sixth off for validation")
        validation, train = train[kept:], train[:kept]
    test = test or train[:0]
    _compare(train, validation=validation, test=test)
    optimizee = checked_optimizee(
        own.model_fn, own.loss, train, batch_size, first_order, positive,
        held_out={"validation": validation, "test": test},
    )  # fmt: skip
    if _starts_alike(optimizee):
        report(f"Note: model_fn of {name} {_ALIKE}")
    network = described_network(optimizee, own.loss, train, batch_size)
    mark = hashlib.sha256(repr(network).encode()).hexdigest()[:4]
    dataset_name = f"own data {digest(train, validation, test)}, network {mark}"
    return (
        NamedProblem(name, own, batch_size, network),
        OwnDataset(dataset_name, train, validation, test),
    )


def _starts_alike(optimizee: KerasOptimizee) -> bool:
    """Whether initial weights that are not all constants are the same whatever the seed."""
    one, other = (optimizee.initial(seed)[0] for seed in (0, 1))
    tensors = map(np.asarray, optimizee.layout.unflatten(one))
    return np.array_equal(one, other) and any(np.any(t != t.ravel()[:1]) for t in tensors)


def _compare(train: Examples, **splits: Examples) -> None:
    for name, split in splits.items():
        for which in ("inputs", "labels"):
            one, other = getattr(train, which), getattr(split, which)
            if (one.shape[1:], one.dtype) != (other.shape[1:], other.dtype):
                raise ProblemError(
                    f"{name}'s {which} must be like those to train on, {one.dtype} of shape "
                    f"{one.shape[1:]}. Received: {other.dtype} of shape {other.shape[1:]}"
                )


def _train(own: OwnProblem) -> tuple[Examples, int]:
    """The examples to train on, and how many a step."""
    examples, batch_size = as_examples(own.data)
    given = own.batch_size
    if given is not None and (not isinstance(given, Integral) or given < 1):
        raise ProblemError(f"batch_size must be a whole number of at least 1. Received: {given!r}")
    given = given and int(given)
    if given and batch_size and given != batch_size:
        raise ProblemError(f"data is batched by {batch_size}. Received: batch_size={given}")
    return examples, given or batch_size or BATCH_SIZE


def described_network(
    optimizee: KerasOptimizee, loss: Loss, examples: Examples, batch_size: int
) -> dict[str, Any]:
    """What tells a network and its loss from others, so far as that can be seen.

    Its tensors, a digest of its layers' and its loss's settings, and what a first batch gives.
    """
    parameters, carried = tf.nest.map_structure(tf.constant, optimizee.initial(0))
    inputs, labels = examples.inputs[:batch_size], examples.labels[:batch_size]
    batch = Batch(tf.constant(inputs), tf.constant(labels))
    first, gradient, _ = loss_and_gradient(optimizee, parameters, carried, batch)
    layers = optimizee.model._flatten_layers(include_self=False)
    settings = [_settings(part) for part in (*layers, loss)]
    return {
        "batch_size": batch_size,
        "tensors": [f"{v.name} {list(v.shape)}" for v in optimizee.model.trainable_variables],
        "settings": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8],
        "first_loss": f"{float(first):.4g}",
        "first_gradient": f"{float(tf.norm(gradient)):.4g}",
    }


def _settings(part: Any) -> Any:
    """A layer, a loss or a value of their settings, as the same in every process."""
    if isinstance(part, dict):
        return {str(key): _settings(part[key]) for key in part.keys() - _NAMES}
    if isinstance(part, list | tuple):
        return [_settings(value) for value in part]
    if part is None or isinstance(part, bool | int | float | str):
        return part
    kind = getattr(part, "__qualname__", type(part).__qualname__)
    try:
        return [kind, _settings(part.get_config())]
    except Exception:  # nothing that has settings, or a layer that does not tell them
        return kind


def amalgamate(
    model_fn: Callable[[], keras.Model],
    data: Any,
    loss: Loss = None,
    pool: str = "large",
    strategy: str = "choice",
    preset: str | None = None,
    seed: int = 0,
    output: Path | str | None = None,
    *,
    recipe: str | None = None,
    batch_size: int | None = None,
    devices: int | Sequence[str] | None = None,
    fresh: bool = False,
    **settings,
) -> Policy:
    """Meta-trains an optimizer on a network and data of yours (Huang et al. 2022).

    Shows how it goes. Sets the global seeds, and TensorFlow's operations to be repeatable, for the
    whole process.

    Args:
        model_fn: Makes the Keras model, with fresh weights at every call.
        data: Arrays (x, y), or a finite, batched `tf.data.Dataset` of (x, y). uint8 inputs of
            three dimensions or more are pixels, which the network sees divided by 255.
        loss: The name of a Keras loss, a `keras.losses.Loss`, or a function (labels, outputs) ->
            one loss an example, as for `compile`; softmax cross-entropy of class indices, from
            logits, by default.
        pool: The teachers: "large" (six), "small" or "adam".
        strategy: "choice", "mean", "minmax" or "none".
        preset: "paper", "cpu" or "smoke"; by default "paper" where there is a GPU, else "cpu".
        seed: Fixes everything random.
        output: Run directory, in which the same call goes on with a run that was stopped; by
            default a temporary one.
        recipe: Instead of pool, strategy and policy, a learned optimizer that the paper compares
            with: "original", "scale", "rnnprop" or "stronger".
        batch_size: Examples a step, for arrays; 128 by default.
        devices: Replicas: how many, or which GPUs ("gpu:0"); all GPUs, or one, by default.
        fresh: Whether a run that is in `output` is moved aside.
        **settings: The other fields of `l2o.amalgamation.settings.Settings`, most of
                `train.py`'s flags.

    Returns:
        The policy; `l2o.AmalgamatedOptimizer(policy)` takes it.

    Raises:
        TypeError: For a setting that does not exist.
        ValueError: For what cannot be: settings (ValueError), the problem (ProblemError), the
            directory (DirectoryError), too few examples or a run that cannot recover (RunError).
        KeyboardInterrupt: When stopped; the run is in `output` then, if that was given.
    """
    own = OwnProblem(model_fn, data, loss=loss, batch_size=batch_size)
    if preset is None:
        preset = "paper" if tf.config.list_physical_devices("GPU") else "cpu"
    chosen = {"pool": pool, "strategy": strategy, "preset": preset, "seed": seed}
    allowed = sorted({field.name for field in fields(Settings)} - set(chosen))
    if unknown := sorted(set(settings) - set(allowed)):
        raise TypeError(
            f"Unknown settings: {', '.join(unknown)}. Allowed, beside the arguments: "
            f"{', '.join(allowed)}"
        )
    choices = Settings.of(_with_recipe(chosen | settings, recipe))
    phases, meta = choices.phases(), choices.meta()
    replicas = make_strategy(devices, phases[-1].schedule.meta_batch)
    if output is not None:
        check_place(Path(output), fresh)
    examples, batch_size = _train(own)
    optimizee = checked_optimizee(
        model_fn, loss, examples, batch_size, meta.first_order, meta.meta_loss == "log"
    )
    kind, weights = type(optimizee.model).__name__, optimizee.layout.size
    origin = origin_of(
        choices,
        f"own {kind} of {weights:,} weights",
        f"own data {digest(examples)} ({len(examples):,} train)",
        replicas,
        described_network(optimizee, loss, examples, batch_size),
    )
    print(f"Problem: {origin['problem']}; {origin['data']}, batches of {batch_size}", flush=True)
    if _starts_alike(optimizee):
        print(f"Note: model_fn {_ALIKE}", flush=True)
    arrays = Batch(examples.inputs, examples.labels)
    if output is not None and fresh:
        move_aside(Path(output), CONFIG)
    with _directory(output) as directory, _quiet():
        try:
            return conduct(
                phases, meta, optimizee, arrays, batch_size, replicas, directory, origin,
                named=output is not None,
            )  # fmt: skip
        except Diverged as error:
            raise RunError(str(error)) from error
        except Stopped:
            again = "the same call" + " without fresh=True" * fresh
            kept = f"; the run is kept in {output}, and {again} goes on with it"
            raise KeyboardInterrupt("Stopped" + kept * (output is not None)) from None


def _with_recipe(choices: dict[str, Any], recipe: str | None) -> dict[str, Any]:
    if recipe is None:
        return choices
    if recipe not in RECIPES:
        raise ValueError(f"Unknown recipe. Allowed: {', '.join(RECIPES)}. Received: {recipe}")
    names = ("strategy", "pool", "policy")
    if given := [n for n in names if choices.get(n, getattr(Settings, n)) != getattr(Settings, n)]:
        raise ValueError(f"recipe says what is trained, so {', '.join(given)} cannot be set")
    return choices | RECIPES[recipe]


@contextmanager
def _directory(output: Path | str | None) -> Iterator[Path]:
    if output is not None:
        yield Path(output)
        return
    with tempfile.TemporaryDirectory(prefix="l2o-") as directory:
        yield Path(directory)


@contextmanager
def _quiet() -> Iterator[None]:
    """TensorFlow warns of every second network that is traced."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)
