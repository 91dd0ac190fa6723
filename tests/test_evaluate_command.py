"""python evaluate.py: table, resuming, and what it says when it cannot."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from bad_input import files_of
from made_data import tiny
from made_results import made_evaluation
from made_weights import made_weights, make_policy

import l2o
from l2o import problems, save_policy
from l2o.commands.evaluate import main
from l2o.commands.report import main as report
from l2o.errors import UserError
from l2o.evaluation import protocol as running
from l2o.evaluation.baselines import get_candidates
from l2o.evaluation.evaluations import Comparison, _run_one, _start_worker
from l2o.evaluation.forecast import Forecast
from l2o.evaluation.made import made_with
from l2o.evaluation.protocol import Plan, missing, run_evaluations
from l2o.evaluation.results import VERSION, by_evaluation, read_results, write_results
from l2o.evaluation.search import trial, tuned
from l2o.evaluation.store import ResultsDirectory, steps_file
from l2o.problems import PROBLEMS, Batch, Dataset, get_problem
from l2o.problems.catalog import SUITES
from l2o.rules import TEACHERS, Averaged, Choice, RNNProp, WarmUp, decayed, get_pool
from l2o.runs.lock import DirectoryError
from l2o.tasks.task import Task


@pytest.fixture
def here(monkeypatch, tmp_path) -> Path:
    """An empty working directory, and every dataset a tiny one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(problems, "load_dataset", tiny)
    return tmp_path


def call(*words: str, main=main) -> int:
    with pytest.raises(SystemExit) as exit:
        main(list(words))
    return exit.value.code or 0


def error_of(capsys, *words: str, main=main) -> str:
    """The one line that a wrong command line gives, with exit status 2."""
    assert call(*words, main=main) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


# --- the command --------------------------------------------------------------------------------


def test_commands_are_in_float32_and_say_so_where_keras_would_not_be(here, capsys, float64):
    assert call("--preset", "smoke", "--epochs", "51", "--optimizer", "choice-small") == 0
    out = capsys.readouterr().out
    assert "Note: in float32, not in the float64 of Keras' configuration" in out
    assert "Note: 100 of the 102 steps of mnist_cnn on mnist are warm-up, SGD for every" in out
    assert keras.config.floatx() == keras.config.dtype_policy().name == "float32"


def test_evaluation_from_nothing_to_table_and_again(here, capsys):
    command = ("--preset", "smoke", "--repeats", "2", "--problem", "mnist_mlp", "mnist_dp")
    assert call(*command) == 0
    out = capsys.readouterr().out
    assert "Expected time" in out
    assert "2 steps of mnist_mlp on mnist are all warm-up, steps of SGD, for choice-large" in out
    table = out[out.index("\nmnist_mlp, 1 epoch") :]
    assert "ε is what privacy was spent" in table and "Log train is of" in table
    names = {word for word in table.split() if word.startswith(("choice", "keras"))}
    assert names == {
        "choice-large+avg0.8+wd0.0003", "keras:Adam+constant", "keras:AdamW+cosine",
    }  # fmt: skip
    results = read_results(here / "results" / "smoke")
    evaluations = by_evaluation(results)
    assert len(evaluations) == 2 * 2 * 3
    for key, rows in evaluations.items():
        assert [row.epoch for row in rows] == [0, 1] and rows[1].steps == 2
        assert key.seed == key.repeat - 1
        private = key.problem == "mnist_dp"
        assert np.isfinite(rows[1].epsilon) == private == bool(rows[1].privacy)
        steps = np.load(here / "results" / "smoke" / "steps" / steps_file(key))
        assert steps["loss"].shape == steps["accuracy"].shape == (2,)
        assert steps["loss"].mean() == pytest.approx(rows[1].train_loss)
    starts = {(k.problem, k.repeat): set() for k in evaluations}
    for key, rows in evaluations.items():
        starts[key.problem, key.repeat].add((rows[0].validation_loss, rows[0].train_loss))
    assert all(len(losses) == 1 for losses in starts.values())  # paired
    assert len(set.union(*starts.values())) == 4
    capsys.readouterr()
    before = (here / "results" / "smoke" / "results.csv").read_text()
    assert call(*command) == 0
    out = capsys.readouterr().out
    assert "12 of 12 evaluations are there" in out and "Expected" not in out
    assert out[out.index("\nmnist_mlp, 1 epoch") :] == table
    assert (here / "results" / "smoke" / "results.csv").read_text() == before


