"""Trains three Keras networks on MNIST with a policy, and with Adam at its default rate.

    python examples/keras_fit.py choice-large
    python examples/keras_fit.py runs/choice-large/policy --examples 12800 --networks cnn

Prints a table. Nothing of a fit but the optimizer is l2o's: it is a plain `compile` and `fit`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import numpy as np
from l2o.problems import Dataset, DatasetUnavailable, load_dataset, networks

import l2o
from l2o.commands.terminal import Parser, UserError, count, run_command


def transformer(shape: tuple[int, ...], classes: int) -> keras.Model:
    """One pre-norm block over an image's rows, each a token of width 32."""
    layers = keras.layers
    inputs = keras.Input(shape)
    x = layers.Dense(32)(layers.Reshape((shape[0], -1))(inputs))
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 16)(y, y)])
    y = layers.Dense(64, "gelu")(layers.LayerNormalization()(x))
    x = layers.Add()([x, layers.Dense(32)(y)])
    x = layers.Flatten()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(classes)(x))


NETWORKS = {
    "cnn": networks.cnn,
    "resnet10": lambda shape, classes: networks.resnet(shape, classes, 10),
    "transformer": transformer,
}


def _floats(images: np.ndarray) -> np.ndarray:
    return images.astype("float32") / 255


def train(name: str, optimizer, data: Dataset, settings) -> list[float]:
    """Last epoch's mean training loss, validation loss and accuracy, and seconds of one `fit`."""
    keras.utils.set_random_seed(0)
    model = NETWORKS[name](data.shape, data.classes)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    images, labels = data.train.images[: settings.examples], data.train.labels[: settings.examples]
    start = time.perf_counter()
    history = model.fit(_floats(images), labels, settings.batch, settings.epochs, verbose=0)
    seconds = time.perf_counter() - start
    scores = model.evaluate(_floats(data.validation.images), data.validation.labels, 500, verbose=0)
    return [history.history["loss"][-1], *scores, seconds]


def main() -> int:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("policy", help="a policy directory, or the name of a shipped policy")
    parser.add_argument("--examples", type=count, default=51200, help="training examples, at most")
    parser.add_argument("--epochs", type=count, default=1, help="times that they are seen")
    parser.add_argument("--batch", type=count, default=128, help="examples a step")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    arguments = parser.parse_args()
    try:
        policy = l2o.AmalgamatedOptimizer.load(arguments.policy).policy
    except l2o.PolicyError as error:
        raise UserError(str(error)) from error
    try:
        data = load_dataset("mnist")
    except DatasetUnavailable as error:
        raise UserError(str(error)) from error
    examples = min(arguments.examples, len(data.train))
    steps = -(-examples // arguments.batch) * arguments.epochs
    print(f"{data.name}, {data.source}: {steps} steps of {arguments.batch} examples")
    if steps <= l2o.AmalgamatedOptimizer(policy).warmup_steps:
        print("These steps are all warm-up, where the policy is plain SGD: give more --examples")
    print("network      optimizer  training loss  validation loss  accuracy  seconds")
    for name in arguments.networks:
        for label, optimizer in (
            ("policy", l2o.AmalgamatedOptimizer(policy)),
            ("Adam", keras.optimizers.Adam()),
        ):
            loss, validation, accuracy, seconds = train(name, optimizer, data, arguments)
            print(
                f"{name:11}  {label:9}  {loss:13.4f}  {validation:15.4f}  {accuracy:8.2%}  "
                f"{seconds:7.1f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    run_command(main)
