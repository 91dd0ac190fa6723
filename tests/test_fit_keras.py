"""l2o's fits against `keras.Model.fit`, step for step, for every optimizer that has a name."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from l2o import AmalgamatedOptimizer
from l2o.evaluation.baselines import get_candidates, keras_optimizers
from l2o.evaluation.fit import Fit
from l2o.evaluation.search import SPACES
from l2o.problems import Problem
from l2o.rules import TEACHERS, get_teacher
from l2o.rules.scheduled import SHAPES
from l2o.tasks.batches import batch_indices
from l2o.tasks.task import Task, keras_seed

BATCH, STEPS, EPOCHS, SEED = 8, 8, 15, 3  # 64 examples; the warm-up is 100 of the 120 steps
RATE, DECAY = 0.02, 0.1

pytestmark = pytest.mark.usefixtures("float64")  # rounding alone would turn steps of a sign


@pytest.fixture
def network():
    """In place of the usual one, whose convolution and batch norm take long to trace."""
    layers = keras.layers
    return lambda: keras.Sequential(
        [layers.Input((8, 8, 1)), layers.Flatten(), layers.Dense(4, "tanh"), layers.Dense(3)]
    )


class Losses(keras.callbacks.Callback):
    """The loss of every batch by itself, where Keras has the mean so far."""

    def __init__(self):
        super().__init__()
        self.found = []

    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        self.found.append(logs["loss"])


def by_keras(network, data, optimizer) -> tuple[list[float], float]:
    """Every batch's loss in `model.fit`, and the loss of all examples in the end."""
    with keras_seed(SEED):
        model = network()
    if isinstance(optimizer, keras.optimizers.ScheduleFreeAdamW):
        optimizer.build(model.trainable_variables)  # or Keras 3.15 starts its z at zero
    loss, losses = keras.losses.SparseCategoricalCrossentropy(from_logits=True), Losses()
    model.compile(optimizer, loss, jit_compile=False)
    order = batch_indices([SEED], len(data.labels), BATCH, 0, EPOCHS * STEPS).ravel()
    inputs, labels = data.inputs[order], data.labels[order]
    model.fit(inputs, labels, BATCH, 1, shuffle=False, verbose=0, callbacks=[losses])
    return losses.found, model.evaluate(data.inputs, data.labels, verbose=0)


def same_as_keras(name, network, data, optimizer) -> None:
    (candidate,) = get_candidates(name)
    examples = tf.nest.map_structure(tf.constant, data)
    fit = Fit(Task(Problem(network)), candidate.rule, candidate.weights, examples, examples, BATCH)
    ours, (losses, last) = fit.run(SEED, EPOCHS), by_keras(network, data, optimizer)
    np.testing.assert_allclose(ours.losses, losses, rtol=1e-5)
    assert len(losses) == EPOCHS * STEPS and max(losses[-STEPS:]) < losses[0]
    if "ScheduleFree" not in name:  # which is scored at an average that Keras does not set
        assert ours.epochs[-1].validation_loss == pytest.approx(last, rel=1e-5)


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teachers_fit_is_that_of_its_keras_optimizer(name, network, data):
    optimizer = AmalgamatedOptimizer(get_teacher(name), warmup_steps=100, warmup_learning_rate=0.01)
    same_as_keras(name, network, data, optimizer)


@pytest.mark.parametrize("name", ["choice-large", "rnnprop", "original", "scale"])
def test_a_shipped_policys_fit_is_that_of_its_keras_optimizer(name, network, data):
    """With the warm-up, the averaging and the decay that it brings."""
    same_as_keras(name, network, data, AmalgamatedOptimizer.load(name))


class Rates(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that rises over the first twentieth of the fit, and then falls as its name says."""

    def __init__(self, shape: str):
        total = EPOCHS * STEPS
        rise = total // 20
        fall = {
            "constant": lambda part: 1.0,
            "linear": lambda part: 1 - part,
            "cosine": lambda part: math.cos(math.pi / 2 * part) ** 2,
        }[shape]
        rates = [(k + 1) / rise for k in range(rise)]
        rates += [fall(k / (total - rise)) for k in range(total - rise)]
        self.rates = RATE * np.array(rates)

    def __call__(self, step):
        return tf.gather(tf.constant(self.rates), tf.cast(step, tf.int32))


def watching(kind: type) -> type:
    """A Keras optimizer whose first 100 steps are plain SGD's, while its moments follow."""

    class Watching(kind):
        def apply(self, grads, trainable_variables=None):
            before = [tf.identity(v.value) for v in trainable_variables]
            steps = tf.identity(self.iterations.value)
            super().apply(grads, trainable_variables)
            for variable, value, gradient in zip(trainable_variables, before, grads, strict=True):
                sgd = value - 0.01 * gradient
                variable.assign(tf.where(steps < 100, sgd, variable.value))

    return Watching


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SPACES)
def test_a_scheduled_baselines_fit_is_that_of_model_fit(name, shape, network, data):
    """What can be tuned, as a search has it."""
    word, settings = f"keras:{name}@{RATE}+{shape}", {}
    if SPACES[name].decay:
        both = ("weight_decay", "adam_weight_decay") if name == "Muon" else ("weight_decay",)
        word, settings = f"{word}+decay{DECAY}", dict.fromkeys(both, DECAY)
    optimizer = keras_optimizers()[name](learning_rate=Rates(shape), **settings)
    same_as_keras(word, network, data, optimizer)


@pytest.mark.parametrize("name", keras_optimizers())
def test_an_unscheduled_baselines_fit_is_that_of_model_fit_after_a_warm_up(name, network, data):
    optimizer = watching(keras_optimizers()[name])(learning_rate=RATE)
    same_as_keras(f"keras:{name}@{RATE}", network, data, optimizer)
