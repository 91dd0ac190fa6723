"""The memory of a meta-gradient: what wraps the inner step, so that it is computed again, not kept.

Griewank's checkpointing, three times. The network's gradient (`recomputed_gradient`) and the rule's
update (`Recomputed`) keep only their arguments for the backward pass: at 18,122 coordinates some
7 MB a step in place of 48. `unrolled` keeps the rule's memory at the start of segments of steps
alone. `tf.recompute_grad` fails around a function that has a tape inside.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import tensorflow as tf

from l2o.problems.dataset import Batch
from l2o.rules.base import UpdateRule
from l2o.rules.layout import Layout
from l2o.rules.wrapper import Wrapper
from l2o.tasks.batches import entry
from l2o.tasks.task import Scaled, Task, ValueAndGradient, loss_and_gradient


def scan(step: Callable, carry, entries, like):
    """Steps (carry, entry) -> (carry, output) over entries [T, ...], one after the other.

    Returns:
        The last carry, and the outputs [T, ...], which have the dtypes of `like`.
    """
    count = int(tf.nest.flatten(entries)[0].shape[0])

    def advance(i, carry, arrays):
        carry, output = step(carry, entry(entries, i))
        return i + 1, carry, tf.nest.map_structure(lambda a, x: a.write(i, x), arrays, output)

    arrays = tf.nest.map_structure(lambda x: tf.TensorArray(x.dtype, size=count), like)
    loop = (0, carry, arrays)
    loop = tf.while_loop(lambda i, *_: i < count, advance, loop, parallel_iterations=1)
    return loop[1], tf.nest.map_structure(lambda array: array.stack(), loop[2])


def unrolled(step: Callable, weights: list, runner, entries, segment: int = 0):
    """T steps of a runner; a gradient goes to `weights` and `runner` alone.

    Args:
        step: (weights, runner, entry, known) -> (runner, `ValueAndGradient`, distances [K]);
            `known` is the `ValueAndGradient` of a step that was taken before, else ().
        weights: The rule's.
        runner: Where the first step begins.
        entries: What each step is given, nested tensors [T, ...].
        segment: Most steps of a segment. Of each, the start and the network's gradients are kept,
            and the steps are taken again for the backward pass; 0 keeps all.

    Returns:
        Losses [T], distances [T, K], the runner.
    """
    like = runner.parameters

    def steps(entries, weights, runner, known=()):
        def one(runner, here):
            *here, value = here
            value = tf.nest.map_structure(tf.stop_gradient, value)
            runner, value, distance = step(weights, runner, here, value)
            value = value._replace(gradient=tf.stop_gradient(value.gradient))
            return runner, (value, distance)

        outputs = (ValueAndGradient(like, like, runner.carried), like)
        runner, (values, distances) = scan(one, runner, (*entries, known), outputs)
        return values, distances, runner

    if not segment:
        values, distances, runner = steps(entries, weights, runner)
        return values.loss, distances, runner

    def retaken(runner, entries):
        run = partial(steps, entries)

        def backward(inputs, outputs, upstream):
            return gradients(partial(run, known=outputs[0]), inputs, upstream)

        values, distances, runner = with_gradient(run, backward)(weights, runner)
        return runner, (values.loss, distances)

    count = int(tf.nest.flatten(entries)[0].shape[0])
    length = max(n for n in range(1, segment + 1) if count % n == 0)
    cut = lambda x: tf.reshape(x, (count // length, length, *x.shape[1:]))  # noqa: E731
    segments = tf.nest.map_structure(cut, entries)
    runner, (losses, distances) = scan(retaken, runner, segments, (like, like))
    return tf.reshape(losses, (-1,)), tf.reshape(distances, (count, distances.shape[-1])), runner


@dataclass(frozen=True)
class Recomputed(Wrapper):
    """A rule whose `update` is compiled by XLA and keeps only its arguments, no gates."""

    def update(self, weights, gradient, parameters, state, layout, horizon=None):
        return _recomputed_update(self.inner, layout)(weights, gradient, parameters, state)


@lru_cache(maxsize=32)
def _recomputed_update(rule: UpdateRule, layout: Layout) -> Callable:
    return recomputed(lambda w, g, x, state: rule.update(w, g, x, state, layout), xla=True)


def recomputed_gradient(
    task: Scaled, parameters, carried, batch: Batch, judged=(), known=(), first_order=False
) -> ValueAndGradient:
    """As `loss_and_gradient`, keeping only its arguments; no gradient goes to scale and batches.

    Not compiled by XLA, whose convolutions are slow on a CPU.

    Args:
        task, parameters, carried, batch: As there.
        judged: The batch whose loss is measured if that is another, else ().
        known: The value, if it was taken before, else ().
        first_order: Whether the meta-gradient stops at the network's gradient.
    """
    evaluate, scale = _recomputed_value(task.task), task.scale
    if not first_order:
        return evaluate((scale, batch, judged), parameters, carried, known=known)
    resting = tf.stop_gradient(parameters)
    value = evaluate((scale, batch, judged), resting, carried, known=known)
    slope = evaluate((scale, judged, ()), resting, carried).gradient if judged else value.gradient
    value, slope = tf.nest.map_structure(tf.stop_gradient, (value, slope))
    # The loss as a plane with its gradient, which is at hand: the network is not run again.
    return value._replace(loss=value.loss + tf.reduce_sum(slope * (parameters - resting)))


@lru_cache(maxsize=32)
def _recomputed_value(task: Task) -> Callable:
    def evaluate(place, parameters, carried):
        scale, batch, judged = tf.nest.map_structure(tf.stop_gradient, place)
        scaled = Scaled(task, scale)
        value = loss_and_gradient(scaled, parameters, carried, batch)
        if judged:
            value = value._replace(loss=scaled.loss(parameters, carried, judged, training=True)[0])
        return value

    return recomputed(evaluate)


def recomputed(function: Callable, xla: bool = False) -> Callable:
    """`function` of nested tensors, keeping only its inputs for the backward pass.

    What comes back takes a keyword more, `known`: the results, where they have been computed
    before, else ().

    Args:
        function: Pure. Every tensor that a gradient goes to must be an input.
        xla: Whether XLA compiles it, and its backward pass by itself.
    """
    backward = partial(gradients, function)
    if xla and sys.platform != "darwin":  # TensorFlow has no XLA there
        function = tf.function(function, jit_compile=True, autograph=False)
        backward = tf.function(backward, jit_compile=True, autograph=False)
    else:
        # A function that is called, not inlined, is pruned: of the results, only what their
        # gradient needs is computed again.
        called = {"_noinline": True}
        backward = tf.function(backward, autograph=False, experimental_attributes=called)

    def run(*inputs, known=()):
        forward = (lambda *_: known) if known else function
        return with_gradient(forward, lambda here, _, upstream: backward(here, upstream))(*inputs)

    return run


def with_gradient(forward: Callable, backward: Callable) -> Callable:
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
