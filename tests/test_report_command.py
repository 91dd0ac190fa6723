"""`l2o report`: which results a report is of."""

from pathlib import Path

import pytest
from bad_input import assert_refused
from made_results import made_evaluation

from l2o.commands.report import main
from l2o.evaluation.results import Result, write_results


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def a_fit(optimizer: str, epochs: int = 1, **values) -> list[Result]:
    return made_evaluation(optimizer, [1.0] * (epochs + 1), **values)


def reported(monkeypatch, *words: str, whole: bool = False) -> list[Result]:
    """What a report is written of; unless it is the whole, that is said, and it is kept apart."""
    given = []

    def write_report(results, output, cards, samples, selection):
        given.extend(results)
        assert selection == ("" if whole else " ".join(words))
        assert output.name == ("report" if whole else "selection")
        return ["page"]

    monkeypatch.setattr("l2o.commands.report.write_report", write_report)
    with pytest.raises(SystemExit) as end:
        main(["results.csv", *words])
    assert not end.value.code
    return given


@pytest.mark.parametrize(
    "words, kept",
    [
        ((), {0, 1, 2, 3, 4}),
        (("--problem", "all"), {0, 1, 2, 3, 4}),
        (("--problem", "mnist_cnn"), {0, 1, 2}),
        (("--problem", "mnist_cnn", "--epochs", "25"), {2}),
        (("--optimizer", "choice-large", "keras:Adam"), {0, 1, 4}),
        (("--optimizer", "oracle", "--epochs", "5"), {3}),
    ],
)
def test_a_report_is_of_what_is_named(here, monkeypatch, words, kept):
    fits = [
        a_fit(optimizer, epochs, problem=problem, replicate=replicate)
        for problem, optimizer, replicate, epochs in (
            ("mnist_cnn", "choice-large", 1, 5),
            ("mnist_cnn", "choice-large", 2, 5),
            ("mnist_cnn", "adam", 1, 25),
            ("fmnist_cnn", "adam", 1, 5),
            ("fmnist_cnn", "keras:Adam", 1, 5),
        )
    ]
    write_results("results.csv", sum(fits, []))
    found = reported(monkeypatch, *words, whole=len(kept) == 5)
    assert found == [row for k in sorted(kept) for row in fits[k]]


def test_a_replicate_that_is_named_is_not_pooled(here, monkeypatch):
    fits = [a_fit("mine", replicate=k, origin=str(k)) for k in (1, 2, 3)]
    write_results("results.csv", sum(fits, []))
    found = reported(monkeypatch, "--optimizer", "mine/1", "mine/3")
    assert [(r.optimizer, r.origin) for r in found[::2]] == [("mine/1", "1"), ("mine/3", "3")]
    found = reported(monkeypatch, "--optimizer", "mine", "mine/1")
    pool = [r.origin for r in found if r.optimizer == "mine"]
    alone = [r.origin for r in found if r.optimizer == "mine/1"]
    assert (pool, alone) == ([*"112233"], ["1", "1"])
    write_results("results.csv", sum(fits, a_fit("adam")))
    found = reported(monkeypatch, "--optimizer", "mine", "mine/1")  # as many rows as there are
    assert {r.optimizer for r in found} == {"mine", "mine/1"}


def test_a_report_finds_a_name_by_what_was_added_to_it(here, monkeypatch):
    names = ("mine+wd0.01", "mine+avg0.8+wd0.01", "adam", "adam+wd0.01")
    fits = {name: a_fit(name) for name in names}
    third = a_fit("mine+wd0.01", replicate=3)
    write_results("results.csv", sum(fits.values(), third))
    assert {r.optimizer for r in reported(monkeypatch, "--optimizer", "mine")} == {*names[:2]}
    assert reported(monkeypatch, "--optimizer", "adam") == fits["adam"]
    found = reported(monkeypatch, "--optimizer", "mine/1", "adam")
    assert {r.optimizer for r in found} == {"mine+wd0.01/1", "mine+avg0.8+wd0.01/1", "adam"}
    found = reported(monkeypatch, "--optimizer", "mine/3")
    assert {r.optimizer for r in found} == {"mine+wd0.01/3"}


def test_a_report_takes_the_names_its_tables_have(here, monkeypatch):
    fits = [a_fit("mine", origin=letter * 16) for letter in "ab"]
    write_results("results.csv", sum(fits, a_fit("adam")))
    assert reported(monkeypatch, "--optimizer", "mine [bbbbbb]") == fits[1]
    assert "no results of adam/1. " in assert_refused(main, "results.csv", "--optimizer", "adam/1")


@pytest.mark.parametrize(
    "words, said",
    [
        (("--optimizer", "adan"), "no results of adan. Did you mean adam? Allowed: adam"),
        (("--problem", "mnist_mlp"), "no results of mnist_mlp. "),
        (("--epochs", "3"), "no results of 3. Allowed: 1"),
        (("--jobs", "2"), "unrecognized arguments: --jobs 2"),
    ],
)
def test_a_report_of_nothing_is_one_line(here, words, said):
    write_results("results.csv", a_fit("adam"))
    assert said in assert_refused(main, "results.csv", *words)
    assert not Path("report").exists()


def test_results_that_cannot_be_looked_at_are_not_said_to_be_unwritable(here, monkeypatch):
    def read_results(*paths):
        raise PermissionError(13, "Permission denied", str(paths[0] / "results.csv"))

    monkeypatch.setattr("l2o.commands.report.read_results", read_results)
    (here / "closed").mkdir()
    said = assert_refused(main, "closed")
    assert "Permission denied: 'closed/results.csv'" in said and "write" not in said


def test_a_report_prints_the_time_to_the_last_loss_of_tuned_adamw(here, monkeypatch, capsys):
    fits = made_evaluation("tuned:AdamW", [2.0, 1.0, 0.5]), made_evaluation("mine", [2.0, 0.4, 0.6])
    write_results("results.csv", sum(fits, []))
    assert reported(monkeypatch, whole=True) == sum(fits, [])
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("  mine "))
    assert line.split() == ["mine", "1", "of", "1", "0.500"]