def test_a_directory_of_others_is_refused_before_data_is_read(here, capsys, monkeypatch):
    monkeypatch.setattr(problems, "load_dataset", None)
    (here / "foreign").mkdir()
    (here / "foreign" / "thesis.tex").touch()
    words = ("--optimizer", "adam", "--output", "foreign")
    assert "foreign is not empty and holds no results.csv" in error_of(capsys, *words)


def test_data_are_those_that_the_flags_say(here, capsys, monkeypatch):
    def missing(*words):
        raise problems.DatasetUnavailable(f"asked for {words[:3]}")

    monkeypatch.setattr(problems, "load_dataset", missing)
    words = ("--problem", "fmnist_cnn", "--data", "tfds", "--data-dir", "there")
    asked = "error: asked for ('fashion_mnist', 'tfds', 'there')"
    assert error_of(capsys, "--optimizer", "adam", *words) == asked


def test_replicates_that_stand_together_are_named(here, capsys):
    words = ("--preset", "smoke", "--problem", "mnist_mlp", "--averaging", "0")
    for policies, said in (
        (("choice-large-long/3", "adam"), "choice-large-long (replicate 3), adam"),
        (("rnnprop", "rnnprop/2"), "rnnprop (replicates 1, 2)"),
    ):
        assert call(*words, "--optimizer", *policies) == 0
        assert f"Optimizers: {said}\n" in capsys.readouterr().out


def test_with_jobs_no_time_is_measured_before(here, capsys, monkeypatch):
    monkeypatch.setattr("l2o.runs.jobs.Workers.spread", lambda *_: [])
    monkeypatch.setattr("l2o.evaluation.evaluations.Forecast", None)
    words = ("--preset", "smoke", "--problem", "mnist_mlp", "--optimizer", "adam", "--jobs", "2")
    assert call(*words) == 0
    assert "Expected" not in capsys.readouterr().out


def test_a_process_of_jobs_runs_the_evaluation_that_is_meant(tmp_path):
    """One policy under two names, and with a decay or without, are different evaluations."""
    path = make_policy(tmp_path / "mine")
    candidates = [get_candidates(f"{name}={path}")[0] for name in "ab"]
    candidates.append(candidates[1].using(weight_decay=0.1))
    task, plan = Task(get_problem("mnist_mlp"), tiny("mnist")), Plan(3, 1)
    bench = SimpleNamespace(plan=plan, run=lambda task, repeat, candidate, _: (candidate, repeat))
    for candidate in candidates:
        key = plan.key(task, candidate, 3)
        assert _run_one((bench, [task], candidates), plan, key, ()) == (candidate, 3)
    with pytest.raises(UserError, match="mnist_mlp or a has changed since"):
        other = key._replace(optimizer="a", data="other data")
        _run_one((bench, [task], candidates[:1]), plan, other, ())


def test_a_process_of_jobs_runs_a_searchs_optimizer_as_it_is_used():
    task, plan = Task(get_problem("mnist_mlp"), tiny("mnist")), Plan(1, 1)
    bench = SimpleNamespace(run=lambda task, repeat, candidate, _: candidate)
    best = "keras:SGD@0.1+linear"
    candidate = tuned("tuned:SGD", best, 3, 0).using(weight_decay=0.1, ema=0.9)
    assert candidate.name == "tuned:SGD+wd0.1+ema0.9"
    for one in (candidate, trial(best)):
        found = _run_one((bench, [task], []), plan, plan.key(task, one, 1), one.described)
        assert (found.name, found.origin) == (one.name, one.origin)


