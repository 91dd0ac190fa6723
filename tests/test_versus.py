"""Who is ahead of whom: the t-test, Holm's correction, wins and losses."""

from dataclasses import replace
from math import isnan, nan

import numpy as np
import pytest
from made_results import made_evaluation
from scipy import stats

from l2o.reports.comparison import summarize
from l2o.reports.contents import write_report
from l2o.reports.versus import duels, holm, is_baseline


def results(losses: dict[str, dict[str, list[float]]]):
    """One epoch's last loss for each problem, optimizer and seed."""
    rows = []
    for problem, optimizers in losses.items():
        for name, values in optimizers.items():
            for seed, value in enumerate(values):
                for row in made_evaluation(name, [2.0, value - 0.1, value]):
                    rows.append(replace(row, problem=problem, seed=seed, repeat=seed + 1))
    return rows


def test_the_paired_t_test_of_the_last_losses():
    one, two = [0.50, 0.61, 0.42], [0.55, 0.63, 0.50]
    cases = summarize(results({"p": {"mine": one, "tuned:AdamW": two}}))
    (duel,) = duels(cases, "mine", "tuned:AdamW")
    samples = np.log(np.add(one, 1e-10)) - np.log(np.add(two, 1e-10))
    assert duel.difference == pytest.approx(samples.mean(), rel=1e-6)
    assert duel.p == pytest.approx(stats.ttest_rel(np.log(one), np.log(two)).pvalue, rel=1e-5)
    low, high = stats.t.interval(0.95, 2, samples.mean(), stats.sem(samples))
    assert (duel.low, duel.high) == (pytest.approx(low, rel=1e-5), pytest.approx(high, rel=1e-5))
    assert duel.pairs == 3 and duel.corrected == duel.p


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9]) and holm([]) == []
    found = holm([nan, 0.01])
    assert isnan(found[0]) and found[1] == 0.01


def test_one_seed_tells_nothing_and_seeds_that_one_lacks_are_left_out():
    cases = summarize(results({"p": {"mine": [0.1], "tuned:AdamW": [0.9, 0.8]}}))
    (duel,) = duels(cases, "mine", "tuned:AdamW")
    assert duel.pairs == 1 and duel.verdict == "tie" and isnan(duel.p)
    assert duel.difference < -2


def test_the_report_counts_wins_ties_and_losses(tmp_path):
    clear, same = ([0.10, 0.11, 0.12], [0.50, 0.51, 0.53]), ([0.3, 0.5, 0.4], [0.4, 0.3, 0.5])
    rows = results({
        "ahead": {"mine": clear[0], "tuned:AdamW": clear[1], "keras:Adam": clear[1]},
        "level": {"mine": same[0], "tuned:AdamW": same[1]},
        "behind": {"mine": clear[1], "tuned:AdamW": clear[0]},
    })  # fmt: skip
    write_report(rows, tmp_path)
    lines = (tmp_path / "tables/wins.csv").read_text().splitlines()
    assert lines[1].startswith("mine,tuned:AdamW,1,1,1,")
    assert len((tmp_path / "tables/versus.csv").read_text().splitlines()) == 4
    assert "Policies and baselines of today" in (tmp_path / "report.md").read_text()


def test_what_counts_as_a_baseline_of_today():
    assert is_baseline("tuned:Muon") and is_baseline("keras:AdamW@0.003+cosine+decay0.1")
    assert not any(map(is_baseline, ("adam", "keras:Adam", "choice-large+avg0.8+wd0.0003")))
