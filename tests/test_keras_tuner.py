"""KerasTuner: searches with the optimizer run to their end, and the best models go on."""

import keras
import numpy as np
import pytest

from l2o import AmalgamatedOptimizer

keras_tuner = pytest.importorskip("keras_tuner")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # KerasTuner's own


def data() -> tuple[np.ndarray, np.ndarray]:
    inputs = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
    return inputs, inputs.sum(axis=1, keepdims=True)


def build(hp) -> keras.Model:
    width = hp.Int("width", 2, 4)
    network = keras.Sequential(
        [keras.layers.Input((3,)), keras.layers.Dense(width, "tanh"), keras.layers.Dense(1)]
    )
    rate = hp.Choice("learning_rate", [1.0, 0.3])
    network.compile(
        AmalgamatedOptimizer.load("choice-large", learning_rate=rate, warmup_steps=2), "mse"
    )
    return network


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (keras_tuner.RandomSearch, {"max_trials": 2}),
        (keras_tuner.Hyperband, {"max_epochs": 3, "factor": 2, "hyperband_iterations": 1}),
    ],
    ids=["RandomSearch", "Hyperband"],
)
def test_a_search_ends_and_its_best_models_go_on(kind, settings, tmp_path):
    tuner = kind(build, "val_loss", seed=0, directory=tmp_path, overwrite=True, **settings)
    inputs, targets = data()
    tuner.search(inputs, targets, epochs=2, validation_data=(inputs, targets), verbose=0)
    best = tuner.oracle.get_best_trials(1)[0]
    (network,) = tuner.get_best_models(1)
    assert network.evaluate(inputs, targets, verbose=0) == pytest.approx(best.score, rel=1e-3)
    network.fit(inputs, targets, epochs=1, verbose=0)
    steps = int(network.optimizer.iterations)
    assert steps > 2 and steps % 2 == 0  # those of the best epoch, and of this one
