"""Signals that ask a process to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def handling(handler: Callable) -> Iterator[None]:
    """SIGINT and SIGTERM go to `handler` within, and to whom they went before afterwards."""
    main = threading.current_thread() is threading.main_thread()  # Python allows no other
    before, numbers = {}, (signal.SIGINT, signal.SIGTERM) if main else ()
    try:
        for number in numbers:
            before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
