"""What becomes of data by name before a problem sees it: pure functions of a `Dataset`.

    Problem(network, "mnist", prepare=prepared(shrunk, label_noise(0.2)))

What costs something is done once for each dataset in memory, however many problems ask for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial, reduce, wraps
from typing import TypeAlias
from weakref import WeakKeyDictionary

import numpy as np

from .dataset import Batch, Dataset

Prepare: TypeAlias = Callable[[Dataset], Dataset]
_PART = 10_000  # images that are floats at a time


def prepared(*steps: Prepare) -> Prepare:
    """All of the steps, one after the other."""
    return partial(_prepared, steps)


def _prepared(steps: tuple[Prepare, ...], dataset: Dataset) -> Dataset:
    return reduce(lambda dataset, step: step(dataset), steps, dataset)


def _once(step: Prepare) -> Prepare:
    """The step, which remembers its results for as long as the datasets that it was given live."""
    known: WeakKeyDictionary[Dataset, Dataset] = WeakKeyDictionary()

    @wraps(step)
    def remembered(dataset: Dataset) -> Dataset:
        if dataset not in known:
            known[dataset] = step(dataset)
        return known[dataset]

    return remembered


def _each(dataset: Dataset, change: Callable[[Batch], Batch], **changes) -> Dataset:
    """The same change to every split."""
    train, validation, test = map(change, (dataset.train, dataset.validation, dataset.test))
    return replace(dataset, train=train, validation=validation, test=test, **changes)


def _of_inputs(change: Callable[[np.ndarray], np.ndarray]) -> Prepare:
    return lambda dataset: _each(dataset, lambda split: split._replace(inputs=change(split.inputs)))


# --- images -----------------------------------------------------------------------------------


def area_average(images: np.ndarray, size: int = 8) -> np.ndarray:
    """Images [n, H, W, C] as [n, size, size, C], each pixel the mean over the area that it covers.

    Pixels on an area's edge count by what lies within, so that H and W need be no multiples of
    `size`. uint8 is rounded to uint8.
    """
    rows, columns = (_areas(length, size) for length in images.shape[1:3])
    channels = images.shape[3]
    shrunk = np.empty((len(images), size, size, channels), images.dtype)
    for start in range(0, len(images), _PART):
        part = images[start : start + _PART].astype("float32")
        part = rows @ part.reshape(len(part), images.shape[1], -1)
        part = columns @ part.reshape(-1, images.shape[2], channels)
        part = part.reshape(-1, size, size, channels)
        shrunk[start : start + _PART] = part.round() if images.dtype == np.uint8 else part
    return shrunk


def _areas(length: int, size: int) -> np.ndarray:
    """[size, length]: the share that each pixel has in each of `size` equal parts of a row."""
    edges = np.arange(size + 1)[:, np.newaxis] * (length / size)
    covered = np.clip(edges - np.arange(length), 0, 1)  # of each pixel, up to an edge
    return (np.diff(covered, axis=0) * (size / length)).astype("float32")


@_once
def shrunk(dataset: Dataset) -> Dataset:
    """Images of 8×8."""
    return _of_inputs(area_average)(dataset)


@_once
def grey(dataset: Dataset) -> Dataset:
    """Images of one channel, the mean of all."""

    def mean(images: np.ndarray) -> np.ndarray:
        if images.shape[-1] == 1:
            return images
        values = images.mean(-1, keepdims=True)
        return (values.round() if images.dtype == np.uint8 else values).astype(images.dtype)

    return _of_inputs(mean)(dataset)


@_once
def reconstruction(dataset: Dataset) -> Dataset:
    """The images themselves for labels, as the network sees them."""
    both = lambda split: Batch(split.inputs, split.inputs / np.float32(255))  # noqa: E731
    return _each(dataset, both, classes=None)


@_once
def halves(dataset: Dataset) -> Dataset:
    """The upper half of each image for input, and the lower one, as numbers, for labels."""

    def cut(split: Batch) -> Batch:
        images = split.inputs
        middle = images.shape[1] // 2
        lower = images[:, middle:].reshape(len(images), -1) / np.float32(255)
        return Batch(images[:, :middle], lower)

    return _each(dataset, cut, classes=None)


# --- texts ------------------------------------------------------------------------------------


def sequences(length: int) -> Prepare:
    """Sequences of a text cut into ones of `length`; what is left over at their ends is lost."""
    return partial(_sequences, length)


def _sequences(length: int, dataset: Dataset) -> Dataset:
    def cut(values: np.ndarray) -> np.ndarray:
        stop = values.shape[1] // length * length
        return values[:, :stop].reshape(-1, length)

    return _each(dataset, lambda split: Batch(cut(split.inputs), cut(split.labels)))


# --- examples and labels to train on ----------------------------------------------------------


def few(count: int) -> Prepare:
    """The first `count` examples to train on."""
    return partial(_few, count)


def _few(count: int, dataset: Dataset) -> Dataset:
    inputs, labels, _ = dataset.train
    return replace(dataset, train=Batch(inputs[:count], labels[:count]))


def label_noise(share: float, seed: int = 0) -> Prepare:
    """Noise on the labels to train on, the same every time; validation and test have none.

    Args:
        share: Of classes, how many labels are another class, drawn at random. Of numbers, the
            standard deviation of Gaussian noise, in standard deviations of the labels.
        seed: Of the noise.
    """
    return partial(_noisy, share, seed)


def _noisy(share: float, seed: int, dataset: Dataset) -> Dataset:
    generator, labels = np.random.default_rng(seed), dataset.train.labels
    if dataset.classes is None:
        noise = generator.normal(size=labels.shape) * (share * labels.std(0))
        noisy = (labels + noise).astype(labels.dtype)
    else:
        wrong = generator.permutation(labels.size)[: round(share * labels.size)]
        noisy = labels.flatten()
        noisy[wrong] += generator.integers(1, dataset.classes, len(wrong), noisy.dtype)
        noisy = (noisy % dataset.classes).reshape(labels.shape)
    return replace(dataset, train=dataset.train._replace(labels=noisy))
