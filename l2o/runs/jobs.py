"""Calls spread over processes of one thread each: `--jobs` here, `--scheduler` on a cluster."""

from __future__ import annotations

import asyncio
import inspect
import logging
import multiprocessing
import os
import pickle
import random
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, chdir, suppress
from functools import cache, lru_cache, partial
from importlib.util import find_spec, module_from_spec
from multiprocessing import resource_tracker
from typing import Any

from l2o.errors import UserError
from l2o.problems.dataset import ProblemError
from l2o.runs.quiet import quiet
from l2o.runs.signals import handling, interrupt, interruptible

_KEPT = "What was over is kept, and the same command goes on"
_NO_START = (
    "A process of several jobs did not start: memory may be short, or the script that asks for "
    "them has no `if __name__ == '__main__':`"
)
# Of a cluster on this machine; see distributed.yaml in the package `distributed`.
_LOCAL = {
    "distributed.deploy.lost-worker-timeout": "1 day",  # TensorFlow takes its time to come back
    "distributed.scheduler.http.routes": [],
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.worker.profile.enabled": False,
}
_LOGGERS = ("distributed", "distributed.client", "distributed.gc", "tornado.application", "asyncio")
_DASK = ("dask", "distributed", "tornado")
_CONNECT_SECONDS = 10


class Workers:
    """The processes that calls are spread over: workers of dask.distributed.

    Within its `with`, SIGINT and SIGTERM are a KeyboardInterrupt. When that is left, calls still
    running end where they can save what they have, and local processes are gone.

    Args:
        jobs: Processes of this machine at most, started when there is a first call.
        scheduler: The address of a scheduler, whose workers are used instead.

    Raises:
        UserError: If the scheduler cannot be reached.
    """

    def __init__(self, jobs: int = 1, scheduler: str | None = None):
        self._jobs, self._scheduler = jobs, scheduler
        self._mark = uuid.uuid4().hex  # what another command left on a worker is not ours
        self._pending: set = set()
        self._client: Any = None
        self._cluster: Any = None
        self._open = ExitStack()

    def __enter__(self) -> Workers:
        if self._scheduler is not None:
            with ThreadPoolExecutor(1) as thread:  # this one may have a loop, as notebooks' has
                thread.submit(asyncio.run, _check(self._scheduler)).result()
            self._hush()
            self._connect(self._scheduler)
            there = len(self._client.nthreads())
            print(f"Workers of {self._scheduler}: {there}; more may join", flush=True)
        self._open.enter_context(handling(_stop))
        return self

    def spread(
        self,
        call: Callable,
        arguments: Sequence[tuple],
        start: Callable,
        settings: tuple,
        name: Callable[..., str],
    ) -> Iterator[Any]:
        """Calls a function once for each of several arguments.

        Where a worker dies, others do what it had been given.

        Args:
            call: A function of a module: of what `start` returned in its process, and of these.
            arguments: Of each call.
            start: Called with `settings` before a process' first call; what it returns is held.
            settings: Anything that can be pickled.
            name: What a call with these arguments is called, in messages.

        Yields:
            The results, as they come.

        Raises:
            UserError: If a call killed its process again and again, or the scheduler is gone.
            Exception: What `start` or `call` raised.
        """
        if not arguments:
            return
        self._begin(len(arguments))
        from distributed import KilledWorker, as_completed

        held = pickle.dumps((self._mark, start, settings))
        one = partial(_run, self._cluster is None, os.getcwd(), held, call)
        # A function that has no name travels by value, so that the scheduler does not load ours.
        futures = self._client.map(
            lambda pickled: pickle.loads(pickled)(),
            [pickle.dumps(partial(one, *each)) for each in arguments],
            key="l2o", pure=False,
        )  # fmt: skip
        named = {future.key: name(*each) for future, each in zip(futures, arguments, strict=True)}
        self._pending |= {*futures}
        for future in as_completed(futures):
            try:
                result = future.result()
            except KilledWorker as error:
                raise UserError(
                    f"{named[future.key]} killed its process {error.allowed_failures + 1} times, "
                    f"perhaps for memory, of which fewer jobs need less. {_KEPT}"
                ) from error
            except CancelledError as error:
                raise UserError(f"The scheduler at {self._scheduler} is gone. {_KEPT}") from error
            self._pending.discard(future)
            future.release()  # else a worker that dies later has it done again
            yield result

    def _hush(self) -> None:
        _draw_apart()
        for logger in map(logging.getLogger, _LOGGERS):
            self._open.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)

    def _connect(self, address: Any) -> None:
        from distributed import Client

        self._client = Client(address)
        self._open.callback(self._client.close)

    def _begin(self, calls: int) -> None:
        if self._scheduler is not None:
            return
        import dask
        from distributed import LocalCluster

        if self._client is None:
            self._hush()
            self._open.enter_context(dask.config.set(_LOCAL))
            resource_tracker.ensure_running()  # which lets through what is blocked where it starts
            blocked = {signal.SIGINT, signal.SIGTERM}  # by the cluster's thread, and all its heirs
            before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
            try:
                self._cluster = LocalCluster(
                    n_workers=0, threads_per_worker=1, processes=True, host="127.0.0.1",
                    memory_limit=None, silence_logs=logging.CRITICAL,
                    dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False},
                    worker_dashboard_address=None, preload=[_SILENT],
                )  # fmt: skip
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._open.callback(self._cluster.close)
            self._connect(self._cluster)
        self._cluster.scale(max(len(self._cluster.worker_spec), min(self._jobs, calls)))
        try:
            self._cluster.sync(_until_there, self._cluster)
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                if process.name.startswith("Dask Worker"):
                    process.kill()  # closing would wait for it to start
            raise

    def __exit__(self, *_) -> None:
        with handling(signal.SIG_IGN), suppress(Exception):
            if self._pending:
                self._client.cancel(list(self._pending))
                if self._cluster:
                    self._client.run(_until_saved, on_error="ignore")
        with suppress(Exception):  # of workers that were killed while they started
            self._open.close()


