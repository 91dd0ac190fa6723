"""What Keras offers every optimizer: clipping, decay, averages, accumulation, scaling, rates."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from l2o import AmalgamatedOptimizer
from l2o.rules import SGD, Adam, Decayed, Momentum, WarmUp

ONES = np.ones((2, 2), "float32")


def sgd(rate=1.0, **settings) -> AmalgamatedOptimizer:
    """Subtracts `rate` times the gradient, from the first step on."""
    return AmalgamatedOptimizer(SGD(rate), warmup_steps=0, **settings)


def matrix() -> keras.Variable:
    return keras.Variable([[1.0, 2.0], [3.0, 4.0]])


def close(actual, wanted, tolerance=1e-6):
    actual = keras.ops.convert_to_numpy(actual)
    np.testing.assert_allclose(actual, wanted, rtol=tolerance, atol=tolerance)


def test_apply_and_apply_gradients_are_one_step():
    optimizer, variable = sgd(), matrix()
    optimizer.apply([ONES], [variable])
    assert int(optimizer.apply_gradients([(ONES, variable)])) == 2
    optimizer.apply([ONES])
    close(variable, [[-2, -1], [0, 1]])
    assert int(optimizer.iterations) == 3


def test_apply_of_nothing_does_nothing():
    optimizer = sgd()
    optimizer.apply([], [])
    assert int(optimizer.iterations) == 0


def test_variables_it_was_not_built_with_are_refused():
    optimizer = sgd()
    with pytest.raises(ValueError, match="must already be built"):
        optimizer.apply([ONES])
    optimizer.build([matrix()])
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([ONES], [matrix()])
    with pytest.raises(ValueError, match="must match"):
        optimizer.apply([ONES, ONES])


def test_a_step_without_state_is_not_offered_on_tensorflow():
    optimizer, variable = sgd(), matrix()
    optimizer.build([variable])
    with pytest.raises(ValueError, match="not supported"):
        optimizer.stateless_apply(optimizer.variables, [ONES], [variable])


def test_it_is_a_keras_optimizer_and_a_tensorflow_one():
    assert isinstance(sgd(), keras.optimizers.Optimizer)
    assert isinstance(sgd(), tf.keras.optimizers.Optimizer)


def test_names_are_numbered_unless_given():
    first, second = sgd(), sgd()
    assert first.name.startswith("amalgamated_optimizer") and first.name != second.name
    assert sgd(name="mine").name == "mine"


def test_plain_tensorflow_variables_do():
    optimizer, keras_variable, variable = sgd(), matrix(), tf.Variable(ONES)
    optimizer.apply([ONES, ONES], [keras_variable, variable])
    close(variable, 0 * ONES)
    close(keras_variable, [[0, 1], [2, 3]])
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([ONES, None], [keras_variable, variable])
    close(variable, 0 * ONES)


def test_a_variable_that_is_named_twice_gets_the_sum():
    """As where two models share a layer."""
    optimizer, variable, other = sgd(), matrix(), matrix()
    optimizer.apply([ONES, 2 * ONES, None], [variable, other, variable])
    optimizer.apply([ONES, ONES, ONES], [variable, variable, other])
    close(variable, matrix().numpy() - 3)
    close(other, matrix().numpy() - 3)


def test_variables_may_all_be_empty():
    optimizer, empty = sgd(), keras.Variable(np.zeros((0, 3)))
    optimizer.apply([np.zeros((0, 3), "float32")], [empty])
    assert int(optimizer.iterations) == 1


def test_a_variable_of_unknown_shape_is_refused_in_one_line():
    variable = tf.Variable([1.0, 2.0], shape=tf.TensorShape(None), name="any")
    with pytest.raises(ValueError, match=r"a shape that is known. Received: any") as caught:
        sgd().build([variable])
    assert "\n" not in str(caught.value)


def test_variables_may_lie_on_several_devices():
    """Where one compiled function cannot assign to all of them."""

    def trained(*devices) -> list[np.ndarray]:
        variables = []
        for device in devices:
            with tf.device(device):
                variables.append(tf.Variable([[0.5, -1.0], [2.0, 0.1]]))
        optimizer = AmalgamatedOptimizer(Adam(0.1), warmup_steps=1)
        for step in (1.0, -0.5, 2.0):
            optimizer.apply([step * ONES, 3 * step * ONES], variables)
        return [v.numpy() for v in variables]

    apart, together = trained("CPU:0", "CPU:1"), trained("CPU:0", "CPU:0")
    np.testing.assert_allclose(apart, together, rtol=1e-6)


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ({"clipnorm": 1.0}, [[30 / 50, 40 / 50], [0.3, 0.4]]),
        ({"global_clipnorm": 1.0}, np.array([[30, 40], [0.3, 0.4]]) / np.sqrt(2500.25)),
        ({"clipvalue": 35.0}, [[30, 35], [0.3, 0.4]]),
        ({"clipnorm": 1e3}, [[30, 40], [0.3, 0.4]]),
        ({"global_clipnorm": 1e3}, [[30, 40], [0.3, 0.4]]),
        ({"clipvalue": 1e3}, [[30, 40], [0.3, 0.4]]),
        ({}, [[30, 40], [0.3, 0.4]]),
    ],
)
def test_clipping(setting, wanted):
    """A norm is each variable's, unless it is global."""
    variables = [keras.Variable(np.zeros(2, "float32")) for _ in range(2)]
    sgd(**setting).apply([np.array([30.0, 40.0]), np.array([0.3, 0.4])], variables)
    close(np.stack(variables), -np.array(wanted))


