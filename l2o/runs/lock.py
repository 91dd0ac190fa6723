"""Directories that one process alone writes to."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from l2o.errors import UserError
from l2o.runs.files import half_written


class DirectoryError(UserError):
    """A directory that cannot be used; the message says why in one line."""


class LockedDirectory:
    """A directory that this process alone writes to, until it is closed.

    Whoever has seen that what it holds is whole should `tidy` it.

    Args:
        path: The directory; made if it is not there.
        mark: Name of the file that tells a directory of ours from anybody's.

    Raises:
        DirectoryError: If the directory cannot be written, is in use, or holds files not ours.
    """

    def __init__(self, path: Path, mark: str):
        self.path = Path(path)
        check_free(self.path, mark)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path / ".lock", "w")  # noqa: SIM115 held until `close`
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise DirectoryError(f"{self.path} is in use by another process") from error
        except OSError as error:
            raise DirectoryError(f"Cannot write {self.path}: {error.strerror}") from error

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
    """Looks, and only looks, whether a directory may be locked.

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


def move_aside(path: Path, mark: str) -> None:
    """Moves a directory of ours, if there is one, with what is in it, and says where to.

    Args:
        path: The directory.
        mark: Name of the file that tells a directory of ours from anybody's.

    Raises:
        DirectoryError: If it cannot be moved, is in use, or holds files not ours.
    """
    check_free(path, mark, fresh=True)
    if not (path / mark).exists():
        return
    with LockedDirectory(path, mark):  # nobody's run is moved from under their feet
        place, number = path.parent.resolve() / path.name, 1
        while (aside := place.with_name(f"{place.name}.old{number}")).exists():
            number += 1
        try:
            os.replace(place, aside)
        except OSError as error:
            raise DirectoryError(f"Cannot move {path}: {error.strerror}") from error
    print(f"What was in {path} is now in {path.parent / aside.name}")
