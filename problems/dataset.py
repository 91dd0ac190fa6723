"""Datasets in memory: what they are, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class DatasetUnavailable(Exception):
    """The data is neither on this machine nor within reach, or damaged; the message says what."""


class DatasetDamaged(DatasetUnavailable):
    """The data is there and cannot be read, so nothing stands in for it."""


@dataclass(frozen=True)
class Split:
    """Examples: `images` uint8 [n, height, width, channels] and `labels` int32 [n].

    Images may be floats too, which networks then see as they are.

    Raises:
        DatasetUnavailable: If they are no such arrays, or an image is not finite.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.dtype.kind not in "uf":
            raise DatasetUnavailable(f"Images of {images.dtype} with shape {images.shape}")
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise DatasetUnavailable(
                f"{len(images)} images, but labels of {labels.dtype} with shape {labels.shape}"
            )
        if images.dtype.kind == "f" and not np.isfinite(images).all():
            raise DatasetUnavailable("An image holds a value that is not finite")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def inputs(self) -> np.ndarray:
        """The images: what a network sees, for those who do not care what it is."""
        return self.images


@dataclass(frozen=True)
class Dataset:
    """A dataset in memory.

    Attributes:
        name: The dataset this is.
        requested: The dataset that was asked for.
        source: Where it was read from, and which version.
        classes: Number of classes.
        shape: Height, width and channels of an image.
        train: Training examples, less the validation examples.
        validation: The last min(5,000, a sixth) of TFDS' training examples, in TFDS' order.
        test: TFDS' test split.

    Raises:
        DatasetUnavailable: If a split is empty, or its images or labels are not such as are
            described.
    """

    name: str
    requested: str
    source: str
    classes: int
    shape: tuple[int, int, int]
    train: Split
    validation: Split
    test: Split

    def __post_init__(self):
        for part in ("train", "validation", "test"):
            split = getattr(self, part)
            if not len(split):
                raise DatasetUnavailable(f"{self.name}: the {part} split is empty")
            if (shape := split.images.shape[1:]) != tuple(self.shape):
                raise DatasetUnavailable(
                    f"{self.name}: {part} images of shape {shape} are not {tuple(self.shape)}"
                )
            lowest, highest = int(split.labels.min()), int(split.labels.max())
            if lowest < 0 or highest >= self.classes:
                raise DatasetUnavailable(
                    f"{self.name}: {part} labels from {lowest} to {highest} are not those of "
                    f"{self.classes} classes"
                )

    @property
    def substituted(self) -> bool:
        """Whether this stands in for a dataset that was not at hand."""
        return self.name != self.requested

    @property
    def description(self) -> str:
        """One line: the data that was really used, and what it stands in for."""
        sizes = f"{len(self.train):,} train, {len(self.validation):,} validation"
        stand_in = f", IN PLACE OF {self.requested}" if self.substituted else ""
        return f"{self.name}{stand_in} ({self.source}; {sizes}, {len(self.test):,} test)"
