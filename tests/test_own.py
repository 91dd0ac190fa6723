"""Problems of one's own: data read, losses made one an example, networks of every kind, refusals."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from l2o.amalgamation.examples import Examples, ProblemError, as_examples, digest
from l2o.amalgamation.keras_loss import per_example, takes_class_indices
from l2o.amalgamation.optimizee import Batch, KerasOptimizee, keras_seed, loss_and_gradient
from l2o.amalgamation.own import OwnProblem, prepare
from l2o.amalgamation.refusals import checked_optimizee
from l2o.amalgamation.unroll import Amalgamation, batches, begin, truncation
from l2o.rules import RNNProp

layers = keras.layers
_RANDOM = np.random.default_rng(0)
_TABLE = _RANDOM.normal(size=(40, 3)).astype("float32")
_TARGETS = _RANDOM.normal(size=40).astype("float32")
_SERIES = _RANDOM.normal(size=(40, 4, 2)).astype("float32")
_IMAGES = _RANDOM.normal(size=(40, 6, 6, 1)).astype("float32")
_WORDS = _RANDOM.integers(0, 9, (40, 4))


def sequential(shape, *stack):
    """Makes a model for inputs of a shape, from functions that make its layers."""
    return lambda: keras.Sequential([layers.Input(shape), *(make() for make in stack)])


def dense(units: int = 1, **settings):
    return lambda: layers.Dense(units, **settings)


def regression():
    return sequential((3,), dense(4, activation="tanh"), dense())()


# --- data -------------------------------------------------------------------------------------


def test_arrays_in_the_types_that_networks_take():
    cases = [
        (_TABLE.astype("float64"), "float32"),
        (_WORDS.astype("int64"), "int32"),
        (_WORDS.astype("int8"), "int32"),
        (_WORDS + 2**40, "int64"),
        (_WORDS > 4, "int32"),
        ((_IMAGES > 0).astype("uint8"), "uint8"),
        (_TABLE.tolist(), "float32"),
        (tf.constant(_TABLE), "float32"),
    ]
    for inputs, dtype in cases:
        examples, batch_size = as_examples((inputs, np.arange(40)))
        assert examples.inputs.dtype == dtype and batch_size is None
        np.testing.assert_allclose(examples.inputs, np.asarray(inputs), rtol=1e-6)
        assert examples.labels.dtype == "int32" and len(examples) == 40


def test_dataset_is_read_whole_with_its_batch_size():
    dataset = tf.data.Dataset.from_tensor_slices((_TABLE, _TARGETS)).batch(16)
    for one in (dataset, dataset.filter(lambda x, y: True)):  # the latter knows no length
        examples, batch_size = as_examples(one)
        assert batch_size == 16
        np.testing.assert_array_equal(examples.inputs, _TABLE)
        np.testing.assert_array_equal(examples.labels, _TARGETS)


def _slices(*parts):
    return tf.data.Dataset.from_tensor_slices(parts)


_BAD_DATA = {
    "not a pair": (_TABLE, "must be arrays .* Received: ndarray of float32, shape"),
    "three": ((_TABLE, _TARGETS, _TARGETS), "Received: tuple of 3"),
    "lengths": ((_TABLE, _TARGETS[:-1]), "differ in length. Received: 40 and 39"),
    "none": ((_TABLE[:0], _TARGETS[:0]), "no examples"),
    "nan": ((np.where(_TABLE > 2, np.nan, _TABLE), _TARGETS), r"x holds \d+ values that are NaN"),
    "infinite": ((_TABLE, _TARGETS + np.inf), "y holds 40 values"),
    "words": ((np.array(["a"] * 40), _TARGETS), "one array of numbers"),
    "inputs by name": (({"a": _TABLE}, _TARGETS), "x must be one array of numbers. Received: dict"),
    "lists of lengths": (([[1], [1, 2]], [0, 1]), "x is not one array"),
    "ragged": ((tf.ragged.constant([[1], [1, 2]]), [0, 1]), "dense array. Received: RaggedTensor"),
    "scalar": ((1.0, 2.0), "array of examples"),
    "flat uint8": ((_WORDS.astype("uint8"), _TARGETS), "float32 or int32"),
    "not batched": (_slices(_TABLE, _TARGETS), "must be batched"),
    "not batched, wide": (_slices(_TABLE, _SERIES), "must be batched, x and y alike"),
    "repeats": (_slices(_TABLE, _TARGETS).batch(8).repeat(), "must be finite"),
    "weights too": (_slices(_TABLE, _TARGETS, _TARGETS).batch(8), r"must yield \(x, y\)"),
    "dataset of ragged": (
        tf.data.Dataset.from_tensor_slices((tf.ragged.constant([[1], [1, 2]]), [0, 1])).batch(2),
        "dense tensors",
    ),
    "empty dataset": (_slices(_TABLE, _TARGETS).batch(8).take(0), "no examples"),
    "shapes": (_slices(_TABLE, _TARGETS).bucket_by_sequence_length(
        lambda x, y: 1, [2], [8, 8]).map(lambda x, y: (x[:, : tf.cast(y[0] > 0, tf.int32) + 1], y)),
        "all have one shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", _BAD_DATA)
def test_data_that_is_refused(name):
    data, message = _BAD_DATA[name]
    with pytest.raises(ProblemError, match=message):
        as_examples(data)


def test_data_without_an_end(monkeypatch):
    monkeypatch.setattr("l2o.amalgamation.examples.MOST_UNKNOWN", 10_000)
    endless = _slices(_TABLE, _TARGETS).batch(8).repeat().filter(lambda x, y: True)
    with pytest.raises(ProblemError, match="no end within"):
        as_examples(endless)


def test_digest_tells_data_apart():
    one = Examples(_TABLE, _TARGETS)
    assert digest(one) == digest(Examples(_TABLE.copy(), _TARGETS))
    others = [one[:-1], Examples(_TABLE, -_TARGETS), Examples(_TABLE.astype("int32"), _TARGETS)]
    assert len({digest(one), *map(digest, others)}) == 4
    assert digest(one, one) != digest(one)


# --- losses -----------------------------------------------------------------------------------

_LOGITS = _RANDOM.normal(size=(40, 3)).astype("float32")
_CLASSES = _RANDOM.integers(0, 3, 40).astype("int32")
_KERAS_LOSSES = {
    "mse": (_TARGETS, _LOGITS[:, :1]),
    "mae": (_TARGETS[:, None], _LOGITS[:, :1]),
    "huber": (_LOGITS[::-1], _LOGITS),
    "poisson": (np.abs(_TARGETS), np.abs(_LOGITS[:, :1])),
    "binary_crossentropy": (_CLASSES % 2, tf.sigmoid(_LOGITS[:, :1])),
    "sparse_categorical_crossentropy": (_CLASSES, tf.nn.softmax(_LOGITS)),
    "categorical_crossentropy": (np.eye(3, dtype="int32")[_CLASSES], tf.nn.softmax(_LOGITS)),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True): (_CLASSES[:, None], _LOGITS),
    keras.losses.MeanSquaredError(reduction="none"): (_TARGETS, _LOGITS[:, :1]),
    keras.losses.CategoricalCrossentropy(True, label_smoothing=0.1): (np.eye(3)[_CLASSES], _LOGITS),
    keras.losses.mean_squared_error: (_TARGETS, _LOGITS[:, :1]),
}


@pytest.mark.parametrize("loss", _KERAS_LOSSES, ids=str)
def test_mean_of_the_losses_is_what_keras_fit_minimizes(loss):
    labels, outputs = (tf.constant(part) for part in _KERAS_LOSSES[loss])
    losses = per_example(loss)(labels, outputs)
    assert losses.shape[0] == 40
    model = keras.Sequential([layers.Input(outputs.shape[1:]), layers.Activation("linear")])
    model.compile(loss=loss if not getattr(loss, "reduction", "") == "none" else "mse")
    assert float(tf.reduce_mean(losses)) == pytest.approx(
        model.evaluate(outputs, labels, batch_size=40, verbose=0), rel=1e-5
    )


def test_default_loss_is_cross_entropy_from_logits():
    keras_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for labels in (_CLASSES, _CLASSES[:, None]):
        losses = per_example(None)(tf.constant(labels), tf.constant(_LOGITS))
        assert losses.shape == (40,)
        assert float(tf.reduce_mean(losses)) == pytest.approx(float(keras_loss(labels, _LOGITS)))


def test_which_losses_take_class_indices():
    taking = [None, "sparse_categorical_crossentropy", keras.losses.SparseCategoricalCrossentropy()]
    assert all(map(takes_class_indices, taking))
    others = ["mse", keras.losses.CategoricalCrossentropy(), lambda y, p: p]
    assert not any(map(takes_class_indices, others))


@pytest.mark.parametrize("loss", ["meen_squared_error", 3, keras.losses.Huber(reduction="sum")])
def test_losses_that_are_refused(loss):
    with pytest.raises(ProblemError, match="Received: ('meen|3|Huber with reduction='sum')"):
        per_example(loss)


# --- kinds of networks ------------------------------------------------------------------------


class Subclassed(keras.Model):
    """Built by its first call alone, and its `call` takes no `training`."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = layers.Dense(3, activation="tanh"), layers.Dense(1)

    def call(self, inputs):
        return self.out(self.hidden(inputs))


