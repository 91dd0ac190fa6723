"""TFDS builder of the dataset that needs no network: scikit-learn's handwritten digits.

Importing this module registers the builder with TFDS as "digits".
"""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

_TEST_EXAMPLES = 297


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 real 8×8 digits, resized to 28×28×1: the first 1,500 to train, the last 297 to test."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="The digits of scikit-learn's load_digits, resized to MNIST's 28×28×1.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        train, test = slice(None, -_TEST_EXAMPLES), slice(-_TEST_EXAMPLES, None)
        return {
            "train": self._generate_examples(digits.images[train], digits.target[train]),
            "test": self._generate_examples(digits.images[test], digits.target[test]),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict]]:
        """Yields a key and an example for each of `images` [n, 8, 8], whose values go up to 16."""
        from PIL import Image

        for key, (image, label) in enumerate(zip(images, labels, strict=True)):
            pixels = Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8))
            resized = np.asarray(pixels.resize((28, 28), Image.Resampling.BILINEAR))
            yield key, {"image": resized[..., np.newaxis], "label": int(label)}
