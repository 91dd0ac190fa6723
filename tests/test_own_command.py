"""`--problem package.module:function` of both commands."""

from pathlib import Path

import numpy as np
import pytest

import l2o
from l2o.commands.evaluate import main as evaluate
from l2o.commands.report import main as report
from l2o.commands.train import main as train
from l2o.evaluation.results import read_results

_MINE = """
import keras, numpy, l2o

x = numpy.random.default_rng(0).normal(size=(60, 3))

def model():
    layers = keras.layers
    return keras.Sequential([layers.Input((3,)), layers.Dense(4, "tanh"), layers.Dense(1)])

def regression():
    data, test = (x[:50], x[:50].sum(1)), (x[50:], x[50:].sum(1))
    return l2o.Problem(model, data, test=test, loss="mse", batch_size=8)

def classes():
    two = lambda: keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    return l2o.Problem(two, (x, x[:, 0] > 0), batch_size=8)

def stateful():
    layers = keras.layers
    kept = lambda: keras.Sequential([layers.Input((3, 1), 8),
                                     layers.GRU(2, stateful=True, name="kept"), layers.Dense(1)])
    return l2o.Problem(kept, (x[..., None], x[:, 0]), loss="mse", batch_size=8)

def seeded():
    def build():
        keras.utils.set_random_seed(0)
        return model()
    return l2o.Problem(build, (x, x[:, 0]), loss="mse", batch_size=8)

def below_zero():
    loss = lambda y, p: keras.ops.square(p - y) - 1
    return l2o.Problem(model, (x, x[:, 0]), loss=loss, batch_size=8)

def raises():
    raise RuntimeError("the file\\nis not there")

def quits():
    raise SystemExit

def moves():
    import os
    os.makedirs("data", exist_ok=True)
    os.chdir("data")
    return classes()

def number():
    return 3

not_a_function = 3
"""
_SHORT = (
    "--strategy none --preset smoke --truncation 2 --unrolls 2 --alphas 0.2 --updates 2 "
    "--warmup-steps 2"
).split()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    monkeypatch.delitem(__import__("sys").modules, "mine_own", raising=False)
    Path("mine_own.py").write_text(_MINE)
    Path("broken_own.py").write_text("import nothing_of_the_sort")
    Path("needs_own.py").write_text("import needs")
    Path("quits_own.py").write_text("import sys; sys.exit()")


def call(command, *words) -> int:
    with pytest.raises(SystemExit) as end:
        command([str(word) for word in words])
    return end.value.code or 0


_WRONG = {
    "nowhere:f": "there is no module nowhere",
    "nowhere.at.all:f": "there is no module nowhere.at.all",
    "broken_own:f": "importing broken_own failed: ModuleNotFoundError: No module named 'nothing_of",
    "mine_own:f": "mine_own.py has no function f",
    "mine_own:not_a_function": "has no function not_a_function",
    "sys:f": "sys has no function f",
    "needs_own:f": "importing needs_own failed: ModuleNotFoundError: No module named 'needs'",
    "quits_own:f": "importing quits_own failed: SystemExit",
    "mine_own:quits": "quits failed: SystemExit",
    "mine_own:raises": "raises failed: RuntimeError: the file is not there",
    "mine_own:number": "number must return an l2o.Problem. Received: a int",
    "mine_own:stateful": "error: mine_own:stateful: Layer 'kept' is stateful",
    "mine_own:": "unknown name 'mine_own:'. Allowed: mnist_cnn, ",
    "mine_own": "or package.module:function for your own",
    "mine_own:regression --data digits": "--data: mine_own:regression brings its own data",
    "mine_own:regression --data-dir x": "--data-dir: mine_own:regression brings its own data",
}


