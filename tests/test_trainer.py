"""The trainer: killed anywhere it comes to the same end; what is undone is undone; what is saved.

A kill leaves the files as they are at that moment, so a copy of the directory, taken in the midst
of an uninterrupted run, is what a killed run has. `test_stopped.py` kills real processes.
"""

import csv
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from made_tasks import with_data
from made_weights import made_weights

from l2o.amalgamation import meta
from l2o.amalgamation import trainer as module
from l2o.amalgamation.curriculum import Stage, Stages
from l2o.amalgamation.episodes import Evolution
from l2o.amalgamation.meta import MetaTraining, initial_state
from l2o.amalgamation.perturbation import Perturbation
from l2o.amalgamation.plan import Meta, Phase
from l2o.amalgamation.trainer import Diverged, Stopped, Trainer
from l2o.amalgamation.unroll import Amalgamation
from l2o.policies.checkpoint import load_policy
from l2o.rules import Adam, Choice, RMSProp, RNNProp, WarmUp, core
from l2o.rules.layout import Layout
from l2o.runs.directory import RunDirectory
from l2o.tasks.batches import Stream

_META = Meta(seed=3, warmup_steps=2)
_EVOLVED = replace(_META, evolution=Evolution(shortest=2))
_SCHEDULE = Stages(
    (Stage((2,), 4, alpha=0.2), Stage((4,), 2, alpha=0.1)),
    truncation=2,
    meta_batch=1,
    period=2,
    min_periods=2,
    max_periods=2,
    patience=2,
    validation_trajectories=2,
)
_CHOICE = Choice((Adam(0.01), RMSProp(0.01)), units=3)
_MIXING = replace(_SCHEDULE, stages=(Stage((2, 4), 2, cold_periods=1),))
_PHASES = (
    Phase("choice", _CHOICE, "none", _MIXING),
    Phase("policy", RNNProp(units=3), "mean", _SCHEDULE, teachers=None),
)
_ALONE = (Phase("policy", RNNProp(units=3), "none", _SCHEDULE),)


class Regression:
    """Logistic regression as an task: quick to make, and to trace."""

    layout = Layout(("kernel", "bias"), ((64, 3), (3,)))

    def initial(self, seed):
        return np.random.default_rng(seed).normal(size=195).astype("float32") / 10, []

    def loss(self, parameters, carried, batch, training):
        kernel, bias = self.layout.unflatten(parameters)
        logits = tf.reshape(batch.inputs, (-1, 64)) @ kernel + bias
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch.labels, logits)
        return tf.reduce_mean(losses), carried


@pytest.fixture(scope="module")
def traced():
    """What has been traced so far, by phase and weights of the teacher: tracing takes seconds."""
    return {}


@pytest.fixture
def train(data, tmp_path, monkeypatch, traced):
    """Runs a trainer in a directory, from where that got."""
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0)
    make = Trainer._made

    def once(self, phase, run):
        key = (phase, self._meta, *(np.asarray(w).tobytes() for w in run.previous))
        if key not in traced:
            traced[key] = make(self, phase, run)
        return traced[key]

    monkeypatch.setattr(Trainer, "_made", once)

    def train(path, callback=lambda event, facts: None, phases=_PHASES, meta=_META):
        strategy = tf.distribute.MirroredStrategy(["CPU:0"])
        with RunDirectory(path, {"test": 1}) as directory:
            card = {"problem": "a pattern a class"}
            return Trainer(
                phases,
                meta,
                [with_data(Regression(), data, 8)],
                strategy,
                directory,
                card,
                callback,
            ).run()

    return train


def rows(path, without=("seconds",)) -> list[dict]:
    with open(path, newline="") as file:
        found = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in without} for row in found]


