"""The curriculum on tables of cases: what is kept, undone, best, and when a stage ends."""

import json
import random
from dataclasses import asdict, replace
from math import inf, nan

import pytest

from l2o.amalgamation.curriculum import (
    Curriculum,
    Progress,
    Stage,
    Verdict,
    enter,
    judge,
    steps_left,
)
from l2o.amalgamation.presets import CURRICULA

PAPER, CPU, SMOKE = (CURRICULA[name].schedule for name in ("paper", "cpu", "smoke"))
ONE_STAGE = replace(PAPER, stages=PAPER.stages[:1])
KEPT, BEST = Verdict(True), Verdict(True, best=True)
BEHIND = Verdict(True, best=True, behind=True)  # worse than what came in, and yet the best period
UNDONE = Verdict(False, exploded=True)


def through_json(progress: Progress) -> Progress:
    """As a run that is taken up again finds it."""
    return Progress(**json.loads(json.dumps(asdict(progress))))


def simulate(schedule, loss_of, carry=lambda progress: progress):
    """The trainer without the training: every (progress before, verdict) of a whole run."""
    progress, history = Progress(), []
    while not (progress.finished or progress.diverged):
        if progress.incoming is None:
            progress = carry(enter(progress, loss_of(progress)))
            continue
        before = progress
        progress, verdict = judge(schedule, before, loss_of(before))
        progress = carry(progress)
        history.append((before, verdict))
        assert len(history) < 1000, "the run does not end"
    return history


def play(schedule, incoming, losses):
    """Judges `losses` in turn, from the start of a stage whose incoming loss is given."""
    progress, verdicts = enter(Progress(), incoming), []
    for loss in losses:
        progress, verdict = judge(schedule, progress, loss)
        verdicts.append(verdict)
    return progress, verdicts


# The schedules of method.md


def test_stages_are_the_papers():
    assert PAPER.stages == (
        Stage((100,), 200, 0.2),
        Stage((200,), 500, 0.1),
        Stage((500,), 1000, 0.05),
        Stage((1000,), 2000, 0.02),
    )
    assert (PAPER.truncation, PAPER.meta_batch, PAPER.period) == (100, 4, 40)
    assert (PAPER.min_periods, PAPER.max_periods, PAPER.patience) == (5, 20, 5)
    assert (PAPER.max_repeats, PAPER.tolerance, PAPER.validation_trajectories) == (4, 0.5, 4)


def test_presets():
    assert CURRICULA["paper"] == Curriculum()
    assert CPU.stages == PAPER.stages
    assert (CPU.meta_batch, CPU.period, CPU.min_periods, CPU.max_periods) == (1, 10, 6, 6)
    assert len(SMOKE.stages) == 4


def test_smoke_is_over_in_three_minutes():
    """At 40 ms a training step, 15 a validation and 10 a warm-up step, and 25 s to start."""
    seconds = 25
    for schedule in (CURRICULA["smoke"].choice, SMOKE):
        trained, validated = map(sum, zip(*steps_left(schedule, Progress()), strict=True))
        periods = len(schedule.stages) * schedule.max_periods
        validations = periods + len(schedule.stages)
        unrolls = periods * SMOKE.period + validations * SMOKE.validation_trajectories
        seconds += 0.040 * trained + 0.015 * validated + 0.010 * 100 * unrolls
    assert seconds < 180


@pytest.mark.parametrize("name", ["paper", "cpu"])
def test_choice_schedule(name):
    schedule, choice = CURRICULA[name].schedule, CURRICULA[name].choice
    (stage,) = choice.stages
    assert [stage.unroll(period) for period in range(5)] == [100, 200, 500, 500, 500]
    assert (stage.validation_unroll, stage.alpha, stage.cold_periods) == (1000, 0, 1)
    assert (choice.period, choice.meta_batch) == (schedule.period, schedule.meta_batch)
    # Five periods whether it gets better all the time or never.
    assert len(simulate(choice, lambda p: -1.0 - p.period)) == 5
    assert len(simulate(choice, lambda p: -1.0)) == 5


# One period


@pytest.mark.parametrize(
    ("incoming", "loss", "verdict"),
    [
        (-1.5, -2.0, BEST),
        (-1.5, -1.5, BEST),
        (-1.5, -1.2, BEHIND),
        (-1.5, -0.75, BEHIND),  # worse by exactly half its size: not by more
        (-1.5, -0.74, UNDONE),
        (-1.5, 0.5, UNDONE),
        (2.0, 3.0, BEHIND),
        (2.0, 3.01, UNDONE),
        (0.0, 0.0, BEST),
        (0.0, 0.01, UNDONE),
        (-1.5, nan, UNDONE),
        (-1.5, inf, UNDONE),
        (-1.5, -inf, UNDONE),
        (nan, 5.0, BEST),  # an incoming policy that diverges bounds nothing,
        (inf, nan, UNDONE),  # but what diverges itself is undone even so
    ],
)
def test_first_period(incoming, loss, verdict):
    _, verdicts = play(PAPER, incoming, [loss])
    assert verdicts == [verdict]


