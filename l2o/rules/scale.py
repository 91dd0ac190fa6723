"""Scale: the hierarchical learned optimizer of Wichrowska et al. 2017, without attention."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from keras import ops

from l2o.rules.analytical import step_count
from l2o.rules.base import State, UpdateRule
from l2o.rules.layout import Layout
from l2o.rules.recurrent import GRU, weight_seeds

RATE_MEMORY = 3.2  # logit of the decay of the running mean of log rates, before training
RATE_FLOOR = 0.01  # added to the rate, so that no coordinate ever stands still


@dataclass(frozen=True)
class Scale(UpdateRule):
    """GRUs for coordinates, tensors and the whole network, fed with moments at several scales.

    For the scales s = 0, 1, ... of a coordinate, with h the GRUs' hidden states:

        mean_s, power_s   moving averages of g and g^2, their decays b_mean^(1/2^s) and
                          b_power^(1/2^s) read off the coordinate's h of the step before
        m_s = mean_s / sqrt(power_s + epsilon)
        c_s = log(power_s + epsilon) less its mean over s
        h_coordinate <- GRU([m, c, r, h_tensor, h_global])
        h_tensor     <- GRU([mean of its coordinates' h, h_global])
        h_global     <- GRU(mean of h_tensor over the tensors)
        n = n_mean + head(h_coordinate);  n_mean <- k n_mean + (1 - k) n, k learned
        step = (exp n + 0.01) (head(h_coordinate) + linear(m))

    n is a log learning rate, n_mean its running mean, log `rate` at the start; r is n of the step
    before less its mean over the coordinate's tensor. Heads are zero at the start, so an untrained
    Scale stands still. A tensor without coordinates has no say in h_global.

    Attributes:
        units: Of a coordinate's GRU.
        tensor_units: Of a tensor's GRU.
        global_units: Of the network's GRU.
        scales: How many.
        rate: Learning rate at the start.
        mean_decay: b_mean at the start.
        power_decay: b_power at the start.
        epsilon: Inside the root and the logarithm.
    """

    units: int = 20
    tensor_units: int = 10
    global_units: int = 10
    scales: int = 4
    rate: float = 1e-3
    mean_decay: float = 0.9
    power_decay: float = 0.999
    epsilon: float = 1e-10
    name: ClassVar[str] = "scale"
    coordinatewise: ClassVar[bool] = False

    @cached_property
    def networks(self) -> tuple[GRU, GRU, GRU]:
        """The GRUs of a coordinate, a tensor and the network."""
        above = self.tensor_units + self.global_units
        return (
            GRU(2 * self.scales + 1 + above, self.units),
            GRU(self.units + self.global_units, self.tensor_units),
            GRU(self.tensor_units, self.global_units),
        )

    def initial_weights(self, seed: int) -> list:
        """Three tensors a GRU, then heads: decays, log rate, step; linear(m); the logit of k."""
        seeds = weight_seeds(seed)
        weights = [w for network in self.networks for w in network.initial_weights(seeds)]
        decays = [math.log(b / (1 - b)) for b in (self.mean_decay, self.power_decay)]
        head = lambda: [ops.zeros((self.units, 1)), ops.zeros(1)]  # noqa: E731
        return [
            *weights,
            *(ops.zeros((self.units, 2)), ops.stack([ops.full((), logit) for logit in decays])),
            *head(),
            *head(),
            ops.zeros((self.scales, 1)),
            ops.full((1,), RATE_MEMORY),
        ]

    def weight_shapes(self):
        for network in self.networks:
            yield from network.weight_shapes()
        for outputs in (2, 1, 1):
            yield from ((self.units, outputs), (outputs,))
        yield from ((self.scales, 1), (1,))

    def initial_state(self, layout: Layout) -> State:
        zeros = lambda features, columns: ops.zeros((features, columns))  # noqa: E731
        coordinate = {
            "mean": zeros(self.scales, layout.size),
            "power": zeros(self.scales, layout.size),
            "hidden": zeros(self.units, layout.size),
            # Logarithms relative to `rate`: sums over a tensor stay small, hence exact.
            "log_rate": zeros(1, layout.size),
            "mean_log_rate": zeros(1, layout.size),
        }
        tensor = {"hidden": zeros(self.tensor_units, layout.tensors)}
        shared = {"hidden": zeros(self.global_units, 1), "count": ops.zeros(())}
        return State(coordinate, tensor, shared)

    def observe(self, weights, gradient, parameters, state, layout):
        logits = _head(_parts(weights)[3], state.coordinate["hidden"])
        exponents = ops.cast(0.5 ** np.arange(self.scales)[:, None], logits.dtype)

        def moved(average, value, logit):
            log_decay = exponents * ops.log_sigmoid(logit)
            return ops.exp(log_decay) * average - ops.expm1(log_decay) * value

        mean = moved(state.coordinate["mean"], gradient, logits[:1])
        power = moved(state.coordinate["power"], ops.square(gradient), logits[1:])
        return state._replace(
            coordinate=state.coordinate | {"mean": mean, "power": power},
            shared=state.shared | {"count": step_count(state) + 1},
        )

    def update(self, weights, gradient, parameters, state, layout, horizon=None):
        state = self.observe(weights, gradient, parameters, state, layout)
        coordinate = state.coordinate
        power, log_rate = coordinate["power"] + self.epsilon, coordinate["log_rate"]
        momentum, logs = coordinate["mean"] / ops.sqrt(power), ops.log(power)

        above = [state.tensor["hidden"], _columns(state.shared["hidden"], layout.tensors)]
        above = ops.concatenate([*above, _tensor_means(log_rate, layout)])
        above = ops.take(above, layout.segments, axis=-1)
        inputs = [momentum, logs - ops.mean(logs, axis=0, keepdims=True), log_rate - above[-1:]]
        of_coordinate, of_tensor, of_all = self.networks
        low, middle, top, _, rate_head, step_head, linear, rate_memory = _parts(weights)
        inputs = ops.concatenate([*inputs, above[:-1]])
        hidden = of_coordinate(low, inputs, coordinate["hidden"])
        means = [_tensor_means(hidden, layout), _columns(state.shared["hidden"], layout.tensors)]
        tensor = of_tensor(middle, ops.concatenate(means), state.tensor["hidden"])
        shared = of_all(top, _overall_mean(tensor, layout), state.shared["hidden"])

        log_rate = coordinate["mean_log_rate"] + _head(rate_head, hidden)
        kept = ops.cast(ops.sigmoid(rate_memory), log_rate.dtype)  # shipped weights are float32
        coordinate = coordinate | {
            "hidden": hidden,
            "log_rate": log_rate,
            "mean_log_rate": kept * coordinate["mean_log_rate"] + (1 - kept) * log_rate,
        }
        direction = _head(step_head, hidden) + ops.matmul(ops.transpose(linear), momentum)
        step = (self.rate * ops.exp(log_rate) + RATE_FLOOR) * direction
        return step[0], State(coordinate, {"hidden": tensor}, state.shared | {"hidden": shared})


def _parts(weights: list) -> tuple:
    """The weights of each part, in the order of `initial_weights`."""
    networks = (weights[k : k + 3] for k in (0, 3, 6))
    heads = (weights[k : k + 2] for k in (9, 11, 13))
    return (*networks, *heads, *weights[15:])


def _head(weights: list, hidden):
    """A dense layer on columns, [outputs, N]."""
    kernel, bias = weights
    return ops.matmul(ops.transpose(kernel), hidden) + bias[:, None]


def _columns(values, count: int):
    """A single column [features, 1] as `count` of them."""
    return ops.broadcast_to(values, (values.shape[0], count))


def _tensor_means(values, layout: Layout):
    """The mean of each tensor's coordinates, from [features, D] to [features, K]; 0 if empty."""
    sums = ops.segment_sum(ops.transpose(values), layout.segments, num_segments=layout.tensors)
    return ops.transpose(sums) / ops.cast(np.maximum(layout.sizes, 1), values.dtype)


def _overall_mean(values, layout: Layout):
    """The mean over tensors that have coordinates, from [features, K] to [features, 1]."""
    present = np.not_equal(layout.sizes, 0)
    weights = ops.cast(present / max(present.sum(), 1), values.dtype)
    return ops.matmul(values, weights[:, None])
