"""Tidy tables: a CSV file of typed rows, one dataclass instance a line."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import Field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from l2o.errors import UserError
from l2o.runs.files import csv_lines, write_atomically

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Row = TypeVar("Row", bound="DataclassInstance")
Cells = dict[str, str]  # of a line, by their columns
_KINDS = {"str": str, "int": int, "float": float}


class TableError(UserError):
    """A table that cannot be read; the message names file and fault in one line."""


def read_table(
    path: Path | str,
    kind: type[Row],
    version: int | None = None,
    earlier: Mapping[int, Sequence[str]] = MappingProxyType({}),
    upgraded: Callable[[Cells], Cells] = dict,
) -> list[Row]:
    """Reads a table written by `write_table`, or saved again by a program that kept all cells.

    A spreadsheet may have put a mark before it, other separators and line ends into it and empty
    lines after it. Numbers must be as they were: where it wrote them anew, it dropped digits.

    Args:
        path: The file.
        kind: The dataclass of its rows; its fields are annotated str, int or float.
        version: What the table's column `version` must say, if it has one.
        earlier: Versions that are read too, and which of today's columns each had not.
        upgraded: Makes the cells of such a version's line those of today's.

    Raises:
        TableError: If the file cannot be read, has another version or other columns, or a line
            that is no such row.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        lines = list(csv_lines(text))
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeError as error:
        raise TableError(
            f"{path} is no text in UTF-8, which spreadsheets call CSV UTF-8: {error}"
        ) from error
    except csv.Error as error:
        raise TableError(f"{path} cannot be read: {error}") from error
    (_, columns), *rows = lines or [(0, [])]
    names = [f.name for f in fields(kind)]
    forms = {v: [x for x in names if x not in lacking] for v, lacking in earlier.items()}
    before = next((v for v, form in forms.items() if form == columns), None)
    version = before or version
    if version is not None and "version" in columns:
        at = columns.index("version")
        for found in (line[at] for _, line in rows if len(line) > at):
            if found.lstrip("-").isdecimal() and found != str(version):
                raise TableError(
                    f"{path} is a table of another release of l2o, in version {found[:30]} of its "
                    f"form. This release reads version {version}"
                )
    if columns != names and not before:
        found = " ".join(_other(columns, names).split())  # a column's name may have line breaks
        raise TableError(f"{path} needs the columns {', '.join(names)}. {found}")
    if not text.endswith("\n"):
        raise TableError(f"{path} is cut off: its last line, number {lines[-1][0]}, has no end")
    if before:
        rows = [(number, _as_now(line, columns, names, upgraded)) for number, line in rows]
    return [_row(f"{path}, line {number}", line, kind) for number, line in rows]


def _as_now(
    line: list[str], columns: list[str], names: list[str], upgraded: Callable[[Cells], Cells]
) -> list[str]:
    """A line of an earlier version, as this one has it; one of another length as it is."""
    if len(line) != len(columns):
        return line
    cells = upgraded(dict(zip(columns, line, strict=True)))
    return [cells[name] for name in names]


def write_table(path: Path | str, rows: Sequence, kind: type) -> None:
    """Writes rows in one piece: a reader sees the old table or the new one."""
    text, names = io.StringIO(), {f.name: _KINDS[str(f.type)] for f in fields(kind)}
    table = csv.writer(text, lineterminator="\n")
    table.writerow(names)
    table.writerows(
        [as_kind(getattr(row, name)) for name, as_kind in names.items()] for row in rows
    )
    write_atomically(path, text.getvalue())


def _other(columns: list[str], names: list[str]) -> str:
    """How a table's columns are not these."""
    if not {*columns} & {*names}:
        return f"Received: {', '.join(columns)[:200] or 'an empty file'}"
    lacking = ", ".join(name for name in names if name not in columns)
    more = ", ".join(repr(name) for name in columns if name not in names)[:200]
    said = [f"Not there: {lacking}"] * bool(lacking) + [f"There besides: {more}"] * bool(more)
    return ". ".join(said) or "Received: these in another order"


def _row(place: str, line: list[str], kind: type[Row]) -> Row:
    try:
        if len(line) != len(fields(kind)):
            raise ValueError(f"it has {len(line)} cells, not {len(fields(kind))}")
        return kind(*map(_value, fields(kind), line))
    except ValueError as error:
        raise TableError(f"{place} is no row of this table: {error}") from error


def _value(field: Field, cell: str) -> str | int | float:
    with suppress(ValueError):
        if str(value := _KINDS[str(field.type)](cell)) == cell:
            return value
    raise ValueError(
        f"{field.name} is {cell[:30]!r}, no {field.type} as l2o writes it: a spreadsheet "
        "writes numbers anew, with fewer digits"
    )
