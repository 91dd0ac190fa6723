"""The small problems: what they are, and that many copies of one are trained at once."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from made_data import tiny

from l2o.problems import PROBLEMS, DatasetUnavailable, get_problem, load_dataset, small
from l2o.problems.catalog import SUITES
from l2o.problems.families import FAMILIES, HELD_OUT
from l2o.problems.layers import Places
from l2o.problems.prepare import label_noise, sequences
from l2o.tasks.batches import rows
from l2o.tasks.convolution import side_by_side
from l2o.tasks.load import load_task
from l2o.tasks.task import Task, as_inputs, loss_and_gradient

ALL = (*FAMILIES, *HELD_OUT)
_slow = pytest.mark.slow
_LOADED: dict = {}  # once for all tests
_DIGITS: dict = {}  # in place of every dataset of images

# Trainable weights and batch size of each, on the data that it names.
_TABLE = {
    "small_digits_relu_32": (2_410, 32),
    "small_fmnist_relu_128": (9_610, 256),
    "small_mnist_sigmoid_16": (1_210, 8),
    "small_mnist_tanh_64x2": (8_970, 128),
    "small_fmnist_gelu_32x2": (3_466, 64),
    "small_cifar10_relu_24": (4_882, 16),
    "small_cifar10_silu_32x3_noisy": (4_522, 256),
    "small_fmnist_layernorm_24x4": (3_802, 128),
    "small_digits_layernorm_64x2_noisy": (9_226, 16),
    "small_mnist_pooled_6": (1_210, 64),
    "small_cifar10_conv_16x3": (7_738, 32),
    "small_fmnist_batchnorm_8": (1_442, 64),
    "small_cifar10_batchnorm_16x3": (7_802, 16),
    "small_cifar10_resnet_8": (5_266, 32),
    "small_mnist_autoencoder_32": (4_744, 64),
    "small_fmnist_autoencoder_64": (10_448, 128),
    "small_cifar10_autoencoder_conv_8": (4_572, 32),
    "small_mnist_vit_16": (2_762, 16),
    "small_fmnist_vit_32": (9_610, 32),
    "small_shakespeare_transformer_16": (4_657, 8),
    "small_shakespeare_transformer_32": (13_345, 16),
    "small_shakespeare_gru_24": (4_593, 16),
    "small_shakespeare_gru_48": (13_729, 32),
    "small_shakespeare_lstm_24": (5_313, 32),
    "small_mnist_rows_lstm_48": (11_434, 64),
    "small_diabetes_relu_32": (385, 32),
    "small_diabetes_tanh_64_noisy": (769, 8),
    "small_breast_cancer_relu_16x2": (802, 64),
    "small_digits_finetune_8": (1_898, 32),
    "small_mnist_finetune_16": (6_090, 16),
    "small_fmnist_elu_48x3_noisy": (8_314, 192),
    "small_wine_softsign_20": (343, 12),
    "small_digits_halves_layernorm_40": (2_712, 24),
    "small_cifar10_groupnorm_12x3": (4_342, 24),
    "small_mnist_resnet_12": (5_710, 48),
    "small_digits_autoencoder_conv_12": (4_984, 24),
    "small_cifar10_vit_24": (5_866, 48),
    "small_shakespeare_transformer_24x2": (13_265, 12),
    "small_shakespeare_rnn_36": (4_949, 96),
    "small_cifar10_finetune_12": (3_706, 48),
}
# One of each kind of network; the others take as long to compile, and are slow.
_QUICK = {
    "small_mnist_sigmoid_16", "small_digits_layernorm_64x2_noisy", "small_mnist_pooled_6",
    "small_fmnist_batchnorm_8", "small_mnist_autoencoder_32",
    "small_cifar10_autoencoder_conv_8", "small_mnist_vit_16", "small_shakespeare_transformer_16",
    "small_shakespeare_gru_24", "small_shakespeare_lstm_24", "small_diabetes_tanh_64_noisy",
    "small_breast_cancer_relu_16x2", "small_digits_finetune_8", "small_wine_softsign_20",
    "small_digits_halves_layernorm_40", "small_shakespeare_rnn_36",
}  # fmt: skip


def task_of(problem) -> Task:
    """On data of noise that have the form of what it names."""
    dataset = tiny(problem.data)
    return Task(problem, problem.prepare(dataset) if problem.prepare else dataset)


@pytest.mark.parametrize("problem", ALL, ids=lambda problem: problem.name)
def test_weights_and_batch_size(problem):
    weights, batch_size = _TABLE[problem.name]
    task = task_of(problem)
    assert (task.layout.size, task.batch_size) == (weights, batch_size)
    labels = task.dataset.train.labels
    outputs = task.model.output_shape[1:]
    assert outputs == (*labels.shape[1:], *[task.dataset.classes] * task.classifies)
    assert task.classifies == (task.dataset.classes is not None) and problem.epochs >= 1


def test_no_two_problems_are_alike():
    assert {problem.name for problem in ALL} == set(_TABLE)
    seen = {(problem.data, *_TABLE[problem.name]) for problem in ALL}
    assert len(seen) == len(ALL)
    assert max(weights for weights, _ in _TABLE.values()) <= 20_000
    batch_sizes = {_TABLE[problem.name][1] for problem in FAMILIES}
    assert (min(batch_sizes), max(batch_sizes)) == (8, 256)


def test_what_is_held_out_is_in_no_family():
    def network(problem):
        function, keywords = problem.model_fn, {}
        if hasattr(function, "func"):
            function, keywords = function.func, function.keywords
        return function, tuple(sorted(keywords.items()))

    assert not set(map(network, FAMILIES)) & set(map(network, HELD_OUT))
    sizes, held_out = ({p.batch_size for p in problems} for problems in (FAMILIES, HELD_OUT))
    assert not sizes & held_out


def test_suites_name_them_and_the_papers_is_as_it_was():
    assert SUITES["families"] == tuple(problem.name for problem in FAMILIES)
    assert SUITES["held_out"] == tuple(problem.name for problem in HELD_OUT)
    assert all(get_problem(problem.name) is problem for problem in ALL)
    assert not any(name.startswith("small_") for name in (*SUITES["paper"], *SUITES["modern"]))
    assert len(PROBLEMS) == sum(map(len, SUITES.values()))


@pytest.mark.parametrize(
    "problem",
    [p if p.name in _QUICK else pytest.param(p, marks=_slow) for p in ALL],
    ids=lambda problem: problem.name,
)
def test_two_networks_at_once_are_each_as_alone_and_learn(problem, float64):
    """Without a loop in TensorFlow's vectorization, compiled by XLA; texts are cut shorter."""
    task = task_of(problem)
    if problem.data == "tiny_shakespeare":
        task = Task(problem, sequences(4)(task.dataset))
    size = min(task.batch_size, 32)
    inputs = [
        (*task.initial(k), rows(task.dataset.train, slice(k * size, (k + 1) * size)))
        for k in range(2)
    ]
    inputs = [tf.nest.map_structure(tf.constant, each) for each in inputs]
    many = tf.function(
        lambda inputs: tf.vectorized_map(
            lambda each: tuple(loss_and_gradient(task, *each)), inputs, fallback_to_while_loop=False
        ),
        jit_compile=True,
        autograph=False,
    )
    stack = lambda *x: tf.stack(x)  # noqa: E731
    together = tf.nest.map_structure(stack, *inputs)
    alone = [tuple(loss_and_gradient(task, *each)) for each in inputs]
    with side_by_side():
        first = many(together)
    for a, b in zip(
        tf.nest.flatten(first), tf.nest.flatten(tf.nest.map_structure(stack, *alone)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)

    if task.classifies:
        assert np.abs(first[0] - math.log(task.dataset.classes)).max() < 1.1
    parameters, carried, batch = together
    for _ in range(100):
        loss, gradient, carried = many((parameters, carried, batch))
        parameters -= 2e-3 * tf.sign(gradient)
    assert (loss < 0.97 * first[0]).numpy().all()


@_slow
@pytest.mark.parametrize("problem", ALL, ids=lambda problem: problem.name)
def test_a_fit_with_adam_learns(problem):
    """300 steps, on the validation examples; the digits stand in for images that are not there."""
    try:
        task = load_task(problem, loaded=_LOADED, report=lambda text: None)
    except DatasetUnavailable as missing:
        pytest.skip(str(missing))
    data, model = task.dataset, task.model
    seen = [as_inputs(tf.constant(split.inputs)) for split in (data.train, data.validation)]
    loss = problem.loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    validation = (seen[1], data.validation.labels)
    before = model.evaluate(*validation, batch_size=1_000, verbose=0)
    for _ in range(-(-300 // task.steps_per_epoch)):
        model.fit(
            *(x[: 300 * task.batch_size] for x in (seen[0], data.train.labels)),
            task.batch_size,
            verbose=0,
        )
    assert model.evaluate(*validation, batch_size=1_000, verbose=0) < 0.9 * before


@pytest.mark.parametrize("problem", ALL, ids=lambda problem: problem.name)
def test_digits_stand_in_for_every_dataset_of_images(problem):
    if problem.data == "tiny_shakespeare":
        pytest.skip("nothing stands in for a text")
    task = load_task(problem, "digits", loaded=_DIGITS, report=lambda text: None)
    if len(task.dataset.shape) == 3:
        assert task.dataset.shape in ((8, 8, 1), (4, 8, 1))
    assert len(task.dataset.train.labels) >= task.batch_size
    assert task.layout.size > 0


def test_tables_have_unit_columns_and_no_row_twice():
    for name, sizes, classes in (("breast_cancer", (381, 94, 94), 2), ("wine", (120, 29, 29), 3)):
        data = load_dataset(name)
        assert data.sizes == sizes and data.classes == classes
        np.testing.assert_allclose(data.train.inputs.std(0), 1, rtol=1e-4)
        np.testing.assert_allclose(data.train.inputs.mean(0), 0, atol=1e-4)
        splits = (data.train, data.validation, data.test)
        assert len(np.unique(np.concatenate([s.inputs for s in splits]), axis=0)) == sum(sizes)
        assert all(set(s.labels) == set(range(classes)) for s in splits)


def test_places_are_added_and_learned():
    layer = Places()
    x = np.random.default_rng(0).random((2, 4, 3), "float32")
    added = np.asarray(layer(x)) - x
    np.testing.assert_allclose(added[0], added[1], atol=1e-6)
    np.testing.assert_allclose(added[0], layer.trainable_variables[0], atol=1e-6)
    assert np.ptp(added, axis=1).min() > 1e-3


def test_an_autoencoder_ends_with_a_transposed_convolution():
    model = small.convolutional_autoencoder((8, 8, 3), filters=4, code=6)
    assert model.output_shape == (None, 8, 8, 3)
    middle = np.random.default_rng(0).random((2, 4, 4, 4), "float32")
    ours = middle
    for layer in model.layers[-4:]:
        ours = layer(ours)
    keras_own = keras.layers.Conv2DTranspose(3, 2, strides=2, use_bias=False)
    keras_own.build(middle.shape)
    kernel, _ = model.layers[-4].get_weights()  # [4, 2 * 2 * 3]
    keras_own.set_weights([kernel.reshape(4, 2, 2, 3).transpose(1, 2, 3, 0)])
    np.testing.assert_allclose(ours, keras.ops.sigmoid(keras_own(middle)), rtol=1e-5)


@pytest.mark.parametrize("cell", ["GRU", "LSTM", "SimpleRNN"])
def test_a_character_is_told_from_those_before_it_alone(cell):
    for model in (small.recurrent((6,), 5, cell, 6), small.transformer((6,), 5, width=8)):
        text = np.random.default_rng(0).integers(0, 5, (2, 6)).astype("int32")
        other = text.copy()
        other[:, 4:] = (other[:, 4:] + 1) % 5
        one, two = (keras.ops.convert_to_numpy(model(x)) for x in (text, other))
        np.testing.assert_allclose(one[:, :4], two[:, :4], atol=1e-5)
        assert np.abs(one[:, 4:] - two[:, 4:]).max() > 1e-3


@pytest.mark.parametrize("width", [8, 12, 16])
def test_a_fine_tuned_network_begins_with_what_was_trained_but_for_its_head(width):
    one, other = (small.finetuned((8, 8, 1), 10, width).get_weights() for _ in range(2))
    with np.load(small.PRETRAINED) as file:
        for k in range(4):
            np.testing.assert_array_equal(one[k], file[f"{width}/{k}"])
            np.testing.assert_array_equal(other[k], one[k])
    assert 0 < np.abs(one[4]).max() < 0.1 and (one[4] != other[4]).all() and not one[5].any()


def test_fine_tuning_needs_a_width_that_was_trained():
    with pytest.raises(ValueError, match="Received: 9"):
        small.finetuned((8, 8, 1), 10, 9)


def test_a_share_of_labels_is_noise_in_the_problems_that_say_so():
    noisy = [problem for problem in ALL if problem.name.endswith("_noisy")]
    assert len(noisy) >= 3
    for problem in noisy:
        dataset = tiny(problem.data)
        labels = problem.prepare(dataset).train.labels
        assert (labels != dataset.train.labels).mean() > 0.05
    name = "small_digits_layernorm_64x2_noisy"
    clean, prepared = tiny("digits"), get_problem(name).prepare(tiny("digits"))
    np.testing.assert_array_equal(prepared.train.labels, label_noise(0.2)(clean).train.labels)
