"""What an optimizer keeps in variables, and what files hold of it.

Files hold the state of each of the model's variables by itself, however it is packed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

import keras
import numpy as np
from keras import ops

from l2o.backends import float_type, path_of
from l2o.policies.checkpoint import Policy
from l2o.rules import Layout, State, core
from l2o.step import Group

_TENSOR = "tensor_"  # before the name of what belongs to a tensor as a whole
_REMEDY = (
    "Policy, averaging, use_ema, gradient accumulation and which layers are trainable must be the "
    "same. To load a model's weights alone: keras.saving.load_model(path, compile=False), or "
    "model.load_weights before compiling it or with skip_mismatch=True."
)
_LOSS_SCALE = 4  # variables of Keras' LossScaleOptimizer, before those of the optimizer within


@dataclass
class Slots:
    """The variables of a built optimizer.

    Attributes:
        name: The optimizer's.
        weights: The policy's, which are not variables.
        start: The state at rest of a scalar; see `initial_state`.
        variables: The model's.
        groups: How those are packed.
        states: One a group.
        shared: The state that belongs to all.
        skipped: Number of skipped steps.
    """

    name: str
    weights: list[np.ndarray]
    start: State
    variables: Sequence
    groups: tuple[Group, ...]
    states: list[State]
    shared: dict[str, keras.Variable]
    skipped: keras.Variable

    @property
    def held(self) -> tuple:
        """What a step reads and writes; see `l2o.step.take_step`."""
        return self.states, self.shared, self.skipped

    def contents(self, own: Sequence) -> list[np.ndarray]:
        """What a file holds, in order: Keras' `own` variables, the policy's weights, all state."""
        states = [each.values() for each in separated(self.groups, self.states)]
        saved = [*own, self.skipped, *self.weights, *self.shared.values()]
        return [ops.convert_to_numpy(value) for value in (*saved, *chain.from_iterable(states))]

    def take(self, saved: Sequence[np.ndarray], own: Sequence) -> None:
        """Sets all variables, Keras' `own` too, to what a file holds.

        Raises:
            ValueError: If it is not of this optimizer, or of another policy.
        """
        shapes = shapes_in_files(
            self.name, [tuple(v.shape) for v in own], self.weights, self.start, self.variables
        )
        saved = checked(self.name, saved, shapes, [*own, *keras.tree.flatten(self.held)])
        values = iter(saved)
        pairs = [(variable, next(values)) for variable in [*own, self.skipped]]
        for weights in self.weights:
            if not np.allclose(next(values), weights, rtol=1e-6, atol=0):
                raise ValueError(
                    f"The state saved for '{self.name}' is that of another policy of the same "
                    "rule: load the one that it was trained with"
                )
        pairs += [(variable, next(values)) for variable in self.shared.values()]
        names = _names(self.start)
        parts = [{name: next(values) for name in names} for _ in self.variables]
        for variable, value in pairs + packed(self.groups, self.states, parts):
            variable.assign(value)


def _names(start: State) -> list[str]:
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
        start: As from `initial_state`.
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
        shapes |= {f"{path}: {key}": s for key, s in zip(_names(start), each, strict=True)}
    return shapes


def initial_state(policy: Policy) -> State:
    """The state of one coordinate, of one tensor and of all, before the first step.

    A rule starts all coordinates alike, and all tensors: what it does to a scalar is then enough.

    Raises:
        ValueError: If the weights do not fit the rule, or the state cannot be a rule's.
    """
    fitting = list(policy.rule.weight_shapes())
    received = [tuple(w.shape) for w in policy.weights]
    if received != fitting:
        raise ValueError(
            f"Rule '{core(policy.rule).name}' needs weights of shapes {fitting}; l2o.load_policy "
            f"gives a trained policy with its weights. Received: {received}"
        )
    state = policy.rule.initial_state(Layout(("",), ((),)))
    if state.tensor and policy.rule.coordinatewise:
        raise ValueError(
            f"Rule '{core(policy.rule).name}' has state of tensors, {', '.join(state.tensor)}, and "
            "must say so: coordinatewise = False"
        )
    return keras.tree.map_structure(_at_rest, state)


def _at_rest(tensor) -> np.ndarray:
    """A tensor of a rule's state, which has it in Keras' floatx."""
    if keras.backend.is_float_dtype(tensor.dtype):
        tensor = ops.cast(tensor, float_type())
    values = ops.convert_to_numpy(tensor)
    if values.any():
        raise ValueError(f"A rule's state must be zero before the first step. Received: {values}")
    return values


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
    optimizer: str, saved: Sequence[np.ndarray], own: int, copies: int, policy: Policy, start: State
) -> None:
    """Raises ValueError if saved variables cannot be an optimizer's, whatever the model.

    Args:
        optimizer: Its name.
        saved: What was saved.
        own: How many of Keras' variables it has before it is built.
        copies: How many it then makes of each of the model's.
        policy: Its policy, whose weights must be in their place.
        start: As from `initial_state`.
    """
    if len(saved) == own:
        return
    shapes = [tuple(w.shape) for w in policy.weights]
    fixed, each = own + 1 + len(shapes) + len(start.shared), copies + len(_names(start))
    for count in (len(saved), len(saved) + 1):  # see `checked`
        variables, rest = divmod(count - fixed, each) if each else (0, count - fixed)
        place = own + variables * copies + 1
        if not rest and [tuple(x.shape) for x in saved[place : place + len(shapes)]] == shapes:
            return
    raise ValueError(f"{_not_its(optimizer)}. {_REMEDY}")


def _not_its(optimizer: str) -> str:
    return f"The variables saved for the optimizer are not those of '{optimizer}'"
