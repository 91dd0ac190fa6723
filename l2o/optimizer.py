"""AmalgamatedOptimizer: a Keras optimizer around any trained policy or teacher.

A rule is pure and works on one flat vector; a Keras optimizer owns variables. `l2o.step` packs
them, and their state, into a few vectors; files hold the state of each variable by itself.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from l2o.backends import (
    beside,
    fitted,
    float_type,
    handle,
    has_shape,
    in_one_place,
    native,
    no_grad,
    outside_graphs,
    path_of,
    replicated,
    runs_eagerly,
    spec,
    tensor_of,
    tensors_of,
    write,
)
from l2o.policies.checkpoint import Policy, load_policy
from l2o.policies.config import policy_config, policy_from_config
from l2o.policies.shipped import policy_path
from l2o.rules import (
    Decayed,
    Layout,
    State,
    UpdateRule,
    WarmUp,
    averaged,
    averaging,
    decayed,
    decaying,
    layer,
    warmed_up,
    warming,
)
from l2o.rules.decayed import WEIGHT_DECAY_LIMIT
from l2o.slots import (
    Slots,
    check_likely,
    checked,
    initial_state,
    shapes_in_files,
)
from l2o.step import compiled_step, compiled_step_in_place, grouped

BACKENDS = ("tensorflow", "jax", "torch")
_STATELESS = 2  # variables of an optimizer before it is built: step and learning rate


@keras.saving.register_keras_serializable(package="l2o")
class AmalgamatedOptimizer(keras.optimizers.Optimizer):
    """A Keras optimizer that takes the steps of a trained policy.

    A step subtracts `learning_rate` times the policy's. Warm-up, averaging and weight decay are
    the policy's own (`l2o.rules.WarmUp`, `Averaged`, `Decayed`) where they are not given. A step
    whose gradients, or their squares, are not all finite is skipped for all variables and counted
    in `skipped_steps`; a warning says so once, at the end of `fit` where it is compiled.

    State is float32 whatever the variables' dtype (float64 where that is Keras' floatx): for
    RNNProp 82 numbers a parameter, 328 bytes, and one more where it is averaged.

    Args:
        policy: A `Policy`, as from `l2o.load_policy`, or an `UpdateRule` that has no weights.
        learning_rate: A float or a Keras schedule. It scales every step, warm-up included.
        warmup_steps: Number of SGD steps at the start, while the policy watches the gradients; 0
            is none.
        warmup_learning_rate: SGD's rate.
        averaging: How near the network stays to the moving average of where the policy led, from 0
            to below 1; 0 is none.
        **kwargs: As for every Keras optimizer. `weight_decay` is the policy's own where it is not
            given; None is none. Keras multiplies it by `learning_rate`, which is about 1: the same
            number means a thousand times what it means to Adam at 1e-3. In the warm-up it is
            multiplied by the warm-up's rate too.

    Raises:
        ValueError: If the weights do not fit the rule, or a setting is out of range.
    """

    _slots: Slots  # from `build` on

    def __init__(
        self,
        policy: Policy | UpdateRule,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 1.0,
        warmup_steps: int | None = None,
        warmup_learning_rate: float | None = None,
        averaging: float | None = None,
        **kwargs,
    ):
        if keras.backend.backend() not in BACKENDS:
            raise ValueError(
                f"AmalgamatedOptimizer runs on Keras' backends {', '.join(BACKENDS)}. "
                f"Received: {keras.backend.backend()}"
            )
        policy = policy if isinstance(policy, Policy) else Policy(policy)
        if not isinstance(policy.rule, UpdateRule):
            raise ValueError(
                "policy must be a Policy or an UpdateRule; AmalgamatedOptimizer.load(path) reads "
                f"one. Received: {policy.rule!r}"
            )
        rule = policy.rule if averaging is None else averaged(policy.rule, averaging)
        if rule.needs_horizon:
            raise ValueError(
                "A schedule around an optimizer's rule needs steps of its own, as in "
                f"cosine(steps=1000). Received: {rule!r}"
            )
        kwargs.setdefault("weight_decay", decaying(rule) or None)
        super().__init__(
            float(learning_rate) if isinstance(learning_rate, int) else learning_rate, **kwargs
        )
        rule = _with_decay(rule, self.weight_decay)
        if decaying(rule) > WEIGHT_DECAY_LIMIT:
            warnings.warn(
                f"weight_decay={self.weight_decay} is multiplied by learning_rate, which is about "
                f"1 for a policy and not 1e-3: more than {WEIGHT_DECAY_LIMIT} is a lot",
                stacklevel=2,
            )
        if warmup_steps is not None or warmup_learning_rate is not None:
            own = layer(rule, WarmUp) or WarmUp
            rule = warmed_up(
                rule,
                own.steps if warmup_steps is None else warmup_steps,
                own.rate if warmup_learning_rate is None else warmup_learning_rate,
            )
        self._policy = replace(policy, rule=rule)
        self._start = initial_state(self._policy)
        self._kept: tuple[np.ndarray, ...] = ()  # what was loaded before there was a state
        self._warned = False

    @classmethod
    def load(cls, path_or_name: Path | str, **kwargs) -> AmalgamatedOptimizer:
        """An optimizer with the policy of a policy directory, or with a shipped policy.

        Args:
            path_or_name: The directory, or the policy's name.
            **kwargs: As for the class.

        Raises:
            PolicyError: If the directory cannot be read, or there is neither that nor such a name.
        """
        return cls(load_policy(policy_path(path_or_name)), **kwargs)

    @property
    def policy(self) -> Policy:
        """The rule, wrapped as it is used, and its weights."""
        return self._policy

    @property
    def warmup_steps(self) -> int:
        """How many steps at the start are SGD's."""
        return warming(self._policy.rule)[0]

    @property
    def warmup_learning_rate(self) -> float:
        """SGD's rate at the start."""
        return warming(self._policy.rule)[1]

    @property
    def averaging(self) -> float:
        """How near the network stays to the average of where the policy led; 0 is not at all."""
        return averaging(self._policy.rule)

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped because a gradient was not finite."""
        return int(ops.convert_to_numpy(self._slots.skipped)) if self.built else 0

    def build(self, variables: Sequence) -> None:
        """Creates the state of `variables`.

        Raises:
            ValueError: If one is complex or of unknown shape, or weights that were loaded before
                are not this optimizer's.
        """
        if self.built:
            return
        for variable in variables:
            if "complex" in (dtype := keras.backend.standardize_dtype(variable.dtype)):
                raise ValueError(
                    f"Variables must be real. Received: {path_of(variable)} of {dtype}"
                )
            if not has_shape(variable):
                raise ValueError(
                    "Variables must have a shape that is known. Received: "
                    f"{path_of(variable)} of {variable.shape}"
                )
        variables = list({self._var_key(v): v for v in variables}.values())
        if not self._kept:
            self._build(variables)
            return
        # Within a function, TensorFlow would set new variables to zero after all else.
        with outside_graphs():
            now = [ops.convert_to_numpy(v) for v in self._variables]
            own = [v.shape for v in now] + self._copies * [tuple(v.shape) for v in variables]
            shapes = shapes_in_files(self.name, own, self._policy.weights, self._start, variables)
            saved = checked(self.name, [*now, *self._kept], shapes, [])
            self._build(variables)
            self._slots.take(saved, self._own)
        self._kept = ()

    def _build(self, variables: Sequence) -> None:
        super().build(variables)
        rule, start = self._policy.rule, self._start
        layout = Layout.of(variables, [_name(k, v) for k, v in enumerate(variables)])
        groups, states = grouped(layout, not rule.coordinatewise), []
        with beside(self, variables[0]) if variables else nullcontext():
            skipped = self._add("skipped_steps", (), "int32")
            shared = {name: self._add(name, x.shape, x.dtype) for name, x in start.shared.items()}
        for k, group in enumerate(groups):
            with beside(self, variables[group.members[0]]):
                coordinate = {
                    name: self._add(f"{name}_of_{k}", group.shape(*x.shape[:-1]), x.dtype)
                    for name, x in start.coordinate.items()
                }
                tensor = {
                    name: self._add(
                        f"{name}_of_tensors", (*x.shape[:-1], group.layout.tensors), x.dtype
                    )
                    for name, x in start.tensor.items()
                }
            states.append(State(coordinate, tensor, {}))
        weights = self._policy.weights
        self._slots = Slots(self.name, weights, start, variables, groups, states, shared, skipped)

    @property
    def _copies(self) -> int:
        """How many variables Keras makes of each of the model's: averages, accumulators."""
        return int(self.use_ema) + bool(self.gradient_accumulation_steps)

    @property
    def _own(self) -> list[keras.Variable]:
        """Keras' own variables."""
        slots = {id(v) for v in keras.tree.flatten(self._slots.held)}
        return [v for v in self._variables if id(v) not in slots]

    def _add(self, name: str, shape: tuple[int, ...], dtype) -> keras.Variable:
        return self.add_variable(
            shape,
            dtype=str(dtype),
            aggregation="only_first_replica",
            layout=replicated(len(shape)),
            name=name,
        )

    def apply(self, grads, trainable_variables=None) -> None:
        """One step; see `keras.optimizers.Optimizer.apply`.

        Raises:
            ValueError: If gradients and variables differ in number, or in shape.
        """
        grads = list(grads)
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            if grads and len(grads) != len(trainable_variables):
                raise ValueError(
                    "There must be as many gradients as variables. Received: "
                    f"{len(grads)} gradients, {len(trainable_variables)} variables"
                )
            grads, trainable_variables = self._summed(grads, trainable_variables)
        super().apply(grads, trainable_variables)
        if runs_eagerly():
            self._warn_of_skipped_steps()

    def _summed(self, grads: list, variables: list) -> tuple[list, list]:
        """Gradients and variables, each variable once, with all that is given for it."""
        found: dict = {}
        for gradient, variable in zip(grads, variables, strict=False):
            found.setdefault(self._var_key(variable), (variable, []))[1].append(gradient)
        if len(found) == len(variables):
            return grads, variables
        parts = [[tensor_of(g) for g in each if g is not None] for _, each in found.values()]
        return [sum(each[1:], each[0]) if each else None for each in parts], [
            variable for variable, _ in found.values()
        ]

    def finalize_variable_values(self, var_list) -> None:
        """Called by `fit` at its end."""
        super().finalize_variable_values(var_list)
        self._warn_of_skipped_steps()
        steps = int(ops.convert_to_numpy(self.iterations))
        if 0 < steps <= self.warmup_steps:
            warnings.warn(
                f"{self.name}: all {steps} steps so far were warm-up, which is plain SGD; the "
                f"policy takes over after warmup_steps={self.warmup_steps}",
                stacklevel=3,
            )

    def _warn_of_skipped_steps(self) -> None:
        if not self._warned and self.skipped_steps:
            self._warned = True
            steps = int(ops.convert_to_numpy(self.iterations))
            warnings.warn(
                f"{self.name}: gradients were not finite; {self.skipped_steps} of {steps} steps "
                "so far were skipped (see skipped_steps)",
                stacklevel=3,
            )

    def _clip_gradients(self, grads) -> list:
        """Keras' clipping, but of what the gradient is.

        Rows that a sparse gradient names twice are summed first, and `clipvalue` makes no finite
        number of an infinite one.
        """
        if not (self.clipnorm or self.global_clipnorm or self.clipvalue):
            return grads
        whole = [tensor_of(g) for g in grads]
        clipped = super()._clip_gradients(whole)
        return [ops.where(ops.isinf(g), g, c) for g, c in zip(whole, clipped, strict=True)]

    def _apply_weight_decay(self, variables) -> None:
        """Nothing: decay is part of the step, so that it is skipped with it."""

    def _backend_update_step(self, grads, trainable_variables, learning_rate) -> None:
        with no_grad():
            if keras.backend.backend() == "tensorflow":
                pairs = zip(grads, trainable_variables, strict=True)
                grads = [gradient for gradient, _ in self._all_reduce_sum_gradients(pairs)]
            self._take_step(grads, trainable_variables, learning_rate)

    def _take_step(self, grads: list, variables: list, learning_rate) -> None:
        everything, gradients = self._trainable_variables, [None] * len(self._trainable_variables)
        for gradient, variable in zip(grads, variables, strict=True):
            gradients[self._get_variable_index(variable)] = fitted(gradient, variable)
        rule = _with_decay(self._policy.rule, self.weight_decay, self._excluded())
        weights = [np.asarray(w, float_type()) for w in self._policy.weights]
        held, groups = self._slots.held, self._slots.groups
        slots = keras.tree.flatten(held)
        rate = ops.cast(tensor_of(learning_rate), float_type())
        if in_one_place([*everything, *slots]):
            specs = (tuple(spec(v) for v in each) for each in (everything, slots))
            step = compiled_step_in_place(rule, groups, *specs)
            own, held = [handle(v) for v in everything], keras.tree.map_structure(handle, held)
            step(weights, gradients, own, held, rate)
            return
        values = [ops.cast(tensor_of(v), float_type()) for v in everything]
        steps, moved = compiled_step(rule, groups)(
            weights, gradients, values, tensors_of(held), rate
        )
        there = [k for k, step in enumerate(steps) if step is not None]
        own, steps = ([each[k] for k in there] for each in (everything, steps))
        write(self, own, steps, slots, keras.tree.flatten(moved))

    def _excluded(self) -> tuple[str, ...]:
        """The names of variables that `exclude_from_weight_decay` was told of."""
        if not self.weight_decay:
            return ()
        # TensorFlow's own variable has the layer in its name, which a user may have excluded.
        own = native if keras.backend.backend() == "tensorflow" else lambda v: v
        pairs = enumerate(self._trainable_variables)
        return tuple(_name(k, v) for k, v in pairs if not self._use_weight_decay(own(v)))

    def save_own_variables(self, store) -> None:
        """Writes all state; see `keras.optimizers.Optimizer.save_own_variables`."""
        if self.built:
            values = self._slots.contents(self._own)
        else:
            values = [*map(ops.convert_to_numpy, self._variables), *self._kept]
        for k, value in enumerate(values):
            store[str(k)] = value

    def load_own_variables(self, store) -> None:
        """Takes over saved variables; see `keras.optimizers.Optimizer.load_own_variables`.

        What is loaded before the optimizer is built is kept until then.

        Raises:
            ValueError: If they are not this optimizer's. (Keras warns and goes on without, as this
                does where the optimizer that was saved had no state yet.)
        """
        saved = [np.asarray(store[str(k)]) for k in range(len(store.keys()))]
        if self.built and 0 < len(saved) <= _STATELESS:
            warnings.warn(
                f"The optimizer that was saved had no state; '{self.name}' keeps its own",
                stacklevel=2,
            )
        elif self.built and saved:
            self._slots.take(saved, self._own)
        elif saved:
            own = self._variables
            check_likely(self.name, saved, len(own), self._copies, self._policy, self._start)
            for variable, value in zip(own, saved, strict=False):
                variable.assign(value)
            self._kept = tuple(saved[len(own) :])

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are of the settings, without state, as of other Keras optimizers."""
        return type(self).from_config, (self.get_config(),)

    def get_config(self) -> dict[str, Any]:
        """The settings, as JSON can hold them; the policy's weights too unless they are shipped."""
        return super().get_config() | {"policy": policy_config(self.policy)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects=None) -> AmalgamatedOptimizer:
        """The optimizer of a `get_config`.

        Raises:
            ValueError: If the policy in it is none.
        """
        config = dict(config)
        if isinstance(config.get("policy"), dict):
            config["policy"] = policy_from_config(config["policy"])
        rate = config.get("learning_rate")
        if config.get("warmup_learning_rate") and isinstance(rate, float) and rate:
            config["warmup_learning_rate"] /= rate  # of a time when no rate scaled the warm-up
        return super().from_config(config, custom_objects=custom_objects)


def _with_decay(rule: UpdateRule, rate, exclude: tuple[str, ...] = ()) -> UpdateRule:
    """The rule with this weight decay, as it is where that is its own; `exclude` as well."""
    own = layer(rule, Decayed)
    if not exclude and decaying(rule) == (0 if rate is None else rate):
        return rule
    return decayed(rule, rate or 0, (*(own.exclude if own else ()), *exclude))


def _name(k: int, variable) -> str:
    """Variable number k in a layout; models alike but for Keras' numbers have the same names."""
    return f"[{k}] {re.sub(r'_[0-9]+(?=/|$)', '', path_of(variable))}"
