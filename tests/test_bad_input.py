"""Bad input, some 300 cases with those of `test_bad_files.py`: command lines, results, data.

One line names the fault, and nothing else happens. Where a change happens to do no harm, what is
read must be what was written.
"""

import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from bad_input import assert_refused, cases, files_of, mutations
from hypothesis import given
from hypothesis import strategies as st
from made_results import made_evaluation

from l2o import problems
from l2o.commands import evaluate, report, train, tune
from l2o.commands import train_options as options
from l2o.evaluation.results import VERSION, Result, read_results, write_results
from l2o.evaluation.store import ResultsDirectory, read_cards, read_samples
from l2o.evaluation.tables import TableError
from l2o.problems import Batch, Dataset, DatasetUnavailable, readers

# --- command lines ------------------------------------------------------------------------------

_WORDS = [
    "", " ", "0", "-1", "1", "3", "100", "2.5", "1e400", "1e-400", "nan", "inf", "-inf", "9" * 30,
    "0x10", "١", "a\nb", "é", "..", "/", "x" * 5000, "all", "digits", "none", "small", "--", "@",
    "foreign", "foreign/thesis.tex", "\udcff", "clip_ratio=x", "scaling=[1, {}]", "patience=",
    "recompute=" + "(" * 5000, "teachers=adam,sgd", "seed=3", "tolerance=1e999", "=",
]  # fmt: skip


@st.composite
def command_lines(draw, parser):
    """One to four flags of a command with words that may not suit them."""
    flags = [
        action for action in parser._actions
        if action.dest not in ("help", "list", "devices")
    ]  # fmt: skip
    line = []
    for action in draw(st.lists(st.sampled_from(flags), min_size=1, max_size=4)):
        line += action.option_strings[:1]
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
@given(line=command_lines(tune.parser()))
def test_tune_command_lines(line, here):
    before = files_of(here)
    assert_refused(tune.main, *line)
    assert files_of(here) == before


@cases(30)
@given(line=command_lines(report.parser()))
def test_report_command_lines(line, here):
    before = files_of(here)
    assert_refused(report.main, "nowhere", *line)
    assert files_of(here) == before


@cases(30)
@given(line=command_lines(evaluate.parser()))
def test_evaluate_command_lines(line, here):
    before = files_of(here)
    assert_refused(evaluate.main, "--optimizer", "adam", *line)
    assert files_of(here) == before


# --- results ------------------------------------------------------------------------------------


def table_of_two(path: Path) -> Path:
    row = {f.name: {"str": "p", "int": 1, "float": 0.5}[f.type] for f in fields(Result)}
    row["version"] = VERSION
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
        assert "results.csv" in assert_refused(report.main, str(path))
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
    assert file in assert_refused(report.main, str(path))
    assert files_of(path) == before


# --- data ---------------------------------------------------------------------------------------


def dataset(**changes) -> Dataset:
    """Noise with the form of digits, a value of one of its splits replaced."""
    generator = np.random.default_rng(0)
    parts = {}
    for part, count in (("train", 200), ("validation", 9), ("test", 7)):
        images = generator.integers(0, 256, (count, 28, 28, 1)).astype("uint8")
        labels = generator.integers(0, 10, count).astype("int32")
        arrays = {"inputs": images, "labels": labels}
        for name in arrays:
            if change := changes.get(f"{part}_{name}"):
                arrays[name] = change(arrays[name])
        parts[part] = Batch(**arrays)
    return readers.images("digits", "digits", "made up", 10, **parts)


def spoiled(images):
    images = images.astype("float32")
    images[-1, 3, 3] = np.nan
    return images


_FAULTS = {
    "inputs": [
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
@pytest.mark.parametrize("name", ["inputs", "labels"])
def test_data_that_is_none(part, name, here, monkeypatch):
    for change in _FAULTS[name]:
        make = lambda *_, change=change, **__: dataset(**{f"{part}_{name}": change})  # noqa: E731
        monkeypatch.setattr(problems, "load_dataset", make)
        before = files_of(here)
        assert_refused(train.main, "--output", "out", *_BRIEF)
        assert_refused(evaluate.main, "--optimizer", "adam", "--output", "out", *_BRIEF)
        assert files_of(here) == before


def test_data_too_little_for_a_batch(here, monkeypatch):
    short = dict.fromkeys(("train_inputs", "train_labels"), lambda x: x[:127])
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
            np.testing.assert_array_equal(a.inputs, b.inputs)
            np.testing.assert_array_equal(a.labels, b.labels)
    finally:
        file.write_bytes(original)


@pytest.mark.parametrize(
    "values",
    [
        {"epoch": 1, "steps": 0}, {"steps": 10**400}, {"seconds": float("inf")}, {"seed": 2**60},
    ],
)  # fmt: skip
def test_a_row_that_the_report_could_not_reckon_with(values):
    row = {f.name: {"str": "p", "int": 1, "float": 0.5}[str(f.type)] for f in fields(Result)}
    Result(**row)
    with pytest.raises(ValueError, match="cannot be"):
        Result(**(row | values))


@pytest.mark.parametrize(
    "card",
    [
        '{"perturbation": {"magnitude": 1}}', '{"updates": 1' + 400 * "0" + "}", '{"seconds": NaN}',
        '{"perturbation": {"kind": "input", "magnitude": Infinity}}', '{"gaussian": "much"}',
    ],
)  # fmt: skip
def test_a_card_that_the_report_could_not_draw(card, tmp_path):
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "origin.json").write_text(card)
    with pytest.raises(TableError, match="origin.json cannot be read"):
        read_cards([tmp_path])


def test_images_of_two_channels_are_none(tmp_path):
    (tmp_path / "samples").mkdir()
    np.save(tmp_path / "samples" / "odd.npy", np.zeros((2, 4, 4, 2), np.uint8))
    with pytest.raises(TableError, match="odd.npy cannot be read: no images"):
        read_samples([tmp_path])


def test_tables_that_tell_different_things_of_one_evaluation(tmp_path):
    one, cut = made_evaluation("adam", [2.0, 1.0]), made_evaluation("adam", [2.0, 1.0, 0.5])[:2]
    other = [one[0], replace(one[1], test_loss=0.1)]
    for name, rows in (("one", one), ("other", other), ("cut", cut)):
        write_results(tmp_path / name, rows)
    assert read_results(tmp_path / "one", tmp_path / "one") == one
    with pytest.raises(TableError, match="adam .* differs from another table's"):
        read_results(tmp_path / "one", tmp_path / "other")
    with pytest.raises(TableError, match="adam .* is not whole"):
        read_results(tmp_path / "cut")
