"""Signals that ask a process to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_elsewhere: list[Callable] = []  # handlers of threads that no signal comes to


@contextmanager
def handling(handler: Any) -> Iterator[None]:
    """SIGINT and SIGTERM go to `handler` within, and to whom they went before afterwards.

    Python allows that to the main thread alone; in others, `interrupt` calls it.
    """
    if threading.current_thread() is not threading.main_thread():
        _elsewhere.append(handler)
        try:
            yield
        finally:
            _elsewhere.remove(handler)
        return
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def interrupt() -> None:
    """Tells the other threads' handlers to stop."""
    for handler in list(_elsewhere):
        handler(signal.SIGTERM, None)


def interruptible() -> bool:
    """Whether another thread's handler is there, which would be told."""
    return bool(_elsewhere)
