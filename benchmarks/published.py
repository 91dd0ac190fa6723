"""The paper's problems in the form of its authors' published results.

All 60,000 training images are trained on, and the test split chooses the epoch, so a "validation
loss" of these is a test loss, the best of all epochs. It is there to be compared with published
numbers; for judging optimizers use `mnist_cnn` and so on, which keep the test split out of it.

    python evaluate.py --problem benchmarks.published:mnist_cnn --optimizer oracle --epochs 25
"""

from __future__ import annotations

import numpy as np

from l2o import Problem
from l2o.problems import get_problem, load_dataset


def mnist_cnn() -> Problem:
    """The Train problem."""
    return _published("mnist_cnn")


def fmnist_cnn() -> Problem:
    """Its network on Fashion-MNIST."""
    return _published("fmnist_cnn")


def mnist_mlp() -> Problem:
    """The MLP on MNIST."""
    return _published("mnist_mlp")


def _published(name: str) -> Problem:
    problem = get_problem(name)
    dataset = load_dataset(problem.data, "tfds")
    train, held, test = dataset.train, dataset.validation, dataset.test
    images = np.concatenate([train.inputs, held.inputs])
    labels = np.concatenate([train.labels, held.labels])
    return Problem(
        lambda: problem.build(dataset),
        (images, labels),
        validation=(test.inputs, test.labels),
        batch_size=problem.batch_size,
    )
