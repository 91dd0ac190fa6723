"""The search of the teachers' rates: what is chosen, the table, and the search itself on digits."""

from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from bad_input import files_of

from l2o.commands.tune import TRIALS, Search, search, tune
from l2o.errors import UserError
from l2o.evaluation.made import keep_made, made_with, read_made
from l2o.evaluation.tables import TableError, read_table
from l2o.evaluation.tuning import (
    RATES,
    Trial,
    choose,
    mean_losses,
    table,
    write_trials,
)
from l2o.problems import get_problem, load_dataset
from l2o.rules.pools import TEACHERS, TUNED_RATES
from l2o.runs.jobs import Workers
from l2o.runs.lock import DirectoryError
from l2o.tasks.load import load_task
from l2o.tasks.task import Task


def trial(teacher="adam", rate=0.1, seed=0, loss=0.5, **others) -> Trial:
    diverged = 17 if loss == inf else -1
    facts = {"problem": "mnist_cnn", "dataset": "mnist", "epochs": 5, "validation_accuracy": 0.9}
    facts |= {"validation_loss": loss, "diverged_at": diverged}
    return Trial(teacher=teacher, rate=rate, seed=seed, **facts | others)


def grid(**losses) -> list[Trial]:
    """Two seeds a rate, a tenth above and below these losses."""
    rates = (0.001, 0.01, 0.1)
    return [
        trial(teacher, rate, seed, loss + (-0.1, 0.1)[seed])
        for teacher, values in losses.items()
        for rate, loss in zip(rates, values, strict=True)
        for seed in (0, 1)
    ]


def test_the_grid_is_the_1_2_5_series():
    series = [m * 10.0**e for e in range(-4, 1) for m in (1, 2, 5)]
    assert RATES == pytest.approx([rate for rate in series if 5e-4 <= rate <= 1])


@pytest.mark.parametrize(
    "losses, rate, loss, at_edge",
    [
        ((0.5, 0.2, 0.4), 0.01, 0.2, False),
        ((0.2, 0.3, 0.4), 0.001, 0.2, True),
        ((0.5, 0.3, 0.1), 0.1, 0.1, True),
        ((0.5, 0.3, inf), 0.01, 0.3, False),
        ((inf, 0.3, inf), 0.01, 0.3, False),
        ((inf, inf, inf), None, inf, False),
    ],
)
def test_choice(losses, rate, loss, at_edge):
    choice = choose(grid(sgd=(9, 8, 7), adam=losses), "adam")
    assert (choice.rate, choice.at_edge) == (rate, at_edge)
    assert choice.validation_loss == pytest.approx(loss)


def test_one_diverged_seed_rules_a_rate_out():
    trials = [*grid(adam=(0.5, 0.2, 0.4)), trial(rate=0.01, seed=2, loss=inf)]
    assert mean_losses(trials, "adam")[0.01] == inf
    assert choose(trials, "adam").rate == 0.1


def test_table():
    trials = grid(sgd=(0.5, 0.3, inf), adam=(0.2, 0.3, 0.4))
    assert table(trials) == (
        "| rate | adam | sgd |\n|---|---|---|\n"
        "| 0.001 | **0.2000** | 0.5000 |\n"
        "| 0.01 | 0.3000 | **0.3000** |\n"
        "| 0.1 | 0.4000 | diverged |\n"
        "\nAt the edge of the grid: adam (0.001).\n"
    )


def test_trials_come_back_sorted(tmp_path):
    trials = [*grid(sgd=(0.1234567890123, 2, inf)), *grid(adam=(1, 2, 3))]
    write_trials(tmp_path / "a" / "trials.csv", trials)
    found = read_table(tmp_path / "a" / "trials.csv", Trial)
    assert found == trials[6:] + trials[:6]  # adam comes first in the pools


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: text.replace("rate", "speed", 1), "needs the columns"),
        (lambda text: "", "needs the columns"),
        (lambda text: text.replace("0.001", "fast", 1), "line 2 is no row"),
        (lambda text: text.replace("adam", "eve", 1), "line 2 .* no teacher"),
        (lambda text: text[:-12], "is cut off"),
    ],
)
def test_spoiled_table_of_trials(tmp_path, change, message):
    write_trials(tmp_path / TRIALS, grid(adam=(1, 2, 3)))
    (tmp_path / TRIALS).write_text(change((tmp_path / TRIALS).read_text()))
    with pytest.raises(TableError, match=message):
        read_table(tmp_path / TRIALS, Trial)


def test_committed_search_gave_the_committed_rates():
    trials = read_table(Path(__file__).parent.parent / "docs" / "tuning" / "trials.csv", Trial)
    assert {t.rate for t in trials} == set(RATES) and {t.dataset for t in trials} == {"mnist"}
    assert len(trials) == len(TEACHERS) * len(RATES) * 3
    assert {name: choose(trials, name).rate for name in TEACHERS} == TUNED_RATES


