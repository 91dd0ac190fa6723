"""What is shown of long work, on terminals of all widths."""

import io
import sys
from functools import partial
from types import SimpleNamespace

import pytest

from l2o.amalgamation import curriculum
from l2o.amalgamation.plan import Phase, inner_steps_left
from l2o.rules import RNNProp
from l2o.runs.display import Display
from l2o.runs.progress import ProgressBar, duration


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
    ProgressBar("work").show(1, 2, "3 min left")
    assert terminal.getvalue() == f"\r{shown}"


def test_the_bar_says_how_long_a_run_takes(tmp_path, monkeypatch):
    """Two stages of two periods, of four trajectories of 20 steps, two at a time, and one judged.

    A step takes 0.2 s for each of the two, one of a validation 0.3 of that: a stage 32 s and 2 or,
    with that of its beginning, 3 times 1.2 s, of which 8 s are over.
    """
    schedule = curriculum.Stages(
        (curriculum.Stage((20,), 20),) * 2, truncation=10, meta_batch=2, period=4, min_periods=2,
        max_periods=2, patience=2, validation_trajectories=1,
    )  # fmt: skip
    phase, shown = Phase("policy", RNNProp(units=1), "none", schedule), []
    display = Display(tmp_path, partial(inner_steps_left, (phase,)), False)
    monkeypatch.setattr(ProgressBar, "show", lambda self, done, total, text: shown.append(text))
    run = SimpleNamespace(phase=0, progress=curriculum.Progress(incoming=0.0))
    facts = {"phase": phase, "run": run, "finite": True, "meta_loss": 0.0, "distance": 0.0}
    for done, seconds in ((1, 99.0), (2, 4.0)):  # the first is mostly tracing
        facts |= {"done": done, "total": 4, "seconds": seconds, "speed": 20 / seconds}
        display("update", facts)
    assert "left: run 62 s, stage 26 s" in shown[-1]
