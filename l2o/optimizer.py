"""AmalgamatedOptimizer: a Keras optimizer around any trained policy or teacher.

A rule is pure and works on one flat vector; a Keras optimizer owns variables. Here every model
variable has a state of its own (for placement, saving, and variables without a gradient), joined
only inside the step: one call of the rule moves all variables.
"""

from __future__ import annotations

import base64
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from l2o.backends import beside, native, no_grad, replicated, runs_eagerly, tensor_of, tensors_of
from l2o.checkpoint import Policy, PolicyError, load_policy
from l2o.rules import (
    Decayed,
    Layout,
    State,
    UpdateRule,
    WarmUp,
    averaged,
    averaging,
    core,
    decayed,
    decaying,
    layer,
    rule_from_config,
    warmed_up,
    warming,
)
from l2o.shipped import policy_path
from l2o.step import compiled_step

WEIGHT_DECAY_LIMIT = 1e-3
BACKENDS = ("tensorflow", "jax", "torch")
_STATELESS = 2  # variables of an optimizer before it is built: step and learning rate
_LOSS_SCALE = 4  # variables of Keras' LossScaleOptimizer, before those of the optimizer within


@dataclass
class _Slots:
    """The variables of an optimizer; no list or dictionary, which Keras would wrap and track.

    Attributes:
        weights: The policy's.
        states: One a model variable: its coordinates' columns and its tensor's.
        shared: The state that belongs to all.
        skipped: Number of skipped steps.
    """

    weights: list[keras.Variable]
    states: list[State]
    shared: dict[str, keras.Variable]
    skipped: keras.Variable


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
        self._start = _initial_state(self._policy)
        self._slots: _Slots | None = None
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
        """The rule, with the weights it runs on at present."""
        if self._slots is None:
            return self._policy
        weights = [ops.convert_to_numpy(v) for v in self._slots.weights]
        return replace(self._policy, weights=weights)

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
        return 0 if self._slots is None else int(ops.convert_to_numpy(self._slots.skipped))

    def build(self, variables: Sequence) -> None:
        """Creates the state of `variables`, each beside its variable.

        Raises:
            ValueError: If one is complex.
        """
        if self.built:
            return
        for variable in variables:
            if "complex" in (dtype := keras.backend.standardize_dtype(variable.dtype)):
                raise ValueError(f"Variables must be real. Received: {_path(variable)} of {dtype}")
        super().build(variables)
        start = self._start
        skipped = self._add("skipped_steps", np.zeros((), "int32"))
        weights = [w.astype(_dtype()) for w in self._policy.weights]
        weights = [self._add(f"policy_{k}", w) for k, w in enumerate(weights)]
        self._slots = _Slots(weights, [], self._add_all("", start.shared), skipped)
        for variable in variables:
            path = _path(variable).replace("/", "_").replace(":", "_")
            with beside(self, variable):
                coordinate = self._add_all(f"{path}_", start.coordinate, math.prod(variable.shape))
                tensor = self._add_all(f"{path}_tensor_", start.tensor, 1)
            self._slots.states.append(State(coordinate, tensor, {}))

    def _add_all(self, prefix: str, values: dict, columns: int | None = None) -> dict:
        """A variable of each value, with the prefix before its name."""
        return {name: self._add(prefix + name, x, columns) for name, x in values.items()}

    def _add(self, name: str, value: np.ndarray, columns: int | None = None) -> keras.Variable:
        """A variable of `value`; where `columns` is given, of as many copies of its only one."""
        return self.add_variable(
            value.shape if columns is None else (*value.shape[:-1], columns),
            initializer=lambda shape, dtype: ops.cast(value, dtype) + ops.zeros(shape, dtype),
            dtype=str(value.dtype),
            aggregation="only_first_replica",
            layout=replicated(len(value.shape)),
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
        super().apply(grads, trainable_variables)
        if runs_eagerly():
            self._warn_of_skipped_steps()

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
            pairs = zip(grads, trainable_variables, strict=True)
            pairs = [(g, v) for g, v in pairs if math.prod(v.shape)]
            if pairs:
                self._take_step([g for g, _ in pairs], [v for _, v in pairs], learning_rate)

    def _take_step(self, gradients: list, variables: list, learning_rate) -> None:
        places = [self._get_variable_index(v) for v in variables]
        held = ([self._slots.states[k] for k in places], self._slots.shared, self._slots.skipped)
        names = [_name(k, v) for k, v in zip(places, variables, strict=True)]
        rule = _with_decay(self._policy.rule, self.weight_decay, self._excluded(names, variables))
        steps, moved = compiled_step(rule, Layout.of(variables, names))(
            tensors_of(self._slots.weights),
            [_fitted(g, v) for g, v in zip(gradients, variables, strict=True)],
            [ops.cast(tensor_of(v), _dtype()) for v in variables],
            tensors_of(held),
            ops.cast(tensor_of(learning_rate), _dtype()),
        )
        self._write(variables, steps, keras.tree.flatten(held), keras.tree.flatten(moved))

    def _excluded(self, names: list[str], variables: list) -> tuple[str, ...]:
        """The names of variables that `exclude_from_weight_decay` was told of."""
        if not self.weight_decay:
            return ()
        # TensorFlow's own variable has the layer in its name, which a user may have excluded.
        own = native if keras.backend.backend() == "tensorflow" else lambda v: v
        pairs = zip(names, variables, strict=True)
        return tuple(name for name, v in pairs if not self._use_weight_decay(own(v)))

    def _write(self, variables: list, steps: list, slots: list, values: list) -> None:
        if keras.backend.backend() != "tensorflow":
            self._write_here(variables, steps, slots, values)
            return
        import tensorflow as tf

        variables, slots = ([native(v) for v in each] for each in (variables, slots))
        tf.__internal__.distribute.interim.maybe_merge_call(
            self._write_everywhere, self._distribution_strategy, variables, steps, slots, values
        )

    def _write_here(self, variables, steps, slots, values) -> None:
        for variable, step in zip(variables, steps, strict=True):
            self.assign_sub(variable, ops.cast(step, variable.dtype))
        for slot, value in zip(slots, values, strict=True):
            self.assign(slot, value)

    def _write_everywhere(self, distribution, variables, steps, slots, values) -> None:
        """On every replica."""
        for variable, step in zip(variables, steps, strict=True):
            distribution.extended.update(variable, self.assign_sub, args=(step,), group=False)
        for slot, value in zip(slots, values, strict=True):
            distribution.extended.update(slot, self.assign, args=(value,), group=False)

    def load_own_variables(self, store) -> None:
        """Takes over saved variables; see `keras.optimizers.Optimizer.load_own_variables`.

        Raises:
            ValueError: If they are not this optimizer's. (Keras warns and goes on without, as this
                does where the optimizer that was saved had no state yet.)
        """
        store = self._with_count(store)
        saved = {str(k): tuple(store[str(k)].shape) for k in range(len(store.keys()))}
        here = {str(k): (v.path, tuple(v.shape)) for k, v in enumerate(self.variables)}
        if not saved:
            return
        if self.built and len(saved) <= _STATELESS:
            warnings.warn(
                f"The optimizer that was saved had no state; '{self.name}' keeps its own",
                stacklevel=2,
            )
            return
        wrong = [
            f"{here[k][0] if k in here else f'number {k}'} "
            f"(saved: {saved.get(k, 'no')}, here: {here[k][1] if k in here else 'no'})"
            for k in {**here, **saved}
            if k not in here or saved.get(k) != here[k][1]
        ]
        if list(saved.values())[_LOSS_SCALE:] == [shape for _, shape in here.values()]:
            raise ValueError(
                f"The variables saved for the optimizer are those of '{self.name}' within Keras' "
                "LossScaleOptimizer, as a model of mixed_float16 has it: call "
                'keras.config.set_dtype_policy("mixed_float16") before loading the model'
            )
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            hint = "" if self.built else (
                ". It has no state yet: call optimizer.build(model.trainable_variables) first"
            )  # fmt: skip
            raise ValueError(
                f"The variables saved for the optimizer are not those of '{self.name}', which has "
                f"{len(here)} where {len(saved)} were saved. They differ in {', '.join(wrong[:5])}"
                f"{more}{hint}. Policy, averaging and which layers are trainable must be the same. "
                "To load a model's weights alone: keras.saving.load_model(path, compile=False), or "
                "model.load_weights before compiling it or with skip_mismatch=True."
            )
        super().load_own_variables(store)

    def _with_count(self, store):
        """Saved variables, and the count of steps that rules without moments did not have once."""
        here = [v.path for v in self.variables]
        if self._slots is None or len(store.keys()) != len(here) - 1:
            return store
        values = [store[str(k)] for k in range(len(here) - 1)]
        values.insert(here.index(self._slots.shared["count"].path), values[0])  # of iterations
        return {str(k): value for k, value in enumerate(values)}

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are of the settings, without state, as of other Keras optimizers."""
        return type(self).from_config, (self.get_config(),)

    def get_config(self) -> dict[str, Any]:
        """The settings, the policy's weights included; JSON can hold it."""
        policy = self.policy
        return super().get_config() | {
            "policy": {
                "rule": policy.rule.get_config(),
                "weights": [_encoded(w) for w in policy.weights],
                "card": policy.card,
            },
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects=None) -> AmalgamatedOptimizer:
        """The optimizer of a `get_config`.

        Raises:
            ValueError: If the policy in it is none.
        """
        config = dict(config)
        if isinstance(config.get("policy"), dict):
            config["policy"] = _policy_from_config(config["policy"])
        rate = config.get("learning_rate")
        if config.get("warmup_learning_rate") and isinstance(rate, float) and rate:
            config["warmup_learning_rate"] /= rate  # of a time when no rate scaled the warm-up
        return super().from_config(config, custom_objects=custom_objects)


def _dtype() -> str:
    """The dtype of state and steps: float32 in mixed precision too."""
    return "float64" if keras.config.floatx() == "float64" else "float32"


def _initial_state(policy: Policy) -> State:
    """The state of one coordinate, of one tensor and of all, before the first step.

    A rule starts all coordinates alike, and all tensors: what it does to a scalar is then enough.

    Raises:
        ValueError: If the weights do not fit the rule.
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
        tensor = ops.cast(tensor, _dtype())
    return ops.convert_to_numpy(tensor)


def _with_decay(rule: UpdateRule, rate, exclude: tuple[str, ...] = ()) -> UpdateRule:
    """The rule with this weight decay, as it is where that is its own; `exclude` as well."""
    own = layer(rule, Decayed)
    if not exclude and decaying(rule) == (0 if rate is None else rate):
        return rule
    return decayed(rule, rate or 0, (*(own.exclude if own else ()), *exclude))


def _name(k: int, variable) -> str:
    """Variable number k in a layout; models alike but for Keras' numbers have the same names."""
    return f"[{k}] {re.sub(r'_[0-9]+(?=/|$)', '', _path(variable))}"


def _path(variable) -> str:
    return getattr(variable, "path", variable.name)


def _fitted(gradient, variable):
    """A gradient as a tensor of the state's dtype and of the variable's shape.

    Raises:
        ValueError: If it has another.
    """
    gradient = ops.cast(tensor_of(gradient), _dtype())
    try:
        shape = tuple(gradient.shape)
    except ValueError:  # TensorFlow's, of unknown rank
        return gradient
    if None in shape or shape == tuple(variable.shape):
        return gradient
    try:
        if np.broadcast_shapes(shape, variable.shape) == tuple(variable.shape):
            return ops.broadcast_to(gradient, variable.shape)
    except ValueError:
        pass
    raise ValueError(
        f"The gradient of {_path(variable)} must have its shape {tuple(variable.shape)}. "
        f"Received: {shape}"
    )


def _encoded(array: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "base64": data}


def _decoded(config: dict[str, Any]) -> np.ndarray:
    data = base64.b64decode(config["base64"], validate=True)
    return np.frombuffer(data, config["dtype"]).reshape(config["shape"])


def _policy_from_config(config: dict[str, Any]) -> Policy:
    try:
        weights = [_decoded(w) for w in config["weights"]]
        policy = Policy(rule_from_config(config["rule"]), weights, dict(config["card"]))
        _initial_state(policy)
    except (KeyError, TypeError, ValueError) as error:
        raise PolicyError(f"The optimizer's policy cannot be read: {error!r}") from error
    return policy