def test_clipping_comes_before_the_policy_sees_the_gradient():
    clipped = AmalgamatedOptimizer(Momentum(1.0), warmup_steps=1, clipvalue=1.0)
    plain = AmalgamatedOptimizer(Momentum(1.0), warmup_steps=1)
    first, second = matrix(), matrix()
    for size in (5.0, 0.5, 3.0):
        clipped.apply([size * ONES], [first])
        plain.apply([min(size, 1.0) * ONES], [second])
    close(first, second.numpy())


def test_weight_decay_is_multiplied_by_the_learning_rate():
    variable = keras.Variable(2.0)
    with pytest.warns(UserWarning, match="weight_decay=0.004 is multiplied by learning_rate"):
        optimizer = sgd(learning_rate=0.5, weight_decay=0.004)
    optimizer.apply([0.0], [variable])
    close(variable, 2 * (1 - 0.004 * 0.5))


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.filterwarnings("ignore:weight_decay")
def test_weight_decay_is_that_of_keras(warmup):
    """Of every rule alike: Keras' SGD, which decays first, takes the same steps."""
    rates = {"learning_rate": 0.2 if warmup else 0.1, "warmup_learning_rate": 0.5}
    ours = AmalgamatedOptimizer(SGD(1.0), warmup_steps=warmup, weight_decay=0.05, **rates)
    theirs = keras.optimizers.SGD(0.1, weight_decay=0.05)
    first, second = matrix(), matrix()
    for size in (1.0, -2.0, 0.5):
        ours.apply([size * ONES], [first])
        theirs.apply([size * ONES], [second])
    close(first, second.numpy())


@pytest.mark.parametrize("decay", [-1.0, float("nan"), float("inf"), "much"])
def test_a_weight_decay_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match="weight_decay must be a number >= 0. Received: "):
        sgd(weight_decay=decay)


@pytest.mark.filterwarnings("ignore:weight_decay")
def test_variables_are_excluded_from_weight_decay():
    by_name, by_list = sgd(weight_decay=0.1), sgd(weight_decay=0.1)
    plain, listed = keras.Variable(2.0), keras.Variable(2.0)
    named = keras.Variable(2.0, name="bias")
    by_name.exclude_from_weight_decay(var_names=["bias"])
    by_list.exclude_from_weight_decay(var_list=[listed])
    by_name.apply([0.0, 0.0], [plain, named])
    close([plain, named], [1.8, 2.0])
    by_list.apply([0.0, 0.0], [plain, listed])
    close([plain, listed], [1.62, 2.0])


@pytest.mark.filterwarnings("ignore:weight_decay")
def test_layers_are_excluded_from_weight_decay_by_their_names():
    layers = [
        keras.layers.Dense(1, name=name, kernel_initializer="ones") for name in ("body", "head")
    ]
    model = keras.Sequential([keras.Input((1,)), *layers])
    optimizer = sgd(weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["head"])
    weights = model.trainable_variables
    optimizer.apply([np.zeros(v.shape, "float32") for v in weights], weights)
    close([layer.kernel for layer in layers], [[[0.9]], [[1.0]]])


@pytest.mark.filterwarnings("ignore:weight_decay")
def test_variables_may_be_excluded_after_the_optimizer_is_built(tmp_path):
    """As the documentation has it for a loaded model, whose exclusions Keras does not save."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(sgd(weight_decay=0.1), "mse")
    model.fit(np.zeros((4, 2)), np.zeros(4), verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    loaded.optimizer.exclude_from_weight_decay(var_names=["kernel"])
    kernel = loaded.layers[0].kernel.numpy()
    loaded.fit(np.zeros((4, 2)), np.zeros(4), verbose=0)
    close(loaded.layers[0].kernel, kernel)


def test_a_rules_own_decay_stays_as_it_is():
    """Where it stands in the rule, and what it leaves out by a word in a variable's name."""
    rule = Decayed(WarmUp(SGD(1.0), 1, 0.5), 1e-3, ("bias",))
    optimizer = AmalgamatedOptimizer(rule)
    assert optimizer.policy.rule == rule and optimizer.weight_decay == 1e-3
    kernel, bias = keras.Variable(2.0, name="kernel"), keras.Variable(2.0, name="bias")
    for _ in range(2):
        optimizer.apply([0.0, 0.0], [kernel, bias])
    close([kernel, bias], [2 * 0.999**2, 2.0])


