"""Which examples an unroll sees, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from functools import lru_cache

import numpy as np
import tensorflow as tf

from l2o.problems.dataset import Batch


class Stream(Enum):
    """The streams of random numbers: whose, and the number that ends their key.

    A phase's key is (run seed, phase); a trajectory's is its stream's in the phase and its index.
    """

    TRAINING = "phase", 0
    VALIDATION = "phase", 1
    INITIAL_WEIGHTS = "phase", 2
    START = "trajectory", 0
    BATCHES = "trajectory", 1
    NOISE = "trajectory", 2
    SPLIT = "trajectory", 3
    HELD_OUT_BATCHES = "trajectory", 4
    SCALE = "trajectory", 5
    GRADIENT_NOISE = "trajectory", 6

    def key(self, *of: int) -> list[int]:
        """The stream's key, from that of its phase or trajectory."""
        return [*of, self.value[1]]


def batches(
    data: Batch,
    key: Sequence[int],
    batch_size: int,
    start: int,
    steps: int,
    among: np.ndarray | None = None,
    stream: Stream = Stream.BATCHES,
) -> Batch:
    """A trajectory's batches from step `start` on.

    Args:
        data: The training examples, as NumPy arrays.
        key: As in `begin`.
        batch_size: B.
        start: The first step, counted from the start of the trajectory, warm-up included.
        steps: S.
        among: Indices of the examples to draw from; all by default.
        stream: Of the trajectory; another one is drawn independently.

    Returns:
        Inputs [S, B, ...], labels [S, B, ...] and so on.
    """
    examples = len(data.labels) if among is None else len(among)
    indices = batch_indices(stream.key(*key), examples, batch_size, start, steps)
    indices = indices if among is None else among[indices]
    return rows(data, indices)


def batch_indices(seed: list[int], examples: int, batch_size: int, start: int, steps: int):
    """Steps `start` to `start + steps` of a batch sequence, int32 [steps, batch_size].

    The sequence is successive slices of a permutation of the training set, fresh every epoch; an
    epoch's remainder smaller than a batch is left out. Every permutation derives from `seed` and
    the epoch's number alone.

    Raises:
        ValueError: If there are fewer examples than a batch holds.
    """
    per_epoch = examples // batch_size
    if not per_epoch:
        raise ValueError(f"A batch holds {batch_size} examples. Received: {examples} in all")
    first, end = start // per_epoch, -(-(start + steps) // per_epoch)
    orders = [_permutation((*seed, epoch), examples) for epoch in range(first, max(end, first + 1))]
    cut = np.concatenate([order[: per_epoch * batch_size] for order in orders])
    return cut.reshape(-1, batch_size)[start - first * per_epoch :][:steps]


@lru_cache(maxsize=512)  # many fits side by side, an epoch each
def _permutation(seed: tuple[int, ...], examples: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(examples).astype("int32")


def held_out(examples: int, key: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the examples a trajectory trains on, and of the tenth it never does.

    Drawn anew for each trajectory, for the held-out meta loss (after Metz et al. 2019).
    """
    order = np.random.default_rng(Stream.SPLIT.key(*key)).permutation(examples)
    kept, tenth = np.split(order, [examples - examples // 10])
    return kept, tenth


def rows(structure, which):
    """Some examples of nested NumPy arrays: those in a slice, or at indices of any shape."""
    return tf.nest.map_structure(lambda x: x[which], structure)


def entry(structure, i):
    """Entry `i` of every tensor, or several: batch number i, the examples at indices [B]."""
    return tf.nest.map_structure(lambda x: tf.gather(x, i), structure)
