"""AmalgamatedOptimizer saved and loaded: configurations, models, weights, checkpoints, backups."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from made_weights import made_weights

from l2o import AmalgamatedOptimizer, Policy, save_policy
from l2o.rules import Adam, Decayed, Momentum, RNNProp, WarmUp, decaying, warmed_up

ROOT = Path(__file__).parents[1]


def policy(rule) -> Policy:
    return Policy(rule, made_weights(rule), {"problem": "a test"})


def optimizer(rule=None, **settings) -> AmalgamatedOptimizer:
    rule = rule or RNNProp(units=2, layers=1)
    return AmalgamatedOptimizer(policy(rule), **{"warmup_steps": 2} | settings)


def data() -> tuple[np.ndarray, np.ndarray]:
    inputs = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
    return inputs, inputs.sum(axis=1, keepdims=True)


def model(optimizer=None) -> keras.Model:
    keras.utils.set_random_seed(1)
    network = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    if optimizer is not None:
        network.compile(optimizer, "mse", jit_compile=False)
    return network


def train(network, epochs=1, **settings) -> keras.Model:
    network.fit(*data(), 4, epochs, shuffle=False, verbose=0, **settings)
    return network


def numbers(network) -> list[np.ndarray]:
    """Everything that training changes, of the model and of its optimizer."""
    return [*network.get_weights(), *(v.numpy() for v in network.optimizer.variables)]


def same(one, other):
    for a, b in zip(numbers(one), numbers(other), strict=True):
        np.testing.assert_array_equal(a, b)


def run(code: str, *arguments) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-W", "error::UserWarning", "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_configuration_brings_the_optimizer_back(any_rule):
    one = optimizer(any_rule, learning_rate=0.5, warmup_learning_rate=0.02, clipnorm=1.0, name="o")
    config = json.loads(json.dumps(one.get_config()))
    other = AmalgamatedOptimizer.from_config(config)
    assert other.get_config() == one.get_config()
    assert other.policy.rule == warmed_up(any_rule, 2, 0.02) and other.policy.card == {
        "problem": "a test"
    }
    assert (other.warmup_steps, other.warmup_learning_rate, other.name) == (2, 0.02, "o")
    for a, b in zip(other.policy.weights, one.policy.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_schedules_come_back_from_the_configuration():
    decay = keras.optimizers.schedules.ExponentialDecay(1.0, 10, 0.5)
    other = AmalgamatedOptimizer.from_config(optimizer(learning_rate=decay).get_config())
    other.build([keras.Variable(1.0)])
    assert other._learning_rate.get_config() == decay.get_config()


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("copied", ["keras.saving", "pickle", "deepcopy", "optimizers.get"])
def test_copies(copied, built):
    """Of the settings: a copy has no state, as Keras has it."""
    one = optimizer(clipvalue=0.5)
    if built:
        train(model(one))
    other = {
        "keras.saving": lambda o: keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(o)
        ),
        "optimizers.get": lambda o: keras.optimizers.get(keras.optimizers.serialize(o)),
        "pickle": lambda o: pickle.loads(pickle.dumps(o)),
        "deepcopy": copy.deepcopy,
    }[copied](one)
    assert other is not one and other.get_config() == one.get_config()
    assert not other.built and train(model(other)).optimizer is other


@pytest.mark.parametrize(
    "spoil",
    [
        lambda policy: policy["rule"].update(rule="os.system"),
        lambda policy: policy["rule"].update(units="many"),
        lambda policy: policy["rule"].update(extra=1),
        lambda policy: policy["weights"].pop(),
        lambda policy: policy["weights"][0].update(base64="!"),
        lambda policy: policy["weights"][0].update(shape=[3]),
        lambda policy: policy["weights"][0].update(dtype="object"),
        lambda policy: policy.pop("rule"),
        lambda policy: policy.pop("card"),
    ],
)
def test_spoilt_configurations_are_refused(spoil):
    config = optimizer().get_config()
    spoil(config["policy"])
    with pytest.raises(ValueError, match="polic|weights") as caught:
        AmalgamatedOptimizer.from_config(config)
    assert "\n" not in str(caught.value)


def test_a_saved_model_goes_on_bit_for_bit(any_rule, tmp_path):
    network = train(model(optimizer(any_rule, weight_decay=1e-5, use_ema=True)))
    network.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    same(network, again)
    assert int(again.optimizer.iterations) == 4
    same(train(network), train(again))


def test_a_saved_model_is_all_that_another_process_needs(tmp_path):
    """No path of the policy's, and `import l2o` alone."""
    save_policy(tmp_path / "policy", RNNProp(units=2), policy(RNNProp(units=2)).weights, {"a": 1})
    network = train(model(AmalgamatedOptimizer.load(tmp_path / "policy", warmup_steps=2)))
    network.save(tmp_path / "model.keras")
    shutil.rmtree(tmp_path / "policy")
    code = """
import sys, keras, l2o, numpy as np
model = keras.saving.load_model(sys.argv[1])
assert model.optimizer.policy.card == {"a": 1}
inputs, targets = np.load(sys.argv[2])["x"], np.load(sys.argv[2])["y"]
model.fit(inputs, targets, 4, 1, shuffle=False, verbose=0)
np.savez(sys.argv[3], *model.get_weights(), *(v.numpy() for v in model.optimizer.variables))
"""
    np.savez(tmp_path / "data.npz", x=data()[0], y=data()[1])
    done = run(code, tmp_path / "model.keras", tmp_path / "data.npz", tmp_path / "out.npz")
    assert done.returncode == 0, done.stderr[-2000:]
    train(network)
    with np.load(tmp_path / "out.npz") as there:
        for k, array in enumerate(numbers(network)):
            np.testing.assert_array_equal(there[f"arr_{k}"], array)