def checkpoint(path, kind: str) -> list[np.ndarray]:
    """The policy's weights as a checkpoint has them: "now", "kept" or "best"."""
    weights = len(load_policy(path / "policy").weights)
    with np.load(path / "checkpoint.npz") as file:
        return [file[f"{kind}.{k}"] for k in range(weights)]


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def place(event, facts) -> tuple:
    """Where in a run an event is: phase, stage, period and kind."""
    if event == "period":
        return facts["phase"], facts["stage"] - 1, facts["period"] - 1, event
    if event == "entered":
        return facts["phase"].name, facts["stage"], 0, event
    progress = facts["run"].progress
    kind = "entering" if event == "validating" and progress.incoming is None else event
    return facts["phase"].name, progress.stage, progress.period, kind


_PLACES = [
    ("choice", 0, 0, "entering"),
    ("choice", 0, 1, "update"),
    ("choice", 0, 1, "validating"),
    ("choice", 0, 1, "period"),
    ("policy", 0, 0, "entering"),
    ("policy", 0, 1, "validating"),
    ("policy", 0, 1, "period"),
    ("policy", 1, 0, "update"),
]


@pytest.fixture(scope="module")
def whole():
    """The uninterrupted run: its directory, and copies of it taken at each of `_PLACES`."""
    return {}


@pytest.fixture(scope="module")
def evolved():
    """As `whole`, of an evolution strategy."""
    return {}


@pytest.fixture
def uninterrupted(whole, train, tmp_path_factory):
    if not whole:
        path = tmp_path_factory.mktemp("whole")

        def callback(event, facts):
            here = place(event, facts)
            # The last event of its kind there: as much as possible is to be lived again.
            if here in _PLACES:
                shutil.rmtree(path / str(here), ignore_errors=True)
                shutil.copytree(path / "run", path / str(here))

        train(path / "run", callback)
        whole["path"] = path
    return whole["path"]


def assert_ends_alike(path, expected):
    for name in ("choice", "policy"):
        here, there = load_policy(path / name), load_policy(expected / name)
        assert_same(here.weights, there.weights)
        assert here.rule == there.rule
        without = lambda card: {k: v for k, v in card.items() if k != "seconds"}  # noqa: E731
        assert without(here.card) == without(there.card)
    for kind in ("now", "kept", "best"):
        assert_same(checkpoint(path, kind), checkpoint(expected, kind))
    for table in ("updates.csv", "periods.csv"):
        assert rows(path / table) == rows(expected / table)


@pytest.mark.parametrize("here", _PLACES, ids=str)
def test_killed_and_taken_up_again(here, uninterrupted, train, tmp_path):
    shutil.copytree(uninterrupted / str(here), tmp_path / "run")
    train(tmp_path / "run")
    assert_ends_alike(tmp_path / "run", uninterrupted / "run")


@pytest.mark.parametrize("here", [_PLACES[1], _PLACES[2], _PLACES[6], _PLACES[7]], ids=str)
def test_an_evolution_strategy_killed_and_taken_up_again(here, train, tmp_path, request, evolved):
    """Its particles are in the checkpoint, in the midst of fits of different lengths."""
    if not evolved:
        evolved["path"] = request.getfixturevalue("tmp_path_factory").mktemp("evolved")

        def callback(event, facts):
            where = evolved["path"] / str(place(event, facts))
            shutil.rmtree(where, ignore_errors=True)
            shutil.copytree(evolved["path"] / "run", where)

        train(evolved["path"] / "run", callback, meta=_EVOLVED)
    shutil.copytree(evolved["path"] / str(here), tmp_path / "run")
    train(tmp_path / "run", meta=_EVOLVED)
    assert_ends_alike(tmp_path / "run", evolved["path"] / "run")


@pytest.mark.parametrize("here", [_PLACES[1], _PLACES[5]], ids=str)
def test_interrupted_and_taken_up_again(here, uninterrupted, train, tmp_path):
    shutil.copytree(uninterrupted / str(here), tmp_path / "run")
    before, said = signal.getsignal(signal.SIGINT), []

    def stop(event, facts):
        said.append(event)
        if event != "stopping" and place(event, facts) == here:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped):
        train(tmp_path / "run", stop)
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopping" in said
    train(tmp_path / "run")
    assert_ends_alike(tmp_path / "run", uninterrupted / "run")


