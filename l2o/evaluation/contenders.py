"""Naming what is evaluated: policies, teachers, Keras optimizers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from l2o.checkpoint import DESCRIPTION, PolicyError, fingerprint, load_policy
from l2o.evaluation.steppers import KerasStepper, RuleStepper, Stepper
from l2o.rules import TEACHERS, TUNED_RATES, UpdateRule, averaged, averaging, get_teacher
from l2o.shipped import check_trained, did_you_mean, policy_path, pretrained

ORACLE = "oracle"
_KERAS = "keras:"


class ContenderError(ValueError):
    """A name that stands for no optimizer; the message says in one line what would."""


@dataclass(frozen=True)
class Contender:
    """An optimizer that is evaluated.

    Attributes:
        bare_name: In tables and figures, but for what averaging and decay add to it.
        bare_origin: A digest of rule, settings and weights, but for averaging and decay.
        build: Makes a stepper of a share of averaging; one serves one network.
        replicate: Which training of the policy, from 1.
        learned: Whether it is a policy, which costs far more a coordinate than the others.
        card: The policy's.
        source: The directory whose replicates stand together.
        averaging: The share of `l2o.rules.Averaged`; 0 for none.
        weight_decay: The fraction of the parameters that is subtracted with each step (decoupled
            weight decay; Loshchilov and Hutter 2019).
        ema_momentum: Of the moving average of the parameters that is scored in their place; 0 for
            none.
    """

    bare_name: str
    bare_origin: str
    build: Callable[[float], Stepper]
    replicate: int = 1
    learned: bool = False
    card: dict[str, Any] = field(default_factory=dict, compare=False)
    source: Path | None = field(default=None, compare=False)
    averaging: float = 0.0
    weight_decay: float = 0.0
    ema_momentum: float = 0.0

    @property
    def name(self) -> str:
        """In tables and figures."""
        added = {"avg": self.averaging, "wd": self.weight_decay, "ema": self.ema_momentum}
        return self.bare_name + "".join(f"+{what}{n:g}" for what, n in added.items() if n)

    @property
    def origin(self) -> str:
        """A digest of all that makes it what it is."""
        origin = self.bare_origin
        if self.averaging:
            origin = fingerprint((), {origin: self.averaging, "averages": True})
        if self.weight_decay:
            origin = fingerprint((), {origin: self.weight_decay, "decays": True})
        return fingerprint((), {origin: self.ema_momentum}) if self.ema_momentum else origin

    def stepper(self) -> Stepper:
        """A new stepper; it serves one network."""
        return self.build(self.averaging)


def keras_optimizers() -> dict[str, type[keras.optimizers.Optimizer]]:
    """Keras' own optimizers by name; those that wrap others are left out."""
    base, wrapper = keras.optimizers.Optimizer, keras.optimizers.LossScaleOptimizer
    return {
        name: kind
        for name, kind in sorted(vars(keras.optimizers).items())
        if isinstance(kind, type)
        and issubclass(kind, base)
        and kind not in (base, wrapper)
        and "learning_rate" in inspect.signature(kind).parameters
    }


def get_contenders(text: str) -> list[Contender]:
    """What a word of the command line stands for.

    Args:
        text: "oracle" (the six tuned teachers), a teacher ("adam", or "adam@0.01" for another
            than its tuned rate), a Keras optimizer ("keras:Adam", "keras:Adam@0.01"), or a shipped
            policy's name or the directory of a policy, of a run, or of a run's replicates, these
            also under a name of one's own ("mine=runs/choice-large").

    Raises:
        ContenderError: If it stands for nothing.
        PolicyError: If the policy cannot be read.
    """
    if text == ORACLE:
        return [_teacher(name, None) for name in TEACHERS]
    head, rate = _split_rate(text)
    if head in TEACHERS:
        return [_teacher(head, rate)]
    if text.lower().startswith(_KERAS):
        return [_keras(head[len(_KERAS) :], rate)]
    named = "=" in text and not Path(text).is_dir()
    name, path = text.split("=", 1) if named else ("", text)
    if not path or not re.fullmatch(r"[\w.+-]*", name):
        raise ContenderError(
            "A policy is named as NAME=POLICY, the name of letters, digits and . + - _. "
            f"Received: '{text}'"
        )
    if name and (path in (ORACLE, *TEACHERS) or path.lower().startswith(_KERAS)):
        raise ContenderError(f"Only a policy can be given a name. Received: '{text}'")
    contenders = _directory(name, policy_path(path) if path in pretrained() else Path(path))
    if (taken := contenders[0].bare_name) in (ORACLE, *TEACHERS):
        raise ContenderError(f"A policy cannot be called {taken}; name it, as in other={path}")
    return contenders


