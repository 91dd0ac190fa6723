"""Results on disk: a table that grows, and what belongs to it."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from l2o.evaluation.fit import History
from l2o.evaluation.made import keep_made, read_made
from l2o.evaluation.results import (
    TABLE,
    Key,
    Result,
    data_in_words,
    read_results,
    write_results,
)
from l2o.evaluation.tables import TableError
from l2o.runs.files import write_atomically
from l2o.runs.lock import LockedDirectory

SAMPLES = 10  # images of a dataset that are kept


class ResultsDirectory(LockedDirectory):
    """A directory of results, for one process until it is closed.

    results.csv     one row an epoch
    steps/*.npz     an evaluation's arrays `loss` and `accuracy`: of every step's batch, before it
    cards/*.json    the card of each policy, by its origin
    samples/*.npy   the first test images of each dataset
    made.json       the release, and a digest of each dataset

    Args:
        path: The directory; made if it is not there.
        made: What results to come will be made with, as from `made_with`.

    Raises:
        DirectoryError: If it cannot be written, is in use, or holds other files.
        TableError: If its table cannot be read, or was made with something else.
    """

    def __init__(self, path: Path, made: Mapping[str, str] = {}):  # noqa: B006  (read only)
        super().__init__(path, TABLE)
        try:
            self._made = read_made(self.path, now=made)
            self.results = read_results(self.table) if self.table.exists() else []
            self.tidy()
        except BaseException:
            self.close()
            raise
        if not self.results:
            write_results(self.table, [])
        self._known = {result.key.fit for result in self.results}

    @property
    def table(self) -> Path:
        """The file with the table."""
        return self.path / TABLE

    def __contains__(self, key: Key) -> bool:
        return key.fit in self._known

    def add(self, key: Key, results: Sequence[Result], history: History) -> None:
        """Adds an evaluation: first its steps, then its rows, each in one piece."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, loss=history.losses, accuracy=history.accuracies)
        write_atomically(self.path / "steps" / steps_file(key), buffer.getvalue())
        write_results(self.table, [*self.results, *results])
        self.results += results
        self._known.add(key.fit)

    def keep_made(self) -> None:
        """Keeps what results are made with."""
        keep_made(self.path, self._made)

    def keep_card(self, origin: str, card: dict[str, Any]) -> None:
        """Keeps a policy's card."""
        text = json.dumps(card, indent=2) + "\n"
        write_atomically(self.path / "cards" / f"{origin}.json", text)

    def keep_samples(self, dataset: str, images: np.ndarray) -> None:
        """Keeps the first few of a dataset's images, uint8 [n, height, width, channels]."""
        buffer = io.BytesIO()
        np.save(buffer, images[:SAMPLES])
        name = re.sub(r"[^\w.-]+", "-", dataset)
        write_atomically(self.path / "samples" / f"{name}.npy", buffer.getvalue())


def is_image(inputs: np.ndarray) -> bool:
    """Whether inputs are images that can be kept as samples, and there are any."""
    fits = inputs.dtype == np.uint8 and inputs.ndim == 4 and inputs.shape[-1] in (1, 3, 4)
    return fits and len(inputs) > 0


def steps_file(key: Key) -> str:
    """The name of the file with an evaluation's steps."""
    words = re.sub(r"[^\w.-]+", "-", f"{key.problem} {key.optimizer} {key.replicate} {key.repeat}")
    words = words.encode()[:150].decode(errors="ignore")  # a file's name has 255 bytes at most
    # As a key was when data were "digits for mnist", so that files of that time keep their names.
    whole = tuple(key._replace(data=data_in_words(key.data, key.in_place_of)))[:-1]
    return f"{words}-{hashlib.sha256(repr(whole).encode()).hexdigest()[:8]}.npz"


def read_cards(directories: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """The policies' cards kept in directories of results, by origin.

    A perturbation is where `train.py` has it, whatever made the card.

    Raises:
        TableError: If one cannot be read.
    """
    return _read(directories, "cards/*.json", _card)


def read_samples(directories: Iterable[Path]) -> dict[str, np.ndarray]:
    """The images kept in directories of results, by dataset.

    Raises:
        TableError: If one cannot be read.
    """
    return _read(directories, "samples/*.npy", _images)


def _card(path: Path) -> dict[str, Any]:
    card = json.loads(path.read_text())
    if not isinstance(card, dict):
        raise ValueError(f"a card is an object. Received: {type(card).__name__}")
    # Cards of most shipped policies have magnitudes by kind.
    magnitudes = {kind: card[kind] for kind in ("gaussian", "adversarial") if card.get(kind)}
    if len(magnitudes) == 1:
        ((kind, magnitude),) = magnitudes.items()
        card["perturbation"] = {"kind": kind, "magnitude": magnitude}
    noise = card.get("perturbation")
    numbers = {name: card.get(name, 0) for name in ("updates", "seconds")}
    if isinstance(noise, dict):
        numbers["magnitude"] = noise.get("magnitude")
        if not isinstance(noise.get("kind"), str):
            raise ValueError("a perturbation has a kind")
    for name, value in numbers.items():
        if type(value) not in (int, float) or not abs(value) < 2**53:
            raise ValueError(f"{name} must be a number. Received: {str(value)[:30]}")
    return card


def _images(path: Path) -> np.ndarray:
    # Mapped first: that compares the size that is declared with the file's.
    images = np.load(path, mmap_mode="r", allow_pickle=False)
    if not is_image(images) or len(images) > SAMPLES:
        raise ValueError(f"no images. Received: {images.dtype} of shape {images.shape}")
    return np.array(images)


def _read(directories: Iterable[Path], pattern: str, read) -> dict:
    found = {}
    for path in (path for folder in directories for path in sorted(folder.glob(pattern))):
        try:
            found[path.stem] = read(path)
        except (OSError, ValueError, TypeError, EOFError, RecursionError) as error:
            raise TableError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    return found
