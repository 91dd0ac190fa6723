"""examples/: what they say when they cannot, and that a figure is written in one piece."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from made_results import made_evaluation

from l2o import problems
from l2o.evaluation import evaluations
from l2o.tasks.privacy import PrivacyError

_EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path) -> Path:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(monkeypatch, line: str) -> int:
    """An example's exit status."""
    name, *words = line.split()
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(_EXAMPLES / name), run_name="__main__")
    return end.value.code


def error_of(monkeypatch, capsys, line: str) -> str:
    """The one line that a wrong command line gives, with exit status 2."""
    assert call(monkeypatch, line) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


_WRONG = {
    "keras_fit.py choice-large --batch 0": "--batch: must be a whole number of at least 1, not '0'",
    "keras_fit.py choice-large --epochs -1": "--epochs: must be a whole number of at least 1",
    "keras_fit.py nowhere": "nowhere",
    "amalgamate_own.py what": "unrecognized arguments: what",
    "amalgamate_own.py --output file": "file is not a directory",
    "figure_3.py choice-large --repeats 0": "--repeats: must be a whole number of at least 1",
    "figure_3.py choice-large --epochs 1": "--epochs must be at least 2. Received: 1",
    "figure_3.py choice-large --problem nothing": "nothing",
    "figure_3.py nowhere": "'nowhere' is no optimizer",
    "figure_3.py foreign --problem digits_cnn": "neither a policy nor a run",
}


@pytest.mark.parametrize("line", _WRONG)
def test_what_is_wrong_is_one_line(line, here, monkeypatch, capsys):
    (here / "foreign").mkdir()
    (here / "file").write_text("mine\n")
    assert _WRONG[line] in error_of(monkeypatch, capsys, line)


_FIGURE = "figure_3.py choice-large --problem digits_cnn --epochs 2"


def made(todo, plan, directory, *_):
    """In place of the fits."""
    assert len({candidate.name for _, _, candidate in todo}) == len(todo)
    for task, repeat, candidate in todo:
        key = plan.key(task, candidate, repeat)
        for row in made_evaluation("x", [2.0, 1.0, 0.5]):
            directory.results.append(replace(row, **key._asdict()))


def test_a_teacher_is_not_fitted_twice_for_figure_3(monkeypatch):
    monkeypatch.setattr(evaluations, "_in_turn", made)
    assert call(monkeypatch, _FIGURE.replace("choice-large", "adam")) == 0


def test_of_larger_problems_figure_8_is_drawn(monkeypatch, capsys):
    monkeypatch.setattr(evaluations, "_in_turn", made)
    digits = problems.load_dataset("digits")
    monkeypatch.setattr(problems, "load_dataset", lambda *_: digits)
    assert call(monkeypatch, _FIGURE.replace("digits_cnn", "cifar10_resnet52")) == 0
    assert "Figure 8: larger evaluations, of cifar10_resnet52" in capsys.readouterr().out


def test_figure_3_is_written_in_one_piece_or_not_at_all(here, monkeypatch, capsys):
    monkeypatch.setattr(evaluations, "_in_turn", made)
    figure = here / "results/figure-3/figure-3.png"
    assert call(monkeypatch, _FIGURE) == 0
    assert "steps of digits_cnn on digits are all warm-up" in capsys.readouterr().out
    assert figure.read_bytes().startswith(b"\x89PNG")
    figure.unlink()
    figure.mkdir()
    assert "figure-3.png" in error_of(monkeypatch, capsys, _FIGURE)
    assert not list(figure.parent.glob(".*.tmp"))


@pytest.mark.parametrize("file, said", [("thesis.tex", "left alone"), ("results.csv", "columns")])
def test_a_directory_that_is_not_its_own_is_one_line(file, said, here, monkeypatch, capsys):
    (here / "results/figure-3").mkdir(parents=True)
    (here / "results/figure-3" / file).write_text("mine\n")
    assert said in error_of(monkeypatch, capsys, _FIGURE)


def test_data_or_privacy_that_cannot_be_had_is_one_line(here, monkeypatch, capsys):
    def fails(*_):
        raise error

    for place, name, error in (
        (evaluations, "_in_turn", PrivacyError("not with this Python")),
        (problems, "load_dataset", problems.DatasetUnavailable("not at hand")),
    ):
        monkeypatch.setattr(place, name, fails)
        assert str(error) in error_of(monkeypatch, capsys, _FIGURE)
