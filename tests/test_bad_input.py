"""Bad input, some 250 generated cases: one line that names the fault, and nothing else happens.

Cases are drawn from a fixed seed. Where a change happens to do no harm, what is read must be what
was written.
"""

import contextlib
import io
import json
import os
import tempfile
import zipfile
from dataclasses import fields
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import problems
from l2o import checkpoint
from l2o.amalgamation.optimizee import Batch
from l2o.amalgamation.plan import Meta, Phase
from l2o.amalgamation.run import pack
from l2o.amalgamation.rundir import CHECKPOINT, CONFIG, PREVIOUS, RunDirectory
from l2o.amalgamation.trainer import Trainer
from l2o.checkpoint import Policy, PolicyError, load_policy, save_policy
from l2o.claim import DirectoryError
from l2o.commands import evaluate, train
from l2o.commands import train_options as options
from l2o.evaluation.results import Result, read_results, write_results
from l2o.evaluation.store import ResultsDirectory
from l2o.evaluation.tables import TableError
from l2o.rules import RNNProp
from problems import Dataset, DatasetUnavailable, Split


def cases(number: int):
    """So many cases of a property, the same ones every time."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=number, derandomize=True, database=None, deadline=None,
        suppress_health_check=quiet,
    )  # fmt: skip


def files_of(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def assert_refused(main, *words: str) -> str:
    """The one line that a command says as it exits with status 2."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        with pytest.raises(SystemExit) as end:
            main(list(words))
    said = error.getvalue()
    assert end.value.code == 2, said
    assert said.startswith("error: ") and said.count("\n") == 1 and "Traceback" not in said, said
    return said


@st.composite
def mutations(draw):
    """A function from bytes to other bytes: some flipped, cut out, put in, or cut off."""
    kind = draw(st.sampled_from(["flip", "cut", "insert", "end", "empty"]))
    place, other = draw(st.floats(0, 1)), draw(st.binary(min_size=1, max_size=9))

    def mutate(content: bytes) -> bytes:
        at = int(place * (len(content) - 1))
        if kind == "flip":
            return content[:at] + bytes([content[at] ^ (other[0] or 1)]) + content[at + 1 :]
        after = {"cut": content[at + len(other) :], "insert": other + content[at:], "end": b""}
        return content[:at] + after[kind] if kind in after else b""

    return mutate


_JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([10**12, 10**40, 1e308, -0.5]),
    st.just(float("nan")), st.text(max_size=4), st.just([]), st.just({}), st.just([[1, [2]]]),
    st.sampled_from(["../../etc/passwd", "/etc/passwd", "..", ".", "\0", "object", "x" * 300]),
)  # fmt: skip


def places(value, here=()):
    """The paths of all values within a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        yield (*here, key)
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*here, key))


@st.composite
def forgeries(draw, original: dict):
    """A JSON object with one of its values replaced, at any depth."""
    forged = json.loads(json.dumps(original))
    path = draw(st.sampled_from(sorted(places(forged), key=str)))
    inner = forged
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = draw(_JUNK)
    return forged


# --- command lines ------------------------------------------------------------------------------

_WORDS = [
    "", " ", "0", "-1", "1", "3", "100", "2.5", "1e400", "1e-400", "nan", "inf", "-inf", "9" * 30,
    "0x10", "١", "a\nb", "é", "..", "/", "x" * 5000, "all", "digits", "none", "small", "--", "@",
    "foreign", "foreign/thesis.tex", "\udcff",
]  # fmt: skip


@st.composite
def command_lines(draw, parser):
    """One to four flags of a command with words that may not suit them."""
    flags = [
        action for action in parser._actions
        if action.dest not in ("help", "list", "devices", "tune")
    ]  # fmt: skip
    line = []
    for action in draw(st.lists(st.sampled_from(flags), min_size=1, max_size=4)):
        line += [action.option_strings[0]]
        line += draw(st.lists(st.sampled_from(_WORDS), max_size=2))
    return line


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with somebody's files, in which no data can be had."""
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("years of work")
    monkeypatch.chdir(tmp_path)

    def reached(*_, **__):
        raise DatasetUnavailable("got as far as the data")

    monkeypatch.setattr(problems, "load_dataset", reached)
    return tmp_path


