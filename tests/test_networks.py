"""The named problems and their networks."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from l2o.problems import PROBLEMS, get_problem, networks
from l2o.problems.catalog import SUITES
from l2o.tasks.task import Task

_MNIST, _COLOUR = (28, 28, 1), (32, 32, 3)

# name: dataset, image shape, classes, parameters, trainable parameters, batch, private
_TABLE = {
    "mnist_cnn": ("mnist", _MNIST, 10, 18_122, 18_122, 128, False),
    "mnist_mlp": ("mnist", _MNIST, 10, 15_910, 15_910, 128, False),
    "mnist_wider": ("mnist", _MNIST, 10, 61_834, 61_834, 128, False),
    "mnist_deeper": ("mnist", _MNIST, 10, 75_242, 75_242, 128, False),
    "mnist_deeper_strided": ("mnist", _MNIST, 10, 72_042, 72_042, 128, False),
    "fmnist_cnn": ("fashion_mnist", _MNIST, 10, 18_122, 18_122, 128, False),
    "svhn_cnn": ("svhn_cropped", _COLOUR, 10, 21_290, 21_290, 128, False),
    "cifar10_wider": ("cifar10", _COLOUR, 10, 68_170, 68_170, 128, False),
    "cifar10_resnet28": ("cifar10", _COLOUR, 10, 372_330, 370_506, 128, False),
    "mnist_small_batch": ("mnist", _MNIST, 10, 18_122, 18_122, 32, False),
    "mnist_dp": ("mnist", _MNIST, 10, 18_122, 18_122, 128, True),
    "kmnist_cnn": ("kmnist", _MNIST, 10, 18_122, 18_122, 128, False),
    "kmnist_dp": ("kmnist", _MNIST, 10, 18_122, 18_122, 128, True),
    "cifar10_resnet52": ("cifar10", _COLOUR, 10, 763_882, 760_266, 128, False),
    "cifar100_resnet52": ("cifar100", _COLOUR, 100, 769_732, 766_116, 128, False),
    "digits_cnn": ("digits", _MNIST, 10, 18_122, 18_122, 128, False),
}


def test_the_catalogue_is_the_table():
    assert SUITES["paper"] == tuple(_TABLE)
    assert tuple(PROBLEMS) == tuple(name for suite in SUITES.values() for name in suite)
    assert len(PROBLEMS) == sum(map(len, SUITES.values()))


@pytest.mark.parametrize("name", _TABLE)
def test_problem_is_its_row_of_the_table(name):
    dataset, shape, classes, parameters, trainable, batch_size, private = _TABLE[name]
    problem = get_problem(name)
    model = problem.model_fn(shape, classes)
    assert (problem.name, problem.data) == (name, dataset)
    assert (Task(problem).batch_size, problem.private) == (batch_size, private)
    assert model.count_params() == parameters
    assert sum(math.prod(v.shape) for v in model.trainable_variables) == trainable
    assert model.output_shape == (None, classes)


@pytest.mark.parametrize("name", ["mnist_cnn", "mnist_mlp", "mnist_deeper_strided"])
def test_outputs_are_logits(name):
    images = np.random.default_rng(0).random((8, *_MNIST), np.float32)
    logits = np.asarray(get_problem(name).model_fn(_MNIST, 10)(images))
    assert (logits < 0).any()
    assert not np.allclose(logits.sum(axis=1), 1)


def test_kernels_are_glorot_uniform_and_biases_zero():
    model = networks.cnn(_MNIST, 10)
    for variable in model.trainable_variables:
        values = np.asarray(variable)
        if variable.name == "bias":
            assert not values.any()
        else:
            *window, inputs, outputs = values.shape
            limit = math.sqrt(6 / (math.prod(window) * (inputs + outputs)))
            assert 0.9 * limit < np.abs(values).max() <= limit


@pytest.mark.parametrize("name", ["cnn", "deeper"])
@pytest.mark.parametrize("size", [26, 27, 28, 29, 32])
def test_what_is_cropped_does_not_reach_the_output(name, size, monkeypatch):
    shape = (size, 28, 1)
    images = np.random.default_rng(0).random((8, *shape), np.float32)
    cropped = getattr(networks, name)(shape, 10)
    monkeypatch.setattr(networks, "_cropped", lambda shape: keras.layers.Cropping2D(0))
    whole = getattr(networks, name)(shape, 10)
    whole.set_weights(cropped.get_weights())
    assert cropped.layers[0].output.shape[1:3] == (size - (size - 10) % 4, 26)
    np.testing.assert_allclose(cropped(images), whole(images), rtol=1e-5, atol=1e-6)


def test_every_batch_norm_follows_a_convolution():
    model = networks.resnet(_COLOUR, 10, depth=28)
    kinds = [type(layer).__name__ for layer in model.layers]
    blocks = 3 * 4
    assert kinds.count("BatchNormalization") == kinds.count("ReLU") == 1 + 2 * blocks
    assert kinds.count("Conv2D") == 1 + 2 * blocks + 2  # and two shortcuts, without one
    assert kinds.count("MaxPooling2D") == 2
    assert kinds.count("Add") == blocks


@pytest.mark.parametrize("name", ["mnist_cnn", "mnist_deeper", "cifar10_resnet28"])
def test_channels_are_last_whatever_keras_configuration_says(name, request):
    problem, shape = get_problem(name), _COLOUR if "cifar" in name else _MNIST
    expected = [tuple(v.shape) for v in problem.model_fn(shape, 10).variables]
    request.addfinalizer(lambda: keras.config.set_image_data_format("channels_last"))
    keras.config.set_image_data_format("channels_first")
    model = problem.model_fn(shape, 10)
    assert [tuple(v.shape) for v in model.variables] == expected
    assert model(np.zeros((2, *shape), "float32")).shape == (2, 10)
    assert keras.config.image_data_format() == "channels_first"  # for the user's own


def test_resnet_refuses_a_depth_it_cannot_have():
    with pytest.raises(ValueError, match="Received: 30"):
        networks.resnet(_COLOUR, 10, depth=30)


def test_unknown_problem_lists_the_names_there_are():
    with pytest.raises(ValueError) as error:
        get_problem("mnist_cn")
    assert "'mnist_cn'" in str(error.value)
    said = str(error.value)
    assert all(name in said for name in (*SUITES["paper"], *SUITES["modern"]))
    assert not any(name in said for name in SUITES["families"]) and "--list" in said


@pytest.mark.parametrize("name", ["cnn", "deeper"])
def test_it_does_not_matter_that_pools_come_before_their_relus(name, monkeypatch):
    images = np.random.default_rng(0).random((8, *_MNIST), np.float32)
    ours = getattr(networks, name)(_MNIST, 10)
    pooled = networks._pooled
    monkeypatch.setattr(networks, "_pooled", lambda: pooled()[::-1])
    papers = getattr(networks, name)(_MNIST, 10)
    papers.set_weights(ours.get_weights())
    gradients = []
    for model in (ours, papers):
        with tf.GradientTape() as tape:
            outputs = model(images)
        gradients.append(tape.gradient(outputs, model.trainable_variables))
    np.testing.assert_array_equal(ours(images), papers(images))
    for mine, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-6)
