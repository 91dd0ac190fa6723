"""AmalgamatedOptimizer under tf.distribute: replicas and workers take one device's steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from made_weights import made_weights
from ports import free_ports

from l2o import AmalgamatedOptimizer, Policy
from l2o.rules import SGD, Adam, RNNProp

ROOT = Path(__file__).parents[1]
ONES = np.ones((2, 2), "float32")
GRADIENTS = np.random.default_rng(0).normal(size=(6, 2, 2, 2)).astype("float32")


def optimizer(rule=None, **settings) -> AmalgamatedOptimizer:
    rule = rule or RNNProp(units=2, layers=1)
    policy = Policy(rule, made_weights(rule))
    return AmalgamatedOptimizer(policy, **{"warmup_steps": 2} | settings)


@pytest.fixture
def strategy():
    """Reduces without collective operations: those of several strategies in a process clash."""
    one_device = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=one_device)


def walk(strategy, optimizer, gradients, variable):
    """Applies gradients [steps, replicas, ...], each replica its own."""

    def each(context, row):
        return row[context.replica_id_in_sync_group]

    for row in gradients:
        spread = strategy.experimental_distribute_values_from_function(
            lambda context, row=row: tf.constant(each(context, row))
        )
        strategy.run(lambda g: optimizer.apply([g], [variable]), args=(spread,))


def alone(optimizer, gradients) -> np.ndarray:
    """Where one device gets to with the sums of the replicas' gradients."""
    variable = keras.Variable(ONES)
    for row in gradients:
        optimizer.apply([row.sum(axis=0)], [variable])
    return variable.numpy()


def on_each(variable) -> list[np.ndarray]:
    return [v.numpy() for v in variable.value.values]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 1e-4},
        {"use_ema": True},
        {"gradient_accumulation_steps": 3},
        {"learning_rate": 0.5},
    ],
    ids=str,
)
def test_replicas_take_the_step_of_their_summed_gradients(strategy, settings):
    with strategy.scope():
        mirrored, variable = optimizer(**settings), keras.Variable(ONES)
    walk(strategy, mirrored, GRADIENTS, variable)
    one = optimizer(**settings)
    wanted = alone(one, GRADIENTS)
    for replica in on_each(variable):
        np.testing.assert_allclose(replica, wanted, rtol=1e-5, atol=1e-6)
    assert mirrored.iterations.numpy() == one.iterations.numpy()
    for ours, theirs in zip(mirrored._slots.states[0].coordinate.values(), one._slots.states[0].coordinate.values(), strict=True):  # fmt: skip  # noqa: E501
        first, second = on_each(ours)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(first, theirs.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm"])
def test_each_replica_clips_its_own_gradient(strategy, clip):
    with strategy.scope():
        mirrored, variable = optimizer(**{clip: 0.5}), keras.Variable(ONES)
    walk(strategy, mirrored, GRADIENTS, variable)
    lengths = np.linalg.norm(GRADIENTS, axis=(2, 3), keepdims=True)
    wanted = alone(optimizer(), GRADIENTS * np.minimum(1, 0.5 / lengths))
    for replica in on_each(variable):
        np.testing.assert_allclose(replica, wanted, rtol=1e-5, atol=1e-6)


def test_a_bad_gradient_on_one_replica_skips_the_step_on_all(strategy):
    with strategy.scope():
        mirrored, variable = optimizer(Adam(0.1)), keras.Variable(ONES)
    spoiled = GRADIENTS.copy()
    spoiled[3, 1, 0, 0] = np.nan
    with pytest.warns(UserWarning, match="1 of [456] steps so far were skipped"):
        walk(strategy, mirrored, spoiled, variable)
    assert mirrored.skipped_steps == 1
    wanted = alone(optimizer(Adam(0.1)), np.delete(GRADIENTS, 3, axis=0))
    for replica in on_each(variable):
        np.testing.assert_allclose(replica, wanted, rtol=1e-5)


def test_moving_averages_overwrite_on_all_replicas(strategy):
    with strategy.scope():
        mirrored = optimizer(SGD(1.0), warmup_steps=0, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=2)  # fmt: skip  # noqa: E501
        variable = keras.Variable(0 * ONES)
    walk(strategy, mirrored, np.full((2, 2, 2, 2), 0.5, "float32"), variable)
    for replica in on_each(variable):
        np.testing.assert_allclose(replica, np.full((2, 2), -0.9 - 0.2), rtol=1e-6)


def test_excluded_variables_do_not_decay(strategy):
    with strategy.scope():
        mirrored = optimizer(SGD(1.0), warmup_steps=0, weight_decay=1e-4)
        kernel, bias = keras.Variable(2.0, name="kernel"), keras.Variable(2.0, name="bias")
        mirrored.exclude_from_weight_decay(var_names=["bias"])
    strategy.run(lambda: mirrored.apply([tf.zeros(())] * 2, [kernel, bias]))
    np.testing.assert_allclose(on_each(kernel), [2 - 2e-4] * 2, rtol=1e-7)
    np.testing.assert_array_equal(on_each(bias), [2.0, 2.0])


def network() -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = keras.layers
    return keras.Sequential([layers.Input((3,)), layers.Dense(2, "tanh"), layers.Dense(1)])


def data() -> tuple[np.ndarray, np.ndarray]:
    inputs = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
    return inputs, inputs.sum(axis=1, keepdims=True)


def test_fit_on_two_devices_is_fit_on_one(strategy):
    """Not with steps_per_execution above 1, where Keras fails with any optimizer."""
    results = []
    for scope in (strategy, tf.distribute.get_strategy()):
        with scope.scope():
            model = network()
            model.compile(optimizer(), "mse", jit_compile=False)
        model.fit(*data(), 8, 3, shuffle=False, verbose=0)
        results.append(model.get_weights())
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


_WORKER = """
import json, os, sys
import numpy as np
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
import keras
sys.path.insert(0, os.path.join(sys.argv[1], "tests"))
from test_optimizer_distribute import data, network, optimizer

worker = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
with strategy.scope():
    model, policy = network(), optimizer()
    policy.build(model.trainable_variables)

@tf.function
def step(x, y):
    def replica():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((model(x, training=True) - y) ** 2) / 8
        gradients = tape.gradient(loss, model.trainable_variables)
        policy.apply(gradients, model.trainable_variables)
    strategy.run(replica)

inputs, targets = data()
for k in range(0, 32, 8):
    half = slice(k + 4 * worker, k + 4 * worker + 4)
    step(tf.constant(inputs[half]), tf.constant(targets[half]))
np.savez(sys.argv[2].format(worker), *model.get_weights())
"""


def test_two_workers_train_as_one(tmp_path):
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    workers = []
    for k in range(2):
        place = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": k}}
        environment = os.environ | {"TF_CONFIG": json.dumps(place), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", _WORKER, str(ROOT), str(tmp_path / "{}.npz")]
        with open(tmp_path / f"{k}.log", "w") as log:
            workers.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    try:
        codes = [worker.wait(timeout=240) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert codes == [0, 0], (tmp_path / "0.log").read_text()[-2000:]
    model, (inputs, targets) = network(), data()
    one = optimizer()
    for k in range(0, 32, 8):
        with tf.GradientTape() as tape:
            error = model(inputs[k : k + 8], training=True) - targets[k : k + 8]
            loss = tf.reduce_sum(error**2) / 8
        one.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
    for k in range(2):
        with np.load(tmp_path / f"{k}.npz") as weights:
            for name, wanted in zip(weights, model.get_weights(), strict=True):
                np.testing.assert_allclose(weights[name], wanted, rtol=1e-4, atol=1e-6)
