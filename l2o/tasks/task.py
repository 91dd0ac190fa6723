"""A problem with its data, as it is fitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from l2o.tasks.optimizee import KerasOptimizee
from l2o.tasks.privacy import DPSGD


@dataclass(frozen=True)
class Task:
    """A problem as it is evaluated: anything with a catalogue problem's attributes, and its data.

    Attributes:
        problem: Has `name`, `batch_size`, `private`, `loss` and `build(dataset)`.
        dataset: The data really used.
    """

    problem: Any
    dataset: Any

    @property
    def data(self) -> str:
        """The data as tables name it."""
        used = self.dataset.name
        return f"{used} for {self.dataset.requested}" if self.dataset.substituted else used

    @property
    def privacy(self) -> DPSGD | None:
        """How the problem is made private, if it is."""
        return DPSGD() if self.problem.private else None

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch."""
        return len(self.dataset.train) // self.problem.batch_size

    def optimizee(self) -> KerasOptimizee:
        """The network and its loss."""
        return KerasOptimizee(lambda: self.problem.build(self.dataset), self.problem.loss)