def test_an_unroll_that_is_through_where_a_run_is_stopped_stays(uninterrupted, train, tmp_path):
    shutil.copytree(uninterrupted / str(_PLACES[-1]), tmp_path / "run")

    def stop(event, facts):
        if event == "update" and facts["done"] == facts["total"]:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped):
        train(tmp_path / "run", stop)
    said = []
    train(tmp_path / "run", lambda event, facts: said.append(place(event, facts)))
    assert said[0] == ("policy", 1, 0, "entering")
    assert_ends_alike(tmp_path / "run", uninterrupted / "run")


def test_nobody_waits_for_a_validation_before_the_first_update(train, tmp_path):
    said = []
    train(tmp_path / "run", lambda event, facts: said.append(event), phases=_ALONE)
    assert said[0] == "update"
    first = said.index("entered")
    assert "update" not in said[said.index("validating") : said.index("period")]
    assert said.index("validating") < first < said.index("period")


def test_second_interrupt_does_not_wait(train, tmp_path):
    def stop(event, facts):
        if event == "update":
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", stop)


def test_the_work_is_what_the_schedule_says(uninterrupted):
    updates = rows(uninterrupted / "run" / "updates.csv")
    assert [row["update"] for row in updates] == [str(k + 1) for k in range(6 + 12)]
    assert [(row["phase"], row["unroll"], row["step"]) for row in updates[:6]] == [
        ("choice", "2", "0"), ("choice", "2", "0"),
        ("choice", "4", "0"), ("choice", "4", "2"), ("choice", "4", "0"), ("choice", "4", "2"),
    ]  # fmt: skip
    periods = rows(uninterrupted / "run" / "periods.csv")
    assert [(row["phase"], row["stage"], row["period"]) for row in periods] == [
        ("choice", "1", "1"), ("choice", "1", "2"), ("policy", "1", "1"), ("policy", "1", "2"),
        ("policy", "2", "1"), ("policy", "2", "2"),
    ]  # fmt: skip
    assert [row["updates"] for row in periods] == ["2", "6", "8", "10", "14", "18"]
    assert [row["alpha"] for row in periods] == ["0.0", "0.0", "0.2", "0.2", "0.1", "0.1"]
    ends = [int(row["updates"]) for row in periods]
    for row, begin, end in zip(periods, [0, *ends], ends, strict=False):
        for name in ("meta_loss", "distance"):
            mean = np.mean([float(update[name]) for update in updates[begin:end]])
            np.testing.assert_allclose(float(row[name]), mean, rtol=1e-12)


def test_what_the_meta_updates_are_given(train, tmp_path, monkeypatch):
    """Trajectories one after another, their steps in order, the stage's weight of imitation."""
    given, update = [], MetaTraining.update

    def spy(self, state, trajectories, key, first, behind, alpha):
        given.append((first, behind, alpha))
        return update(self, state, trajectories, key, first, behind, alpha)

    monkeypatch.setattr(MetaTraining, "update", spy)
    validations(monkeypatch, 6 * [-1.0])
    schedule, warm = replace(_SCHEDULE, meta_batch=2, period=4), _META.warmup_steps
    train(tmp_path / "run", phases=(replace(_ALONE[0], schedule=schedule),))
    assert given == [(k, warm, 0.2) for k in (0, 2, 4, 6)] + [
        (k, warm + behind, 0.1) for k in (8, 10, 12, 14) for behind in (0, 2)
    ]


