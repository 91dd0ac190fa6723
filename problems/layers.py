"""Layers that `tf.vectorized_map` takes many of at once. Loads Keras."""

from __future__ import annotations

from keras import Layer, layers, ops


class Convolution(layers.Conv2D):
    """`Conv2D` as a product of patches: channels last, not dilated, one group.

    TensorFlow vectorizes no convolution over kernels, and runs a loop. Weights, initial values and
    outputs are `Conv2D`'s.
    """

    def convolution_op(self, inputs, kernel):
        patches = inputs
        for axis in (2, 1):  # a kernel's rows are outermost
            patches = self._side_by_side(patches, axis)
        return ops.matmul(patches, ops.reshape(kernel, (-1, self.filters)))

    def _side_by_side(self, x, axis: int):
        """What lies under each place of the kernel along an axis, in the channels."""
        size, stride, length = self.kernel_size[axis - 1], self.strides[axis - 1], x.shape[axis]
        if self.padding == "same":
            places = -(-length // stride)
            missing = max((places - 1) * stride + size - length, 0)
            padding = [(0, 0)] * 4
            padding[axis] = (missing // 2, missing - missing // 2)
            x = ops.pad(x, padding)
        else:
            places = (length - size) // stride + 1
        window = [slice(None)] * 4
        pieces = []
        for start in range(size):
            window[axis] = slice(start, start + (places - 1) * stride + 1, stride)
            pieces.append(x[tuple(window)])
        return ops.concatenate(pieces, -1)


class Places(Layer):
    """Adds a learned vector at each place of sequences [B, T, width]."""

    def build(self, input_shape):
        self.places = self.add_weight(shape=input_shape[1:], initializer="uniform", name="places")

    def call(self, inputs):
        return inputs + self.places
