"""Datasets of noise, with the form of those that problems name."""

import numpy as np

from l2o.problems import Batch, Dataset

# Shape of an example and classes; MNIST's where it is not said.
FORMS = {
    "cifar10": ((32, 32, 3), 10),
    "cifar100": ((32, 32, 3), 100),
    "svhn_cropped": ((32, 32, 3), 10),
    "tiny_shakespeare": ((64,), 65),
    "diabetes": ((10,), None),
    "breast_cancer": ((30,), 2),
    "wine": ((13,), 3),
}


def tiny(name: str, *_, **__) -> Dataset:
    """A dataset of noise with the form of the one called `name`: 260 examples to train."""
    generator = np.random.default_rng(0)
    shape, classes = FORMS.get(name, ((28, 28, 1), 10))

    def split(count: int) -> Batch:
        if name == "tiny_shakespeare":
            return Batch(*generator.integers(0, classes, (2, count, *shape)).astype("int32"))
        if len(shape) == 1:
            inputs = generator.normal(size=(count, *shape)).astype("float32")
        else:
            inputs = generator.integers(0, 256, (count, *shape)).astype("uint8")
        if classes is None:
            return Batch(inputs, generator.normal(size=(count, 1)).astype("float32"))
        return Batch(inputs, generator.integers(0, classes, count).astype("int32"))

    return Dataset(name, split(260), split(9), split(7), name, "made up", classes)
