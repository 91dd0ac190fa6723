"""Choice: a policy that mixes its teachers' updates (Huang et al. 2022, Appendix C.1.2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from keras import ops

from l2o.rules.analytical import step_count
from l2o.rules.base import State, UpdateRule
from l2o.rules.layout import MAX_RANK, Layout
from l2o.rules.recurrent import CoordinateLSTM


def _prefixed(prefix: str, tensors: dict) -> dict:
    return {f"{prefix}.{key}": value for key, value in tensors.items()}


def _under(prefix: str, tensors: dict) -> dict:
    start = f"{prefix}."
    return {key[len(start) :]: v for key, v in tensors.items() if key.startswith(start)}


@dataclass(frozen=True)
class Choice(UpdateRule):
    """The step is sum_k c_k teacher_k(g), c the softmax of an LSTM's K outputs per coordinate.

    Inputs are the K teachers' updates (rate included), the time min(t / horizon, 1), and the
    tensor's rank as a one-hot over 0-4.
    """

    teachers: tuple[UpdateRule, ...] = ()
    units: int = 20
    layers: int = 2
    horizon: float = 2000.0
    name: ClassVar[str] = "choice"

    def __post_init__(self):
        if not self.teachers or not all(isinstance(t, UpdateRule) for t in self.teachers):
            raise ValueError(f"Choice needs teachers, update rules. Received: {self.teachers}")

    @property
    def coordinatewise(self) -> bool:  # type: ignore[override]
        return all(teacher.coordinatewise for teacher in self.teachers)

    @property
    def needs_horizon(self) -> bool:  # type: ignore[override]
        return any(teacher.needs_horizon for teacher in self.teachers)

    @cached_property
    def network(self) -> CoordinateLSTM:
        count = len(self.teachers)
        return CoordinateLSTM(count + 1 + MAX_RANK + 1, count, self.units, self.layers)

    def initial_weights(self, seed: int) -> list:
        return self.network.initial_weights(seed)

    def weight_shapes(self):
        return self.network.weight_shapes()

    def initial_state(self, layout: Layout) -> State:
        states = [teacher.initial_state(layout) for teacher in self.teachers]
        return self._joined(states, self.network.initial_memory(layout.size), ops.zeros(()))

    def observe(self, weights, gradient, parameters, state, layout):
        states = [
            teacher.observe([], gradient, parameters, self._of(state, k), layout)
            for k, teacher in enumerate(self.teachers)
        ]
        return self._joined(states, state.coordinate, step_count(state) + 1)

    def update(self, weights, gradient, parameters, state, layout, horizon=None):
        moves = [
            teacher.update([], gradient, parameters, self._of(state, k), layout, horizon)
            for k, teacher in enumerate(self.teachers)
        ]
        steps = ops.stack([step for step, _ in moves])
        count = step_count(state) + 1
        time = ops.cast(ops.minimum(count / self.horizon, 1.0), steps.dtype)
        inputs = ops.concatenate(
            [
                steps,
                ops.broadcast_to(time, (1, layout.size)),
                ops.one_hot(layout.ranks, MAX_RANK + 1, axis=0, dtype=steps.dtype),
            ]
        )
        logits, memory = self.network(weights, inputs, state.coordinate)
        # Keras warns of a softmax over one, which is 1 whatever its weights.
        shares = ops.softmax(logits, axis=0) if len(moves) > 1 else ops.ones_like(logits)
        step = ops.sum(shares * steps, axis=0)
        states = [state for _, state in moves]
        return step, self._joined(states, memory, count)

    def _of(self, state: State, k: int) -> State:
        return State(*(_under(str(k), part) for part in state))

    def _joined(self, states: list[State], memory: dict, count) -> State:
        """The teachers' states, each under its number, beside the LSTM's memory."""
        joined = State(dict(memory), {}, {"count": count})
        for k, state in enumerate(states):
            for whole, part in zip(joined, state, strict=True):
                whole.update(_prefixed(str(k), part))
        return joined
