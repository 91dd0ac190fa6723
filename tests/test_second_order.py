"""Derivatives of layers as the meta-gradient sees them, against TensorFlow's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from l2o.tasks.second_order import max_pool, moments, second_derivatives


def derivatives(pool, x, size, strides, padding):
    """A pool's outputs, a gradient through it, and the gradient of that again, to all inputs."""
    x = tf.constant(x)
    seen = tf.random.stateless_normal(pool(x, size, strides, padding, "NHWC").shape, (0, 1))
    above = tf.random.stateless_normal(x.shape, (0, 2))
    with tf.GradientTape() as outer:
        outer.watch([x, seen])
        with tf.GradientTape() as inner:
            inner.watch(x)
            # Squared, so that the inner gradient depends on x in two ways.
            loss = tf.reduce_sum(seen * pool(x, size, strides, padding, "NHWC") ** 2)
        gradient = inner.gradient(loss, x)
        again = tf.reduce_sum(above * gradient)
    return [pool(x, size, strides, padding, "NHWC"), gradient, *outer.gradient(again, [x, seen])]


@pytest.mark.parametrize(
    "shape, size, strides, padding",
    [
        ((3, 6, 8, 2), (2, 2), (2, 2), "VALID"),
        ((3, 7, 9, 2), (2, 2), (2, 2), "VALID"),  # a last row and column that no window has
        ((2, 7, 6, 1), (3, 2), (3, 2), "VALID"),
        ((2, 7, 7, 1), (3, 3), (2, 2), "VALID"),  # windows overlap
        ((2, 7, 7, 1), (2, 2), (2, 2), "SAME"),
        ((2, 6, 6, 1), 2, 2, "VALID"),  # TensorFlow's other ways to name a window
        ((2, 6, 6, 1), [1, 2, 2, 1], [1, 2, 2, 1], "VALID"),
    ],
)
@pytest.mark.parametrize("ties", [False, True])
def test_a_max_pool_has_tensorflow_s_derivatives(shape, size, strides, padding, ties):
    generator = np.random.default_rng(0)
    x = generator.integers(-2, 3, shape) if ties else generator.normal(size=shape)
    ours, theirs = (
        derivatives(pool, x.astype("float32"), size, strides, padding)
        for pool in (max_pool, tf.nn.max_pool)
    )
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-6)
    assert np.any(ours[2])


def test_the_variance_s_second_derivative_is_2_over_n_off_the_mean():
    """d²/dx² of the variance of n numbers is 2/n - 2/n² on the diagonal, -2/n² elsewhere."""
    x, n = tf.constant([0.5, -1.0, 2.0, 4.0]), 4
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            variance = moments(x, [0])[1]
        gradient = inner.gradient(variance, x)
    expected = 2 / n * np.eye(n) - 2 / n**2
    np.testing.assert_allclose(outer.jacobian(gradient, x), expected, atol=1e-6)


def test_tensorflow_has_its_own_functions_back_afterwards():
    before = tf.nn.moments, tf.nn.max_pool
    with pytest.raises(KeyError), second_derivatives(keras.Sequential()):
        assert (tf.nn.moments, tf.nn.max_pool) == (moments, max_pool)
        raise KeyError
    assert (tf.nn.moments, tf.nn.max_pool) == before