def test_a_best_period_behind_the_stages_start_is_called_so():
    _, verdicts = play(PAPER, -1.5, [-1.2, -1.0, -1.3, -1.6])
    behind = "best, behind the stage's start"
    assert [v.word for v in verdicts] == [behind, "kept", behind, "best"]


@pytest.mark.parametrize(
    ("best", "loss", "verdict"),
    [
        (-2.0, -2.1, BEST),
        (-2.0, -2.0, KEPT),  # as good is no new best
        (-2.0, -1.0, KEPT),
        (-2.0, -0.99, UNDONE),  # within the incoming one's bound, but not within the best's
        (-1.0, -0.6, KEPT),  # the other way round: the incoming one no longer matters
        (-2.0, nan, UNDONE),
    ],
)
def test_best_so_far_is_the_reference(best, loss, verdict):
    _, verdicts = play(PAPER, -1.5, [best, loss])
    assert verdicts == [BEHIND if best > -1.5 else BEST, verdict]


# Repeats


@pytest.mark.parametrize("bad", [-0.1, nan, inf])
def test_undone_period_is_lived_again_on_fresh_trajectories(bad):
    progress, _ = play(PAPER, -1.5, [-2.0, bad, bad])
    assert (progress.period, progress.repeats, progress.trajectories) == (1, 2, 3 * PAPER.period)
    assert (progress.best, progress.best_period) == (-2.0, 1)


def test_good_repeat_counts_once_and_clears_the_repeats():
    progress, verdicts = play(PAPER, -1.5, [-2.0, nan, nan, -2.5])
    assert verdicts == [BEST, UNDONE, UNDONE, BEST]
    assert (progress.period, progress.repeats, progress.best_period) == (2, 0, 2)


def test_after_the_last_repeat_the_period_counts():
    progress, verdicts = play(PAPER, -1.5, [-2.0] + 5 * [-0.1])
    assert verdicts == [BEST] + 4 * [UNDONE] + [Verdict(True, exploded=True)]
    assert (progress.period, progress.repeats) == (2, 0)
    assert (progress.best, progress.best_period) == (-2.0, 1)


@pytest.mark.parametrize(("loss", "skipped"), [(nan, 0.0), (inf, 0.0), (-3.0, 0.6), (-3.0, 1.0)])
@pytest.mark.parametrize("repeats", [0, 4])
def test_a_period_lost_in_every_try_ends_the_run(loss, skipped, repeats):
    schedule = replace(PAPER, max_repeats=repeats)
    progress, _ = play(schedule, -1.5, [-2.0])
    for _ in range(repeats):
        progress, verdict = judge(schedule, progress, loss, skipped)
        assert verdict == UNDONE and not progress.diverged
    progress, verdict = judge(schedule, progress, loss, skipped)
    assert verdict == UNDONE and progress.diverged and not progress.finished
    assert (progress.period, progress.best) == (1, -2.0)
    with pytest.raises(ValueError, match="no period to judge"):
        judge(schedule, progress, -3.0)


def test_half_of_the_updates_are_enough():
    progress, _ = play(PAPER, -1.5, [])
    assert judge(PAPER, progress, -2.0, 0.5)[1] == BEST


# The end of a stage


@pytest.mark.parametrize(
    ("losses", "best_period", "periods"),
    [
        ([-2.0] * 30, 1, 6),  # five without a new best after the first
        ([-2.0, -2.1] + [-2.0] * 30, 2, 7),
        ([-2.0] * 5 + [-2.1] + [-2.0] * 30, 6, 11),  # a new best on the last chance
        ([-2.0 - 0.1 * n for n in range(30)], 20, 20),  # the cap
        ([-2.0 - 0.1 * n for n in range(18)] + [-2.0] * 20, 18, 20),
    ],
)
def test_patience_and_cap(losses, best_period, periods):
    history = simulate(ONE_STAGE, lambda p: -1.5 if p.incoming is None else losses[p.period])
    assert len(history) == periods
    assert [verdict.stage_over for _, verdict in history] == [False] * (periods - 1) + [True]
    assert [before.period + 1 for before, verdict in history if verdict.best][-1] == best_period


def test_fewest_periods_outlast_a_short_patience():
    schedule = replace(ONE_STAGE, patience=1)
    assert len(simulate(schedule, lambda p: -2.0)) == schedule.min_periods


def test_repeats_are_no_periods():
    # Each period explodes once, and patience, fewest and cap count it once.
    losses = lambda p: nan if p.incoming is not None and not p.repeats else -2.0  # noqa: E731
    assert len(simulate(ONE_STAGE, losses)) == 2 * 6


def test_next_stage_begins_afresh_but_for_its_trajectories():
    progress, verdicts = play(PAPER, -1.5, [-2.0] * 6)
    assert verdicts[-1] == Verdict(True, stage_over=True)
    assert progress == Progress(stage=1, trajectories=6 * PAPER.period)


# Whole runs


