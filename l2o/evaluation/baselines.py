"""What is evaluated, by name: policies, and the baselines beside them, teachers and Keras' own."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import keras

from l2o.errors import UserError
from l2o.evaluation.keras_rule import KerasRule
from l2o.policies.checkpoint import DESCRIPTION, Policy, PolicyError, fingerprint, load_policy
from l2o.policies.shipped import check_trained, did_you_mean, policy_path, pretrained
from l2o.rules import (
    TEACHERS,
    TUNED_RATES,
    Decayed,
    MovingAverage,
    Schedule,
    UpdateRule,
    WarmUp,
    averaged,
    averaging,
    core,
    decayed,
    decaying,
    get_teacher,
    layer,
    rewrapped,
    warmed_up,
    warming,
)
from l2o.rules.scheduled import SHAPES

ORACLE = "oracle"
_KERAS = "keras:"
# What is compared where nothing is named, and on the problems of today.
DEFAULTS = ("choice-large", "keras:Adam+constant", "keras:AdamW+cosine")
MODERN_BASELINES = ("choice-large", "keras:Adam+constant", "keras:ScheduleFreeAdamW+constant",
                    "tuned:AdamW", "tuned:Lion", "tuned:Muon")  # fmt: skip
WARMUP_SHARE = 0.05  # of a fit, where a Keras optimizer has a schedule


@dataclass(frozen=True)
class Candidate:
    """An optimizer that is evaluated.

    Attributes:
        bare_name: In tables and figures, but for what averaging and decay add to it.
        bare_origin: A digest of the rule, but for warm-up, averaging and decay, and its weights.
        rule: What is fitted with, wrapped.
        weights: The rule's.
        replicate: Which training of the policy, from 1.
        learned: Whether it is a policy, which costs far more a coordinate than the others.
        card: The policy's.
        source: The directory whose replicates stand together.
        described: What another process makes it of, where its name does not say that: a name,
            what `using` was told, and what differs then.
    """

    bare_name: str
    bare_origin: str
    rule: UpdateRule
    weights: Sequence = field(default=(), compare=False, repr=False)
    replicate: int = 1
    learned: bool = False
    card: dict[str, Any] = field(default_factory=dict, compare=False)
    source: Path | None = field(default=None, compare=False)
    described: tuple = field(default=(), compare=False, repr=False)

    @property
    def name(self) -> str:
        """In tables and figures."""
        added = {"avg": self.averaging, "wd": self.weight_decay, "ema": self._momentum}
        return self.bare_name + "".join(f"+{what}{n:g}" for what, n in added.items() if n)

    @property
    def origin(self) -> str:
        """A digest of all that makes it what it is."""
        origin = self.bare_origin
        if self.averaging:
            origin = fingerprint((), {origin: self.averaging, "averages": True})
        if decay := layer(self.rule, Decayed):
            exclude = {"exclude": decay.exclude} if decay.exclude else {}
            origin = fingerprint((), {origin: decay.rate, "decays": True, **exclude})
        if self._momentum:
            origin = fingerprint((), {origin: self._momentum})
        if (start := warming(self.rule)) != (WarmUp.steps, WarmUp.rate):
            origin = fingerprint((), {origin: start, "warms up": True})
        return origin

    @property
    def averaging(self) -> float:
        """How near the network stays to the average of where the rule led; 0 for not at all."""
        return averaging(self.rule)

    @property
    def weight_decay(self) -> float:
        """The fraction of the parameters that is subtracted with each step."""
        return decaying(self.rule)

    @property
    def warmup(self) -> int:
        """How many steps at the start are SGD's."""
        return warming(self.rule)[0]

    @property
    def _momentum(self) -> float:
        average = layer(self.rule, MovingAverage)
        return average.momentum if average else 0.0

    def using(
        self,
        averaging: float | None = None,
        weight_decay: float | None = None,
        ema: float | None = None,
    ) -> Candidate:
        """The same with others in place of its own averaging, decay and moving average.

        Args:
            averaging: The share of `l2o.rules.Averaged`; 0 for none, None for its own.
            weight_decay: Of `l2o.rules.Decayed`; likewise.
            ema: The momentum of `l2o.rules.MovingAverage`; likewise.

        Raises:
            UserError: If it is Keras' and is to be averaged.
        """
        rule = self.rule
        if averaging and isinstance(core(rule), KerasRule):
            raise UserError(
                f"{self.bare_name} cannot be averaged, which is for teachers and policies"
            )
        if averaging is not None:
            rule = averaged(rule, averaging)
        if weight_decay is not None:
            rule = decayed(rule, weight_decay)
        if ema is not None:
            wrap = lambda inner: MovingAverage(inner, ema)  # noqa: E731
            rule = rewrapped(rule, MovingAverage, wrap if ema else None)
        described = self.described
        if described:
            word, _, names = described
            described = (word, (averaging, weight_decay, ema), names)
        return replace(self, rule=rule, described=described)


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


