"""How the commands start: quietly, and not slower than they must."""

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

# A third of all imports: Keras has them, where they are there, for parts that no command uses.
UNUSED = ("matplotlib", "pandas", "sklearn")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What is imported within cannot greet on stderr, as TensorFlow does whatever it is told.

    Python's own errors come as ever: they are raised when stderr is back.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


def run(module: str) -> None:
    """Imports a command's module and runs its `main`."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed; this opens its number anew
            setattr(sys, name, open(os.devnull, "w"))
    gc.disable()  # modules stay: looking for garbage is a fifth of the time that importing takes
    try:
        with quiet():
            _import_keras()
            command = importlib.import_module(module)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        gc.freeze()
        gc.enable()
    command.main()


def _import_keras() -> None:
    """Keras as on a machine without `UNUSED`, which can be imported afterwards all the same."""
    missing = [name for name in UNUSED if name not in sys.modules]
    absent: dict[str, Any] = dict.fromkeys(missing)
    sys.modules.update(absent)  # None makes importing it an ImportError
    try:
        importlib.import_module("keras")
    finally:
        for name in missing:
            del sys.modules[name]