def test_what_is_validated(train, tmp_path, monkeypatch):
    """A stage's start before its periods; unrolls of the stage's length, after a warm-up."""
    seen, how = [], set()

    def validate(self, weights, key, trajectories, unroll, warmup, tick):
        seen.append([w.numpy() for w in weights])
        how.add((trajectories, unroll, warmup))
        return np.array([-1.0, -1.0])

    monkeypatch.setattr(MetaTraining, "validate", validate)
    train(tmp_path / "run", phases=_ALONE)
    assert how == {(2, 4, _META.warmup_steps), (2, 2, _META.warmup_steps)}
    seed = np.random.default_rng(Stream.INITIAL_WEIGHTS.key(_META.seed, 0)).integers(2**20)
    start, first, second, enters, third, fourth = seen
    assert_same(start, _ALONE[0].rule.initial_weights(int(seed)))
    assert_same(enters, first)  # all are as good, and the first of them is the best
    for one, other in ((start, first), (first, second), (enters, third), (third, fourth)):
        assert any((a != b).any() for a, b in zip(one, other, strict=True))


def test_a_phase_begins_with_the_weights_it_is_given(data, tmp_path):
    start = tuple(made_weights(_ALONE[0].rule))
    phases = (replace(_ALONE[0], start=start),)
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with RunDirectory(tmp_path, {}) as directory:
        trainer = Trainer(
            phases, _META, [with_data(Regression(), data, 4)], strategy, directory, {}
        )
        assert_same(trainer._fresh(0).now.weights, start)


def test_finished_run_stays_as_it_is(uninterrupted, train, tmp_path):
    shutil.copytree(uninterrupted / "run", tmp_path / "run")
    events = []
    policy = train(tmp_path / "run", lambda event, facts: events.append(event))
    assert events == []
    assert_same(policy.weights, load_policy(uninterrupted / "run" / "policy").weights)
    assert_ends_alike(tmp_path / "run", uninterrupted / "run")


def test_there_is_a_policy_from_the_first_validated_period_on(uninterrupted):
    assert not (uninterrupted / str(("choice", 0, 0, "entering")) / "choice").exists()
    later = uninterrupted / str(("choice", 0, 1, "update"))
    policy = load_policy(later / "choice")
    assert core(policy.rule) == _CHOICE
    periods = rows(later / "periods.csv")
    assert policy.card["problem"] == "a pattern a class"
    assert policy.card["validation"]["validation_loss"] == float(periods[0]["validation_loss"])
    assert policy.card["schedule"]["period"] == _SCHEDULE.period
    for early in (("policy", 0, 0, "entering"), ("policy", 0, 1, "validating")):
        assert (uninterrupted / str(early) / "policy").exists() == (early[2] > 0)


def test_kill_between_policy_and_checkpoint(train, tmp_path, monkeypatch):
    """The last best policy is saved although its checkpoint never was, and again on return."""
    save = RunDirectory.save

    def killed(self, arrays, status):
        if status["progress"]["finished"]:
            raise MemoryError  # nothing the trainer knows how to handle
        save(self, arrays, status)

    monkeypatch.setattr(RunDirectory, "save", killed)
    with pytest.raises(MemoryError):
        train(tmp_path / "run", phases=_ALONE)
    saved = load_policy(tmp_path / "run" / "policy").weights
    monkeypatch.setattr(RunDirectory, "save", save)
    final = train(tmp_path / "run", phases=_ALONE)
    assert_same(saved, final.weights)
    assert_same(load_policy(tmp_path / "run" / "policy").weights, final.weights)


def validations(monkeypatch, means):
    """Has the validations come to these means, in this order."""
    left = list(means)
    monkeypatch.setattr(
        MetaTraining, "validate", lambda *args: np.array([left.pop(0)] * _SCHEDULE.period)
    )
    return left


