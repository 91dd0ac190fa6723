"""RNNProp: Lv et al. 2017; Huang et al. 2022, Appendix C.1.1."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from keras import ops

from l2o.rules.analytical import check_correction, corrected, moments, step_count, zeros
from l2o.rules.base import State, UpdateRule
from l2o.rules.layout import Layout
from l2o.rules.recurrent import CoordinateLSTM


@dataclass(frozen=True)
class RNNProp(UpdateRule):
    """A policy that sees Adam's and RMSProp's normalized updates.

    Inputs (m^/sqrt(v^ + epsilon), g/sqrt(v^ + epsilon)) go through the LSTM and a dense layer, from
    which the output for a coordinate without gradient is subtracted (`CoordinateLSTM.steps`); the
    step is tanh of that times `scale`. 5,141 weights at the defaults.
    """

    units: int = 20
    layers: int = 2
    scale: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-10
    bias_correction: str = "exact"
    name: ClassVar[str] = "rnnprop"
    scaled: ClassVar[bool] = True

    def __post_init__(self):
        check_correction(self.bias_correction)

    @cached_property
    def network(self) -> CoordinateLSTM:
        return CoordinateLSTM(2, 1, self.units, self.layers)

    def initial_weights(self, seed: int) -> list:
        return self.network.initial_weights(seed, still=True)

    def weight_shapes(self):
        return self.network.weight_shapes()

    def initial_state(self, layout: Layout) -> State:
        coordinate = {"first": zeros(layout), "second": zeros(layout)}
        memory = self.network.initial_memory(layout.size)
        rest = self.network.initial_memory(1)
        return State(coordinate | memory, {}, {"count": ops.zeros(())} | rest)

    def observe(self, weights, gradient, parameters, state, layout):
        first, second = moments(gradient, state, self.beta1, self.beta2)
        coordinate = state.coordinate | {"first": first, "second": second}
        return State(coordinate, {}, state.shared | {"count": step_count(state) + 1})

    def update(self, weights, gradient, parameters, state, layout, horizon=None):
        state = self.observe(weights, gradient, parameters, state, layout)
        first, second = state.coordinate["first"], state.coordinate["second"]
        mean, power = corrected(
            first, second, step_count(state), self.beta1, self.beta2, self.bias_correction
        )
        root = ops.sqrt(power + self.epsilon)
        inputs = ops.stack([mean / root, gradient / root])
        output, coordinate, shared = self.network.steps(
            weights, inputs, state.coordinate, state.shared
        )
        return self.scale * ops.tanh(output[0]), State(coordinate, {}, shared)