def test_a_worker_with_other_data_is_refused():
    comparison = Comparison(("digits_cnn",), ("adam",), (), Plan(1, 1))
    made = made_with(task.dataset for task in comparison.tasks())
    assert _start_worker(comparison, made)[1][0].name == "digits_cnn"
    with pytest.raises(UserError, match="other data or another release of l2o: .*'digits': '"):
        _start_worker(comparison, made | {"digits": "0" * 8})


def test_another_programs_files_stay_where_a_table_is_not_ours(here, capsys):
    draft = here / "results" / "cpu" / "deep" / ".draft.tmp"
    draft.parent.mkdir(parents=True)
    draft.write_text("mine")
    (here / "results" / "cpu" / "results.csv").write_text("mine,1\n")
    half = draft.with_name(".results.csv.77.tmp")
    half.write_text("half")
    command = ("--problem", "mnist_mlp", "--optimizer", "adam", "--epochs", "1")
    assert "needs the columns" in error_of(capsys, "--preset", "cpu", *command)
    assert draft.exists() and half.exists()
    write_results(here / "results" / "cpu" / "results.csv", [])
    ResultsDirectory(here / "results" / "cpu").close()
    assert draft.exists() and not half.exists()


def test_a_stopped_evaluation_keeps_what_was_over_and_goes_on(here, capsys, monkeypatch):
    command = (
        "--preset",
        "smoke",
        "--problem",
        "mnist_mlp",
        "--optimizer",
        "adam",
        "sgd",
        "rmsprop",
    )
    run, runs = running.Fit.run, []

    def stopped(self, *args):
        runs.append(args)
        if len(runs) == 2:
            raise KeyboardInterrupt
        return run(self, *args)

    monkeypatch.setattr(running.Fit, "run", stopped)
    assert call(*command) == 130
    assert "the same command goes on" in capsys.readouterr().out
    assert {r.optimizer for r in read_results("results/smoke")} == {"adam"}
    assert call(*command) == 0
    assert len(runs) == 4
    assert {r.optimizer for r in read_results("results/smoke")} == {"adam", "sgd", "rmsprop"}


def test_a_seed_is_one_fit_whichever_repeat_it_is(here, capsys):
    words = ("--preset", "smoke", "--problem", "mnist_mlp", "--optimizer", "adam", "--repeats", "2")
    assert call(*words) == 0
    capsys.readouterr()
    assert call(*words, "--seed", "1") == 0
    out = capsys.readouterr().out
    assert "1 of 2 evaluations are there" in out and "left out" not in out
    rows = read_results("results/smoke")
    assert [r.seed for r in rows if r.epoch == 1] == [0, 1, 2]
    again = [replace(r, repeat=9, seconds=7.0) for r in rows if r.seed == 1]
    write_results("results/smoke/results.csv", rows + again)
    assert call(*words, "--seed", "1") == 0
    once = capsys.readouterr().out
    assert "as other repeats: 1\n" in once
    assert once[once.index("\nmnist_mlp, 1 epoch") :] == out[out.index("\nmnist_mlp, 1 epoch") :]
    assert read_results("results/smoke") == rows + again  # nothing that was found is thrown away
    write_results("again.csv", again)
    assert call("results/smoke", "again.csv", main=report) == 0
    assert "as other repeats: 1\n" in capsys.readouterr().out
    assert "Evaluations: 3, of 1 optimizers" in Path("results/smoke/report/report.md").read_text()


def test_divergence_is_a_result(here, capsys):
    words = ("--preset", "smoke", "--epochs", "60", "--problem", "mnist_mlp")
    assert call(*words, "--optimizer", "sgd@1e38") == 0
    assert "1 of 1 DIVERGED (at step 101)" in capsys.readouterr().out
    assert read_results("results/smoke")[-1].diverged_at == 101


