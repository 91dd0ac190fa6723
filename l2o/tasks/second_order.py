"""Second derivatives of Keras' layers: right where TensorFlow's are wrong, and less slow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import keras
import tensorflow as tf

_plain_moments, _plain_max_pool = tf.nn.moments, tf.nn.max_pool


@contextmanager
def second_derivatives(model: keras.Model) -> Iterator[None]:
    """A model called within has the right ones, and those of max-pools in less time.

    `tf.nn.moments`, which Keras calls, takes the mean in the variance for a constant: right for
    first derivatives only. Its kernel for a max-pool's second derivative is slow: on a CPU, a sixth
    of the Train network's whole second-order part. Tensors that layers keep, such as the mean of
    `Normalization`, are the graph's own within: TensorFlow has no gradient of a loop whose gradient
    needs a tensor from outside all graphs.
    """
    kept = [
        (vars(layer), name, value)
        for layer in model._flatten_layers()
        for name, value in vars(layer).items()
        if isinstance(value, tf.Tensor)
        and hasattr(value, "numpy")  # of no graph
        and value.dtype.is_numpy_compatible
    ]
    for attributes, name, value in kept:
        attributes[name] = tf.constant(value.numpy())
    tf.nn.moments, tf.nn.max_pool = moments, POOL.get()
    try:
        yield
    finally:
        tf.nn.moments, tf.nn.max_pool = _plain_moments, _plain_max_pool
        for attributes, name, value in kept:
            attributes[name] = value


def moments(x, axes, shift=None, keepdims=False, name=None):
    """As `tf.nn.moments`, and `shift` has no use there either."""
    return tf.reduce_mean(x, axes, keepdims), tf.math.reduce_variance(x, axes, keepdims)


def max_pool(x, ksize, strides, padding, data_format=None, name=None):
    """As `tf.nn.max_pool`; of images [B, H, W, C] in windows side by side, with another gradient.

    A max-pool's gradient is linear in what comes from above: it is put where a window has its
    largest entry. The second derivative is that map transposed, which takes from each window the
    entry at that place: the only one left when all others are multiplied by 0, so that the mean
    over the window finds it.
    """
    windows = ksize == strides and padding == "VALID" and data_format == "NHWC"
    if not windows or len(tf.nest.flatten(ksize)) != 2:
        return _plain_max_pool(x, ksize, strides, padding, data_format, name)
    rows, columns = ksize
    window = {"ksize": [1, rows, columns, 1], "strides": [1, rows, columns, 1]}

    @tf.custom_gradient
    def pool(x):
        largest = tf.raw_ops.MaxPool(input=x, **window, padding=padding)

        def put(upstream):
            return tf.raw_ops.MaxPoolGrad(
                orig_input=x, orig_output=largest, grad=upstream, **window, padding=padding
            )

        def take(upstream):
            places = put(tf.ones_like(largest))
            return math.prod(ksize) * tf.nn.avg_pool2d(places * upstream, ksize, strides, padding)

        gradient = tf.custom_gradient(lambda upstream: (put(upstream), take))
        return largest, gradient

    return pool(x)


POOL: ContextVar[Callable] = ContextVar("max-pool", default=max_pool)  # of a model called within
