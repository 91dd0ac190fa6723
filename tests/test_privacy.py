"""DP-SGD: the clipped sum, the noise, the price, and who is refused."""

import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from l2o.evaluation.baselines import get_candidates
from l2o.evaluation.protocol import Bench, Plan
from l2o.problems import Batch, Dataset, Problem, get_problem
from l2o.tasks import privacy
from l2o.tasks.convolution import convolution
from l2o.tasks.gradient import plain_gradient
from l2o.tasks.privacy import DPSGD, PrivacyError, check_network, check_python
from l2o.tasks.task import Task

needs_tensorflow_privacy = pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="tensorflow-privacy does not install here"
)
KEY = tf.constant([3, 5], tf.int64)


def network(dtype: str = "float32") -> keras.Model:
    """For 8x8 images and 3 classes: convolutions of both paddings, max-pool, dense."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 1), dtype=dtype),
            layers.Conv2D(3, (3, 2), activation="relu", dtype=dtype),
            layers.MaxPooling2D(2, dtype=dtype),
            layers.Conv2D(4, 2, strides=2, padding="same", activation="relu", dtype=dtype),
            layers.Flatten(dtype=dtype),
            layers.Dense(3, dtype=dtype),
        ]
    )


@pytest.fixture
def task() -> Task:
    return Task(Problem(network))


@pytest.fixture
def batch(data) -> Batch:
    return tf.nest.map_structure(tf.constant, data)


def gradients_by_a_loop(parameters, layout, data: Batch) -> np.ndarray:
    """An example's gradient after the other, in float64, [B, D]."""
    model = network("float64")
    for variable, value in zip(
        model.trainable_variables, layout.unflatten(parameters), strict=True
    ):
        variable.assign(value)
    rows = []
    for image, label in zip(data.inputs, data.labels, strict=True):
        with tf.GradientTape() as tape:
            logits = model(image[None].astype("float64"))[0]
            loss = tf.reduce_logsumexp(logits) - logits[label]
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        rows.append(np.concatenate([g.numpy().ravel() for g in gradients]))
    return np.array(rows)


@needs_tensorflow_privacy
def test_clipped_sum_is_a_loops_in_float64(task, data, batch):
    parameters, carried = task.initial(0)
    gradients = gradients_by_a_loop(parameters, task.layout, data)
    norms = np.linalg.norm(gradients, axis=1)
    for clip in (norms.min() / 2, float(np.median(norms)), 2 * norms.max()):
        seen = DPSGD(clip, noise_multiplier=1e-9)(
            task, tf.constant(parameters), carried, batch, KEY
        )
        expected = (gradients * np.minimum(1, clip / norms)[:, None]).sum(0)
        np.testing.assert_allclose(seen.gradient * 64, expected, rtol=1e-4, atol=1e-5 * clip)


