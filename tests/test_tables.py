"""Tables that another program has saved again, a spreadsheet most of all, or another release."""

import csv
import io
from dataclasses import asdict, fields, replace
from math import inf, nan

import pytest
from bad_input import assert_refused
from made_results import made_evaluation

from l2o.commands.report import main
from l2o.evaluation.fit import History
from l2o.evaluation.results import TABLE, Result, read_results, write_results
from l2o.evaluation.store import ResultsDirectory
from l2o.evaluation.tables import TableError, read_table
from l2o.evaluation.tuning import Trial, write_trials

_ROWS = made_evaluation(
    "adam", [2.332005262374878, 1 / 3, 0.25], data="own data ac5e86de, network 12ab"
) + made_evaluation("mine, “ü”", [2.3, 0.5, inf], epsilon=0.1, origin="12e4567890123456")
_TRIALS = [
    Trial("mnist_mlp", "own, quoted", 5, "adam", rate, 0, loss, nan, -1)
    for rate, loss in ((0.001, 1 / 3), (0.01, inf))
]


def text_of(write, rows, path) -> str:
    write(path, rows)
    return path.read_text(encoding="utf-8")


def saved(text: str, separator=",", quoting=csv.QUOTE_MINIMAL, cell=lambda name, value: value):
    """A table saved again, with the cells of its rows changed."""
    columns, *rows = csv.reader(io.StringIO(text))
    rows = [[cell(*pair) for pair in zip(columns, row, strict=True)] for row in rows]
    out = io.StringIO()
    csv.writer(out, delimiter=separator, quoting=quoting).writerows([columns, *rows])
    return out.getvalue()


_KEPT = {
    "as it was": lambda text: text,
    "with the mark of UTF-8": lambda text: "\ufeff" + text,
    "with other line ends": lambda text: text.replace("\n", "\r\n"),
    "with blank lines": lambda text: text.replace("\n", "\n\n") + "\n",
    "with lines of empty cells": lambda text: (
        text + "," * text.partition("\n")[0].count(",") + "\n"
    ),
    "all quoted": lambda text: saved(text, quoting=csv.QUOTE_ALL),
    "semicolons": lambda text: saved(text, ";"),
    "tabs": lambda text: saved(text, "\t"),
    "all of it": lambda text: "\ufeff" + saved(text, ";", csv.QUOTE_ALL) + ";;;\r\n\r\n",
}


@pytest.mark.parametrize("how", _KEPT)
@pytest.mark.parametrize("write, rows", [(write_results, _ROWS), (write_trials, _TRIALS)])
def test_a_table_saved_again_with_all_its_cells_is_the_same_table(how, write, rows, tmp_path):
    path, kind = tmp_path / "table.csv", type(rows[0])
    text = text_of(write, rows, path)
    path.write_bytes(_KEPT[how](text).encode())
    found = read_table(path, kind)
    assert repr(found) == repr(rows)  # as text: nan equals nothing
    assert text_of(write, found, path) == text


def test_results_that_are_added_to_are_written_in_one_form(tmp_path):
    first, second = _ROWS[:3], _ROWS[3:]
    text = text_of(write_results, _ROWS, tmp_path / TABLE)
    half = text_of(write_results, first, tmp_path / TABLE)
    (tmp_path / TABLE).write_bytes(_KEPT["all of it"](half).encode())
    with ResultsDirectory(tmp_path) as directory:
        directory.add(second[0].key, second, History([], [], []))
    assert (tmp_path / TABLE).read_text(encoding="utf-8") == text


def test_whole_numbers_are_written_as_their_column_has_them(tmp_path):
    rows = made_evaluation("adam", [2, 1], seconds=3)
    write_results(tmp_path / TABLE, rows)
    assert read_results(tmp_path / TABLE) == rows


def shown(digits: str, point: str = "."):
    """Numbers as a spreadsheet shows them, and thus saves them."""

    def cell(name: str, value: str) -> str:
        try:
            return format(float(value), digits).replace(".", point)
        except ValueError:
            return value

    return cell


def put(column: str, cell: str):
    return lambda name, value: cell if name == column else value


_ANEW = "no {} as l2o writes it: a spreadsheet writes numbers anew, with fewer digits"
_NUMBERS = {
    "seconds is '0', " + _ANEW.format("float"): shown(".10g"),
    "seconds is '0,0', " + _ANEW.format("float"): put("seconds", "0,0"),
    "version is '3.00E+00', " + _ANEW.format("int"): shown(".2E"),
    "validation_loss is '1.00E-03'": put("validation_loss", "1.00E-03"),
    "diverged_at is 'TRUE'": put("diverged_at", "TRUE"),
    "repeat is '1.0'": put("repeat", "1.0"),
    "seed is ' 7'": put("seed", " 7"),
    "seconds is '4,665'": put("seconds", "4,665"),
    "seconds is '4665'": put("seconds", "4665"),
    "test_loss is ''": put("test_loss", ""),
    "test_loss is '#NUM!'": put("test_loss", "#NUM!"),
    "origin cannot be 1.2E+46, the number that a spreadsheet took it for": put("origin", "1.2E+46"),
}


