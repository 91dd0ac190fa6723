"""Tidy tables: a CSV file of typed rows, one dataclass instance a line."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from l2o.files import write_atomically

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Row = TypeVar("Row", bound="DataclassInstance")
_KINDS = {"str": str, "int": int, "float": float}


class TableError(ValueError):
    """A table that cannot be read; the message names file and fault in one line."""


def read_table(path: Path | str, kind: type[Row]) -> list[Row]:
    """Reads a table written by `write_table`.

    Args:
        path: The file.
        kind: The dataclass of its rows; its fields are annotated str, int or float.

    Raises:
        TableError: If the file cannot be read, has other columns, or a line that is no such row.
    """
    names = [f.name for f in fields(kind)]
    try:
        text = Path(path).read_text(encoding="utf-8")
        lines = list(csv.reader(io.StringIO(text)))
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise TableError(f"{path} cannot be read: {error}") from error
    if not lines or lines[0] != names:
        received = ", ".join(lines[0])[:200] if lines else "an empty file"
        raise TableError(f"{path} needs the columns {', '.join(names)}. Received: {received}")
    if not text.endswith("\n"):
        raise TableError(f"{path} is cut off: its last line, number {len(lines)}, has no end")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            values = [_KINDS[str(f.type)](cell) for f, cell in zip(fields(kind), line, strict=True)]
            rows.append(kind(*values))
        except ValueError as error:
            raise TableError(f"{path}, line {number} is no row of this table: {error}") from error
    return rows


def write_table(path: Path | str, rows: Sequence, kind: type) -> None:
    """Writes rows in one piece: a reader sees the old table or the new one."""
    text = io.StringIO()
    table = csv.DictWriter(text, [f.name for f in fields(kind)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(row) for row in rows)
    write_atomically(path, text.getvalue())
