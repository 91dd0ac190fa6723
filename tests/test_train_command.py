"""`train.py`: wrong command lines, what a run leaves and prints."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import l2o
from l2o.__main__ import main as l2o_main
from l2o.amalgamation.perturbation import Perturbation
from l2o.amalgamation.presets import CURRICULA
from l2o.amalgamation.settings import PRESETS, with_choices
from l2o.amalgamation.trainer import Stopped
from l2o.commands import train as command
from l2o.commands import tune
from l2o.commands.train_options import parser, settings
from l2o.policies.checkpoint import fingerprint
from l2o.rules import RNNProp, WarmUp, averaged

# Everything there is, in seconds: both phases, two stages.
_TINY = (
    "--data digits --pool small --problem mnist_mlp --preset smoke --truncation 2 --unrolls 2 4 "
    "--alphas 0.2 0.1 --last-validation 4 --choice-unrolls 2 4 --choice-validation 4 "
    "--warmup-steps 2"
).split()
# One phase, one stage, one period.
_SHORT = (
    "--strategy none --data digits --problem mnist_mlp --preset smoke --truncation 2 --unrolls 2 "
    "--alphas 0.2 --updates 2 --warmup-steps 2"
).split()


def run(*arguments) -> int:
    """The exit status of `train`, or of `tune` where that is the first word, in this process."""
    words = [str(a) for a in arguments]
    with pytest.raises(SystemExit) as end:
        tune.main(words[1:]) if words[:1] == ["tune"] else command.main(words)
    return end.value.code


def chosen(line: str, preset: str = "cpu") -> list:
    """Directories and settings that a command line asks for."""
    return settings(parser().parse_args(line.split()), preset)


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def untouched(monkeypatch):
    """Data must not be read, nor anything written."""

    def refuse(*args, **kwargs):
        raise AssertionError("data was read")

    monkeypatch.setattr("l2o.problems.load_dataset", refuse)
    (Path.cwd() / "foreign").mkdir()
    (Path.cwd() / "foreign" / "thesis.tex").write_text("years of work")
    (Path.cwd() / "file").write_text("mine")
    before = files()
    yield
    assert files() == before


def files() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in Path.cwd().rglob("*") if p.is_file()}


_WRONG = {
    "--policy best": "'best'. Allowed: rnnprop, original, scale",
    "--recipe best": "'best'. Allowed: original, scale, rnnprop, stronger",
    "--recipe scale --pool small --strategy mean": "so --strategy, --pool cannot be set",
    "--meta-batch 100000000000 --period 100000000000": "at most 100,000 inner steps",
    "--truncation 1000000 --unrolls 1000000 --alphas 1": "at most 100,000 inner steps",
    "--warmup-steps 1000000": "warmup_steps must be at most 100000",
    "--last-validation 150": "unroll of a validation must be a positive multiple",
    "--policy scale --set output_scale=1": "output_scale is for rnnprop and original",
    "--set output_scale=0": "output_scale must be a number above 0. Received: 0",
    "--perturbation noise --magnitude 1": "Allowed: none, gaussian, adversarial, pgd, fgsm, input",
    "--perturbation gaussian --magnitude 1e-3 1.0000001e-3": "values of --magnitude are 0.001 in",
    "--perturbation gaussian": "perturbation gaussian needs a magnitude",
    "--perturbation gaussian --magnitude -1": "--magnitude: must be a number of at least 0",
    "--perturbation fgsm --magnitude 1 --set attack_steps=2": "Only 'adversarial' and 'pgd'",
    "--perturbation pgd --magnitude 1 --set absolute=True": "Only 'gaussian' can be absolute",
    "--magnitude 0.1": "magnitude, absolute and attack_steps need a perturbation",
    "--set meta_loss=linear": "Unknown meta_loss. Allowed: log, difference. Received: linear",
    "--finetune nowhere": "'nowhere' is neither a policy directory nor a shipped policy",
    "--strategy chioce": "'chioce'. Did you mean choice? Allowed: choice, mean, minmax, none",
    "--strategy none --pool small": "--strategy none imitates no teachers, so --pool cannot be set",
    "--strategy best": "'best'. Allowed: choice, mean, minmax, none",
    "--pool huge": "'huge'. Allowed: adam, small, large",
    "--problem mnist_cmn": "'mnist_cmn'. Did you mean mnist_cnn? Allowed: mnist_cnn, mnist_mlp",
    "--preset fast": "'fast'. Allowed: paper, cpu, smoke",
    "--data mnist": "'mnist'. Allowed: auto, tfds, digits",
    "--stragety mean": "unrecognized arguments: --stragety mean",
    "--seed one": "--seed: must be a whole number of at least 0, not 'one'",
    "--seed -1": "--seed: must be a whole number of at least 0, not '-1'",
    "--seed 4294967296": "--seed must be at most 4294967295. Received: 4294967296",
    "--seed 4294967295 --replicates 2": "--seed must be at most 4294967294",
    "--period 2.5": "--period: must be a whole number of at least 1, not '2.5'",
    "--meta-batch 0": "--meta-batch: must be a whole number of at least 1, not '0'",
    "--replicates 0": "--replicates: must be",
    "--learning-rate 0": "--learning-rate: must be a number above 0, not '0'",
    "--learning-rate nan": "must be a number above 0, not 'nan'",
    "--set clip_ratio=-0.1": "clip_ratio must be a number above 0. Received: -0.1",
    "--set scale_limit=inf": "scale_limit must be a number. Received: 'inf'",
    "--alphas 0.2 nan": "--alphas: must be a number of at least 0, not 'nan'",
    "--alphas -1": "--alphas: must be a number of at least 0, not '-1'",
    "--alphas 0.2 0.1": "one unroll and one alpha. Received: 4 unrolls and 2 alphas",
    "--unrolls 150 --alphas 1": "multiple of the truncation, 100. Received: 150",
    "--truncation 60": "multiple of the truncation, 60. Received: 100",
    "--choice-unrolls 30": "Choice policy: Every unroll N must be a positive multiple",
    "--preset paper --meta-batch 3": "multiple of the meta-batch. Received: 40 and 3",
    "--set max_periods=3": "max_periods must be at least min_periods, 6. Received: 3",
    "--updates 201 --unrolls 200": "multiple of the 2 updates of an unroll of 200 steps",
    "--updates 10 --period 4 --set patience=1": "so period, patience cannot be set",
    "--devices 64": "must be a multiple of the devices. Received: 64",
    "--devices 1000": "--devices: at most 64 logical ones. Received: 1000",
    "--devices gpu:0,gpu:9": "--devices: there is no GPU. Received: gpu:0, gpu:9",
    "--devices tpu": "--devices: must be a whole number of at least 1, or GPUs as gpu:0,gpu:2, "
    "not 'tpu'",
    "--problem mnist_dp": "mnist_dp is trained with DP-SGD",
    "--output foreign": "foreign is not empty and holds no config.json",
    "--output foreign --fresh": "thesis.tex",
    "--output . --fresh": ". cannot be moved aside from within",
    "--set clip_ration=0.2": "Unknown settings: clip_ration. Did you mean clip_ratio? Allowed: ab",
    "--set clip_ratio": "--set: must be NAME=VALUE, not 'clip_ratio'",
    "--set clip_ratio=much": "clip_ratio must be a number. Received: 'much'",
    "--set learning_rate=1": "--set: learning_rate is set by --learning-rate",
    "--set recompute=1,2": "recompute must be a whole number. Received: (1, 2)",
    "--set first_order=1 scaling=no": "--set: first_order is set by --first-order",
    "--set scaling=no": "scaling must be True or False. Received: 'no'",
    "tune --output .. --fresh": ".. cannot be moved aside from within",
    "--output file": "Cannot write file: file is not a directory",
    "--output file/run": "Cannot write file/run",
    "--output file/run --replicates 2": "Cannot write file/run/1",
    "tune --output foreign": "foreign is not empty and holds no trials.csv",
    "tune --output file": "Cannot write file",
    "tune --rates 0.1 -1": "--rates: must be a number above 0, not '-1'",
    "tune --epochs 0": "--epochs: must be a whole number of at least 1, not '0'",
    "tune --jobs none": "--jobs: must be",
    "tune --jobs 2 --scheduler tcp://here:1": "--jobs is of this machine, so --scheduler cannot",
    "tune --scheduler nonsense": "--scheduler: 'nonsense' cannot be reached: missing port number",
    "tune --problem mnist_dp": "mnist_dp is trained with DP-SGD",
    "tune --seed 4294967295": "--seed must be at most 4294967293. Received: 4294967295",
    "tune --strategy mean": "unrecognized arguments: --strategy mean",
    "--epochs 7 --rates 0.1": "unrecognized arguments: --epochs 7 --rates 0.1",
    "--strategy mean --choice-unrolls 100": "choice_unrolls cannot be set with scheme mean",
}


@pytest.mark.parametrize("line", _WRONG)
def test_wrong_command_line(line, untouched, capfd):
    preset = () if "--preset" in line or "tune " in line else ("--preset", "cpu")
    assert run(*preset, *line.split()) == 2
    out, error = capfd.readouterr()
    assert error.startswith("error: ") and error.count("\n") == 1
    assert _WRONG[line] in error
    assert out == ""


@pytest.mark.parametrize(
    "line, run_there, nested",
    [
        ("--replicates 2", "out", "out/1"),
        ("--perturbation input --magnitude 0.1 0.2", "out", "out/magnitude-0.1"),
        ("--perturbation input --magnitude 0.1 0.2 --replicates 2", "out/magnitude-0.2",
         "out/magnitude-0.2/1"),
    ],
)  # fmt: skip
def test_no_run_lies_in_another(line, run_there, nested, untouched, capfd):
    Path(run_there).mkdir(parents=True)
    (Path(run_there) / "config.json").touch()
    before = files()
    assert run("--output", "out", "--preset", "cpu", *line.split()) == 2
    said = f"error: {run_there} is the directory of one run, and {nested} would lie in it"
    assert capfd.readouterr().err.startswith(said)
    assert files() == before
    (Path(run_there) / "config.json").unlink()


def test_all_runs_are_moved_aside_before_the_first_begins(capfd, monkeypatch):
    """So that what is stopped goes on without --fresh, as it says."""

    def stopped(*_, **__):
        raise Stopped

    monkeypatch.setattr(command, "train", stopped)
    for name in ("out/1", "out/3"):
        Path(name).mkdir(parents=True)
        (Path(name) / "config.json").write_text(name)
    assert run(*_SHORT, "--output", "out", "--replicates", "3", "--fresh") == 130
    assert "the same command without --fresh goes on with it" in capfd.readouterr().out
    assert {k: v.decode() for k, v in files().items() if k.endswith("json")} == {
        str(Path.cwd() / f"{name}.old1" / "config.json"): name for name in ("out/1", "out/3")
    }


def test_jobs_do_not_share_a_gpu(monkeypatch, capfd):
    tuned = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    monkeypatch.setattr(tune, "tune", lambda *words: tuned.append(words))
    for line in ("--replicates 2", "tune"):
        assert run(*line.split(), "--jobs", 2) == 2
        said = "error: --jobs spreads work over the cores of a machine without a GPU\n"
        assert capfd.readouterr().err == said
    line = "tune --data digits --data-dir x --rates 0.1 0.1 --seeds 2 --seed 7 --epochs 12"
    assert run(*line.split()) == 0
    search = tune.Search("mnist_cnn", "digits", "x", rates=(0.1,), seeds=2, first_seed=7, epochs=12)
    ((found, _, output, _, fresh),) = tuned
    assert (found, output, fresh) == (search, Path("runs/tuning"), False)


def test_data_that_cannot_be_had(capfd, monkeypatch):
    from l2o.problems import DatasetUnavailable

    asked = []

    def missing(*args):
        asked.append(args[:3])
        raise DatasetUnavailable("mnist is not at hand")

    monkeypatch.setattr("l2o.problems.load_dataset", missing)
    for line in ("--data tfds --data-dir there", "tune --data tfds --data-dir there"):
        assert run(*line.split()) == 2
        assert capfd.readouterr().err == "error: mnist is not at hand\n"
    assert files() == {} and asked == [("mnist", "tfds", "there")] * 2


@pytest.mark.parametrize("recipe", ["original", "scale", "rnnprop", "stronger"])
def test_recipes(recipe):
    ((directory, one),) = chosen(f"--recipe {recipe}")
    (phase,) = one.phases()
    assert directory == Path("runs") / recipe
    assert phase.rule.name == {"stronger": "rnnprop"}.get(recipe, recipe)
    teachers = [teacher.rule.name for teacher in phase.teachers]
    assert teachers == (["adam"] if recipe == "stronger" else [])
    assert phase.schedule == CURRICULA["cpu"].schedule  # the curriculum is for all


def test_every_policy_can_be_distilled():
    ((directory, one),) = chosen("--policy scale --perturbation pgd --magnitude 1e-3")
    assert directory == Path("runs/choice-large-scale-pgd-0.001")
    assert [phase.rule.name for phase in one.phases()] == ["choice", "scale"]
    assert one.meta.perturbation == Perturbation("pgd", 1e-3)


def test_a_shipped_policy_can_be_where_a_run_begins():
    ((_, one),) = chosen("--finetune choice-large/2")
    first, last = one.phases()
    assert first.start is None
    shipped = l2o.AmalgamatedOptimizer.load("choice-large/2").policy.weights
    assert fingerprint(last.start) == fingerprint(shipped)


def test_the_smoke_preset_is_not_in_the_real_runs_way():
    ((smoke, _),), ((real, _),) = chosen("--preset smoke"), chosen("--preset cpu")
    assert (smoke, real) == (Path("runs/choice-large-smoke"), Path("runs/choice-large"))


def test_a_sweep_is_a_run_for_each_magnitude_and_seed():
    line = "--perturbation gaussian --magnitude 5e-4 1e-3 --replicates 2 --seed 7 --output out"
    found = [(str(d), s.meta.perturbation.magnitude, s.meta.seed) for d, s in chosen(line)]
    assert found == [
        ("out/magnitude-0.0005/1", 5e-4, 7), ("out/magnitude-0.0005/2", 5e-4, 8),
        ("out/magnitude-0.001/1", 1e-3, 7), ("out/magnitude-0.001/2", 1e-3, 8),
    ]  # fmt: skip


def test_a_magnitude_that_is_named_twice_is_one_run():
    runs = chosen("--perturbation gaussian --magnitude 1e-3 0.001 2e-3")
    assert [one.meta.perturbation.magnitude for _, one in runs] == [1e-3, 2e-3]


def test_a_policy_that_makes_the_loss_grow_is_not_handed_over_in_silence(capfd):
    assert (
        run(*_SHORT, "--set", "output_scale=1000", "--learning-rate", "1", "--output", "out") == 0
    )
    loss = l2o.load_policy("out/policy").card["validation"]["validation_loss"]
    assert loss > 0
    warning = f"Warning: with this policy the loss grows (validation meta loss {loss:+.3f})"
    assert warning in capfd.readouterr().out


@pytest.mark.parametrize("policy", ["rnnprop", "original"])
def test_output_scale(policy):
    ((_, one),) = chosen(f"--strategy none --policy {policy} --set output_scale=0.5")
    (phase,) = one.phases()
    assert phase.rule.scale == 0.5


def test_flags_and_set_are_one_set_of_choices():
    """Every setting has one place on the command line; what is given arrives, and no more."""
    line = (
        "--first-order --held-out --seed 5 --learning-rate 2 --warmup-steps 5 --updates 4 "
        "--perturbation adversarial --magnitude 8 --set attack_steps=9 meta_loss=difference "
        "--set scaling=False choice_cold_periods=0 tolerance=1e-1"
    )
    ((_, one),) = chosen(line, "paper")
    assert one == with_choices(
        PRESETS["paper"],
        {
            "first_order": True, "held_out": True, "seed": 5, "learning_rate": 2.0,
            "warmup_steps": 5, "updates": 4, "perturbation": "adversarial", "magnitude": 8,
            "attack_steps": 9, "meta_loss": "difference", "scaling": False,
            "choice_cold_periods": 0, "tolerance": 0.1,
        },
    )  # fmt: skip
    ((_, one),) = chosen("", "smoke")
    assert one == PRESETS["smoke"]


@pytest.mark.parametrize("name", ["train", "tune", "evaluate", "report"])
@pytest.mark.parametrize("called", ["l2o", "script"])
def test_help_is_two_screens_that_begin_with_what_is_typed_first(name, called, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    prog = f"l2o {name}" if called == "l2o" else f"python {name}.py"
    with pytest.raises(SystemExit) as end:
        if called == "l2o":
            l2o_main([name, "--help"])
        else:
            importlib.import_module(f"l2o.commands.{name}").main(["--help"], prog)
    assert end.value.code == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 80
    assert lines[0] == f"usage: {prog} [OPTION ...]"
    assert sum(line.startswith(f"  {prog}") for line in lines[:10]) == 3


def test_the_command_without_a_command(capfd):
    l2o_main(["--help"])
    said = capfd.readouterr().out
    assert all(f"l2o {name} " in said for name in ("train", "tune", "evaluate", "report"))
    with pytest.raises(SystemExit) as end:
        l2o_main(["trian"])
    assert end.value.code == 2
    error = capfd.readouterr().err
    assert error == "error: unknown command 'trian'; allowed: train, tune, evaluate, report\n"


def summaries(path: Path) -> dict[str, list[int]]:
    """The steps of each scalar in a directory of event files."""
    steps: dict[str, list[int]] = {}
    for record in tf.data.TFRecordDataset([str(p) for p in path.iterdir()]):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name == "scalars"
            assert np.isfinite(tf.make_ndarray(value.tensor))
            steps.setdefault(value.tag, []).append(event.step)
    return steps


def test_a_run_and_the_same_command_again(capfd):
    line = [*_SHORT, "--output", "out", "--tensorboard"]
    assert run(*line) == 0
    out = capfd.readouterr().out
    assert "Note: this policy was trained by the smoke preset" in out
    assert "left: run" in out and "\r" not in out
    assert "Done in" in out and 'AmalgamatedOptimizer.load("out/policy")' in out
    card = l2o.load_policy("out/policy").card
    assert card["problem"] == "mnist_mlp" and "IN PLACE OF mnist" in card["data"]
    assert card["versions"]["keras"] and card["validation"]["validation_unroll"] == 2
    assert Path("out/progress.png").read_bytes().startswith(b"\x89PNG")
    assert summaries(Path("out/tensorboard"))["policy/validation_loss"] == [2]
    assert json.loads(Path("out/config.json").read_text())["meta"]["seed"] == 0
    before = files()
    assert run(*line[:-1]) == 0
    assert "which is over" in capfd.readouterr().out
    assert files() == before
    assert run(*line, "--set", "validation_trajectories=3") == 2
    error = capfd.readouterr().err
    assert "validation_trajectories: 2 there, 3 asked for" in error and error.count("\n") == 1
    assert files() == before


@pytest.mark.slow
def test_perturbed_from_another_policy_and_held_out(capfd):
    line = [*_SHORT, "--set", "validation_trajectories=1"]
    assert run(*line, "--held-out") == 2
    assert "batch of 128 from the held-out tenth. Received: 1250" in capfd.readouterr().err
    line += ["--problem", "mnist_small_batch"]
    assert run(*line, "--output", "first") == 0
    first = l2o.load_policy("first/policy")
    assert first.rule == WarmUp(RNNProp(), 2, 0.01)  # as it was trained
    replace(first, rule=averaged(first.rule, 0.8)).save("first/policy")
    line += ["--finetune", "first/policy", "--held-out", "--set", "meta_loss=difference"]
    assert run(*line, "--perturbation", "gaussian", "--magnitude", "0.1", "--output", "out") == 0
    before, after = (l2o.load_policy(f"{name}/policy") for name in ("first", "out"))
    assert after.card["perturbation"]["kind"] == "gaussian"
    assert after.card["perturbation"]["magnitude"] == 0.1
    assert after.card["meta"]["held_out"] and after.card["meta"]["meta_loss"] == "difference"
    assert after.card["phases"][0]["start"] == fingerprint(before.weights)
    # Two updates of Adam move a weight by two rates at most: it began where the other ended.
    moved = max(np.abs(a - b).max() for a, b in zip(before.weights, after.weights, strict=True))
    assert 0 < moved < 2.1e-3
    assert run(*line, "--policy", "original", "--output", "other") == 2
    error = capfd.readouterr().err
    assert "trains original; it cannot begin with the policy in first/policy, which is rnn" in error
    assert run(*line, "--set", "output_scale=0.5", "--output", "other") == 2
    assert "which is rnnprop with scale: 0.1 there, 0.5 asked for" in capfd.readouterr().err


@pytest.mark.slow
def test_replicates():
    assert run(*_TINY, "--output", "out", "--replicates", "2", "--seed", "5") == 0
    policies = [l2o.load_policy(f"out/{k}/policy") for k in (1, 2)]
    assert [policy.card["seed"] for policy in policies] == [5, 6]
    assert not np.array_equal(policies[0].weights[0], policies[1].weights[0])
    assert sorted(p.name for p in Path("out").iterdir()) == ["1", "2"]


def test_run_that_cannot_recover(capfd, monkeypatch):
    """Every meta-update is left out, in every try; the next replicate is tried."""
    monkeypatch.setattr("l2o.amalgamation.meta.all_finite", lambda structure: False)
    line = [*_SHORT, "--output", "out", "--set", "max_repeats=1", "--replicates", "2"]
    assert run(*line) == 1
    first, second = capfd.readouterr().err.splitlines()
    assert first == second and "period 1 were not finite in the last of 2 tries" in first
    assert first.endswith("It has no policy yet; a smaller --learning-rate may help")
    assert run(*line) == 1
    assert capfd.readouterr().err.splitlines() == [first, first]
