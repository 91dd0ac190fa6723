"""What cannot be differentiated, or twice, in a user's network, found before it is trained."""

from __future__ import annotations

import re

import keras
import numpy as np
import tensorflow as tf

from l2o.problems.dataset import Batch, ProblemError
from l2o.rules import Adam
from l2o.tasks.examples import in_one_line
from l2o.tasks.probe import CARRIED
from l2o.tasks.task import Task, loss_and_gradient

# Operations that TensorFlow takes for constants: a second derivative without them is wrong.
WRONG_TWICE = ("ResizeBilinearGrad",)
WRITES = ("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp")  # to a tf.Variable
PROBE_STEPS, PROBE_RATE = 100, 0.1


def check_derivatives(task: Task, batch: Batch, first_order: bool) -> None:
    """The gradient is there and finite, and so is the gradient of a function of it."""
    parameters, carried = tf.nest.map_structure(tf.constant, task.initial(0))
    graphs = []

    def derivatives(parameters, carried, batch):
        graphs.append(tf.compat.v1.get_default_graph())
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            loss, gradient, _ = loss_and_gradient(task, parameters, carried, batch)
            if gradient is None:
                raise ProblemError(
                    f"The loss of model '{task.model.name}' does not depend on its weights"
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
            f"{_layer(task.model, names)} cannot be differentiated twice ({kind} has no "
            f"gradient): {remedy}"
        ) from error
    except Exception as error:
        raise ProblemError(
            f"Model '{task.model.name}' cannot be differentiated: {in_one_line(error)}"
        ) from error
    if written := _operations(graphs[0], WRITES):
        raise ProblemError(
            f"{_layer(task.model, written)} changes a tf.Variable when it is called, and {CARRIED}"
        )
    for outside, inside in [] if first_order else graphs[0].captures:
        what, instead = "tensor", "make it a NumPy array"
        if outside.dtype == tf.resource:
            what = "variable or lookup table"
            instead = "keep it in add_weight(trainable=False), look up in the data beforehand"
        names = [operation.name for operation in inside.consumers()]
        raise ProblemError(
            f"{_layer(task.model, names)} uses a {what} that is no weight of the model, and "
            f"TensorFlow cannot differentiate a loop around that: {instead}, or use "
            "first_order=True (--first-order)"
        )
    wrong = [] if first_order else _operations(graphs[0], WRONG_TWICE)
    if wrong:
        raise ProblemError(
            f"{_layer(task.model, wrong)} cannot be differentiated twice (TensorFlow takes "
            f"the gradient of bilinear resizing for constant): {remedy}"
        )
    for name, value in zip(("loss", "gradient", "second derivative"), numbers, strict=True):
        if not np.isfinite(value).all():
            raise ProblemError(
                f"The {name} of model '{task.model.name}' is not finite at its initial weights"
            )


def check_sign(task: Task, batch: Batch) -> None:
    """Loss > 0 at the start, and not below 0 after a short descent on one batch."""
    parameters, carried = tf.nest.map_structure(tf.constant, task.initial(0))
    adam = Adam(PROBE_RATE)

    def step(i, lowest, parameters, carried, state):
        loss, gradient, carried = loss_and_gradient(task, parameters, carried, batch)
        move, state = adam.update([], gradient, parameters, state, task.layout)
        lowest = tf.where(loss < lowest, loss, lowest)  # it may become NaN
        return i + 1, lowest, parameters - move, carried, state

    @tf.function(autograph=False)
    def descend():
        state = tf.nest.map_structure(tf.convert_to_tensor, adam.initial_state(task.layout))
        first, _ = task.loss(parameters, carried, batch, training=True)
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
