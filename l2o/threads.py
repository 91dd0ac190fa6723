"""The cores that this process may use, and as many threads."""

from __future__ import annotations

import os
from contextlib import suppress


def cores() -> int:
    """How many cores this process may use: by its affinity, and by its container's quota."""
    import joblib  # here: `import l2o` is light

    return joblib.cpu_count()


def take_cores() -> None:
    """Has TensorFlow compute with a thread for each of these cores, unless it was told otherwise.

    It heeds affinity by itself, but no quota: threads beyond that wait for one another
    (docs/performance.md). Where TensorFlow is in use already, its threads stay as they are.
    """
    import tensorflow as tf

    for kind in ("intra", "inter"):
        if f"TF_NUM_{kind.upper()}OP_THREADS" not in os.environ:
            with suppress(RuntimeError):
                getattr(tf.config.threading, f"set_{kind}_op_parallelism_threads")(cores())
