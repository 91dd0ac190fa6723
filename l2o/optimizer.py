"""AmalgamatedOptimizer: a Keras optimizer around any trained policy or teacher.

A rule is pure and works on one flat vector; a Keras optimizer owns variables. `l2o.step` packs
them, and their state, into a few vectors; files hold the state of each variable by itself.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from l2o.backends import (
    check_backend,
    fitted,
    known_to_keras,
    no_grad,
    outside_graphs,
    runs_eagerly,
    summed_over_replicas,
    tensor_of,
)
from l2o.policies.checkpoint import Policy, load_policy
from l2o.policies.config import policy_config, policy_from_config
from l2o.rules import Horizon, UpdateRule, averaged, averaging, decaying, warming
from l2o.rules.decayed import WEIGHT_DECAY_LIMIT, with_decay
from l2o.rules.warmup import with_warmup
from l2o.saved import check_likely, checked_early
from l2o.slots import Slots, check_variables, initial_state, made
from l2o.step import move, summed

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
        steps: Updates of the whole fit, for a policy or a schedule that heeds it, counted from the
            optimizer's first; after the last one such a policy stays at its smallest steps. None
            is not known.
        epochs: How often the fit sees each example, likewise.
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
        steps: int | None = None,
        epochs: float | None = None,
        **kwargs,
    ):
        check_backend()
        policy = policy if isinstance(policy, Policy) else Policy(policy)
        if not isinstance(policy.rule, UpdateRule):
            raise ValueError(
                "policy must be a Policy or an UpdateRule; AmalgamatedOptimizer.load(path) reads "
                f"one. Received: {policy.rule!r}"
            )
        rule = policy.rule if averaging is None else averaged(policy.rule, averaging)
        horizon = _horizon(rule, steps, epochs)
        kwargs.setdefault("weight_decay", decaying(rule) or None)
        super().__init__(
            float(learning_rate) if isinstance(learning_rate, int) else learning_rate, **kwargs
        )
        rule = with_decay(rule, self.weight_decay)
        if decaying(rule) > WEIGHT_DECAY_LIMIT:
            warnings.warn(
                f"weight_decay={self.weight_decay} is multiplied by learning_rate, which is about "
                f"1 for a policy and not 1e-3: more than {WEIGHT_DECAY_LIMIT} is a lot",
                stacklevel=2,
            )
        rule = with_warmup(rule, warmup_steps, warmup_learning_rate)
        self._policy = replace(policy, rule=rule)
        self._horizon = horizon
        self._start = initial_state(self._policy)
        self._kept: tuple[np.ndarray, ...] = ()  # what was loaded before there was a state
        self._skips_seen = 0  # at the last look
        self._fitted = 0  # steps at the end of the last fit

    @classmethod
    def load(cls, path_or_name: Path | str, **kwargs) -> AmalgamatedOptimizer:
        """An optimizer with the policy of a policy directory, or with a shipped policy.

        Args:
            path_or_name: The directory, or the policy's name.
            **kwargs: As for the class.

        Raises:
            PolicyError: If the directory cannot be read, or there is neither that nor such a name.
        """
        return cls(load_policy(path_or_name), **kwargs)

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

    def set_horizon(self, steps: int | None = None, epochs: float | None = None) -> bool:
        """Sets `steps` and `epochs` anew, of the whole fit, for steps that are compiled later.

        `l2o.FitHorizon` calls it, and has the model compile its step anew.

        Returns:
            Whether they are others than before.

        Raises:
            ValueError: If one is not above 0, or the rule needs the steps and has none.
        """
        before, self._horizon = self._horizon, _horizon(self._policy.rule, steps, epochs)
        return self._horizon != before

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
        check_variables(variables)
        variables = list({self._var_key(v): v for v in variables}.values())
        # Within a function, TensorFlow would set new variables to zero after all else.
        with outside_graphs() if self._kept else nullcontext():
            policy, start, kept = self._policy, self._start, self._kept
            saved = checked_early(self, kept, policy, start, variables) if kept else []
            super().build(variables)
            self._slots = made(self, policy, start, variables)
            if saved:
                self._slots.put(saved, self._variables)
        self._kept = ()

    def apply(self, grads, trainable_variables=None) -> None:
        """One step; see `keras.optimizers.Optimizer.apply`.

        Raises:
            ValueError: If gradients and variables differ in number, or in shape.
        """
        grads = list(grads)
        if trainable_variables is not None:
            variables = list(trainable_variables)
            grads, trainable_variables = summed(grads, variables, self._var_key)
        eager = runs_eagerly()
        if eager:
            self._warn_of_skipped_steps()  # or none would be seen that follows a reset
        super().apply(grads, trainable_variables)
        if eager:
            self._warn_of_skipped_steps()

    def finalize_variable_values(self, var_list) -> None:
        """Called by `fit` at its end."""
        super().finalize_variable_values(var_list)
        steps = int(ops.convert_to_numpy(self.iterations))
        if steps <= self._fitted:  # set back to zero: as many may have been skipped again
            self._skips_seen = 0
        self._fitted = steps
        self._warn_of_skipped_steps()
        if 0 < steps <= self.warmup_steps:
            warnings.warn(
                f"{self.name}: all {steps} steps so far were warm-up, which is plain SGD; the "
                f"policy takes over after warmup_steps={self.warmup_steps}",
                stacklevel=3,
            )

    def _warn_of_skipped_steps(self) -> None:
        """Warns once, and again if the variables have been set back to zero since."""
        seen, self._skips_seen = self._skips_seen, self.skipped_steps
        if self._skips_seen < seen:
            self._fitted = 0
        if self._skips_seen and not 0 < seen <= self._skips_seen:
            steps = int(ops.convert_to_numpy(self.iterations))
            warnings.warn(
                f"{self.name}: gradients were not finite; {self._skips_seen} of {steps} steps "
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
            grads = summed_over_replicas(self, grads, trainable_variables)
            everything = self._trainable_variables
            gradients: list = [None] * len(everything)
            for gradient, variable in zip(grads, trainable_variables, strict=True):
                gradients[self._get_variable_index(variable)] = fitted(gradient, variable)
            rule = with_decay(self._policy.rule, self.weight_decay, self._excluded())
            weights, held, groups = self._policy.weights, self._slots.held, self._slots.groups
            move(self, rule, groups, weights, gradients, everything, held, learning_rate,
                 self._horizon)  # fmt: skip

    def _excluded(self) -> tuple[str, ...]:
        """The names of variables that `exclude_from_weight_decay` was told of."""
        told = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")
        if not self.weight_decay or not any(getattr(self, name, None) for name in told):
            return ()
        pairs = zip(self._slots.layout.names, self._trainable_variables, strict=True)
        return tuple(name for name, v in pairs if not self._use_weight_decay(known_to_keras(v)))

    def save_own_variables(self, store) -> None:
        """Writes all state; see `keras.optimizers.Optimizer.save_own_variables`."""
        if self.built:
            values = self._slots.contents(self._variables)
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
            self._slots.take(saved, self._variables)
        elif saved:
            own = self._variables
            check_likely(self, saved, self._policy, self._start)
            for variable, value in zip(own, saved, strict=False):
                variable.assign(value)
            self._kept = tuple(saved[len(own) :])

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are of the settings, without state, as of other Keras optimizers."""
        return type(self).from_config, (self.get_config(),)

    def get_config(self) -> dict[str, Any]:
        """The settings, as JSON can hold them; the policy's weights too unless they are shipped."""
        horizon = {name: x for name, x in self._horizon._asdict().items() if x is not None}
        return super().get_config() | {"policy": policy_config(self.policy)} | horizon

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


def _horizon(rule: UpdateRule, steps: int | None, epochs: float | None) -> Horizon:
    """What a rule is told, checked."""
    for name, value in (("steps", steps), ("epochs", epochs)):
        if value is not None and not (isinstance(value, Real) and 0 < value < math.inf):
            raise ValueError(f"{name} must be a number above 0. Received: {value!r}")
    if rule.needs_horizon and steps is None:
        raise ValueError(
            "A schedule around an optimizer's rule needs the steps of the fit: give steps=, or "
            f"cosine(steps=1000) has its own. Received: {rule!r}"
        )
    return Horizon(steps and float(steps), epochs and float(epochs))
