"""Memory for time: what a step keeps for the backward pass, computed again instead.

Griewank's checkpointing. `tf.recompute_grad` fails around a function that has a tape inside.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import tensorflow as tf


def recomputed(function: Callable) -> Callable:
    """`function` of nested tensors, keeping only its inputs for the backward pass.

    What comes back takes a keyword more, `known`: the results, where they have been computed
    before.

    Args:
        function: Pure. Every tensor that a gradient goes to must be an input.
    """
    # A function that is called, not inlined, is pruned: of the results, only what their gradient
    # needs is computed again.
    backward = tf.function(
        partial(gradients, function),
        autograph=False,
        experimental_attributes={"_noinline": True},
    )

    def run(*inputs, known=None):
        forward = function if known is None else lambda *inputs: known
        return replaced(forward, lambda here, _, upstream: backward(here, upstream))(*inputs)

    return run


def compiled(function: Callable) -> Callable:
    """As `recomputed`, of a function that XLA compiles, and its backward pass by itself."""
    if sys.platform == "darwin":  # TensorFlow has no XLA there
        return recomputed(function)
    forward, backward = (
        tf.function(f, jit_compile=True, autograph=False)
        for f in (function, partial(gradients, function))
    )
    return replaced(forward, lambda inputs, _, upstream: backward(inputs, upstream))


def replaced(forward: Callable, backward: Callable) -> Callable:
    """`forward`, a function of nested tensors, with another gradient.

    Args:
        forward: (*inputs) -> outputs.
        backward: (inputs, outputs, upstream) -> what `gradients` returns. Of inputs and outputs,
            what it uses is kept for it.
    """

    def run(*inputs):
        structure = []

        @tf.custom_gradient
        def flatly(*flat):
            here = tf.nest.pack_sequence_as(inputs, flat)
            outputs = forward(*here)
            structure.append(outputs)
            return tf.nest.flatten(outputs), lambda *upstream: backward(here, outputs, upstream)

        outputs = flatly(*tf.nest.flatten(inputs))  # fills `structure`
        return tf.nest.pack_sequence_as(structure[0], outputs)

    return run


def gradients(function: Callable, inputs, upstream) -> list:
    """The gradient of `function(*inputs)` at its flattened inputs; None where there is none.

    Args:
        function: Of nested tensors.
        inputs: Its arguments.
        upstream: One gradient for each of the flattened outputs.
    """
    flat = tf.nest.flatten(inputs)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([x for x in flat if x.dtype.is_floating])
        outputs = tf.nest.flatten(function(*inputs))
    pairs = [(y, dy) for y, dy in zip(outputs, upstream, strict=True) if y.dtype.is_floating]
    outputs, upstream = zip(*pairs, strict=True)
    return tape.gradient(outputs, flat, output_gradients=list(upstream))