@pytest.mark.parametrize(
    ("schedule", "loss", "periods"),
    [
        (PAPER, lambda p: -1.0, [6, 6, 6, 6]),
        (PAPER, lambda p: -1.0 - 0.01 * p.period, [20, 20, 20, 20]),
        (CPU, lambda p: -1.0, [6, 6, 6, 6]),
        (CPU, lambda p: -1.0 - 0.01 * p.period, [6, 6, 6, 6]),
        (SMOKE, lambda p: -1.0, [2, 2, 2, 2]),
        (SMOKE, lambda p: -1.0 - 0.01 * p.period, [2, 2, 2, 2]),
    ],
)
def test_whole_run(schedule, loss, periods):
    history = simulate(schedule, loss)
    stages = [before.stage for before, _ in history]
    assert [stages.count(stage) for stage in range(len(schedule.stages))] == periods
    seen = [before.trajectories for before, _ in history]
    assert seen == list(range(0, len(history) * schedule.period, schedule.period))


@pytest.mark.parametrize("schedule", [PAPER, CPU, SMOKE, CURRICULA["paper"].choice])
@pytest.mark.parametrize("seed", range(5))
def test_resumed_run_decides_the_same(schedule, seed):
    def losses():
        generator = random.Random(seed)
        return lambda progress: generator.choice([nan, inf, -0.1, generator.gauss(-1.5, 0.4)])

    assert simulate(schedule, losses(), through_json) == simulate(schedule, losses())


@pytest.mark.parametrize("schedule", [PAPER, CPU, SMOKE, CURRICULA["cpu"].choice])
def test_steps_left_come_true_without_a_new_best(schedule):
    """What is announced at every point is what then happens, validation on entry included."""
    points, progress = [], Progress()
    training = validation = 0
    while not progress.finished:
        points.append((steps_left(schedule, progress), training, validation, progress.stage))
        stage = schedule.stages[progress.stage]
        validation += schedule.validation_trajectories * stage.validation_unroll
        if progress.incoming is None:
            progress = enter(progress, -1.0)
            continue
        training += schedule.period * stage.unroll(progress.period)
        # The first period of a stage is a best of necessity; foreseen only once it is there.
        progress, _ = judge(schedule, progress, -1.0)
    assert steps_left(schedule, progress) == []
    certain = schedule.min_periods == schedule.max_periods
    for left, trained, validated, stage in points:
        announced = tuple(map(sum, zip(*left, strict=True)))
        assert len(left) == len(schedule.stages) - stage
        if certain:
            assert announced == (training - trained, validation - validated)
        else:
            assert announced[0] <= training - trained and announced[1] <= validation - validated


# Values that cannot be


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truncation": 300}, "multiple of the truncation, 300. Received: 100"),
        ({"stages": (Stage((150,), 200),)}, "truncation, 100. Received: 150"),
        ({"stages": (Stage((100,), 250),)}, "truncation, 100. Received: 250"),
        ({"stages": (Stage((100, 0), 200),)}, "truncation, 100. Received: 0"),
        ({"stages": (Stage((-100,), 200),)}, "truncation, 100. Received: -100"),
        (
            {"stages": (Stage((100,), 200, -0.1),)},
            "alpha must be at least 0 and finite. Received: -0.1",
        ),
        ({"stages": (Stage((100,), 200, nan),)}, "and finite. Received: nan"),
        ({"stages": (Stage((100,), 200, inf),)}, "and finite. Received: inf"),
        ({"stages": (Stage((100,), 200, 0.1, -1),)}, "cold_periods must be at least 0"),
        ({"stages": (Stage((), 200),)}, "at least one unroll"),
        ({"stages": ()}, "at least one stage"),
        ({"truncation": 0}, "truncation must be at least 1. Received: 0"),
        ({"meta_batch": 0}, "meta_batch must be at least 1. Received: 0"),
        ({"meta_batch": 3}, "multiple of the meta-batch. Received: 40 and 3"),
        ({"period": 0}, "period must be at least 1. Received: 0"),
        ({"min_periods": 0}, "min_periods must be at least 1. Received: 0"),
        ({"patience": 0}, "patience must be at least 1. Received: 0"),
        ({"validation_trajectories": 0}, "validation_trajectories must be at least 1"),
        ({"max_periods": 4}, "at least min_periods, 5. Received: 4"),
        ({"max_repeats": -1}, "Received: -1 and 0.5"),
        ({"tolerance": 0.0}, "Received: 4 and 0.0"),
        ({"tolerance": nan}, "Received: 4 and nan"),
        ({"tolerance": inf}, "Received: 4 and inf"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(PAPER, **changes)


def test_each_stage_needs_its_alpha():
    with pytest.raises(ValueError, match="2 unrolls and 1 alphas"):
        Curriculum(unrolls=(100, 200), alphas=(0.1,))


def test_choice_unroll_is_checked_too():
    with pytest.raises(ValueError, match="Choice policy: .* truncation, 100. Received: 150"):
        Curriculum(choice_unrolls=(150,)).choice  # noqa: B018


@pytest.mark.parametrize("progress", [Progress(), Progress(3, incoming=-1.0, finished=True)])
def test_nothing_to_judge(progress):
    with pytest.raises(ValueError, match="no period to judge"):
        judge(PAPER, progress, -1.0)
