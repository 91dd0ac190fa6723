"""Convolutions that vectorize: their kernel's gradient over examples, or all over kernels.

`tf.vectorized_map` runs TensorFlow's own gradient of a convolution's kernel in a loop, an example
at a time, which makes a private step 3.9 plain gradients (Train network, batch 128, processor
time). Written as a matrix product it becomes one batched product, and the step 2.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

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
    height, width = upstream.shape[1:3]
    down, right = strides
    columns = [
        inputs[:, :, j : j + (width - 1) * right + 1 : right] for j in range(shape[1])
    ]  # first along rows: a fifth of the pieces of a 5 x 5 kernel's, and longer ones
    columns = tf.concat(columns, -1)
    patches = [columns[:, i : i + (height - 1) * down + 1 : down] for i in range(shape[0])]
    patches = tf.reshape(tf.concat(patches, -1), (-1, shape[0] * shape[1] * shape[2]))
    upstream = tf.reshape(upstream, (-1, shape[3]))
    return tf.reshape(tf.matmul(patches, upstream, transpose_a=True), shape)


@contextmanager
def convolution_of_patches() -> Iterator[None]:
    """Keras' convolutions called within are products of matrices, which vectorize over kernels too.

    `tf.vectorized_map` has no convolution of many images by many kernels.
    """
    tf.nn.convolution = product_of_patches
    try:
        yield
    finally:
        tf.nn.convolution = _convolution


def product_of_patches(inputs, kernel, strides, padding, data_format="NHWC", dilations=1):
    """As `tf.nn.convolution` of images in NHWC without dilation; else it is TensorFlow's."""
    plain = all(d == 1 for d in tf.nest.flatten(dilations))
    if not (data_format == "NHWC" and plain and kernel.shape.rank == 4) or (
        inputs.shape[-1] != kernel.shape[-2]
    ):
        return _convolution(inputs, kernel, strides, padding, data_format, dilations)
    size, strides = kernel.shape[:2], [strides] * 2 if isinstance(strides, int) else strides
    if padding.upper() == "SAME":
        lacking = [max((-(-n // s) - 1) * s + k - n, 0)
                   for n, s, k in zip(inputs.shape[1:3], strides, size, strict=True)]  # fmt: skip
        around = [(n // 2, n - n // 2) for n in lacking]
        inputs = tf.pad(inputs, [(0, 0), *around, (0, 0)])
    rows, columns = (
        [slice(i, i + (n - k) // s * s + 1, s) for i in range(k)]
        for n, s, k in zip(inputs.shape[1:3], strides, size, strict=True)
    )
    patches = tf.concat([inputs[:, row, column] for row in rows for column in columns], -1)
    flat = tf.reshape(kernel, (-1, kernel.shape[-1]))
    products = tf.matmul(tf.reshape(patches, (-1, flat.shape[0])), flat)
    return tf.reshape(products, (-1, *patches.shape[1:3], kernel.shape[-1]))
