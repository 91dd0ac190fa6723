"""The one interface of everything that updates parameters, teacher or policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, NamedTuple

from l2o.rules.layout import Layout

REGISTRY: dict[str, type[UpdateRule]] = {}


class State(NamedTuple):
    """What a rule remembers between steps; all zero at rest.

    Attributes:
        coordinate: Tensors [..., D], one column a coordinate.
        tensor: Tensors [..., K], one column a parameter tensor.
        shared: Tensors of any shape that belong to all coordinates; "count" is a float scalar, the
            number of gradients seen.
    """

    coordinate: dict[str, Any]
    tensor: dict[str, Any]
    shared: dict[str, Any]


class Horizon(NamedTuple):
    """How long a fit is, where that is known: scalars; None or 0 where it is not.

    Attributes:
        steps: Of the whole fit.
        epochs: How often it sees each example.
    """

    steps: Any = None
    epochs: Any = None


@dataclass(frozen=True)
class UpdateRule:
    """An update rule as pure functions on one flat vector.

    A rule is a frozen dataclass of its settings. Weights (empty for teachers) and state come in
    as arguments and go out as results, so that a meta-gradient, a perturbation or a recomputation
    needs nothing assigned and put back.

    Attributes:
        coordinatewise: Whether it may be run on blocks of coordinates.
        tensorwise: Whether it may be run on blocks of tensors, by `sums` and `chosen`.
        scaled: Whether it is meta-trained in randomly scaled coordinates (Lv et al. 2017).
        needs_horizon: Whether the number of steps must be known.
    """

    name: ClassVar[str] = ""
    coordinatewise: ClassVar[bool] = True
    tensorwise: ClassVar[bool] = False
    scaled: ClassVar[bool] = False
    needs_horizon: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if cls.name:
            REGISTRY[cls.name] = cls

    def initial_weights(self, seed: int) -> list:
        """Fresh weights, a list of tensors; empty for an analytical rule."""
        return []

    def weight_shapes(self) -> Iterator[tuple[int, ...]]:
        """The shapes of the weights, one by one: a file may ask for more than can be made."""
        return (tuple(w.shape) for w in self.initial_weights(0))

    def initial_state(self, layout: Layout) -> State:
        """The state before the first step, all zero: what starts elsewhere is set at count 0."""
        raise NotImplementedError

    def observe(self, weights: list, gradient, parameters, state: State, layout: Layout) -> State:
        """Sees a gradient [D] of the warm-up: moments and count move, recurrent memory rests."""
        raise NotImplementedError

    def update(
        self,
        weights: list,
        gradient,
        parameters,
        state: State,
        layout: Layout,
        horizon: Horizon | None = None,
    ) -> tuple[Any, State]:
        """One step.

        Args:
            weights: As from `initial_weights`.
            gradient: [D].
            parameters: [D], where the gradient was taken.
            state: As from `initial_state`.
            layout: Shapes and names of the tensors in the vector.
            horizon: How long the fit is, where that is known.

        Returns:
            The step [D], to be subtracted from the parameters, and the new state.
        """
        raise NotImplementedError

    def sums(self, gradient, parameters, state: State, layout: Layout):
        """What a tensorwise rule must know of each tensor before a step, [S, K]: sums over it.

        Args:
            gradient, parameters, state, layout: As for `update`, of some of the tensors.
        """
        raise NotImplementedError

    def chosen(self, weights: list, sums, state: State, layout: Layout, horizon: Horizon | None):
        """What a tensorwise rule chooses for each tensor, [C, K].

        `update` takes it as a last argument, `chosen`, as `Layout.over` spreads it, and makes it
        itself where it is not given.

        Args:
            sums: As from `sums`, of all tensors.
            weights, state, layout, horizon: As for `update`; no more than the shared state is used.
        """
        raise NotImplementedError

    def evaluated(self, parameters, state: State):
        """The parameters [D] that the rule wants to be scored at."""
        return parameters

    def shrinkage(self, parameters, layout: Layout):
        """What weight decay takes of the parameters in a step, [D]; 0 for none."""
        return 0.0

    def get_config(self) -> dict[str, Any]:
        """The settings, as JSON can hold them; `rule_from_config` brings the rule back."""
        return {"rule": self.name} | {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


def _plain(value):
    if isinstance(value, UpdateRule):
        return value.get_config()
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _rich(value):
    if isinstance(value, dict) and "rule" in value:
        return rule_from_config(value)
    if isinstance(value, list):
        return tuple(_rich(item) for item in value)
    return value


def rule_from_config(config: dict[str, Any]) -> UpdateRule:
    """The rule of a `get_config`.

    Raises:
        ValueError: If the rule or one of its settings is not known, or of the wrong kind.
    """
    settings = dict(config)
    name = settings.pop("rule", None)
    if name not in REGISTRY:
        raise ValueError(f"Unknown rule. Allowed: {', '.join(sorted(REGISTRY))}. Received: {name}")
    kinds = {f.name: str(getattr(f.type, "__name__", f.type)) for f in fields(REGISTRY[name])}
    if unknown := sorted(settings.keys() - kinds.keys()):
        raise ValueError(f"Rule '{name}' has no settings {', '.join(unknown)}")
    settings = {key: _rich(value) for key, value in settings.items()}
    for key, value in settings.items():
        if not _fits(value, kinds[key]):
            raise ValueError(f"{key} of rule '{name}' must be {kinds[key]}. Received: {value!r}")
    try:
        return REGISTRY[name](**settings)
    except TypeError as error:
        raise ValueError(f"Settings of rule '{name}' cannot be: {error}") from error


def _fits(value: Any, kind: str) -> bool:
    """Whether a setting can be what its field's annotation says; no whole number is below 0."""
    if kind == "bool":
        return type(value) is bool
    if kind == "int":
        return type(value) is int and value >= 0
    if kind == "float":
        return type(value) in (int, float) and value == value
    return not isinstance(value, bool) and (kind != "str" or isinstance(value, str))