def test_an_optimizer_with_weight_decay_is_one_more(here, capsys):
    words = ("--preset", "smoke", "--problem", "mnist_mlp", "--optimizer", "adam")
    for decay in ((), ("--weight-decay", "0.01"), ("--weight-decay", "0.01", "--ema", "0.5")):
        assert call(*words, *decay) == 0
    assert capsys.readouterr().out.count("Note: weight decay of 0.01 a step is a lot") == 2
    last = {row.optimizer: row for row in read_results("results/smoke") if row.epoch == 1}
    assert list(last) == ["adam", "adam+wd0.01", "adam+wd0.01+ema0.5"]
    plain, decayed, averaged = last.values()
    assert plain.train_loss != decayed.train_loss == averaged.train_loss
    assert len({row.origin for row in last.values()}) == 3


def test_a_policy_is_evaluated_with_its_own_weight_decay(here, capsys):
    """Unless another is asked for."""
    rule, words = RNNProp(units=2), ("--preset", "smoke", "--problem", "mnist_mlp", "--optimizer")
    for name, decay in (("bare", 0.0), ("mine", 0.01)):
        save_policy(here / name, decayed(rule, decay), made_weights(rule), {})
    assert call(*words, "mine", "adam", "also=mine", "bare") == 0
    note = "Note: {} brings weight decay of 0.01; --weight-decay gives all"
    out = capsys.readouterr().out
    assert note.format("mine") in out and note.format("also") in out
    assert out.count(" brings weight decay") == 2
    assert call(*words, "mine", "--weight-decay", "0") == 0
    assert " brings weight decay" not in capsys.readouterr().out
    assert call(*words, "bare", "--weight-decay", "0.01") == 0
    last = {r.optimizer: r for r in read_results("results/smoke") if r.epoch == 1}
    assert list(last) == ["mine+wd0.01", "adam", "also+wd0.01", "bare", "mine", "bare+wd0.01"]
    found = {(r.origin, r.validation_loss) for name, r in last.items() if "wd" in name}
    bare = {(r.origin, r.validation_loss) for name, r in last.items() if name in ("mine", "bare")}
    assert len(found) == len(bare) == 1
    assert not {loss for _, loss in found} & {loss for _, loss in bare}


def test_a_policy_is_evaluated_with_its_own_averaging(here, capsys):
    """Unless another is asked for, which teachers can have too, and Keras' optimizers not."""
    rule, words = RNNProp(units=2), ("--preset", "smoke", "--problem", "mnist_mlp", "--optimizer")
    for name, bare in (("bare", rule), ("mine", Averaged(rule, 0.5))):
        save_policy(here / name, bare, made_weights(rule), {})
    (mine,) = get_candidates("mine")
    for share, taken in ((0.5, Averaged(rule, 0.5)), (0.0, rule), (0.8, Averaged(rule, 0.8))):
        assert mine.using(averaging=share).rule == taken
    assert mine.averaging == 0.5
    assert call(*words, "mine", "adam") == 0
    assert "Note: mine brings averaging of 0.5; --averaging gives all" in capsys.readouterr().out
    assert call(*words, "mine", "--averaging", "0") == 0
    assert call(*words, "bare", "adam", "--averaging", "0.5") == 0
    last = {r.optimizer: r for r in read_results("results/smoke") if r.epoch == 1}
    assert list(last) == ["mine+avg0.5", "adam", "mine", "bare+avg0.5", "adam+avg0.5"]
    kept = ("origin", "validation_loss")
    ends = {n: tuple(getattr(r, k) for k in kept) for n, r in last.items()}
    assert ends["mine+avg0.5"] == ends["bare+avg0.5"] and len(set(ends.values())) == 4
    capsys.readouterr()
    assert call(*words, "keras:Adam", "--averaging", "0.5") == 2
    assert "keras:Adam cannot be averaged" in capsys.readouterr().err


