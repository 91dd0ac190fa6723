"""One step of an update rule on all variables of a model.

`take_step` is pure and works on packed tensors (`l2o.packing`). `move` has it on variables, as fast
as the backend can: of a variable it only joins the gradient and the values, and cuts the step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache, partial
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from l2o.backends import (
    Spec,
    assign,
    compiled,
    float_type,
    handle,
    in_one_place,
    read,
    replaced,
    spec,
    tensor_of,
    tensors_of,
    write,
)
from l2o.packing import Group
from l2o.rules import Horizon, Layout, State, UpdateRule, Window
from l2o.rules.wrapper import checked_state

Members = tuple[tuple[int, ...], ...]  # of each group, the numbers of some variables


def move(optimizer, rule, groups, weights, gradients, variables, held, rate, horizon) -> None:
    """Takes a step on variables, their state in place where a compiled function can assign to it.

    Args:
        optimizer: Whose step it is; it assigns to variables.
        rule: The update rule.
        groups: How the variables are packed.
        weights: The rule's.
        gradients: One a variable; None where there is none, which leaves variable and state alone.
        variables: The model's.
        held: As for `take_step`, of variables.
        rate, horizon: As for `take_step`.
    """
    weights = [np.asarray(w, float_type()) for w in weights]
    slots, rate = keras.tree.flatten(held), ops.cast(tensor_of(rate), float_type())
    horizon = Horizon(*(ops.cast(x or 0.0, float_type()) for x in horizon))
    values = [ops.cast(tensor_of(v), float_type()) for v in variables]
    filled = [ops.zeros_like(v) if g is None else g for g, v in zip(gradients, values, strict=True)]
    # Joined and cut here, not where it is compiled: that takes 15 ms a variable.
    packed = [
        [group.flatten([each[k] for k in group.members]) for group in groups]
        for each in (filled, values)
    ]
    there = tuple(tuple(k for k in g.members if gradients[k] is not None) for g in groups)
    if in_one_place([*variables, *slots]):
        step = compiled_step_in_place(rule, groups, there, tuple(spec(slot) for slot in slots))
        handles = keras.tree.map_structure(handle, held)
        steps, slots, moved = step(weights, *packed, handles, rate, horizon), [], []
    else:
        step = compiled_step(rule, groups, there)
        steps, moved = step(weights, *packed, tensors_of(held), rate, horizon)
    cut: dict[int, Any] = {}
    for group, taken in zip(groups, steps, strict=True):
        cut |= dict(zip(group.members, group.unflatten(taken), strict=True))
    changed = [k for k, gradient in enumerate(gradients) if gradient is not None]
    pair = [variables[k] for k in changed], [cut[k] for k in changed]
    write(optimizer, *pair, slots, keras.tree.flatten(moved))


def summed(
    gradients: list, variables: list, key: Callable[[object], Hashable]
) -> tuple[list, list]:
    """Gradients and variables, each variable once, with all that is given for it.

    Args:
        gradients: One a variable, or None.
        variables: Those with the same `key` are one.
        key: What a variable is known by.

    Raises:
        ValueError: If there are gradients, but not as many as variables.
    """
    if gradients and len(gradients) != len(variables):
        raise ValueError(
            "There must be as many gradients as variables. Received: "
            f"{len(gradients)} gradients, {len(variables)} variables"
        )
    found: dict = {}
    for gradient, variable in zip(gradients, variables, strict=False):
        found.setdefault(key(variable), (variable, []))[1].append(gradient)
    if len(found) == len(variables):
        return gradients, variables
    parts = [[tensor_of(g) for g in each if g is not None] for _, each in found.values()]
    return [sum(each[1:], each[0]) if each else None for each in parts], [
        variable for variable, _ in found.values()
    ]


@cache  # without end: what is compiled stays with the backend, whether or not it is forgotten here
def compiled_step(rule: UpdateRule, groups: tuple[Group, ...], there: Members) -> Callable:
    """`take_step` for a rule and groups, as fast as the backend has it.

    Compiling takes seconds, so optimizers of one rule and alike models share what comes of it.
    """
    return compiled(partial(take_step, rule, groups, there))


@cache
def compiled_step_in_place(
    rule: UpdateRule, groups: tuple[Group, ...], there: Members, slots: tuple[Spec, ...]
) -> Callable:
    """The same with what is held in TensorFlow's variables, to which it assigns: none is copied.

    In place of `held` it takes their handles; `slots` are their shapes and dtypes.
    """

    def step(weights, gradients, parameters, held, rate, horizon):
        handles = keras.tree.flatten(held)
        before = [read(slot, s) for slot, s in zip(handles, slots, strict=True)]
        before = keras.tree.pack_sequence_as(held, before)
        steps, moved = take_step(
            rule, groups, there, weights, gradients, parameters, before, rate, horizon
        )
        for slot, value in zip(handles, keras.tree.flatten(moved), strict=True):
            assign(slot, value)
        return steps

    return compiled(step)


def take_step(rule, groups, there, weights, gradients, parameters, held, rate, horizon):
    """One step of all variables; pure.

    Args:
        rule: The update rule.
        groups: How the variables are packed.
        there: The members of each group that have a gradient, by their numbers in the model. Of
            others variable and state stay.
        weights: The rule's.
        gradients: Packed, one a group.
        parameters: What the variables hold, likewise.
        held: A state of each group, shared state, number of skipped steps.
        rate: What the rule's step is multiplied by.
        horizon: How long the fit is, where that is known.

    Returns:
        What is to be subtracted from the variables of each group, packed, and the new `held`.
    """
    states, shared, skipped = held
    parts = [
        Part(group, [group.members.index(k) for k in some], gradient, values,
             State(state.coordinate, state.tensor, shared))
        for group, some, gradient, values, state in zip(
            groups, there, gradients, parameters, states, strict=True
        )
    ]  # fmt: skip
    # Rules keep second moments, which an infinite square would spoil for good.
    finite = ops.all(ops.stack([ops.all(ops.isfinite(ops.square(g))) for g in gradients]))
    moving = [part for part in parts if part.moves]
    take = _tensors_moved if rule.tensorwise else _coordinates_moved
    found = iter(take(rule, weights, moving, horizon, finite) if moving else ())

    steps, moved, after = [], [], shared
    for part in parts:
        step, state = next(found) if part.moves else (ops.zeros_like(part.gradient), part.state)
        after = state.shared if part.moves else after
        steps.append(rate * step)
        moved.append(State(state.coordinate, state.tensor, {}))
    return steps, (moved, after, skipped + ops.cast(ops.logical_not(finite), skipped.dtype))


class Part(NamedTuple):
    """A group in a step.

    Attributes:
        group: How its variables are packed.
        there: Which of its members have a gradient: their places in the group.
        gradient, parameters: Packed.
        state: Of the group, and the shared.
    """

    group: Group
    there: list[int]
    gradient: Any
    parameters: Any
    state: State

    @property
    def moves(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.there and self.group.layout.size)

    def kept(self, new: State) -> State:
        """A new state, but for members without a gradient, which keep theirs."""
        if len(self.there) == len(self.group.members):
            return new
        group = self.group
        whether = np.isin(np.arange(len(group.members)), self.there)
        here = ops.convert_to_tensor(group.layout.spread(whether.tolist()))
        if group.tiles > 1:
            here = group.join([here])

        def kept(old, value):
            features = tuple(range(1, old.ndim - 1)) if group.tiles > 1 else ()
            return ops.where(ops.expand_dims(here, features) if features else here, value, old)

        pairs = self.state.coordinate.items(), self.state.tensor.items()
        coordinate = {name: kept(old, new.coordinate[name]) for name, old in pairs[0]}
        tensor = {name: ops.where(whether, new.tensor[name], old) for name, old in pairs[1]}
        return State(coordinate, tensor, new.shared)


def _tensors_moved(rule, weights, parts: list[Part], horizon, finite) -> list:
    """Steps and states after a tensorwise rule's, which sees sums over all tensors first."""
    sums = [rule.sums(p.gradient, p.parameters, p.state, p.group.layout) for p in parts]
    sums = [ops.take(each, p.there, axis=1) for each, p in zip(sums, parts, strict=True)]
    named = [(p.group.layout.names[k], p.group.layout.shapes[k]) for p in parts for k in p.there]
    layout = Layout(*zip(*named, strict=True))
    whole = rule.chosen(weights, ops.concatenate(sums, axis=1), parts[0].state, layout, horizon)

    found, start = [], 0
    for part in parts:
        places = [0] * len(part.group.members)  # of members without a gradient, any
        for n, k in enumerate(part.there):
            places[k] = start + n
        start += len(part.there)
        group, _, gradient, parameters, state = part
        chosen = group.layout.over(ops.take(whole, places, axis=1))
        step, new = rule.update(weights, gradient, parameters, state, group.layout, horizon, chosen)
        new = part.kept(checked_state(rule, state, new))
        still = ops.zeros_like(gradient), state
        found.append(keras.tree.map_structure(partial(ops.where, finite), (step, new), still))
    return found


def _coordinates_moved(rule, weights, parts: list[Part], horizon, finite) -> list:
    """Steps and states after any other rule's."""

    def update(gradient, parameters, state, layout):
        def move():
            step, new = rule.update(weights, gradient, parameters, state, layout, horizon)
            return step, checked_state(rule, state, new)

        # Within a loop over tiles the condition also keeps XLA from copying all state every time.
        return ops.cond(finite, move, lambda: (ops.zeros_like(gradient), state))

    found = []
    for part in parts:
        group, there, gradient, parameters, state = part
        if not rule.coordinatewise and len(there) < len(group.members):
            found.append(_moved_in_part(update, group, there, gradient, parameters, state))
            continue
        if group.tiles == 1:
            step, new = update(gradient, parameters, state, group.layout)
        else:
            if len(there) < len(group.members):  # whose state stays, which torch writes into
                state = keras.tree.map_structure(ops.copy, state)
            step, new = _by_tiles(update, group, gradient, parameters, state)
        found.append((step, part.kept(new)))
    return found


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
