"""Which examples an unroll sees, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from l2o.amalgamation.draws import batch_indices
from l2o.amalgamation.optimizee import Batch


def batches(
    data: Batch,
    key: Sequence[int],
    batch_size: int,
    start: int,
    steps: int,
    among: np.ndarray | None = None,
    stream: int = 1,
) -> Batch:
    """A trajectory's batches from step `start` on.

    Args:
        data: The training examples, as NumPy arrays.
        key: As in `begin`.
        batch_size: B.
        start: The first step, counted from the start of the trajectory, warm-up included.
        steps: S.
        among: Indices of the examples to draw from; all by default.
        stream: Sequences with another number are drawn independently.

    Returns:
        Inputs [S, B, ...] and labels [S, B].
    """
    examples = len(data.labels) if among is None else len(among)
    indices = batch_indices([*key, stream], examples, batch_size, start, steps)
    indices = indices if among is None else among[indices]
    return Batch(data.inputs[indices], data.labels[indices])


def entry(structure, i):
    """Entry `i` of every tensor, or several: batch number i, the examples at indices [B]."""
    return tf.nest.map_structure(lambda x: tf.gather(x, i), structure)
