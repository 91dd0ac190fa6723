"""What a meta-training run is made of at one moment, and how that goes to disk and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import tensorflow as tf

from l2o.amalgamation.curriculum import Progress
from l2o.amalgamation.meta import MetaState

_STATES = ("now", "kept", "best")
_COUNTERS = ("phase", "pieces", "origin", "sums", "updates", "periods", "seconds")


@dataclass
class RunState:
    """What changes while a run goes on, and is saved.

    Attributes:
        phase: Index of the phase.
        progress: In its curriculum.
        now: The policy as it is.
        kept: As it was after the last period that was kept.
        best: The stage's best; the checkpoint it began with before there is one.
        previous: Weights of the phase before, or none.
        trajectories: What the next piece goes on with, as tensors, or none.
        origin: Of `plan.Place`.
        pieces: Of the present period that are behind: unrolls, or windows of an evolution strategy.
        sums: Of meta loss and distance over the present period's updates.
        updates, periods: Rows of the tables.
        seconds: Spent so far, all sessions together.
    """

    phase: int
    progress: Progress
    now: MetaState
    kept: MetaState
    best: MetaState
    previous: list
    trajectories: list = field(default_factory=list)
    origin: int = 0
    pieces: int = 0
    sums: tuple[float, float] = (0.0, 0.0)
    updates: int = 0
    periods: int = 0
    seconds: float = 0.0


def pack(run: RunState) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by name, and the rest as JSON can hold it."""
    parts = {
        name: tf.nest.flatten(getattr(run, name)) for name in (*_STATES, "previous", "trajectories")
    }
    arrays = {
        f"{name}.{k}": np.asarray(tensor)
        for name, tensors in parts.items()
        for k, tensor in enumerate(tensors)
    }
    status = {name: getattr(run, name) for name in _COUNTERS}
    return arrays, status | {"progress": asdict(run.progress)}


def unpack(arrays: dict[str, np.ndarray], status: dict[str, Any], fresh: RunState) -> RunState:
    """The run of a `pack`; `fresh` is one at the start of the same phase.

    Raises:
        KeyError, TypeError, ValueError: If it is none of that phase.
    """

    def tensors(name: str) -> list:
        count = sum(key.startswith(f"{name}.") for key in arrays)
        return [tf.convert_to_tensor(arrays[f"{name}.{k}"]) for k in range(count)]

    status = {"pieces": status.get("unrolls"), "origin": 0} | status  # of an older version
    states = {name: tf.nest.pack_sequence_as(fresh.now, tensors(name)) for name in _STATES}
    for name, state in states.items():
        pairs = zip(tf.nest.flatten(state), tf.nest.flatten(fresh.now), strict=True)
        if any((a.shape, a.dtype) != (b.shape, b.dtype) for a, b in pairs):
            raise ValueError(f"the tensors of '{name}' have other shapes or dtypes")
    counters = {name: status[name] for name in _COUNTERS} | {"sums": tuple(status["sums"])}
    progress = Progress(**status["progress"])
    whole = [counters[name] for name in ("phase", "pieces", "origin", "updates", "periods")]
    whole += [progress.stage, progress.period, progress.repeats, progress.trajectories]
    whole += [progress.best_period]
    if not all(type(n) is int and n >= 0 for n in whole):
        raise ValueError(f"counts are whole numbers. Received: {whole}")
    losses = [x for x in (progress.incoming, progress.best) if x is not None]
    numbers = [*counters["sums"], counters["seconds"], *losses]
    if len(counters["sums"]) != 2 or not all(type(x) in (int, float) for x in numbers):
        raise ValueError(f"two sums, seconds and losses are numbers. Received: {numbers}")
    if not all(type(end) is bool for end in (progress.finished, progress.diverged)):
        raise ValueError("finished and diverged are true or false")
    return replace(
        fresh, **states, **counters, previous=tensors("previous"),
        trajectories=tensors("trajectories"), progress=progress,
    )  # fmt: skip
