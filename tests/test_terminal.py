"""Where the commands run: streams that are closed, other encodings."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from l2o.commands.terminal import run_command

_ROOT = Path(__file__).parents[1]
_TABLE = """
from l2o.evaluation.tables import read_table, write_table
from l2o.evaluation.tuning import Trial

row = Trial("gr\\u00fc\\u00dfe:f", "own", 1, "adam", 0.1, 0, 1.0, 0.5, -1)
write_table("table.csv", [row], Trial)
assert read_table("table.csv", Trial) == [row]
"""


def test_a_letter_that_the_terminal_lacks_stops_nothing(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, "ascii"))
    with pytest.raises(SystemExit) as end:
        run_command(lambda: print("8\u00d78, \u03b5", flush=True) or 0)
    assert (end.value.code, written.getvalue()) == (0, b"8?8, ?\n")


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-"])
def test_streams_may_be_closed(closed, tmp_path):
    command = f"exec {sys.executable} {_ROOT / 'evaluate.py'} --list {closed}"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("mnist_cnn" in done.stdout) == (closed == "2>&-")


def test_tables_are_read_as_they_are_written_in_every_locale(tmp_path):
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(_ROOT)}
    command = [sys.executable, "-c", _TABLE]
    subprocess.run(command, cwd=tmp_path, env=os.environ | plain, check=True, capture_output=True)