@cases(50)
@given(line=command_lines(options.parser()))
def test_train_command_lines(line, here):
    before = files_of(here)
    assert_refused(train.main, *line)
    assert files_of(here) == before


@cases(30)
@given(line=command_lines(evaluate.parser()))
def test_evaluate_command_lines(line, here):
    before = files_of(here)
    assert_refused(evaluate.main, "--optimizer", "adam", *line)
    assert files_of(here) == before


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

_PHASES = (Phase("policy", _RULE, "none", options.PRESETS["smoke"].schedule),)


def trainer(directory: RunDirectory) -> Trainer:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    data = Batch(np.zeros((8, 64)), np.zeros(8))
    return Trainer(_PHASES, Meta(), None, data, 8, strategy, directory, {})


def start_run(path: Path) -> Path:
    """A run's directory with two checkpoints, at 1 and 2 updates."""
    with RunDirectory(path, {"test": 1}) as directory:
        run = trainer(directory)._enter_phase(0, [], 0.0, 0, 0)
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


# --- results ------------------------------------------------------------------------------------


def table_of_two(path: Path) -> Path:
    row = {f.name: {"str": "p", "int": 1, "float": 0.5}[f.type] for f in fields(Result)}
    rows = [
        Result(**row | {"repeat": repeat, "epoch": epoch, "diverged_at": -1, "steps": 9 * epoch})
        for repeat in (1, 2)
        for epoch in (0, 1)
    ]
    path.mkdir()
    write_results(path / "results.csv", rows)
    return path


_CELLS = ["", "nan", "-inf", "-1", "2", "1e999", "x", "1.5", "\0", '"', "1" * 5000, "p,p"]


@cases(40)
@given(
    mutate=st.one_of(
        mutations(), st.tuples(st.integers(0, 4), st.integers(0, 21), st.sampled_from(_CELLS))
    )
)
def test_results_with_other_bytes_or_cells(mutate, tmp_path_factory):
    path = table_of_two(tmp_path_factory.mktemp("r") / "results")
    table = path / "results.csv"
    if callable(mutate):
        table.write_bytes(mutate(table.read_bytes()))
    else:
        line, cell, text = mutate
        cells = [line.split(",") for line in table.read_text().splitlines()]
        cells[line][cell] = text
        table.write_text("\n".join(map(",".join, cells)) + "\n")
    before = files_of(path)
    try:
        rows = read_results(path)
    except TableError as error:
        assert str(table) in str(error) and "\n" not in str(error)
        assert "results.csv" in assert_refused(evaluate.main, "--report", str(path))
        with pytest.raises(TableError):
            ResultsDirectory(path)
        assert {k: v for k, v in files_of(path).items() if k != ".lock"} == before
        return
    for row in rows:  # another value, but one that can be
        assert row.validation_loss == row.validation_loss and 0 <= row.train_accuracy <= 1
        assert row.seconds >= 0 and row.epoch <= row.epochs


@pytest.mark.parametrize(
    "file, content",
    [
        ("cards/p.json", b"[1]"),
        ("cards/p.json", b'{"updates": "many"}'),
        ("cards/p.json", b'{"perturbation": {"kind": "input"}}'),
        ("cards/p.json", b"[" * 100_000),
        ("samples/p.npy", b"\x93NUMPY"),
        ("samples/p.npy", b"".join([  # 10^15 images in a file of a few bytes
            b"\x93NUMPY\x01\x00\x76\x00",
            b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000, 28, 28, 1), }"
            .ljust(117), b"\n",
        ])),
    ],
)  # fmt: skip
def test_what_belongs_to_results(file, content, tmp_path):
    path = table_of_two(tmp_path / "results")
    (path / file).parent.mkdir()
    (path / file).write_bytes(content)
    before = files_of(path)
    assert file in assert_refused(evaluate.main, "--report", str(path))
    assert files_of(path) == before


