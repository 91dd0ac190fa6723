"""What results were made with: the data, and the release of l2o."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import l2o
from l2o.errors import UserError
from l2o.evaluation.tables import TableError
from l2o.runs.files import write_atomically
from l2o.tasks.examples import digest

MADE = "made.json"  # its name in a directory of results


def made_with(datasets: Iterable[Any]) -> dict[str, str]:
    """A digest of each dataset, by its name, and l2o's minor version.

    A name alone does not say which examples: TFDS has had several versions of most datasets.
    """
    by_name = {dataset.name: dataset for dataset in datasets}
    digests = {name: digest(d.train, d.validation, d.test) for name, d in by_name.items()}
    return {"l2o": ".".join(l2o.__version__.split(".")[:2]), **digests}


def check_made(here: Mapping[str, str], there: Mapping[str, str]) -> None:
    """Sees whether a worker has what the process that asks it for fits has.

    Args:
        here, there: What they would be made with, as from `made_with`.

    Raises:
        UserError: If not.
    """
    if here != there:
        raise UserError(f"It has other data or another release of l2o: {there}, not {here}")


def read_made(*directories: Path, now: Mapping[str, str] = {}) -> dict[str, str]:  # noqa: B006
    """What the results in directories, and those of `now`, were made with, as `made_with` has it.

    Raises:
        TableError: If two were made with different things, or one cannot be read. Nothing is known
            of a directory that says nothing.
    """
    made = dict(now)
    for path in (folder / MADE for folder in directories if (folder / MADE).exists()):
        try:
            found = json.loads(path.read_text())
            if not isinstance(found, dict):
                raise ValueError(f"it holds no object. Received: {type(found).__name__}")
        except (OSError, ValueError, RecursionError) as error:
            raise TableError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
        for name, mark in found.items():
            if made.setdefault(name, mark) != mark:
                data = " (digests of the examples: the data have changed)" * (name != "l2o")
                raise TableError(
                    f"{path.parent} was made with {name} {mark}, not {made[name]}{data}; such "
                    "results do not stand together. "
                    + ("Choose another --output" if now else "Report them apart")
                )
    return made


def keep_made(directory: Path, made: Mapping[str, str]) -> None:
    """Keeps what the results in a directory are made with."""
    write_atomically(directory / MADE, json.dumps(made, indent=2) + "\n")