_SILENT = "import os; os.dup2(os.open(os.devnull, os.O_WRONLY), 2)"  # a worker's own words


def _draw_apart() -> None:
    """Gives dask another copy of `random`.

    It draws with every message, in a thread of its own, and may do so between the seeding of a
    network's initial values and their drawing, which is from the same generator.
    """
    import distributed  # noqa: F401

    draw: Any = random.random
    generator = draw.__self__  # that of all the functions in `random`
    for module in [m for name, m in sys.modules.items() if name.startswith(_DASK)]:
        for name, value in list(vars(module).items()):
            if value is random:
                setattr(module, name, _another_random())
            elif inspect.isroutine(value) and getattr(value, "__self__", None) is generator:
                setattr(module, name, getattr(_another_random(), value.__name__))


@cache
def _another_random() -> Any:
    spec = find_spec("random")
    assert spec and spec.loader
    spec.loader.exec_module(module := module_from_spec(spec))
    return module


async def _check(address: str) -> None:
    from distributed import Security
    from distributed.comm import connect

    secrets = Security().get_connection_args("client")
    try:  # a client would wait for ever for a greeting
        comm = await asyncio.wait_for(connect(address, **secrets), _CONNECT_SECONDS)
        comm.abort()
    except Exception as error:
        why = str(error) or f"no answer within {_CONNECT_SECONDS} s"
        raise UserError(f"--scheduler: {address!r} cannot be reached: {why}") from error


def _stop(*_) -> None:
    raise KeyboardInterrupt


async def _until_there(cluster) -> None:
    async def there() -> None:
        await cluster
        if not any(nanny.status.name == "running" for nanny in cluster.workers.values()):
            raise UserError(_NO_START)

    await asyncio.shield(there())  # Ctrl-C would cancel the cluster's own task


# --- in a worker --------------------------------------------------------------------------------


class Unwanted(Exception):
    """Nobody waits any more for what a worker is at."""


_unwanted = False


def unless_unwanted(*_) -> None:
    """Ends a call of `spread` that nobody waits for any more; to be called now and then.

    Raises:
        Unwanted: If so.
    """
    if _unwanted:
        raise Unwanted


class _Cancelling:
    """A plugin of a worker, which learns here that a call it is at was cancelled."""

    def transition(self, key: Any, start: str, finish: str, **_) -> None:
        if (start, finish) == ("executing", "released"):
            global _unwanted
            _unwanted = True
            interrupt()


def _run(away: bool, folder: str, held: bytes, call: Callable, *arguments) -> Any:
    from distributed import get_worker

    global _unwanted
    _unwanted = False
    worker: Any = get_worker()
    worker.plugins.setdefault("l2o", _Cancelling())
    try:
        if (threads := worker.state.nthreads) > 1:
            raise UserError(f"A worker must have one thread (--nthreads 1). Received: {threads}")
        _draw_apart()
        _one_thread()
        with chdir(folder if os.path.isdir(folder) else "."):
            return call(_held(held), *arguments)
    except (ProblemError, UserError) as error:
        if away:
            error.args = (f"{error} (at the worker {worker.address})",)
        raise


@cache
def _one_thread() -> None:
    import tensorflow as tf

    try:
        for kind in ("intra", "inter"):
            getattr(tf.config.threading, f"set_{kind}_op_parallelism_threads")(1)
            os.environ[f"TF_NUM_{kind.upper()}OP_THREADS"] = "1"  # `take_cores` heeds it
    except RuntimeError as error:
        raise UserError("TensorFlow is in use already: start the worker anew") from error
    tf.config.experimental.enable_op_determinism()
    tf.get_logger().setLevel("ERROR")


@lru_cache(maxsize=1)
def _held(pickled: bytes) -> Any:
    _, start, settings = pickle.loads(pickled)
    return start(*settings)


async def _until_saved() -> None:
    while interruptible():
        await asyncio.sleep(0.05)


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
