"""Rules around a rule: what warm-up, decay, averaging and schedules have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from keras import ops

from l2o.rules.analytical import zeros
from l2o.rules.base import State, UpdateRule
from l2o.rules.layout import Layout


@dataclass(frozen=True)
class Wrapper(UpdateRule):
    """Another rule's step, made into one of its own.

    Weights are the inner rule's. What a wrapper remembers lies beside the inner state, under
    names that no other rule has; the count is the inner rule's.

    Attributes:
        inner: The other rule.
        rank: A wrapper stands outside of those with a lower rank.
        own: Names of its coordinates' state.
        own_shared: Names of its shared state, scalars.
    """

    inner: UpdateRule
    rank: ClassVar[int] = 0
    own: ClassVar[tuple[str, ...]] = ()
    own_shared: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        if not isinstance(self.inner, UpdateRule):
            raise ValueError(f"{type(self).__name__} needs a rule. Received: {self.inner!r}")
        if any(type(rule) is type(self) for rule in layers(self.inner)):
            raise ValueError(f"{type(self).__name__} is in {self.inner!r} already")

    @property
    def coordinatewise(self) -> bool:  # type: ignore[override]
        return self.inner.coordinatewise

    @property
    def tensorwise(self) -> bool:  # type: ignore[override]
        return self.inner.tensorwise

    @property
    def scaled(self) -> bool:  # type: ignore[override]
        return self.inner.scaled

    @property
    def needs_horizon(self) -> bool:  # type: ignore[override]
        return self.inner.needs_horizon

    def initial_weights(self, seed: int) -> list:
        return self.inner.initial_weights(seed)

    def weight_shapes(self) -> Iterator[tuple[int, ...]]:
        return self.inner.weight_shapes()

    def initial_state(self, layout: Layout) -> State:
        held = self.inner.initial_state(layout)
        if "count" not in held.shared:
            raise ValueError(
                f"{type(self).__name__} needs a rule that counts gradients, in its state's "
                f"shared['count']. Received: {core(self).name}, with {', '.join(held.shared)}"
            )
        own = {name: zeros(layout) for name in self.own}
        own |= {name: ops.zeros(()) for name in self.own_shared}
        return self._joined(held, own)

    def observe(self, weights, gradient, parameters, state, layout):
        held, own = self._parted(state)
        held = self.inner.observe(weights, gradient, parameters, held, layout)
        return self._joined(held, own)

    def sums(self, gradient, parameters, state, layout):
        return self.inner.sums(gradient, parameters, self._parted(state)[0], layout)

    def chosen(self, weights, sums, state, layout, horizon):
        return self.inner.chosen(weights, sums, self._parted(state)[0], layout, horizon)

    def evaluated(self, parameters, state):
        return self.inner.evaluated(parameters, self._parted(state)[0])

    def shrinkage(self, parameters, layout):
        return self.inner.shrinkage(parameters, layout)

    def _joined(self, held: State, own: dict) -> State:
        """The inner rule's state and one's own as one."""
        return State(
            held.coordinate | {name: own[name] for name in self.own},
            held.tensor,
            held.shared | {name: own[name] for name in self.own_shared},
        )

    def _parted(self, state: State) -> tuple[State, dict]:
        """The inner rule's state, and one's own."""
        coordinate, shared = dict(state.coordinate), dict(state.shared)
        own = {name: coordinate.pop(name) for name in self.own}
        own |= {name: shared.pop(name) for name in self.own_shared}
        return State(coordinate, state.tensor, shared), own


def layers(rule: UpdateRule) -> list[UpdateRule]:
    """A rule and what is in it, from outside to the one that wraps nothing."""
    found = [rule]
    while isinstance(found[-1], Wrapper):
        found.append(found[-1].inner)
    return found


def core(rule: UpdateRule) -> UpdateRule:
    """What is left of a rule without its wrappers: what is trained."""
    return layers(rule)[-1]


def layer(rule: UpdateRule, kind: type[Wrapper]):
    """The wrapper of a kind that a rule has, or None."""
    return next((found for found in layers(rule) if type(found) is kind), None)


def checked_state(rule: UpdateRule, given: State, returned: State) -> State:
    """What a rule returned, if it has the tensors of the state that the rule was given.

    Raises:
        ValueError: If not: a condition around the rule would fail with a line about itself.
    """
    wanted, found = _tensors(given), _tensors(returned)
    if wanted == found:
        return returned
    name = core(rule).name or type(core(rule)).__name__
    error = ValueError(
        f"Rule '{name}' must return a state with the tensors of the one that it is given. "
        f"Missing: {', '.join(sorted(wanted - found)) or 'none'}; "
        f"not given: {', '.join(sorted(found - wanted)) or 'none'}"
    )
    # Or Keras wraps the line in many about the condition.
    error._keras_call_info_injected = True  # type: ignore[attr-defined]
    raise error


def _tensors(state: State) -> set[str]:
    if not isinstance(state, State):
        return {f"{type(state).__name__} in place of a State"}
    return {f"{part}['{name}']" for part, held in state._asdict().items() for name in held}


def rewrapped(
    rule: UpdateRule, kind: type[Wrapper], wrap: Callable[[UpdateRule], UpdateRule] | None
) -> UpdateRule:
    """A rule with another wrapper of a kind in place of its own, if any.

    Args:
        rule: Any.
        kind: The wrapper's class.
        wrap: Puts the new one around what belongs within it; None for none.
    """
    if isinstance(rule, kind):
        return rewrapped(rule.inner, kind, wrap)
    if isinstance(rule, Wrapper) and (rule.rank > kind.rank or layer(rule, kind)):
        return replace(rule, inner=rewrapped(rule.inner, kind, wrap))
    return rule if wrap is None else wrap(rule)