@pytest.mark.parametrize("command", [train, evaluate], ids=["train", "evaluate"])
@pytest.mark.parametrize("words", _WRONG)
def test_wrong_problems(command, words, capfd):
    output = [] if command is train else ["--optimizer", "adam"]
    assert call(command, "--preset", "smoke", *output, "--problem", *words.split()) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and _WRONG[words] in error
    assert sorted(p.suffix for p in Path().iterdir() if p.is_file()) == [".py"] * 4
    assert not Path("runs").exists() and not Path("results").exists()


def test_results_go_where_they_should_wherever_a_problem_goes(tmp_path):
    line = ("--problem", "mine_own:moves", "--optimizer", "adam", "--preset", "smoke")
    assert call(evaluate, *line, "--output", "out") == 0
    assert (tmp_path / "out" / "results.csv").exists() and Path.cwd() == tmp_path


_ALIKE = "Note: model_fn of mine_own:seeded makes the same initial weights every time"


def test_a_start_that_is_always_the_same_is_said_once(capfd):
    line = ("--optimizer", "adam", "--preset", "smoke", "--repeats", "2")
    assert call(evaluate, "--problem", "mine_own:seeded", "mine_own:classes", *line) == 0
    assert capfd.readouterr().out.count("Note: model_fn") == 1


@pytest.mark.slow
def test_a_start_that_is_always_the_same_is_said_once_with_several_processes(capfd):
    line = ("--problem", "mine_own:seeded", "--jobs", "2", "--output", "out")
    assert call(evaluate, *line, "--optimizer", "adam", "--preset", "smoke", "--repeats", "2") == 0
    assert capfd.readouterr().out.count(_ALIKE) == 1
    assert call(train, *_SHORT, *line[:-1], "run", "--replicates", "2") == 0
    assert capfd.readouterr().out.count(_ALIKE) == 1


def test_a_loss_that_need_not_be_positive(capfd):
    assert call(train, *_SHORT, "--problem", "mine_own:below_zero") == 2
    assert "--set meta_loss=difference" in capfd.readouterr().err


@pytest.mark.slow
# Figures of three problems with fits so short are cramped.
@pytest.mark.filterwarnings("ignore:constrained_layout not applied")
def test_train_and_evaluate(capfd):
    line = [*_SHORT, "--problem", "mine_own:regression", "--output", "run"]
    assert call(train, *line) == 0
    assert "Data: own data" in capfd.readouterr().out
    card = l2o.load_policy("run/policy").card
    assert card["problem"] == "mine_own:regression" and "(42 train, 8 val" in card["data"]
    assert card["network"]["batch_size"] == 8
    assert call(train, *line) == 0
    assert "which is over" in capfd.readouterr().out

    line = ["--optimizer", "run", "adam", "--repeats", "2", "--epochs", "21", "--output", "out"]
    problems = ["mine_own:regression", "mine_own:classes", "mine_own:below_zero"]
    assert call(evaluate, *line, "--problem", *problems) == 0
    table = capfd.readouterr().out
    assert "mine_own:regression, 21 epochs" in table
    assert "fell below 0, where it has no logarithm" in " ".join(table.split())
    results = read_results("out", "out")  # what is not a number differs from nothing
    for problem in problems:
        rows = [row for row in results if row.problem == problem]
        assert len(rows) == 2 * 2 * 22 and np.isfinite([r.validation_loss for r in rows]).all()
        tested = problem == "mine_own:regression"
        assert np.isfinite([r.test_loss for r in rows]).all() == tested
        accuracies = np.array([(r.train_accuracy, r.validation_accuracy) for r in rows])
        assert np.isfinite(accuracies).all() == (problem == "mine_own:classes")
        assert np.isnan([r.test_accuracy for r in rows]).all()
    assert call(evaluate, *line, "--problem", *problems) == 0
    assert "12 of 12 evaluations are there" in capfd.readouterr().out
    assert call(report, "out") == 0
    page = Path("out/report/report.md").read_text()
    assert "Appendix E.3: validation accuracy by epoch" in page
    assert "mine_own:regression" in page and "nan" not in page
