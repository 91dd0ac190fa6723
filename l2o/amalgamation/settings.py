"""Everything a person may choose about an amalgamation, under the names of `train.py`'s flags."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import inf
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from l2o.amalgamation.curriculum import PRESETS, Schedule, amalgamation_stages, choice_schedule
from l2o.amalgamation.losses import META_LOSSES
from l2o.amalgamation.perturbation import KINDS, Perturbation
from l2o.amalgamation.plan import POLICIES, Meta, Phase, plan
from l2o.policies.checkpoint import load_policy
from l2o.policies.shipped import policy_path
from l2o.rules import POOLS, UpdateRule, core
from l2o.runs.directory import differences

STRATEGIES = ("choice", "mean", "minmax", "none")
# The learned optimizers that the paper compares with (Section 5).
RECIPES = {
    "original": {"policy": "original", "strategy": "none", "pool": "adam"},
    "scale": {"policy": "scale", "strategy": "none", "pool": "adam"},
    "rnnprop": {"policy": "rnnprop", "strategy": "none", "pool": "adam"},
    "stronger": {"policy": "rnnprop", "strategy": "mean", "pool": "adam"},
}
# What a field's values may be, by its annotation.
_KINDS: dict[str, tuple[Any, str]] = {
    "str": (str, "a name"),
    "bool": (bool, "True or False"),
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "Path": ((str, Path), "a directory"),
    "tuple[int, ...]": (Integral, "whole numbers"),
    "tuple[float, ...]": (Real, "numbers"),
}
_STAGES = ("unrolls", "alphas", "last_validation", "choice_unrolls", "choice_validation")
_OF_CHOICE = ("choice_unrolls", "choice_validation", "choice_cold_periods")
_LONE_PERIOD = ("period", "min_periods", "max_periods", "patience")


@dataclass(frozen=True)
class Settings:
    """The choices; where one is `None`, the preset decides.

    Attributes:
        preset: A name in `PRESETS`.
        strategy: "choice", "mean", "minmax" or "none".
        pool: A name in `POOLS`.
        policy: A name in `POLICIES`: what is trained, and what "choice" distils into.
        output_scale: The policy's largest step for RNNProp, the factor of its output for Original;
            their own by default.
        finetune: Directory of a policy to begin with, or a shipped policy's name: a Choice policy
            is where that phase begins, any other where the last one does.
        unrolls, alphas, last_validation: See `amalgamation_stages`.
        choice_unrolls, choice_validation, choice_cold_periods: See `choice_schedule`.
        updates: One stage of so many meta-updates in a single period, of as many trajectories for
            the Choice policy.
        truncation, period, meta_batch, min_periods, max_periods, patience: See `Schedule`.
        max_repeats, tolerance, validation_trajectories: See `Schedule`.
        perturbation: "none" or a name in `perturbation.KINDS`, in every phase.
        magnitude, absolute, attack_steps: Its.
        seed, learning_rate, clip_ratio, clip_floor, warmup_steps, warmup_rate: See `Meta`.
        scale_limit, scaling, first_order, recompute, held_out, meta_loss: See `Meta`.

    Raises:
        ValueError: For values that cannot be or do not go together.
    """

    preset: str = "cpu"
    strategy: str = "choice"
    pool: str = "large"
    policy: str = "rnnprop"
    output_scale: float | None = None
    finetune: Path | None = None
    unrolls: tuple[int, ...] | None = None
    alphas: tuple[float, ...] | None = None
    last_validation: int | None = None
    choice_unrolls: tuple[int, ...] | None = None
    choice_validation: int | None = None
    choice_cold_periods: int = 1
    updates: int | None = None
    truncation: int | None = None
    period: int | None = None
    meta_batch: int | None = None
    min_periods: int | None = None
    max_periods: int | None = None
    patience: int | None = None
    max_repeats: int | None = None
    tolerance: float | None = None
    validation_trajectories: int | None = None
    perturbation: str = "none"
    magnitude: float | None = None
    absolute: bool = False
    attack_steps: int = 1
    scaling: bool = Meta.scaling
    seed: int = Meta.seed
    learning_rate: float = Meta.learning_rate
    clip_ratio: float = Meta.clip_ratio
    clip_floor: float = Meta.clip_floor
    warmup_steps: int = Meta.warmup_steps
    warmup_rate: float = Meta.warmup_rate
    scale_limit: float = Meta.scale_limit
    first_order: bool = Meta.first_order
    recompute: int = Meta.recompute
    held_out: bool = Meta.held_out
    meta_loss: str = Meta.meta_loss

    def __post_init__(self):
        self._check_kinds()
        for name, allowed in (
            ("preset", PRESETS),
            ("strategy", STRATEGIES),
            ("pool", POOLS),
            ("policy", POLICIES),
            ("perturbation", ("none", *KINDS)),
            ("meta_loss", META_LOSSES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"Unknown {name}. Allowed: {', '.join(allowed)}. "
                    f"Received: {getattr(self, name)}"
                )
        given = [name for name in _LONE_PERIOD if getattr(self, name) is not None]
        if self.updates is not None:
            if self.updates < 1:
                raise ValueError(f"updates must be at least 1. Received: {self.updates}")
            if given:
                raise ValueError(
                    f"updates makes one period of all, so {', '.join(given)} cannot be set"
                )
        given = [n for n in _OF_CHOICE if getattr(self, n) != getattr(Settings, n)]
        if self.strategy != "choice" and given:
            raise ValueError(
                f"{', '.join(given)} cannot be set with strategy {self.strategy}: there is no "
                "Choice policy"
            )
        if self.output_scale is not None:
            if self.policy == "scale":
                raise ValueError("output_scale is for rnnprop and original. Received: scale")
            if not 0 < self.output_scale < inf:
                raise ValueError(
                    f"output_scale must be a number above 0. Received: {self.output_scale}"
                )
        self.schedules()
        self.meta()

    @classmethod
    def of(cls, choices: dict[str, Any]) -> Settings:
        """Settings from a dictionary that may hold more.

        Where several values may be, a list or a single one will do.
        """
        plain = {}
        for f in fields(cls):
            if f.name in choices:
                value = _without_numpy(choices[f.name])
                if f.type.startswith("tuple") and value is not None:
                    several = value if isinstance(value, (list, tuple)) else (value,)
                    value = tuple(map(_without_numpy, several))
                plain[f.name] = value
        return cls(**plain)

    def meta(self) -> Meta:
        """The settings of the meta-training."""
        names = {f.name for f in fields(Meta)} & {f.name for f in fields(self)} - {"perturbation"}
        shared = {name: getattr(self, name) for name in names}
        return Meta(**shared, perturbation=self._perturbation())

    def schedules(self) -> tuple[Schedule, Schedule | None]:
        """The curricula of the policy and, where there is one, of the Choice policy."""
        preset = PRESETS[self.preset]
        names = {f.name for f in fields(Schedule)} & {f.name for f in fields(self)}
        changes = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        unrolls, alphas, last, choice_unrolls, choice_validation = (
            getattr(preset if getattr(self, name) is None else self, name) for name in _STAGES
        )
        if self.updates is not None and unrolls:
            unrolls, alphas, choice_unrolls = unrolls[:1], alphas[:1], choice_unrolls[:1]
            last = unrolls[0] if self.last_validation is None else last
            changes |= self._one_period(unrolls[0])
        stages = amalgamation_stages(unrolls, alphas, last)
        schedule = replace(preset.schedule, stages=stages, **changes)
        if self.strategy != "choice":
            return schedule, None
        try:
            return schedule, choice_schedule(
                schedule,
                choice_unrolls,
                choice_validation,
                self.choice_cold_periods,
            )
        except ValueError as error:
            raise ValueError(f"Schedule of the Choice policy: {error}") from error

    def phases(self) -> tuple[Phase, ...]:
        """What is trained, in order.

        Raises:
            PolicyError: If the policy to begin with cannot be read.
            ValueError: If this run trains no such policy.
        """
        scale = {} if self.output_scale is None else {"scale": self.output_scale}
        rule = POLICIES[self.policy](**scale)
        phases = plan(self.strategy, self.pool, *self.schedules(), rule)
        if self.finetune is None:
            return phases
        policy = load_policy(policy_path(self.finetune))
        own = core(policy.rule)
        if not any(phase.rule == own for phase in phases):
            kinds = [p.rule for p in phases if p.rule.name == own.name]
            trained = " and ".join(p.rule.name for p in phases)
            raise ValueError(
                f"This run trains {trained}; it cannot begin with the policy in {self.finetune}, "
                f"which is {own.name}" + "".join(f" with {_differing(own, kind)}" for kind in kinds)
            )
        start = tuple(policy.weights)
        return tuple(replace(p, start=start) if p.rule == own else p for p in phases)

    def _check_kinds(self) -> None:
        for f in fields(self):
            value, (kind, _, optional) = getattr(self, f.name), f.type.partition(" | ")
            if value is None and optional:
                continue
            several = kind.startswith("tuple")
            allowed, words = _KINDS[kind]
            entries = value if several and isinstance(value, tuple) else (value,)
            for entry in entries:
                if not isinstance(entry, allowed) or (isinstance(entry, bool) and kind != "bool"):
                    raise ValueError(f"{f.name} must be {words}. Received: {value!r}")

    def _perturbation(self) -> Perturbation | None:
        if self.perturbation != "none":
            if self.magnitude is None:
                raise ValueError(f"perturbation {self.perturbation} needs a magnitude")
            return Perturbation(self.perturbation, self.magnitude, self.absolute, self.attack_steps)
        if self.magnitude is not None or self.absolute or self.attack_steps != 1:
            raise ValueError("magnitude, absolute and attack_steps need a perturbation")
        return None

    def _one_period(self, unroll: int) -> dict[str, int]:
        schedule = PRESETS[self.preset].schedule
        truncation = self.truncation or schedule.truncation
        each = max(unroll // truncation, 1)
        if self.updates % each:
            raise ValueError(
                f"updates must be a multiple of the {each} updates of an unroll of {unroll} "
                f"steps. Received: {self.updates}"
            )
        period = self.updates // each * (self.meta_batch or schedule.meta_batch)
        return {"period": period, "min_periods": 1, "max_periods": 1, "patience": 1}


def _without_numpy(value: Any) -> Any:
    """Python's own number or list for one of NumPy's, which JSON does not have."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def _differing(there: UpdateRule, asked: UpdateRule) -> str:
    """In which settings two rules of a kind differ."""
    return ", ".join(differences(there.get_config(), asked.get_config()))
