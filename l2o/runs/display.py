"""What is shown of a run while it goes on: bar, figure, TensorBoard."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import tensorflow as tf

from l2o.runs.directory import CONFIG
from l2o.runs.files import write_atomically
from l2o.runs.progress import ProgressBar, duration

# A step of a validation in steps of training, until there has been one (benchmarks/unroll.py).
VALIDATION_STEPS = 0.3
# What `tf.summary.scalar` writes; but that needs TensorBoard, which is there to look at the files.
_SCALAR = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars"), data_class=1
)
_RECENT = 25  # calls that the time left is reckoned from


class Display:
    """Shows a trainer's events.

    Args:
        directory: The run directory.
        steps_left: See `plan.inner_steps_left`, of the number of a phase and its progress.
        tensorboard: Whether to write event files.
    """

    def __init__(self, directory: Path, steps_left: Callable[..., tuple], tensorboard: bool):
        self._directory, self._steps_left = directory, steps_left
        self._bar = ProgressBar("")
        self._seconds: dict[tuple[int, str], deque[float]] = {}
        self._writer = None
        if tensorboard:
            self._writer = tf.summary.create_file_writer(str(directory / "tensorboard"))

    def __call__(self, event: str, facts: dict[str, Any]) -> None:
        if event in ("update", "validating"):
            self._step(event, facts)
        elif event == "entered":
            mean = float(facts["losses"].mean())
            phase = facts["phase"]
            self._bar.say(
                f"{phase.name}: stage {facts['stage'] + 1} of {len(phase.schedule.stages)} began "
                f"at validation loss {mean:.4f}"
            )
        elif event == "period":
            self._period(facts)
        elif event == "stopping":  # in a signal handler, where print may be in the midst of a line
            os.write(2, b"\nStopping when this truncation ends.\n")

    def close(self) -> None:
        """Ends the bar and the event files."""
        self._bar.close()
        if self._writer:
            self._writer.close()

    def _step(self, event: str, facts: dict[str, Any]) -> None:
        phase, run = facts["phase"], facts["run"]
        if event == "validating":
            each = facts["each"]
        else:
            each = facts["seconds"] / phase.schedule.truncation / phase.schedule.meta_batch
        if (run.phase, event) in self._seconds:
            self._seconds[run.phase, event].append(each)
        else:  # the first call is mostly tracing and says nothing of the speed
            self._seconds[run.phase, event] = deque(maxlen=_RECENT)
        progress = run.progress
        text = f"{phase.name} stage {progress.stage + 1} period {progress.period + 1} | "
        if event == "validating":
            text += "validating"
        elif facts["finite"]:
            text += f"meta loss {facts['meta_loss']:+.3f}"
        else:
            text += "SKIPPED, not finite"
        text += self._time_left(run, event, facts)
        if event == "update" and facts["finite"]:
            if phase.scheme != "none":
                text += f" | distance {facts['distance']:+.3f}"
            text += f" | {facts['speed']:,.0f} steps/s"
        self._bar.show(facts["done"], facts["total"], text)

    def _time_left(self, run, event: str, facts: dict[str, Any]) -> str:
        training, validation = (self._speed(run.phase, e) for e in ("update", "validating"))
        if training is None:
            if validation is None:
                return ""
            training = validation / VALIDATION_STEPS
        if validation is None:
            validation = training * VALIDATION_STEPS
        stage, whole = self._steps_left(run.phase, run.progress)
        phase = facts["phase"]
        if event == "update":
            each = phase.schedule.truncation * phase.schedule.meta_batch
            behind = facts["done"] * each * training
        else:
            unroll = phase.schedule.stages[run.progress.stage].unroll(run.progress.period)
            behind = facts["done"] * validation + phase.schedule.period * unroll * training
        left = [t * training + v * validation - behind for t, v in (stage, whole)]
        stage, whole = (duration(max(seconds, 0)) for seconds in left)
        return f" | left: run {whole}, stage {stage}"

    def _speed(self, phase: int, event: str) -> float | None:
        """Seconds an inner step of a trajectory, in this phase or else in the one before."""
        for number in (phase, phase - 1):
            if times := self._seconds.get((number, event)):
                return median(times)  # now and then a call traces anew
        return None

    def _period(self, facts: dict[str, Any]) -> None:
        distance = f", distance {facts['distance']:+.4f}" if facts["distance"] else ""
        self._bar.say(
            f"{facts['phase']} stage {facts['stage']} period {facts['period']}: "
            f"N {facts['unroll']}, meta loss {facts['meta_loss']:+.4f}{distance}, validation "
            f"{facts['validation_loss']:+.4f} (N {facts['validation_unroll']}), {facts['verdict']}"
        )
        if self._writer:
            with self._writer.as_default(step=facts["updates"]):
                for name in ("meta_loss", "distance", "validation_loss", "alpha", "unroll",
                             "skipped"):  # fmt: skip
                    tag, value = f"{facts['phase']}/{name}", tf.constant(facts[name], tf.float32)
                    tf.summary.write(tag, value, metadata=_SCALAR)
            self._writer.flush()
        if facts["stage_over"]:
            draw_periods(self._directory / "periods.csv", self._directory / "progress.png")


def draw_periods(table: Path, path: Path) -> None:
    """A figure of a run's periods: meta loss and validation, distance, by meta-update.

    Args:
        table: A run's periods.csv.
        path: The PNG to be written.
    """
    from matplotlib.figure import Figure

    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(8, 6))
    top, bottom = figure.subplots(2, 1, sharex=True)
    phases = list(dict.fromkeys(row["phase"] for row in rows))
    for phase, style in zip(phases, ("--", "-"), strict=False):
        mine = [row for row in rows if row["phase"] == phase]
        x = [int(row["updates"]) for row in mine]
        values = lambda name: [float(row[name]) for row in mine]  # noqa: B023, E731
        top.plot(x, values("meta_loss"), style, color="0.6", marker=".", label=f"{phase}: training")
        top.plot(x, values("validation_loss"), style, color="C0", marker="o",
                 label=f"{phase}: validation")  # fmt: skip
        if any(values("distance")):
            bottom.plot(x, values("distance"), style, color="C1", marker=".", label=phase)
        for before, row in zip(mine, mine[1:], strict=False):
            if before["stage"] != row["stage"]:
                for axes in (top, bottom):
                    axes.axvline(int(before["updates"]), color="0.85", zorder=0)
    top.set_ylabel("meta loss (log units)")
    top.legend(fontsize="small")
    bottom.set_ylabel("log distance to teachers")
    bottom.set_xlabel("meta-updates (vertical lines: stages end)")
    config = json.loads((table.parent / CONFIG).read_text())
    data = config["data"].split(" (")[0]
    title = f"{config['strategy']}, pool {config['pool']}, {config['problem']}, data: {data}"
    figure.suptitle(title, fontsize="small")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    write_atomically(path, buffer.getvalue())
