"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import csv
import io
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TEMPORARY = re.compile(r"\.(.+)\.(\d+|next)\.tmp")


def temporary(path: Path, mark: str = "") -> Path:
    """Where a file is written before it is renamed into place; the mark is the process's number."""
    return path.with_name(f".{path.name}.{mark or os.getpid()}.tmp")


def half_written(name: str) -> str:
    """The name that a file with a temporary name was to have; "" where the name is none."""
    match = _TEMPORARY.fullmatch(name)
    return match[1] if match else ""


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """An `OSError` within names `path`: that of a full disk names no file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_atomically(path: Path | str, text: str | bytes) -> None:
    """Writes a file under a temporary name, syncs it, renames it into place, syncs that too."""
    path = Path(path)
    draft = temporary(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(draft, "wb") as file:
                file.write(text.encode() if isinstance(text, str) else text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    sync_directory(path.parent)


def csv_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """The lines of a CSV file that hold anything, with their numbers.

    Spreadsheets, according to their language, separate cells by semicolons or tabs too.
    """
    separator = next((s for s in ";\t" if s in text.partition("\n")[0]), ",")
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    return ((reader.line_num, line) for line in reader if any(line))


def sync_directory(path: Path) -> None:
    """Makes renames in a directory outlast a power cut, where the system can do that."""
    with suppress(OSError):  # Windows opens no directory, some file systems sync none
        directory = os.open(path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


@contextmanager
def directory_or_temporary(path: Path | str | None) -> Iterator[Path]:
    """A directory that is named, or else one that is gone afterwards."""
    if path is not None:
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="l2o-") as directory:
        yield Path(directory)