def test_every_stage_ends_on_its_best(train, tmp_path, monkeypatch):
    left = validations(monkeypatch, [-1.0, -3.0, -2.9, -5.0, -4.0, -4.5])
    weights_after = {}

    def remember(event, facts):
        if event == "period":
            key = facts["stage"], facts["period"]
            weights_after[key] = [checkpoint(tmp_path / "run", k) for k in ("now", "best")]

    policy = train(tmp_path / "run", remember, _ALONE)
    assert left == []
    first, second = weights_after[1, 1][0], weights_after[1, 2][0]
    assert_same(second, first)  # the second period of stage 1 was worse than its first
    assert_same(policy.weights, weights_after[2, 2][1])
    saved = load_policy(tmp_path / "run" / "policy")
    assert_same(saved.weights, policy.weights)
    assert saved.card["validation"]["validation_loss"] == -4.5
    assert [row["verdict"] for row in rows(tmp_path / "run" / "periods.csv")] == [
        "best", "kept", *2 * ["best, behind the stage's start"],
    ]  # fmt: skip


@pytest.mark.parametrize("bad", [5.0, np.inf])
def test_undone_period_leaves_no_trace_but_its_trajectories(
    bad, train, tmp_path, monkeypatch, data
):
    """Stage of one period that explodes once: the result is that of trajectories 2 and 3 alone."""
    schedule = replace(
        _SCHEDULE, stages=_SCHEDULE.stages[:1], min_periods=1, max_periods=1, patience=1
    )
    phases = (replace(_ALONE[0], schedule=schedule),)
    validations(monkeypatch, [-1.0, bad, -2.0])
    policy = train(tmp_path / "run", phases=phases)

    job = Amalgamation(phases[0].rule, (), "none", Regression())
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    training = MetaTraining(job, data, 8, schedule.truncation, 1, strategy)
    seed = np.random.default_rng(Stream.INITIAL_WEIGHTS.key(_META.seed, 0)).integers(2**20)
    state = initial_state(job.rule.initial_weights(int(seed)))
    key = Stream.TRAINING.key(_META.seed, 0)
    behind = _META.warmup_steps
    for first in (2, 3):
        trajectories = training.begin(state.weights, key, first, behind)
        state, _, _ = training.update(state, trajectories, key, first, behind, 0.2)
    assert_same(policy.weights, state.weights)
    found = rows(tmp_path / "run" / "periods.csv")
    assert [(row["verdict"], row["repeats"]) for row in found] == [
        ("exploded, undone", "0"), ("best", "1"),
    ]  # fmt: skip
    assert len(rows(tmp_path / "run" / "updates.csv")) == 4


def test_a_run_that_cannot_recover_keeps_its_last_good_policy(train, tmp_path, monkeypatch):
    """The second period is lost in all five tries, and the same call again says the same."""
    left = validations(monkeypatch, [-1.0, -3.0] + 5 * [np.nan])
    said = "policy, stage 1, period 2 were not finite in the last of 5 tries"
    with pytest.raises(Diverged, match=said):
        train(tmp_path / "run", phases=_ALONE)
    assert left == []
    policy = load_policy(tmp_path / "run" / "policy")
    assert policy.card["validation"]["validation_loss"] == -3.0
    assert_same(policy.weights, checkpoint(tmp_path / "run", "now"))
    verdicts = [row["verdict"] for row in rows(tmp_path / "run" / "periods.csv")]
    assert verdicts == ["best", *4 * ["exploded, undone"], "diverged"]
    events = []
    with pytest.raises(Diverged, match=said):
        train(tmp_path / "run", lambda event, facts: events.append(event), _ALONE)
    assert events == []


