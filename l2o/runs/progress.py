"""What is shown of work that takes long: a bar, the time left."""

from __future__ import annotations

import shutil
import sys
import time

_PLAIN_SECONDS = 10  # without a terminal, a line of progress at most this often
_BAR_COLUMNS = 120  # on a narrower terminal the text has the bar's place


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 2 h 05 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class ProgressBar:
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
        columns = shutil.get_terminal_size().columns
        filled = round(20 * fraction)
        bar = f"[{'#' * filled}{'.' * (20 - filled)}] " * (columns >= _BAR_COLUMNS)
        line = f"{self._label} {bar}{fraction:4.0%}  {text}"[: columns - 1]
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
