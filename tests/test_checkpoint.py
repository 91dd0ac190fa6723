"""The policy directory: what comes back, what is refused, what a crash or a reader can see."""

import json
import multiprocessing
import os
import pickle
import shutil
from dataclasses import dataclass
from typing import ClassVar

import h5py
import numpy as np
import pytest

from l2o.policies import checkpoint
from l2o.policies.checkpoint import Policy, PolicyError, load_policy, save_policy
from l2o.rules import (
    Adam,
    Averaged,
    Choice,
    Decayed,
    MovingAverage,
    RNNProp,
    Scheduled,
    WarmUp,
    base,
    cosine,
    get_pool,
)
from l2o.runs.files import writing

RULES = [
    RNNProp(units=3, layers=1, bias_correction="constant", scale=0.05),
    Choice(get_pool("small"), units=4, horizon=100.0),
    Adam(0.002, epsilon=1e-7),
    Averaged(RNNProp(units=3, layers=1), share=0.5),
    MovingAverage(WarmUp(Scheduled(Adam(0.1), cosine(0.05, 100)), 3), 0.9),
]


def weights_of(rule, seed=1):
    return [np.asarray(w) for w in rule.initial_weights(seed)]


@pytest.fixture
def saved(tmp_path):
    """A directory with a small RNNProp in it."""
    rule = RNNProp(units=3, layers=1)
    save_policy(tmp_path / "policy", rule, weights_of(rule), {"problem": "mnist_cnn"})
    return tmp_path / "policy"