def get_candidates(what: str | Candidate | Policy | UpdateRule) -> list[Candidate]:
    """What a name, or an object, stands for.

    Args:
        what: A candidate, a policy, a rule (to be wrapped in the usual warm-up), or a name:
            "oracle" (the six tuned teachers), a teacher ("adam", or "adam@0.01" for another
            than its tuned rate), a Keras optimizer ("keras:Adam", "keras:Adam@0.01", or
            "keras:AdamW@0.003+cosine+decay0.1" with a schedule that begins with 5% of linear
            warm-up, in place of the paper's 100 steps of SGD), or a shipped
            policy's name or the directory of a policy, of a run, or of a run's replicates, these
            also under a name of one's own ("mine=runs/choice-large").

    Raises:
        UserError: If it stands for nothing.
        PolicyError: If the policy cannot be read.
    """
    if isinstance(what, Candidate):
        return [what]
    if isinstance(what, Policy):
        return [_of_policy(what, "policy")]
    if isinstance(what, UpdateRule):
        return [Candidate(what.name, fingerprint((), what.get_config()), WarmUp(what))]
    if not isinstance(what, str):
        raise UserError(
            "An optimizer is a name, a policy or a rule; Keras' own are named, as in "
            f"keras:AdamW@0.003+cosine. Received: {what!r}"
        )
    text = what
    if text == ORACLE:
        return [_teacher(name, None) for name in TEACHERS]
    head, rate = _split_rate(text)
    if head in TEACHERS:
        return [_teacher(head, rate)]
    if text.lower().startswith(_KERAS):
        return [_keras(text)]
    named = "=" in text and not Path(text).is_dir()
    name, path = text.split("=", 1) if named else ("", text)
    if not path or not re.fullmatch(r"[\w.+-]*", name):
        raise UserError(
            "A policy is named as NAME=POLICY, the name of letters, digits and . + - _. "
            f"Received: '{text}'"
        )
    if name and (path in (ORACLE, *TEACHERS) or path.lower().startswith(_KERAS)):
        raise UserError(f"Only a policy can be given a name. Received: '{text}'")
    candidates = _directory(name, policy_path(path) if path in pretrained() else Path(path))
    if (taken := candidates[0].bare_name) in (ORACLE, *TEACHERS):
        raise UserError(f"A policy cannot be called {taken}; name it, as in other={path}")
    return candidates


def _split_rate(text: str) -> tuple[str, float | None]:
    head, at, tail = text.rpartition("@")
    if not at or head not in TEACHERS:
        return text, None
    return head, _positive(f"The rate of {head}", tail)


def _teacher(name: str, rate: float | None) -> Candidate:
    rule = get_teacher(name, rate)
    tuned = rule.learning_rate == TUNED_RATES[name]
    called = name if tuned else f"{name}@{rate:g}"
    return Candidate(called, fingerprint((), rule.get_config()), WarmUp(rule))


