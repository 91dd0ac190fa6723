"""What is optimized: a network on a dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .dataset import Dataset, DatasetUnavailable

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Problem:
    """A network to train on a dataset with softmax cross-entropy.

    Attributes:
        name: The problem's name in the catalogue.
        dataset: Name of a TFDS dataset of labelled images, or "digits".
        network: From an image shape (height, width, channels) and a number of classes to a model.
        batch_size: Examples a step.
        private: Whether it is trained with DP-SGD.
    """

    name: str
    dataset: str
    network: Callable[[tuple[int, ...], int], keras.Model]
    batch_size: int = 128
    private: bool = False
    loss = None  # what l2o takes by default: softmax cross-entropy of class indices, from logits

    def build(self, dataset: Dataset) -> keras.Model:
        """A new model for `dataset`: float32 images in [0, 1] to logits [batch, classes].

        The network takes its shape from the data in hand, which under `--data auto` need not
        be the data this problem asks for.
        """
        return self.network(dataset.shape, dataset.classes)

    def check(self, dataset: Dataset) -> None:
        """Looks whether `dataset` is enough for a step.

        Raises:
            DatasetUnavailable: If a batch holds more than its training examples.
        """
        if len(dataset.train) < self.batch_size:
            raise DatasetUnavailable(
                f"{dataset.name} has {len(dataset.train)} training examples, and a batch of "
                f"{self.name} holds {self.batch_size}"
            )
