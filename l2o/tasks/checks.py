"""What meta-training cannot do with a user's network, found before it starts."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from l2o.problems.dataset import Batch, ProblemError
from l2o.tasks.batches import rows
from l2o.tasks.derivatives import check_derivatives, check_sign
from l2o.tasks.examples import BATCH_SIZE, in_one_line
from l2o.tasks.keras_loss import cross_entropy
from l2o.tasks.probe import CARRIED, Probe, named
from l2o.tasks.task import SEED, Task, keras_seed


def checked(task: Task, first_order: bool = False, positive: bool = True) -> Task:
    """A user's task, if it can be trained on.

    Args:
        task: The task.
        first_order: Whether it need not be differentiated twice.
        positive: Whether its logarithm is taken, so that the loss must stay above 0.

    Raises:
        ProblemError: If it cannot.
    """
    train, batch_size = task.dataset.train, task.batch_size
    if not 1 <= batch_size <= len(train.labels):
        default = ", the default; set batch_size" if batch_size == BATCH_SIZE else ""
        raise ProblemError(
            f"A batch must hold at least one and at most all {len(train.labels)} training "
            f"examples. Received: a batch size of {batch_size}{default}"
        )
    _check_builds(task.build)
    _check_dtypes(task.model)
    batch = tf.nest.map_structure(tf.constant, rows(train, slice(batch_size)))
    _check_state(task.model, batch.inputs)
    _check_outputs(task, batch)
    _check_sizes(task.model, batch.inputs)
    check_derivatives(task, batch, first_order)
    if positive:
        check_sign(task, batch)
    return task


def _check_builds(build) -> None:
    """Every call makes another model, of one architecture, its weights fixed by Keras' seed."""
    models = []
    for _ in range(2):
        with keras_seed(0):
            models.append(build())
    one, two = models
    if one is two:
        raise ProblemError("model_fn must return a new model at every call. Received: the same")
    if not one.trainable_variables:
        raise ProblemError(f"Model '{one.name}' has no trainable weights")
    shapes = [[(tuple(v.shape), v.dtype, v.trainable) for v in m.variables] for m in models]
    if shapes[0] != shapes[1]:
        raise ProblemError(
            "model_fn must return the same architecture at every call. Received: models of "
            f"{one.count_params():,} and {two.count_params():,} weights"
        )
    for v, w in zip(one.variables, two.variables, strict=True):
        if v.name != SEED and not np.array_equal(v.numpy(), w.numpy()):
            raise ProblemError(
                f"The initial value of '{v.path}' does not follow from a seed: draw it with a "
                "Keras initializer, or NumPy's or Python's generator"
            )


def _check_dtypes(model: keras.Model) -> None:
    floatx = keras.config.floatx()
    for layer in model._flatten_layers(include_self=True):
        kind = layer.compute_dtype
        if "float" in str(kind) and kind != floatx:
            raise ProblemError(
                f"Layer '{layer.name}' computes in {kind}; meta-training is in {floatx}, without "
                "mixed precision. A policy trained so may be used with mixed precision"
            )
    for v in model.trainable_variables:
        if v.dtype != floatx:
            raise ProblemError(f"Weights must be {floatx}. Received: '{v.path}' of {v.dtype}")


def _probed(model: keras.Model, inputs: tf.Tensor, training: bool) -> tuple[Any, Probe]:
    """The outputs of a user's model, and how it came to them."""
    probe = Probe(model)
    try:
        return probe.call(inputs, training), probe
    except Exception as error:
        when = "" if training else " as in evaluation (training=False, batches of any size)"
        within = "".join(f", in layer '{layer.name}'" for layer in probe.inside[1:][-1:])
        raise ProblemError(
            f"Model '{model.name}' cannot be called on inputs of shape {inputs.shape}{when}"
            f"{within}: {in_one_line(error)}"
        ) from error


def _check_state(model: keras.Model, inputs: tf.Tensor) -> None:
    """A call depends on nothing, and changes nothing, that is not carried from step to step."""
    for layer in model._flatten_layers():
        if getattr(layer, "stateful", False):
            raise ProblemError(
                f"Layer '{layer.name}' is stateful: its state would go on from one batch to the "
                "next, which holds other sequences. Use stateful=False"
            )
    (_, one), (_, two) = (_probed(model, inputs, training=True) for _ in range(2))
    carried = {id(v) for v in model.non_trainable_variables}
    for layer, v in one.writes:
        if id(v) not in carried:
            what = "which is trainable" if v.trainable else "which is no weight of the model"
            raise ProblemError(
                f"{named(layer)} changes '{v.path}' when it is called, {what}, and {CARRIED}"
            )
    for event, again in zip(one.events, two.events, strict=False):
        if not _alike(event.values, again.values):
            raise ProblemError(
                f"{named(event.layer)} gives something else when it is called again, for the same "
                f"inputs, weights and seeds, and {CARRIED}"
            )


