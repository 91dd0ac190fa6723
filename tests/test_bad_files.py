"""Policy directories and runs that were damaged or forged: refused in one line, or as they were."""

import contextlib
import json
import tempfile
import zipfile
from dataclasses import fields
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from bad_input import assert_refused, cases, files_of, forgeries, mutations
from hypothesis import given
from hypothesis import strategies as st
from made_tasks import task_of

from l2o.amalgamation.plan import Meta, Phase
from l2o.amalgamation.presets import CURRICULA
from l2o.amalgamation.state import pack
from l2o.amalgamation.trainer import Trainer
from l2o.commands import evaluate
from l2o.policies import checkpoint
from l2o.policies.checkpoint import Policy, PolicyError, load_policy, save_policy
from l2o.problems import Batch
from l2o.rules import RNNProp
from l2o.runs.directory import CHECKPOINT, CONFIG, PREVIOUS, RunDirectory
from l2o.runs.lock import DirectoryError

# --- policies -----------------------------------------------------------------------------------

_RULE = RNNProp(units=3)
_WEIGHTS = [np.asarray(w) for w in _RULE.initial_weights(0)]
_CARD = {"problem": "mnist_mlp", "seed": 3, "validation": {"stage": 1}}


def write_policy(path: Path) -> Path:
    save_policy(path, _RULE, _WEIGHTS, _CARD)
    return path


def description_of(path: Path) -> dict:
    return json.loads((path / "policy.json").read_text())


def sign(path: Path, description: dict, weights=_WEIGHTS) -> None:
    """Writes a description with the checksum that belongs to it."""
    with contextlib.suppress(Exception):  # what has no digest has none
        description["sha256"] = checkpoint._digest(description, weights)
    (path / "policy.json").write_text(json.dumps(description))


with tempfile.TemporaryDirectory() as _folder:
    _DESCRIPTION = description_of(write_policy(Path(_folder) / "p"))


def load_or_refusal(path: Path) -> Policy | None:
    before = files_of(path)
    try:
        return load_policy(path)
    except PolicyError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return None
    finally:
        assert files_of(path) == before


@cases(50)
@given(which=st.sampled_from(["policy.json", "weights"]), mutate=mutations())
def test_policy_with_other_bytes(which, mutate, tmp_path_factory):
    path = write_policy(tmp_path_factory.mktemp("p") / "policy")
    file = next(p for p in path.iterdir() if p.name.startswith(which))
    file.write_bytes(mutate(file.read_bytes()))
    policy = load_or_refusal(path)
    if policy is not None:  # a blank in the JSON, or where HDF5 keeps nothing
        assert (policy.rule, policy.card) == (_RULE, _CARD)
        for a, b in zip(policy.weights, _WEIGHTS, strict=True):
            np.testing.assert_array_equal(a, b)


@cases(50)
@given(description=forgeries({k: v for k, v in _DESCRIPTION.items() if k != "sha256"}))
def test_policy_forged_with_its_checksum(description, tmp_path_factory):
    """What is loaded is a rule of the right kinds of settings, with weights that fit it."""
    path = write_policy(tmp_path_factory.mktemp("p") / "policy")
    sign(path, description)
    policy = load_or_refusal(path)
    if policy is None:
        assert_refused(evaluate.main, "--optimizer", str(path))
        return
    for field in fields(policy.rule):
        value = getattr(policy.rule, field.name)
        assert type(value).__name__ in {"float": ("float", "int")}.get(field.type, (field.type,))
    assert [w.shape for w in policy.rule.initial_weights(0)] == [w.shape for w in policy.weights]


