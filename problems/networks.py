"""Networks as functional Keras models, by shape of an example and number of classes.

The paper's are first: inputs are float32 images in [0, 1] of shape [batch, height, width, channels]
and outputs logits [batch, classes]. Kernels start Glorot-uniform, biases at zero: Keras' defaults.

Keras is imported inside the functions, so that naming a problem does not load TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

Shape = tuple[int, ...]
PRETRAINED = Path(__file__).parent / "fmnist_cnn.npz"  # written by benchmarks/pretrain.py


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


# --- networks of today: small enough that a fit takes about a minute on one core ---------------


def text_transformer(shape: Shape, classes: int, width: int = 64) -> keras.Model:
    """The next character at each place of a text, by one pre-norm block of causal attention.

    Args:
        shape: (characters of a sequence,); inputs are indices of characters, int32.
        classes: Different characters.
        width: Of the residual stream; four heads, and twice as wide within.
    """
    from keras import Input, Model, layers

    inputs = Input(shape, dtype="int32")
    x = _placed(layers.Embedding(classes, width)(inputs), width)
    x = block(x, use_causal_mask=True)
    return Model(inputs, layers.Dense(classes)(layers.LayerNormalization()(x)))


def text_gru(shape: Shape, classes: int, units: int = 128) -> keras.Model:
    """The next character at each place of a text, by a GRU; arguments as of `text_transformer`."""
    from keras import Input, Sequential, layers

    return Sequential(
        [
            Input(shape, dtype="int32"),
            layers.Embedding(classes, 32),
            layers.GRU(units, return_sequences=True),
            layers.Dense(classes),
        ]
    )


@channels_last()
def vit(
    shape: Shape, classes: int, patch: int = 4, width: int = 48, blocks: int = 2
) -> keras.Model:
    """A vision transformer (Dosovitskiy et al. 2021) on square patches, its outputs averaged."""
    from keras import Input, Model, layers

    inputs = Input(shape)
    x = layers.Conv2D(width, patch, strides=patch)(inputs)
    x = _placed(layers.Reshape((x.shape[1] * x.shape[2], width))(x), width)
    for _ in range(blocks):
        x = block(x)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return Model(inputs, layers.Dense(classes)(x))


@channels_last()
def flipped_resnet(shape: Shape, classes: int) -> keras.Model:
    """A residual network with batch norm on images that are flipped at random in training."""
    from keras import Input, Model, layers

    def convolve(x, filters, strides=1):
        x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    inputs = Input(shape)
    x = layers.RandomFlip("horizontal")(inputs)
    x = layers.ReLU()(convolve(x, 16, 2))
    for filters, strides in ((16, 1), (32, 2)):
        y = layers.ReLU()(convolve(x, filters, strides))
        y = convolve(y, filters)
        if strides > 1:
            x = layers.Conv2D(filters, 1, strides, use_bias=False)(x)
        x = layers.ReLU()(x + y)
    return Model(inputs, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))


@channels_last()
def autoencoder(shape: Shape, classes: int | None = None, code: int = 32) -> keras.Model:
    """Images by way of `code` numbers: convolutions down, transposed ones up, outputs in (0, 1)."""
    from keras import Input, Sequential, layers

    rows, columns, channels = shape
    half, small = {"strides": 2, "padding": "same"}, (-(-rows // 4), -(-columns // 4), 8)
    return Sequential(
        [
            Input(shape),
            layers.Conv2D(16, 3, activation="relu", **half),
            layers.Conv2D(8, 3, activation="relu", **half),
            layers.Flatten(),
            layers.Dense(code),
            layers.Dense(small[0] * small[1] * small[2], activation="relu"),
            layers.Reshape(small),
            layers.Conv2DTranspose(16, 3, activation="relu", **half),
            layers.Conv2DTranspose(channels, 3, activation="sigmoid", **half),
            layers.Cropping2D(((0, 4 * small[0] - rows), (0, 4 * small[1] - columns))),
        ]
    )


def table_mlp(shape: Shape, classes: int | None = None) -> keras.Model:
    """A number from a row of a table, by two hidden layers of 64 and 32 ReLUs."""
    from keras import Input, Sequential, layers

    hidden = [layers.Dense(64, activation="relu"), layers.Dense(32, activation="relu")]
    return Sequential([Input(shape), *hidden, layers.Dense(1)])


def finetuned_cnn(shape: Shape, classes: int) -> keras.Model:
    """The paper's Train network, trained on Fashion-MNIST but for a fresh last layer."""
    import numpy as np

    model = cnn(shape, classes)
    with np.load(PRETRAINED) as file:
        trained = [file[name] for name in sorted(file.files)]
    kernels = [layer for layer in model.layers if layer.weights][:-1]
    for k, layer in enumerate(kernels):
        layer.set_weights(trained[2 * k : 2 * k + 2])
    return model


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


def _placed(x, width: int):
    """Sequences [B, T, width] with a learned vector added at each place."""
    from keras import layers, ops

    places = ops.cumsum(ops.ones_like(x[..., 0], dtype="int32"), axis=1) - 1
    return x + layers.Embedding(x.shape[1], width)(places)


def block(x, heads: int = 4, **attention):
    """Attention and a perceptron, each after a layer norm and added to what came in."""
    from keras import layers

    width = x.shape[-1]
    y = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(heads, width // heads)(y, y, **attention)
    y = layers.Dense(2 * width, activation="gelu")(layers.LayerNormalization()(x))
    return x + layers.Dense(width)(y)
