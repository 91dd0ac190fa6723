"""What an optimizer keeps in variables, and how it goes into a file and comes from one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain

import keras
import numpy as np
from keras import ops

from l2o.backends import beside, float_type, has_shape, path_of, replicated
from l2o.packing import Group, grouped
from l2o.policies.checkpoint import Policy
from l2o.rules import Layout, State, core
from l2o.saved import checked, names_in_files, packed, separated, shapes_in_files


@dataclass
class Slots:
    """The variables of a built optimizer.

    Attributes:
        name: The optimizer's.
        weights: The policy's, which are not variables.
        start: The state at rest of a scalar; see `initial_state`.
        variables: The model's.
        layout: Of those.
        groups: How those are packed.
        states: One a group.
        shared: The state that belongs to all.
        skipped: Number of skipped steps.
    """

    name: str
    weights: list[np.ndarray]
    start: State
    variables: Sequence
    layout: Layout
    groups: tuple[Group, ...]
    states: list[State]
    shared: dict[str, keras.Variable]
    skipped: keras.Variable

    @property
    def held(self) -> tuple:
        """What a step reads and writes; see `l2o.step.take_step`."""
        return self.states, self.shared, self.skipped

    def contents(self, everything: Sequence) -> list[np.ndarray]:
        """What a file holds, in order: Keras' own variables, the policy's weights, all state.

        Args:
            everything: All of the optimizer's variables.
        """
        states = [each.values() for each in separated(self.groups, self.states)]
        saved = [*self._beside(everything), self.skipped, *self.weights, *self.shared.values()]
        return [ops.convert_to_numpy(value) for value in (*saved, *chain.from_iterable(states))]

    def take(self, saved: Sequence[np.ndarray], everything: Sequence) -> None:
        """Sets all variables, Keras' own too, to what a file holds.

        Raises:
            ValueError: If it is not of this optimizer, or of another policy.
        """
        own = [tuple(v.shape) for v in self._beside(everything)]
        shapes = shapes_in_files(self.name, own, self.weights, self.start, self.variables)
        self.put(checked(self.name, saved, shapes, everything), everything)

    def put(self, saved: Sequence[np.ndarray], everything: Sequence) -> None:
        """The same of what was `checked`.

        Raises:
            ValueError: If it is of another policy.
        """
        values = iter(saved)
        pairs = [(variable, next(values)) for variable in self._beside(everything)]
        pairs.append((self.skipped, next(values)))
        for weights in self.weights:
            if not np.allclose(next(values), weights, rtol=1e-6, atol=0):
                raise ValueError(
                    f"The state saved for '{self.name}' is that of another policy of the same "
                    "rule: load the one that it was trained with"
                )
        pairs += [(variable, next(values)) for variable in self.shared.values()]
        names = names_in_files(self.start)
        parts = [{name: next(values) for name in names} for _ in self.variables]
        for variable, value in pairs + packed(self.groups, self.states, parts):
            variable.assign(value)

    def _beside(self, everything: Sequence) -> list:
        """Keras' own variables."""
        slots = {id(v) for v in keras.tree.flatten(self.held)}
        return [v for v in everything if id(v) not in slots]


def made(optimizer, policy: Policy, start: State, variables: Sequence) -> Slots:
    """Creates an optimizer's slots, each on the device of the variables it belongs to."""

    def add(name: str, shape: tuple[int, ...], dtype) -> keras.Variable:
        layout = replicated(len(shape))
        return optimizer.add_variable(
            shape, dtype=str(dtype), aggregation="only_first_replica", layout=layout, name=name
        )

    layout = Layout.of(variables, [_in_layout(k, v) for k, v in enumerate(variables)])
    groups, states = grouped(layout, policy.rule), []
    with beside(optimizer, variables[0]) if variables else nullcontext():
        skipped = add("skipped_steps", (), "int32")
        shared = {name: add(name, x.shape, x.dtype) for name, x in start.shared.items()}
    for k, group in enumerate(groups):
        tensors = group.layout.tensors
        with beside(optimizer, variables[group.members[0]]):
            coordinate = {
                name: add(f"{name}_of_{k}", group.shape(*x.shape[:-1]), x.dtype)
                for name, x in start.coordinate.items()
            }
            tensor = {
                name: add(f"{name}_of_tensors", (*x.shape[:-1], tensors), x.dtype)
                for name, x in start.tensor.items()
            }
        states.append(State(coordinate, tensor, {}))
    return Slots(
        optimizer.name, policy.weights, start, variables, layout, groups, states, shared, skipped
    )


def _in_layout(k: int, variable) -> str:
    """Variable number k in a layout; models alike but for Keras' numbers have the same names."""
    return f"[{k}] {re.sub(r'_[0-9]+(?=/|$)', '', path_of(variable))}"


def check_variables(variables: Sequence) -> None:
    """Raises ValueError if one of a model's variables is complex or of unknown shape."""
    for variable in variables:
        if "complex" in (dtype := keras.backend.standardize_dtype(variable.dtype)):
            raise ValueError(f"Variables must be real. Received: {path_of(variable)} of {dtype}")
        if not has_shape(variable):
            raise ValueError(
                "Variables must have a shape that is known. Received: "
                f"{path_of(variable)} of {variable.shape}"
            )


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