def test_little_weight_decay_is_not_warned_of(recwarn):
    sgd(weight_decay=6e-4)
    assert not recwarn.list


def test_moving_averages_of_the_variables():
    optimizer, variable = sgd(use_ema=True, ema_momentum=0.9), matrix()
    start, average = variable.numpy(), None
    for k in range(1, 4):
        optimizer.apply([ONES], [variable])
        now = start - k
        average = now if average is None else 0.9 * average + 0.1 * now
        close(variable, now)
        close(optimizer._model_variables_moving_average[0], average)
    optimizer.finalize_variable_values([variable])
    close(variable, average)


def test_moving_averages_overwrite_the_variables():
    optimizer = sgd(use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=2)
    variable, start = matrix(), matrix().numpy()
    optimizer.apply([ONES], [variable])
    close(variable, start - 1)
    optimizer.apply([ONES], [variable])
    close(variable, 0.9 * (start - 1) + 0.1 * (start - 2))


@pytest.mark.filterwarnings("ignore:weight_decay")
def test_accumulated_gradients_are_one_step_of_their_mean():
    """Warm-up counts such steps, and so does the rule."""
    settings = {"warmup_steps": 1, "weight_decay": 0.05}
    whole = AmalgamatedOptimizer(Adam(0.1), **settings)
    parts = AmalgamatedOptimizer(Adam(0.1), gradient_accumulation_steps=3, **settings)
    first, second = matrix(), matrix()
    for gradients in np.random.default_rng(0).normal(size=(4, 3, 2, 2)).astype("float32"):
        whole.apply([gradients.mean(axis=0)], [first])
        for k, gradient in enumerate(gradients):
            before = second.numpy()
            parts.apply([gradient], [second])
            assert np.array_equal(second.numpy(), before) == (k < 2)
        close(second, first.numpy())
    assert int(parts.iterations) == 4 and float(parts._slots.shared["count"].numpy()) == 4


def test_constraints_hold_after_the_step():
    variable = keras.Variable([1.0, 2.0])
    variable.constraint = keras.constraints.NonNeg()
    sgd().apply([np.array([3.0, 0.5])], [variable])
    close(variable, [0, 1.5])


def test_scaled_losses_are_unscaled():
    optimizer, variable = sgd(loss_scale_factor=1024.0), matrix()
    assert optimizer.scale_loss(1.0) == 1024
    optimizer.apply([1024 * ONES], [variable])
    close(variable, [[0, 1], [2, 3]])


def test_dynamic_loss_scaling():
    """The wrapper skips what overflows itself, so our count stays."""
    inner = sgd()
    optimizer, variable = keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0), matrix()
    optimizer.apply([8 * ONES], [variable])
    close(variable, [[0, 1], [2, 3]])
    optimizer.apply([np.inf * ONES], [variable])
    optimizer.apply([4 * ONES], [variable])
    close(variable, [[-1, 0], [1, 2]])
    assert inner.skipped_steps == 0


def test_gradients_that_overwrite_their_variables_do():
    """Scales of float8 training are such variables."""
    optimizer, scale, variable = sgd(), matrix(), matrix()
    scale.overwrite_with_gradient = True
    optimizer.apply([ONES, ONES], [scale, variable])
    close(scale, ONES)
    close(variable, [[0, 1], [2, 3]])


def test_learning_rates_may_be_schedules_functions_and_set():
    decay = keras.optimizers.schedules.PiecewiseConstantDecay([0, 1], [1.0, 0.1, 0.01])
    for rate, drops in ((decay, [1.0, 0.1, 0.01]), (lambda: 0.5, [0.5] * 3), (2, [2.0] * 3)):
        optimizer, variable = sgd(learning_rate=rate), keras.Variable([0.0])
        places = []
        for _ in drops:
            optimizer.apply([np.ones(1)], [variable])
            places.append(float(variable.numpy()[0]))
        close(-np.diff([0.0, *places]), drops)
    optimizer, variable = sgd(learning_rate=1.0), keras.Variable([0.0])
    optimizer.learning_rate = 0.25
    optimizer.apply([np.ones(1)], [variable])
    close(variable, [-0.25])
    assert float(optimizer.learning_rate.numpy()) == 0.25


def test_a_rate_that_becomes_a_schedule_is_no_longer_a_variable():
    optimizer = sgd()
    count = len(optimizer.variables)
    optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(1.0, 10, 0.5)
    assert len(optimizer.variables) == count - 1


def test_weights_go_from_one_optimizer_to_another():
    one, other = (AmalgamatedOptimizer(Adam(0.1), warmup_steps=1) for _ in range(2))
    first, second = matrix(), matrix()
    for _ in range(3):
        one.apply([ONES], [first])
    with pytest.raises(ValueError, match="not yet been built|not been built|has not"):
        other.set_weights(one.variables)
    other.build([second])
    other.set_weights(one.variables)
    second.assign(first)
    for optimizer, variable in ((one, first), (other, second)):
        optimizer.apply([2 * ONES], [variable])
    np.testing.assert_array_equal(first.numpy(), second.numpy())
