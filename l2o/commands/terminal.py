"""What the commands print: progress, time left, one-line errors."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

_MOST = 10**12  # of anything that is counted
_PLAIN_SECONDS = 10  # without a terminal, a line of progress at most this often


class UserError(Exception):
    """Something the user can mend: printed as one line, exit status 2, no traceback."""


def run_command(command: Callable[[], int]) -> None:
    """Runs a command and exits with its status; what the user can mend is one line and status 2."""
    try:
        status = command()
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except OSError as error:  # a full disk, most of all
        print(f"error: {one_line(str(error))}. What had been saved is kept", file=sys.stderr)
        status = 2
    sys.exit(status)


class Parser(argparse.ArgumentParser):
    """Argparse with errors of one line, and examples kept as they are written."""

    def __init__(self, **settings):
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings
        )

    def error(self, message: str):
        self.exit(2, f"error: {one_line(message)} (see --help)\n")


def one_line(text: str) -> str:
    """A message whose line breaks, of a file's name perhaps, are spaces."""
    return " ".join(text.split())


def known(names: Sequence[str]) -> Callable[[str], str]:
    """An argument that must be one of `names`."""

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"unknown name '{text}'; allowed: {', '.join(names)}")
        return text

    return parse


def count(text: str) -> int:
    """An argument that must be a whole number of at least 1."""
    return _whole(text, 1)


def whole(text: str) -> int:
    """An argument that must be a whole number of at least 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(
            f"must be a whole number of at least {least}, not '{text}'"
        )
    if value > _MOST:
        raise argparse.ArgumentTypeError(f"must be at most {_MOST:,}, not '{text}'")
    return value


def positive(text: str) -> float:
    """An argument that must be a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not '{text}'")
    return value


def weight(text: str) -> float:
    """An argument that must be a finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, not '{text}'")
    return value


@contextmanager
def quiet_start() -> Iterator[None]:
    """Silences what TensorFlow's libraries write to stderr while they look about them."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 1 h 05 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """One line that is redrawn on a terminal; elsewhere a plain line now and then.

    Args:
        label: What is going on.
    """

    def __init__(self, label: str):
        self._label = label
        self._live = sys.stdout.isatty()
        self._last, self._width = -float("inf"), 0

    def show(self, done: float, total: float, text: str) -> None:
        """Shows that `done` of `total` is behind us, and `text`."""
        now = time.monotonic()
        if now - self._last < (0.1 if self._live else _PLAIN_SECONDS) and done < total:
            return
        self._last = now
        fraction = done / total if total else 1.0
        if not self._live:
            print(f"{self._label} {fraction:4.0%}  {text}", flush=True)
            return
        filled = round(20 * fraction)
        line = f"{self._label} [{'#' * filled}{'.' * (20 - filled)}] {fraction:4.0%}  {text}"
        columns = os.get_terminal_size(sys.stdout.fileno()).columns
        line = line[: columns - 1]
        print("\r" + line.ljust(self._width), end="", flush=True)
        self._width = len(line)

    def close(self) -> None:
        """Ends the line, so that the next print starts on its own."""
        if self._live and self._width:
            print(flush=True)
            self._width = 0

    def say(self, text: str) -> None:
        """Prints a line of its own between two states of the bar."""
        if self._live and self._width:
            print("\r" + " " * self._width + "\r", end="")
        self._width = 0
        print(text, flush=True)
