"""Fitting: against plain Keras loops, in pairs, until it diverges."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from made_weights import made_weights

from l2o import AmalgamatedOptimizer, Policy
from l2o.evaluation import fit
from l2o.evaluation.baselines import keras_optimizers
from l2o.evaluation.fit import Fit
from l2o.evaluation.keras_rule import KerasRule
from l2o.problems import Problem
from l2o.rules import (
    SGD,
    Adam,
    Averaged,
    Decayed,
    Layout,
    MovingAverage,
    RNNProp,
    Scheduled,
    WarmUp,
    cosine,
    layer,
    linear,
    warmed_up,
)
from l2o.tasks.batches import batch_indices, rows
from l2o.tasks.gradient import plain_gradient
from l2o.tasks.task import Task, keras_seed

BATCH, STEPS = 16, 4  # 64 examples


@pytest.fixture
def fitted(network, data):
    """Fits the network to the data with a rule; validation and test are parts of the data."""

    def build(rule, weights=(), batch_size=BATCH, **settings) -> Fit:
        train = tf.nest.map_structure(tf.constant, data)
        held_out = [tf.nest.map_structure(tf.constant, rows(data, slice(n))) for n in (50, 37)]
        return Fit(
            Task(Problem(network)), rule, weights, train, held_out[0], batch_size, held_out[1],
            **settings,
        )  # fmt: skip

    return build


def test_course_is_that_of_a_plain_keras_loop(network, data, fitted):
    warmup, epochs, seed = 3, 2, 7
    rule = WarmUp(KerasRule(lambda: keras.optimizers.Adam(0.01)), warmup, 0.05)
    history = fitted(rule).run(seed, epochs)

    with keras_seed(seed):
        model = network()
    variables = [v.value for v in model.trainable_variables]
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)

    def measure(inputs, labels, training=False):
        logits = model(inputs, training=training)
        losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        hits = np.argmax(logits, -1) == labels
        return tf.reduce_mean(losses), float(hits.mean())

    losses, accuracies, scores = [], [], []

    def score():
        scores.append([float(x) for n in (50, 37) for x in measure(data[0][:n], data[1][:n])])

    score()
    for step, indices in enumerate(batch_indices([seed], 64, BATCH, 0, epochs * STEPS)):
        with tf.GradientTape() as tape:
            loss, accuracy = measure(data[0][indices], data[1][indices], training=True)
        gradients = tape.gradient(loss, variables)
        losses.append(float(loss))
        accuracies.append(accuracy)
        before = [v.numpy() for v in variables]
        optimizer.apply(gradients, model.trainable_variables)
        if step < warmup:  # the optimizer has seen the gradients, and SGD moves
            for variable, value, gradient in zip(variables, before, gradients, strict=True):
                variable.assign(value - 0.05 * gradient.numpy())
        if (step + 1) % STEPS == 0:
            score()

    np.testing.assert_allclose(history.losses, losses, rtol=2e-4)
    np.testing.assert_allclose(history.accuracies, accuracies)
    measured = [
        [e.validation_loss, e.validation_accuracy, e.test_loss, e.test_accuracy]
        for e in history.epochs
    ]
    np.testing.assert_allclose(measured, scores, rtol=1e-3)
    assert [e.steps for e in history.epochs] == [0, STEPS, 2 * STEPS]
    assert history.epochs[0].train_loss == history.losses[0]
    for epoch, part in zip(history.epochs[1:], np.split(history.losses, 2), strict=True):
        assert epoch.train_loss == pytest.approx(part.mean())
    assert 0 == history.epochs[0].seconds < history.epochs[1].seconds < history.epochs[2].seconds


def test_what_is_scored_may_be_the_moving_average_that_keras_makes(network, data, fitted):
    def adam(**averaging):
        return keras.optimizers.Adam(0.01, **averaging)

    plain = fitted(KerasRule(adam)).run(3, 2)
    averaged = fitted(MovingAverage(KerasRule(adam), 0.95)).run(3, 2)
    np.testing.assert_allclose(averaged.losses, plain.losses, rtol=1e-6)  # steps are as they were

    with keras_seed(3):
        model = network()
    optimizer = adam(use_ema=True, ema_momentum=0.95)
    optimizer.build(model.trainable_variables)
    for indices in batch_indices([3], 64, BATCH, 0, 2 * STEPS):
        with tf.GradientTape() as tape:
            logits, labels = model(data[0][indices], training=True), data[1][indices]
            loss = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
            loss = tf.reduce_mean(loss)
        optimizer.apply(tape.gradient(loss, [v.value for v in model.trainable_variables]))
    optimizer.finalize_variable_values(model.trainable_variables)  # takes the average
    logits = model(data[0][:50], training=False)
    loss = keras.losses.sparse_categorical_crossentropy(data[1][:50], logits, from_logits=True)
    expected = float(tf.reduce_mean(loss))
    assert averaged.epochs[-1].validation_loss == pytest.approx(expected, rel=1e-4)
    assert plain.epochs[-1].validation_loss != pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("warmup", [0, 2 * STEPS], ids=["optimizer", "warm-up"])
def test_weight_decay_is_that_of_keras(fitted, warmup):
    def sgd(**settings):
        return KerasRule(lambda: keras.optimizers.SGD(0.05, **settings))

    theirs = fitted(sgd(weight_decay=0.4)).run(3, 2)
    # Here decay is not multiplied by the optimizer's rate, only by the warm-up's, 0.05 too.
    ours = fitted(WarmUp(Decayed(sgd(), 0.4 if warmup else 0.02), warmup, 0.05)).run(3, 2)
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-5)
    assert abs(ours.losses[-1] - fitted(sgd()).run(3, 2).losses[-1]) > 1e-3


def same_200_steps(fitted, rule):
    """A fit's and the optimizer's, which starts to score and to count where the fit does."""
    weights = made_weights(rule)
    policy = Policy(rule, weights)
    ours = fitted(rule, weights).run(3, 50)
    theirs = fitted(KerasRule(lambda: AmalgamatedOptimizer(policy))).run(3, 50)
    assert len(ours.losses) == 200 == len(theirs.losses)
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-6)
    if not layer(rule, MovingAverage):  # Keras' optimizers are scored where they stand
        scores = ([e.validation_loss for e in history.epochs] for history in (ours, theirs))
        np.testing.assert_allclose(*scores, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:weight_decay")
def test_a_fit_takes_the_steps_of_the_optimizer(fitted, float64):
    """In the warm-up and after it, with all that can be around a rule."""
    rule = Averaged(Scheduled(RNNProp(units=3, scale=0.01), cosine(0.1, 180)), 0.5)
    same_200_steps(fitted, MovingAverage(WarmUp(Decayed(rule, 0.002), 20, 0.05), 0.9))


def test_a_rule_is_told_how_long_the_fit_is(fitted):
    """Each fit its own length, in steps."""
    short = fitted(Scheduled(SGD(0.1), linear()))
    for epochs in (3, 2):
        wanted = fitted(Scheduled(SGD(0.1), linear(steps=epochs * STEPS))).run(0, epochs)
        np.testing.assert_allclose(short.run(0, epochs).losses, wanted.losses, rtol=1e-6)
    longer = fitted(Scheduled(SGD(0.1), linear(steps=3 * STEPS))).run(0, 2)
    assert not np.allclose(longer.losses[2:], wanted.losses[2:], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:weight_decay")
def test_a_fit_takes_the_steps_of_every_rule(any_rule, fitted, float64):
    same_200_steps(fitted, warmed_up(any_rule, 20, 0.05))


def test_optimizers_of_a_seed_share_start_batches_and_warm_up(fitted):
    policy = RNNProp()
    adam = fitted(WarmUp(Adam(0.01), 3, 0.05)).run(0, 2)
    learned = fitted(WarmUp(policy, 3, 0.05), made_weights(policy)).run(0, 2)
    np.testing.assert_allclose(adam.losses[:4], learned.losses[:4], rtol=1e-5)
    assert not np.isclose(adam.losses[4:], learned.losses[4:], rtol=1e-5).any()


def test_a_seed_says_all_and_another_says_otherwise(fitted):
    fit = fitted(Adam(0.01))
    first, other, again = fit.run(0, 2), fit.run(1, 2), fit.run(0, 2)
    np.testing.assert_array_equal(first.losses, again.losses)
    assert not np.isclose(first.losses, other.losses).any()


def test_length_of_the_compiled_calls_changes_nothing(fitted, monkeypatch):
    whole = fitted(WarmUp(Adam(0.01), 3, 0.05)).run(0, 2)
    monkeypatch.setattr(fit, "_FIRST_CALL_STEPS", 3)
    monkeypatch.setattr(fit, "_CALL_SECONDS", 0.0)
    behind = []
    pieces = fitted(WarmUp(Adam(0.01), 3, 0.05)).run(0, 2, behind.append)
    assert behind == [3, 4, 5, 6, 7, 8]
    np.testing.assert_allclose(pieces.losses, whole.losses, rtol=1e-5)


def test_scores_are_over_all_examples_whatever_the_scoring_batch(fitted, monkeypatch):
    whole = fitted(SGD(0.1)).run(0, 1)
    monkeypatch.setattr(fit, "_SCORING_BATCH", 12)
    pieces = fitted(SGD(0.1)).run(0, 1)
    for one, other in zip(whole.epochs, pieces.epochs, strict=True):
        assert one.validation_loss == pytest.approx(other.validation_loss, rel=1e-5)
        assert one.test_loss == pytest.approx(other.test_loss, rel=1e-5)
        assert one.validation_accuracy == other.validation_accuracy
        assert one.test_accuracy == other.test_accuracy


def test_weights_that_no_output_needs_have_a_gradient_of_zero(data):
    class Unused(keras.Model):
        def __init__(self):
            super().__init__()
            self.used, self.unused = keras.layers.Dense(3), keras.layers.Dense(2)
            self.flat = keras.layers.Flatten()

        def build(self, shape):
            self.unused.build((None, 4))

        def call(self, inputs):
            return self.used(self.flat(inputs))

    def build():
        model = Unused()
        model(np.zeros((1, 8, 8, 1), "float32"))
        return model

    task, batch = Task(Problem(build)), tf.nest.map_structure(tf.constant, data)
    parameters, carried = task.initial(0)
    found = fit.plain_gradient(task, tf.constant(parameters), carried, batch, None).gradient
    zero = [not np.any(g) for g in task.layout.unflatten(found)]
    assert zero == [False, False, True, True]


def test_divergence_ends_the_fit_and_is_dated(fitted):
    history = fitted(WarmUp(SGD(1e30), 5, 0.05)).run(0, 4)
    assert [e.diverged_at for e in history.epochs] == [None, None, 6]
    assert np.isfinite(history.losses[:6]).all() and not np.isfinite(history.losses[6])
    assert len(history.losses) == 7 == history.epochs[-1].steps
    last = history.epochs[-1]
    assert last.train_loss == last.validation_loss == last.test_loss == np.inf


def test_divergence_in_an_epochs_last_step_is_dated_to_the_next(fitted):
    history = fitted(SGD(1e30), batch_size=64).run(0, 3)
    assert [e.diverged_at for e in history.epochs] == [None, 1]
    assert history.epochs[-1].validation_loss == np.inf


def test_a_loss_that_is_no_number_from_the_start_is_a_divergence(fitted):
    def broken(*arguments):
        return fit.plain_gradient(*arguments)._replace(loss=tf.constant(np.nan))

    history = fitted(SGD(0.1), gradient=broken).run(0, 2)
    assert [e.diverged_at for e in history.epochs] == [None, 0]
    assert [e.train_loss for e in history.epochs] == [np.inf, np.inf]
    assert history.epochs[1].validation_loss == np.inf


@pytest.mark.parametrize("name", keras_optimizers())
def test_keras_optimizers_take_their_own_steps(name):
    kind, generator = keras_optimizers()[name], np.random.default_rng(0)
    tensors = [generator.normal(size=shape).astype("float32") for shape in ((4, 3), (3,), ())]
    variables = [keras.Variable(t, name=f"v{k}") for k, t in enumerate(tensors)]
    layout = Layout.of(tensors)
    optimizer, rule = kind(learning_rate=0.05), KerasRule(lambda: kind(learning_rate=0.05))
    optimizer.build(variables)
    parameters = layout.flatten(list(map(tf.constant, tensors)))
    assert not any(np.any(x) for x in tf.nest.flatten(rule.initial_state(layout)))
    for _ in range(2):  # the state of one fit is nothing to the next
        state, moved = rule.initial_state(layout), parameters
        for step in range(3):
            gradient = tf.sin(moved + step)
            watched = rule.observe([], gradient, moved, state, layout)
            move, state = rule.update([], gradient, moved, state, layout)
            moved = moved - move
            tf.nest.map_structure(np.testing.assert_array_equal, watched, state)
    for step in range(3):
        now = layout.flatten([v.value for v in variables])
        optimizer.apply(layout.unflatten(tf.sin(now + step)), variables)
    expected = layout.flatten([v.value for v in variables])
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(moved, parameters, rtol=1e-5, atol=1e-7)


def test_a_gradient_is_told_seed_and_step(fitted):
    """They fix the noise of a private one."""

    def told(*arguments):
        seed, step = tf.unstack(tf.cast(arguments[-1], tf.float32))
        return plain_gradient(*arguments)._replace(loss=1000 * seed + step)

    history = fitted(SGD(0.1), gradient=told).run(7, 2)
    np.testing.assert_array_equal(history.losses, 7000 + np.arange(2 * STEPS))
