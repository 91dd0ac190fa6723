"""Trains the paper's Train network on Fashion-MNIST, with which `mnist_finetune` begins.

    python benchmarks/pretrain.py

Ten epochs of Keras' Adam at its default rate, seed 0. The weights go to problems/fmnist_cnn.npz,
which the repository holds: running this again is for those who want to see them made.
"""

import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import numpy as np

from l2o.problems import load_dataset, networks
from l2o.problems.networks import PRETRAINED
from l2o.runs.files import write_atomically


def main() -> None:
    data = load_dataset("fashion_mnist", "tfds")
    keras.utils.set_random_seed(0)
    model = networks.cnn(data.shape, data.classes)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(data.train.inputs / np.float32(255), data.train.labels, 128, 10, verbose=2)
    scores = model.evaluate(data.test.inputs / np.float32(255), data.test.labels, verbose=0)
    print(f"Test loss {scores[0]:.3f}, accuracy {scores[1]:.1%}")
    buffer = io.BytesIO()
    weights = {f"{k}": w for k, w in enumerate(model.get_weights()[:-2])}
    np.savez_compressed(buffer, **weights)
    write_atomically(PRETRAINED, buffer.getvalue())


if __name__ == "__main__":
    main()
