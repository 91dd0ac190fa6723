"""Original: the learned optimizer of Andrychowicz et al. 2016."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from l2o.rules.base import State, UpdateRule
from l2o.rules.layout import Layout
from l2o.rules.recurrent import CoordinateLSTM


@dataclass(frozen=True)
class Original(UpdateRule):
    """A policy that sees nothing but the gradient.

    g goes through the LSTM and a linear layer; the step is that times `scale`, less what a
    coordinate without gradient would get (`CoordinateLSTM.steps`). Its LSTM is all it remembers, so
    nothing moves during warm-up. 5,061 weights at the defaults.
    """

    units: int = 20
    layers: int = 2
    scale: float = 0.1
    name: ClassVar[str] = "original"

    @cached_property
    def network(self) -> CoordinateLSTM:
        return CoordinateLSTM(1, 1, self.units, self.layers)

    def initial_weights(self, seed: int) -> list:
        return self.network.initial_weights(seed, still=True)

    def initial_state(self, layout: Layout) -> State:
        return State(self.network.initial_memory(layout.size), {}, self.network.initial_memory(1))

    def observe(self, weights, gradient, state, layout):
        return state

    def update(self, weights, gradient, state, layout):
        output, memory, rest = self.network.steps(
            weights, gradient[None], state.coordinate, state.shared
        )
        return self.scale * output[0], State(memory, {}, rest)
