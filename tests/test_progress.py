"""What is shown of long work, on terminals of all widths."""

import io
import sys

import pytest

from l2o.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "seconds, text", [(45, "45 s"), (89.6, "90 s"), (600, "10 min"), (5400, "1 h 30 min")]
)
def test_durations_are_rounded_to_what_counts(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("columns, shown", [("80", "work  50%  3 min left"), ("12", "work  50%  ")])
def test_a_line_is_as_wide_as_columns_says(columns, shown, monkeypatch):
    """Also where the terminal does not know its size."""
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    Progress("work").show(1, 2, "3 min left")
    assert terminal.getvalue() == f"\r{shown}"