_KINDS = {
    "batch norm": (sequential((6, 6, 1), lambda: layers.Conv2D(2, 3), layers.BatchNormalization,
                              lambda: layers.MaxPooling2D(2), layers.Flatten, dense()), _IMAGES),
    "embedding": (sequential((4,), lambda: layers.Embedding(9, 2), layers.Flatten, dense()),
                  _WORDS),
    "LSTM": (sequential((4, 2), lambda: layers.LSTM(2), dense()), _SERIES),
    "GRU": (sequential((4, 2), lambda: layers.GRU(2, dropout=0.3), dense()), _SERIES),
    "dropout": (sequential((3,), dense(8), lambda: layers.Dropout(0.5, seed=3), dense()), _TABLE),
    "not built": (lambda: keras.Sequential([layers.Dense(2), layers.Dense(1)]), _TABLE),
    "subclassed": (Subclassed, _TABLE),
}  # fmt: skip


def truncations(model_fn, inputs, *seeds: int, recompute: int = 0) -> list:
    """Meta-gradient, trajectory and report of the first truncation of an unroll, for each seed."""
    examples, _ = as_examples((inputs, _TARGETS))
    optimizee = checked_optimizee(model_fn, "mse", examples, 8)
    rule = RNNProp(units=2, layers=1)
    job = Amalgamation(rule, (), "none", optimizee, recompute=recompute)
    data, weights = Batch(examples.inputs, examples.labels), rule.initial_weights(0)
    function = tf.function(lambda *args: truncation(job, weights, *args, 0.0), autograph=False)
    found = []
    for seed in seeds:
        key = [seed, 0]
        warm, steps = (batches(data, key, 8, start, n) for start, n in ((0, 1), (1, 4)))
        warm, steps = tf.nest.map_structure(tf.constant, (warm, steps))
        found.append(function(begin(job, key, scaled=True), warm, steps))
    return found


