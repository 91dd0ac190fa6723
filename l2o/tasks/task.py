"""A problem with its data: the network and its loss as pure functions of one flat vector."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from l2o.problems.dataset import Batch, Dataset, ProblemError
from l2o.problems.problem import Problem
from l2o.rules.layout import Layout
from l2o.tasks.batches import rows
from l2o.tasks.examples import BATCH_SIZE, example_shape, in_one_line
from l2o.tasks.keras_loss import per_example, takes_class_indices
from l2o.tasks.second_order import second_derivatives

# Here, where all comes through that trains and evaluates.
if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "l2o trains and evaluates policies on Keras' tensorflow backend alone; trained ones run on "
        f"any. Received: KERAS_BACKEND={keras.backend.backend()}"
    )

SEED = "seed_generator_state"  # what Keras calls the variable of a dropout's seed


@contextmanager
def keras_seed(seed: int) -> Iterator[None]:
    """Layers built within have initial values fixed by `seed`; global randomness is left alone.

    A Keras initializer without a seed draws one from Python's generator; layers of a user's own
    may draw from NumPy's.
    """
    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)


class Task:
    """A problem with its data: the network and its loss as pure functions of one flat vector.

    Args:
        problem: What is built, with which loss.
        dataset: The data in hand, if there is any.
        network: What tells the network from others, where the problem's name does not.

    Attributes:
        problem: With its batch size and name.
        dataset: The data really used.
        build: Makes the Keras model, with fresh weights at every call. Its outputs are logits
            unless the loss says otherwise.
        losses: (labels, outputs) -> losses [B, ...].
        classifies: Whether labels are class indices, so that there is an accuracy.
    """

    def __init__(
        self,
        problem: Problem,
        dataset: Dataset | None = None,
        network: Mapping[str, Any] | None = None,
    ):
        self.problem, self._dataset, self.network = problem, dataset, network
        self.build = builder(problem, dataset)
        self.losses = per_example(problem.loss)
        self.classifies = takes_class_indices(problem.loss)

    @property
    def name(self) -> str:
        """The problem's."""
        return self.problem.name

    @property
    def dataset(self) -> Dataset:
        """The data really used."""
        assert self._dataset is not None, "a task without data"
        return self._dataset

    @property
    def batch_size(self) -> int:
        """Examples a step."""
        return self.problem.batch_size or BATCH_SIZE

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch; a smaller last one is left out."""
        return len(self.dataset.train.labels) // self.batch_size

    @cached_property
    def model(self) -> keras.Model:
        """A model of the problem, which is called with other weights than its own."""
        with tf.init_scope():  # it may be first asked for while something is traced
            return self.build()

    @cached_property
    def layout(self) -> Layout:
        """Of the trainable weights."""
        variables = self.model.trainable_variables
        return Layout.of(variables, [v.path for v in variables])

    def initial(self, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Fresh parameters [D] and what else the network carries along (batch-norm statistics)."""
        with keras_seed(seed):
            model = self.build()
        parameters = [v.numpy().ravel() for v in model.trainable_variables]
        generator = np.random.default_rng(seed)
        # A layer may have a seed of its own, which would be every trajectory's.
        carried = [
            np.array([generator.integers(2**31), 0], v.dtype) if v.name == SEED else v.numpy()
            for v in model.non_trainable_variables
        ]
        return np.concatenate(parameters), carried

    def loss(self, parameters, carried: list, batch: Batch, training: bool) -> tuple[Any, list]:
        """The mean loss of a batch, a scalar, and the new carried values."""
        return self.outcome(self.layout.unflatten(parameters), carried, batch, training)[:2]

    def outcome(self, tensors, carried: list, batch: Batch, training: bool) -> tuple:
        """As `loss`, of the layout's tensors, with the network's outputs [B, ...] as a third."""
        with second_derivatives(self.model):
            outputs, carried, penalties = self.model.stateless_call(
                tensors,
                carried,
                as_inputs(batch.inputs),
                return_losses=True,
                **mode(self.model, training),
            )
        losses = self.losses(batch.labels, outputs)
        if not isinstance(batch.weight, tuple):
            shape = tf.concat([tf.shape(batch.weight), tf.ones(losses.shape.rank - 1, "int32")], 0)
            losses *= tf.reshape(batch.weight, shape)
        return tf.add_n([tf.reduce_mean(losses), *penalties]), carried, outputs


