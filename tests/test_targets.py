"""The oracle and the time to its loss."""

from math import exp, inf, log

import pytest
from made_results import made_evaluation

from l2o.reports.comparison import oracle, summarize
from l2o.reports.targets import targets, times


def cases(*evaluations):
    return summarize(row for rows in evaluations for row in rows)


def only(*evaluations):
    """The summaries of the one case there is."""
    (summaries,) = cases(*evaluations).values()
    return summaries


def test_oracle_is_the_tuned_teacher_with_the_best_mean():
    summaries = only(
        made_evaluation("adam", [2.0, 0.1, 0.3]),
        made_evaluation("adam", [2.0, 0.5, 0.4], repeat=2),
        made_evaluation("sgd", [2.0, 0.3, 0.15]),
        made_evaluation("sgd", [2.0, 0.3, 0.15], repeat=2),
        made_evaluation("adam@0.01", [2.0, 0.3, 0.01]),
        made_evaluation("choice-large", [2.0, 0.3, 0.01]),
        made_evaluation("nadam", [2.0, 0.3, 0.01]),
    )
    assert oracle(summaries).label == "sgd"


def test_oracle_never_is_a_teacher_that_diverged():
    summaries = only(
        made_evaluation("adam", [2.0, 0.01, 0.01]),
        made_evaluation("adam", [2.0, 0.01, inf], repeat=2),
        made_evaluation("sgd", [2.0, 1.0, 0.9]),
    )
    assert oracle(summaries).label == "sgd"


def test_a_loss_below_zero_has_reached_every_target():
    _, best = times(
        only(
            made_evaluation("adam", [2.0, 0.5, 0.1]),
            made_evaluation("mine", [2.0, 0.5, -0.3]),
        )
    )
    assert {t.label: t.steps for t in best} == {"adam": 200, "mine": 200}


def test_oracle_never_is_a_teacher_whose_loss_fell_below_zero():
    """It may well be the better one, but its mean is of what is left."""
    found = [
        *(made_evaluation("adam", [2.0, 0.2], repeat=k) for k in (1, 2, 3)),
        made_evaluation("sgd", [2.0, -0.3]),
        made_evaluation("sgd", [2.0, 0.1], repeat=2),
    ]
    summaries = only(*found)
    assert oracle(summaries).label == "adam"
    sgd = next(s for s in summaries if s.label == "sgd")
    assert sgd.test == pytest.approx(log(0.11)) and sgd.final_train == pytest.approx(log(0.09))
    assert oracle(only(*found[3:])) is None


def test_no_oracle_without_teachers():
    summaries = only(made_evaluation("nadam", [2.0, 1.0]))
    assert oracle(summaries) is None
    assert targets(summaries) == () and times(summaries) == []


def test_each_problem_has_its_own_oracle():
    found = cases(
        made_evaluation("adam", [2.0, 0.1]),
        made_evaluation("sgd", [2.0, 0.2]),
        made_evaluation("adam", [2.0, 0.2], problem="mnist_mlp"),
        made_evaluation("sgd", [2.0, 0.1], problem="mnist_mlp"),
    )
    assert [oracle(summaries).label for summaries in found.values()] == ["adam", "sgd"]


def test_targets_are_the_oracles_best_and_most_of_its_fall():
    fall, best = targets(
        only(
            made_evaluation("adam", [2.0, 0.2, 0.4]),
            made_evaluation("adam", [3.0, 0.2, 0.1], repeat=2),
        )
    )
    goal = exp((log(0.2) + log(0.1)) / 2)
    assert best.loss == pytest.approx(goal)
    assert fall.loss == pytest.approx(2.5 - 0.95 * (2.5 - goal))


def test_an_oracle_that_never_improved_gives_no_target():
    assert targets(only(made_evaluation("adam", [1.0, 2.0, 3.0]))) == ()


def test_time_is_the_first_epoch_at_or_below_the_target():
    fall, best = times(
        only(
            made_evaluation("adam", [2.0, 0.2, 0.1, 0.1]),
            made_evaluation("choice", [2.0, 0.1, 0.5, 0.05], steps=50, seconds=3.0),
            made_evaluation("nadam", [2.0, 0.19, 0.19, 0.11]),
        )
    )
    assert [t.label for t in best] == ["choice", "adam", "nadam"]
    by = {t.label: t for t in best}
    assert (by["choice"].steps, by["choice"].seconds) == (50, 3.0)
    assert (by["adam"].steps, by["adam"].seconds) == (200, 4.0)
    assert (by["nadam"].steps, by["nadam"].seconds, by["nadam"].reached) == (inf, inf, 0)
    # 95% of the fall from 2 to 0.1 is 0.195.
    assert {t.label: t.steps for t in fall} == {"choice": 50, "adam": 200, "nadam": 100}


def test_half_never_reached_makes_the_median_never():
    _, best = times(
        only(
            made_evaluation("adam", [2.0, 0.2]),
            made_evaluation("choice", [2.0, 0.1]),
            made_evaluation("choice", [2.0, 0.3], repeat=2),
            made_evaluation("nadam", [2.0, 0.1]),
            made_evaluation("nadam", [2.0, 0.3], repeat=2),
            made_evaluation("nadam", [2.0, 0.1], repeat=3),
        )
    )
    by = {t.label: t for t in best}
    assert (by["choice"].reached, by["choice"].steps) == (1, inf)
    assert (by["nadam"].reached, by["nadam"].steps) == (2, 100)


def test_who_diverges_has_reached_only_what_came_before():
    _, best = times(
        only(
            made_evaluation("adam", [2.0, 0.5, 0.2]),
            made_evaluation("early", [2.0, 0.1, inf]),
            made_evaluation("late", [2.0, 0.4, inf]),
        )
    )
    assert {t.label: t.reached for t in best} == {"adam": 1, "early": 1, "late": 0}
