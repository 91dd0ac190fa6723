"""Work spread over processes of one thread each: `--jobs`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

from l2o.errors import UserError
from l2o.runs.quiet import quiet

_KILLED = (
    "A process of several jobs was killed, perhaps for memory, or the script that asks for them "
    "has no `if __name__ == '__main__':`. What was over is kept; the same with fewer jobs goes on"
)


def spread(
    call: Callable, arguments: Sequence[tuple], jobs: int, start: Callable, settings: tuple
) -> Iterator[Any]:
    """Calls a function in several processes.

    They know no Ctrl-C, which is this process's to handle: where it leaves, for whatever reason,
    or is killed, they are sent SIGTERM.

    Args:
        call: A function of a module: of what `start` returned in its process, and its arguments.
        arguments: The others, of each call.
        jobs: Processes at most.
        start: Called with `settings` before a process' first call; what it returns is held there.
        settings: Anything that can be pickled.

    Yields:
        The results, as they come.

    Raises:
        UserError: If a process died.
        Exception: What `start` or `call` raised.
    """
    if not arguments:
        return
    context = multiprocessing.get_context("spawn")
    jobs = min(jobs, len(arguments))
    with ProcessPoolExecutor(jobs, context, _start, (start, settings)) as pool:
        with _unheard(), quiet():
            futures = [pool.submit(_call, call, *each) for each in arguments]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            with _unheard():  # until they have saved what they had
                processes = multiprocessing.active_children()
                for process in processes:
                    process.terminate()
                for process in processes:
                    process.join()
            if isinstance(error, BrokenProcessPool):
                raise UserError(_KILLED) from error
            raise


def gpus_for(jobs: int) -> list:
    """The GPUs that there are, which several jobs do not share.

    Raises:
        UserError: If they would have to.
    """
    import tensorflow as tf

    with quiet():
        gpus = tf.config.list_physical_devices("GPU")
    if gpus and jobs > 1:
        raise UserError("--jobs spreads work over the cores of a machine without a GPU")
    return gpus


_held: list = []  # in a process of the pool: a function that gives what its start returned


def _call(call: Callable, *arguments):
    return call(_held[0](), *arguments)


@contextmanager
def _unheard() -> Iterator[None]:
    """Ctrl-C is ignored within, and by processes started within."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _start(start: Callable, settings: tuple) -> None:
    os.setsid()  # else a terminal's Ctrl-C reaches it as well
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    tf.get_logger().setLevel("ERROR")
    _held.append(cache(partial(start, *settings)))  # an error here would pass for a kill


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    while True:  # what heeds the first one waits for more work afterwards, in vain
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
