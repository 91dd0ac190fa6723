"""A fit whose length the optimizer knows: `steps` and `epochs`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import l2o
from l2o.policies.checkpoint import Policy
from l2o.rules import SGD, Adam, Horizon, Layout, Scheduled, TensorChoice, cosine

_GENERATOR = np.random.default_rng(0)
_X = _GENERATOR.normal(size=(32, 3)).astype("float32")
_Y = _X @ _GENERATOR.normal(size=(3, 1)).astype("float32")
_RULE = TensorChoice(units=3)
_POLICY = Policy(_RULE, [_GENERATOR.normal(size=s) / 3 for s in _RULE.weight_shapes()])


def model(optimizer) -> keras.Model:
    keras.utils.set_random_seed(0)
    made = keras.Sequential(
        [keras.layers.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)]
    )
    made.compile(optimizer=optimizer, loss="mse")
    return made


def losses(made: keras.Model, epochs: int, first: int = 0) -> list[float]:
    """Of epochs of four batches."""
    fit = made.fit(
        _X, _Y, batch_size=8, epochs=epochs, initial_epoch=first, shuffle=False, verbose=0
    )
    return fit.history["loss"]


def test_the_rule_is_told():
    """Against a plain loop over the flat vector."""
    made = model(l2o.AmalgamatedOptimizer(_POLICY, steps=12, epochs=3))
    variables = made.trainable_variables
    layout = Layout.of(variables, [v.path for v in variables])
    x, state = layout.flatten([v.value for v in variables]), _RULE.initial_state(layout)
    weights = [tf.constant(w, "float32") for w in _POLICY.weights]
    losses(made, 3)
    for t in range(12):
        here = slice(t % 4 * 8, t % 4 * 8 + 8)
        with tf.GradientTape() as tape:
            tape.watch(x)
            out, _ = made.stateless_call(layout.unflatten(x), [], _X[here])
            loss = tf.reduce_mean(tf.square(out - _Y[here]))
        slope = tape.gradient(loss, x)
        step, state = _RULE.update(weights, slope, x, state, layout, Horizon(12.0, 3.0))
        x = x - step
    np.testing.assert_allclose(
        layout.flatten([v.value for v in variables]), x, rtol=1e-3, atol=1e-5
    )


def test_what_is_not_told_is_not_known():
    told = losses(model(l2o.AmalgamatedOptimizer(_POLICY, steps=12, epochs=3)), 3)
    other = losses(model(l2o.AmalgamatedOptimizer(_POLICY, steps=24, epochs=3)), 3)
    untold = losses(model(l2o.AmalgamatedOptimizer(_POLICY)), 3)
    assert not np.allclose(told, other) and not np.allclose(told, untold)


def test_a_schedule_has_the_steps_of_the_fit():
    open_ended = l2o.AmalgamatedOptimizer(Scheduled(Adam(0.1), cosine(0.2)), steps=12)
    own = l2o.AmalgamatedOptimizer(Scheduled(Adam(0.1), cosine(0.2, steps=12)))
    np.testing.assert_allclose(losses(model(open_ended), 3), losses(model(own), 3), rtol=1e-6)


def test_saved_with_the_model_and_gone_on_with(tmp_path):
    whole = losses(model(l2o.AmalgamatedOptimizer(_POLICY, steps=12, epochs=3)), 3)
    made = model(l2o.AmalgamatedOptimizer(_POLICY, steps=12, epochs=3))
    losses(made, 1)
    made.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    config = again.optimizer.get_config()
    assert (config["steps"], config["epochs"]) == (12.0, 3.0)
    np.testing.assert_allclose(losses(again, 3, first=1), whole[1:], rtol=1e-5)


def test_steps_are_updates_where_gradients_accumulate():
    """Two batches of 8 an update are one of 16."""
    settings = {"steps": 6, "epochs": 3}
    one = model(l2o.AmalgamatedOptimizer(_POLICY, **settings, gradient_accumulation_steps=2))
    two = model(l2o.AmalgamatedOptimizer(_POLICY, **settings))
    losses(one, 3)
    two.fit(_X, _Y, batch_size=16, epochs=3, shuffle=False, verbose=0)
    for a, b in zip(one.trainable_variables, two.trainable_variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["steps", "epochs"])
@pytest.mark.parametrize("value", [0, -3, float("nan"), float("inf"), "many"])
def test_what_is_no_length_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a number above 0. Received: "):
        l2o.AmalgamatedOptimizer(SGD(0.1), **{name: value})


def told(made: keras.Model, data=(_X, _Y), **settings) -> list[float]:
    """A fit of batches of eight whose optimizer is told by the callback."""
    return made.fit(
        *data, batch_size=None if len(data) == 1 else 8, shuffle=False, verbose=0,
        callbacks=[l2o.FitHorizon()], **settings,
    ).history["loss"]  # fmt: skip


def test_the_callback_tells_what_the_optimizer_could_have_been_given():
    given = losses(model(l2o.AmalgamatedOptimizer(_POLICY, steps=12, epochs=3)), 3)
    made = model(l2o.AmalgamatedOptimizer(_POLICY))
    np.testing.assert_array_equal(told(made, epochs=3), given)
    config = made.optimizer.get_config()
    assert (config["steps"], config["epochs"]) == (12.0, 3.0)


def test_a_fit_that_follows_another_has_both_behind_it_and_ahead():
    """Of 20 steps the first eight are behind; and one that is taken up again is as if never cut."""
    first = model(l2o.AmalgamatedOptimizer(_POLICY, steps=20, epochs=5))
    losses(first, 2)
    wanted = losses(first, 3)
    made = model(l2o.AmalgamatedOptimizer(_POLICY))
    made.optimizer.set_horizon(20, 5)
    losses(made, 2)
    made.optimizer.set_horizon()
    np.testing.assert_array_equal(told(made, epochs=3), wanted)
    whole = told(model(l2o.AmalgamatedOptimizer(_POLICY)), epochs=3)
    made = model(l2o.AmalgamatedOptimizer(_POLICY, steps=12, epochs=3))
    losses(made, 1)
    np.testing.assert_array_equal(told(made, epochs=3, initial_epoch=1), whole[1:])


def test_the_callback_counts_updates_and_sees_through_a_loss_scale():
    made = model(l2o.AmalgamatedOptimizer(_POLICY, gradient_accumulation_steps=2))
    told(made, epochs=3)
    assert made.optimizer.get_config()["steps"] == 6
    made = model(l2o.AmalgamatedOptimizer(_POLICY, gradient_accumulation_steps=8))
    told(made, epochs=1)  # which ends before its first update
    assert made.optimizer.get_config()["steps"] == 1
    made = model(keras.optimizers.LossScaleOptimizer(l2o.AmalgamatedOptimizer(_POLICY)))
    told(made, epochs=3)
    assert made.optimizer.inner_optimizer.get_config()["steps"] == 12


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_data_of_unknown_length_and_other_optimizers():
    made = model(l2o.AmalgamatedOptimizer(_POLICY))
    unknown = tf.data.Dataset.from_tensor_slices((_X, _Y)).batch(8).filter(lambda *_: True)
    with pytest.warns(UserWarning, match="length of the data is not known.*steps="):
        told(made, (unknown,), epochs=1)
    assert "steps" not in made.optimizer.get_config()
    with pytest.raises(ValueError, match="FitHorizon is for an AmalgamatedOptimizer.*: Adam"):
        told(model("adam"), epochs=1)
