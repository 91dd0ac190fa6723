"""What a word of the command line stands for: teachers, Keras' optimizers, policies, replicates."""

from pathlib import Path

import pytest
from made_weights import make_policy

from l2o import AmalgamatedOptimizer, PolicyError, save_policy
from l2o.errors import UserError
from l2o.evaluation.baselines import get_candidates
from l2o.policies.checkpoint import fingerprint
from l2o.policies.shipped import pretrained_path
from l2o.rules import (
    SGD,
    TEACHERS,
    TUNED_RATES,
    Adam,
    Averaged,
    Decayed,
    MovingAverage,
    Scheduled,
    WarmUp,
    averaged,
    core,
    cosine,
    decayed,
    rewrapped,
)


def make_run(path: Path, seed: int = 0) -> Path:
    """The part of a run directory that an evaluation looks at."""
    path.mkdir(parents=True)
    make_policy(path / "policy", seed)
    return path


def test_oracle_is_the_six_tuned_teachers():
    candidates = get_candidates("oracle")
    assert [c.name for c in candidates] == list(TEACHERS)
    for c in candidates:
        assert core(c.rule).learning_rate == TUNED_RATES[c.name]


def test_a_rate_is_in_the_name_where_it_is_not_the_tuned_one():
    (tuned,), (same,), (other,) = map(get_candidates, ("adam", "adam@0.002", "adam@1e-2"))
    assert (tuned.name, same.name, other.name) == ("adam", "adam", "adam@0.01")
    assert tuned.origin == same.origin != other.origin
    assert other.rule == WarmUp(Adam(0.01), 100, 0.01)


def test_keras_optimizers_by_name_and_rate():
    (default,), (rated,) = map(get_candidates, ("keras:adamw", "keras:SGD@0.5"))
    assert (default.name, rated.name) == ("keras:AdamW", "keras:SGD@0.5")
    assert default.origin != get_candidates("keras:AdamW@0.5")[0].origin
    assert default.origin == get_candidates("keras:AdamW")[0].origin  # however many were made


def test_a_policy_by_its_directory_its_run_and_a_name_of_ones_own(tmp_path):
    run = make_run(tmp_path / "runs" / "mine")
    words = (run, run / "policy", f"other={run}")
    candidates = [get_candidates(str(word))[0] for word in words]
    assert [c.name for c in candidates] == ["mine", "mine", "other"]
    assert len({c.origin for c in candidates}) == 1
    odd = make_policy(tmp_path / "lr=0.1")
    assert get_candidates(f"other={odd}")[0].name == "other"
    make_policy(run / "policy", seed=1)
    assert get_candidates(str(run))[0].origin != candidates[0].origin


def test_a_run_in_its_first_phase_says_what_there_is(tmp_path):
    make_policy(tmp_path / "mine" / "choice")
    with pytest.raises(PolicyError, match=r"no policy yet; so far there is .*mine/choice$"):
        get_candidates(str(tmp_path / "mine"))

    for named in ("", "other="):
        with pytest.raises(PolicyError, match=r"no policy yet; so far there is .*mine/choice$"):
            get_candidates(f"{named}{tmp_path / 'mine' / 'policy'}")
    with pytest.raises(PolicyError, match=r"no policy yet; so far there is .*mine/choice$"):
        AmalgamatedOptimizer.load(tmp_path / "mine" / "policy")


def test_a_directory_of_a_policy_and_of_replicates_is_neither(tmp_path):
    run = make_run(tmp_path / "mine")
    make_run(run / "1", seed=1)
    with pytest.raises(UserError, match=r"both a policy and .*: name .*mine/policy, or .*/1$"):
        get_candidates(str(run))
    assert get_candidates(str(run / "policy"))[0].origin != get_candidates(str(run / "1"))[0].origin


def test_a_policy_does_not_pass_for_a_teacher(tmp_path):
    with pytest.raises(UserError, match="cannot be called adam"):
        get_candidates(str(make_policy(tmp_path / "adam")))
    assert get_candidates(f"x={tmp_path / 'adam'}")[0].name == "x"
    save_policy(tmp_path / "adam", Decayed(SGD(0.1), 0.1), [], {})
    with pytest.raises(UserError, match="cannot be called adam"):
        get_candidates(str(tmp_path / "adam"))


def test_whatever_is_around_a_rule_makes_it_another(tmp_path):
    """A hundred steps of warm-up at 0.01 are nothing to tell, as all had them once."""
    rules = [
        WarmUp(Adam(0.1)), WarmUp(Adam(0.1), 50), Adam(0.1), WarmUp(Decayed(Adam(0.1), 0.01)),
        WarmUp(Decayed(Adam(0.1), 0.01, ("bias",))), WarmUp(Averaged(Adam(0.1), 0.5)),
        WarmUp(Scheduled(Adam(0.1), cosine())), MovingAverage(WarmUp(Adam(0.1)), 0.9),
    ]  # fmt: skip
    origins = []
    for k, rule in enumerate(rules):
        save_policy(tmp_path / f"p{k}", rule, [], {})
        (found,) = get_candidates(str(tmp_path / f"p{k}"))
        assert found.rule == rule == found.using().rule
        assert found.using(0, 0, 0).rule == decayed(
            averaged(rewrapped(rule, MovingAverage, None), 0), 0
        )
        origins.append(found.origin)
    assert len(set(origins)) == len(rules)
    assert origins[0] == fingerprint((), Adam(0.1).get_config())


def test_numbered_runs_are_replicates(tmp_path):
    for k in (1, 2, 10):
        make_run(tmp_path / "mine" / str(k), seed=k)
    candidates = get_candidates(str(tmp_path / "mine"))
    assert [(c.name, c.replicate) for c in candidates] == [("mine", k) for k in (1, 2, 10)]
    assert len({c.origin for c in candidates}) == 3
    for path in ("mine/2", "mine/2/policy"):
        (one,) = get_candidates(str(tmp_path / path))
        assert (one.name, one.replicate, one.origin) == ("mine", 2, candidates[1].origin)
    (named,) = get_candidates(f"other={tmp_path / 'mine' / '2'}")
    assert (named.name, named.replicate) == ("other", 1)


def test_a_shipped_replicate_is_the_same_by_its_directory():
    (named,), (found,) = map(
        get_candidates, ("choice-large/3", str(pretrained_path("choice-large/3")))
    )
    assert (found.name, found.replicate) == (named.name, named.replicate)
    assert found.origin == named.origin


@pytest.mark.parametrize("text", ["adan", "keras:Adan", "adam@", "adam@-1", "keras:Adam@x", "no/x"])
def test_a_wrong_name_is_told_in_one_line(text):
    with pytest.raises(UserError) as error:
        get_candidates(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["a=adam", "a=oracle", "a=keras:Adam", "a=Keras:SGD@0.1"])
def test_policies_alone_can_be_named(text):
    with pytest.raises(UserError, match=f"Only a policy can be given a name.*'{text}'"):
        get_candidates(text)


def test_the_nearest_name_is_suggested():
    for text, meant in (("adan", "adam"), ("orcale", "oracle"), ("choice_large", "choice-large")):
        with pytest.raises(UserError, match=rf"no optimizer\. Did you mean {meant}\?"):
            get_candidates(text)
    with pytest.raises(UserError, match="'no/x' is no optimizer. Allowed"):
        get_candidates("no/x")
