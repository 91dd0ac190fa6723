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
import io
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from l2o.runs.files import csv_lines, sync_directory, temporary, write_atomically, writing
from l2o.runs.lock import DirectoryError, LockedDirectory

CONFIG = "config.json"
CHECKPOINT, PREVIOUS = "checkpoint.npz", "checkpoint.previous.npz"


class RunDirectory(LockedDirectory):
    """A run's files, locked for one process.

    Args:
        path: The directory; made if it is not there.
        config: The configuration as JSON can hold it.

    Raises:
        DirectoryError: If the directory cannot be written, is in use, or holds another
            configuration or files that are no run's.
    """

    def __init__(self, path: Path, config: dict[str, Any]):
        super().__init__(path, CONFIG)
        try:
            if (self.path / CONFIG).exists():
                compare(self.path, config)
            else:
                write_atomically(self.path / CONFIG, json.dumps(config, indent=2) + "\n")
            self.tidy()
        except BaseException:
            self.close()
            raise

    def save(self, arrays: dict[str, np.ndarray], status: dict[str, Any]) -> None:
        """Writes a checkpoint; the one before it stays as the previous one.

        Raises:
            DirectoryError: If the directory has gone.
        """
        if not (self.path / CONFIG).exists():
            raise DirectoryError(f"{self.path} has gone, or its {CONFIG}, while it was written to")
        buffer = io.BytesIO()
        names = np.array(sorted(arrays))
        np.savez(buffer, status=np.array(json.dumps(status)), names=names, **arrays)
        newest = self.path / CHECKPOINT
        following = temporary(newest, "next")
        write_atomically(following, buffer.getvalue())
        if newest.exists():
            os.replace(newest, self.path / PREVIOUS)
        os.replace(following, newest)
        sync_directory(self.path)

    def load(self, report=print) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """The newest checkpoint that is whole, or None where there is none.

        A damaged one is renamed: the next save would put it in the place of the good one.

        Raises:
            DirectoryError: If there are checkpoints and none can be read.
        """
        damaged: list[str] = []
        found = load(self.path, damaged)
        if damaged:
            report(f"Damaged, so the checkpoint before it is taken: {damaged[0]}")
            os.replace(self.path / CHECKPOINT, self.path / f"{CHECKPOINT}.damaged")
        return found


def compare(path: Path, config: dict[str, Any]) -> None:
    """Compares a configuration with that of the run that is there.

    Raises:
        DirectoryError: If they differ.
    """
    file = path / CONFIG
    try:
        there = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise DirectoryError(f"{file} is damaged: {error}. --fresh moves it aside") from error
    found = list(differences(there, json.loads(json.dumps(config))))
    found = [line.removeprefix("meta.") for line in found]
    if found:
        more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
        raise DirectoryError(
            f"{path} holds a run of another configuration ({'; '.join(found[:4])}{more}). "
            "Choose another output (--output), or move it aside with fresh=True (--fresh)"
        )


def load(
    run: Path, damaged: list[str] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """The newest checkpoint of a run that is whole, or None where there is none.

    Args:
        run: The directory.
        damaged: Told what is wrong with a newer one.

    Raises:
        DirectoryError: If there are checkpoints and none can be read.
    """
    damaged = [] if damaged is None else damaged
    for name in (CHECKPOINT, PREVIOUS):
        path = run / name
        if not path.exists():
            continue
        try:
            arrays = read_arrays(path)
            status = json.loads(str(arrays.pop("status")))
            if arrays.pop("names").tolist() != sorted(arrays):  # a ZIP's list has no CRC
                raise ValueError("arrays are missing")
        except Exception as error:  # there are a dozen kinds, as bits may flip anywhere
            damaged.append(f"{name} ({' '.join(str(error).split())})")
            continue
        return arrays, status
    if damaged:
        raise DirectoryError(f"No checkpoint in {run} can be read: {', '.join(damaged)}")
    return None


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an uncompressed .npz file, which thus cannot be larger than the file.

    Raises:
        Exception: If it is damaged, or no such file; there are a dozen kinds.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as file:
        for member in file.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > size:
                raise ValueError(f"{member.filename} is not stored as it is")
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}  # reading checks the CRCs


def differences(there: Any, asked: Any, place: str = "") -> Iterator[str]:
    """Where two JSON values differ, one line a place."""
    if isinstance(there, dict) and isinstance(asked, dict):
        for key in sorted({*there, *asked}):
            inner = f"{place}.{key}" if place else key
            yield from differences(there.get(key), asked.get(key), inner)
    elif isinstance(there, list) and isinstance(asked, list) and len(there) == len(asked):
        for k, pair in enumerate(zip(there, asked, strict=True)):
            yield from differences(*pair, f"{place}[{k}]")
    elif there != asked:
        yield f"{place}: {_short(there)} there, {_short(asked)} asked for"


def _short(value: Any) -> str:
    """A value, or its beginning: a run's phases fill pages."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


class CSVLog:
    """A CSV file of a run that grows row by row and can be cut back to where a checkpoint was.

    Args:
        path: The file.
        columns: Its header.
        rows: How many of its rows count; later ones are of a time that will be lived again.

    Raises:
        DirectoryError: If the file has other columns, or a row that counts has.
    """

    def __init__(self, path: Path, columns: Sequence[str], rows: int):
        self._columns = tuple(columns)
        behind: list[list[str]] = []
        if rows and path.exists():
            lines = csv_lines(path.read_text(encoding="utf-8-sig", errors="replace"))
            head, *behind = [line for _, line in islice(lines, rows + 1)] or [[]]
            wrong = [head] * (head != [*columns])
            wrong += [line for line in behind if len(line) != len(columns)]
            if wrong:
                raise DirectoryError(
                    f"{path} needs the columns {', '.join(columns)}, and as many cells a row. "
                    "Without that file, the run goes on with a new one. "
                    f"Received: {', '.join(wrong[0])[:200]}"
                )
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self._columns, *behind])
        write_atomically(path, text.getvalue())
        self._path = path
        self._file = open(path, "a", newline="")  # noqa: SIM115 grows while the run lasts
        self._writer = csv.writer(self._file, lineterminator="\n")

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row and hands it to the operating system."""
        with writing(self._path):
            self._writer.writerow([row[name] for name in self._columns])
            self._file.flush()

    def sync(self) -> None:
        """Has the rows on disk before a checkpoint counts them."""
        with writing(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        with writing(self._path):
            self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()
