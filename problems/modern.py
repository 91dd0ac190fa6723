"""Networks of today as functional Keras models: attention, recurrence, residuals, reconstruction.

Each is small enough that a fit takes about a minute on one core. As in `networks`, Keras is
imported inside the functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .networks import Shape, channels_last, cnn

if TYPE_CHECKING:
    import keras

PRETRAINED = Path(__file__).parent / "fmnist_cnn.npz"  # written by benchmarks/pretrain.py


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
    x = _block(x, width, use_causal_mask=True)
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
        x = _block(x, width)
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


def _placed(x, width: int):
    """Sequences [B, T, width] with a learned vector added at each place."""
    from keras import layers, ops

    places = ops.cumsum(ops.ones_like(x[..., 0], dtype="int32"), axis=1) - 1
    return x + layers.Embedding(x.shape[1], width)(places)


def _block(x, width: int, **attention):
    """Attention and a perceptron, each after a layer norm and added to what came in."""
    from keras import layers

    y = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(4, width // 4)(y, y, **attention)
    y = layers.Dense(2 * width, activation="gelu")(layers.LayerNormalization()(x))
    return x + layers.Dense(width)(y)
