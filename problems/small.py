"""Networks of a few thousand weights, for training on many at once: for 8×8 images, short texts.

All run under `tf.vectorized_map` and XLA without a loop: convolutions are products of patches,
recurrent layers are unrolled. Outputs are logits where there are classes.

Keras is imported inside the functions, so that naming a problem does not load TensorFlow.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .networks import Shape, block, channels_last

if TYPE_CHECKING:
    import keras

_MOMENTUM = (
    0.9  # of batch norms' averages: Keras' 0.99 is for fits of more than a few hundred steps
)
PRETRAINED = Path(__file__).parent / "small.npz"  # written by benchmarks/pretrain.py


def mlp(
    shape: Shape,
    classes: int | None,
    widths: tuple[int, ...] = (32,),
    activation: str = "relu",
    norm: bool = False,
    outputs: int = 1,
) -> keras.Model:
    """A multilayer perceptron.

    Args:
        shape: Of an example, which is flattened.
        classes: How many logits there are.
        widths: Of the hidden layers.
        activation: The name of a Keras activation.
        norm: Whether a layer norm comes before each activation.
        outputs: How many numbers come out where there are no classes.
    """
    from keras import Input, Sequential, layers

    stack = [layers.Flatten()]
    for width in widths:
        stack.append(layers.Dense(width))
        if norm:
            stack.append(layers.LayerNormalization())
        stack.append(layers.Activation(activation))
    return Sequential([Input(shape), *stack, layers.Dense(classes or outputs)])


@channels_last()
def cnn(
    shape: Shape,
    classes: int,
    filters: tuple[int, ...] = (8, 16),
    norm: str = "",
    activation: str = "relu",
) -> keras.Model:
    """3×3 convolutions, all but the first of stride 2; the mean over the image; a dense layer.

    Args:
        shape: Of an image.
        classes: How many logits there are.
        filters: Of each convolution.
        norm: "batch" or "group" for that norm, of four groups, after each convolution.
        activation: The name of a Keras activation.
    """
    from keras import Input, Sequential, layers

    stack = []
    for k, count in enumerate(filters):
        stack.append(
            layers.Conv2D(count, 3, strides=1 + (k > 0), padding="same", use_bias=not norm)
        )
        if norm:
            stack.append(
                layers.BatchNormalization(momentum=_MOMENTUM)
                if norm == "batch"
                else layers.GroupNormalization(4)
            )
        stack.append(layers.Activation(activation))
    return Sequential(
        [Input(shape), *stack, layers.GlobalAveragePooling2D(), layers.Dense(classes)]
    )


@channels_last()
def pooled_cnn(shape: Shape, classes: int, filters: tuple[int, int] = (8, 16)) -> keras.Model:
    """Two 3×3 convolutions, a max-pool of 2 after each, and a dense layer."""
    from keras import Input, Sequential, layers

    stack = []
    for count in filters:
        stack += [layers.Conv2D(count, 3, padding="same"), layers.MaxPool2D(2), layers.ReLU()]
    return Sequential([Input(shape), *stack, layers.Flatten(), layers.Dense(classes)])


@channels_last()
def resnet(shape: Shape, classes: int, filters: tuple[int, ...] = (8, 16)) -> keras.Model:
    """A 3×3 convolution of stride 2, then a residual block for each number of filters.

    All with batch norm; blocks after the first have stride 2.
    """
    from keras import Input, Model, layers

    def convolve(x, count, size=3, stride=1):
        x = layers.Conv2D(count, size, strides=stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=_MOMENTUM)(x)

    inputs = Input(shape)
    x = layers.ReLU()(convolve(inputs, filters[0], stride=2))
    for k, count in enumerate(filters):
        stride = 1 + (k > 0)
        y = layers.ReLU()(convolve(x, count, stride=stride))
        y = convolve(y, count)
        if k:
            x = convolve(x, count, 1, stride)
        x = layers.ReLU()(layers.Add()([x, y]))
    return Model(inputs, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))


def autoencoder(
    shape: Shape, classes: int | None = None, hidden: int = 32, code: int = 8
) -> keras.Model:
    """Images by way of `code` numbers, with a hidden layer either way; outputs are in (0, 1)."""
    from keras import Input, Sequential, layers

    dense = partial(layers.Dense, activation="relu")
    stack = [layers.Flatten(), dense(hidden), layers.Dense(code), dense(hidden)]
    last = layers.Dense(math.prod(shape), activation="sigmoid")
    return Sequential([Input(shape), *stack, last, layers.Reshape(shape)])


@channels_last()
def convolutional_autoencoder(
    shape: Shape, classes: int | None = None, filters: int = 8, code: int = 16
) -> keras.Model:
    """Images by way of `code` numbers: a convolution of stride 2, and a transposed one back."""
    from keras import Input, Sequential, layers

    rows, columns, channels = shape[0] // 2, shape[1] // 2, shape[2]
    return Sequential(
        [
            Input(shape),
            layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(code),
            layers.Dense(rows * columns * filters, activation="relu"),
            layers.Reshape((rows, columns, filters)),
            # A transposed convolution of 2×2, stride 2: a product, and its pixels put in place.
            layers.Dense(4 * channels, activation="sigmoid"),
            layers.Reshape((rows, columns, 2, 2, channels)),
            layers.Permute((1, 3, 2, 4, 5)),
            layers.Reshape(shape),
        ]
    )


@channels_last()
def vit(
    shape: Shape, classes: int, width: int = 16, patch: int = 2, blocks: int = 1, heads: int = 2
) -> keras.Model:
    """A vision transformer on square patches, its outputs averaged."""
    from keras import Input, Model, layers

    from .layers import Places

    inputs = Input(shape)
    x = layers.Conv2D(width, patch, strides=patch)(inputs)
    x = Places()(layers.Reshape((x.shape[1] * x.shape[2], width))(x))
    for _ in range(blocks):
        x = block(x, heads)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return Model(inputs, layers.Dense(classes)(x))


def transformer(
    shape: Shape, classes: int, width: int = 16, blocks: int = 1, heads: int = 2
) -> keras.Model:
    """The next character at each place of a text, by pre-norm blocks of causal attention.

    Args:
        shape: (characters of a sequence,); inputs are indices of characters, int32.
        classes: Different characters.
        width: Of the residual stream; twice as wide within.
        blocks: How many.
        heads: Of each attention.
    """
    from keras import Input, Model, layers

    from .layers import Places

    inputs = Input(shape, dtype="int32")
    x = Places()(layers.Embedding(classes, width)(inputs))
    for _ in range(blocks):
        x = block(x, heads, use_causal_mask=True)
    return Model(inputs, layers.Dense(classes)(layers.LayerNormalization()(x)))


def recurrent(
    shape: Shape, classes: int, cell: str = "GRU", units: int = 24, depth: int = 1
) -> keras.Model:
    """The next character at each place of a text.

    Args:
        shape: (characters of a sequence,); inputs are indices of characters, int32.
        classes: Different characters.
        cell: "GRU", "LSTM" or "SimpleRNN", whose loop is unrolled.
        units: Of each layer; characters are vectors of a third as many numbers.
        depth: How many layers.
    """
    from keras import Input, Sequential, layers

    kind = partial(getattr(layers, cell), units, return_sequences=True, unroll=True)
    stack = [layers.Embedding(classes, units // 3), *(kind() for _ in range(depth))]
    return Sequential([Input(shape, dtype="int32"), *stack, layers.Dense(classes)])


@channels_last()
def row_by_row(shape: Shape, classes: int, cell: str = "LSTM", units: int = 24) -> keras.Model:
    """A recurrent layer that reads an image a row at a time; what it is of at the end."""
    from keras import Input, Sequential, layers

    rows = layers.Reshape((shape[0], -1))
    read = getattr(layers, cell)(units, unroll=True)
    return Sequential([Input(shape), rows, read, layers.Dense(classes)])


def finetuned(shape: Shape, classes: int, width: int = 8) -> keras.Model:
    """`pooled_cnn` of `width` and twice as many filters, trained on Fashion-MNIST but for its head.

    The head's initial values are a tenth of the usual, as what was trained gives large numbers.

    Raises:
        ValueError: Images have more than one channel, or no network of that width was trained.
    """
    import numpy as np

    model = pooled_cnn(shape, classes, (width, 2 * width))
    with np.load(PRETRAINED) as file:
        names = sorted(name for name in file.files if name.startswith(f"{width}/"))
        trained = [file[name].astype("float32") for name in names]
    if not trained:
        raise ValueError(f"No network of that width was trained. Received: {width}")
    kernel, bias = model.get_weights()[-2:]
    model.set_weights([*trained, 0.1 * kernel, bias])
    return model