def test_warm_ups_that_differ_are_said(here, capsys):
    """And which optimizers' fits are all warm-up."""
    rule, words = RNNProp(units=2), ("--preset", "smoke", "--problem", "mnist_mlp", "--optimizer")
    save_policy(here / "mine", WarmUp(rule, 1), made_weights(rule), {})
    assert call(*words, "mine", "adam") == 0
    out = capsys.readouterr().out
    said = "Note: steps of warm-up differ: 1 for mine, 100 for adam. In a short fit fewer are an"
    assert said in out and "all warm-up, steps of SGD, for adam; give more --epochs" in out
    assert call(*words, "mine", "sgd", "adam") == 0
    assert ": 1 for mine, 100 for the others." in capsys.readouterr().out
    assert call(*words, "mine") == 0
    assert "warm-up differ" not in capsys.readouterr().out
    assert call(*words, "adam") == 0
    out = capsys.readouterr().out
    assert "all warm-up" in out and "warm-up differ" not in out


def test_results_that_do_not_say_what_they_are_of_are_a_note(here, capsys):
    words = ("--preset", "smoke", "--problem", "mnist_mlp", "--optimizer")
    note = "results in results/smoke do not say of what release and data they are"
    for optimizer, said in (("adam", False), ("sgd", True), ("rmsprop", False)):
        assert call(*words, optimizer) == 0
        assert (note in capsys.readouterr().out) == said
        if optimizer == "adam":
            Path("results/smoke/made.json").unlink()


def test_an_optimizer_scored_at_its_moving_average_is_one_more(here, capsys):
    words = ("--preset", "smoke", "--problem", "mnist_mlp", "--optimizer", "adam")
    for averaging in ((), ("--ema", "0.5"), ("--ema", "0.9")):
        assert call(*words, *averaging) == 0
    out = capsys.readouterr().out
    assert "adam+ema0.9 " in out and "ε" not in out  # no word on a column that is not there
    last = {row.optimizer: row for row in read_results("results/smoke") if row.epoch == 1}
    assert list(last) == ["adam", "adam+ema0.5", "adam+ema0.9"]
    assert len({row.origin for row in last.values()}) == 3
    assert len({row.validation_loss for row in last.values()}) == 3
    assert len({row.train_loss for row in last.values()}) == 1  # the steps are the same


def test_data_that_stands_in_is_said_in_the_table(here, capsys, monkeypatch):
    def digits(name, *_, **__):
        return replace(tiny(name), name="digits")

    card = {"data": "digits, IN PLACE OF mnist (7 train)", "preset": "smoke"}
    save_policy(here / "mine", RNNProp(units=2), made_weights(RNNProp(units=2)), card)
    monkeypatch.setattr(problems, "load_dataset", digits)
    assert call("--preset", "smoke", "--problem", "mnist_mlp", "--optimizer", "mine") == 0
    out = capsys.readouterr().out
    assert "mnist_mlp, 1 epoch, ON DIGITS FOR MNIST" in out
    assert "Note: mine was trained by the smoke preset" in out
    assert "Note: mine was trained on digits, IN PLACE OF mnist\n" in out
    found = read_results("results/smoke")
    assert {(r.data, r.in_place_of) for r in found} == {("digits", "mnist")}


def test_list_names_what_there_is(here, capsys):
    assert call("--list") == 0
    out = capsys.readouterr().out
    for name in (*PROBLEMS, *TEACHERS, "keras:AdamW", "choice-large/1"):
        assert name in out


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_is_its_problems_into_a_directory_of_its_name(suite, here, monkeypatch):
    given = {}

    def evaluate(names, optimizers, **others):
        given.update(others, names=tuple(names))
        raise KeyboardInterrupt

    monkeypatch.setattr("l2o.commands.evaluate.evaluate", evaluate)
    assert call("--suite", suite) == 130
    assert given["names"] == SUITES[suite] and given["output"] == Path("results") / suite


def test_help_names_single_problems_and_leaves_the_others_to_list(capsys):
    assert call("--help") == 0
    lines = capsys.readouterr().out.splitlines()
    text = " ".join(" ".join(lines).split())
    assert len(lines) <= 100 and max(map(len, lines)) <= 80
    assert "mnist_finetune" in text and "--list" in text and "families" in text
    assert not any(name in text for name in SUITES["families"])


