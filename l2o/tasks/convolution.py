"""Convolutions that vectorize: their kernel's gradient over examples, or all over kernels.

`tf.vectorized_map` runs TensorFlow's own gradient of a convolution's kernel in a loop, an example
at a time, which makes a private step 3.9 plain gradients (Train network, batch 128, processor
time). Written as a matrix product it becomes one batched product, and the step 2.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import tensorflow as tf

from l2o.tasks.second_order import POOL, max_pool

_convolution = tf.nn.convolution


@contextmanager
def vectorized_convolution() -> Iterator[None]:
    """Keras' convolutions called within have kernel gradients that vectorize well."""
    tf.nn.convolution = convolution
    try:
        yield
    finally:
        tf.nn.convolution = _convolution


def convolution(inputs, kernel, strides, padding, data_format="NHWC", dilations=1):
    """As `tf.nn.convolution`, with another gradient where it can be had.

    That is for images in NHWC, padding "VALID" and no dilation; else it is TensorFlow's.

    Args:
        inputs: [B, H, W, C].
        kernel: [h, w, C, F].
        strides, padding, data_format, dilations: As there.
    """
    plain = all(d == 1 for d in tf.nest.flatten(dilations))
    if not (data_format == "NHWC" and padding == "VALID" and plain) or (
        inputs.shape[-1] != kernel.shape[-2]
    ):
        return _convolution(inputs, kernel, strides, padding, data_format, dilations)
    strides = [strides] * 2 if isinstance(strides, int) else list(strides)

    @tf.custom_gradient
    def convolve(inputs, kernel):
        def gradient(upstream):
            downstream = tf.nn.conv2d_transpose(
                upstream, kernel, tf.shape(inputs), strides, padding
            )
            return downstream, _kernel_gradient(inputs, kernel.shape, upstream, strides)

        return tf.nn.conv2d(inputs, kernel, strides, padding), gradient

    return convolve(inputs, kernel)


def _kernel_gradient(inputs, shape, upstream, strides: list[int]):
    """[h, w, C, F]: the patches under the kernel, times the gradient of the outputs."""
    patches = _patches(inputs, shape[:2], strides, "VALID")
    patches = tf.reshape(patches, (-1, shape[0] * shape[1] * shape[2]))
    upstream = tf.reshape(upstream, (-1, shape[3]))
    return tf.reshape(tf.matmul(patches, upstream, transpose_a=True), shape)


@contextmanager
def side_by_side() -> Iterator[None]:
    """Networks called within vectorize over their weights too, and compile under XLA.

    `tf.vectorized_map` has no convolution of many images by many kernels, and XLA no max-pool whose
    gradient is sure to be repeatable.
    """
    tf.nn.convolution = product_of_patches
    before = POOL.set(max_of_windows)
    try:
        yield
    finally:
        POOL.reset(before)
        tf.nn.convolution = _convolution


def product_of_patches(inputs, kernel, strides, padding, data_format="NHWC", dilations=1):
    """As `tf.nn.convolution` of images in NHWC without dilation; else it is TensorFlow's."""
    plain = all(d == 1 for d in tf.nest.flatten(dilations))
    if not (data_format == "NHWC" and plain and kernel.shape.rank == 4) or (
        inputs.shape[-1] != kernel.shape[-2]
    ):
        return _convolution(inputs, kernel, strides, padding, data_format, dilations)
    strides = [strides] * 2 if isinstance(strides, int) else strides
    patches = _patches(inputs, kernel.shape[:2], strides, padding)
    flat = tf.reshape(kernel, (-1, kernel.shape[-1]))
    products = tf.matmul(tf.reshape(patches, (-1, flat.shape[0])), flat)
    return tf.reshape(products, (-1, *patches.shape[1:3], kernel.shape[-1]))


def _patches(images, size: Sequence[int], strides: Sequence[int], padding: str):
    """What lies under each place of a kernel, in the channels; a kernel's rows are outermost.

    First along rows: a fifth of the pieces of a 5 x 5 kernel's, and longer ones.
    """
    for axis in (2, 1):
        images = _side_by_side(images, axis, size[axis - 1], strides[axis - 1], padding)
    return images


def _side_by_side(x, axis: int, size: int, stride: int, padding: str):
    """What lies under each place of a kernel along an axis of images, in the channels."""
    length = x.shape[axis]
    if padding.upper() == "SAME":
        lacking = max((-(-length // stride) - 1) * stride + size - length, 0)
        around = [(0, 0)] * 4
        around[axis] = (lacking // 2, lacking - lacking // 2)
        x, length = tf.pad(x, around), length + lacking
    last = (length - size) // stride * stride
    before = (slice(None),) * axis
    return tf.concat([x[(*before, slice(k, k + last + 1, stride))] for k in range(size)], -1)


def max_of_windows(x, ksize, strides, padding, data_format=None, name=None):
    """As `tf.nn.max_pool` of images [B, H, W, C] in windows side by side, by other operations.

    Its gradient goes to the first of several largest entries, as there.
    """
    size = [ksize] * 2 if isinstance(ksize, int) else list(ksize)
    apart = [strides] * 2 if isinstance(strides, int) else list(strides)
    if size != apart or padding != "VALID" or data_format != "NHWC" or len(size) != 2:
        return max_pool(x, ksize, strides, padding, data_format, name)
    (height, width), (rows, columns), channels = x.shape[1:3], size, x.shape[3]
    down, right = height // rows, width // columns
    x = x[:, : down * rows, : right * columns]
    x = tf.reshape(x, (-1, down, rows, right, columns, channels))
    x = tf.reshape(tf.transpose(x, (0, 1, 3, 5, 2, 4)), (-1, down, right, channels, rows * columns))
    largest = tf.one_hot(tf.argmax(x, -1), rows * columns, True, False)
    return tf.reduce_sum(tf.where(largest, x, 0), -1)
