"""AmalgamatedOptimizer under Keras' other backends, each in a process of its own."""

import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from made_weights import made_weights

import l2o
from l2o import AmalgamatedOptimizer, packing, save_policy
from l2o.rules import SGD, Adam, Averaged, Choice, Original, RNNProp, Scale, TensorChoice

ROOT = Path(__file__).parents[1]
RULES = {
    "adam": Adam(0.05),
    "rnnprop": RNNProp(units=4),
    "choice": Choice((Adam(0.02), SGD(0.3)), units=4),
    "original": Original(units=4),
    "scale": Scale(units=4),
    "averaged": Averaged(Adam(0.05)),
    "tensorchoice": TensorChoice(units=4),
}
SETTINGS = {
    "plain": {},
    "decayed": {"weight_decay": 1e-4, "learning_rate": 0.5},
    "clipped": {"clipvalue": 0.5},
    "norm": {"clipnorm": 0.5},
    "global": {"global_clipnorm": 0.5},
    "averaged": {"use_ema": True, "ema_overwrite_frequency": 3},
    "accumulated": {"gradient_accumulation_steps": 2},
}


def start() -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    return [generator.normal(size=shape).astype("float32") for shape in ((3, 2), (2,), ())]


def walk(optimizer, spoilt: int = -1, absent: bool = False) -> np.ndarray:
    """Where an optimizer gets to in 20 steps, [9]; step number `spoilt` has a NaN.

    Where one is `absent`, the second variable has a gradient at every other step alone.
    """
    variables = [keras.Variable(x) for x in start()]
    generator = np.random.default_rng(0)
    for k in range(20):
        gradients = [generator.normal(size=v.shape).astype("float32") for v in variables]
        if k == spoilt:
            gradients[0][0, 0] = np.nan
        tensors = [keras.ops.convert_to_tensor(g) for g in gradients]
        if absent and k % 2:
            tensors[1] = None
        optimizer.apply(tensors, variables)
    return np.concatenate([keras.ops.convert_to_numpy(v).ravel() for v in variables])


def results(folder) -> dict[str, np.ndarray]:
    """What must be alike everywhere: walks of all rules and all settings."""
    load = AmalgamatedOptimizer.load
    found = {
        f"{name}, {label}": walk(load(f"{folder}/{name}", warmup_steps=3, **settings))
        for name in RULES
        for label, settings in SETTINGS.items()
        if name == "adam" or label == "plain"
    }
    columns, packing.COLUMNS = packing.COLUMNS, 2  # so that sums go over several rows
    found["rows"] = walk(load(f"{folder}/tensorchoice"), spoilt=10)
    packing.COLUMNS = columns
    sizes, packing.LARGE, packing.TILE = (packing.LARGE, packing.TILE), 7, 2  # one group, in tiles
    with warnings.catch_warnings(action="ignore"):  # Keras' own, of missing gradients
        found["absent"] = walk(load(f"{folder}/adam"), absent=True)
    packing.LARGE, packing.TILE = sizes
    skipping = load(f"{folder}/rnnprop", warmup_steps=3)
    found["skipping"] = walk(skipping, spoilt=10)
    found["skipped"] = np.array(skipping.skipped_steps)
    return found


def data() -> tuple[np.ndarray, np.ndarray]:
    inputs = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
    return inputs, inputs.sum(axis=1, keepdims=True)


def train(model) -> list[float]:
    return model.fit(*data(), 8, 3, shuffle=False, verbose=0).history["loss"]


def numbers(model) -> list[np.ndarray]:
    values = [keras.ops.convert_to_numpy(v) for v in model.optimizer.variables]
    return [*model.get_weights(), *values]


def in_the_backend(folder) -> None:
    """What the process of the backend runs."""
    np.savez(f"{folder}/there.npz", **results(folder))
    model = keras.saving.load_model(f"{folder}/model.keras")
    losses = train(model)
    np.savez(f"{folder}/trained.npz", losses, *model.get_weights())
    model.save(f"{folder}/again.keras")
    again = keras.saving.load_model(f"{folder}/again.keras")
    for _ in range(2):
        for one, other in zip(numbers(model), numbers(again), strict=True):
            np.testing.assert_array_equal(one, other)
        train(model), train(again)
    with pytest.raises(ImportError, match="KERAS_BACKEND="):
        _ = l2o.amalgamate


def on_two_devices() -> None:
    """What JAX's process runs: kernels are spread over two devices, and the fits are as on one."""
    distribution = keras.distribution
    mesh = distribution.DeviceMesh((1, 2), ["batch", "model"], distribution.list_devices())
    layouts = distribution.LayoutMap(mesh)
    layouts[".*kernel.*"] = (None, "model")
    spread = distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
    for rule in (RNNProp(units=2), Scale(units=2), TensorChoice(units=2)):
        weights = []
        for chosen in (None, spread):
            distribution.set_distribution(chosen)
            keras.utils.set_random_seed(1)
            layers = keras.layers
            model = keras.Sequential([layers.Input((3,)), layers.Dense(2, "tanh"), layers.Dense(2)])
            policy = l2o.Policy(rule, made_weights(rule))
            model.compile(AmalgamatedOptimizer(policy, warmup_steps=3), "mse")
            train(model)
            weights.append(model.get_weights())
        for one, other in zip(*weights, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def run(backend: str, code: str, *arguments) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": paths}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_same_policies_take_the_same_steps(backend, tmp_path):
    """And load, fit, save and resume, from a model that TensorFlow saved, too."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed (pip install 'l2o[{backend}]')")
    for name, rule in RULES.items():
        save_policy(tmp_path / name, rule, made_weights(rule), {})
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential([layers.Input((3,)), layers.Dense(2, "tanh"), layers.Dense(1)])
    model.compile(AmalgamatedOptimizer.load(tmp_path / "rnnprop", warmup_steps=3), "mse")
    train(model)
    model.save(tmp_path / "model.keras")
    code = "import sys, test_optimizer_backends as t; t.in_the_backend(sys.argv[1])"
    done = run(backend, code, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(tmp_path / "there.npz") as there:
        with pytest.warns(UserWarning, match="gradients were not finite"):
            here = results(tmp_path)
        assert sorted(there) == sorted(here) and here["skipped"] == 1
        for name, wanted in here.items():
            np.testing.assert_allclose(there[name], wanted, rtol=1e-5, atol=1e-5, err_msg=name)
    losses = train(model)
    with np.load(tmp_path / "trained.npz") as trained:
        for name, wanted in zip(trained, [losses, *model.get_weights()], strict=True):
            np.testing.assert_allclose(trained[name], wanted, rtol=1e-4, atol=1e-5)


def test_a_policy_needs_no_tensorflow():
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed (pip install 'l2o[jax]')")
    step = "load('choice-large').apply([keras.ops.ones(2)], [keras.Variable([1.0, 2.0])])"
    code = f"import keras, sys, l2o; l2o.AmalgamatedOptimizer.{step}"
    done = run("jax", f"{code}; assert 'tensorflow' not in sys.modules")
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_devices_of_jax(monkeypatch):
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed (pip install 'l2o[jax]')")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    done = run("jax", "import test_optimizer_backends as t; t.on_two_devices()")
    assert done.returncode == 0, done.stderr[-3000:]


def test_other_backends_are_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "numpy")
    with pytest.raises(ValueError, match="tensorflow, jax, torch. Received: numpy"):
        AmalgamatedOptimizer(SGD(1.0))
