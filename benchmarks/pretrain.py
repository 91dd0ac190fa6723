"""Trains on Fashion-MNIST what fine-tuning begins with.

    python benchmarks/pretrain.py          the paper's Train network, of `mnist_finetune`
    python benchmarks/pretrain.py --small  8×8 images, of the small problems of fine-tuning

Keras' Adam at its default rate, seed 0: ten epochs of the first, three of each of the others. The
weights go to problems/fmnist_cnn.npz and problems/small.npz, which the repository holds: running
this again is for those who want to see them made.
"""

import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import numpy as np

from l2o.problems import Dataset, load_dataset, networks, small
from l2o.problems.prepare import shrunk
from l2o.runs.files import write_atomically

WIDTHS = (8, 12, 16)


def trained(model: keras.Model, data: Dataset, epochs: int) -> list[np.ndarray]:
    """The weights after a fit, but for the last layer's."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(data.train.inputs / np.float32(255), data.train.labels, 128, epochs, verbose=2)
    scores = model.evaluate(data.test.inputs / np.float32(255), data.test.labels, verbose=0)
    print(f"Test loss {scores[0]:.3f}, accuracy {scores[1]:.1%}")
    return model.get_weights()[:-2]


def save(path: Path, weights: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **weights)
    write_atomically(path, buffer.getvalue())


def main() -> None:
    data = load_dataset("fashion_mnist", "tfds")
    keras.utils.set_random_seed(0)
    if "--small" in sys.argv[1:]:
        data, weights = shrunk(data), {}
        for width in WIDTHS:
            model = small.pooled_cnn(data.shape, data.classes, (width, 2 * width))
            for k, w in enumerate(trained(model, data, 3)):
                weights[f"{width}/{k}"] = w.astype("float16")
        save(small.PRETRAINED, weights)
    else:
        found = trained(networks.cnn(data.shape, data.classes), data, 10)
        save(networks.PRETRAINED, {f"{k}": w for k, w in enumerate(found)})


if __name__ == "__main__":
    main()