def test_report_has_what_the_evaluation_kept(here, capsys, monkeypatch):
    make_policy(here / "mine")
    words = ("--preset", "smoke", "--problem", "mnist_mlp", "--optimizer", "mine")
    assert call(*words) == 0
    given = {}

    def write_report(results, output, cards, samples, selection):
        given.update(results=results, output=output, cards=cards, samples=samples)
        return [output / "report.html"]

    monkeypatch.setattr("l2o.commands.report.write_report", write_report)
    assert call("results/smoke", main=report) == 0
    assert "results/smoke/report/report.html" in capsys.readouterr().out
    assert given["results"] == read_results("results/smoke")
    assert given["cards"] == {given["results"][0].origin: {"updates": 7}}
    assert given["samples"]["mnist"].shape == (7, 28, 28, 1)


# --- what is wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, said",
    [
        (("--problem", "mnist_cn"), "mnist_small_batch"),
        (("--optimizer", "adan"), "powersign"),
        (("--optimizer", "nowhere/policy"), "nowhere/policy"),
        (("--optimizer", "keras:Adan"), "AdamW"),
        (("--repeats", "0"), "at least 1"),
        (("--ema", "1"), "from 0 to below 1"),
        (("--weight-decay", "-1"), "from 0 to below 1"),
    ],
)
def test_a_wrong_word_is_one_line(here, capsys, words, said):
    assert said in error_of(capsys, *words)
    assert not (here / "results").exists()


def test_a_damaged_policy_is_one_line(here, capsys):
    path = make_policy(here / "p")
    (path / "policy.json").write_text("{")
    assert str(path / "policy.json") in error_of(capsys, "--optimizer", "p")


def test_two_policies_of_one_name_are_refused(here, capsys):
    words = [str(make_policy(here / k / "p", seed)) for seed, k in enumerate("ab")]
    assert "called p" in error_of(capsys, "--optimizer", *words)


def test_replicates_of_two_runs_do_not_stand_together(here, capsys):
    """A run directory may have a shipped policy's name."""
    make_policy(here / "runs" / "rnnprop" / "policy")
    for words in (("runs/rnnprop", "rnnprop/2"), ("rnnprop/2", "runs/rnnprop")):
        assert "optimizers are called rnnprop;" in error_of(capsys, "--optimizer", *words)
    words = ("--preset", "smoke", "--problem", "mnist_mlp", "--optimizer")
    assert call(*words, "rnnprop/1", "rnnprop/2", "rnnprop/1") == 0
    assert "0 of 2 evaluations" in capsys.readouterr().out


def test_a_long_name_does_not_lose_a_fit(here):
    path = make_policy(here / ("ü" * 120))
    assert call("--preset", "smoke", "--problem", "mnist_mlp", "--optimizer", str(path)) == 0
    assert len(list((here / "results" / "smoke" / "steps").iterdir())) == 1


def test_a_network_that_cannot_be_private_is_one_line(here, capsys, monkeypatch):
    private = replace(get_problem("cifar10_resnet28"), name="resnet_dp", private=True)
    monkeypatch.setitem(PROBLEMS, "resnet_dp", private)
    assert "batch normalization" in error_of(capsys, "--problem", "resnet_dp")


@pytest.mark.parametrize("damage", ["cut off", "other columns", "other version", "no text"])
def test_a_damaged_table_is_one_line_and_left_alone(here, capsys, damage):
    words = ("--preset", "smoke", "--problem", "mnist_mlp", "--optimizer", "adam")
    table = here / "results" / "smoke" / "results.csv"
    write_results(table, made_evaluation("adam", [1.0, 1.0]))
    text = table.read_text()
    broken = {
        "cut off": text[:-20],
        "other columns": text.replace("version,problem", "version,task"),
        "other version": text.replace(f"\n{VERSION},", f"\n{VERSION + 1},"),
        "no text": "\udcff",
    }[damage].encode(errors="surrogateescape")
    table.write_bytes(broken)
    assert "results.csv" in error_of(capsys, *words)
    assert "results.csv" in error_of(capsys, "results/smoke", main=report)
    assert table.read_bytes() == broken