def _split_rate(text: str) -> tuple[str, float | None]:
    head, at, tail = text.rpartition("@")
    if not at or not (head in TEACHERS or head.lower().startswith(_KERAS)):
        return text, None
    try:
        rate = float(tail)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise ContenderError(f"The rate of {head} must be a number above 0. Received: {tail!r}")
    return head, rate


def _teacher(name: str, rate: float | None) -> Contender:
    rule = get_teacher(name, rate)
    tuned = rule.learning_rate == TUNED_RATES[name]
    called = name if tuned else f"{name}@{rate:g}"
    return Contender(called, fingerprint((), rule.get_config()), _rule_stepper(rule))


def _keras(name: str, rate: float | None) -> Contender:
    kinds = {kind.lower(): kind for kind in keras_optimizers()}
    if name.lower() not in kinds:
        allowed = ", ".join(keras_optimizers())
        raise ContenderError(f"Keras has no optimizer '{name}'. Allowed: {allowed}")
    kind = kinds[name.lower()]
    settings = {} if rate is None else {"learning_rate": rate}

    def build() -> keras.optimizers.Optimizer:
        return keras_optimizers()[kind](**settings)

    def stepper(averaging: float) -> Stepper:
        if averaging:
            raise ContenderError(f"{called} cannot be averaged, which is for teachers and policies")
        return KerasStepper(build)

    called = f"{_KERAS}{kind}" + ("" if rate is None else f"@{rate:g}")
    config = {"optimizer": kind} | build().get_config()
    config["name"] = re.sub(r"_\d+$", "", config["name"])  # Keras counts those it has made
    return Contender(called, fingerprint((), config), stepper)


def _policy(name: str, path: Path, source: Path, replicate: int) -> Contender:
    policy = load_policy(_policy_of(path))
    origin = fingerprint(policy.weights, averaged(policy.rule, 0).get_config())
    build, share = _rule_stepper(policy.rule, policy.weights), averaging(policy.rule)
    return Contender(
        name, origin, build, replicate, True, policy.card, source, share, policy.weight_decay
    )


def _rule_stepper(rule: UpdateRule, weights: Sequence = ()) -> Callable[[float], Stepper]:
    return lambda share: RuleStepper(averaged(rule, share), weights)


def _directory(name: str, path: Path) -> list[Contender]:
    if not path.is_dir():
        check_trained(path)
        guess = did_you_mean(str(path), [ORACLE, *TEACHERS, *pretrained()])
        recipes = [name for name in pretrained() if "/" not in name]
        raise ContenderError(
            f"'{path}' is no optimizer. {guess}Allowed: the directory of a policy or a run; "
            f"oracle; the teachers {', '.join(TEACHERS)}, also NAME@RATE; Keras' own, as "
            "keras:Adam or keras:Adam@0.001; shipped policies: "
            f"{', '.join(recipes) or 'none'}; evaluate.py --list names more"
        )
    path = path.resolve()
    replicates = _replicates(path)
    own = path if (path / DESCRIPTION).exists() else path / "policy"
    if replicates and own.exists():
        raise ContenderError(
            f"{path} holds both a policy and numbered replicates: name {own}, or {replicates[0]}"
        )
    if replicates:
        name = name or path.name
        return [_policy(name, p, path, _number(p)) for p in replicates]
    run = path.parent if path.name in ("policy", "choice") else path
    suffix = "-choice" if path.name == "choice" else ""
    replicate = 0 if name else _number(run)
    named = run.parent if replicate else run
    return [_policy(name or named.name + suffix, path, named, replicate or 1)]


def _policy_of(path: Path) -> Path:
    """The policy directory that is meant by a run's directory or its own."""
    if (path / DESCRIPTION).exists():
        return path
    if (path / "policy").is_dir():
        return path / "policy"
    check_trained(path / "policy")
    raise PolicyError(f"{path} holds neither a policy nor a run that has one yet")


def _replicates(path: Path) -> list[Path]:
    """The numbered subdirectories of a run with several replicates, in order."""
    return sorted((p for p in path.glob("*") if p.is_dir() and _number(p)), key=_number)


def _number(run: Path) -> int:
    """The number that a run's directory has for a name; 0 if it has none."""
    return int(run.name) if run.name.isdecimal() else 0