def test_weights_of_model_and_optimizer_in_a_file(tmp_path):
    network = train(model(optimizer()))
    network.save_weights(tmp_path / "all.weights.h5")
    other = train(model(optimizer()), 2)
    other.load_weights(tmp_path / "all.weights.h5")
    same(network, other)
    same(train(network), train(other))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_ema": True, "gradient_accumulation_steps": 2, "warmup_steps": 1},
        {"learning_rate": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("compiled", [False, True])
def test_weights_are_loaded_before_the_optimizer_is_built(settings, compiled, tmp_path):
    """As KerasTuner does: they are kept until then. In a compiled loop, too."""
    network = train(model(optimizer(**settings)))
    network.save_weights(tmp_path / "all.weights.h5")
    other = model(optimizer(**settings))
    other.load_weights(tmp_path / "all.weights.h5")
    assert not other.optimizer.built and int(other.optimizer._iterations) == 4
    if compiled:
        step = tf.function(lambda g: other.optimizer.apply(g, other.trainable_variables))
        gradients = [tf.ones(v.shape) for v in other.trainable_variables]
        for _ in range(3):
            step(gradients)
            network.optimizer.apply(gradients, network.trainable_variables)
    for a, b in zip(numbers(train(network)), numbers(train(other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_rate_that_was_set_after_loading_stays(tmp_path):
    train(model(optimizer())).save_weights(tmp_path / "all.weights.h5")
    other = model(optimizer())
    other.load_weights(tmp_path / "all.weights.h5")
    assert float(other.optimizer.learning_rate) == 1
    other.optimizer.learning_rate = 0.25
    assert float(train(other).optimizer.learning_rate) == 0.25
    assert int(other.optimizer.iterations) == 8


def test_state_of_another_policy_is_refused(tmp_path):
    train(model(optimizer())).save_weights(tmp_path / "all.weights.h5")
    rule = RNNProp(units=2, layers=1)
    other = model(AmalgamatedOptimizer(Policy(rule, [2 * w for w in made_weights(rule)])))
    other.optimizer.build(other.trainable_variables)
    with pytest.raises(ValueError, match="that of another policy of the same rule"):
        other.load_weights(tmp_path / "all.weights.h5")


def test_weights_that_do_not_fit_are_refused_whenever_it_is_built(tmp_path):
    train(model(optimizer())).save_weights(tmp_path / "all.weights.h5")
    other = optimizer()
    layers = keras.layers
    wide = keras.Sequential([layers.Input((3,)), layers.Dense(2), layers.Dense(1)])
    narrow = model(other)
    narrow.load_weights(tmp_path / "all.weights.h5")
    for _ in range(2):
        with pytest.raises(ValueError, match="They differ in .*0_.*kernel: first"):
            other.build(wide.trainable_variables)
    assert not other.built
    other.build(narrow.trainable_variables)
    assert int(other.iterations) == 4


def test_what_was_loaded_is_saved_before_there_is_a_state(tmp_path):
    network = train(model(optimizer()))
    network.save_weights(tmp_path / "all.weights.h5")
    other, last = model(optimizer()), model(optimizer())
    other.load_weights(tmp_path / "all.weights.h5")
    other.save_weights(tmp_path / "again.weights.h5")
    last.load_weights(tmp_path / "again.weights.h5")
    same(train(network), train(last))


def test_a_rate_that_becomes_a_schedule_is_saved_as_one(tmp_path):
    network = train(model(optimizer()))
    network.optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(1.0, 10, 0.5)
    network.compile(network.optimizer, "mse", jit_compile=False)
    train(network).save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    same(train(network), train(again))


def test_shipped_policies_go_by_name_in_a_configuration():
    one = AmalgamatedOptimizer.load("choice-large", averaging=0.5, warmup_steps=7)
    config = one.get_config()
    assert len(json.dumps(config)) < 1500
    assert config["policy"]["shipped"].startswith("choice-large/")
    other = AmalgamatedOptimizer.from_config(json.loads(json.dumps(config)))
    assert (other.policy.rule, other.policy.card) == (one.policy.rule, one.policy.card)
    for a, b in zip(other.policy.weights, one.policy.weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ({"fingerprint": "0123456789abcdef"}, "0123456789abcdef, those that ship .* [0-9a-f]{16}"),
        ({"shipped": "choice-huge/1"}, "choice-huge.*Shipped: "),
    ],
)
def test_a_shipped_policy_that_is_not_the_one_is_refused_in_one_line(spoilt, message):
    config = AmalgamatedOptimizer.load("choice-large").get_config()
    config["policy"] |= spoilt
    with pytest.raises(ValueError, match=message) as caught:
        AmalgamatedOptimizer.from_config(config)
    assert "\n" not in str(caught.value)


def test_weights_of_a_model_alone(tmp_path):
    """Saved before the optimizer has any state, or loaded before there is an optimizer."""
    model().save_weights(tmp_path / "plain.weights.h5")
    network = train(model(optimizer()))
    kept = [v.numpy() for v in network.optimizer.variables]
    network.load_weights(tmp_path / "plain.weights.h5")
    for a, b in zip(network.get_weights(), model().get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(network.optimizer.variables, kept, strict=True):
        np.testing.assert_array_equal(a.numpy(), b)
    network.save_weights(tmp_path / "all.weights.h5")
    other = model()
    other.load_weights(tmp_path / "all.weights.h5")
    for a, b in zip(network.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_variables_that_do_not_match_are_named(tmp_path):
    """Keras warns and goes on with fresh ones."""
    train(model(optimizer())).save_weights(tmp_path / "policy.weights.h5")
    train(model("adam")).save_weights(tmp_path / "adam.weights.h5")
    with pytest.raises(ValueError, match=r"are not those of .*Policy, averaging, use_ema"):
        model(optimizer()).load_weights(tmp_path / "adam.weights.h5")
    with pytest.raises(ValueError, match=r"They differ in .*policy_0 \(saved.*hidden0 \(saved"):
        train(model(optimizer(RNNProp(units=3, layers=1)))).load_weights(
            tmp_path / "policy.weights.h5"
        )
    with pytest.raises(ValueError, match=r"They differ in .*sequential.*dense.*first"):
        train(model(optimizer(Momentum(0.1)))).load_weights(tmp_path / "policy.weights.h5")
    with pytest.raises(ValueError, match=r"They differ in .*skipped_steps.*\(saved: \(3, 1\)"):
        train(model(optimizer())).load_weights(tmp_path / "adam.weights.h5")


def test_a_model_of_float16_is_loaded_where_that_is_the_policy(tmp_path, request):
    """Elsewhere Keras leaves out its loss scaling, and what was saved with it fits nothing."""
    before = keras.config.dtype_policy()
    request.addfinalizer(lambda: keras.config.set_dtype_policy(before))
    keras.config.set_dtype_policy("mixed_float16")
    network = train(model(optimizer()), 2)
    network.save(tmp_path / "half.keras")
    same(network, keras.saving.load_model(tmp_path / "half.keras"))
    keras.config.set_dtype_policy(before)
    with pytest.raises(ValueError, match=r'set_dtype_policy\("mixed_float16"\) before loading'):
        keras.saving.load_model(tmp_path / "half.keras")


def test_every_variable_has_a_path_of_its_own(any_rule):
    """Keras' HDF5 files and state trees go by them."""
    network = train(model(optimizer(any_rule)))
    paths = [v.path for v in network.optimizer.variables]
    assert len(set(paths)) == len(paths)


def test_the_weights_of_before_training_are_loaded_after_it(tmp_path):
    network = model(optimizer())
    network.save_weights(tmp_path / "start.weights.h5")
    start = network.get_weights()
    train(network)
    kept = [v.numpy() for v in network.optimizer.variables]
    with pytest.warns(UserWarning, match="was saved had no state"):
        network.load_weights(tmp_path / "start.weights.h5")
    for a, b in zip(network.get_weights(), start, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(network.optimizer.variables, kept, strict=True):
        np.testing.assert_array_equal(a.numpy(), b)


def test_a_model_that_was_frozen_after_training_says_how_to_load_it(tmp_path):
    network = train(model(optimizer()))
    network.layers[0].trainable = False
    network.save(tmp_path / "frozen.keras")
    with pytest.raises(ValueError, match="which layers are trainable .* compile=False"):
        keras.saving.load_model(tmp_path / "frozen.keras")
    again = keras.saving.load_model(tmp_path / "frozen.keras", compile=False)
    np.testing.assert_array_equal(again.get_weights()[0], network.get_weights()[0])


def test_tensorflow_checkpoints(tmp_path):
    network = train(model(optimizer()))
    checkpoint = tf.train.Checkpoint(model=network, optimizer=network.optimizer)
    path = checkpoint.save(tmp_path / "checkpoint")
    before = numbers(network)
    train(network)
    after = numbers(network)
    assert any((a != b).any() for a, b in zip(before, after, strict=True))
    checkpoint.restore(path).assert_consumed()
    for a, b in zip(numbers(network), before, strict=True):
        np.testing.assert_array_equal(a, b)
    other = model(optimizer())
    other.optimizer.build(other.trainable_variables)
    tf.train.Checkpoint(model=other, optimizer=other.optimizer).restore(path).assert_consumed()
    same(train(network), train(other))


class Interruption(Exception):
    """What ends a training in the middle."""


def test_interrupted_training_goes_on_from_its_backup(tmp_path):
    def fail(epoch, logs=None):
        if epoch == 1:
            raise Interruption

    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    stop = keras.callbacks.LambdaCallback(on_epoch_begin=fail)
    network = model(optimizer())
    with pytest.raises(Interruption):
        train(network, 3, callbacks=[backup, stop])
    again = model(optimizer())
    train(again, 3, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "backup")])
    same(again, train(model(optimizer()), 3))


def test_policies_load_from_their_directory(tmp_path):
    taught = policy(Adam(0.03))
    save_policy(tmp_path / "p", taught.rule, taught.weights, {"seed": 4})
    loaded = AmalgamatedOptimizer.load(tmp_path / "p", learning_rate=0.5, warmup_steps=7)
    assert loaded.policy.rule == WarmUp(Adam(0.03), 7) and loaded.policy.card == {"seed": 4}
    assert loaded.warmup_steps == 7 and float(loaded.learning_rate.numpy()) == 0.5
    assert AmalgamatedOptimizer.load(str(tmp_path / "p")).policy.rule == Adam(0.03)


def test_a_policy_brings_its_weight_decay(tmp_path):
    save_policy(tmp_path / "p", Decayed(Adam(0.03), 2e-4), [], {})
    brought = AmalgamatedOptimizer.load(tmp_path / "p")
    again = AmalgamatedOptimizer.from_config(brought.get_config())
    assert brought.weight_decay == again.weight_decay == decaying(again.policy.rule) == 2e-4
    for given in (None, 0, 1e-4):
        other = AmalgamatedOptimizer.load(tmp_path / "p", weight_decay=given)
        again = AmalgamatedOptimizer.from_config(other.get_config())
        assert other.weight_decay == again.weight_decay == given
    assert AmalgamatedOptimizer(Adam(0.03)).weight_decay is None


def test_import_and_load_are_light(tmp_path):
    """Under a second beyond Keras and TensorFlow (which load matplotlib where it is installed)."""
    taught = policy(RNNProp())
    save_policy(tmp_path / "p", taught.rule, taught.weights, {})
    code = """
import sys, time
import keras, tensorflow
keras.Variable(0.0)  # starts TensorFlow's runtime
theirs, start = set(sys.modules), time.process_time()
import l2o
l2o.AmalgamatedOptimizer.load(sys.argv[1])
print(time.process_time() - start)
heavy = {"tensorflow_datasets", "statsmodels", "matplotlib", "sklearn", "scipy", "problems"}
print(*(heavy & (set(sys.modules) - theirs)))
print(*(set(sys.modules) & {"tensorflow_datasets", "statsmodels", "problems"}))
"""
    done = run(code, tmp_path / "p")
    assert done.returncode == 0, done.stderr[-2000:]
    seconds, ours, all_of_them = done.stdout.split("\n")[:3]
    assert float(seconds) < 1 and not ours and not all_of_them
