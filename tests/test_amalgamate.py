"""`l2o.amalgamate`: a policy from a network and arrays, kept and gone on with; the example."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import l2o
from l2o.policies.checkpoint import fingerprint
from l2o.rules import Adam, RNNProp, core
from l2o.runs.lock import DirectoryError
from l2o.tasks.examples import ProblemError

_ROOT = Path(__file__).parent.parent
_RANDOM = np.random.default_rng(0)
_X = _RANDOM.normal(size=(40, 3))
_Y = _X.sum(1)
# One phase, one stage, one period of two meta-updates.
_SHORT = {
    "strategy": "none", "preset": "smoke", "truncation": 2, "unrolls": (2,), "alphas": (0.2,),
    "updates": 2, "warmup_steps": 2,
}  # fmt: skip


def network(activation: str = "tanh") -> keras.Model:
    layers = keras.layers
    return keras.Sequential([layers.Input((3,)), layers.Dense(2, activation), layers.Dense(1)])


def amalgamate(model_fn=network, x=_X, y=_Y, loss="mse", batch_size=8, **settings) -> l2o.Policy:
    return l2o.amalgamate(model_fn, (x, y), loss, batch_size=batch_size, **(_SHORT | settings))


def assert_same(one: l2o.Policy, other: l2o.Policy) -> None:
    for a, b in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_run_that_is_kept_and_one_that_is_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    policy = amalgamate()
    assert not list((tmp_path / "temporary").glob("l2o-*"))
    assert "policy stage 1 period 1" in capsys.readouterr().out
    assert policy.card["problem"] == "own Sequential of 11 weights"
    assert policy.card["network"]["tensors"][0] == "kernel [3, 2]"
    assert "own data" in policy.card["data"] and policy.card["meta"]["seed"] == 0

    kept = amalgamate(output=tmp_path / "run")
    assert_same(policy, kept)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    capsys.readouterr()
    assert_same(policy, amalgamate(output=str(tmp_path / "run")))
    assert "which is over" in capsys.readouterr().out
    others = {
        "\\(seed: 0 there, 1 asked": {"seed": 1},
        "data: 'own data": {"y": -_Y},
        "network.first_loss": {"model_fn": lambda: network("relu")},
    }
    for difference, changed in others.items():
        with pytest.raises(DirectoryError, match=difference):
            amalgamate(output=tmp_path / "run", **changed)
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}

    optimizer = l2o.AmalgamatedOptimizer(policy, warmup_steps=2)
    model = network()
    model.compile(optimizer, "mse")
    losses = model.fit(_X, _Y, batch_size=8, epochs=8, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and optimizer.skipped_steps == 0


def test_wrong_calls_touch_nothing(tmp_path):
    output = tmp_path / "run"
    with pytest.raises(TypeError, match="truncations. Did you mean truncation\\? Allowed"):
        amalgamate(truncations=2, output=output)
    for settings, message in (
        ({"strategy": "best"}, "Unknown scheme. Allowed: choice, none, mean"),
        ({"pool": "huge"}, "Unknown pool. Allowed: adam, small, large. Received: huge"),
        ({"pool": ()}, "teachers must be a pool's name, or rules and names. Received: \\(\\)"),
        ({"pool": ("adam", RNNProp())}, "Rules with weights are no teachers. Received: rnnprop"),
        (
            {"policy": 3},
            "Allowed: rnnprop, original, scale, tensorchoice, or a rule .* Received: int",
        ),
        ({"unrolls": (3,)}, "multiple of the truncation, 2. Received: 3"),
        ({"unrolls": "all"}, "unrolls must be whole numbers. Received: \\('all',\\)"),
        ({"magnitude": (1e-3, 1e-4)}, "magnitude must be a number. Received: \\(0.001"),
        ({"first_order": "no"}, "first_order must be True or False. Received: 'no'"),
        ({"updates": True}, "updates must be a whole number. Received: True"),
        ({"recipe": "best"}, "Unknown recipe. Allowed: original, scale, rnnprop, stronger"),
        ({"recipe": "scale", "pool": "small"}, "so scheme, teachers cannot be set"),
        ({"devices": 0}, "Received: 0"),
        ({"devices": 3}, "multiple of the devices. Received: 3"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"held_out": True}, "enough of own Sequential .* for a batch of 8 from the held-out"),
    ):
        with pytest.raises(ValueError, match=message):
            amalgamate(output=output, **settings)
    with pytest.raises(ProblemError, match='meta_loss="difference"'):
        amalgamate(loss=lambda y, p: p[:, 0] - 5, output=output)
    assert not (output / "policy").exists()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("years of work")
    for fresh in (False, True):  # found before there is anything to read
        with pytest.raises(DirectoryError, match="thesis.tex"):
            amalgamate(x=None, output=tmp_path / "foreign", fresh=fresh)


def test_a_start_that_is_always_the_same_is_said(monkeypatch, capsys):
    def seeded():
        keras.utils.set_random_seed(0)
        return network()

    monkeypatch.setattr("l2o.amalgamation.amalgamate.meta_train", lambda *args, **settings: None)
    amalgamate()
    assert "Note" not in capsys.readouterr().out
    amalgamate(seeded)
    assert capsys.readouterr().out.count("makes the same initial weights") == 1


def test_a_loss_below_zero_with_the_difference_of_losses():
    policy = amalgamate(loss=lambda y, p: p[:, 0] ** 2 - 5, meta_loss="difference")
    assert np.isfinite(policy.card["validation"]["validation_loss"])


def test_a_recipe_and_single_values_where_several_may_be():
    short = _SHORT | {"unrolls": 2, "alphas": 0.2}
    del short["strategy"]
    policy = l2o.amalgamate(network, (_X, _Y), "mse", recipe="original", batch_size=8, **short)
    assert (core(policy.rule).name, policy.card["strategy"]) == ("original", "none")
    assert policy.card["pool"] == "none"
    assert policy.card["schedule"]["stages"][0]["unrolls"] == [2]


def test_objects_in_place_of_names(tmp_path):
    first = amalgamate(policy=RNNProp(units=3), output=tmp_path / "first")
    assert core(first.rule) == RNNProp(units=3)
    for begin in (first, tmp_path / "first" / "policy"):
        policy = amalgamate(
            policy=RNNProp(units=3), finetune=begin, pool=(Adam(0.1), "sgd"), strategy="mean"
        )
        (phase,) = policy.card["phases"]
        assert phase["start"] == fingerprint(first.weights)
        assert [(t["rule"], t["learning_rate"]) for t in phase["teachers"]] == [
            ("adam", 0.1), ("sgd", 0.2),
        ]  # fmt: skip
        assert policy.card["pool"] == "adam, sgd"


def test_stopped(tmp_path, monkeypatch):
    def stop(*args):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("l2o.runs.display.Display._step", stop)
    dataset = tf.data.Dataset.from_tensor_slices((_X, _Y)).batch(8)
    with pytest.raises(KeyboardInterrupt, match="kept in .*run, and the same call goes on"):
        l2o.amalgamate(network, dataset, "mse", output=tmp_path / "run", **_SHORT)
    assert (tmp_path / "run" / "checkpoint.npz").exists()


def test_meta_training_is_loaded_on_demand():
    program = "import l2o, sys; print('l2o.amalgamation' in sys.modules, l2o.Problem.__name__)"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=_ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["False", "Problem"]
    with pytest.raises(AttributeError, match="no attribute 'amalgamated'"):
        l2o.amalgamated  # noqa: B018


@pytest.mark.slow
def test_the_example(tmp_path):
    """As a new user types it, from anywhere."""
    example = [sys.executable, str(_ROOT / "examples" / "amalgamate_own.py")]
    result = subprocess.run(example, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"^(policy|Adam, [\d.]+) +([\d.]+) +([\d.]+)$", result.stdout, re.MULTILINE)
    assert [name for name, *_ in rows] == ["policy", "Adam, 0.001", "Adam, 0.01"]
    losses = {name: (float(training), float(test)) for name, training, test in rows}
    assert max(losses["policy"]) < 0.8  # 1 is guessing the mean
    assert list(tmp_path.iterdir()) == []
