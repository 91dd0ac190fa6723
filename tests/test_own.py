"""Problems of one's own: networks of every kind, and what is refused before training."""

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from made_examples import IMAGES, SERIES, TABLE, TARGETS, WORDS
from made_tasks import task_of
from made_weights import made_weights

from l2o.amalgamation.unroll import Amalgamation, begin, truncation, warm_up
from l2o.problems import Batch, Problem, ProblemError
from l2o.rules import RNNProp
from l2o.tasks.batches import batches
from l2o.tasks.checks import checked
from l2o.tasks.examples import as_examples
from l2o.tasks.load import load_task
from l2o.tasks.task import Task, keras_seed, loss_and_gradient

layers = keras.layers


def sequential(shape, *stack, batch_size=None):
    """Makes a model for inputs of a shape, from functions that make its layers."""
    start = lambda: layers.Input(shape, batch_size)  # noqa: E731
    return lambda: keras.Sequential([start(), *(make() for make in stack)])


def dense(units: int = 1, **settings):
    return lambda: layers.Dense(units, **settings)


def regression():
    return sequential((3,), dense(4, activation="tanh"), dense())()


# --- kinds of networks ------------------------------------------------------------------------


class Subclassed(keras.Model):
    """Built by its first call alone, and its `call` takes no `training`."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = layers.Dense(3, activation="tanh"), layers.Dense(1)

    def call(self, inputs):
        return self.out(self.hidden(inputs))


class Whole(keras.Model):
    """Tells no settings of its own."""

    share = 1.0

    def __init__(self):
        super().__init__()
        self.hidden, self.out = layers.Dense(3), layers.Dense(1, kernel_initializer="zeros")

    def call(self, inputs):
        return self.out(self.share * self.hidden(inputs))


class Half(Whole):
    share = 0.5


class Counting(layers.Layer):
    """Has weights that are whole numbers and truth values."""

    def build(self, shape):
        self.steps = self.add_weight((), "zeros", "int32", trainable=False)
        self.late = self.add_weight((), "zeros", "bool", trainable=False)

    def call(self, inputs, training=False):
        if training:
            self.steps.assign(self.steps + 1)
            self.late.assign(self.steps > 2)
        return inputs / (1 + keras.ops.cast(self.steps, inputs.dtype))


_KINDS = {
    "batch norm": (sequential((6, 6, 1), lambda: layers.Conv2D(2, 3), layers.BatchNormalization,
                              lambda: layers.MaxPooling2D(2), layers.Flatten, dense()), IMAGES),
    "embedding": (sequential((4,), lambda: layers.Embedding(9, 2), layers.Flatten, dense()),
                  WORDS),
    "LSTM": (sequential((4, 2), lambda: layers.LSTM(2), dense()), SERIES),
    "dropout": (sequential((3,), dense(8), lambda: layers.Dropout(0.5, seed=3), dense()), TABLE),
}  # fmt: skip


def checked_task(model_fn, loss, train: Batch, batch_size: int, **needs) -> Task:
    return checked(task_of(model_fn, train, batch_size, loss), **needs)


def truncations(model_fn, inputs, *seeds: int, recompute: int = 0) -> list:
    """Meta-gradient, trajectory and report of the first truncation of an unroll, for each seed."""
    data, _ = as_examples((inputs, TARGETS))
    task = checked_task(model_fn, "mse", data, 8)
    rule = RNNProp(units=2, layers=1)
    job = Amalgamation(rule, (), "none", task, recompute=recompute)
    weights = [tf.constant(w) for w in made_weights(rule)]

    @partial(tf.function, autograph=False)
    def function(trajectory, warm, steps):
        return truncation(job, weights, warm_up(job, weights, trajectory, warm), steps, 0.0)

    found = []
    for seed in seeds:
        key = [seed, 0]
        warm, steps = (batches(data, key, 8, start, n) for start, n in ((0, 1), (1, 4)))
        warm, steps = tf.nest.map_structure(tf.constant, (warm, steps))
        found.append(function(begin(job, key, scaled=True), warm, steps))
    return found


@pytest.mark.slow
def test_meta_gradient_of_a_gru():
    model_fn = sequential((4, 2), lambda: layers.GRU(2, dropout=0.3), dense())
    (first,) = truncations(model_fn, SERIES, 1)
    assert float(first[2].finite) == 1 and any(np.any(g) for g in first[0])


@pytest.mark.parametrize("model_fn", [Subclassed, lambda: keras.Sequential([layers.Dense(1)])])
def test_models_are_built_on_the_data(model_fn):
    task = checked_task(model_fn, "mse", Batch(TABLE, TARGETS), 8)
    one, same, other = (task.initial(seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert task.layout.size == len(one) and not np.array_equal(one, other)


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
    task = Task(Problem(model_fn, loss="mse"))
    batch = Batch(tf.constant(inputs), tf.constant(TARGETS))
    parameters, _ = task.initial(0)

    def run(carried):
        losses = []
        for _ in range(3):
            loss, _, carried = loss_and_gradient(task, tf.constant(parameters), carried, batch)
            losses.append(float(loss))
        return losses

    one, same, other = (run(task.initial(seed)[1]) for seed in (1, 1, 2))
    assert one == same
    assert len({*one, *other}) == 6  # a new mask every step, and in every trajectory
    (kept,), (recomputed,) = (truncations(model_fn, inputs, 1, recompute=n) for n in (0, 2))
    for a, b in zip(kept[0], recomputed[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(kept[1].student.parameters, recomputed[1].student.parameters,
                               rtol=1e-5)  # fmt: skip


def test_whole_numbers_are_carried():
    ((_, trajectory, _),) = truncations(sequential((3,), Counting, dense()), TABLE, 1)
    assert [x.numpy() for x in trajectory.student.carried] == [1 + 4, True]


def test_tensors_that_layers_keep_are_constants():
    """The same as when the data are normalized beforehand."""
    mean, deviation = TABLE.mean(0), TABLE.std(0)
    within = sequential((3,), lambda: layers.Normalization(mean=mean, variance=deviation**2),
                        dense(2, activation="tanh"), dense())  # fmt: skip
    before = sequential((3,), dense(2, activation="tanh"), dense())
    (one,) = truncations(within, TABLE, 1, recompute=2)
    (other,) = truncations(before, (TABLE - mean) / deviation, 1)
    for a, b in zip(one[0], other[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(one[2].meta_loss, other[2].meta_loss, rtol=1e-4)


def test_initial_weights_follow_the_seed_alone():
    class Numpy(layers.Layer):
        def build(self, shape):
            value = np.random.normal(size=(shape[-1], 1)).astype("float32")
            self.kernel = self.add_weight(shape=value.shape, initializer=lambda *_, **__: value)

        def call(self, inputs):
            return inputs @ self.kernel

    task = Task(Problem(sequential((3,), dense(2), Numpy), loss="mse"))
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    one, same, other = (task.initial(seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.isclose(one[[0, -1]], other[[0, -1]]).any()
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_penalties_on_weights_are_part_of_the_loss():
    decay = keras.regularizers.L2(0.1)
    task = Task(Problem(sequential((3,), dense(kernel_regularizer=decay)), loss="mse"))
    parameters, carried = task.initial(0)
    batch = Batch(tf.constant(TABLE), tf.constant(TARGETS))
    loss, _ = task.loss(tf.constant(parameters), carried, batch, training=True)
    kernel, bias = parameters[:3], parameters[3]
    expected = np.mean((TABLE @ kernel + bias - TARGETS) ** 2) + 0.1 * np.sum(kernel**2)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_only_images_of_bytes_are_divided():
    adds_up = dense(kernel_initializer="ones")
    for inputs, total in ((np.full((8, 2, 2), 255, "uint8"), 4), (np.full((8, 2), 255), 510)):
        examples, _ = as_examples((inputs, TARGETS[:8]))
        task = Task(Problem(sequential(inputs.shape[1:], layers.Flatten, adds_up), loss="mse"))
        parameters, carried = task.initial(0)
        tensors = task.layout.unflatten(parameters)
        batch = Batch(tf.constant(examples.inputs), tf.constant(examples.labels))
        outputs = task.outcome(tensors, carried, batch, training=False)[2]
        np.testing.assert_allclose(outputs, total)


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


class Noisy(layers.Layer):
    """Adds what a function of the inputs draws."""

    def __init__(self, draw, **settings):
        super().__init__(**settings)
        self.draw = draw

    def call(self, inputs, training=False):
        return inputs + self.draw(inputs) if training else inputs


class Scored(layers.Layer):
    """Keeps a metric of what it sees."""

    def __init__(self):
        super().__init__(name="scored")
        self.seen = keras.metrics.Mean(name="seen")

    def call(self, inputs):
        self.seen.update_state(keras.ops.mean(inputs))
        return inputs


class Changing(layers.Layer):
    """Doubles its inputs after the tenth step, which it counts by itself."""

    def __init__(self):
        super().__init__(name="changing")
        self.steps = tf.Variable(0, trainable=False)

    def call(self, inputs, training=False):
        if training:
            self.steps.assign_add(1)
        return tf.where(self.steps > 10, 2 * inputs, inputs)


class Called(layers.Layer):
    """Divides by the number of its calls."""

    calls = 0

    def call(self, inputs):
        self.calls += 1
        return inputs / self.calls


class Last(layers.Layer):
    """Adds the inputs of the step before."""

    def build(self, shape):
        self.before = self.add_weight(shape, "zeros", trainable=False)

    def call(self, inputs, training=False):
        outputs = inputs + self.before
        if training:
            self.before.assign(inputs)
        return outputs


class Jittery(Subclassed):
    """Draws outside its layers."""

    def call(self, inputs):
        return self.out(self.hidden(inputs + tf.random.normal((3,))))


class KnownSize(Subclassed):
    """Needs to know how many examples there are."""

    def call(self, inputs):
        return self.out(self.hidden(inputs) + tf.zeros((inputs.shape[0], 3)))


class Tables(layers.Layer):
    def __init__(self):
        super().__init__(name="tables")
        self.tables = [tf.constant([1.0, 2.0])]

    def call(self, inputs):
        return inputs * self.tables[0]


def stateful(layer):
    return sequential((4, 2), layer, dense(), batch_size=16)


def noise(draw):
    return sequential((3,), dense(2), lambda: Noisy(draw, name="noisy"), dense())


_NOISE = keras.random.SeedGenerator(1)
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
    "a model": (_ONE, "mse", TABLE, "must be a function .* Received: a Sequential"),
    "no model": (lambda: 3, "mse", TABLE, "must return a keras.Model. Received: a int"),
    "raises": (lambda: 1 / 0, "mse", TABLE, "model_fn failed: ZeroDivisionError"),
    "always one": (lambda: _ONE, "mse", TABLE, "a new model at every call. Received: the same"),
    "always another": (lambda: sequential((3,), dense(next(_WIDTHS)), dense())(), "mse", TABLE,
                       "same architecture .* models of 6 and 11 weights"),
    "no weights": (sequential((3,), layers.Flatten), "mse", TABLE, "no trainable weights"),
    "no seed": (sequential((3,), Unseeded), "mse", TABLE, "unseeded.*kernel' does not follow"),
    "no seed, frozen": (sequential((3,), dense(2), lambda: Unseeded(trainable=False)), "mse", TABLE,
                        "unseeded.*kernel' does not follow"),
    "unknown shape": (Unbuildable, "mse", TABLE,
                      "shapes of layer 'my_convolution' of unbuildable.* are unknown"),
    "other shape": (sequential((4,), dense()), "mse", TABLE, r"cannot be called on .*\(16, 3\)"),
    "stateful": (stateful(lambda: layers.LSTM(2, stateful=True, name="long")), "mse", SERIES,
                 "Layer 'long' is stateful.* Use stateful=False"),
    "stateful, built on the data": (
        lambda: keras.Sequential([layers.RNN(layers.GRUCell(2), stateful=True), layers.Dense(1)]),
        "mse", SERIES, "Layer 'rnn.*' is stateful"),
    "stateful within": (
        stateful(lambda: layers.Bidirectional(layers.GRU(2, stateful=True), name="both")), "mse",
        SERIES, "Layer 'both' is stateful"),
    "spectral": (
        sequential((3,), lambda: layers.SpectralNormalization(layers.Dense(2), name="sn"), dense()),
        "mse", TABLE, "Layer 'sn' changes '.*/kernel' when it is called, which is trainable"),
    "metric": (sequential((3,), dense(2), Scored, dense()), "mse", TABLE,
               "Layer 'scored' changes 'seen/total' when it is called, which is no weight of the"),
    "global seed": (noise(lambda x: keras.random.normal((2,))), "mse", TABLE,
                    "Layer 'noisy' changes '.*seed.*is no weight.* from a keras.random.SeedGener"),
    "other's seed": (noise(lambda x: keras.random.normal((2,), seed=_NOISE)), "mse", TABLE,
                     "Layer 'noisy' changes '.*seed_generator_state'"),
    "TensorFlow's noise": (noise(lambda x: tf.random.normal((2,))), "mse", TABLE,
                           "Layer 'noisy' gives something else when it is called again"),
    "NumPy's noise": (noise(lambda x: np.random.normal(size=2)), "mse", TABLE,
                      "Layer 'noisy' gives something else when it is called again"),
    "noise of a model": (Jittery, "mse", TABLE, "Model 'jittery.*' gives something else when"),
    "Python's noise": (
        sequential((6, 6, 1), lambda: layers.AugMix((0, 1), name="mixed"), layers.Flatten, dense()),
        "mse", IMAGES, "Layer 'mixed' gives something else when it is called again"),
    "Python's state": (sequential((3,), dense(2), Called, dense()), "mse", TABLE,
                       "Layer 'called.*' gives something else when it is called again"),
    "variable": (sequential((3,), dense(2), Changing, dense()), "mse", TABLE,
                 "Layer 'changing' changes a tf.Variable when it is called"),
    "table": (sequential((4,), lambda: layers.IntegerLookup(vocabulary=[*range(9)], name="words"),
                         lambda: layers.Embedding(10, 2), layers.Flatten, dense()), "mse", WORDS,
              "Layer 'words' uses a variable or lookup table .* or use first_order=True"),
    "tensors": (sequential((3,), dense(2), Tables, dense()), "mse", TABLE,
                "Layer 'tables' uses a tensor that is no weight .* make it a NumPy array"),
    "last batch": (sequential((3,), Last, dense(), batch_size=16), "mse", TABLE,
                   r"of shape \(17, 3\) as in evaluation .* layer 'last.*': .*Incompatible shapes"),
    "known size": (KnownSize, "mse", TABLE, r"called on inputs of shape \(None, 3\) as in evaluat"),
    "crop": (sequential((6, 6, 1), lambda: layers.RandomCrop(4, 4), layers.Flatten, dense()), "mse",
             IMAGES, r"on inputs of shape \(16, 6, 6, 1\) as in evaluation \(training=False,"),
    "half": (sequential((3,), half, dense()), "mse", TABLE, "Layer 'half' computes in float16"),
    "two outputs": (lambda: keras.Model(i := layers.Input((3,)), [layers.Dense(1)(i), i]), "mse",
                    TABLE, "must have one output. Received: a list"),
    "masked": (sequential((4,), lambda: layers.Embedding(9, 2, mask_zero=True), dense()),
               lambda y, p: tf.reduce_mean(p, (1, 2)), WORDS, "is masked"),
    "no gradient": (_SOFTSIGN, "mse", TABLE, r"Layer 'soft' .* twice \(SoftsignGrad has no grad"),
    "bicubic": (resized("bicubic"), "mse", IMAGES, "Layer 'my_resize' .*ResizeBicubicGrad has no"),
    "bilinear": (resized("bilinear"), "mse", IMAGES, "Layer 'my_resize' .*gradient of bilinear"),
    "constant": (regression, lambda y, p: y**2, TABLE, "does not depend on its weights"),
    "scalar": (regression, lambda y, p: tf.reduce_mean(p), TABLE, r"Received: shape \(\)"),
    "broadcast": (regression, lambda y, p: (y - p[:, 0]) ** 2, TABLE,
                  r"Received: shape \(16, 16\) .* \[B, 1\]"),
    "loss fails": (regression, lambda y, p: p[:, 5], TABLE, r"loss of labels \(16,\) .* failed"),
    "fewer outputs": (sequential((3,), lambda: layers.Lambda(lambda x: x[:7], name="first_seven"),
                                 dense()), "mse", TABLE, "Layer 'first_seven' does not give one"),
    "classes": (regression, None, TABLE, "class indices, .* Received: data's float32 labels"),
    "not finite": (regression, lambda y, p: p[:, 0] / 0, TABLE, "loss of .* is not finite"),
    "below zero": (regression, lambda y, p: p[:, 0] - 5, TABLE, "difference.* Received: -5"),
    "falls below": (regression, lambda y, p: 3 + p[:, 0], TABLE,
                    "Received: 2.* at the initial weights, -.* falls"),
}  # fmt: skip


@pytest.mark.parametrize("name", _REFUSED)
def test_networks_that_are_refused(name):
    model_fn, loss, inputs, message = _REFUSED[name]
    with pytest.raises(ProblemError, match=message) as error:
        checked_task(model_fn, loss, Batch(np.asarray(inputs), TARGETS), 16)
    assert "\n" not in str(error.value)


def test_probabilities_are_not_taken_for_logits():
    """Keras would warn of them; the default loss is from logits."""
    examples = Batch(TABLE, WORDS[:, 0])
    softmax = sequential((3,), dense(9, activation="softmax"))
    with pytest.raises(ProblemError, match="are probabilities, .*sparse_categorical_crossentropy"):
        checked_task(softmax, None, examples, 16)
    checked_task(softmax, "sparse_categorical_crossentropy", examples, 16)
    for activation in ("relu", "linear"):
        checked_task(sequential((3,), dense(9, activation=activation)), None, examples, 16)


def test_what_passes_for_state_and_is_none():
    class Keeping(layers.Layer):
        """For a look at it afterwards."""

        def call(self, inputs):
            self.seen = inputs
            return inputs

    class Generator(Noisy):
        def __init__(self):
            super().__init__(lambda x: keras.random.normal((3,), seed=self.generator))
            self.generator = keras.random.SeedGenerator(1)

    for model_fn in (
        sequential((3,), Keeping, dense()),
        sequential((3,), Generator, dense()),
        sequential((3,), lambda: layers.BatchNormalization(renorm=True), dense(), batch_size=16),
    ):
        checked_task(model_fn, "mse", Batch(TABLE, TARGETS), 8)


def test_what_lifts_a_refusal():
    images, table = Batch(IMAGES, TARGETS), Batch(TABLE, TARGETS)
    checked_task(resized("bicubic"), "mse", images, 16, first_order=True)
    checked_task(resized("nearest"), "mse", images, 16)
    for name, inputs in (("table", WORDS), ("tensors", TABLE)):
        model_fn = _REFUSED[name][0]
        checked_task(model_fn, "mse", Batch(inputs, TARGETS), 16, first_order=True)
    checked_task(regression, lambda y, p: p[:, 0] - 5, table, 16, positive=False)
    with pytest.raises(ProblemError, match="all 40 training examples. Received: .* 41$"):
        checked_task(regression, "mse", table, 41)
    with pytest.raises(ProblemError, match="Received: .* 128, the default; set batch_size$"):
        checked_task(regression, "mse", table, 128)


def test_tensorflow_takes_the_gradient_of_resizing_for_constant():
    """Why it is refused; if this fails TensorFlow has been mended, and `WRONG_TWICE` can go."""
    images = tf.constant(IMAGES[:2])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(images)
        loss = tf.reduce_sum(tf.image.resize(images, (9, 9)) ** 4)
        slope = tape.gradient(loss, images)
        total = tf.reduce_sum(slope**2)
    assert np.any(slope) and tape.gradient(total, images) is None


# --- problems of commands -----------------------------------------------------------------------


def test_a_sixth_is_split_off_for_validation():
    problem = Problem(regression, (TABLE, TARGETS), loss="mse", batch_size=8, name="mine:problem")
    task = load_task(problem)
    dataset = task.dataset
    assert task.name == "mine:problem" and task.batch_size == 8
    np.testing.assert_array_equal(dataset.train.inputs, TABLE[:34])
    np.testing.assert_array_equal(dataset.validation.labels, TARGETS[34:])
    assert "34 train, 6 validation, 0 test" in dataset.description


def seeded():
    keras.utils.set_random_seed(0)
    return regression()


def loaded():
    model = regression()
    model.set_weights([np.linspace(0, 1, w.size).reshape(w.shape) for w in model.get_weights()])
    return model


def drawn(*kernels):
    hidden = [dense(2, kernel_initializer=kernel) for kernel in kernels]
    return sequential((3,), *hidden, dense(kernel_initializer="ones"))


_STARTS = {
    "seed of all": (seeded, True),
    "from a file": (loaded, True),
    "seeded initializers": (lambda: drawn(keras.initializers.HeNormal(3))(), True),
    "one initializer for all": (drawn(keras.initializers.HeNormal()), True),
    "one of two": (drawn(keras.initializers.HeNormal(), "he_normal"), False),
    "constants": (drawn(), False),
    "nothing": (regression, False),
}


@pytest.mark.parametrize("name", _STARTS)
def test_a_start_that_is_always_the_same_is_said(name):
    model_fn, always = _STARTS[name]
    own = Problem(model_fn, (TABLE, TARGETS), loss="mse", batch_size=8, name="mine:problem")
    said = []
    load_task(own, report=said.append)
    assert len(said) == 1 + always and said[0].startswith("Data: own data ")
    notes = said[1:]
    assert all("model_fn of mine:problem makes the same initial weights" in line for line in notes)


def test_name_of_the_data_tells_data_and_networks_apart():
    def name(model_fn=regression, inputs=TABLE, loss="mse"):
        own = Problem(model_fn, (inputs, TARGETS), loss=loss, batch_size=8)
        return load_task(own).dataset.name

    deeper = sequential((3,), dense(4, activation="relu"), dense())
    names = [name(), name(deeper), name(inputs=-TABLE), name(loss="mae")]
    assert len(set(names)) == 4 and name() == names[0]


def test_settings_that_a_first_loss_does_not_show_tell_networks_apart():
    """The outputs of all these are zeros at first."""

    def network(activation="relu", momentum=0.5, rate=0.1):
        return sequential(
            (3,), dense(4, activation=activation), lambda: layers.Dropout(rate, seed=1),
            lambda: layers.BatchNormalization(momentum=momentum), dense(kernel_initializer="zeros"),
        )  # fmt: skip

    def described(model_fn, loss="mse"):
        own = Problem(model_fn, (TABLE, TARGETS), loss=loss, batch_size=8)
        return load_task(own).network

    one = described(network())
    others = [described(network(**other))
              for other in ({"activation": "tanh"}, {"momentum": 0.9}, {"rate": 0.2})]  # fmt: skip
    others += [described(Half), described(Whole)]
    assert {network["first_loss"] for network in others} == {one["first_loss"]}
    assert all(network != other for network in others for other in (one, *others)
               if network is not other)  # fmt: skip
    assert described(network()) == one and described(Whole) == others[-1]


def test_validation_data_of_another_kind_is_refused():
    for validation in ((TABLE[:, :2], TARGETS), (TABLE, WORDS[:, 0])):
        with pytest.raises(ProblemError, match="validation's .* must be like those to train on"):
            load_task(Problem(regression, (TABLE, TARGETS), validation, loss="mse"))
    classes = (np.arange(40) % 2).astype("int32")
    for split in ("validation", "test"):
        other = {split: (TABLE, classes + 1)}
        own = Problem(sequential((3,), dense(2)), (TABLE, classes), batch_size=8, **other)
        with pytest.raises(ProblemError, match=f"from 0 to 1 .* Received: {split}'s .* 1 to 2"):
            load_task(own)
    with pytest.raises(ProblemError, match="5 examples are too few"):
        load_task(Problem(regression, (TABLE[:5], TARGETS[:5]), loss="mse"))
    with keras_seed(0), pytest.raises(ProblemError, match="batched by 8. Received: batch_size=4"):
        dataset = tf.data.Dataset.from_tensor_slices((TABLE, TARGETS)).batch(8)
        load_task(Problem(regression, dataset, loss="mse", batch_size=4))


def test_data_by_name_are_checked_and_told_apart_like_arrays():
    def small(shape, classes):
        return sequential(shape, layers.Flatten, dense(classes))()

    def other(shape, classes):
        return sequential(shape, layers.Flatten, dense(4), dense(classes))()

    def softmax(shape, classes):
        return sequential(shape, layers.Flatten, dense(classes, activation="softmax"))()

    said = []
    one, two = (load_task(Problem(f, "digits"), report=said.append) for f in (small, other))
    assert one.name == "own Sequential of 7,850 weights" and one.name != two.name
    assert one.dataset.name != two.dataset.name and one.network != two.network
    assert one.dataset.name.startswith("digits, network ") and not one.dataset.in_place_of
    stood_in = load_task(Problem(small, "mnist"), "digits", report=said.append)
    assert stood_in.dataset.in_place_of == "mnist"
    with pytest.raises(ProblemError, match="are probabilities"):
        load_task(Problem(softmax, "digits"), report=said.append)
    with pytest.raises(ProblemError, match="batch_size .* Received: 0"):
        load_task(Problem(small, "digits", batch_size=0), report=said.append)
    with pytest.raises(ProblemError, match="digits brings its own examples"):
        load_task(Problem(small, "digits", (TABLE, TARGETS)), report=said.append)
    with pytest.raises(ProblemError, match="TFDS has no dataset of that name. Received: 'mnst'"):
        load_task(Problem(small, "mnst"), report=said.append)
    with pytest.raises(ProblemError, match="l2o.Problem.* Received: a function"):
        load_task(small)
