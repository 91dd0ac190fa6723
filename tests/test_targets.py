"""The oracle and the time to its loss, and to the one that tuned AdamW ends with."""

import csv
from math import exp, inf, log

import numpy as np
import pytest
from made_results import made_evaluation
from scipy.stats import trim_mean

from l2o.reports.comparison import oracle, summarize
from l2o.reports.contents import write_report
from l2o.reports.targets import interquartile_mean, race, races, shares, targets, times
from l2o.reports.text import shares_table


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


# --- the last loss of tuned AdamW ---------------------------------------------------------------


def test_the_target_is_where_tuned_adamw_ends_and_its_fit_is_the_unit():
    found = race(
        only(
            made_evaluation("tuned:AdamW", [2.0, 0.1, 0.3, 0.2]),  # its best is not what counts
            made_evaluation("tuned:AdamW", [2.0, 0.5, 0.4, 0.4], repeat=2),
            made_evaluation("mine", [2.0, 0.4, 0.25, 0.3]),
            made_evaluation("late", [2.0, 0.4, 0.3, sqrt08 := (0.2 * 0.4) ** 0.5]),
            made_evaluation("never", [2.0, 0.4, 0.3, sqrt08 + 1e-6]),
        )
    )
    assert (found.target.loss, found.steps) == (pytest.approx(sqrt08), 300)
    assert {t.label: found.share(t) for t in found.times} == {
        "mine": pytest.approx(2 / 3), "late": 1, "never": inf
    }  # fmt: skip
    assert found.times[0].cpu_seconds == 1.5 * found.times[0].seconds == 6


def test_shares_against_a_loop_over_the_rows():
    """Four problems, three seeds, curves at random; one optimizer diverges, one is not on all."""
    generator, rows = np.random.default_rng(0), []
    names, problems = ("tuned:AdamW", "a", "b", "c"), ("p", "q", "r", "s")
    for problem in problems:
        for name in names[: 3 if problem == "s" else 4]:
            for repeat in (1, 2, 3):
                losses = [3.0, *np.exp(-np.cumsum(generator.uniform(0.0, 0.5, 8)))]
                if (name, problem, repeat) == ("b", "q", 2):
                    losses[5:] = [inf]
                rows += made_evaluation(name, losses, problem=problem, repeat=repeat, epochs=8)
    expected = {}
    for name in names[1:]:
        each = []
        for problem in problems:
            of = lambda who: [r for r in rows if (r.optimizer, r.problem) == (who, problem)]  # noqa: B023, E731
            ends = [r.validation_loss for r in of("tuned:AdamW") if r.epoch == 8]
            goal = np.prod(ends) ** (1 / 3)
            first = [
                min([r.steps for r in of(name) if r.repeat == repeat and r.validation_loss <= goal],
                    default=inf)
                for repeat in (1, 2, 3)
            ]  # fmt: skip
            if of(name):
                each.append(sorted(first)[1] / 800)
        expected[name] = each
    found = {s.label: s for s in shares(races(cases(rows)))}
    assert {k: [*s.by_case.values()] for k, s in found.items()} == expected
    assert {k: s.mean for k, s in found.items()} == pytest.approx(
        {k: trim_mean(each, 0.25) for k, each in expected.items()}
    )
    assert any(inf in each for each in expected.values()) and len(expected["c"]) == 3
    assert [s.mean for s in shares(races(cases(rows)))] == sorted(s.mean for s in found.values())


def test_the_interquartile_mean_takes_never_for_the_highest():
    assert interquartile_mean([0.2, 0.4, 0.6, inf]) == pytest.approx(0.5)
    assert interquartile_mean([0.2, 0.4, inf, inf]) == inf
    assert interquartile_mean([0.2, 0.4, inf]) == inf  # of three nothing is left out
    assert interquartile_mean([5.0, 1.0, 2.0, 3.0, 0.0, 9.0, 4.0]) == 3.0


@pytest.mark.parametrize(
    "losses", [None, [1.0, 2.0, 3.0], [2.0, 0.5, inf]], ids=["none", "worse", "diverged"]
)
def test_without_a_last_loss_of_tuned_adamw_there_is_a_line_that_says_so(losses, tmp_path):
    rows = made_evaluation("mine", [2.0, 0.5, 0.1])
    rows += made_evaluation("tuned:AdamW", losses) if losses else []
    assert races(cases(rows)) == {}
    said = "Time to the last loss of tuned:AdamW: needs fits of tuned:AdamW whose loss falls"
    assert shares_table(cases(rows)).startswith(said)
    write_report(rows, tmp_path)
    assert said in (tmp_path / "report.md").read_text().split("do not contain")[1]
    assert not (tmp_path / "tables" / "time_to_tuned.csv").exists()


def test_the_page_and_the_text_have_the_shares(tmp_path):
    rows = [
        *made_evaluation("tuned:AdamW", [2.0, 0.5, 0.4, 0.3]),
        *made_evaluation("mine", [2.0, 0.3, 0.2, 0.2]),
        *made_evaluation("lost", [2.0, 0.9, 0.8, 0.7]),
        *made_evaluation("mine", [2.0, 0.3, 0.2, 0.2], problem="mnist_mlp"),
    ]
    lines = shares_table(cases(rows)).splitlines()
    assert [line.split() for line in lines[2:4]] == [
        ["mine", "1", "of", "1", "0.333"], ["lost", "0", "of", "1", "never"]
    ]  # fmt: skip
    assert "Left out, without such a loss: 1 of 2" in " ".join(lines)
    assert max(map(len, lines)) <= 80
    write_report(rows, tmp_path)
    with open(tmp_path / "tables" / "time_to_tuned_by_problem.csv", newline="") as file:
        mine, _ = csv.DictReader(file)
    assert {k: float(mine[k]) for k in ("share", "steps", "seconds", "CPU seconds")} == {
        "share": pytest.approx(1 / 3), "steps": 100, "seconds": 2, "CPU seconds": 3
    }  # fmt: skip
    section = (tmp_path / "report.md").read_text().split("## Time to the last loss of tuned:")[1]
    assert "did not improve: mnist_mlp, 3 epochs" in section.split("\n## ")[0]
    assert "| mine | 1 | 1 | 0.333 |" in section and "| lost | 1 | 0 | never |" in section
