"""Data in memory, and what is said of data and problems that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


class ProblemError(ValueError):
    """A problem that cannot be trained on; the message says why in one line."""


class DatasetUnavailable(ProblemError):
    """The data is neither on this machine nor within reach, or damaged; the message says what."""


class DatasetDamaged(DatasetUnavailable):
    """The data is there and cannot be read, so nothing stands in for it."""


class Batch(NamedTuple):
    """Examples: of a step, or all that there are.

    Attributes:
        inputs: [B, ...], or any nest of such arrays; uint8 means pixels, which the network sees
            divided by 255.
        labels: [B, ...], whatever the loss takes; class indices [B] by default.
        weight: Of each example's loss, [B]; () where all count alike.
    """

    inputs: Any
    labels: Any
    weight: Any = ()


@dataclass(frozen=True, eq=False)  # arrays do not compare
class Dataset:
    """A dataset in memory.

    Attributes:
        name: The dataset this is; of a user's own, what tells its contents from others.
        train: Training examples, less the validation examples.
        validation, test: The others; a split may have none.
        requested: The dataset that was asked for, if that is another.
        source: Where it was read from, and which version.
        classes: Number of classes, where labels are classes by themselves.
    """

    name: str
    train: Batch
    validation: Batch
    test: Batch
    requested: str = ""
    source: str = ""
    classes: int | None = None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """How many examples to train on, for validation and for test."""
        train, validation, test = self.train, self.validation, self.test
        return len(train.labels), len(validation.labels), len(test.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """An example's."""
        return self.train.inputs.shape[1:]

    @property
    def in_place_of(self) -> str:
        """The dataset that was not at hand, for which this one stands in; else ""."""
        return "" if self.requested == self.name else self.requested

    @property
    def description(self) -> str:
        """One line: the data that was really used, and what it stands in for."""
        train, validation, test = (f"{size:,}" for size in self.sizes)
        sizes = f"{train} train"
        if self.sizes[1]:
            sizes += f", {validation} validation, {test} test"
        stand_in = f", IN PLACE OF {self.in_place_of}" if self.in_place_of else ""
        source = f"{self.source}; " if self.source else ""
        return f"{self.name}{stand_in} ({source}{sizes})"
