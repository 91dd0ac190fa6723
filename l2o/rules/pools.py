"""Pools of teachers, with the learning rates found by `l2o tune`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

from l2o.rules.analytical import SGD, Adam, AddSign, AnalyticalRule, Momentum, PowerSign, RMSProp
from l2o.rules.base import UpdateRule

TEACHERS: dict[str, type[AnalyticalRule]] = {
    rule.name: rule for rule in (Adam, RMSProp, SGD, Momentum, AddSign, PowerSign)
}
POOLS: dict[str, tuple[str, ...]] = {
    "adam": ("adam",),
    "small": ("adam", "rmsprop"),
    "large": ("adam", "rmsprop", "sgd", "momentum", "addsign", "powersign"),
}
# Best mean validation loss after 5 epochs of the Train problem; docs/tuning has the table.
TUNED_RATES: dict[str, float] = {
    "adam": 2e-3,
    "rmsprop": 5e-3,
    "sgd": 2e-1,
    "momentum": 5e-1,
    "addsign": 1e-1,
    "powersign": 1e-1,
}


def get_teacher(name: str, learning_rate: float | None = None) -> AnalyticalRule:
    """The teacher of that name, at its tuned rate unless one is given.

    Raises:
        ValueError: If there is no such teacher, or the rate is no number of at least 0.
    """
    if name not in TEACHERS:
        raise ValueError(f"Unknown teacher. Allowed: {', '.join(TEACHERS)}. Received: {name}")
    rate = TUNED_RATES[name] if learning_rate is None else learning_rate
    if not isinstance(rate, Real) or isinstance(rate, bool) or not 0 <= rate < math.inf:
        raise ValueError(f"learning_rate must be a number of at least 0. Received: {rate!r}")
    return TEACHERS[name](rate)


def get_pool(pool: str | Sequence[str | UpdateRule]) -> tuple[UpdateRule, ...]:
    """The teachers of a pool, those that are named at their tuned rates.

    Args:
        pool: A name in `POOLS`; or some teachers, each by its name or as a rule.

    Raises:
        ValueError: If there is no such pool or teacher, or a rule has weights, which are trained.
    """
    if isinstance(pool, str):
        if pool not in POOLS:
            raise ValueError(f"Unknown pool. Allowed: {', '.join(POOLS)}. Received: {pool}")
        pool = POOLS[pool]
    teachers = isinstance(pool, (tuple, list)) and [isinstance(t, (str, UpdateRule)) for t in pool]
    if not teachers or not all(teachers):
        raise ValueError(f"teachers must be a pool's name, or rules and names. Received: {pool!r}")
    rules = tuple(t if isinstance(t, UpdateRule) else get_teacher(t) for t in pool)
    if trained := [rule.name for rule in rules if any(True for _ in rule.weight_shapes())]:
        raise ValueError(f"Rules with weights are no teachers. Received: {', '.join(trained)}")
    return rules
