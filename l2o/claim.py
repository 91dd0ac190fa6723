"""Directories that one process alone writes to."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from l2o.files import half_written


class DirectoryError(ValueError):
    """A directory that cannot be used; the message says why in one line."""


class Claim:
    """A directory that this process alone writes to, until it is closed.

    Whoever has seen that what it holds is whole should `tidy` it.

    Args:
        path: The directory; made if it is not there.
        mark: Name of the file that tells a directory of ours from anybody's.
        fresh: Whether ours, with what is in it, is moved aside first.

    Attributes:
        moved_to: Where `fresh` put what was there, or None.

    Raises:
        DirectoryError: If the directory cannot be written, is in use, or holds files not ours.
    """

    def __init__(self, path: Path, mark: str, fresh: bool = False):
        self.path = Path(path)
        self.moved_to: Path | None = None
        check_free(self.path, mark, fresh)
        try:
            if fresh and (self.path / mark).exists():
                self._lock()  # nobody's run is moved from under their feet
                self._move_aside()
                self.close()
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
        except OSError as error:
            raise DirectoryError(f"Cannot write {self.path}: {error.strerror}") from error

    def _lock(self) -> None:
        self._file = open(self.path / ".lock", "w")  # noqa: SIM115 held until `close`
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise DirectoryError(f"{self.path} is in use by another process") from error

    def _move_aside(self) -> None:
        path, number = self.path.parent.resolve() / self.path.name, 1
        while (aside := path.with_name(f"{path.name}.old{number}")).exists():
            number += 1
        os.replace(path, aside)
        self.moved_to = aside

    def tidy(self) -> None:
        """Removes what a process that was killed left half written."""
        for file in self.path.rglob(".*.tmp"):
            if half_written(file.name):
                file.unlink(missing_ok=True)

    def close(self) -> None:
        """Gives the directory free."""
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()


def check_free(path: Path, mark: str, fresh: bool = False) -> None:
    """Looks, and only looks, whether a directory may be claimed.

    Args:
        path: The directory, which need not exist.
        mark: Name of the file that tells a directory of ours from anybody's.
        fresh: Whether ours is to be moved aside.

    Raises:
        DirectoryError: If it may not.
    """
    if fresh and path.name in ("", ".."):  # it would be called so afterwards too
        raise DirectoryError(f"{path} cannot be moved aside from within; name it, or leave")
    try:
        if path.is_dir() and not (path / mark).exists():
            foreign = sorted(p.name for p in path.iterdir() if not p.name.startswith("."))
            if foreign:
                names = ", ".join(foreign[:3]) + (" ..." if len(foreign) > 3 else "")
                raise DirectoryError(
                    f"{path} is not empty and holds no {mark}, so it is left alone: {names}"
                )
        there = next(p for p in (path, *path.absolute().parents) if p.exists())
    except OSError as error:
        raise DirectoryError(f"Cannot write {path}: {error.strerror}") from error
    if not there.is_dir():
        raise DirectoryError(f"Cannot write {path}: {there} is not a directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise DirectoryError(f"Cannot write {path}: no permission to write in {there}")