# --- what has changed since ---------------------------------------------------------------------

_ADAM = ("--preset", "smoke", "--problem", "mnist_mlp", "--optimizer", "adam")


def other_digits(name: str, *_, **__) -> Dataset:
    """As `tiny`, but for one label of the part that is not trained on."""
    dataset = tiny(name)
    labels = dataset.test.labels.copy()
    labels[-1] = (labels[-1] + 1) % 10
    return replace(dataset, test=Batch(dataset.test.inputs, labels))


def test_results_do_not_go_on_with_other_data_of_the_same_name(here, capsys, monkeypatch):
    assert call(*_ADAM) == 0
    before = files_of(here)
    monkeypatch.setattr(problems, "load_dataset", other_digits)
    for words in (_ADAM, (*_ADAM, "sgd")):
        said = error_of(capsys, *words)
        assert "results/smoke was made with mnist " in said and "the data have changed" in said
        assert said.endswith("Choose another --output")
    assert files_of(here) == before
    assert call(*_ADAM, "--problem", "fmnist_cnn") == 0  # of other data nothing is known yet
    assert call(*_ADAM, "--output", "new") == 0
    said = error_of(capsys, "results/smoke", "new", main=report)
    assert "new was made with mnist " in said and said.endswith("Report them apart")
    monkeypatch.setattr(problems, "load_dataset", tiny)
    assert call(*_ADAM, "sgd") == 0


def test_results_do_not_go_on_with_another_release(here, capsys, monkeypatch):
    """A minor version: what comes between them gives the same numbers."""
    monkeypatch.setattr(l2o, "__version__", "0.4.1")
    assert call(*_ADAM) == 0
    monkeypatch.setattr(l2o, "__version__", "0.4.12")
    assert call(*_ADAM, "sgd") == 0
    before = files_of(here)
    monkeypatch.setattr(l2o, "__version__", "0.5.0")
    assert error_of(capsys, *_ADAM, "rmsprop") == (
        "error: results/smoke was made with l2o 0.4, not 0.5; such results do not stand together. "
        "Choose another --output"
    )
    assert files_of(here) == before
    assert call(*_ADAM, "--output", "new") == 0
    said = error_of(capsys, "results/smoke", "new", main=report)
    assert "new was made with l2o 0.5, not 0.4; " in said


def test_results_that_do_not_say_what_they_were_made_with_go_on_and_say_it_then(here, capsys):
    assert call(*_ADAM) == 0
    made = here / "results" / "smoke" / "made.json"
    said = json.loads(made.read_text())
    made.unlink()
    assert call("results/smoke", main=report) == 0
    assert call(*_ADAM) == 0 and not made.exists()  # nothing was added
    assert call(*_ADAM, "sgd") == 0
    assert json.loads(made.read_text()) == said and set(said) == {"l2o", "mnist"}
    for broken in ("[]", '{"l2o": ', "\ufeff{}", "[" * 100_000):
        made.write_text(broken)
        before = files_of(here)
        for command, words in ((main, (*_ADAM, "rmsprop")), (report, ("results/smoke",))):
            assert "made.json cannot be read: " in error_of(capsys, *words, main=command)
        assert files_of(here) == before


def test_a_policy_trained_anew_is_another_and_both_are_told_apart(here, capsys, monkeypatch):
    words = ("--preset", "smoke", "--problem", "mnist_mlp", "--optimizer", "mine", "adam")
    note = "Note: there are also results of another mine, from before it changed; "
    rows = []
    for seed in (0, 1):
        make_policy(here / "mine", seed)
        for times in (0, 1):
            assert call(*words) == 0
            out = capsys.readouterr().out
            assert (note in out) == bool(seed) and "another adam" not in out
            assert f"{1 + times if seed else 2 * times} of 2 evaluations are there" in out
        rows.append(read_results("results/smoke"))
    assert rows[1][: len(rows[0])] == rows[0]
    first, second = {r.origin: None for r in rows[1] if r.optimizer == "mine"}
    monkeypatch.setattr("l2o.reports.contents.png", lambda draw: b"")
    assert call("results/smoke", main=report) == 0
    page = (here / "results" / "smoke" / "report" / "report.md").read_text()
    both = sorted([f"mine [{first[:6]}]", f"mine [{second[:6]}]"], key=page.index)
    assert f"{', '.join(both)} were all called mine: a policy that was trained anew" in page
    assert "called adam" not in page


