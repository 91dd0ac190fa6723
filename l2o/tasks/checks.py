"""What meta-training cannot do with a user's network, found before it starts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from l2o.rules import Adam
from l2o.tasks.examples import BATCH_SIZE, Examples, ProblemError
from l2o.tasks.keras_loss import Loss, cross_entropy
from l2o.tasks.optimizee import (
    SEED,
    Batch,
    KerasOptimizee,
    as_inputs,
    keras_seed,
    loss_and_gradient,
)
from l2o.tasks.probe import Probe, named

# Operations that TensorFlow takes for constants: a second derivative without them is wrong.
WRONG_TWICE = ("ResizeBilinearGrad",)
WRITES = ("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp")  # to a tf.Variable
PROBE_STEPS, PROBE_RATE = 100, 0.1
_CARRIED = (
    "only non-trainable weights are carried from step to step: replace it; a layer of your own "
    "keeps state in add_weight(trainable=False), and draws from a keras.random.SeedGenerator that "
    "is an attribute of it"
)


def checked_optimizee(
    model_fn: Callable[[], keras.Model],
    loss: Loss,
    examples: Examples,
    batch_size: int,
    first_order: bool = False,
    positive: bool = True,
    held_out: Mapping[str, Examples] = MappingProxyType({}),
) -> KerasOptimizee:
    """A user's network and loss as an optimizee, if it can be one.

    Args:
        model_fn: Makes the model, with fresh weights at every call.
        loss: See `keras_loss.per_example`.
        examples: What it is trained on; a model that does not know its input's shape takes this.
        batch_size: Examples a step.
        first_order: Whether it need not be differentiated twice.
        positive: Whether its logarithm is taken, so that the loss must stay above 0.
        held_out: Other examples, by name, which are only looked at for their labels.

    Raises:
        ProblemError: If it cannot.
    """
    if not 1 <= batch_size <= len(examples):
        default = ", the default; set batch_size" if batch_size == BATCH_SIZE else ""
        raise ProblemError(
            f"A batch must hold at least one and at most all {len(examples)} training examples. "
            f"Received: a batch size of {batch_size}{default}"
        )
    build = builder(model_fn, examples)
    _check_builds(build)
    optimizee = KerasOptimizee(build, loss)
    _check_dtypes(optimizee.model)
    batch = Batch(examples.inputs[:batch_size], examples.labels[:batch_size])
    batch = Batch(*map(tf.constant, batch))
    _check_state(optimizee.model, batch.inputs)
    _check_outputs(optimizee, batch, {"data": examples, **held_out})
    _check_sizes(optimizee.model, batch.inputs)
    _check_derivatives(optimizee, batch, first_order)
    if positive:
        _check_sign(optimizee, batch)
    return optimizee


def builder(model_fn: Callable[[], keras.Model], examples: Examples) -> Callable[[], keras.Model]:
    """`model_fn`, its models built: on an example where they do not know their input's shape.

    Raises:
        ProblemError: If it makes no such model; also by the function that is returned.
    """
    if not callable(model_fn) or isinstance(model_fn, keras.Model):
        raise ProblemError(
            "model_fn must be a function without arguments that returns a new keras.Model at "
            f"every call. Received: a {type(model_fn).__name__}"
        )

    def build() -> keras.Model:
        try:
            model = model_fn()
        except Exception as error:
            raise ProblemError(
                f"model_fn failed: {type(error).__name__}: {_line(error)}"
            ) from error
        if not isinstance(model, keras.Model):
            raise ProblemError(
                f"model_fn must return a keras.Model. Received: a {type(model).__name__}"
            )
        if not model.built or not all(layer.built for layer in model.layers):
            _build_on(model, examples.inputs[:1])
        return model

    return build


def _build_on(model: keras.Model, inputs: np.ndarray) -> None:
    try:
        model(as_inputs(tf.constant(inputs)))
    except Exception as error:
        unbuilt = [layer.name for layer in model.layers if not layer.built]
        where = f"layer '{unbuilt[0]}' of {model.name}" if unbuilt else f"model '{model.name}'"
        raise ProblemError(
            f"The shapes of {where} are unknown, and it cannot be built on the data, of shape "
            f"{inputs.shape[1:]} an example: {_line(error)}"
        ) from error


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
            f"{within}: {_line(error)}"
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
                f"{named(layer)} changes '{v.path}' when it is called, {what}, and {_CARRIED}"
            )
    for event, again in zip(one.events, two.events, strict=False):
        if not _alike(event.values, again.values):
            raise ProblemError(
                f"{named(event.layer)} gives something else when it is called again, for the same "
                f"inputs, weights and seeds, and {_CARRIED}"
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


def _check_outputs(optimizee: KerasOptimizee, batch: Batch, splits: Mapping[str, Examples]) -> None:
    """One output without a mask, a class for each label, and a loss for each example."""
    model = optimizee.model
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
    if optimizee.classifies:
        for name, split in splits.items():
            _check_classes(name, split.labels, outputs.shape[-1])
    shapes = f"labels {tuple(batch.labels.shape)} and outputs {tuple(outputs.shape)}"
    _check_batch(outputs, probe, len(batch.labels))
    try:
        losses = tf.convert_to_tensor(optimizee.losses(batch.labels, outputs))
    except Exception as error:
        raise ProblemError(
            f"The loss of {shapes} failed; as in compile, it is given labels as floats: "
            f"{_line(error)}"
        ) from error
    most = max(tf.size(batch.labels), tf.size(outputs))
    if not losses.shape.rank or losses.shape[0] != len(batch.labels) or tf.size(losses) > most:
        raise ProblemError(
            f"The loss must be one number an example, and l2o takes the mean. Received: shape "
            f"{tuple(losses.shape)} of {shapes}; as in compile, labels [B] are given to a function "
            "as [B, 1] where outputs are [B, 1]"
        )
    if optimizee.losses is cross_entropy:
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


def _check_derivatives(optimizee: KerasOptimizee, batch: Batch, first_order: bool) -> None:
    """The gradient is there and finite, and so is the gradient of a function of it."""
    parameters, carried = tf.nest.map_structure(tf.constant, optimizee.initial(0))
    graphs = []

    def derivatives(parameters, carried, batch):
        graphs.append(tf.compat.v1.get_default_graph())
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            loss, gradient, _ = loss_and_gradient(optimizee, parameters, carried, batch)
            if gradient is None:
                raise ProblemError(
                    f"The loss of model '{optimizee.model.name}' does not depend on its weights"
                )
            if first_order:
                return loss, gradient, gradient
            square = tf.reduce_sum(gradient**2)
        return loss, gradient, tape.gradient(square, parameters, unconnected_gradients="zero")

    function = tf.function(derivatives, autograph=False)
    remedy = "replace it, or use first_order=True (--first-order), without second derivatives"
    try:
        numbers = function(parameters, carried, batch)
    except ProblemError:
        raise
    except LookupError as error:
        # TensorFlow names the operation's type, and sometimes itself.
        found = re.search(r"operation ?'(\S+)' \(op type: (\w+)", str(error))
        kind = found[2] if found else str(error).rsplit(":", 1)[-1].strip()
        names = [found[1]] if found else _operations(graphs[0], (kind,))
        if kind.startswith("Cudnn"):
            remedy = "give it use_cudnn=False"
        raise ProblemError(
            f"{_layer(optimizee.model, names)} cannot be differentiated twice ({kind} has no "
            f"gradient): {remedy}"
        ) from error
    except Exception as error:
        raise ProblemError(
            f"Model '{optimizee.model.name}' cannot be differentiated: {_line(error)}"
        ) from error
    if written := _operations(graphs[0], WRITES):
        raise ProblemError(
            f"{_layer(optimizee.model, written)} changes a tf.Variable when it is called, and "
            f"{_CARRIED}"
        )
    for outside, inside in [] if first_order else graphs[0].captures:
        what, instead = "tensor", "make it a NumPy array"
        if outside.dtype == tf.resource:
            what = "variable or lookup table"
            instead = "keep it in add_weight(trainable=False), look up in the data beforehand"
        names = [operation.name for operation in inside.consumers()]
        raise ProblemError(
            f"{_layer(optimizee.model, names)} uses a {what} that is no weight of the model, and "
            f"TensorFlow cannot differentiate a loop around that: {instead}, or use "
            "first_order=True (--first-order)"
        )
    wrong = [] if first_order else _operations(graphs[0], WRONG_TWICE)
    if wrong:
        raise ProblemError(
            f"{_layer(optimizee.model, wrong)} cannot be differentiated twice (TensorFlow takes "
            f"the gradient of bilinear resizing for constant): {remedy}"
        )
    for name, value in zip(("loss", "gradient", "second derivative"), numbers, strict=True):
        if not np.isfinite(value).all():
            raise ProblemError(
                f"The {name} of model '{optimizee.model.name}' is not finite at its initial weights"
            )


def _check_sign(optimizee: KerasOptimizee, batch: Batch) -> None:
    """Loss > 0 at the start, and not below 0 after a short descent on one batch."""
    parameters, carried = tf.nest.map_structure(tf.constant, optimizee.initial(0))
    adam = Adam(PROBE_RATE)

    def step(i, lowest, parameters, carried, state):
        loss, gradient, carried = loss_and_gradient(optimizee, parameters, carried, batch)
        move, state = adam.update([], gradient, parameters, state, optimizee.layout)
        lowest = tf.where(loss < lowest, loss, lowest)  # it may become NaN
        return i + 1, lowest, parameters - move, carried, state

    @tf.function(autograph=False)
    def descend():
        state = tf.nest.map_structure(tf.convert_to_tensor, adam.initial_state(optimizee.layout))
        first, _ = optimizee.loss(parameters, carried, batch, training=True)
        loop = (0, first, parameters, carried, state)
        return first, tf.while_loop(lambda i, *_: i < PROBE_STEPS, step, loop)[1]

    first, lowest = map(float, descend())
    if first <= 0 or lowest < 0:
        raise ProblemError(
            "The meta loss takes logarithms, and this loss need not be positive: use "
            f'meta_loss="difference" (--set meta_loss=difference). Received: {first:.4g} at the '
            "initial weights" + f", {lowest:.4g} while it falls" * (lowest < 0)
        )


def _operations(graph: tf.Graph, kinds: tuple[str, ...]) -> list[str]:
    """Names of the operations of some types in a graph and the functions it calls."""
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    return [node.name for node in nodes if node.op in kinds]


def _layer(model: keras.Model, operations: list[str]) -> str:
    """The layer that operations belong to, by their names."""
    layers = {layer.name for layer in model._flatten_layers(include_self=False)}
    for part in reversed([part for name in operations for part in name.split("/")]):
        for name in (part, re.sub(r"_\d+$", "", part)):
            if name in layers:
                return f"Layer '{name}'"
    return f"Something in model '{model.name}' or its loss"


def _line(error: Exception) -> str:
    """An error's message in one line, without Keras' colours and what follows it."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)) or type(error).__name__
    return " ".join(text.split("Arguments received by")[0].split())[:300]