def _keras(text: str) -> Candidate:
    """keras:NAME[@RATE][+SHAPE][+decayW]; a shape takes the place of the paper's warm-up."""
    found = re.fullmatch(r"(\w*)(?:@([^+@]*))?((?:\+[^+@]+)*)", text[len(_KERAS) :])
    name, rate, added = found.groups() if found else ("", None, "")
    kinds = {kind.lower(): kind for kind in keras_optimizers()}
    if name.lower() not in kinds:
        allowed = ", ".join(keras_optimizers())
        raise UserError(f"Keras has no optimizer '{name or text}'. Allowed: {allowed}")
    kind, settings = kinds[name.lower()], {}
    takes = inspect.signature(keras_optimizers()[kind]).parameters
    if rate is not None:
        settings["learning_rate"] = _positive(f"The rate of {_KERAS}{kind}", rate)
    schedule = None
    for word in added.split("+")[1:]:
        if word in SHAPES and schedule is None:
            schedule = Schedule(word, warmup=WARMUP_SHARE)
        elif word.startswith("decay") and "weight_decay" in takes:
            decay = _positive(f"The decay of {_KERAS}{kind}", word.removeprefix("decay"))
            both = {"weight_decay", "adam_weight_decay"} & takes.keys()  # Muon has two
            settings |= dict.fromkeys(both, decay)
        else:
            raise UserError(
                f"A Keras optimizer is named as keras:AdamW@0.003+cosine+decay0.1, with one of "
                f"{', '.join(SHAPES)}. Received: '{text}'"
            )

    def build() -> keras.optimizers.Optimizer:
        return keras_optimizers()[kind](**settings)

    called = f"{_KERAS}{kind}"
    if "learning_rate" in settings:
        called += f"@{settings['learning_rate']:g}"
    called += f"+{schedule.shape}" if schedule else ""
    if "weight_decay" in settings:
        called += f"+decay{settings['weight_decay']:g}"
    config = {"optimizer": kind} | build().get_config()
    config["name"] = re.sub(r"_\d+$", "", config["name"])  # Keras counts those it has made
    if schedule:
        config["schedule"] = asdict(schedule)
        return Candidate(called, fingerprint((), config), KerasRule(build, schedule))
    return Candidate(called, fingerprint((), config), WarmUp(KerasRule(build)))


def _positive(what: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"{what} must be a number above 0. Received: {text!r}")
    return value


def _policy(name: str, path: Path, source: Path, replicate: int) -> Candidate:
    return _of_policy(load_policy(_policy_of(path)), name, source, replicate)


def _of_policy(
    policy: Policy, name: str, source: Path | None = None, replicate: int = 1
) -> Candidate:
    bare = averaged(decayed(warmed_up(policy.rule, 0), 0), 0)
    bare = rewrapped(bare, MovingAverage, None)
    origin = fingerprint(policy.weights, bare.get_config())
    return Candidate(
        name, origin, policy.rule, policy.weights, replicate, True, policy.card, source
    )


def _directory(name: str, path: Path) -> list[Candidate]:
    if not path.is_dir():
        check_trained(path)
        guess = did_you_mean(str(path), [ORACLE, *TEACHERS, *pretrained()])
        recipes = [name for name in pretrained() if "/" not in name]
        raise UserError(
            f"'{path}' is no optimizer. {guess}Allowed: the directory of a policy or a run; "
            f"oracle; the teachers {', '.join(TEACHERS)}, also NAME@RATE; Keras' own, as "
            "keras:Adam or keras:Adam@0.001; shipped policies: "
            f"{', '.join(recipes) or 'none'}; l2o evaluate --list names more"
        )
    path = path.resolve()
    replicates = _replicates(path)
    own = path if (path / DESCRIPTION).exists() else path / "policy"
    if replicates and own.exists():
        raise UserError(
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
