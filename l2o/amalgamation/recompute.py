"""Memory for time: what a loop keeps for its backward pass, computed again instead."""

from __future__ import annotations

import tensorflow as tf


def recomputed(function):
    """`function(job, inputs)` that keeps only its inputs for the backward pass.

    The backward pass runs it again (Griewank's checkpointing). `inputs` must hold every tensor a
    gradient goes to. `tf.recompute_grad` fails around a step that has a tape inside.
    """

    def wrapped(job, inputs):
        flat = tf.nest.flatten(inputs)
        nested = lambda flat: tf.nest.pack_sequence_as(inputs, flat)  # noqa: E731
        shape = []

        @tf.custom_gradient
        def run(*flat):
            outputs = function(job, nested(flat))
            shape.append(outputs)

            def gradient(*upstream):
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch([x for x in flat if x.dtype.is_floating])
                    again = tf.nest.flatten(function(job, nested(flat)))
                kept = [
                    (y, dy) for y, dy in zip(again, upstream, strict=True) if y.dtype.is_floating
                ]
                outputs, upstream = zip(*kept, strict=True)
                return tape.gradient(outputs, flat, output_gradients=list(upstream))

            return tf.nest.flatten(outputs), gradient

        outputs = run(*flat)  # fills `shape`
        return tf.nest.pack_sequence_as(shape[0], outputs)

    return wrapped
