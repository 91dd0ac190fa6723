"""What all tests share: a quiet TensorFlow, four logical CPU devices, seeds, float64, a network."""

import os
import signal
from dataclasses import fields

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.config import disable_op_determinism

from l2o.problems import Batch
from l2o.rules import SGD, Adam, cosine
from l2o.rules.base import REGISTRY, UpdateRule
from l2o.rules.wrapper import Wrapper

tf.get_logger().setLevel("ERROR")
# In the background a shell has Ctrl-C ignored, and so would be the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)


def pytest_collection_modifyitems(items):
    """Slow tests may take an hour each."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state, and with what compiles under XLA.

    A run makes its process's operations repeatable, and Keras then compiles nothing.
    """
    keras.utils.set_random_seed(0)
    disable_op_determinism()


@pytest.fixture
def float64():
    """Keras makes float64 tensors and layers within the test."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)


@pytest.fixture
def network():
    """Builds a network for 8x8 images and 3 classes: convolution, batch norm, max-pool, dense."""

    def build() -> keras.Model:
        layers = keras.layers
        return keras.Sequential(
            [
                layers.Input((8, 8, 1)),
                layers.Conv2D(2, 3, activation="relu"),
                layers.BatchNormalization(),
                layers.MaxPooling2D(2),
                layers.Flatten(),
                layers.Dense(3),
            ]
        )

    return build


@pytest.fixture
def data() -> Batch:
    """64 examples for `network`: a pattern a class, under noise."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 64).astype("int32")
    patches = generator.normal(size=(3, 8, 8, 1))
    inputs = patches[labels] + generator.normal(size=(64, 8, 8, 1))
    return Batch(inputs.astype("float32"), labels)


def _small(rule: type[UpdateRule]) -> UpdateRule:
    settings = {"learning_rate": 0.05, "units": 4, "teachers": (Adam(0.02), SGD(0.3)),
                "inner": Adam(0.02), "schedule": cosine(0.1, 40)}  # fmt: skip
    if issubclass(rule, Wrapper):  # of decay; another rule's rate is its own
        settings["rate"] = 1e-3
    names = {field.name for field in fields(rule)}
    return rule(**{name: value for name, value in settings.items() if name in names})


@pytest.fixture(params=sorted(REGISTRY))
def any_rule(request) -> UpdateRule:
    """Every teacher and every policy there is, small."""
    return _small(REGISTRY[request.param])
