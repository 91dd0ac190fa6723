"""TensorChoice: which direction a tensor follows, how far, and when; it knows the horizon."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from keras import ops

from l2o.rules.analytical import AddSign, corrected, moments, step_count, zeros
from l2o.rules.base import Horizon, State, UpdateRule
from l2o.rules.layout import Layout
from l2o.rules.modern import orthogonalized
from l2o.rules.scheduled import cosine

DIRECTIONS = ("adam", "slow adam", "rmsprop", "sign", "momentum", "slow momentum", "sgd",
              "addsign", "decay", "orthogonal")  # fmt: skip
FEATURES = 25
BETA, SLOW, POWER = 0.9, 0.99, 0.99  # decays of the moments
DAMPING, TINY = 1e-6, 1e-30  # added to a second moment: in means of its tensor, and at all
PLACES = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)  # in a fit, as shares of it
KNOWN = cosine(0.05, end=1e-3)  # the schedule where the horizon is known
RISE, FALL = 50.0, 1000.0  # steps; of the schedule where it is not
LEAST, SMALLEST = 0.3, 1e-4  # size of a tensor at least: in sizes of all parameters, and at all
REACH = 4.0  # logarithm of the largest factor of a step


@dataclass(frozen=True)
class TensorChoice(UpdateRule):
    """A mixture of the pool's directions, chosen for each tensor by a small network.

    With m, n, v the moments of the gradient (decays 0.9, 0.99, 0.99; bias-corrected) and r the
    inverse root of v + 1e-6 mean v, the directions d_k are Adam m r, slow Adam n r, RMSProp g r,
    sign m, m, n, g, AddSign (1 + tanh(g r) tanh(m r)) g, the parameters, and for matrices the
    orthogonalized momentum (of other tensors Adam's). Each is divided by its root mean square over
    the tensor, here written |.|, and

        y = d_1 + sum_k c_k d_k
        step = rate w(t) exp(s) max(|theta|, 0.3 |all parameters|) y / |y|

    where the network gives s, within ±4, and c once a tensor, out of `inputs`. With weights of zero
    it is Adam with a schedule, by steps that are a share of their tensor. Where the horizon T is
    known, w rises over 5% of it and falls to 0.001 along half a cosine; else it is
    min(t / 50, 1) / sqrt(1 + t / 1000).

    A factor of the loss changes nothing, nor one of all parameters. State: 12 bytes a parameter.

    Attributes:
        units: Of the network's hidden layer.
        rate: The largest step before `exp(s)`, in sizes of its tensor.
        orthogonal: Whether matrices may follow their orthogonalized momentum, which takes a few
            products of matrices a step; else they have Adam's in its place.
    """

    units: int = 16
    rate: float = 0.03
    orthogonal: bool = True
    name: ClassVar[str] = "tensorchoice"
    coordinatewise: ClassVar[bool] = False

    def initial_weights(self, seed: int) -> list:
        """Kernel and bias of the hidden layer, and of the output layer, which are zero."""
        (kernel, *rest), dtype = self.weight_shapes(), ops.zeros(()).dtype
        hidden = np.random.default_rng(seed).normal(size=kernel) / math.sqrt(FEATURES)
        return [ops.cast(hidden, dtype), *map(ops.zeros, rest)]

    def weight_shapes(self):
        outputs = 1 + len(DIRECTIONS)
        yield from ((FEATURES, self.units), (self.units,), (self.units, outputs), (outputs,))

    def initial_state(self, layout: Layout) -> State:
        coordinate = {name: zeros(layout) for name in ("first", "slow", "second")}
        return State(coordinate, {}, {"count": ops.zeros(())})

    def observe(self, weights, gradient, parameters, state, layout):
        first, second = moments(gradient, state, BETA, POWER)
        slow = SLOW * state.coordinate["slow"] + (1 - SLOW) * gradient
        coordinate = {"first": first, "slow": slow, "second": second}
        return State(coordinate, {}, {"count": step_count(state) + 1})

    def update(self, weights, gradient, parameters, state, layout, horizon=None):
        state = self.observe(weights, gradient, parameters, state, layout)
        count, held = ops.cast(step_count(state), gradient.dtype), state.coordinate
        first, second = corrected(held["first"], held["second"], count, BETA, POWER, "exact")
        slow = held["slow"] / (1 - ops.power(SLOW, count))
        powers = [mean(v) for v in layout.unflatten(second)]
        tensors = map(layout.unflatten, (gradient, first, slow, second, parameters))
        each = zip(layout.names, *tensors, powers, strict=True)
        pools = [self._directions(*tensor) for tensor in each]

        lengths = ops.stack([ops.stack([length(d) for d in pool]) for pool in pools], axis=1)
        noise = ops.sqrt(ops.stack(powers))
        overall, time = length(parameters), time_of(count, horizon)
        known = inputs(time, noise, lengths, overall, layout)
        hidden = ops.tanh(ops.matmul(ops.transpose(weights[0]), known) + weights[1][:, None])
        outputs = ops.matmul(ops.transpose(weights[2]), hidden) + weights[3][:, None]

        adam = ops.cast(np.eye(len(DIRECTIONS), 1), gradient.dtype)
        shares = (adam + outputs[1:]) / (lengths + TINY)
        size = lengths[DIRECTIONS.index("decay")]
        size = ops.maximum(size, ops.maximum(LEAST * overall, SMALLEST))
        reach = ops.exp(REACH * ops.tanh(outputs[0] / REACH))
        reach = self.rate * schedule(time) * reach * size
        steps = []
        for k, pool in enumerate(pools):
            mixed = sum(share * d for share, d in zip(ops.unstack(shares[:, k]), pool, strict=True))
            steps.append(reach[k] / (length(mixed) + TINY) * mixed)
        return layout.flatten(steps), state

    def _directions(self, name: str, gradient, first, slow, second, parameters, power) -> list:
        """A tensor's, in the order of `DIRECTIONS`."""
        root = ops.rsqrt(second + (DAMPING * power + TINY))
        adam, orthogonal = first * root, first * root
        matrix = matrix_of(name, tuple(gradient.shape))
        if self.orthogonal and matrix:
            ahead = BETA * first + (1 - BETA) * gradient
            ahead = ops.reshape(ahead / (length(ahead) + TINY), matrix)
            orthogonal = ops.reshape(orthogonalized(ahead), gradient.shape)
        addsign = AddSign(1.0)._weight(ops.tanh(gradient * root) * ops.tanh(adam)) * gradient
        return [adam, slow * root, gradient * root, ops.sign(first), first, slow, gradient, addsign,
                parameters, orthogonal]  # fmt: skip


def mean(x):
    """The mean of a tensor; 0 where it is empty."""
    return ops.sum(x) / max(math.prod(x.shape), 1)


def length(x):
    """The root mean square of a tensor; 0 where it is empty."""
    return ops.sqrt(mean(ops.square(x)))


class Time(NamedTuple):
    """When a step is taken, scalars.

    Attributes:
        count: Steps, this one included.
        steps, epochs: Of the fit; 1 where they are not known.
        known, seen: Whether steps and epochs are known, 1 or 0.
    """

    count: Any
    steps: Any
    epochs: Any
    known: Any
    seen: Any


def time_of(count, horizon: Horizon | None) -> Time:
    """A horizon of 0 is not known either."""
    given = [0.0 if x is None else x for x in (horizon or Horizon())]
    steps, epochs = (ops.cast(x, count.dtype) for x in given)
    known, seen = (ops.cast(x > 0, count.dtype) for x in (steps, epochs))
    return Time(count, steps + (1 - known), epochs + (1 - seen), known, seen)


def schedule(time: Time):
    """w(t)."""
    planned = KNOWN.factor(time.count - 1, Horizon(time.steps))
    open_ended = ops.minimum(time.count / RISE, 1.0) * ops.rsqrt(1 + time.count / FALL)
    return ops.where(time.known > 0, planned, open_ended)


def inputs(time: Time, noise, lengths, overall, layout: Layout):
    """What the network sees of each tensor, [FEATURES, K], all within a few units of 0.

    Args:
        time: Of the step.
        noise: Root mean second moment of each tensor, [K].
        lengths: Root mean squares of the directions, [N, K].
        overall: Root mean square of all parameters.
        layout: Of the tensors.
    """
    dtype, noise = noise.dtype, noise + TINY
    log = lambda x, low, high: ops.clip(ops.log(x + TINY), low, high)  # noqa: E731
    shares = time.count / time.steps - ops.cast(PLACES, dtype)
    now = [
        *ops.unstack(time.known * ops.tanh(10 * shares), len(PLACES)),
        time.known,
        time.known * ops.clip(ops.log(time.steps) - 6.5, -3.0, 3.0) / 2,
        time.seen,
        time.seen * ops.clip(ops.log(time.epochs), -2.0, 5.0) / 2,
        *(ops.tanh(ops.log(time.count / n)) for n in (10.0, 100.0, 1000.0)),
    ]
    of = dict(zip(DIRECTIONS, ops.unstack(lengths, len(DIRECTIONS)), strict=True))
    moving = [
        1 + log(of["momentum"] / noise, -4.0, 1.0) / 2,
        1 + log(of["slow momentum"] / noise, -4.0, 1.0) / 2,
        log(of["sgd"] / noise, -2.0, 2.0),
        log(of["decay"] / (overall + TINY), -4.0, 2.0) / 2,
    ]
    size, count = (
        ops.cast(np.log(np.maximum(layout.sizes, 1)), dtype),
        math.log(max(layout.size, 1)),
    )
    fan_in = [math.log(max(math.prod(shape[:-1]), 1)) for shape in layout.shapes]
    fixed = [
        [1.0 if len(shape) > 1 else -1.0 for shape in layout.shapes],
        [
            1.0 if matrix_of(*named) else -1.0
            for named in zip(layout.names, layout.shapes, strict=True)
        ],
        [x / 2 - 2 for x in fan_in],
        [count / 4 - 2] * layout.tensors,
        size / 3 - count / 3 + 1,
    ]
    rows = [ops.broadcast_to(x, noise.shape) for x in now] + moving
    return ops.stack(rows + [ops.cast(x, dtype) for x in fixed])


def matrix_of(name: str, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The matrix that a hidden tensor is, as near to square as its axes allow; None for others."""
    if "embedding" in name.lower() or not math.prod(shape):
        return None
    cuts = [(math.prod(shape[:k]), math.prod(shape[k:])) for k in range(1, len(shape))]
    cuts = [cut for cut in cuts if min(cut) > 1]
    return min(cuts, key=lambda cut: abs(math.log(cut[0] / cut[1])), default=None)