@needs_tensorflow_privacy
def test_without_clipping_and_noise_it_is_the_plain_gradient(task, batch):
    parameters, carried = task.initial(0)
    parameters = tf.constant(parameters)
    private = DPSGD(1e6, 1e-12)(task, parameters, carried, batch, KEY)
    plain = plain_gradient(task, parameters, carried, batch, KEY)
    np.testing.assert_allclose(private.gradient, plain.gradient, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(private.loss, plain.loss, rtol=1e-5)
    assert private.accuracy == plain.accuracy


@needs_tensorflow_privacy
def test_noise_is_normal_with_the_stated_variance_and_fresh_each_step(task, batch):
    clip, multiplier, steps = 0.5, 3.0, 40
    parameters, carried = task.initial(0)
    parameters = tf.constant(parameters)
    rule = DPSGD(clip, multiplier)
    silent = DPSGD(clip, 1e-12)(task, parameters, carried, batch, KEY).gradient.numpy()
    noisy = tf.function(
        lambda key: rule(task, parameters, carried, batch, key).gradient, autograph=False
    )
    seen = np.stack([noisy(tf.constant([7, step], tf.int64)) for step in range(steps)])
    noise = (64 * (seen - silent)).astype("float64")
    deviation = clip * multiplier
    statistic = (noise**2).sum() / deviation**2  # chi-squared with as many degrees of freedom
    assert 1e-3 < stats.chi2.cdf(statistic, noise.size) < 1 - 1e-3
    assert stats.kstest(noise.ravel() / deviation, "norm").pvalue > 1e-3
    neighbours = np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(noise.size)
    np.testing.assert_array_equal(noisy(tf.constant([7, 3], tf.int64)), seen[3])
    assert not np.array_equal(noisy(tf.constant([8, 3], tf.int64)), seen[3])


@needs_tensorflow_privacy
def test_epsilon_of_the_known_case():
    steps = 10 * 60_000 // 128
    assert DPSGD(1.0, 1.1).epsilon(60_000, 128, steps, 1e-5) == pytest.approx(0.818, abs=5e-4)


@needs_tensorflow_privacy
def test_epsilon_grows_with_steps_and_falls_with_noise():
    assert DPSGD().epsilon(1000, 10, 0) == 0
    epsilons = [DPSGD().epsilon(1000, 10, steps) for steps in (1, 10, 100)]
    assert 0 < epsilons[0] < epsilons[1] < epsilons[2]
    assert DPSGD(1.0, 2.0).epsilon(1000, 10, 100) < epsilons[2]


def test_batch_norm_is_refused_with_a_reason():
    inputs = keras.Input((4, 4, 1))
    inner = keras.Sequential([keras.layers.BatchNormalization(name="norm_inside")])
    with pytest.raises(PrivacyError, match="belongs to one example.*norm_inside"):
        check_network(keras.Model(inputs, inner(inputs)))
    check_network(network())


def test_random_layers_are_refused_with_a_reason():
    inputs = keras.Input((4, 4, 1))
    with pytest.raises(PrivacyError, match="draws random numbers.*Received: layer 'my_dropout"):
        check_network(keras.Model(inputs, keras.layers.Dropout(0.5, name="my_dropout")(inputs)))


@needs_tensorflow_privacy
def test_a_regression_can_be_private(data):
    layers = keras.layers
    build = lambda: keras.Sequential(  # noqa: E731
        [layers.Input((8, 8, 1)), layers.Flatten(), layers.Dense(1)]
    )
    task = Task(Problem(build, loss="mse"))
    batch = Batch(tf.constant(data.inputs), tf.constant(data.labels, tf.float32))
    parameters, carried = task.initial(0)
    seen = DPSGD(1e6, 1e-12)(task, tf.constant(parameters), carried, batch, KEY)
    plain = plain_gradient(task, tf.constant(parameters), carried, batch, KEY)
    np.testing.assert_allclose(seen.gradient, plain.gradient, rtol=1e-3, atol=1e-5)
    assert np.isnan(seen.accuracy)


def test_without_the_package_the_message_says_what_would_help(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_privacy", None)  # as if it were not installed
    privacy._query_class.cache_clear()
    for version, words in (((3, 11), "pip install .l2o.privacy"), ((3, 12), "Python 3.12")):
        monkeypatch.setattr(sys, "version_info", version)
        with pytest.raises(PrivacyError, match=words) as error:
            check_python()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize("strides", [1, (2, 3)])
def test_convolution_and_its_gradients_are_tensorflows(strides, padding):
    generator = np.random.default_rng(0)
    inputs = tf.constant(generator.normal(size=(2, 9, 10, 3)))
    kernel = tf.constant(generator.normal(size=(3, 2, 3, 4)))
    results = []
    for function in (convolution, tf.nn.convolution):
        with tf.GradientTape() as tape:
            tape.watch([inputs, kernel])
            outputs = function(inputs, kernel, strides, padding)
            total = tf.reduce_sum(tf.sin(outputs))
        results.append([outputs, *tape.gradient(total, [inputs, kernel])])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


# --- evaluations --------------------------------------------------------------------------------


def measured(private: bool):
    """Rows and history of three steps of four examples, on noise."""
    generator = np.random.default_rng(0)

    def split(count: int) -> Batch:
        images = generator.integers(0, 256, (count, 28, 28, 1)).astype("uint8")
        return Batch(images, generator.integers(0, 10, count).astype("int32"))

    parts = split(12), split(9), split(7)
    dataset = Dataset("mnist", *parts, classes=10)
    problem = replace(get_problem("mnist_dp"), batch_size=4, private=private)
    (candidate,) = get_candidates("sgd")
    return Bench(Plan(1, 1)).run(Task(problem, dataset), 1, candidate)[1:]


@needs_tensorflow_privacy
def test_an_evaluation_is_private_and_its_rows_are_what_was_measured():
    (plain, open_history), (rows, history) = map(measured, (False, True))
    for found, seen in ((plain, open_history), (rows, history)):
        for row, epoch in zip(found, seen.epochs, strict=True):
            for what in ("train", "validation", "test"):
                for name in (f"{what}_loss", f"{what}_accuracy"):
                    assert getattr(row, name) == getattr(epoch, name)
        assert found[1].test_loss != found[1].validation_loss
    np.testing.assert_allclose(history.losses[0], open_history.losses[0], rtol=1e-6)
    assert not np.isclose(history.losses[1:], open_history.losses[1:], rtol=1e-6).any()
    assert [row.epsilon for row in rows] == [0, DPSGD(1.0, 1.1).epsilon(12, 4, 3)]
    assert [row.epsilon for row in plain] == [np.inf, np.inf]
