"""Meta loss, distances to teachers, and their reduction to one number (paper, Section 3).

The amalgamation schemes are here: none, mean (Equation 2), min-max (Equation 3). Choice
(Equation 4) is no loss of its own: its policy is trained with "none" and then distilled with
itself as the only teacher, for which mean and min-max are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

# A float32 loss or distance can reach zero, where the logarithm has no value.
LOG_FLOOR = 1e-10


def log_loss(loss):
    """log(M + 1e-10) of a loss or of a tensor of losses."""
    return tf.math.log(loss + LOG_FLOOR)


# What the meta loss is the mean difference of, between a step and the start of the unroll.
META_LOSSES: dict[str, Callable] = {"log": log_loss, "difference": lambda loss: loss}


def log_distance(student, teachers):
    """D = log(|student - teacher|^2 / 2 + 1e-10) - log D for each teacher.

    Args:
        student: Parameters [D], in the student's scaled coordinates.
        teachers: Parameters [K, D], in the same.

    Returns:
        [K].
    """
    squares = tf.reduce_sum(tf.square(student - teachers), axis=-1)
    return tf.math.log(squares / 2 + LOG_FLOOR) - math.log(max(int(student.shape[0]), 1))


def mean_scheme(distances):
    """mean over steps of the mean over teachers, from distances [T, K] (Equation 2)."""
    return tf.reduce_mean(distances)


def minmax_scheme(distances):
    """mean over steps of the maximum over teachers, from distances [T, K] (Equation 3)."""
    return tf.reduce_mean(tf.reduce_max(distances, axis=-1))


# None: the meta loss alone, no teacher is run.
SCHEMES: dict[str, Callable | None] = {"none": None, "mean": mean_scheme, "minmax": minmax_scheme}
