"""One step of an update rule on all variables of a model: pure functions of tensors.

Every variable's state lies by itself; here it is joined to one flat vector, or to a few where there
are many coordinates. `l2o.optimizer` brings the tensors and writes back what comes out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise

import keras
from keras import ops

from l2o.rules import Layout, State, UpdateRule

# A coordinatewise rule runs on this many coordinates at a time, which bounds its activations
# (some 1.5 kB a coordinate for RNNProp) whatever the size of the model.
BLOCK = 2**18
# A longer tensor goes by parts of this many, whose activations stay in the cache: 1.6 s in place of
# 2.1 for RNNProp on 10 million coordinates and two cores.
PART = 2**14
# Tensors of so many coordinates are blocks by themselves; as each is compiled, at most so many
# shorter than `BLOCK` are.
ALONE, MOST_ALONE = 2**12, 32


@cache  # without end: what is compiled stays with the backend, whether or not it is forgotten here
def compiled_step(rule: UpdateRule, layout: Layout) -> Callable:
    """`take_step` for a rule and a layout, as fast as the backend has it.

    Compiling takes seconds, so optimizers of one rule and alike models share what comes of it.
    """
    move = partial(take_step, rule, layout)
    if keras.backend.backend() == "tensorflow" and sys.platform != "darwin":
        import tensorflow as tf

        return tf.function(move, jit_compile=True, autograph=False)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(move)
    return move


def take_step(rule, layout, weights, gradients, parameters, held, rate, horizon=None):
    """One step of all variables; pure.

    Args:
        rule: The update rule.
        layout: Of the variables.
        weights: The rule's.
        gradients: One a variable.
        parameters: What the variables hold.
        held: States of the variables, shared state, number of skipped steps.
        rate: What the rule's step is multiplied by.
        horizon: How long the fit is, where that is known.

    Returns:
        What is to be subtracted from each variable, and the new `held`.
    """
    states, shared, skipped = held
    # Rules keep second moments, which an infinite square would spoil for good.
    finite = ops.all(ops.stack([ops.all(ops.isfinite(ops.square(g))) for g in gradients]))

    def move():
        return by_blocks(rule, weights, layout, gradients, parameters, states, shared, horizon)

    def rest():
        return [ops.zeros_like(g) for g in gradients], states, shared

    steps, states, shared = ops.cond(finite, move, rest)
    steps = [rate * step for step in steps]
    return steps, (states, shared, skipped + ops.cast(ops.logical_not(finite), skipped.dtype))


def by_blocks(rule, weights, layout, gradients, parameters, states, shared, horizon=None):
    """The rule's update of all coordinates, block by block.

    Returns:
        Steps, states and shared state, in the form they came in.
    """
    tensor = {name: _joined([s.tensor[name] for s in states]) for name in states[0].tensor}
    flat = [[ops.reshape(x, (-1,)) for x in each] for each in (gradients, parameters)]

    def update(gradient, parameters, state, layout):
        return rule.update(weights, gradient, parameters, state, layout, horizon)

    steps = [[] for _ in states]
    coordinate = [{name: [] for name in state.coordinate} for state in states]
    for start, stop in blocks(layout) if rule.coordinatewise else [(0, layout.size)]:
        pieces, place = layout.pieces(start, stop), 0
        columns = {
            name: _joined([_cut(states[k].coordinate[name], a, b) for k, a, b in pieces])
            for name in states[0].coordinate
        }
        vectors = [_joined([_cut(x[k], a, b) for k, a, b in pieces]) for x in flat]
        long = rule.coordinatewise and stop - start > BLOCK
        run = partial(_looped, update) if long else update
        step, state = run(*vectors, State(columns, tensor, shared), layout.block(start, stop))
        for k, a, b in pieces:
            steps[k].append(_cut(step, place, place + b - a))
            for name, values in state.coordinate.items():
                coordinate[k][name].append(_cut(values, place, place + b - a))
            place += b - a
    states = [
        State(
            {name: _joined(parts) for name, parts in coordinate[k].items()},
            {name: values[..., k : k + 1] for name, values in state.tensor.items()},
            {},
        )
        for k in range(len(states))
    ]
    steps = [ops.reshape(_joined(s), shape) for s, shape in zip(steps, layout.shapes, strict=True)]
    return steps, states, state.shared


def blocks(layout: Layout) -> list[tuple[int, int]]:
    """Where the vector is cut: at most `BLOCK` coordinates each, and big tensors by themselves.

    A block of one tensor needs no joining of states, which takes a third of the step's time. Only
    such a block may be longer than `BLOCK`.
    """
    alone = min(max(ALONE, layout.size // MOST_ALONE), BLOCK)
    big = [(o, o + s) for o, s in zip(layout.offsets, layout.sizes, strict=True) if s >= alone]
    cuts = sorted({0, layout.size, *(cut for block in big for cut in block)})
    parts = []
    for start, stop in pairwise(cuts):
        whole = (start, stop) in big
        parts += [(start, stop)] if whole else pairwise([*range(start, stop, BLOCK), stop])
    return parts


def _looped(update, gradient, parameters, state: State, layout: Layout):
    """`update(gradient, parameters, state, layout)` of a long tensor, part after part."""
    size = layout.size
    count = -(-size // PART)
    length = -(-size // count)
    part = layout.block(0, length)

    def place(values, start):
        return (0,) * (len(values.shape) - 1) + (start,)

    def body(i, done):
        # The last part starts early enough to be as long as the others: what two parts have in
        # common comes out alike, as both read the old state.
        start = ops.minimum(i * length, size - length)

        def cut(values):
            return ops.slice(values, place(values, start), (*values.shape[:-1], length))

        columns = {name: cut(values) for name, values in state.coordinate.items()}
        before = State(columns, state.tensor, state.shared)
        step, new = update(cut(gradient), cut(parameters), before, part)
        steps, states, _ = done
        states = {
            name: ops.slice_update(states[name], place(values, start), values)
            for name, values in new.coordinate.items()
        }
        return ops.slice_update(steps, (start,), step), states, new.shared

    empty = {name: ops.zeros_like(values) for name, values in state.coordinate.items()}
    steps, coordinate, shared = ops.fori_loop(
        0, count, body, (ops.zeros_like(gradient), empty, state.shared)
    )
    return steps, State(coordinate, state.tensor, shared)


def _joined(parts: list):
    return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=-1)


def _cut(values, start: int, stop: int):
    return values if stop - start == values.shape[-1] else values[..., start:stop]
