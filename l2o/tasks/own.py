"""A problem of one's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from l2o.tasks.checks import builder, checked_optimizee
from l2o.tasks.examples import BATCH_SIZE, Examples, ProblemError, as_examples, digest
from l2o.tasks.keras_loss import Loss
from l2o.tasks.optimizee import Batch, KerasOptimizee, loss_and_gradient

# Of settings, what has the names of layers, which Keras numbers as they are made.
_NAMES = {"name", "inbound_nodes", "input_layers", "output_layers"}
STARTS_ALIKE = (
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
    train, batch_size = training_examples(own)
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
    if starts_alike(optimizee):
        report(f"Note: model_fn of {name} {STARTS_ALIKE}")
    network = described_network(optimizee, own.loss, train, batch_size)
    mark = hashlib.sha256(repr(network).encode()).hexdigest()[:4]
    dataset_name = f"own data {digest(train, validation, test)}, network {mark}"
    return (
        NamedProblem(name, own, batch_size, network),
        OwnDataset(dataset_name, train, validation, test),
    )


def starts_alike(optimizee: KerasOptimizee) -> bool:
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


def training_examples(own: OwnProblem) -> tuple[Examples, int]:
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
