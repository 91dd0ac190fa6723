"""Trains an optimizer for one's own network and data, and fits the network with it.

    python examples/amalgamate_own.py
    python examples/amalgamate_own.py --output runs/diabetes

The problem is a regression: scikit-learn's diabetes data (442 patients, ten measurements, how the
disease went on a year later) with a network of one hidden layer. It takes about a minute, and is
there to be read and changed: a policy to rely on is trained for longer, as by leaving all settings
but `loss` and `batch_size` out.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import numpy as np
from sklearn.datasets import load_diabetes

import l2o
from l2o.commands.terminal import Parser, run_command
from l2o.errors import UserError

SEEDS, EPOCHS = 3, 10
# Two stages, unrolls of 50 and of 100 steps, each of two periods of eight trajectories.
SHORT: dict[str, Any] = {
    "preset": "cpu",
    "strategy": "mean",
    "pool": "small",
    "truncation": 50,
    "unrolls": (50, 100),
    "alphas": (0.2, 0.1),
    "last_validation": 100,
    "period": 8,
    "min_periods": 2,
    "max_periods": 2,
    "warmup_steps": 10,
}


def network() -> keras.Model:
    """241 weights."""
    layers = keras.layers
    return keras.Sequential(
        [layers.Input((10,)), layers.Dense(20, activation="tanh"), layers.Dense(1)]
    )


def data() -> tuple:
    """To train on (342) and to test on (100), inputs and outputs of variance 1."""
    x, y = load_diabetes(return_X_y=True)
    x, y = x / x.std(0), (y - y.mean()) / y.std()
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    return (x[:342], y[:342]), (x[342:], y[342:])


def fit(make_optimizer, train: tuple, test: tuple) -> tuple[float, float]:
    """Training and test loss after a fit, means over seeds."""
    losses = []
    for seed in range(SEEDS):
        keras.utils.set_random_seed(seed)
        model = network()
        model.compile(make_optimizer(), "mean_squared_error")
        model.fit(*train, batch_size=32, epochs=EPOCHS, verbose=0)
        losses.append([model.evaluate(*part, batch_size=100, verbose=0) for part in (train, test)])
    return tuple(np.mean(losses, axis=0))


def main() -> int:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", help="keep the run here, and go on with it")
    output = parser.parse_args().output
    train, test = data()
    begun = time.monotonic()
    try:
        policy = l2o.amalgamate(
            network, train, loss="mean_squared_error", batch_size=32, output=output, **SHORT
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    print(f"Trained in {time.monotonic() - begun:.0f} s\n")
    steps = -(-len(train[1]) // 32) * EPOCHS
    print(f"Mean squared error after {steps} steps, mean of {SEEDS} seeds (1 is guessing the mean)")
    print("optimizer      training   test")
    for name, make_optimizer in {
        "policy": lambda: l2o.AmalgamatedOptimizer(policy),
        "Adam, 0.001": lambda: keras.optimizers.Adam(0.001),
        "Adam, 0.01": lambda: keras.optimizers.Adam(0.01),
    }.items():
        print("{:13}  {:8.3f}  {:5.3f}".format(name, *fit(make_optimizer, train, test)))
    return 0


if __name__ == "__main__":
    run_command(main)
