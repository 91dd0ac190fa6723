"""Several problems in one training, by either estimator."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from made_tasks import task_of

import l2o
from l2o.amalgamation import amalgamate, estimators
from l2o.amalgamation.gain import attainable
from l2o.amalgamation.losses import META_LOSSES
from l2o.amalgamation.meta import MetaTraining
from l2o.errors import RunError
from l2o.problems import Batch, Problem
from l2o.rules import RNNProp

_RANDOM = np.random.default_rng(0)
_X = _RANDOM.normal(size=(60, 3)).astype("float32")
_Y = _X.sum(1, keepdims=True)
_SHORT = {
    "scheme": "none", "preset": "smoke", "truncation": 2, "unrolls": (4,), "alphas": (0.2,),
    "updates": 4, "warmup_steps": 1, "policy": RNNProp(units=2),
}  # fmt: skip


def network(width: int = 2):
    layers = keras.layers
    return keras.Sequential([layers.Input((3,)), layers.Dense(width, "tanh"), layers.Dense(1)])


def problem(width: int, factor: float = 1.0) -> Problem:
    return Problem(
        lambda: network(width), (_X, factor * _Y), validation=(), loss="mse", batch_size=8,
        name=f"sum by {width}",
    )  # fmt: skip


@pytest.mark.parametrize("estimator", ["backprop", "es"])
def test_names_and_own_problems_in_one_training(estimator, tmp_path, capsys):
    policy = l2o.train(
        [problem(2), problem(3), "small_diabetes_relu_32"], estimator=estimator,
        output=tmp_path / "run", **_SHORT,
    )  # fmt: skip
    assert policy.card["problem"] == "sum by 2, sum by 3, small_diabetes_relu_32"
    assert policy.card["data"].count("; ") >= 2 and "diabetes" in policy.card["data"]
    assert "Problem: small_diabetes_relu_32" in capsys.readouterr().out
    again = l2o.amalgamate(
        [problem(2), problem(3), "small_diabetes_relu_32"], estimator=estimator, pool="adam",
        strategy="none", **{k: v for k, v in _SHORT.items() if k != "scheme"},
    )  # fmt: skip
    for a, b in zip(policy.weights, again.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_backpropagation_takes_problems_in_turn(monkeypatch):
    seen, update = [], MetaTraining.update

    def spy(self, state, trajectories, key, first, *rest):
        seen.append((self.job.task.name, first))
        return update(self, state, trajectories, key, first, *rest)

    monkeypatch.setattr(MetaTraining, "update", spy)
    l2o.train([problem(2), problem(3)], **_SHORT)
    assert seen == [("sum by 2", 0)] * 2 + [("sum by 3", 1)] * 2


@pytest.mark.parametrize("meta_loss", META_LOSSES)
def test_losses_are_divided_by_what_there_is_to_gain(meta_loss, monkeypatch):
    """By one fit of Adam's with Keras; alone, a problem's loss is as it is."""
    task = task_of(lambda: network(4), Batch(_X, 3 * _Y), 8, "mse")
    start, found = attainable(task, META_LOSSES[meta_loss], 400)
    parameters, _ = task.initial(0)
    model = network(4)
    for variable, value in zip(
        model.trainable_variables, task.layout.unflatten(tf.constant(parameters)), strict=True
    ):
        variable.assign(value)
    rates = keras.optimizers.schedules.LearningRateSchedule

    class Cosine(rates):
        def __call__(self, step):
            t = tf.cast(step, tf.float32)
            return (
                3e-3
                * tf.minimum((t + 1) / 20, 1)
                * (1 + tf.cos(np.pi * tf.clip_by_value((t - 20) / 380, 0, 1)))
                / 2
            )

    model.compile(keras.optimizers.Adam(Cosine(), epsilon=1e-9), "mse")
    from l2o.tasks.batches import batches

    drawn = batches(task.dataset.train, [0], 8, 0, 420)
    pairs = list(zip(drawn.inputs, drawn.labels, strict=True))
    before = np.mean([model.evaluate(x, y, verbose=0) for x, y in pairs[:20]])
    losses = []
    for x, y in pairs[20:]:
        model.reset_metrics()
        losses.append(model.train_on_batch(x, y))
    measured = {"log": np.log, "difference": lambda x: x}[meta_loss]
    np.testing.assert_allclose(start, before, rtol=1e-5)
    np.testing.assert_allclose(found, measured(before) - measured(np.mean(losses[-80:])), rtol=1e-3)

    gains = []
    monkeypatch.setattr(estimators, "attainable", lambda *at: gains.append(at) or (1.0, 2.0))
    policy = l2o.train(problem(2), **_SHORT)
    assert gains == [] and policy.card["problem"] == "sum by 2"


@pytest.mark.parametrize("recipe, wanted", [("general", ["families"]), ("scale", ["mnist_cnn"])])
def test_a_recipe_has_problems_of_its_own(recipe, wanted, monkeypatch):
    def asked(problems, *_):
        raise RunError(f"asked for {problems}")

    monkeypatch.setattr(amalgamate, "load_tasks", asked)
    with pytest.raises(RunError, match=re.escape(f"asked for {wanted}")):
        l2o.train(recipe=recipe, preset="smoke")


def test_none_and_private_ones_are_refused():
    with pytest.raises(RunError, match="There is no problem to train on"):
        l2o.train([], **_SHORT)
    with pytest.raises(RunError, match="mnist_dp is trained with DP-SGD"):
        l2o.train(["small_diabetes_relu_32", "mnist_dp"], **_SHORT)
    with pytest.raises(TypeError, match="Several problems bring their own data, loss"):
        l2o.amalgamate([problem(2)], (_X, _Y), **{k: v for k, v in _SHORT.items() if k != "scheme"})
