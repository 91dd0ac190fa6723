"""The run directory: whose it is, what is refused, what a crash leaves behind."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bad_input import files_of

from l2o.runs.directory import (
    CHECKPOINT,
    CONFIG,
    PREVIOUS,
    CSVLog,
    RunDirectory,
    differences,
)
from l2o.runs.lock import DirectoryError, check_free, move_aside

_CONFIG = {"pool": "large", "phases": [{"schedule": {"period": 10, "alphas": (0.2, 0.1)}}]}


def arrays(number: int) -> dict[str, np.ndarray]:
    values = np.random.default_rng(number).normal(size=50).astype("float32")
    return {"now.0": values, "count": np.array(number, "int32")}


@pytest.fixture
def saved(tmp_path):
    """A run with checkpoints 1 and 2."""
    with RunDirectory(tmp_path / "run", _CONFIG) as run:
        for number in (1, 2):
            run.save(arrays(number), {"number": number})
    return tmp_path / "run"


def load(path, report=print) -> int | None:
    """The number of the checkpoint that comes back, all of it."""
    with RunDirectory(path, _CONFIG) as run:
        loaded = run.load(report)
    if loaded is None:
        return None
    found, status = loaded
    expected = arrays(status["number"])
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)
    return status["number"]


def test_the_newest_checkpoint_comes_back(saved, tmp_path):
    assert load(saved) == 2
    assert load(tmp_path / "other") is None


def test_directory_is_one_process_alone(saved):
    other = "import fcntl; f = open('.lock', 'w'); fcntl.flock(f, 2); print(flush=True); input()"
    with RunDirectory(saved, _CONFIG):
        refused(saved)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", other], cwd=saved, **pipes) as process:
        process.stdout.readline()
        refused(saved)
        process.communicate(b"\n")
    assert load(saved) == 2  # free again


def refused(path) -> None:
    before = files_of(path)
    for lock in (lambda: RunDirectory(path, _CONFIG), lambda: move_aside(path, CONFIG)):
        with pytest.raises(DirectoryError, match="in use by another process"):
            lock()
    assert files_of(path) == before


def test_refused_directory_is_free_for_its_own_configuration(saved):
    with pytest.raises(DirectoryError) as error:
        RunDirectory(saved, _CONFIG | {"pool": "small"})
    assert load(saved) == 2, error  # although the exception still holds the frame


def test_another_configuration_is_refused_with_what_differs(saved):
    before = files_of(saved)
    asked = json.loads(json.dumps(_CONFIG))
    asked["pool"], asked["phases"][0]["schedule"]["alphas"][1] = "small", 0.05
    with pytest.raises(DirectoryError) as error:
        RunDirectory(saved, asked)
    message = str(error.value)
    assert "pool: 'large' there, 'small' asked for" in message
    assert "phases[0].schedule.alphas[1]: 0.1 there, 0.05 asked for" in message
    assert "period" not in message and "\n" not in message and "--fresh" in message
    assert files_of(saved) == before


def test_many_differences_are_cut_short(saved):
    with pytest.raises(DirectoryError, match="and 6 more") as error:
        RunDirectory(saved, _CONFIG | {f"setting{k}": k for k in range(10)})
    assert str(error.value).count("asked for") == 4


def test_differences_of_other_kinds():
    assert list(differences([1], [1, 2], "a")) == ["a: [1] there, [1, 2] asked for"]
    assert list(differences({"a": 1}, {"b": 1})) == [
        "a: 1 there, None asked for",
        "b: None there, 1 asked for",
    ]
    assert list(differences(_CONFIG, _CONFIG)) == []


def test_a_run_is_moved_aside(saved, capsys):
    before = files_of(saved)
    other = _CONFIG | {"pool": "small"}
    for number in (1, 2):
        move_aside(saved, CONFIG)
        aside = saved.with_name(f"run.old{number}")
        assert capsys.readouterr().out == f"What was in {saved} is now in {aside}\n"
        with RunDirectory(saved, other) as run:
            assert run.load() is None
            run.save(arrays(9), {"number": 9})
        if number == 1:
            assert files_of(aside) == before
    assert json.loads((aside / CONFIG).read_text())["pool"] == "small"
    assert files_of(saved.with_name("run.old1")) == before


def test_damaged_newest_checkpoint_gives_way_to_the_one_before(saved):
    said = []
    content = (saved / CHECKPOINT).read_bytes()
    (saved / CHECKPOINT).write_bytes(content[: len(content) // 2])
    assert load(saved, said.append) == 1
    assert len(said) == 1 and CHECKPOINT in said[0] and "Damaged" in said[0]
    with RunDirectory(saved, _CONFIG) as run:  # and the good one is not overwritten with it
        run.save(arrays(3), {"number": 3})
        assert load_raw(saved / CHECKPOINT) == 3
        assert not (saved / PREVIOUS).exists() or load_raw(saved / PREVIOUS) == 1


def load_raw(path) -> int:
    with np.load(path) as file:
        return int(file["count"])


def test_no_damage_passes_for_a_checkpoint(saved):
    content = (saved / CHECKPOINT).read_bytes()
    places = np.random.default_rng(0).integers(0, len(content), 150)
    spoiled = [content[:k] for k in places[:50]]
    spoiled += [content[:k] + bytes([content[k] ^ 0x41]) + content[k + 1 :] for k in places]
    for spoil in spoiled:
        (saved / CHECKPOINT).write_bytes(spoil)
        (saved / PREVIOUS).write_bytes(content)
        assert load(saved, lambda text: None) == 2


def test_run_without_a_whole_checkpoint_is_an_error(saved):
    for name in (CHECKPOINT, PREVIOUS):
        (saved / name).write_bytes(b"no checkpoint")
    with RunDirectory(saved, _CONFIG) as run, pytest.raises(DirectoryError, match="can be read"):
        run.load()
    assert (saved / CHECKPOINT).read_bytes() == b"no checkpoint"


def test_killed_between_two_renames(saved):
    (saved / CHECKPOINT).rename(saved / PREVIOUS)
    assert load(saved) == 2


def test_leavings_of_a_killed_process_go(saved):
    (saved / f".{CHECKPOINT}.77.tmp").write_bytes(b"half")
    (saved / "policy").mkdir()
    (saved / "policy" / ".policy.json.77.tmp").write_bytes(b"half")
    assert load(saved) == 2
    assert not [name for name in files_of(saved) if name.endswith(".tmp")]


def test_damaged_configuration(saved):
    (saved / CONFIG).write_text('{"pool": "la')
    with pytest.raises(DirectoryError, match="config.json is damaged.*--fresh"):
        RunDirectory(saved, _CONFIG)
    move_aside(saved, CONFIG)
    RunDirectory(saved, _CONFIG).close()


def test_foreign_directory_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for look in (check_free, move_aside, lambda path, _: RunDirectory(path, {})):
        with pytest.raises(
            DirectoryError, match="is not empty and holds no config.json.*thesis.tex"
        ):
            look(tmp_path, CONFIG)
    assert files_of(tmp_path) == {"thesis.tex": b"years of work"}


def test_a_directory_is_not_moved_from_under_ones_feet(saved, monkeypatch):
    """It would still be called ".": the run that is there would be gone on with."""
    before = files_of(saved)
    monkeypatch.chdir(saved)
    for path in (".", "sub/.."):
        Path("sub").mkdir(exist_ok=True)
        with pytest.raises(DirectoryError, match="cannot be moved aside from within"):
            move_aside(Path(path), CONFIG)
    assert files_of(saved) == before


def test_what_is_moved_aside_is_what_was_there(saved, tmp_path, monkeypatch):
    """`..` after a link is the parent of where it leads."""
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    (saved.parent / "deep").mkdir()
    Path("link").symlink_to(saved.parent / "deep")
    Path(saved.name).mkdir()
    (Path(saved.name) / CONFIG).write_text("another's")
    move_aside(Path("link") / ".." / saved.name, CONFIG)
    assert (Path(saved.name) / CONFIG).read_text() == "another's"
    assert saved.with_name(f"{saved.name}.old1").is_dir()


def test_a_directory_that_has_gone_is_not_made_again(tmp_path):
    with RunDirectory(tmp_path / "run", _CONFIG) as directory:
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        with pytest.raises(DirectoryError, match="run has gone"):
            directory.save({"w": np.zeros(2)}, {})
    assert not (tmp_path / "run").exists()


def test_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        for look in (lambda p: check_free(p, CONFIG), lambda p: RunDirectory(p, {})):
            with pytest.raises(DirectoryError, match=f"Cannot write {path}"):
                look(path)
    assert files_of(tmp_path) == {"file": b"mine"}


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a place where root cannot write")
def test_directory_that_cannot_be_made():
    with pytest.raises(DirectoryError, match="Cannot write /proc/l2o"):
        RunDirectory(Path("/proc/l2o"), _CONFIG)


def test_read_only_directory(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)  # root may do anything
    with pytest.raises(DirectoryError, match="no permission"):
        check_free(tmp_path / "a" / "run", CONFIG)
    assert not (tmp_path / "a").exists()


def test_looking_writes_nothing(tmp_path):
    check_free(tmp_path / "a" / "run", CONFIG)
    check_free(tmp_path, CONFIG)
    assert files_of(tmp_path) == {} and not (tmp_path / "a").exists()


def test_table_is_cut_back_to_its_checkpoint(tmp_path):
    path = tmp_path / "table.csv"
    table = CSVLog(path, ("name", "loss"), 0)
    for k in range(4):
        table.append({"loss": k / 3, "name": f"row, {k}", "unasked": None})
    table.close()
    with open(path, "a") as file:
        file.write("row 4,0.")  # killed in the midst of a row
    table = CSVLog(path, ("name", "loss"), 2)
    table.append({"name": "again", "loss": 7})
    table.sync()
    table.close()
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["name", "loss"], ["row, 0", "0.0"], ["row, 1", str(1 / 3)], ["again", "7"]]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_table_that_a_spreadsheet_saved_goes_on_in_its_own_form(separator, tmp_path):
    path = tmp_path / "table.csv"
    lines = [["name", "loss"], ["a", "0.5"], ["b", "0.25"], ["c", "0.125"]]
    text = "".join(f"{separator.join(line)}\r\n\r\n" for line in lines)
    path.write_text(f"\ufeff{text}{separator}\r\n", encoding="utf-8", newline="")
    with CSVLog(path, ("name", "loss"), 2) as table:
        table.append({"name": "again", "loss": 7})
    assert path.read_text(encoding="utf-8") == "name,loss\na,0.5\nb,0.25\nagain,7\n"


@pytest.mark.parametrize(
    "text, received",
    [
        ("name,meta_loss\na,0.5\n", "name, meta_loss"),  # of another release, perhaps
        ("name,loss,note\na,0.5,x\n", "name, loss, note"),
        ("name,loss\na,0,5\n", "a, 0, 5"),
        ("", ""),
    ],
)
def test_another_table_is_refused_and_left_alone(text, received, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(DirectoryError, match=f"{path} needs .* Received: {received}$"):
        CSVLog(path, ("name", "loss"), 1)
    assert path.read_text() == text
    CSVLog(path, ("name", "loss"), 0).close()  # nothing in it counts
    assert path.read_text() == "name,loss\n"
