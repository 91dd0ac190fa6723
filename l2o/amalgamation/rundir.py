"""The run directory: what a meta-training run leaves on disk, and how it is taken up again.

config.json      the configuration, compared before a run is taken up again
updates.csv      one row a meta-update
periods.csv      one row a period, with its validation
progress.png     a figure of periods.csv
checkpoint.npz   where the run is; checkpoint.previous.npz, the one before it
choice/          the Choice policy, where one is trained on the way
policy/          the policy, from the first validated period on
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from l2o.files import write_atomically

CHECKPOINT, PREVIOUS = "checkpoint.npz", "checkpoint.previous.npz"


class RunError(ValueError):
    """A run directory that cannot be used; the message says why in one line."""


class RunDirectory:
    """A run's files, locked for one process.

    Args:
        path: The directory; made if it is not there.
        config: The configuration as JSON can hold it.
        fresh: Whether a run that is there is moved aside instead of taken up again.

    Raises:
        RunError: If the directory cannot be written, is in use, holds another configuration, or
            holds files that are no run's.
    """

    def __init__(self, path: Path, config: dict[str, Any], fresh: bool = False):
        self.path = Path(path)
        if fresh and self._config_file.exists():
            self._move_aside()
        self._claim(config)

    @property
    def _config_file(self) -> Path:
        return self.path / "config.json"

    def _move_aside(self) -> None:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old{number}")).exists():
            number += 1
        os.replace(self.path, aside)

    def _claim(self, config: dict[str, Any]) -> None:
        try:
            if self.path.exists() and not self._config_file.exists():
                foreign = [p.name for p in self.path.iterdir() if not p.name.startswith(".")]
                if foreign:
                    names = ", ".join(sorted(foreign)[:3])
                    raise RunError(f"{self.path} is not empty and holds no run: {names} ...")
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 held while the process lives
        except OSError as error:
            raise RunError(f"Cannot write {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"{self.path} is in use by another process") from error
        if not self._config_file.exists():
            write_atomically(self._config_file, json.dumps(config, indent=2) + "\n")
            return
        try:
            there = json.loads(self._config_file.read_text())
        except ValueError as error:
            raise RunError(f"{self._config_file} is damaged: {error}") from error
        differences = [
            f"{key}: {there.get(key)!r} there, {config.get(key)!r} asked for"
            for key in sorted({*there, *config})
            if there.get(key) != config.get(key)
        ]
        if differences:
            raise RunError(
                f"{self.path} holds a run of another configuration ({'; '.join(differences)}). "
                "Choose another --output, or --fresh to move it aside"
            )

    def save(self, arrays: dict[str, np.ndarray], status: dict[str, Any]) -> None:
        """Writes a checkpoint; the one before it stays as the previous one."""
        buffer = io.BytesIO()
        np.savez(buffer, status=np.array(json.dumps(status)), **arrays)
        newest = self.path / CHECKPOINT
        if newest.exists():
            with suppress(FileNotFoundError):
                os.unlink(self.path / PREVIOUS)
            os.link(newest, self.path / PREVIOUS)
        write_atomically(newest, buffer.getvalue())

    def load(self, report=print) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """The newest checkpoint that is whole, or None where there is none.

        Raises:
            RunError: If there are checkpoints and none can be read.
        """
        damaged = []
        for name in (CHECKPOINT, PREVIOUS):
            path = self.path / name
            if not path.exists():
                continue
            try:
                with np.load(path, allow_pickle=False) as file:
                    arrays = {key: file[key] for key in file.files}  # reading checks the CRCs
                status = json.loads(str(arrays.pop("status")))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                damaged.append(f"{name} ({error})")
                continue
            if damaged:
                report(f"Damaged, so the checkpoint before it is taken: {damaged[0]}")
            return arrays, status
        if damaged:
            raise RunError(f"No checkpoint in {self.path} can be read: {', '.join(damaged)}")
        return None


class Table:
    """A CSV file of a run that grows row by row and can be cut back to where a checkpoint was.

    Args:
        path: The file.
        columns: Its header.
        rows: How many of its rows count; later ones are of a time that will be lived again.
    """

    def __init__(self, path: Path, columns: Sequence[str], rows: int):
        self.path, self.columns = path, tuple(columns)
        text = path.read_text() if path.exists() else ""
        self.rows = list(csv.reader(io.StringIO(text)))[1 : rows + 1]
        head = io.StringIO()
        csv.writer(head, lineterminator="\n").writerows([self.columns, *self.rows])
        write_atomically(path, head.getvalue())
        self._file = open(path, "a", newline="")  # noqa: SIM115 grows while the run lasts
        self._writer = csv.writer(self._file, lineterminator="\n")

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row and hands it to the operating system."""
        values = [row[name] for name in self.columns]
        self._writer.writerow(values)
        self._file.flush()
        self.rows.append([str(value) for value in values])

    def column(self, name: str) -> list[str]:
        """The values of a column, as text."""
        place = self.columns.index(name)
        return [row[place] for row in self.rows]
