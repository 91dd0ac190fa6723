"""An inner step, alone and vectorized, and its two halves where they are recomputed."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from made_weights import made_weights

from l2o.amalgamation.recompute import Recomputed, recomputed_gradient
from l2o.amalgamation.unroll import Runner, inner_step
from l2o.problems import Batch, Problem
from l2o.rules import Adam, Choice, RMSProp, RNNProp
from l2o.rules.layout import Layout
from l2o.tasks.task import Scaled, Task, ValueAndGradient, loss_and_gradient


def close(actual, expected):
    """Asserts that two structures hold nearly the same numbers."""
    for a, b in zip(tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def gradient_of(function, inputs, upstream):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = function(inputs)
    gradient = tape.gradient(
        outputs, inputs, output_gradients=upstream, unconnected_gradients="zero"
    )
    return outputs, gradient


@pytest.mark.parametrize("rule", [Adam(0.02), RNNProp(units=4)], ids=lambda rule: rule.name)
def test_many_runners_take_the_steps_that_each_takes_alone(rule, float64):
    """Two of them, vectorized and compiled by XLA, each with weights and batches of its own."""
    layers, generator = keras.layers, np.random.default_rng(0)
    stack = lambda: [layers.Input((6,)), layers.Dense(5, "relu"), layers.Dense(3)]  # noqa: E731
    task = Task(Problem(lambda: keras.Sequential(stack())))
    inputs = [
        (
            made_weights(rule, k),
            Runner(*task.initial(k), rule.initial_state(task.layout)),
            Batch(generator.normal(size=(8, 6)), generator.integers(3, size=8)),
        )
        for k in range(3)
    ]

    def two(inputs):
        weights, runner, batch = inputs
        for _ in range(2):
            seen, runner = inner_step(task, rule, weights, runner, batch)
        return seen.loss, runner

    stacked = tf.nest.map_structure(lambda *x: tf.stack(x), *inputs)
    together = tf.function(lambda x: tf.vectorized_map(two, x), jit_compile=True)(stacked)
    alone = [two(tf.nest.map_structure(tf.constant, each)) for each in inputs]
    close(together, tf.nest.map_structure(lambda *x: tf.stack(x), *alone))


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("first_order", [False, True])
def test_a_look_at_the_network(first_order, held_out, network, data, float64):
    task = Task(Problem(network))
    generator = np.random.default_rng(0)
    parameters, carried = tf.nest.map_structure(tf.constant, task.initial(0))
    scale = tf.constant(generator.uniform(0.5, 2, parameters.shape))
    first, second = (
        Batch(tf.constant(data.inputs[part].astype("float64")), tf.constant(data.labels[part]))
        for part in (slice(8), slice(8, 16))
    )
    judged = second if held_out else ()
    upstream = ValueAndGradient(
        tf.constant(0.7, tf.float64),
        tf.constant(generator.normal(size=parameters.shape)),
        [tf.zeros_like(x) for x in carried],
    )

    scaled = Scaled(task, scale)

    def plain(parameters):
        loss, gradient, after = loss_and_gradient(scaled, parameters, carried, first)
        if held_out:
            loss, _ = scaled.loss(parameters, carried, second, training=True)
        return ValueAndGradient(
            loss, tf.stop_gradient(gradient) if first_order else gradient, after
        )

    def seen(parameters, known):
        return recomputed_gradient(scaled, parameters, carried, first, judged, known, first_order)

    value, gradient = gradient_of(plain, parameters, upstream)
    for known in ((), value):
        close(
            gradient_of(lambda x, known=known: seen(x, known), parameters, upstream),
            (value, gradient),
        )


@pytest.mark.parametrize("rule", [RNNProp(units=4), Choice((RMSProp(0.1),), units=4)])
def test_a_recomputed_update(rule, float64):
    generator, layout = np.random.default_rng(0), Layout(("a", "b"), ((3, 2), (5,)))
    shake = lambda x: tf.constant(np.asarray(x) + generator.uniform(0, 1, np.shape(x)))  # noqa: E731
    inputs = tf.nest.map_structure(
        shake, (rule.initial_weights(0), np.zeros(11), np.zeros(11), rule.initial_state(layout))
    )
    upstream = tf.nest.map_structure(shake, rule.update(*inputs, layout))
    update = Recomputed(rule).update
    close(
        gradient_of(lambda inputs: update(*inputs, layout), inputs, upstream),
        gradient_of(lambda inputs: rule.update(*inputs, layout), inputs, upstream),
    )
