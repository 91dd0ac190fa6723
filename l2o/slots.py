"""What an optimizer keeps in variables, and what files hold of it.

Files hold the state of each of the model's variables by itself, however it is packed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from l2o.backends import float_type, path_of
from l2o.policies.checkpoint import Policy
from l2o.rules import Layout, State, core
from l2o.step import Group

_TENSOR = "tensor_"  # before the name of what belongs to a tensor as a whole
_LOSS_SCALE = 4  # variables of Keras' LossScaleOptimizer, before those of the optimizer within


@dataclass
class Slots:
    """The variables of a built optimizer.

    Attributes:
        name: The optimizer's.
        own: Keras' own; they come first.
        weights: The policy's, which are not variables.
        variables: The model's.
        groups: How those are packed.
        states: One a group.
        shared: The state that belongs to all.
        skipped: Number of skipped steps.
    """

    name: str
    own: list[keras.Variable]
    weights: list[np.ndarray]
    variables: list
    groups: tuple[Group, ...]
    states: list[State]
    shared: dict[str, keras.Variable]
    skipped: keras.Variable

    @property
    def held(self) -> tuple:
        """What a step reads and writes; see `l2o.step.take_step`."""
        return self.states, self.shared, self.skipped

    def contents(self) -> dict[str, np.ndarray]:
        """What a file holds, by name and in order: all variables, and the policy's weights."""
        saved = {v.path: v for v in [*self.own, self.skipped]}
        saved |= {f"{self.name}/policy_{k}": w for k, w in enumerate(self.weights)}
        saved |= {v.path: v for v in self.shared.values()}
        states = separated(self.groups, self.states)
        for k, (variable, state) in enumerate(zip(self.variables, states, strict=True)):
            path = f"{self.name}/{k}_{path_of(variable).replace('/', '_')}_"
            saved |= {path + name: value for name, value in state.items()}
        return {name: ops.convert_to_numpy(value) for name, value in saved.items()}

    def take(self, saved: list[np.ndarray]) -> None:
        """Sets all variables to what a file holds.

        Raises:
            ValueError: If it is not of this optimizer, or of another policy.
        """
        here = self.contents()
        if len(saved) == len(here) - 1:  # rules without moments did not count steps once
            place = list(here).index(self.shared["count"].path)
            saved = [*saved[:place], saved[0], *saved[place:]]  # as many as iterations
        states = [v for s in self.states for v in (*s.coordinate.values(), *s.tensor.values())]
        packed_up = [*self.own, self.skipped, *self.shared.values(), *states]
        check_same(self.name, saved, here, [tuple(v.shape) for v in packed_up])
        values = iter(saved)
        pairs = [(variable, next(values)) for variable in [*self.own, self.skipped]]
        for weights in self.weights:
            if not np.allclose(next(values), weights, rtol=1e-6, atol=0):
                raise ValueError(
                    f"The state saved for '{self.name}' is that of another policy of the same "
                    "rule: load the one that it was trained with"
                )
        pairs += [(variable, next(values)) for variable in self.shared.values()]
        names = [list(state) for state in separated(self.groups, self.states)]
        parts = [{name: next(values) for name in each} for each in names]
        for variable, value in pairs + packed(self.groups, self.states, parts):
            variable.assign(value)


def initial_state(policy: Policy) -> State:
    """The state of one coordinate, of one tensor and of all, before the first step.

    A rule starts all coordinates alike, and all tensors: what it does to a scalar is then enough.

    Raises:
        ValueError: If the weights do not fit the rule, or the state is not zero.
    """
    fitting = list(policy.rule.weight_shapes())
    received = [tuple(w.shape) for w in policy.weights]
    if received != fitting:
        raise ValueError(
            f"Rule '{core(policy.rule).name}' needs weights of shapes {fitting}; l2o.load_policy "
            f"gives a trained policy with its weights. Received: {received}"
        )
    state = policy.rule.initial_state(Layout(("",), ((),)))
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


def check_same(
    optimizer: str, saved: Sequence[np.ndarray], here: Mapping[str, Any], within: Sequence
) -> None:
    """Raises ValueError, which names what differs, if saved variables are not an optimizer's.

    Args:
        optimizer: Its name.
        saved: What was saved.
        here: What it would save.
        within: The shapes of its variables, as Keras' LossScaleOptimizer would save them.
    """
    names = dict(enumerate(here))
    there = {k: tuple(value.shape) for k, value in enumerate(saved)}
    own = {k: tuple(value.shape) for k, value in enumerate(here.values())}
    wrong = [
        f"{names.get(k, f'number {k}')} (saved: {there.get(k, 'no')}, here: {own.get(k, 'no')})"
        for k in {**own, **there}
        if there.get(k) != own.get(k)
    ]
    if not wrong:
        return
    if list(there.values())[_LOSS_SCALE:] in (list(own.values()), list(within)):
        raise ValueError(
            f"The variables saved for the optimizer are those of '{optimizer}' within Keras' "
            "LossScaleOptimizer, as a model of mixed_float16 has it: call "
            'keras.config.set_dtype_policy("mixed_float16") before loading the model'
        )
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    raise ValueError(
        f"The variables saved for the optimizer are not those of '{optimizer}', which has "
        f"{len(own)} where {len(there)} were saved. They differ in {', '.join(wrong[:5])}"
        f"{more}. Policy, averaging and which layers are trainable must be the same. "
        "To load a model's weights alone: keras.saving.load_model(path, compile=False), or "
        "model.load_weights before compiling it or with skip_mismatch=True."
    )