@pytest.mark.parametrize("kind", _KINDS)
def test_meta_gradient_is_finite_and_the_same_again(kind):
    first, again, other = truncations(*_KINDS[kind], 1, 1, 2)
    gradient, _, report = first
    assert float(report.finite) == 1 and any(np.any(g) for g in gradient)
    for one, same in zip(tf.nest.flatten(first), tf.nest.flatten(again), strict=True):
        np.testing.assert_array_equal(one, same)
    assert not np.array_equal(gradient[0], other[0][0])


def test_trajectories_have_masks_of_their_own_and_keep_them_when_recomputed():
    """A layer's own seed would be every trajectory's."""
    model_fn, inputs = _KINDS["dropout"]
    optimizee = KerasOptimizee(model_fn, "mse")
    batch = Batch(tf.constant(inputs), tf.constant(_TARGETS))
    parameters, _ = optimizee.initial(0)

    def run(carried):
        losses = []
        for _ in range(3):
            loss, _, carried = loss_and_gradient(optimizee, tf.constant(parameters), carried, batch)
            losses.append(float(loss))
        return losses

    one, same, other = (run(optimizee.initial(seed)[1]) for seed in (1, 1, 2))
    assert one == same
    assert len({*one, *other}) == 6  # a new mask every step, and in every trajectory
    (kept,), (recomputed,) = (truncations(model_fn, inputs, 1, recompute=n) for n in (0, 2))
    for a, b in zip(kept[0], recomputed[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(kept[1].student.parameters, recomputed[1].student.parameters,
                               rtol=1e-5)  # fmt: skip


def test_initial_weights_follow_the_seed_alone():
    class Numpy(layers.Layer):
        def build(self, shape):
            value = np.random.normal(size=(shape[-1], 1)).astype("float32")
            self.kernel = self.add_weight(shape=value.shape, initializer=lambda *_, **__: value)

        def call(self, inputs):
            return inputs @ self.kernel

    optimizee = KerasOptimizee(sequential((3,), dense(2), Numpy), "mse")
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    one, same, other = (optimizee.initial(seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.isclose(one[[0, -1]], other[[0, -1]]).any()
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_only_images_of_bytes_are_divided():
    seen = []

    class Spy(layers.Layer):
        def call(self, inputs):
            seen.append(float(tf.reduce_max(tf.cast(inputs, tf.float32))))
            return tf.cast(inputs, tf.float32)

    for inputs, greatest in ((np.full((8, 2, 2), 255, "uint8"), 1), (np.full((8, 2), 255), 255)):
        examples, _ = as_examples((inputs, _TARGETS[:8]))
        model_fn = sequential(inputs.shape[1:], Spy, layers.Flatten, dense())
        optimizee = KerasOptimizee(model_fn, "mse")
        optimizee.predict(*optimizee.initial(0), tf.constant(examples.inputs))
        assert seen[-1] == greatest


# --- refusals ---------------------------------------------------------------------------------


class Unseeded(layers.Layer):
    def build(self, shape):
        draw = lambda shape, dtype=None: keras.random.normal(shape)  # noqa: E731
        self.kernel = self.add_weight(shape=(shape[-1], 1), initializer=draw, name="kernel")

    def call(self, inputs):
        return inputs @ self.kernel


class Unbuildable(keras.Model):
    def __init__(self):
        super().__init__()
        self.convolution = layers.Conv2D(2, 3, name="my_convolution")

    def call(self, inputs):
        return self.convolution(inputs)


_ONE = sequential((3,), dense())()
_WIDTHS = iter(range(1, 100))
_SOFTSIGN = sequential((3,), dense(2), lambda: layers.Activation("softsign", name="soft"), dense())


def resized(interpolation: str):
    def up():
        return layers.UpSampling2D(2, interpolation=interpolation, name="my_resize")

    return sequential((6, 6, 1), lambda: layers.Conv2D(1, 3), up, layers.Flatten, dense())


def half():
    return layers.Dense(2, dtype="mixed_float16", name="half")


_REFUSED = {
    "a model": (_ONE, "mse", _TABLE, "must be a function .* Received: a Sequential"),
    "no model": (lambda: 3, "mse", _TABLE, "must return a keras.Model. Received: a int"),
    "raises": (lambda: 1 / 0, "mse", _TABLE, "model_fn failed: ZeroDivisionError"),
    "always one": (lambda: _ONE, "mse", _TABLE, "a new model at every call. Received: the same"),
    "always another": (lambda: sequential((3,), dense(next(_WIDTHS)), dense())(), "mse", _TABLE,
                       "same architecture .* models of 6 and 11 weights"),
    "no weights": (sequential((3,), layers.Flatten), "mse", _TABLE, "no trainable weights"),
    "no seed": (sequential((3,), Unseeded), "mse", _TABLE, "unseeded.*kernel' does not follow"),
    "unknown shape": (Unbuildable, "mse", _TABLE,
                      "shapes of layer 'my_convolution' of unbuildable.* are unknown"),
    "other shape": (sequential((4,), dense()), "mse", _TABLE, "cannot be called on .*40|16, 3"),
    "half": (sequential((3,), half, dense()), "mse", _TABLE, "Layer 'half' computes in float16"),
    "two outputs": (lambda: keras.Model(i := layers.Input((3,)), [layers.Dense(1)(i), i]), "mse",
                    _TABLE, "must have one output. Received: a list"),
    "masked": (sequential((4,), lambda: layers.Embedding(9, 2, mask_zero=True), dense()),
               lambda y, p: tf.reduce_mean(p, (1, 2)), _WORDS, "is masked"),
    "no gradient": (_SOFTSIGN, "mse", _TABLE, r"Layer 'soft' .* twice \(SoftsignGrad has no grad"),
    "bicubic": (resized("bicubic"), "mse", _IMAGES, "Layer 'my_resize' .*ResizeBicubicGrad has no"),
    "bilinear": (resized("bilinear"), "mse", _IMAGES, "Layer 'my_resize' .*derivative of bilinear"),
    "constant": (regression, lambda y, p: y**2, _TABLE, "does not depend on its weights"),
    "scalar": (regression, lambda y, p: tf.reduce_mean(p), _TABLE, r"Received: shape \(\)"),
    "broadcast": (regression, lambda y, p: (y - p) ** 2, _TABLE, r"Received: shape \(16, 16\)"),
    "loss fails": (regression, lambda y, p: p[:, 5], _TABLE, r"loss of labels \(16,\) .* failed"),
    "classes": (regression, None, _TABLE, "class indices, .* Received: float32 labels"),
    "not finite": (regression, lambda y, p: p[:, 0] / 0, _TABLE, "loss of .* is not finite"),
    "below zero": (regression, lambda y, p: p[:, 0] - 5, _TABLE, "difference.* Received: -5"),
    "falls below": (regression, lambda y, p: 3 + p[:, 0], _TABLE, "Received: 2.* at the initial weights, -.* falls"),
}  # fmt: skip


@pytest.mark.parametrize("name", _REFUSED)
def test_networks_that_are_refused(name):
    model_fn, loss, inputs, message = _REFUSED[name]
    with pytest.raises(ProblemError, match=message) as error:
        checked_optimizee(model_fn, loss, Examples(np.asarray(inputs), _TARGETS), 16)
    assert "\n" not in str(error.value)


def test_what_lifts_a_refusal():
    images, table = Examples(_IMAGES, _TARGETS), Examples(_TABLE, _TARGETS)
    checked_optimizee(resized("bicubic"), "mse", images, 16, first_order=True)
    checked_optimizee(resized("nearest"), "mse", images, 16)
    checked_optimizee(regression, lambda y, p: p[:, 0] - 5, table, 16, positive=False)
    with pytest.raises(ProblemError, match="all 40 training examples. Received: .* 41"):
        checked_optimizee(regression, "mse", table, 41)


def test_second_derivative_of_bilinear_resizing_is_wrong(float64):
    """Why it is refused; if this fails TensorFlow has been mended, and `WRONG_TWICE` can go."""
    images = tf.constant(_RANDOM.normal(size=(2, 3, 3, 1)))

    def slope(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.image.resize(x, (6, 6)) ** 4)
        return tape.gradient(loss, x)

    with tf.GradientTape() as tape:
        tape.watch(images)
        total = tf.reduce_sum(slope(images) ** 2)
    change = tf.ones_like(images) * 1e-6
    ahead, behind = (tf.reduce_sum(slope(images + sign * change) ** 2) for sign in (1, -1))
    derivative = float(tf.reduce_sum(tape.gradient(total, images)))
    assert derivative != pytest.approx(float(ahead - behind) / 2e-6, rel=1e-3)


# --- problems of commands -----------------------------------------------------------------------


def test_a_sixth_is_split_off_for_validation():
    problem, dataset = prepare(OwnProblem(regression, (_TABLE, _TARGETS), loss="mse",
                                          batch_size=8), "mine:problem")  # fmt: skip
    assert problem.name == "mine:problem" and problem.batch_size == 8
    np.testing.assert_array_equal(dataset.train.inputs, _TABLE[:34])
    np.testing.assert_array_equal(dataset.validation.labels, _TARGETS[34:])
    assert "34 train, 6 validation, 0 test" in dataset.description


def test_name_of_the_data_tells_data_and_networks_apart():
    def name(model_fn=regression, inputs=_TABLE, loss="mse"):
        own = OwnProblem(model_fn, (inputs, _TARGETS), loss=loss, batch_size=8)
        return prepare(own, "mine:problem")[1].name

    deeper = sequential((3,), dense(4, activation="relu"), dense())
    names = [name(), name(deeper), name(inputs=-_TABLE), name(loss="mae")]
    assert len(set(names)) == 4 and name() == names[0]


def test_validation_data_of_another_kind_is_refused():
    for validation in ((_TABLE[:, :2], _TARGETS), (_TABLE, _CLASSES)):
        with pytest.raises(ProblemError, match="validation's .* must be like those to train on"):
            prepare(OwnProblem(regression, (_TABLE, _TARGETS), validation, loss="mse"), "mine:p")
    with pytest.raises(ProblemError, match="5 examples are too few"):
        prepare(OwnProblem(regression, (_TABLE[:5], _TARGETS[:5]), loss="mse"), "mine:p")
    with keras_seed(0), pytest.raises(ProblemError, match="batched by 8. Received: batch_size=4"):
        dataset = _slices(_TABLE, _TARGETS).batch(8)
        prepare(OwnProblem(regression, dataset, loss="mse", batch_size=4), "mine:p")
