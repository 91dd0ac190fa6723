"""The problems of today: their networks, and what is made of their data."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from l2o.problems import DatasetUnavailable, get_problem, load_dataset, networks
from l2o.problems.catalog import MODERN
from l2o.tasks.batches import rows
from l2o.tasks.load import load_task
from l2o.tasks.task import Task

# name: shape of an example, classes, trainable parameters, shape of outputs
_TABLE = {
    "shakespeare_transformer": ((64,), 65, 46_081, (64, 65)),
    "shakespeare_gru": ((64,), 65, 72_673, (64, 65)),
    "cifar10_resnet": ((32, 32, 3), 10, 19_930, (10,)),
    "fmnist_vit": ((28, 28, 1), 10, 41_674, (10,)),
    "fmnist_autoencoder": ((28, 28, 1), None, 28_145, (28, 28, 1)),
    "diabetes_mlp": ((10,), None, 2_817, (1,)),
    "mnist_finetune": ((28, 28, 1), 10, 18_122, (10,)),
}
needs_data = pytest.mark.skipif(
    not os.path.isdir(os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "tiny_shakespeare")),
    reason="TFDS_DATA_DIR holds no prepared tiny_shakespeare",
)


@pytest.mark.parametrize("problem", MODERN, ids=lambda problem: problem.name)
def test_parameters_and_outputs(problem):
    shape, classes, parameters, outputs = _TABLE[problem.name]
    model = problem.model_fn(shape, classes)
    assert sum(v.value.shape.num_elements() for v in model.trainable_variables) == parameters
    assert model.output_shape == (None, *outputs)
    assert problem.epochs >= 2


@pytest.mark.parametrize("shape", [(26, 30, 1), (32, 32, 3)])
def test_an_autoencoder_of_any_size_gives_back_its_images_shape(shape):
    assert networks.autoencoder(shape).output_shape == (None, *shape)


@pytest.mark.parametrize("build", [networks.text_transformer, networks.text_gru])
def test_a_character_is_told_from_those_before_it_alone(build):
    model = build((8,), 5)
    text = np.random.default_rng(0).integers(0, 5, (2, 8)).astype("int32")
    other = text.copy()
    other[:, 5:] = (other[:, 5:] + 1) % 5
    one, two = (keras.ops.convert_to_numpy(model(x)) for x in (text, other))
    np.testing.assert_allclose(one[:, :5], two[:, :5], atol=1e-5)
    assert np.abs(one[:, 5:] - two[:, 5:]).max() > 1e-3


def test_places_are_learned():
    """An embedding of constants would be a constant of the graph."""
    model = networks.text_transformer((8,), 5)
    same = np.zeros((1, 8), "int32")
    assert np.ptp(keras.ops.convert_to_numpy(model(same)), axis=1).max() > 1e-3
    places = next(v for v in model.trainable_variables if v.shape == (8, 64))
    places.assign(np.zeros((8, 64)))
    assert np.ptp(keras.ops.convert_to_numpy(model(same)), axis=1).max() < 1e-5


def test_images_are_flipped_in_training_alone():
    model = networks.flipped_resnet((8, 8, 3), 4)
    images = np.random.default_rng(0).random((16, 8, 8, 3), "float32")
    layer = next(x for x in model.layers if isinstance(x, keras.layers.RandomFlip))
    flipped = layer(images, training=True).numpy()
    ways = [np.array_equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert 0 < sum(ways) < 16
    np.testing.assert_array_equal(layer(images, training=False), images)


def test_a_table_has_unit_columns_and_no_patient_twice():
    data = load_dataset("diabetes")
    assert data.sizes == (296, 73, 73)
    np.testing.assert_allclose(data.train.inputs.std(0), 1, rtol=1e-4)
    np.testing.assert_allclose(data.train.labels.mean(0), 0, atol=1e-4)
    everybody = np.concatenate([data.train.inputs, data.validation.inputs, data.test.inputs])
    assert len(np.unique(everybody, axis=0)) == 442


def test_a_fine_tuned_network_begins_with_what_was_trained_but_for_its_head():
    task = Task(get_problem("mnist_finetune"), load_dataset("digits"))
    one, other = (task.layout.unflatten(task.initial(seed)[0]) for seed in (1, 2))
    with np.load(networks.PRETRAINED) as file:
        for k in range(4):
            np.testing.assert_array_equal(one[k], file[str(k)])
            np.testing.assert_array_equal(other[k], file[str(k)])
    assert np.abs(one[4] - other[4]).max() > 0.01 and not np.any(one[5])


def test_an_autoencoders_labels_are_what_it_sees():
    task = load_task("fmnist_autoencoder", "digits", report=lambda text: None)
    batch = rows(task.dataset.train, slice(2))
    np.testing.assert_allclose(batch.labels, batch.inputs / 255)
    assert task.dataset.classes is None and not task.classifies
    loss, _ = task.loss(*tf.nest.map_structure(tf.constant, task.initial(0)), batch, True)
    assert 0.05 < float(loss) < 0.5


@needs_data
def test_a_text_is_cut_into_sequences_with_the_next_characters_for_labels():
    data = load_dataset("tiny_shakespeare", "tfds")
    assert data.classes == 65 and data.sizes[0] == 15_685
    inputs, labels, _ = data.train
    assert inputs.shape == labels.shape == (15_685, 64) and inputs.dtype == "int32"
    np.testing.assert_array_equal(inputs.ravel()[1:], labels.ravel()[:-1])


def test_nothing_stands_in_for_a_text(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("l2o.problems.datasets._reachable", lambda url: False)
    for how, said in (("auto", "is not at hand"), ("digits", "cannot be used in place of")):
        with pytest.raises(DatasetUnavailable, match=f"tiny_shakespeare.*{said}|{said}.*tiny_sh"):
            load_dataset("tiny_shakespeare", how, report=lambda text: None)
