"""Tables that scikit-learn brings along."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .dataset import Batch, Dataset

_SIXTH = 6  # a sixth each for validation and for test


def _diabetes(name: str) -> Dataset:
    """442 patients: ten measurements, and how far the disease had gone a year later.

    All columns have mean 0 and variance 1 over the examples to train on.
    """
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    held_out = len(x) // _SIXTH
    columns = np.column_stack([x, y])[order].astype("float32")
    train = columns[2 * held_out :]
    columns = (columns - train.mean(0)) / train.std(0)
    test, validation, train = np.split(columns, [held_out, 2 * held_out])
    split = lambda part: Batch(part[:, :-1], part[:, -1:])  # noqa: E731
    source = "embedded, scikit-learn's"
    return Dataset(name, split(train), split(validation), split(test), name, source)


TABLES: dict[str, Callable[[str], Dataset]] = {"diabetes": _diabetes}