def test_updates_that_are_not_finite_undo_their_period(train, tmp_path, monkeypatch):
    """The first try begins with NaN for parameters, the second as it should."""
    begin, tries = meta.begin, []

    def poisoned(job, key, *scaling, **settings):
        trajectory = begin(job, key, *scaling, **settings)
        *phase, _, index = key
        validated = [*key[:-1]] == Stream.VALIDATION.key(*phase)
        if validated or index >= _SCHEDULE.period:
            return trajectory
        tries.append(index)
        student = trajectory.student
        student = student._replace(parameters=student.parameters * np.nan)
        return trajectory._replace(student=student)

    monkeypatch.setattr(meta, "begin", poisoned)
    schedule = replace(
        _SCHEDULE, stages=_SCHEDULE.stages[:1], min_periods=1, max_periods=1, patience=1
    )
    train(tmp_path / "run", phases=(replace(_ALONE[0], schedule=schedule),))
    assert tries == [0, 1]
    found = rows(tmp_path / "run" / "periods.csv")
    assert [(row["verdict"], row["repeats"], row["skipped"]) for row in found] == [
        ("exploded, undone", "0", "2"), ("best", "1", "2"),
    ]  # fmt: skip
    assert np.isnan(float(found[0]["meta_loss"])) and np.isfinite(float(found[1]["meta_loss"]))
    updates = rows(tmp_path / "run" / "updates.csv")
    assert [row["finite"] for row in updates] == ["0", "0", "1", "1"]


@pytest.mark.parametrize("trained, brought", [(2, 2), (25, 20)])
def test_a_policy_brings_a_short_warm_up(train, tmp_path, trained, brought):
    """As long as that it was trained after, but 20 steps at most; so does what is saved."""
    meta = replace(_META, warmup_steps=trained)
    policy = train(tmp_path / "run", phases=_ALONE, meta=meta)
    assert policy.rule == WarmUp(RNNProp(units=3), brought, 0.01)
    assert load_policy(tmp_path / "run" / "policy").rule == policy.rule


def test_the_first_period_of_the_choice_policy_alone_has_no_warm_up(train, tmp_path, monkeypatch):
    begun, begin = [], MetaTraining.begin

    def spy(self, weights, key, first, warmup):
        begun.append((key[1], first, warmup))
        return begin(self, weights, key, first, warmup)

    monkeypatch.setattr(MetaTraining, "begin", spy)
    train(tmp_path / "run")
    cold = _SCHEDULE.period  # its trajectories
    choice = [(first, warmup) for phase, first, warmup in begun if phase == 0]
    assert choice == [(k, 0 if k < cold else _META.warmup_steps) for k in range(2 * cold)]
    policy = [warmup for phase, _, warmup in begun if phase == 1]
    assert policy == [_META.warmup_steps] * (4 * cold)


def test_phases_train_by_the_settings(data, tmp_path):
    noise = Perturbation("gaussian", 0.01)
    settings = Meta(
        learning_rate=0.1, clip_ratio=0.2, clip_floor=0.3, warmup_rate=0.4, scale_limit=0.5,
        first_order=True, recompute=6, held_out=True, meta_loss="difference", perturbation=noise,
    )  # fmt: skip
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with RunDirectory(tmp_path, {}) as directory:
        trainer = Trainer(
            _PHASES,
            settings,
            [with_data(Regression(), data, 4)],
            strategy,
            directory,
            {},
            lambda *_: None,
        )
        first, second = (
            trainer._made(phase, replace(trainer._fresh(k), previous=["taught"])).parts[0]
            for k, phase in enumerate(_PHASES)
        )
        unscaled = Trainer(
            _PHASES,
            replace(settings, scaling=False),
            [with_data(Regression(), data, 4)],
            strategy,
            directory,
            {},
        )
        run = replace(unscaled._fresh(1), previous=["taught"])
        assert not unscaled._made(_PHASES[1], run).parts[0].scaled
    for training in (first, second):
        for name in ("learning_rate", "scale_limit", "clip_ratio", "clip_floor", "held_out"):
            assert getattr(training, name) == getattr(settings, name)
        for name in ("warmup_rate", "first_order", "recompute", "meta_loss", "perturbation"):
            assert getattr(training.job, name) == getattr(settings, name)
        assert (training.batch_size, training.truncation, training.meta_batch) == (4, 2, 1)
    assert (first.scaled, second.scaled) == (False, True)
    assert (first.job.rule, first.job.teachers, first.job.scheme) == (_CHOICE, (), "none")
    (teacher,) = second.job.teachers
    assert (teacher.rule, teacher.weights, second.job.scheme) == (_CHOICE, ["taught"], "mean")
