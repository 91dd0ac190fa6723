"""Original: the learned optimizer of Andrychowicz et al. 2016."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from keras import ops

from l2o.rules.analytical import step_count
from l2o.rules.base import State, UpdateRule
from l2o.rules.layout import Layout
from l2o.rules.recurrent import CoordinateLSTM


@dataclass(frozen=True)
class Original(UpdateRule):
    """A policy that sees nothing but the gradient.

    g goes through the LSTM and a linear layer; the step is that times `scale`, less what a
    coordinate without gradient would get (`CoordinateLSTM.steps`). Its LSTM is all it remembers, so
    only the count moves during warm-up. 5,061 weights at the defaults.
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

    def weight_shapes(self):
        return self.network.weight_shapes()

    def initial_state(self, layout: Layout) -> State:
        rest = self.network.initial_memory(1)
        return State(self.network.initial_memory(layout.size), {}, rest | {"count": ops.zeros(())})

    def observe(self, weights, gradient, parameters, state, layout):
        return state._replace(shared=state.shared | {"count": step_count(state) + 1})

    def update(self, weights, gradient, parameters, state, layout, horizon=None):
        state = self.observe(weights, gradient, parameters, state, layout)
        output, memory, shared = self.network.steps(
            weights, gradient[None], state.coordinate, state.shared
        )
        return self.scale * output[0], State(memory, {}, shared)