# --- data ---------------------------------------------------------------------------------------


def dataset(**changes) -> Dataset:
    """Noise with the form of digits, a value of one of its splits replaced."""
    generator = np.random.default_rng(0)
    parts = {}
    for part, count in (("train", 200), ("validation", 9), ("test", 7)):
        images = generator.integers(0, 256, (count, 28, 28, 1)).astype("uint8")
        labels = generator.integers(0, 10, count).astype("int32")
        arrays = {"images": images, "labels": labels}
        for name in arrays:
            if change := changes.get(f"{part}_{name}"):
                arrays[name] = change(arrays[name])
        parts[part] = Split(**arrays)
    return Dataset("digits", "digits", "made up", 10, (28, 28, 1), **parts)


def spoiled(images):
    images = images.astype("float32")
    images[-1, 3, 3] = np.nan
    return images


_FAULTS = {
    "images": [
        lambda x: x[:0], lambda x: x[:-1], lambda x: x[..., 0], lambda x: x[:, :14], spoiled,
        lambda x: np.repeat(x, 3, -1), lambda x: x.astype("float32") / 0, lambda x: x.astype(str),
        lambda x: x.astype("int64") - 300, lambda x: x.astype(object), lambda x: x.astype(complex),
    ],
    "labels": [
        lambda y: y[:0], lambda y: y[1:], lambda y: y + 10, lambda y: y - 10, lambda y: y[:, None],
        lambda y: y.astype("float32"), lambda y: np.eye(10)[y], lambda y: y.astype(str),
        lambda y: np.full_like(y, 2**31 - 1),
    ],
}  # fmt: skip


_BRIEF = ("--problem", "mnist_mlp", "--preset", "smoke")  # should a fault be overlooked


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("name", ["images", "labels"])
def test_data_that_is_none(part, name, here, monkeypatch):
    for change in _FAULTS[name]:
        make = lambda *_, change=change, **__: dataset(**{f"{part}_{name}": change})  # noqa: E731
        monkeypatch.setattr(problems, "load_dataset", make)
        before = files_of(here)
        assert_refused(train.main, "--output", "out", *_BRIEF)
        assert_refused(evaluate.main, "--optimizer", "adam", "--output", "out", *_BRIEF)
        assert files_of(here) == before


def test_data_too_little_for_a_batch(here, monkeypatch):
    short = dict.fromkeys(("train_images", "train_labels"), lambda x: x[:127])
    monkeypatch.setattr(problems, "load_dataset", lambda *_: dataset(**short))
    for main, words in ((train.main, []), (evaluate.main, ["--optimizer", "adam"])):
        said = assert_refused(main, *words, "--problem", "mnist_mlp")
        assert "127 training examples, and a batch of mnist_mlp holds 128" in said


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The digits as TFDS keeps them, and what they are."""
    cache = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"], before = str(cache), os.environ.get("XDG_CACHE_HOME")
    yield cache, problems.load_dataset("digits")
    os.environ.pop("XDG_CACHE_HOME")
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before


@cases(10)
@given(place=st.integers(0, 3), mutate=mutations())
def test_prepared_data_with_other_bytes(place, mutate, prepared):
    cache, expected = prepared
    files = sorted(p for p in cache.rglob("*") if p.is_file())
    file = files[place % len(files)]
    original = file.read_bytes()
    try:
        file.write_bytes(mutate(original))
        found = problems.load_dataset("digits")
    except DatasetUnavailable as error:
        assert str(cache) in str(error) and "\n" not in str(error)
    else:
        for part in ("train", "validation", "test"):
            a, b = getattr(found, part), getattr(expected, part)
            np.testing.assert_array_equal(a.images, b.images)
            np.testing.assert_array_equal(a.labels, b.labels)
    finally:
        file.write_bytes(original)