def weights_file(path):
    return next(path.glob("weights-*.h5"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_policy_comes_back(tmp_path, rule):
    card = {"seed": 3, "validation": {"loss": -1.2345678901234567}, "periods": [1, 2], 7: None}
    save_policy(tmp_path / "a" / "policy", rule, weights_of(rule), card)
    policy = load_policy(str(tmp_path / "a" / "policy"))
    assert policy.rule == rule
    assert policy.card == {key if key != 7 else "7": value for key, value in card.items()}
    assert len(policy.weights) == len(weights_of(rule))
    for got, expected in zip(policy.weights, weights_of(rule), strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


def test_wrappers_go_with_a_policy(saved):
    rule = WarmUp(Decayed(Averaged(Adam(0.1), 0.5), 3e-4), 7, 0.02)
    save_policy(saved, rule, [], {"seed": 3})
    assert load_policy(saved).rule == rule
    load_policy(saved).save(saved.parent / "copy")
    assert load_policy(saved.parent / "copy") == load_policy(saved)


def test_format_1_meant_a_hundred_steps_of_warm_up(saved):
    """Its weight decay stood beside the rule."""
    description = json.loads((saved / "policy.json").read_text())
    weights = load_policy(saved).weights
    for decay, meant in ((None, lambda rule: rule), (3e-4, lambda rule: Decayed(rule, 3e-4))):
        old = description | {"format": "l2o policy 1"} | ({"weight_decay": decay} if decay else {})
        old["sha256"] = checkpoint._digest(old, weights)
        (saved / "policy.json").write_text(json.dumps(old))
        assert load_policy(saved).rule == WarmUp(meant(RNNProp(units=3, layers=1)), 100, 0.01)
    for wrong in (-0.1, float("nan"), "much", True):
        old["weight_decay"] = wrong
        old["sha256"] = checkpoint._digest(old, weights)
        (saved / "policy.json").write_text(json.dumps(old))
        with pytest.raises(PolicyError, match="weight_decay must be a number >= 0. Received"):
            load_policy(saved)


def test_a_save_replaces_the_policy_before(saved):
    rule = RNNProp(units=5)
    save_policy(saved, rule, weights_of(rule), {})
    assert load_policy(saved).rule == rule
    assert len(list(saved.iterdir())) == 2  # nothing of the old one, nothing temporary


def test_what_is_no_policy_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(PolicyError, match="left as it is"):
            save_policy(path, Adam(0.1), [], {})
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_card_json_cannot_hold_leaves_the_old_policy(saved):
    before = load_policy(saved).card
    with pytest.raises(TypeError):
        save_policy(saved, Adam(0.1), [], {"problem": object()})
    assert load_policy(saved).card == before


def remove_description(path):
    (path / "policy.json").unlink()


def remove_weights(path):
    weights_file(path).unlink()


def truncate_description(path):
    text = (path / "policy.json").read_text()
    (path / "policy.json").write_text(text[: len(text) // 2])


def truncate_weights(path):
    content = weights_file(path).read_bytes()
    weights_file(path).write_bytes(content[: len(content) // 2])


def empty_weights(path):
    weights_file(path).write_bytes(b"")


def altered_weights(path):
    with h5py.File(weights_file(path), "a") as file:
        file["0"][0, 0] += 1e-6


def missing_weight(path):
    with h5py.File(weights_file(path), "a") as file:
        del file["1"]


def altered_setting(path):
    description = json.loads((path / "policy.json").read_text())
    description["rule"]["scale"] = 1.0
    (path / "policy.json").write_text(json.dumps(description))


def foreign_format(path):
    (path / "policy.json").write_text('{"format": "l2o policy 99"}')


def not_an_object(path):
    (path / "policy.json").write_text("[1, 2]")


def binary_description(path):
    (path / "policy.json").write_bytes(bytes(range(256)))


def nested_description(path):
    (path / "policy.json").write_text("[" * 100_000)


def pickled(path):
    weights_file(path).write_bytes(pickle.dumps(Trap(path / "ran")))


class Trap:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "damage, said",
    [
        (shutil.rmtree, "is neither a policy directory nor a shipped policy"),
        (remove_description, "no policy directory: it has no policy.json"),
        (remove_weights, "lacks the weights"),
        (truncate_description, "policy.json cannot be read"),
        (truncate_weights, "weights in .* cannot be read"),
        (empty_weights, "weights in .* cannot be read"),
        (altered_weights, "checksum"),
        (missing_weight, "weights in .* cannot be read"),
        (altered_setting, "checksum"),
        (foreign_format, "format 'l2o policy 99'; this reads 'l2o policy 2' and 'l2o policy 1'"),
        (not_an_object, "format None"),
        (binary_description, "policy.json cannot be read"),
        (nested_description, "policy.json cannot be read"),
        (pickled, "weights in .* cannot be read"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damage_is_told_in_one_line(saved, damage, said):
    damage(saved)
    with pytest.raises(PolicyError, match=said) as caught:
        load_policy(saved)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (saved / "ran").exists()


def test_weights_of_another_rule_are_refused(saved):
    """Even with a checksum that is right: `save_policy` itself does not look."""
    save_policy(saved, RNNProp(units=9), weights_of(RNNProp(units=3)), {})
    with pytest.raises(PolicyError, match="do not fit the rule 'rnnprop'"):
        load_policy(saved)


@pytest.mark.parametrize("rule", [{"rule": "mystery"}, {"rule": "adam", "rate": 1}, 5, {}])
def test_unknown_rules_are_refused(saved, rule, monkeypatch):
    monkeypatch.setattr(Adam, "get_config", lambda self: rule)
    save_policy(saved, Adam(0.1), [], {})
    with pytest.raises(PolicyError, match="cannot be read"):
        load_policy(saved)


@pytest.mark.parametrize("crash_at", [0, 1])
def test_a_crash_leaves_the_old_policy(saved, crash_at, monkeypatch):
    """Whichever of the two files cannot be written; a later save then goes through."""
    writes = []

    def write(path, content):
        writes.append(path)
        if len(writes) > crash_at:
            raise OSError("No space left on device")
        return whole(path, content)

    old, rule = load_policy(saved), RNNProp(units=5)
    whole = checkpoint.write_atomically
    monkeypatch.setattr(checkpoint, "write_atomically", write)
    with pytest.raises(OSError, match="No space"):
        save_policy(saved, rule, weights_of(rule), {})
    assert load_policy(saved).rule == old.rule
    monkeypatch.undo()
    save_policy(saved, rule, weights_of(rule), {})
    assert load_policy(saved).rule == rule
    assert len(list(saved.iterdir())) == 2


def test_a_crash_in_a_fresh_directory_does_not_stop_the_next_save(tmp_path):
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "weights-0123456789abcdef.h5").write_bytes(b"half")
    (tmp_path / "policy" / ".policy.json.77.tmp").write_bytes(b"half")
    save_policy(tmp_path / "policy", Adam(0.1), [], {})
    assert load_policy(tmp_path / "policy").rule == Adam(0.1)


@pytest.mark.parametrize("names", [("weights-01.h5", "weights-best.h5"), ("policy.json",)])
def test_what_only_looks_like_a_policy_is_left_alone(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text('{"Version": "2012-10-17", "Statement": []}')
    with pytest.raises(PolicyError, match="holds something that is no policy"):
        save_policy(tmp_path, Adam(0.1), [], {})
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)


def test_a_save_takes_away_no_weights_but_its_own(tmp_path):
    save_policy(tmp_path, Adam(0.1), [], {})
    (tmp_path / "weights-01.h5").write_bytes(b"of a model")
    rule = RNNProp(units=1)
    save_policy(tmp_path, rule, weights_of(rule), {})
    assert len(list(tmp_path.iterdir())) == 3 and (tmp_path / "weights-01.h5").exists()


def test_a_rule_of_ones_own_comes_back_with_all_its_settings(tmp_path, monkeypatch):
    """A switch, a zero, and a number that is no size."""
    monkeypatch.setattr(base, "REGISTRY", dict(base.REGISTRY))  # which takes up the class

    @dataclass(frozen=True)
    class Timed(RNNProp):
        name: ClassVar[str] = "timed"
        nesterov: bool = True
        delay: int = 0
        horizon: int = 2000

    rule = Timed(units=1, layers=20)
    save_policy(tmp_path, rule, weights_of(rule), {})
    assert load_policy(tmp_path).rule == rule
    with pytest.raises(ValueError, match="has no settings amsgrad"):
        base.rule_from_config(rule.get_config() | {"amsgrad": True})


def _save_again_and_again(path, stop):
    policies = [(Adam(rate), [np.full(1000, rate)]) for rate in (0.1, 0.2)]
    while not stop.is_set():
        for rule, weights in policies:
            save_policy(path, rule, weights, {})


def test_a_reader_never_sees_half_a_policy(tmp_path, monkeypatch):
    monkeypatch.setattr(Adam, "initial_weights", lambda self, seed: [np.zeros(1000)])
    save_policy(tmp_path / "policy", Adam(0.1), [np.full(1000, 0.1)], {})
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    writer = context.Process(target=_save_again_and_again, args=(tmp_path / "policy", stop))
    writer.start()
    seen = set()
    try:
        for _ in range(300):
            policy = load_policy(tmp_path / "policy")
            assert (policy.weights[0] == policy.rule.learning_rate).all()
            seen.add(policy.rule.learning_rate)
    finally:
        stop.set()
        writer.join()
    assert seen == {0.1, 0.2}


def test_a_policy_whose_weights_are_replaced_meanwhile_is_read_again(tmp_path, monkeypatch):
    """The description may be as before and yet its weights have been away: saved, and back."""
    save_policy(tmp_path / "policy", Adam(0.1), [], {})
    parse, tries = checkpoint._parse, iter(range(10))

    def away_at_first(path, text):
        if next(tries) < 2:
            raise FileNotFoundError(2, "No such file", "weights-0.h5")
        return parse(path, text)

    monkeypatch.setattr(checkpoint, "_parse", away_at_first)
    assert load_policy(tmp_path / "policy").rule == Adam(0.1)


def test_the_error_of_a_full_disk_names_the_file():
    for error in (OSError(28, "No space left on device"), OSError(28, "No space left on device",
                                                                 "a", None, "b")):  # fmt: skip
        with pytest.raises(OSError) as caught, writing("runs/x"):
            raise error
        assert str(caught.value) == "[Errno 28] No space left on device: 'runs/x'"


def test_a_policy_needs_only_a_rule():
    assert Policy(Adam(0.1)).weights == [] and Policy(Adam(0.1)).card == {}
