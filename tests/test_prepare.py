"""What is made of a dataset before a problem sees it."""

import gc
import pickle
import weakref
from dataclasses import replace

import numpy as np
import pytest
from made_data import tiny

from l2o.problems import PROBLEMS, Batch, Dataset
from l2o.problems.prepare import (
    area_average,
    few,
    grey,
    halves,
    label_noise,
    prepared,
    reconstruction,
    sequences,
    shrunk,
)

SPLITS = ("train", "validation", "test")


def same(one: Batch, other: Batch) -> bool:
    return np.array_equal(one.inputs, other.inputs) and np.array_equal(one.labels, other.labels)


@pytest.mark.parametrize("shape", [(32, 32, 3), (24, 16, 1)])
def test_a_small_pixel_is_the_mean_of_those_that_it_covers(shape):
    rows, columns, channels = shape
    images = np.random.default_rng(0).random((5, *shape), "float32")
    blocks = images.reshape(5, 8, rows // 8, 8, columns // 8, channels)
    np.testing.assert_allclose(area_average(images), blocks.mean((2, 4)), rtol=1e-5)


def test_a_pixel_that_two_small_ones_share_counts_for_both():
    """28 pixels to 8: the same as each pixel repeated, 56 to 8."""
    images = np.random.default_rng(0).random((5, 28, 28, 2), "float32")
    doubled = images.repeat(2, 1).repeat(2, 2)
    np.testing.assert_allclose(area_average(images), area_average(doubled), rtol=1e-5)
    np.testing.assert_allclose(area_average(images).mean(), images.mean(), rtol=1e-5)


def test_pixels_stay_pixels():
    full = np.full((3, 28, 28, 1), 255, "uint8")
    assert area_average(full).dtype == np.uint8 and (area_average(full) == 255).all()
    images = tiny("cifar10").train.inputs
    exact = area_average(images.astype("float32"))
    assert np.abs(area_average(images) - exact).max() <= 0.501


def test_images_are_shrunk_in_every_split_once_a_dataset(monkeypatch):
    dataset = tiny("mnist")
    small = shrunk(dataset)
    assert [getattr(small, s).inputs.shape[1:] for s in SPLITS] == [(8, 8, 1)] * 3
    assert small.train.labels is dataset.train.labels and small.classes == 10
    assert shrunk(dataset) is small and shrunk(replace(dataset)) is not small


def test_what_is_remembered_goes_with_its_dataset():
    dataset = tiny("mnist")
    small = weakref.ref(shrunk(dataset))
    gc.collect()
    assert small() is not None
    del dataset
    gc.collect()
    assert small() is None


def test_grey_is_the_mean_of_the_channels():
    dataset = tiny("cifar10")
    images = grey(dataset).train.inputs
    assert images.shape == (260, 32, 32, 1) and images.dtype == np.uint8
    assert np.abs(images[..., 0] - dataset.train.inputs.mean(-1)).max() <= 0.5
    assert same(grey(tiny("mnist")).train, tiny("mnist").train)


def test_images_are_their_own_labels():
    dataset = prepared(shrunk, reconstruction)(tiny("cifar10"))
    assert dataset.classes is None and dataset.train.inputs.dtype == np.uint8
    np.testing.assert_array_equal(dataset.train.labels, dataset.train.inputs / np.float32(255))


def test_two_halves_are_an_image():
    dataset = shrunk(tiny("mnist"))
    upper, lower, _ = halves(dataset).test
    lower = (lower * 255).round().astype("uint8").reshape(-1, 4, 8, 1)
    np.testing.assert_array_equal(np.concatenate([upper, lower], 1), dataset.test.inputs)
    assert halves(dataset).classes is None


@pytest.mark.parametrize("length", [16, 12])
def test_short_sequences_are_a_text_still(length):
    dataset = tiny("tiny_shakespeare")
    short = sequences(length)(dataset)
    a_sequence = 64 // length
    for part in SPLITS:
        for kind in ("inputs", "labels"):
            one, other = (getattr(getattr(d, part), kind) for d in (dataset, short))
            assert other.shape == (len(one) * a_sequence, length)
            kept = one[:, : a_sequence * length]
            np.testing.assert_array_equal(other.ravel(), kept.ravel())


def test_few_examples_are_the_first_to_train_on():
    dataset = tiny("mnist")
    assert few(30)(dataset).sizes == (30, *dataset.sizes[1:])
    assert same(few(30)(dataset).train, Batch(*(x[:30] for x in dataset.train[:2])))


@pytest.mark.parametrize("name", ["mnist", "tiny_shakespeare"])
def test_noisy_labels_are_other_classes_in_training_alone(name):
    dataset = tiny(name)
    noisy = label_noise(0.3)(dataset)
    old, new = dataset.train.labels, noisy.train.labels
    assert (old != new).sum() == round(0.3 * old.size) and new.dtype == old.dtype
    assert 0 <= new.min() and new.max() < dataset.classes
    assert noisy.train.inputs is dataset.train.inputs
    assert noisy.validation is dataset.validation and noisy.test is dataset.test
    shift = np.bincount((new - old)[new != old].ravel() % dataset.classes)[1:]
    assert (shift > 0).all()  # each of the others is drawn


def test_noise_on_numbers_is_of_their_own_size():
    labels = np.random.default_rng(0).normal(size=(4_000, 2)).astype("float32") * [[3, 0.1]]
    split = Batch(labels, labels.astype("float32"))
    noise = label_noise(0.5)(Dataset("", split, split, split)).train.labels - split.labels
    np.testing.assert_allclose(noise.std(0), [1.5, 0.05], rtol=0.05)
    assert noise.dtype == np.float32


def test_noise_is_the_same_every_time_and_another_by_seed():
    dataset = tiny("mnist")
    assert same(label_noise(0.3)(dataset).train, label_noise(0.3)(dataset).train)
    assert not same(label_noise(0.3)(dataset).train, label_noise(0.3, seed=1)(dataset).train)
    assert same(label_noise(0.0)(dataset).train, dataset.train)


def test_named_problems_are_sent_to_other_processes():
    for problem in PROBLEMS.values():
        sent = pickle.loads(pickle.dumps(problem))
        if problem.prepare:
            dataset = tiny(problem.data)
            assert same(sent.prepare(dataset).train, problem.prepare(dataset).train)