def builder(problem: Problem, dataset: Dataset | None) -> Callable[[], keras.Model]:
    """Makes the problem's models, built: on an example where they do not know their input's shape.

    Raises:
        ProblemError: If it makes no such model; also by the function that is returned.
    """
    model_fn = problem.model_fn
    if not callable(model_fn) or isinstance(model_fn, keras.Model):
        raise ProblemError(
            "model_fn must be a function without arguments that returns a new keras.Model at "
            f"every call. Received: a {type(model_fn).__name__}"
        )

    def build() -> keras.Model:
        try:
            model = problem.build(dataset)
        except Exception as error:
            raise ProblemError(
                f"model_fn failed: {type(error).__name__}: {in_one_line(error)}"
            ) from error
        if not isinstance(model, keras.Model):
            raise ProblemError(
                f"model_fn must return a keras.Model. Received: a {type(model).__name__}"
            )
        if dataset is not None and not all(x.built for x in (model, *model.layers)):
            _build_on(model, rows(dataset.train.inputs, slice(1)))
        return model

    return build


def _build_on(model: keras.Model, inputs) -> None:
    try:
        model(as_inputs(inputs))
    except Exception as error:
        unbuilt = [layer.name for layer in model.layers if not layer.built]
        where = f"layer '{unbuilt[0]}' of {model.name}" if unbuilt else f"model '{model.name}'"
        raise ProblemError(
            f"The shapes of {where} are unknown, and it cannot be built on the data, of shape "
            f"{example_shape(inputs)} an example: {in_one_line(error)}"
        ) from error


@dataclass(frozen=True)
class Scaled:
    """Random scaling (Lv et al. 2017): a task in coordinates divided by `scale`.

    Parameters become theta / s, so the gradient becomes s * g; the loss is the same.

    Attributes:
        task: What is scaled.
        scale: [D], of either sign, not zero.
    """

    task: Task
    scale: Any

    @property
    def layout(self) -> Layout:
        return self.task.layout

    def loss(self, parameters, carried, batch, training):
        return self.task.loss(parameters * self.scale, carried, batch, training)


def random_scale(generator: np.random.Generator, size: int, limit: float) -> np.ndarray:
    """±exp(U(-limit, limit)), [size] (after Lv et al. 2017)."""
    exponents = generator.uniform(-limit, limit, size)
    return generator.choice((-1.0, 1.0), size) * np.exp(exponents)


def mode(model: keras.Model, training: bool) -> dict[str, bool]:
    """A model of the user's own need not ask for `training`, and then does not bear it."""
    return {"training": training} if model._call_has_training_arg else {}


def as_inputs(inputs):
    """Pixels (uint8) as floats in [0, 1]; anything else as it is."""

    def seen(x):
        return tf.cast(x, keras.config.floatx()) / 255 if x.dtype == tf.uint8 else x

    return tf.nest.map_structure(seen, inputs)


class ValueAndGradient(NamedTuple):
    """What a step sees of the network: the loss, its gradient [D], the new carried values."""

    loss: Any
    gradient: Any
    carried: list


def loss_and_gradient(
    task: Task | Scaled, parameters, carried: list, batch: Batch
) -> ValueAndGradient:
    """The training loss, its gradient [D], and the new carried values."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(parameters)
        loss, carried = task.loss(parameters, carried, batch, training=True)
    return ValueAndGradient(loss, tape.gradient(loss, parameters), carried)
