"""Files of earlier releases are read for ever, and lead to the same steps; so does the method."""

import json
import shutil

import keras
import numpy as np
import pytest
from made_golden import (
    EVALUATION,
    GOLDEN,
    MODELS,
    RUN,
    STEPS,
    STOPPED,
    TRUNCATIONS,
    applied,
    model,
    optimizer,
    precision,
    shipped,
    trained,
    truncated,
)

from l2o import AmalgamatedOptimizer, load_policy, pretrained
from l2o.commands import evaluate, train
from l2o.evaluation.results import read_results
from l2o.evaluation.store import steps_file
from l2o.reports.contents import write_report

_POLICIES = sorted(path.name for path in (GOLDEN / "policies").iterdir())
_SHIPPED = sorted(path.stem for path in (GOLDEN / "shipped").iterdir())
_TRUNCATIONS = {"float64": 1e-10, "float32": 1e-5}


def same_steps(actual: np.ndarray, expected: np.ndarray, half: bool = False) -> None:
    """Weights along a path, which differ by no more than rounding: float32's, or float16's.

    Processors round differently, and a path of a hundred steps adds that up.
    """
    tolerance = 1e-4 if half else 5e-6
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def run(main, line: str) -> None:
    """A command, which must end well."""
    with pytest.raises(SystemExit) as end:
        main(line.split())
    assert not end.value.code


# State that was saved variable by variable is packed now. Keras' own loss scaling, which holds the
# optimizer's variables as well, counts them and starts anew with a warning.
counted_anew = pytest.mark.filterwarnings("ignore:Skipping variable loading.*'loss_scale_optimizer")


@pytest.fixture(params=MODELS)
def saved(request):
    """A saved model's name, and the weights along its path; Keras is as it was then."""
    with precision("mixed_float16" if request.param == "mixed_float16" else "float32"):
        yield request.param, np.load(GOLDEN / "models" / f"{request.param}.npz")


@counted_anew
def test_a_saved_model_goes_on(saved):
    name, path = saved
    loaded = keras.saving.load_model(GOLDEN / "models" / f"{name}.keras")
    same_steps(trained(loaded, range(STEPS, 2 * STEPS)), path["following"], name == "mixed_float16")


@counted_anew
def test_saved_weights_go_on(saved):
    name, path = saved
    fresh = model(optimizer(name))
    fresh.optimizer.build(fresh.trainable_variables)
    fresh.load_weights(GOLDEN / "models" / f"{name}.weights.h5")
    same_steps(trained(fresh, range(STEPS, 2 * STEPS)), path["following"], name == "mixed_float16")


def test_a_configuration_brings_the_optimizer_back(saved):
    name, path = saved
    config = json.loads((GOLDEN / "models" / f"{name}.json").read_text())
    fresh = model(keras.saving.deserialize_keras_object(config))
    same_steps(trained(fresh, range(STEPS)), path["first"], name == "mixed_float16")


@pytest.mark.parametrize("name", _POLICIES)
def test_a_policy_directory_takes_the_same_steps(name):
    """After the 100 steps of warm-up at 0.01 that a policy of format 1 means."""
    path = GOLDEN / "policies" / name
    assert load_policy(path).card == {"problem": "a test"}
    expected = np.load(path / "steps.npz")["steps"]
    same_steps(applied(AmalgamatedOptimizer.load(path), len(expected)), expected)


@pytest.mark.parametrize("name", STOPPED)
def test_a_stopped_run_comes_to_the_end_of_one_that_was_not(name, tmp_path, capsys):
    shutil.copytree(GOLDEN / "runs" / name, tmp_path / "run")
    run(train.main, f"{RUN} --output {tmp_path / 'run'}")
    assert "which is gone on with" in capsys.readouterr().out
    for phase in ("choice", "policy"):
        paths = (tmp_path / "run" / phase, GOLDEN / "runs" / "whole" / phase)
        here, there = (load_policy(path).weights for path in paths)
        same_steps(np.concatenate(list(map(np.ravel, here))),
                   np.concatenate(list(map(np.ravel, there))))  # fmt: skip


def test_results_are_read_and_gone_on_with(tmp_path, monkeypatch, capsys):
    """Evaluations that are there are known; those that are not come to the same losses."""
    monkeypatch.chdir(GOLDEN / "policies")
    shutil.copytree(GOLDEN / "results", tmp_path / "there")
    run(evaluate.main, f"{EVALUATION} --output {tmp_path / 'there'}")
    assert "12 of 12 evaluations are there" in capsys.readouterr().out
    run(
        evaluate.main,
        f"{EVALUATION} --output {tmp_path / 'anew'}".replace("repeats 2", "repeats 1"),
    )
    anew = {(r.key, r.epoch): r.validation_loss for r in read_results(tmp_path / "anew")}
    results = read_results(GOLDEN / "results")
    assert {(r.data, r.in_place_of) for r in results} == {("digits", "mnist")}
    for key in {r.key for r in results}:
        assert (GOLDEN / "results" / "steps" / steps_file(key)).exists()
    there = {(r.key, r.epoch): r.validation_loss for r in results if r.repeat == 1}
    assert anew == pytest.approx(there, rel=1e-5)
    assert len(anew) == 6 * 13
    assert len(write_report(results, tmp_path / "report")) > 5


@pytest.mark.parametrize("floatx", _TRUNCATIONS)
@pytest.mark.parametrize("name", TRUNCATIONS)
def test_a_truncation_is_what_it_was(name, floatx):
    """Meta-gradient, losses and states, whatever the unroll is made of."""
    tolerance = _TRUNCATIONS[floatx]
    with precision(floatx):
        found = truncated(TRUNCATIONS[name])
    with np.load(GOLDEN / "truncations" / floatx / f"{name}.npz") as expected:
        assert found.keys() >= set(expected)
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, tolerance, tolerance, err_msg=key)


@pytest.mark.parametrize("name", _SHIPPED)
def test_a_shipped_policy_takes_the_same_steps(name):
    found = shipped("/".join(name.rsplit("-", 1)))
    with np.load(GOLDEN / "shipped" / f"{name}.npz") as expected:
        np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
        same_steps(found["weights"], expected["weights"])


def test_every_shipped_policy_has_its_golden_steps():
    assert _SHIPPED == sorted(n.replace("/", "-") for n in pretrained() if "/" in n)
