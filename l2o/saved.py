"""What files hold of an optimizer: the state of each of the model's variables by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest

import keras
import numpy as np
from keras import ops

from l2o.backends import path_of
from l2o.packing import Group
from l2o.policies.checkpoint import Policy
from l2o.rules import State

_TENSOR = "tensor_"  # before the name of what belongs to a tensor as a whole
_REMEDY = (
    "Policy, averaging, use_ema, gradient accumulation and which layers are trainable must be the "
    "same. To load a model's weights alone: keras.saving.load_model(path, compile=False), or "
    "model.load_weights before compiling it or with skip_mismatch=True."
)
_LOSS_SCALE = 4  # variables of Keras' LossScaleOptimizer, before those of the optimizer within


def names_in_files(start: State) -> list[str]:
    """Of a variable's state in files."""
    return [*start.coordinate, *(_TENSOR + name for name in start.tensor)]


def shapes_in_files(
    name: str, own: Sequence[tuple], weights: Sequence, start: State, variables: Sequence
) -> dict[str, tuple[int, ...]]:
    """The shapes of what a file holds of an optimizer, by name and in order.

    Args:
        name: The optimizer's.
        own: Shapes of Keras' own variables.
        weights: The policy's.
        start: As from `l2o.slots.initial_state`.
        variables: The model's.
    """
    shapes = {f"variable {k} of Keras": shape for k, shape in enumerate(own)}
    shapes[f"{name}/skipped_steps"] = ()
    shapes |= {f"{name}/policy_{k}": tuple(w.shape) for k, w in enumerate(weights)}
    shapes |= {f"{name}/{key}": tuple(x.shape) for key, x in start.shared.items()}
    for k, variable in enumerate(variables):
        size = math.prod(variable.shape)
        each = [(*x.shape[:-1], size) for x in start.coordinate.values()]
        each += [(*x.shape[:-1], 1) for x in start.tensor.values()]
        path = f"{k}_{path_of(variable)}"
        shapes |= {f"{path}: {key}": s for key, s in zip(names_in_files(start), each, strict=True)}
    return shapes


def separated(groups: Sequence[Group], states: Sequence[State]) -> list[dict[str, np.ndarray]]:
    """The state of each of the model's variables, by name."""
    found: dict[int, dict[str, np.ndarray]] = {}
    for group, state in zip(groups, states, strict=True):
        each: list[dict] = [{} for _ in group.members]
        for name, whole in state.coordinate.items():
            parts = group.cut(ops.convert_to_numpy(whole))
            for own, part in zip(each, parts, strict=True):
                own[name] = ops.convert_to_numpy(part)
        for name, whole in state.tensor.items():
            values = ops.convert_to_numpy(whole)
            for k, own in enumerate(each):
                own[_TENSOR + name] = values[..., k : k + 1]
        found |= dict(zip(group.members, each, strict=True))
    return [found[k] for k in sorted(found)]


def packed(groups: Sequence[Group], states: Sequence[State], parts: Sequence[Mapping]) -> list:
    """Pairs of a variable in `states` and what it holds, from what `separated` gave."""
    pairs = []
    for group, state in zip(groups, states, strict=True):
        own = [parts[k] for k in group.members]
        for name, variable in state.coordinate.items():
            pairs.append((variable, group.join([each[name] for each in own])))
        for name, variable in state.tensor.items():
            columns = np.concatenate([each[_TENSOR + name] for each in own], axis=-1)
            pairs.append((variable, columns))
    return pairs


def checked(
    optimizer: str, saved: Sequence[np.ndarray], shapes: Mapping[str, tuple], within: Sequence
) -> list[np.ndarray]:
    """Saved variables, if they are an optimizer's.

    Args:
        optimizer: Its name.
        saved: What was saved.
        shapes: As from `shapes_in_files`.
        within: Its variables, as Keras' LossScaleOptimizer would save them, in any order.

    Raises:
        ValueError: If they are not; it names what differs.
    """
    saved = list(saved)
    if len(saved) == len(shapes) - 1:  # rules without moments did not count steps once
        place = list(shapes).index(f"{optimizer}/count")
        saved.insert(place, saved[0])  # as many as iterations
    names, own = list(shapes), list(shapes.values())
    there = [tuple(value.shape) for value in saved]
    if there == own:
        return saved
    scaled = there[_LOSS_SCALE:]
    if scaled == own or sorted(scaled) == sorted(tuple(v.shape) for v in within):
        raise ValueError(
            f"The variables saved for the optimizer are those of '{optimizer}' within Keras' "
            "LossScaleOptimizer, as a model of mixed_float16 has it: call "
            'keras.config.set_dtype_policy("mixed_float16") before loading the model'
        )
    wrong = [
        f"{name or f'number {k}'} (saved: {'no' if a is None else a}, "
        f"here: {'no' if b is None else b})"
        for k, (name, a, b) in enumerate(zip_longest(names, there, own))
        if a != b
    ]
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    raise ValueError(
        f"{_not_its(optimizer)}, which has {len(own)} where {len(there)} were saved. They differ "
        f"in {', '.join(wrong[:5])}{more}. {_REMEDY}"
    )


def check_likely(
    optimizer: keras.optimizers.Optimizer, saved: Sequence[np.ndarray], policy: Policy, start: State
) -> None:
    """Raises ValueError if saved variables cannot be an optimizer's, whatever the model.

    Args:
        optimizer: It, before it is built.
        saved: What was saved.
        policy: Its policy, whose weights must be in their place.
        start: As from `l2o.slots.initial_state`.
    """
    own, copies = len(optimizer.variables), _copies(optimizer)
    if len(saved) == own:
        return
    shapes = [tuple(w.shape) for w in policy.weights]
    fixed, each = own + 1 + len(shapes) + len(start.shared), copies + len(names_in_files(start))
    for count in (len(saved), len(saved) + 1):  # see `checked`
        variables, rest = divmod(count - fixed, each) if each else (0, count - fixed)
        place = own + variables * copies + 1
        if not rest and [tuple(x.shape) for x in saved[place : place + len(shapes)]] == shapes:
            return
    raise ValueError(f"{_not_its(optimizer.name)}. {_REMEDY}")


def checked_early(
    optimizer: keras.optimizers.Optimizer,
    saved: Sequence[np.ndarray],
    policy: Policy,
    start: State,
    variables: Sequence,
) -> list[np.ndarray]:
    """All variables of an optimizer that is to be built, if what was saved are the others.

    Args:
        optimizer: It, whose first variables are set already.
        saved: What follows them.
        policy: Its policy.
        start: As from `l2o.slots.initial_state`.
        variables: The model's.

    Raises:
        ValueError: If they are not.
    """
    now = [ops.convert_to_numpy(v) for v in optimizer.variables]
    own = [v.shape for v in now] + _copies(optimizer) * [tuple(v.shape) for v in variables]
    shapes = shapes_in_files(optimizer.name, own, policy.weights, start, variables)
    return checked(optimizer.name, [*now, *saved], shapes, [])


def _copies(optimizer: keras.optimizers.Optimizer) -> int:
    """How many variables Keras makes of each of the model's: averages, accumulators."""
    return int(optimizer.use_ema) + bool(optimizer.gradient_accumulation_steps)


def _not_its(optimizer: str) -> str:
    return f"The variables saved for the optimizer are not those of '{optimizer}'"
