"""Everything a person may choose about an amalgamation, and the phases that it comes to."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from math import inf
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from l2o.amalgamation.curriculum import Curriculum
from l2o.amalgamation.episodes import Evolution
from l2o.amalgamation.losses import SCHEMES
from l2o.amalgamation.perturbation import KINDS, Perturbation
from l2o.amalgamation.plan import POLICIES, Meta, Phase
from l2o.amalgamation.presets import CURRICULA, ESTIMATORS, RECIPES, WHAT, WINDOWS
from l2o.amalgamation.unroll import Teacher
from l2o.policies.checkpoint import Policy, load_policy
from l2o.policies.shipped import did_you_mean
from l2o.rules import Choice, UpdateRule, core, get_pool
from l2o.runs.directory import differences

STRATEGIES = ("choice", "mean", "minmax", "none")  # that come with the library


@dataclass(frozen=True)
class Settings:
    """All of them; the paper's by default.

    Attributes:
        preset: The name of those in `PRESETS` that they began as.
        scheme: How teachers are amalgamated: "choice" (train a policy that mixes them, then distil
            it), "mean" or "minmax" (imitate the mean or the worst-imitated of them), "none" (meta
            loss alone).
        teachers: A pool's name, or some teachers, each by its name or as a rule.
        policy: What is trained, and what "choice" distils into: a name in `POLICIES`, or a rule.
        finetune: A policy to begin with, its directory, or a shipped one's name, in the phase that
            trains its kind; its averaging and weight decay stay behind.
        curriculum: How long, and on what unrolls.
        meta: The rest.

    Raises:
        ValueError: For values that cannot be or do not go together.
    """

    preset: str = "paper"
    scheme: str = "choice"
    teachers: str | tuple[str | UpdateRule, ...] = "large"
    policy: str | UpdateRule = "rnnprop"
    finetune: str | Path | Policy | None = None
    curriculum: Curriculum = Curriculum()
    meta: Meta = Meta()

    def __post_init__(self):
        if self.scheme not in (allowed := ("choice", *SCHEMES)):
            raise _unknown("scheme", allowed, self.scheme)
        self._phases()

    @property
    def rule(self) -> UpdateRule:
        """The policy that is trained."""
        if isinstance(self.policy, UpdateRule):
            if not next(iter(self.policy.weight_shapes()), None):
                raise ValueError(f"policy must have weights to train. Received: {self.policy}")
            return self.policy
        if self.policy not in [*POLICIES]:
            received = self.policy if isinstance(self.policy, str) else type(self.policy).__name__
            allowed = [*POLICIES, "or a rule (finetune= begins with a trained policy)"]
            raise _unknown("policy", allowed, received)
        return POLICIES[self.policy]()

    def phases(self) -> tuple[Phase, ...]:
        """What is trained, in order.

        Raises:
            PolicyError: If the policy to begin with cannot be read.
            ValueError: If this run trains no such policy.
        """
        phases, policy, where = self._phases(), self.finetune, ""
        if policy is None:
            return phases
        if not isinstance(policy, Policy):
            policy, where = load_policy(policy), f" in {policy}"
        own = core(policy.rule)
        if not any(phase.rule == own for phase in phases):
            kinds = [p.rule for p in phases if p.rule.name == own.name]
            trained = " and ".join(p.rule.name for p in phases)
            raise ValueError(
                f"This run trains {trained}; it cannot begin with the policy{where}, "
                f"which is {own.name}" + "".join(f" with {_differing(own, kind)}" for kind in kinds)
            )
        start = tuple(policy.weights)
        return tuple(replace(p, start=start) if p.rule == own else p for p in phases)

    def _phases(self) -> tuple[Phase, ...]:
        rule, teachers, schedule = self.rule, get_pool(self.teachers), self.curriculum.schedule
        if self.scheme == "choice":
            return (
                Phase("choice", Choice(teachers), "none", self.curriculum.choice),
                Phase("policy", rule, "mean", schedule, teachers=None),
            )
        imitated = () if self.scheme == "none" else tuple(Teacher(t, []) for t in teachers)
        return (Phase("policy", rule, self.scheme, schedule, imitated),)


PRESETS = {name: Settings(name, curriculum=c) for name, c in CURRICULA.items()}


@dataclass(frozen=True)
class Shorthands:
    """Choices that stand for others.

    Attributes:
        estimator: Of the meta-gradient: "backprop", through truncations, or "es", an evolution
            strategy, with the preset's curriculum for that.
        recipe: In place of policy, scheme, teachers and estimator: "general", an optimizer for any
            network, tensorchoice by an evolution strategy on families of small problems; or one
            that the paper compares with: "original", "scale" or "rnnprop" on the meta loss alone,
            or "stronger", rnnprop that also imitates Adam (Chen et al. 2020).
        output_scale: Factor of the policy's output, which for rnnprop is its largest step; scale
            has none.
        updates: One stage of so many meta-updates in a single period, of as many trajectories for
            the Choice policy, with the first of unrolls, alphas and choice_unrolls; validated on
            that unroll unless last_validation is chosen. The Choice policy's period has no warm-up,
            unless choice_cold_periods is 0.
    """

    estimator: str | None = None
    recipe: str | None = None
    output_scale: float | None = None
    updates: int | None = None


PARTS = (Settings, Shorthands, Curriculum, Meta, Evolution, Perturbation)
# Of every choice, what it may be.
CHOICES = {
    f.name: str(f.type).partition(" | None")[0]
    for part in PARTS
    for f in fields(part)
    if f.name not in ("preset", "curriculum", "meta", "evolution", "kind")
}
_WORDS: dict[str, tuple[Any, str]] = {
    "str": (str, "a name"),
    "bool": (bool, "True or False"),
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "tuple[int, ...]": (Integral, "whole numbers"),
    "tuple[float, ...]": (Real, "numbers"),
}
_OF_PERTURBATION = ("magnitude", "absolute", "attack_steps")
_LONE_PERIOD = ("period", "min_periods", "max_periods", "patience")


def get_preset(name: str) -> Settings:
    """The settings of that name: "paper", "cpu" or "smoke".

    Raises:
        ValueError: If there are none.
    """
    if name not in PRESETS:
        raise _unknown("preset", PRESETS, name)
    return PRESETS[name]


def with_choices(settings: Settings, choices: Mapping[str, Any]) -> Settings:
    """Settings with those that are chosen, at whatever depth they lie.

    Args:
        settings: To begin with.
        choices: By name, one in `CHOICES`; `None` leaves what there is. Where several values may
            be, a list or a single one will do; NumPy's numbers are numbers.

    Raises:
        TypeError: For a name that does not exist.
        ValueError: For values that cannot be or do not go together.
    """
    check_names(choices, CHOICES)
    chosen = {k: _checked(k, value) for k, value in choices.items() if value is not None}
    if recipe := chosen.pop("recipe", None):
        if recipe not in RECIPES:
            raise _unknown("recipe", RECIPES, recipe)
        if given := [name for name in WHAT if name in chosen]:
            raise ValueError(f"recipe says what is trained, so {', '.join(given)} cannot be set")
        smoke = {f.name for f in fields(Curriculum)} if settings.preset == "smoke" else ()
        chosen = {k: v for k, v in RECIPES[recipe].items() if k not in smoke} | chosen
    scheme = chosen.get("scheme", settings.scheme)
    given = [name for name in chosen if name.startswith("choice_")]
    if given and scheme != "choice":
        raise ValueError(
            f"{', '.join(given)} cannot be set with scheme {scheme}: there is no Choice policy"
        )
    settings = _estimated(settings, chosen)
    if "updates" in chosen:
        chosen |= _one_period(settings.curriculum, chosen)
    chosen["perturbation"] = _perturbation(settings.meta.perturbation, chosen)
    scale, settings = chosen.pop("output_scale", None), _replaced(settings, chosen)
    return settings if scale is None else replace(settings, policy=_scaled(settings.rule, scale))


def check_names(choices: Iterable[str], allowed: Collection[str]) -> None:
    """Raises TypeError if there is a choice that is not allowed."""
    if unknown := sorted(set(choices) - set(allowed)):
        near = "".join(did_you_mean(name, allowed) for name in unknown)
        raise TypeError(
            f"Unknown settings: {', '.join(unknown)}. {near}Allowed: {', '.join(sorted(allowed))}"
        )


def parsed(text: str) -> Any:
    """The value that a word of a command line means: 3, 0.5, True, a name; several after commas."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return tuple(map(parsed, text.split(","))) if "," in text else text


