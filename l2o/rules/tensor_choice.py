"""TensorChoice: which direction a tensor follows, how far, and when; it knows the horizon."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from keras import ops

from l2o.rules.analytical import step_count, zeros
from l2o.rules.base import Horizon, State, UpdateRule
from l2o.rules.layout import Layout
from l2o.rules.modern import orthogonalized
from l2o.rules.scheduled import cosine

DIRECTIONS = ("adam", "slow adam", "rmsprop", "sign", "momentum", "slow momentum", "sgd",
              "addsign", "decay", "orthogonal")  # fmt: skip
FEATURES = 25
BETA, SLOW, POWER = 0.9, 0.99, 0.99  # decays of the moments
TINY = 1e-15  # a gradient, or a direction, that is as good as none
PLACES = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)  # in a fit, as shares of it
KNOWN = cosine(0.05, end=1e-3)  # the schedule where the horizon is known
RISE, FALL = 50.0, 1000.0  # steps; of the schedule where it is not
LEAST, SMALLEST = 0.3, 1e-4  # size of a tensor at least: in sizes of all parameters, and at all
REACH = 4.0  # logarithm of the largest factor of a step


@dataclass(frozen=True)
class TensorChoice(UpdateRule):
    """A mixture of the pool's directions, chosen for each tensor by a small network.

    With m, n, v the moments of the gradient g (decays 0.9, 0.99, 0.99) and r = v^-1/2, the
    directions d_k are Adam m r, slow Adam n r, RMSProp g r, sign m, m, n, g, AddSign
    (1 + sign g sign m) g, the parameters, and for hidden matrices the orthogonalized momentum (for
    other tensors Adam's). Each is divided by its root mean square over the tensor, written |.|:

        c = (1, 0, ..., 0) + the network's
        step = rate w(t) exp(s) max(|theta|, 0.3 |all parameters|) sum_k c_k d_k / |d_k| / |c|_2

    where the network gives s, within ±4, and c once a tensor, out of `inputs`. With weights of zero
    it is Adam with a schedule, by steps that are a share of their tensor. Where the horizon T is
    known, w rises over 5% of it and falls to 0.001 along half a cosine; else it is
    min(t / 50, 1) / sqrt(1 + t / 1000).

    A factor of the loss changes nothing, nor one of all parameters. State: 12 bytes a parameter.

    Attributes:
        units: Of the network's hidden layer.
        rate: The largest step before `exp(s)`, in sizes of its tensor.
        orthogonal: Matrices may follow their orthogonalized momentum if their smaller side is at
            most this; five products of matrices a step are its cost. 0 is none.
    """

    units: int = 16
    rate: float = 0.03
    orthogonal: int = 128
    name: ClassVar[str] = "tensorchoice"
    coordinatewise: ClassVar[bool] = False
    tensorwise: ClassVar[bool] = True

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
        moved = moved_moments(gradient, **state.coordinate)
        coordinate = dict(zip(("first", "slow", "second"), moved, strict=True))
        return State(coordinate, {}, {"count": step_count(state) + 1})

    def sums(self, gradient, parameters, state, layout):
        """Of the second moment and of the squares of all directions but the orthogonal one."""

        def squares(gradient, parameters, first, slow, second):
            held = moved_moments(gradient, first, slow, second)
            return [held[-1], *map(ops.square, directions(gradient, parameters, *held))]

        held = (state.coordinate[name] for name in ("first", "slow", "second"))
        return layout.sums(squares, gradient, parameters, *held)

    def chosen(self, weights, sums, state, layout, horizon):
        """What each direction is multiplied by, in the order of `DIRECTIONS`."""
        count = ops.cast(step_count(state), sums.dtype) + 1
        sizes = ops.cast(np.maximum(layout.sizes, 1), sums.dtype)
        noise, *lengths = ops.unstack(ops.sqrt(sums / sizes), len(DIRECTIONS))
        of = dict(zip(DIRECTIONS, [*lengths, ops.ones_like(noise)], strict=True))
        overall = ops.sqrt(ops.sum(ops.square(of["decay"]) * sizes) / max(layout.size, 1))

        time = time_of(count, horizon)
        known = inputs(time, noise, of, overall, layout)
        hidden = ops.tanh(ops.matmul(ops.transpose(weights[0]), known) + weights[1][:, None])
        outputs = ops.matmul(ops.transpose(weights[2]), hidden) + weights[3][:, None]

        adam, orthogonal = np.eye(len(DIRECTIONS))[[0, -1]]
        shares = ops.cast(adam[:, None], sums.dtype) + outputs[1:]
        lacking = np.outer(adam - orthogonal, [not self._matrix(*t) for t in tensors_of(layout)])
        shares = shares + ops.cast(lacking, sums.dtype) * shares[-1]
        shares = shares * ops.rsqrt(ops.sum(ops.square(shares), 0) + TINY)
        size = ops.maximum(of["decay"], ops.maximum(LEAST * overall, SMALLEST))
        reach = ops.exp(REACH * ops.tanh(outputs[0] / REACH))
        return (
            self.rate * schedule(time) * reach * size * shares / (ops.stack([*of.values()]) + TINY)
        )

    def update(self, weights, gradient, parameters, state, layout, horizon=None, chosen=None):
        if chosen is None:
            sums = self.sums(gradient, parameters, state, layout)
            chosen = layout.over(self.chosen(weights, sums, state, layout, horizon))
        state = self.observe(weights, gradient, parameters, state, layout)
        pool = directions(gradient, parameters, *state.coordinate.values())
        *factors, orthogonal = ops.unstack(chosen, len(DIRECTIONS))
        step = sum(factor * d for factor, d in zip(factors, pool, strict=True))
        if any(self._matrix(*tensor) for tensor in tensors_of(layout)):
            step = step + orthogonal * self._orthogonal(gradient, state, layout)
        return step, state

    def _matrix(self, name: str, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """The matrix that a tensor is, if it may follow its orthogonalized momentum."""
        matrix = matrix_of(name, shape)
        return matrix if matrix and min(matrix) <= self.orthogonal else None

    def _orthogonal(self, gradient, state: State, layout: Layout):
        """Nesterov's momentum of all matrices, orthogonalized, at a length of about 1; else 0."""
        ahead = BETA * state.coordinate["first"] + (1 - BETA) * gradient
        alike: dict[tuple[int, int], list[int]] = {}  # which are orthogonalized at once
        for k, tensor in enumerate(tensors_of(layout)):
            if matrix := self._matrix(*tensor):
                alike.setdefault(matrix, []).append(k)
        origin = np.zeros(math.prod(ahead.shape), "int32")  # of each coordinate in `found`
        vector, found, end = ops.reshape(ahead, (-1,)), [ops.zeros((1,), ahead.dtype)], 1
        for matrix, several in alike.items():
            places = np.concatenate([layout.places[k] for k in several])
            origin[places] = np.arange(end, end := end + len(places))
            x = ops.reshape(ops.take(vector, places), (len(several), *matrix))
            power = ops.mean(ops.square(x), (-2, -1), keepdims=True)
            x = math.sqrt(max(matrix)) * orthogonalized(x / (ops.sqrt(power) + TINY))
            found.append(ops.reshape(x, (-1,)))
        return ops.reshape(ops.take(ops.concatenate(found), origin), ahead.shape)


def moved_moments(gradient, first, slow, second) -> tuple:
    """The three moments after a gradient."""
    return (
        BETA * first + (1 - BETA) * gradient,
        SLOW * slow + (1 - SLOW) * gradient,
        POWER * second + (1 - POWER) * ops.square(gradient),
    )


def directions(gradient, parameters, first, slow, second) -> list:
    """All but the orthogonal one, of any arrays of coordinates, in the order of `DIRECTIONS`."""
    root = ops.rsqrt(second + TINY**2)
    addsign = (1 + ops.sign(gradient) * ops.sign(first)) * gradient
    return [first * root, slow * root, gradient * root, ops.sign(first), first, slow, gradient,
            addsign, parameters]  # fmt: skip


def tensors_of(layout: Layout):
    """Name and shape of each tensor."""
    return zip(layout.names, layout.shapes, strict=True)


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


def inputs(time: Time, noise, lengths: dict[str, Any], overall, layout: Layout):
    """What the network sees of each tensor, [FEATURES, K], all within a few units of 0.

    Args:
        time: Of the step.
        noise: Root mean second moment of each tensor, [K].
        lengths: Root mean squares of the directions, each [K].
        overall: Root mean square of all parameters.
        layout: Of the tensors.
    """
    dtype, full = noise.dtype, lambda beta: 1 - ops.power(beta, time.count)
    noise = noise * ops.rsqrt(full(POWER)) + TINY
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
    moving = [
        1 + log(lengths["momentum"] / full(BETA) / noise, -4.0, 1.0) / 2,
        1 + log(lengths["slow momentum"] / full(SLOW) / noise, -4.0, 1.0) / 2,
        log(lengths["sgd"] / noise, -2.0, 2.0),
        log(lengths["decay"] / (overall + TINY), -4.0, 2.0) / 2,
    ]
    sizes = np.log(np.maximum(layout.sizes, 1))
    fan_in = np.log([max(math.prod(shape[:-1]), 1) for shape in layout.shapes])
    whole = math.log(max(layout.size, 1))
    fixed = [
        [1 if len(shape) > 1 else -1 for shape in layout.shapes],
        [1 if matrix_of(*tensor) else -1 for tensor in tensors_of(layout)],
        fan_in / 2 - 2,
        [whole / 4 - 2] * layout.tensors,
        sizes / 3 - whole / 3 + 1,
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
