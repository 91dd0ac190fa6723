"""Small problems of many kinds, to train optimizers on: 8×8 images, short texts, tables.

Most kinds of network come in two sizes, the wider one two to four times as wide; batches hold 8 to
256 examples. The problems of `HELD_OUT` are for choosing between policies: no problem of `FAMILIES`
has their networks or their batch sizes.
"""

from __future__ import annotations

from functools import partial

from . import small
from .prepare import (
    few,
    grey,
    halves,
    label_noise,
    prepared,
    reconstruction,
    sequences,
    shrunk,
)
from .problem import Problem

_images = prepared(shrunk, reconstruction)
_text = sequences(16)


def _problem(name: str, network, data: str, batch_size: int, epochs: int, prepare=shrunk, **others):
    return Problem(
        network,
        data,
        batch_size=batch_size,
        epochs=epochs,
        prepare=prepare,
        name=f"small_{name}",
        **others,
    )


def _mlp(*widths: int, activation: str = "relu", **others):
    return partial(small.mlp, widths=widths, activation=activation, **others)


# fmt: off
FAMILIES = (
    # Multilayer perceptrons, of several nonlinearities, with layer norm, with noisy labels.
    _problem("digits_relu_32", _mlp(32), "digits", 32, 40),
    _problem("fmnist_relu_128", _mlp(128), "fashion_mnist", 256, 8),
    _problem("mnist_sigmoid_16", _mlp(16, activation="sigmoid"), "mnist", 8, 1),
    _problem("mnist_tanh_64x2", _mlp(64, 64, activation="tanh"), "mnist", 128, 4),
    _problem("fmnist_gelu_32x2", _mlp(32, 32, activation="gelu"), "fashion_mnist", 64, 2),
    _problem("cifar10_relu_24", _mlp(24), "cifar10", 16, 1),
    _problem("cifar10_silu_32x3_noisy", _mlp(32, 32, 32, activation="silu"), "cifar10", 256, 8,
             prepared(shrunk, grey, label_noise(0.1))),
    _problem("fmnist_layernorm_24x4", _mlp(24, 24, 24, 24, norm=True), "fashion_mnist", 128, 4),
    _problem("digits_layernorm_64x2_noisy", _mlp(64, 64, norm=True), "digits", 16, 20,
             prepared(shrunk, label_noise(0.2))),
    # Convolutions.
    _problem("mnist_pooled_6", partial(small.pooled_cnn, filters=(6, 12)), "mnist", 64, 2),
    _problem("cifar10_conv_16x3", partial(small.cnn, filters=(16, 16, 32)), "cifar10", 32, 1),
    _problem("fmnist_batchnorm_8", partial(small.cnn, filters=(8, 16), norm="batch"),
             "fashion_mnist", 64, 2),
    _problem("cifar10_batchnorm_16x3", partial(small.cnn, filters=(16, 16, 32), norm="batch"),
             "cifar10", 16, 1),
    _problem("cifar10_resnet_8", small.resnet, "cifar10", 32, 1),
    # Autoencoders.
    _problem("mnist_autoencoder_32", small.autoencoder, "mnist", 64, 2, _images, loss="mse"),
    _problem("fmnist_autoencoder_64", partial(small.autoencoder, hidden=64, code=16),
             "fashion_mnist", 128, 4, _images, loss="mse"),
    _problem("cifar10_autoencoder_conv_8", small.convolutional_autoencoder, "cifar10", 32, 1,
             _images, loss="mse"),
    # Attention.
    _problem("mnist_vit_16", small.vit, "mnist", 16, 1),
    _problem("fmnist_vit_32", partial(small.vit, width=32), "fashion_mnist", 32, 1),
    _problem("shakespeare_transformer_16", small.transformer, "tiny_shakespeare", 8, 1, _text),
    _problem("shakespeare_transformer_32", partial(small.transformer, width=32),
             "tiny_shakespeare", 16, 1, _text),
    # Recurrent layers.
    _problem("shakespeare_gru_24", small.recurrent, "tiny_shakespeare", 16, 1, _text),
    _problem("shakespeare_gru_48", partial(small.recurrent, units=48), "tiny_shakespeare", 32, 1,
             _text),
    _problem("shakespeare_lstm_24", partial(small.recurrent, cell="LSTM"), "tiny_shakespeare", 32,
             1, _text),
    _problem("mnist_rows_lstm_48", partial(small.row_by_row, units=48), "mnist", 64, 2),
    # Regression and tables.
    _problem("diabetes_relu_32", _mlp(32), "diabetes", 32, 100, None, loss="mse"),
    _problem("diabetes_tanh_64_noisy", _mlp(64, activation="tanh"), "diabetes", 8, 30,
             label_noise(0.5), loss="mse"),
    _problem("breast_cancer_relu_16x2", _mlp(16, 16), "breast_cancer", 64, 150, None),
    # Fine-tuning, of networks that were trained on Fashion-MNIST.
    _problem("digits_finetune_8", small.finetuned, "digits", 32, 20, prepared(shrunk, few(500))),
    _problem("mnist_finetune_16", partial(small.finetuned, width=16), "mnist", 16, 4,
             prepared(shrunk, few(2_000))),
)

HELD_OUT = (
    _problem("fmnist_elu_48x3_noisy", _mlp(48, 48, 48, activation="elu"), "fashion_mnist", 192, 6,
             prepared(shrunk, label_noise(0.15))),
    _problem("wine_softsign_20", _mlp(20, activation="softsign"), "wine", 12, 100, None),
    _problem("digits_halves_layernorm_40", _mlp(40, norm=True, activation="gelu", outputs=32),
             "digits", 24, 40, prepared(shrunk, halves), loss="mse"),
    _problem("cifar10_groupnorm_12x3", partial(small.cnn, filters=(12, 12, 24), norm="group",
             activation="gelu"), "cifar10", 24, 1, prepared(shrunk, grey)),
    _problem("mnist_resnet_12", partial(small.resnet, filters=(12, 12)), "mnist", 48, 2),
    _problem("digits_autoencoder_conv_12", partial(small.convolutional_autoencoder, filters=12,
             code=12), "digits", 24, 40, _images, loss="mse"),
    _problem("cifar10_vit_24", partial(small.vit, width=24, heads=3), "cifar10", 48, 2),
    _problem("shakespeare_transformer_24x2", partial(small.transformer, width=24, blocks=2,
             heads=3), "tiny_shakespeare", 12, 1, sequences(12)),
    _problem("shakespeare_rnn_36", partial(small.recurrent, cell="SimpleRNN", units=36),
             "tiny_shakespeare", 96, 2, sequences(12)),
    _problem("cifar10_finetune_12", partial(small.finetuned, width=12), "cifar10", 48, 20,
             prepared(shrunk, grey, few(3_000))),
)
# fmt: on
