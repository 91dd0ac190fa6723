"""AmalgamatedOptimizer in `fit` and in custom loops: modes, callbacks, precision, frozen layers."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from made_weights import made_weights

from l2o import AmalgamatedOptimizer, Policy
from l2o.rules import SGD, Adam, RNNProp
from l2o.saved import separated

_RULE = RNNProp(units=2, layers=1, scale=0.03)
_POLICY = Policy(_RULE, made_weights(_RULE))


def optimizer(**settings) -> AmalgamatedOptimizer:
    return AmalgamatedOptimizer(_POLICY, **{"warmup_steps": 3} | settings)


def data(examples=64) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(examples, 4)).astype("float32")
    return inputs, (inputs @ generator.normal(size=(4, 1))).astype("float32")


def model() -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = keras.layers
    return keras.Sequential([layers.Input((4,)), layers.Dense(3, "tanh"), layers.Dense(1)])


def fitted(optimizer, epochs=2, callbacks=(), network=None, **settings) -> keras.Model:
    network = network or model()
    network.compile(optimizer, "mse", **settings)
    inputs, targets = data()
    network.history_ = network.fit(
        inputs, targets, 8, epochs, shuffle=False, verbose=0, callbacks=list(callbacks)
    ).history
    return network


def weights_of(network) -> np.ndarray:
    return np.concatenate([w.ravel() for w in network.get_weights()])


def by_hand(optimizer, loop, epochs=2) -> np.ndarray:
    """Weights after the same training in a custom loop."""
    network, (inputs, targets) = model(), data()
    loss_of = keras.losses.MeanSquaredError()

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, network(x, training=True))
        gradients = tape.gradient(loss, network.trainable_variables)
        if loop == "apply":
            optimizer.apply(gradients, network.trainable_variables)
        else:
            optimizer.apply_gradients(zip(gradients, network.trainable_variables, strict=True))

    if loop == "compiled":
        optimizer.build(network.trainable_variables)
        step = tf.function(step)
    for _ in range(epochs):
        for k in range(0, len(inputs), 8):
            step(inputs[k : k + 8], targets[k : k + 8])
    return weights_of(network)


@pytest.fixture(scope="module")
def eager() -> np.ndarray:
    """Weights after an eager custom loop."""
    return by_hand(optimizer(), "apply")


@pytest.mark.parametrize(
    "settings",
    [
        {"jit_compile": False},
        {"jit_compile": "auto"},
        {"jit_compile": True},
        {"run_eagerly": True},
        {"steps_per_execution": 4, "jit_compile": False},
        {"steps_per_execution": 5, "jit_compile": True},
    ],
    ids=str,
)
def test_every_mode_of_fit_takes_the_same_steps(settings, eager):
    network = fitted(optimizer(), **settings)
    np.testing.assert_allclose(weights_of(network), eager, rtol=1e-4, atol=1e-5)
    assert int(network.optimizer.iterations) == 16
    assert network.history_["loss"][1] < network.history_["loss"][0]


@pytest.mark.parametrize("loop", ["apply_gradients", "compiled"])
def test_custom_loops_take_the_steps_of_fit(loop, eager):
    np.testing.assert_allclose(by_hand(optimizer(), loop), eager, rtol=1e-4, atol=1e-5)


def test_single_batches_can_be_trained_on(eager):
    network, (inputs, targets) = model(), data()
    network.compile(optimizer(), "mse")
    for k in [*range(0, 64, 8)] * 2:
        network.train_on_batch(inputs[k : k + 8], targets[k : k + 8])
    np.testing.assert_allclose(weights_of(network), eager, rtol=1e-4, atol=1e-5)


def test_fit_may_be_called_again_and_again(eager):
    network, (inputs, targets) = model(), data()
    network.compile(optimizer(), "mse")
    for _ in range(2):
        network.fit(inputs, targets, 8, epochs=1, shuffle=False, verbose=0)
    np.testing.assert_allclose(weights_of(network), eager, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # Keras says so of each epoch
@pytest.mark.parametrize("settings", [{}, {"steps_per_execution": 3}], ids=str)
def test_data_may_be_of_unknown_length(settings, eager):
    network, (inputs, targets) = model(), data()
    batches = tf.data.Dataset.from_generator(
        lambda: ((inputs[k : k + 8], targets[k : k + 8]) for k in range(0, 64, 8)),
        output_signature=(tf.TensorSpec((None, 4)), tf.TensorSpec((None, 1))),
    )
    assert batches.cardinality() == tf.data.UNKNOWN_CARDINALITY
    network.compile(optimizer(), "mse", **settings)
    network.fit(batches, epochs=2, verbose=0, shuffle=False)
    np.testing.assert_allclose(weights_of(network), eager, rtol=1e-4, atol=1e-5)


def test_folds_train_alike_after_all_state_is_set_to_zero():
    """As users do between folds: all variables of the optimizer but its learning rate."""
    network = fitted(optimizer(weight_decay=1e-4))
    first = weights_of(network)
    network.set_weights(model().get_weights())
    for variable in network.optimizer.variables:
        if variable is not network.optimizer.learning_rate:
            variable.assign(np.zeros(variable.shape, str(variable.dtype)))
    network.fit(*data(), 8, 2, shuffle=False, verbose=0)
    np.testing.assert_array_equal(weights_of(network), first)


@pytest.mark.parametrize(
    "settings",
    [
        {"clipnorm": 0.1},
        {"global_clipnorm": 0.1},
        {"clipvalue": 0.1},
        {"weight_decay": 1e-4},
        {"use_ema": True, "ema_momentum": 0.9},
        {"use_ema": True, "ema_overwrite_frequency": 4},
        {"gradient_accumulation_steps": 2},
        {"loss_scale_factor": 128.0},
    ],
    ids=str,
)
def test_settings_act_in_fit_as_by_hand(settings):
    network = fitted(optimizer(**settings), epochs=1)
    by_hand_too = optimizer(**settings)
    if "loss_scale_factor" in settings:
        by_hand_too.loss_scale_factor = None
    weights = by_hand(by_hand_too, "compiled", epochs=1)
    if settings.get("use_ema"):
        averages = by_hand_too._model_variables_moving_average
        weights = np.concatenate([a.numpy().ravel() for a in averages])
    np.testing.assert_allclose(weights_of(network), weights, rtol=1e-4, atol=1e-5)


@pytest.fixture(params=["mixed_float16", "mixed_bfloat16"])
def mixed(request):
    """Models are of mixed precision within the test."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("jit", [False, True])