_SEARCH = Search(
    "mnist_mlp", "digits", teachers=("adam", "rmsprop"), rates=(0.02, 1e38), seeds=1, epochs=12
)


def _load():
    return load_task("mnist_mlp", "digits")


def test_search_and_its_resume(tmp_path, capsys):
    """One teacher's trials are there already: they are taken as they are, and only they."""
    there = [
        trial("adam", 0.02, 0, 0.75, problem="mnist_mlp", dataset="digits", epochs=12),
        trial("adam", 0.02, 9, 0.5, problem="mnist_mlp", dataset="digits", epochs=12),
        trial("adam", 1e38, 0, inf, problem="mnist_mlp", dataset="digits", epochs=12),
    ]
    write_trials(tmp_path / TRIALS, there)
    with Workers() as workers:
        tune(_SEARCH, _load, tmp_path, workers)
    out = capsys.readouterr().out
    assert "2 of 4 fits are there" in out and "4/4 rmsprop" in out and "left" in out
    trials = read_table(tmp_path / TRIALS, Trial)
    assert trials[:3] == [there[0], there[1], there[2]] and len(trials) == 5
    good, bad = trials[3:]
    assert (good.teacher, good.rate, good.diverged_at, good.dataset) == (
        "rmsprop",
        0.02,
        -1,
        "digits",
    )
    assert read_made(tmp_path) == made_with([_load().dataset])
    assert 0 < good.validation_loss < 2.5 and 0.1 <= good.validation_accuracy <= 1
    assert (bad.rate, bad.validation_loss) == (1e38, inf) and bad.diverged_at > 100
    text = (tmp_path / "table.md").read_text()
    assert "| 1e+38 | diverged | diverged |" in text and "**0.7500**" in text
    assert "IN PLACE OF mnist" in text
    assert f"adam         0.02  (in the pools: {TUNED_RATES['adam']:g})" in out
    before = (tmp_path / TRIALS).read_bytes()
    found = search(
        _SEARCH, _load().dataset, tmp_path / TRIALS, Workers(), lambda *args: None
    )  # nothing to do
    assert len(found) == 4 and there[1] not in found
    assert (tmp_path / TRIALS).read_bytes() == before


@pytest.mark.parametrize("other", [{"problem": "fmnist_cnn"}, {"dataset": "mnist"}, {"epochs": 2}])
def test_another_search_is_refused(tmp_path, other):
    facts = {"problem": "mnist_mlp", "dataset": "digits", "epochs": 12} | other
    write_trials(tmp_path / TRIALS, [trial(**facts)])
    before = (tmp_path / TRIALS).read_bytes()
    with pytest.raises(TableError, match="Choose another --output"):
        tune(_SEARCH, _load, tmp_path, Workers())
    assert (tmp_path / TRIALS).read_bytes() == before


@pytest.mark.parametrize("name, mark", [("digits", "0" * 8), ("l2o", "0.0")])
def test_a_search_of_other_data_or_another_release_is_refused(name, mark, tmp_path):
    made = made_with([_load().dataset])
    keep_made(tmp_path, made | {name: mark})
    write_trials(tmp_path / TRIALS, [trial(problem="mnist_mlp", dataset="digits", epochs=12)])
    before = files_of(tmp_path)
    with pytest.raises(TableError, match=f"was made with {name} {mark}, not {made[name]}.*--outp"):
        tune(_SEARCH, _load, tmp_path, Workers())
    assert files_of(tmp_path) | {".lock": b""} == before | {".lock": b""}


def test_fits_that_end_within_the_warm_up_are_refused(tmp_path):
    settings = replace(_SEARCH, epochs=5)
    with pytest.raises(UserError, match="--epochs must be at least 12.*Received: 5"):
        tune(settings, _load, tmp_path / "out", Workers())
    assert not (tmp_path / "out").exists()


def test_directory_of_another_is_left_alone(tmp_path):
    def load():
        raise AssertionError("data was read")

    (tmp_path / "table.md").write_text("years of work")
    with pytest.raises(DirectoryError, match="holds no trials.csv"):
        tune(_SEARCH, load, tmp_path, Workers())
    assert [p.name for p in tmp_path.iterdir()] == ["table.md"]


def test_fresh_search_moves_the_old_one_aside(tmp_path, monkeypatch):
    write_trials(tmp_path / "search" / TRIALS, grid(adam=(1, 2, 3)))
    data = load_dataset("digits")
    monkeypatch.setattr("l2o.commands.tune._tune", lambda *_: None)
    task = Task(get_problem("mnist_cnn"), data)
    tune(_SEARCH, lambda: task, tmp_path / "search", Workers(), fresh=True)
    assert not (tmp_path / "search" / TRIALS).exists()
    assert len(read_table(tmp_path / "search.old1" / TRIALS, Trial)) == 6
