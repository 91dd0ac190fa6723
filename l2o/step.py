"""One step of an update rule on all variables of a model: pure functions of tensors.

A rule works on one vector. Variables are packed into one, or a few where some are large, and so is
their state: of a variable a step only joins the gradient and the values, and cuts the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import keras
from keras import ops

from l2o.backends import Spec, assign, compiled, read, replaced, subtract
from l2o.rules import Layout, State, UpdateRule, Window

# A coordinatewise rule runs on this many coordinates at a time: their activations, some 1.5 kB a
# coordinate for RNNProp, stay in the cache, and memory is bounded whatever the size of the model.
TILE = 2**13
# A variable of so many coordinates has a state of its own.
LARGE = 2**18


@dataclass(frozen=True)
class Group:
    """Variables that are packed together.

    Their coordinates follow each other. What belongs to them is an array [..., D], or, in several
    tiles, [tiles, ..., length] with zeros behind the last coordinate.

    Attributes:
        members: Their numbers in the model.
        layout: Of them.
        tiles: How many.
    """

    members: tuple[int, ...]
    layout: Layout
    tiles: int = 1

    @property
    def length(self) -> int:
        """Coordinates a tile."""
        return -(-self.layout.size // self.tiles)

    def shape(self, *features: int) -> tuple[int, ...]:
        """The shape of an array with so many features a coordinate."""
        return (*((self.tiles,) if self.tiles > 1 else ()), *features, self.length)

    def join(self, parts: Sequence):
        """One array [..., size] a member as one array of all."""
        whole = parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=-1)
        if self.tiles == 1:
            return whole
        features, columns = whole.shape[:-1], self.tiles * self.length
        padding = [(0, 0)] * len(features) + [(0, columns - self.layout.size)]
        tiles = ops.reshape(ops.pad(whole, padding), (*features, self.tiles, self.length))
        return ops.moveaxis(tiles, -2, 0)

    def cut(self, whole) -> list:
        """What `join` joined."""
        if self.tiles > 1:
            features = tuple(whole.shape[1:-1])
            whole = ops.moveaxis(whole, 0, -2)
            whole = ops.reshape(whole, (*features, self.tiles * self.length))
        places = zip(self.layout.offsets, self.layout.sizes, strict=True)
        return [whole[..., start : start + size] for start, size in places]

    def flatten(self, tensors: Sequence):
        """One tensor a member, of its shape, as one array of all."""
        return self.join([ops.reshape(tensor, (-1,)) for tensor in tensors])

    def unflatten(self, whole) -> list:
        """What `flatten` joined."""
        pairs = zip(self.cut(whole), self.layout.shapes, strict=True)
        return [ops.reshape(part, shape) for part, shape in pairs]


def grouped(layout: Layout, together: bool) -> tuple[Group, ...]:
    """How variables are packed: small ones together, each large one by itself.

    Args:
        layout: Of all variables.
        together: Whether the rule must see all of them at once.
    """
    large = [k for k, size in enumerate(layout.sizes) if size >= LARGE and not together]
    small = [k for k in range(layout.tensors) if k not in large]
    groups = []
    for members in (small, *([k] for k in large)):
        part = layout.only(members)
        tiles = 1 if together or part.size <= LARGE else -(-part.size // TILE)
        groups.append(Group(tuple(members), part, tiles))
    return tuple(group for group in groups if group.members)


@cache  # without end: what is compiled stays with the backend, whether or not it is forgotten here
def compiled_step(rule: UpdateRule, groups: tuple[Group, ...]) -> Callable:
    """`take_step` for a rule and groups, as fast as the backend has it.

    Compiling takes seconds, so optimizers of one rule and alike models share what comes of it.
    """
    return compiled(partial(take_step, rule, groups))


@cache
def compiled_step_in_place(
    rule: UpdateRule, groups: tuple[Group, ...], own: tuple[Spec, ...], slots: tuple[Spec, ...]
) -> Callable:
    """The same, of TensorFlow's variables, to which it assigns: no state is copied.

    It takes weights, gradients, the handles of the model's variables, what is held as handles, and
    the rate; `own` and `slots` are shapes and dtypes of the variables.
    """

    def step(weights, gradients, variables, held, rate):
        values = [ops.cast(read(v, s), rate.dtype) for v, s in zip(variables, own, strict=True)]
        handles = keras.tree.flatten(held)
        before = [read(handle, spec) for handle, spec in zip(handles, slots, strict=True)]
        before = keras.tree.pack_sequence_as(held, before)
        steps, moved = take_step(rule, groups, weights, gradients, values, before, rate)
        for variable, move, spec in zip(variables, steps, own, strict=True):
            if move is not None:
                subtract(variable, ops.cast(move, spec[1]))
        for handle, value in zip(handles, keras.tree.flatten(moved), strict=True):
            assign(handle, value)

    return compiled(step)


def take_step(rule, groups, weights, gradients, parameters, held, rate, horizon=None):
    """One step of all variables; pure.

    Args:
        rule: The update rule.
        groups: How the variables are packed.
        weights: The rule's.
        gradients: One a variable; None where there is none, which leaves variable and state alone.
        parameters: What the variables hold.
        held: A state of each group, shared state, number of skipped steps.
        rate: What the rule's step is multiplied by.
        horizon: How long the fit is, where that is known.

    Returns:
        What is to be subtracted from each variable, None where it has no gradient, and the new
        `held`.
    """
    states, shared, skipped = held
    filled = [
        ops.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)
    ]
    # Rules keep second moments, which an infinite square would spoil for good.
    joined = [group.flatten([filled[k] for k in group.members]) for group in groups]
    finite = ops.all(ops.stack([ops.all(ops.isfinite(ops.square(g))) for g in joined]))

    def update(gradient, parameters, state, layout):
        def move():
            return rule.update(weights, gradient, parameters, state, layout, horizon)

        # Within a loop over tiles the condition also keeps XLA from copying all state every time.
        return ops.cond(finite, move, lambda: (ops.zeros_like(gradient), state))

    steps, moved, after = [None] * len(gradients), [], shared
    for group, gradient, state in zip(groups, joined, states, strict=True):
        there = [k for k, number in enumerate(group.members) if gradients[number] is not None]
        if there and group.layout.size:
            values = group.flatten([parameters[k] for k in group.members])
            before = State(state.coordinate, state.tensor, shared)
            step, state = _moved(rule, update, group, there, gradient, values, before)
            after, each = state.shared, group.unflatten(rate * step)
            for k in there:
                steps[group.members[k]] = each[k]
        moved.append(State(state.coordinate, state.tensor, {}))
    return steps, (moved, after, skipped + ops.cast(ops.logical_not(finite), skipped.dtype))


def _moved(rule, update, group: Group, there: list[int], gradient, parameters, state: State):
    """`update` of a group; members that are not `there` keep their state."""
    everyone = len(there) == len(group.members)
    if not rule.coordinatewise and not everyone:
        return _moved_in_part(update, group, there, gradient, parameters, state)
    if group.tiles == 1:
        step, new = update(gradient, parameters, state, group.layout)
    else:
        step, new = _by_tiles(update, group, gradient, parameters, state)
    if everyone:
        return step, new
    here = group.layout.spread([k in there for k in range(len(group.members))])
    here = group.join([ops.convert_to_tensor(here)])

    def kept(old, value):
        features = tuple(range(1, old.ndim - 1)) if group.tiles > 1 else ()
        return ops.where(ops.expand_dims(here, features) if features else here, value, old)

    coordinate = {name: kept(old, new.coordinate[name]) for name, old in state.coordinate.items()}
    return step, State(coordinate, state.tensor, new.shared)


def _by_tiles(update, group: Group, gradient, parameters, state: State):
    """`update(gradient, parameters, state, layout)` of a group, tile after tile, in place."""
    layout = group.layout

    def body(i, done):
        step, coordinate, _ = done
        tile = {name: values[i] for name, values in coordinate.items()}
        window = Window(layout.names, layout.shapes, i * group.length, group.length)
        before = State(tile, {}, state.shared)
        moved, new = update(gradient[i], parameters[i], before, window)
        after = {name: replaced(coordinate[name], i, x) for name, x in new.coordinate.items()}
        return replaced(step, i, moved), after, new.shared

    start = (ops.zeros_like(gradient), state.coordinate, state.shared)
    step, coordinate, shared = ops.fori_loop(0, group.tiles, body, start)
    return step, State(coordinate, {}, shared)


def _moved_in_part(update, group: Group, there: list[int], gradient, parameters, state: State):
    """`update` of some members alone, for a rule that sees all tensors at once."""
    absent = [k for k in range(len(group.members)) if k not in there]
    some = Group(tuple(there), group.layout.only(there))
    # Where each member's new column is: behind the new ones lie the old ones of the absent.
    order = [*there, *absent]
    places = [order.index(k) for k in range(len(order))]

    def chosen(whole):
        parts = group.cut(whole)
        return some.join([parts[k] for k in there])

    def put(old, values):
        new, parts = some.cut(values), group.cut(old)
        return group.join([new[there.index(k)] if k in there else x for k, x in enumerate(parts)])

    columns = {name: ops.take(values, there, axis=-1) for name, values in state.tensor.items()}
    before = State({n: chosen(x) for n, x in state.coordinate.items()}, columns, state.shared)
    step, new = update(chosen(gradient), chosen(parameters), before, some.layout)
    coordinate = {n: put(state.coordinate[n], x) for n, x in new.coordinate.items()}
    tensor = {}
    for name, old in state.tensor.items():
        whole = ops.concatenate([new.tensor[name], ops.take(old, absent, axis=-1)], axis=-1)
        tensor[name] = ops.take(whole, places, axis=-1)
    return put(ops.zeros_like(gradient), step), State(coordinate, tensor, new.shared)
