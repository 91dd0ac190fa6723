"""The paper's networks as functional Keras models, by image shape and number of classes.

Inputs are float32 images in [0, 1] of shape [batch, height, width, channels]; outputs are logits
[batch, classes]. Kernels start Glorot-uniform and biases at zero: Keras' defaults.

Keras is imported inside the functions, so that naming a problem does not load TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

Shape = tuple[int, ...]


@contextmanager
def channels_last() -> Iterator[None]:
    """Layers made within have channels last, whatever Keras' configuration file says."""
    from keras import config

    before = config.image_data_format()
    config.set_image_data_format("channels_last")
    try:
        yield
    finally:
        config.set_image_data_format(before)


@channels_last()
def cnn(shape: Shape, classes: int, filters: tuple[int, int] = (16, 32)) -> keras.Model:
    """Two convolutions, 3×3 then 5×5, each followed by a max-pool of 2; then a dense layer.

    The paper's "Train" network; with twice the filters it is "Wider".
    """
    from keras import layers

    first, second = filters
    return _sequence(
        shape,
        [
            _cropped(shape),
            layers.Conv2D(first, 3),
            *_pooled(),
            layers.Conv2D(second, 5),
            *_pooled(),
            layers.Flatten(),
            layers.Dense(classes),
        ],
    )


@channels_last()
def mlp(shape: Shape, classes: int) -> keras.Model:
    """One hidden layer of 20 sigmoid units."""
    from keras import layers

    hidden = layers.Dense(20, activation="sigmoid")
    return _sequence(shape, [layers.Flatten(), hidden, layers.Dense(classes)])


@channels_last()
def deeper(shape: Shape, classes: int) -> keras.Model:
    """Five 3×3 convolutions, a max-pool of 2 after the third and the fifth: Table 2's drawing."""
    from keras import layers

    return _sequence(
        shape,
        [
            _cropped(shape),
            *(layers.Conv2D(filters, 3, activation="relu") for filters in (16, 32)),
            layers.Conv2D(32, 3),
            *_pooled(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Conv2D(64, 3),
            *_pooled(),
            layers.Flatten(),
            layers.Dense(classes),
        ],
    )


@channels_last()
def deeper_strided(shape: Shape, classes: int) -> keras.Model:
    """`deeper` with strides 1, 2, 1, 2, 1 in place of pools: the 72,042 parameters of Table 1."""
    from keras import layers

    convolutions = zip((16, 32, 32, 64, 64), (1, 2, 1, 2, 1), strict=True)
    return _sequence(
        shape,
        [
            *(layers.Conv2D(n, 3, strides=stride, activation="relu") for n, stride in convolutions),
            layers.Flatten(),
            layers.Dense(classes),
        ],
    )


@channels_last()
def resnet(shape: Shape, classes: int, depth: int) -> keras.Model:
    """A residual network with (depth - 4) / 6 blocks at each of the widths 16, 32 and 64.

    The ReLU comes before the sum, and every convolution has a bias although a batch
    normalization follows it: both as in the paper, and both needed for its parameter counts.

    Raises:
        ValueError: `depth` is not 6 n + 4.
    """
    from keras import Input, Model, layers

    blocks, rest = divmod(depth - 4, 6)
    if blocks < 1 or rest:
        raise ValueError(f"A ResNet's depth is 10, 16, 22, 28, … (6 n + 4). Received: {depth}")

    def convolve(x, filters):
        x = layers.Conv2D(filters, 3, padding="same")(x)
        return layers.ReLU()(layers.BatchNormalization()(x))

    inputs = Input(shape)
    x = convolve(inputs, 16)
    for filters in (16, 32, 64):
        if filters > 16:
            x = layers.MaxPool2D(2)(x)
        for _ in range(blocks):
            shortcut = x if x.shape[-1] == filters else layers.Conv2D(filters, 1)(x)
            x = layers.Add()([convolve(convolve(x, filters), filters), shortcut])
    return Model(inputs, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))


def _cropped(shape: Shape) -> keras.layers.Layer:
    """Cuts off the last rows and columns, which the max-pools of `cnn` and `deeper` leave out.

    A pool leaves out an odd row. Of 4 b + 10 rows in `cnn`, or 4 b + 14 in `deeper`, b remain at
    the end, and of up to three rows more as many: 26 of MNIST's 28 do. A gradient takes a sixth
    less time.
    """
    from keras import layers

    bottom, right = ((size - 10) % 4 for size in shape[:2])
    return layers.Cropping2D(((0, bottom), (0, right)))


def _pooled() -> list[keras.layers.Layer]:
    """A convolution's ReLU and max-pool, the pool first: that commutes, and leaves the ReLU less.

    An inner step of meta-training takes 4% less time.
    """
    from keras import layers

    return [layers.MaxPool2D(2), layers.ReLU()]


def _sequence(shape: Shape, stack: Sequence[keras.layers.Layer]) -> keras.Model:
    """Applies layers one after the other to images of the given shape."""
    from keras import Input, Sequential

    return Sequential([Input(shape), *stack])