def test_mixed_precision(mixed, jit):
    """Keras scales float16's losses by itself; state and variables stay float32."""
    network = fitted(optimizer(), jit_compile=jit)
    inner = getattr(network.optimizer, "inner_optimizer", network.optimizer)
    scaled = isinstance(network.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (mixed == "mixed_float16")
    assert isinstance(inner, AmalgamatedOptimizer)
    assert {v.dtype for v in inner.variables if "iteration" not in v.name} == {"float32", "int32"}
    assert {v.dtype for v in network.trainable_variables} == {"float32"}
    assert network.history_["loss"][1] < network.history_["loss"][0] < np.inf


def test_frozen_layers_stay_and_have_no_state():
    network = model()
    network.layers[0].trainable = False
    before = network.layers[0].get_weights()
    fitted(optimizer(), network=network)
    for old, new in zip(before, network.layers[0].get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    slots = network.optimizer._slots
    assert len(separated(slots.groups, slots.states)) == 2


@pytest.mark.parametrize("settings", [{}, {"clipnorm": 0.5}, {"global_clipnorm": 0.5}], ids=str)
def test_embeddings_train(settings):
    layers = keras.layers
    stack = [layers.Input((5,)), layers.Embedding(10, 3), layers.Flatten(), layers.Dense(1)]
    network = keras.Sequential(stack)
    network.compile(optimizer(**settings), "mse", jit_compile=False)
    before = network.get_weights()[0]
    words = np.tile(np.arange(5), (8, 1)) % 4
    network.fit(words, np.ones((8, 1)), 4, epochs=3, verbose=0)
    moved = (network.get_weights()[0] != before).any(axis=1)
    assert moved[:4].all()


def test_layers_of_any_kind_train():
    """Convolution, normalization and attention: variables of ranks 1 to 4."""
    layers = keras.layers
    inputs = x = keras.Input((6, 6, 1))
    x = layers.BatchNormalization()(layers.Conv2D(2, 3)(x))
    x = layers.Reshape((16, 2))(x)
    x = layers.MultiHeadAttention(1, 2)(x, x)
    network = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(x)))
    images = np.random.default_rng(0).normal(size=(16, 6, 6, 1)).astype("float32")
    network.compile(AmalgamatedOptimizer(Adam(0.01), warmup_steps=0), "mse", jit_compile=False)
    losses = network.fit(images, images.mean(axis=(1, 2)), 8, 5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_rates_follow_schedulers():
    rates = []
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch: 0.5**epoch)
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: rates.append(float(network.optimizer.learning_rate.numpy()))
    )
    network = model()
    fitted(optimizer(), 3, [scheduler, note], network)
    assert rates == [1.0, 0.5, 0.25]