def test_a_policy_replaced_while_it_is_evaluated_is_refused_by_a_process_of_jobs(here):
    task, plan, path = Task(get_problem("mnist_mlp"), tiny("mnist")), Plan(1, 1), here / "mine"
    make_policy(path, 0)
    key = plan.key(task, get_candidates("mine")[0], 1)
    bench = SimpleNamespace(plan=plan, run=lambda *_: "run")
    assert _run_one((bench, [task], get_candidates("mine")), plan, key, ()) == "run"
    make_policy(path, 1)
    with pytest.raises(UserError, match="mnist_mlp or mine has changed since the evaluation began"):
        _run_one((bench, [task], get_candidates("mine")), plan, key, ())


def test_a_second_process_is_kept_out(tmp_path):
    first = ResultsDirectory(tmp_path)
    with pytest.raises(DirectoryError, match="in use"):
        ResultsDirectory(tmp_path)
    first.close()
    ResultsDirectory(tmp_path).close()


# --- every problem ------------------------------------------------------------------------------


def runs(name: str, *words: str, tmp_path: Path) -> None:
    """Two steps of four examples of a problem, with each of the optimizers named."""
    problem = replace(get_problem(name), batch_size=4)
    dataset = problem.prepare(tiny(problem.data)) if problem.prepare else tiny(problem.data)
    train = Batch(dataset.train.inputs[:8], dataset.train.labels[:8])
    tasks, plan = [Task(problem, replace(dataset, train=train))], Plan(1, 1)
    candidates = [c for word in words for c in get_candidates(word)]
    directory = ResultsDirectory(tmp_path / "results")
    run_evaluations(missing(tasks, candidates, plan, directory), plan, directory, lambda *_: None)
    directory.close()
    rows = read_results(tmp_path / "results")
    assert len(rows) == 2 * len(candidates)
    assert all(np.isfinite([r.train_loss, r.validation_loss, r.test_loss]).all() for r in rows)
    assert all(np.isfinite(r.epsilon) == problem.private for r in rows)


_SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=_SLOW) if "resnet" in n else n
        for n in (*SUITES["paper"], *SUITES["modern"])
    ],
)
def test_every_problem_runs(name, tmp_path):
    runs(name, "adam", tmp_path=tmp_path)


def test_every_kind_of_optimizer_runs(tmp_path):
    make_policy(tmp_path / "rnnprop")
    make_policy(tmp_path / "choice-policy", rule=Choice(get_pool("small"), units=2))
    policies = [str(tmp_path / kind) for kind in ("rnnprop", "choice-policy")]
    runs("mnist_mlp", *policies, "keras:Nadam", tmp_path=tmp_path)


def test_a_keras_optimizer_runs_privately(tmp_path):
    runs("mnist_dp", "keras:Nadam", tmp_path=tmp_path)


def test_forecast_ends_where_the_evaluations_do():
    tasks = [Task(get_problem("mnist_mlp"), tiny("mnist"))]
    plan, candidates = Plan(2, 3), get_candidates("adam") + get_candidates("sgd")
    todo = [(tasks[0], repeat, c) for repeat in (1, 2) for c in candidates]
    forecast = Forecast(todo, plan)
    seen = [
        forecast.at(*each, steps) for each in [(t, c, r) for t, r, c in todo] for steps in (0, 6)
    ]
    behind, left = zip(*seen, strict=True)
    assert behind[0] == 0 and list(behind) == sorted(behind)
    assert behind[-1] == pytest.approx(forecast.total)
    assert left[0] > left[2] > left[-1] == pytest.approx(0, abs=1e-9)