def huge_tensor(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for k, weight in enumerate(_WEIGHTS):
            file.create_dataset(str(k), (10**6, 10**6) if k == 0 else weight.shape, "float32")


def bomb(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for k, weight in enumerate(_WEIGHTS):
            shape = (2**14, 2**14) if k == 0 else weight.shape
            file.create_dataset(str(k), shape, "float32", chunks=shape, fillvalue=0)


def external_storage(path: Path) -> None:
    (path.parent.parent / "secret").write_bytes(bytes(10_000))
    with h5py.File(path, "w") as file:
        for k, weight in enumerate(_WEIGHTS):
            size = weight.nbytes
            file.create_dataset(
                str(k), weight.shape, "float32",
                external=[(str(path.parent.parent / "secret"), 0, size)],
            )  # fmt: skip


def external_link(path: Path) -> None:
    other = path.parent.parent / "secret.h5"
    with h5py.File(other, "w") as file:
        for k, weight in enumerate(_WEIGHTS):
            file[str(k)] = weight
    with h5py.File(path, "w") as file:
        for k in range(len(_WEIGHTS)):
            file[str(k)] = h5py.ExternalLink(str(other), str(k))


def endless_file(path: Path) -> None:
    with open(path, "ab") as file:
        file.truncate(2**40)  # a terabyte of nothing, which takes no room


@pytest.mark.parametrize(
    "attack", [huge_tensor, bomb, external_storage, external_link, endless_file]
)
@pytest.mark.parametrize("declared", [True, False])
def test_weights_that_are_huge_or_elsewhere(attack, declared, tmp_path):
    path = write_policy(tmp_path / "policy")
    file = next(path.glob("weights*"))
    attack(file)
    description = description_of(path)
    if declared and attack in (huge_tensor, bomb):
        side = {huge_tensor: 10**6, bomb: 2**14}[attack]
        description["weights"][0]["shape"] = [side, side]
    sign(path, description)
    with pytest.raises(PolicyError, match="The weights in .* cannot be read"):
        load_policy(path)


@pytest.mark.parametrize("settings", [{"units": 10**9}, {"layers": 10**9}, {"units": -1}])
def test_a_rule_of_huge_sizes_is_not_made(settings, tmp_path):
    path = write_policy(tmp_path / "policy")
    description = description_of(path)
    description["rule"] |= settings
    sign(path, description)
    with pytest.raises(PolicyError, match="do not fit the rule|units of rule 'rnnprop' must be"):
        load_policy(path)


# --- runs ---------------------------------------------------------------------------------------

_PHASES = (Phase("policy", _RULE, "none", CURRICULA["smoke"].schedule),)


def trainer(directory: RunDirectory) -> Trainer:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    data = Batch(np.zeros((8, 64)), np.zeros(8))
    return Trainer(_PHASES, Meta(), [task_of(keras.Sequential, data, 8)], strategy, directory, {})


def start_run(path: Path) -> Path:
    """A run's directory with two checkpoints, at 1 and 2 updates."""
    with RunDirectory(path, {"test": 1}) as directory:
        run = trainer(directory)._fresh(0)
        for run.updates in (1, 2):
            directory.save(*pack(run))
    return path


def take_up(path: Path) -> int | None:
    """The number of updates of the run that is taken up, or None where it is refused."""
    try:
        with RunDirectory(path, {"test": 1}) as directory:
            run = trainer(directory)._run
    except DirectoryError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return None
    for a, b in zip(run.now.weights, run.best.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    return run.updates


@cases(40)
@given(which=st.sampled_from([CHECKPOINT, PREVIOUS, CONFIG]), mutate=mutations())
def test_run_with_other_bytes(which, mutate, tmp_path_factory):
    path = start_run(tmp_path_factory.mktemp("r") / "run")
    original = (path / which).read_bytes()
    (path / which).write_bytes(mutate(original))
    before = files_of(path)
    updates = take_up(path)
    assert updates in ((1, 2) if which == CHECKPOINT else (2,) if which == PREVIOUS else (None, 2))
    # The damaged file itself is still there, under this name or another.
    assert before[which] in files_of(path).values()


def _status() -> dict:
    with tempfile.TemporaryDirectory() as folder:
        path = start_run(Path(folder) / "run")
        with np.load(path / CHECKPOINT) as file:
            return json.loads(str(file["status"]))


@cases(30)
@given(status=forgeries(_status()))
def test_checkpoint_of_another_status(status, tmp_path_factory):
    """Whole, but of no run of this configuration, or else in the right kinds of values."""
    path = start_run(tmp_path_factory.mktemp("r") / "run")
    with RunDirectory(path, {"test": 1}) as directory:
        arrays, _ = directory.load()
        directory.save(arrays, status)
    before = files_of(path)
    take_up(path)
    assert files_of(path) == before


_COUNTS = (
    "phase",
    "pieces",
    "origin",
    "updates",
    "periods",
    "stage",
    "period",
    "repeats",
    "trajectories",
)
_OF_NO_SUCH_KIND = [
    *((name, value) for name in (*_COUNTS, "best_period") for value in (-1, 0.5, True)),
    *(("sums", value) for value in ([], [0.0], [0.0, "0"], {})),
    *((name, value) for name in ("seconds", "incoming", "best") for value in ("0", [], True)),
    *((name, value) for name in ("finished", "diverged") for value in (0, None, "no")),
]


@pytest.mark.parametrize("name, value", _OF_NO_SUCH_KIND)
def test_a_checkpoint_with_a_value_of_another_kind_is_refused(name, value, tmp_path):
    path, status = start_run(tmp_path / "run"), _status()
    of = status if name in status else status["progress"]
    assert name in of
    of[name] = value
    with RunDirectory(path, {"test": 1}) as directory:
        arrays, _ = directory.load()
        directory.save(arrays, status)
    assert take_up(path) is None


def test_checkpoint_of_other_shapes(tmp_path):
    path = start_run(tmp_path / "run")
    with RunDirectory(path, {"test": 1}) as directory:
        arrays, status = directory.load()
        directory.save(arrays | {"now.0": arrays["now.0"][:-1]}, status)
    assert take_up(path) is None


def test_compressed_checkpoint_is_not_unpacked(tmp_path):
    path = start_run(tmp_path / "run")
    with zipfile.ZipFile(path / CHECKPOINT, "w", zipfile.ZIP_DEFLATED) as file:
        with file.open("now.0.npy", "w", force_zip64=True) as member:
            for _ in range(100):
                member.write(bytes(2**20))
    said = []
    with RunDirectory(path, {"test": 1}) as directory:
        assert directory.load(said.append)[1]["updates"] == 1
    assert "now.0.npy is not stored as it is" in said[0]