def _alike(one: Any, other: Any) -> bool:
    """Whether nested tensors are the same up to rounding."""
    pair = [
        [x.numpy() for x in tf.nest.flatten(nested, expand_composites=True) if hasattr(x, "numpy")]
        for nested in (one, other)
    ]
    return all(
        np.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)
        if a.dtype.kind == "f" and a.shape == b.shape
        else np.array_equal(a, b)
        for a, b in zip(*pair, strict=False)
    )


def _check_outputs(task: Task, batch: Batch) -> None:
    """One output without a mask, a class for each label, and a loss for each example."""
    model = task.model
    outputs, probe = _probed(model, batch.inputs, training=False)
    if not tf.is_tensor(outputs):
        raise ProblemError(
            f"Model '{model.name}' must have one output. Received: a {type(outputs).__name__}"
        )
    if getattr(outputs, "_keras_mask", None) is not None:
        raise ProblemError(
            f"The output of model '{model.name}' is masked, and the loss would count what the mask "
            "hides. Reduce it over time, or use mask_zero=False"
        )
    if task.classifies:
        data = task.dataset
        for name, split in (
            ("data", data.train),
            ("validation", data.validation),
            ("test", data.test),
        ):
            _check_classes(name, split.labels, outputs.shape[-1])
    shapes = f"labels {tuple(batch.labels.shape)} and outputs {tuple(outputs.shape)}"
    _check_batch(outputs, probe, len(batch.labels))
    try:
        losses = tf.convert_to_tensor(task.losses(batch.labels, outputs))
    except Exception as error:
        raise ProblemError(
            f"The loss of {shapes} failed; as in compile, it is given labels as floats: "
            f"{in_one_line(error)}"
        ) from error
    most = max(tf.size(batch.labels), tf.size(outputs))
    if not losses.shape.rank or losses.shape[0] != len(batch.labels) or tf.size(losses) > most:
        raise ProblemError(
            f"The loss must be one number an example, and l2o takes the mean. Received: shape "
            f"{tuple(losses.shape)} of {shapes}; as in compile, labels [B] are given to a function "
            "as [B, 1] where outputs are [B, 1]"
        )
    if task.losses is cross_entropy:
        _check_logits(model, outputs)


def _check_sizes(model: keras.Model, inputs: tf.Tensor) -> None:
    """One output an example for another size of batch too, and for one that is not known yet."""
    size = len(inputs) + 1
    more = tf.gather(inputs, np.arange(size) % len(inputs))
    _check_batch(*_probed(model, more, training=False), size)
    unknown = tf.TensorSpec([None, *inputs.shape[1:]], inputs.dtype)
    call = tf.function(lambda inputs: _probed(model, inputs, training=False)[0], autograph=False)
    call.get_concrete_function(unknown)


def _check_batch(outputs: tf.Tensor, probe: Probe, size: int) -> None:
    if outputs.shape[:1] == (size,):
        return
    model = probe.inside[0]
    wrong = [
        layer
        for layer, values, over in probe.events
        if over
        and layer in model.layers
        and any(x.shape[:1] != (size,) for x in tf.nest.flatten(values)[:1] if tf.is_tensor(x))
    ]
    raise ProblemError(
        f"{named([*wrong, model][0])} does not give one output an example. Received: outputs "
        f"{tuple(outputs.shape)} of {size} examples"
    )


def _check_logits(model: keras.Model, outputs: tf.Tensor) -> None:
    """Outputs that the default loss takes for logits are no probabilities."""
    if (outputs >= 0).numpy().all() and np.allclose(tf.reduce_sum(outputs, -1), 1, atol=1e-4):
        raise ProblemError(
            f"The outputs of model '{model.name}' are probabilities, and the default loss takes "
            'logits: leave the softmax out, or name loss="sparse_categorical_crossentropy"'
        )


def _check_classes(name: str, labels: np.ndarray, classes: int) -> None:
    if labels.dtype.kind != "i" or labels.min(initial=0) < 0 or labels.max(initial=0) >= classes:
        raise ProblemError(
            f"This loss needs class indices, whole numbers from 0 to {classes - 1} for {classes} "
            f"outputs; name another with loss=. Received: {name}'s {labels.dtype} labels from "
            f"{labels.min():.4g} to {labels.max():.4g}"
        )