def test_a_rate_of_zero_stops_all():
    network = model()
    start = weights_of(network)
    fitted(optimizer(warmup_steps=1, learning_rate=0.0), 1, network=network)
    np.testing.assert_array_equal(weights_of(network), start)


def test_rates_fall_on_plateaus():
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=0, min_delta=1e9)
    network = fitted(optimizer(), 3, [plateau])
    assert float(network.optimizer.learning_rate.numpy()) == 0.25


def test_a_schedule_counts_the_steps_of_the_warm_up_and_scales_them():
    """A rate of 5 in the warm-up, of 1 after it, of 0 from the second epoch on."""
    decay = keras.optimizers.schedules.PiecewiseConstantDecay([2, 7], [5.0, 1.0, 0.0])
    stopped = fitted(optimizer(learning_rate=decay), 2)
    short = fitted(optimizer(warmup_learning_rate=0.05), 1)
    np.testing.assert_allclose(weights_of(stopped), weights_of(short), rtol=1e-6)


@pytest.mark.parametrize("settings", [{"jit_compile": True}, {"run_eagerly": True}], ids=str)
def test_fit_warns_once_of_skipped_steps_until_they_are_set_back(settings):
    network, (inputs, targets) = model(), data()
    targets[5] = np.nan
    network.compile(optimizer(), "mse", **settings)
    for back, steps, warned in ((False, 16, 1), (True, 16, 1), (False, 32, 0)):
        for variable in network.optimizer.variables if back else ():
            variable.assign(np.zeros(variable.shape))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            network.fit(inputs, targets, 8, 2, shuffle=False, verbose=0)
        assert int(network.optimizer.iterations) == steps == 8 * network.optimizer.skipped_steps
        assert np.isfinite(weights_of(network)).all()
        assert sum("steps so far were skipped" in str(w.message) for w in caught) == warned


def test_a_compiled_optimizer_may_be_a_dictionary(eager):
    network = fitted(keras.saving.serialize_keras_object(optimizer()))
    assert isinstance(network.optimizer, AmalgamatedOptimizer)
    np.testing.assert_allclose(weights_of(network), eager, rtol=1e-4, atol=1e-5)


def test_another_model_needs_another_optimizer():
    used = AmalgamatedOptimizer(SGD(0.1), warmup_steps=0)
    fitted(used, 1)
    with pytest.raises(ValueError, match="Unknown variable"):
        fitted(used, 1, run_eagerly=True)


@pytest.mark.parametrize("accumulated", [None, 2])
def test_a_fit_that_is_all_warm_up_says_so(accumulated, recwarn):
    steps = 8 // (accumulated or 1)
    settings = {"warmup_steps": steps, "gradient_accumulation_steps": accumulated}
    network = fitted(AmalgamatedOptimizer(SGD(0.1), **settings), 1)
    (warning,) = [str(w.message) for w in recwarn.list]
    assert f"all {steps} steps so far were warm-up, which is plain SGD" in warning
    network.fit(*data(), 8, verbose=0)  # the policy has taken over
    assert len(recwarn) == 1
