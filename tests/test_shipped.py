"""Shipped policies: found by name, each with a card; how a run becomes one."""

import runpy
import sys
from math import log
from pathlib import Path

import numpy as np
import pytest
from made_results import made_evaluation

from l2o import AmalgamatedOptimizer, PolicyError, load_policy, pretrained, save_policy
from l2o.evaluation.baselines import get_candidates
from l2o.evaluation.results import TABLE, write_results
from l2o.policies.checkpoint import DESCRIPTION
from l2o.rules import SGD, RNNProp, averaging, decaying


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """An empty place for shipped policies."""
    monkeypatch.setattr("l2o.policies.shipped.DIRECTORY", tmp_path / "pretrained")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "pretrained"


def test_a_shipped_policy_is_found_by_name_and_others_are_listed(shelf):
    shipped = (("fast/1", 0.5, -3), ("fast/2", 0.4, -4.002), ("fast/3", 0.2, -4.004),
               ("slow/10", 0.1, -1))  # fmt: skip
    for name, rate, loss in shipped:
        save_policy(shelf / name, SGD(rate), [], {"evaluation": {"log_validation_loss": loss}})
    assert pretrained() == ("fast", "fast/1", "fast/2", "fast/3", "slow", "slow/10")
    for name, rate in (("slow", 0.1), ("slow/10", 0.1), ("fast", 0.4), ("fast/1", 0.5)):
        assert AmalgamatedOptimizer.load(name).policy.rule == SGD(rate) == load_policy(name).rule
    # 2 and 3 are level to two digits, so the first of them is the default.
    (best,), (other,) = get_candidates("fast"), get_candidates("fast/1")
    (named,) = get_candidates("mine=fast")
    assert (named.name, named.replicate, named.origin) == ("mine", 1, best.origin)
    assert (best.name, best.replicate, other.name, other.replicate) == ("fast", 2, "fast", 1)
    with pytest.raises(PolicyError, match="'medium' is neither .* Shipped: fast, fast/1, fast/2,"):
        load_policy("medium")
    save_policy(Path("fast"), SGD(0.3), [], {})  # a directory of that name goes before it
    assert AmalgamatedOptimizer.load("fast").policy.rule == SGD(0.3) == load_policy("fast").rule
    assert get_candidates("fast")[0].origin not in (best.origin, other.origin)


def test_every_shipped_policy_has_a_whole_card():
    names = [name for name in pretrained() if "/" in name]
    assert names
    compared = {}
    for name in names:
        policy = AmalgamatedOptimizer.load(name).policy
        assert isinstance(policy.rule.get_config(), dict)
        assert np.isfinite(policy.card["evaluation"]["log_validation_loss"])
        decays = name.split("/")[0] in ("choice-large", "choice-large-cpu")  # as the docs say
        assert decaying(policy.rule) == (3e-4 if decays else 0), name
        share = 0.8 if name.split("/")[0] == "choice-large" else 0
        assert averaging(policy.rule) == share, name
        how = ("problem", "data", "epochs", "repeats")  # one must not be chosen by others' fits
        alike = [policy.card["evaluation"][key] for key in how]
        assert alike == compared.setdefault(name.split("/")[0], alike), name
        for key in ("command", "commit", "data", "seed", "schedule", "hours", "licence", "limits"):
            assert policy.card[key] not in ("", None), (name, key)


@pytest.mark.parametrize(("share", "decay"), [(0.0, 0.0), (0.0, 0.01), (0.8, 0.01)])
def test_a_run_is_shipped_with_what_it_reached(shelf, tmp_path, monkeypatch, share, decay):
    rule, run = RNNProp(units=2, layers=1), tmp_path / "run"
    save_policy(run / "policy", rule, rule.initial_weights(0), {"problem": "mnist_cnn", "seed": 3})
    (run / "periods.csv").write_text("seconds\n100\n7200\n")
    bare = get_candidates(str(run))[0]
    candidate, rows = bare.using(share, decay), []
    for problem, repeat, losses in (
        ("mnist_cnn", 1, (2.0, 0.2, 0.4)), ("mnist_cnn", 2, (2.0, 0.4, 0.1)),
        ("mnist_mlp", 1, (2.0, 0.01, 0.01)),
    ):  # fmt: skip
        rows += made_evaluation("run", losses, problem, origin=candidate.origin, repeat=repeat)
    rows += made_evaluation("adam", (2.0, 0.001))
    if decay:
        rows += made_evaluation("run", (2.0, 0.001), "mnist_cnn", origin=bare.origin)
    write_results(tmp_path / TABLE, rows)
    line = f"ship.py {run} mine/2 --results {tmp_path} --commit abc --command train.py"
    line += f" --weight-decay {decay}" if decay else ""
    line += f" --averaging {share}" if share else ""
    monkeypatch.setattr(sys, "argv", line.split())
    runpy.run_module("l2o.commands.ship", run_name="__main__")
    assert (shelf / "mine" / "2" / DESCRIPTION).exists()
    policy = load_policy(shelf / "mine" / "2")
    card = policy.card
    assert averaging(policy.rule) == card["evaluation"]["averaging"] == share
    assert decaying(policy.rule) == card["evaluation"]["weight_decay"] == decay
    assert (card["seed"], card["hours"], card["command"]) == (3, 2.0, "train.py")
    assert (card["evaluation"]["repeats"], card["evaluation"]["seeds"]) == (2, [1001, 1002])
    assert card["evaluation"]["log_validation_loss"] == pytest.approx((log(0.2) + log(0.1)) / 2)
    assert card["evaluation"]["log_test_loss"] == pytest.approx((log(0.22) + log(0.11)) / 2)
    with pytest.raises(SystemExit) as end:
        runpy.run_module("l2o.commands.ship", run_name="__main__")
    assert end.value.code == 2
    monkeypatch.setattr(sys, "argv", [*line.split(), "--replace"])
    runpy.run_module("l2o.commands.ship", run_name="__main__")