@pytest.mark.parametrize("separator", ",;")
@pytest.mark.parametrize("said", _NUMBERS)
def test_numbers_that_are_not_as_they_were_are_refused(said, separator, tmp_path):
    text = text_of(write_results, _ROWS, tmp_path / TABLE)
    (tmp_path / TABLE).write_text(saved(text, separator, cell=_NUMBERS[said]), encoding="utf-8")
    before = (tmp_path / TABLE).read_bytes()
    assert f"{TABLE}, line 2 is no row of this table: {said}" in refused(tmp_path)
    assert (tmp_path / TABLE).read_bytes() == before


def refused(path) -> str:
    """What is said of a directory of results, by those who add to it and who report it."""
    with pytest.raises(TableError) as error:
        ResultsDirectory(path)
    assert assert_refused(main, str(path)) == f"error: {error.value}\n"
    return str(error.value)


_OTHER = {
    "UTF-16": (lambda text: text.encode("utf-16"), "is no text in UTF-8, which spreadsheets call"),
    "another language's": (lambda text: text.encode("cp1252"), "is no text in UTF-8"),
    "empty": (lambda text: b"", "Received: an empty file"),
    "foreign": (lambda text: b"mine,1\n", "Received: mine, 1"),
    "turned": (
        lambda text: "".join(f"{','.join(line.split(',')[::-1])}\n" for line in text.split()),
        "Received: these in another order",
    ),
    "more": (lambda text: text.replace("\n", ",note\n"), "There besides: 'note'"),
    "fewer": (lambda text: text.replace(",privacy\n", "\n"), "Not there: privacy"),
    "a short row": (
        lambda text: text.replace("0.0,\n", "0.0\n"),
        "line 2 .* it has 23 cells, not 24",
    ),
    "no end": (lambda text: text[:-1], "is cut off: its last line, number 7, has no end"),
    "no end after blank lines": (
        lambda text: text.replace("\n", "\n\n")[:-2],
        "is cut off: its last line, number 13, has no end",
    ),
}


@pytest.mark.parametrize("how", _OTHER)
def test_another_table_is_refused_with_what_is_other(how, tmp_path):
    change, said = _OTHER[how]
    content = change(text_of(write_results, _ROWS, tmp_path / TABLE))
    (tmp_path / TABLE).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TableError, match=f"^{tmp_path / TABLE},? .*{said}") as error:
        read_results(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("version", [0, 4, -1])
@pytest.mark.parametrize("columns", ["the same", "one more", "one less"])
def test_another_releases_table_is_refused_with_both_versions(version, columns, tmp_path):
    names = [f.name for f in fields(Result)]
    names = {"the same": names, "one more": [*names, "device"], "one less": names[:-1]}[columns]
    rows = [asdict(row) | {"version": version, "device": "cpu"} for row in _ROWS]
    with open(tmp_path / TABLE, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, names, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    before = (tmp_path / TABLE).read_bytes()
    assert refused(tmp_path) == (
        f"{tmp_path / TABLE} is a table of another release of l2o, in version {version} of its "
        "form. This release reads version 3"
    )
    assert (tmp_path / TABLE).read_bytes() == before


@pytest.mark.parametrize("version, lacking", [(1, ["cpu_seconds"]), (2, [])])
def test_a_table_of_an_earlier_version_is_read_and_goes_on_as_one_of_today(
    version, lacking, tmp_path
):
    """1 has no processor seconds; in both the data, and what they stood in for, are one string."""
    names = [f.name for f in fields(Result) if f.name not in ("in_place_of", *lacking)]
    rows = _ROWS + made_evaluation("sgd", [2.0, 1.0], data="digits, network 1", in_place_of="mnist")
    with open(tmp_path / TABLE, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        for row in rows:
            data = f"{row.data} for mnist" if row.in_place_of else row.data
            table.writerow(asdict(row) | {"version": version, "data": data})
    unknown = [replace(row, **dict.fromkeys(lacking, nan)) for row in rows]
    found = read_results(tmp_path)
    assert repr(found) == repr(unknown)
    write_results(tmp_path / TABLE, found)
    assert repr(read_results(tmp_path)) == repr(unknown)