def _checked(name: str, value: Any) -> Any:
    """A value that is of its setting's kind, in Python's own types, which JSON has."""
    kind, value = CHOICES[name], _without_numpy(value)
    if kind not in _WORDS:
        return value
    several = kind.startswith("tuple")
    if several:
        entries = value if isinstance(value, (list, tuple)) else (value,)
        value = tuple(map(_without_numpy, entries))
    allowed, words = _WORDS[kind]
    for entry in value if several else (value,):
        if not isinstance(entry, allowed) or (isinstance(entry, bool) and kind != "bool"):
            raise ValueError(f"{name} must be {words}. Received: {value!r}")
    return value


def _replaced(part: Any, chosen: dict[str, Any]) -> Any:
    """A dataclass of settings with those that are chosen, its parts' too."""
    changes = {f.name: chosen[f.name] for f in fields(part) if f.name in chosen}
    for f in fields(part):
        if isinstance(inner := getattr(part, f.name), (Curriculum, Meta)):
            changes[f.name] = _replaced(inner, chosen)
    return replace(part, **changes)


def _one_period(curriculum: Curriculum, chosen: dict[str, Any]) -> dict[str, Any]:
    """The choices that `updates` stands for."""
    updates = chosen["updates"]
    if updates < 1:
        raise ValueError(f"updates must be at least 1. Received: {updates}")
    if given := [name for name in _LONE_PERIOD if name in chosen]:
        raise ValueError(f"updates makes one period of all, so {', '.join(given)} cannot be set")
    now = {f.name: chosen.get(f.name, getattr(curriculum, f.name)) for f in fields(curriculum)}
    first = {name: now[name][:1] for name in ("unrolls", "alphas", "choice_unrolls")}
    unroll = sum(first["unrolls"])
    each = max(unroll // max(now["truncation"], 1), 1)
    if updates % each:
        raise ValueError(
            f"updates must be a multiple of the {each} updates of an unroll of {unroll} "
            f"steps. Received: {updates}"
        )
    lone = {"min_periods": 1, "max_periods": 1, "patience": 1}
    last = {"last_validation": chosen.get("last_validation", unroll)}
    return first | last | lone | {"period": updates // each * now["meta_batch"]}


def _estimated(settings: Settings, chosen: dict[str, Any]) -> Settings:
    """The settings with the estimator that is chosen, which is taken out of the choices."""
    name = chosen.pop("estimator", None)
    there, meta = settings.meta.evolution, settings.meta
    if name not in (None, *ESTIMATORS):
        raise _unknown("estimator", ESTIMATORS, name)
    if name == "backprop" and there:
        raise ValueError("These settings are for an evolution strategy, not for backprop")
    parts = {f.name: chosen.pop(f.name) for f in fields(Evolution) if f.name in chosen}
    if name == "es" and there is None:
        there = Evolution()
        if settings.preset in WINDOWS:
            settings = replace(settings, curriculum=WINDOWS[settings.preset])
    if parts and there is None:
        raise ValueError(f"{', '.join(parts)}: only with estimator es")
    return replace(settings, meta=replace(meta, evolution=there and replace(there, **parts)))


def _perturbation(there: Perturbation | None, chosen: dict[str, Any]) -> Perturbation | None:
    """The perturbation that its parts make."""
    kind = chosen.get("perturbation", there)
    parts = {name: chosen[name] for name in _OF_PERTURBATION if name in chosen}
    if isinstance(kind, Perturbation):
        return replace(kind, **parts)
    if kind in (None, "none"):
        if parts:
            raise ValueError("magnitude, absolute and attack_steps need a perturbation")
        return None
    if kind not in KINDS:
        raise _unknown("perturbation", ("none", *KINDS), kind)
    if "magnitude" not in parts:
        raise ValueError(f"perturbation {kind} needs a magnitude")
    return Perturbation(kind, **parts)


def _scaled(rule: UpdateRule, scale: float) -> UpdateRule:
    if "scale" not in {f.name for f in fields(rule)}:
        raise ValueError(f"output_scale is for rnnprop and original. Received: {rule.name}")
    if not 0 < scale < inf:
        raise ValueError(f"output_scale must be a number above 0. Received: {scale}")
    return replace(rule, **{"scale": scale})


def _unknown(what: str, allowed: Any, received: Any) -> ValueError:
    return ValueError(f"Unknown {what}. Allowed: {', '.join(allowed)}. Received: {received}")


def _without_numpy(value: Any) -> Any:
    """Python's own number or list for one of NumPy's, which JSON does not have."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def _differing(there: UpdateRule, asked: UpdateRule) -> str:
    """In which settings two rules of a kind differ."""
    return ", ".join(differences(there.get_config(), asked.get_config()))
