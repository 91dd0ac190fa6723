"""The policies that are shipped: `pretrained/<name>/<replicate>`, each with its card inside."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from l2o.policies.checkpoint import DESCRIPTION, WEIGHTS, PolicyError, fingerprint

DIRECTORY = Path(__file__).parent / "pretrained"


def pretrained() -> tuple[str, ...]:
    """Names of the shipped policies: each recipe, and each of its replicates.

    "choice-large" is the best of its replicates by validation, "choice-large/3" one of them.
    `l2o.AmalgamatedOptimizer.load(name).policy.card` says where one comes from.
    """
    names = []
    for recipe, replicates in _replicates().items():
        names += [recipe, *(f"{recipe}/{number}" for number in replicates)]
    return tuple(names)


def pretrained_path(name: str) -> Path:
    """The directory of a shipped policy.

    Args:
        name: "choice-large", or "choice-large/3" for a certain replicate.

    Raises:
        PolicyError: If none of that name is shipped.
    """
    if name not in pretrained():
        shipped = ", ".join(pretrained()) or "none in this version"
        raise PolicyError(
            f"{name!r} is neither a policy directory nor a shipped policy. "
            f"{did_you_mean(name, pretrained())}Shipped: {shipped}"
        )
    recipe, _, number = name.partition("/")
    if not number:
        number = min(_replicates()[recipe], key=lambda n: _validation(DIRECTORY / recipe / n))
    return DIRECTORY / recipe / number


def shipped_as(weights: Sequence[np.ndarray]) -> str | None:
    """The name of the shipped policy with these weights, "choice-large/3" say; None if none has."""
    found = DIRECTORY.glob(f"*/*/{WEIGHTS.format(fingerprint(weights))}")
    return next((f"{path.parts[-3]}/{path.parts[-2]}" for path in sorted(found)), None)


def policy_path(path_or_name: Path | str) -> Path:
    """The policy directory that is meant: the one at that path, else the shipped one of that name.

    Raises:
        PolicyError: If there is neither.
    """
    path = Path(path_or_name)
    if path.exists():
        return path
    check_trained(path)
    return pretrained_path(str(path_or_name))


def check_trained(path: Path) -> None:
    """Raises PolicyError if a path that is not there is the policy of a run in its first phase."""
    if path.name == "policy" and (choice := path.with_name("choice")).is_dir():
        raise PolicyError(f"The run in {path.parent} has no policy yet; so far there is {choice}")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A question for a message about a wrong name, with a space behind it; "" if none is near."""
    return "".join(f"Did you mean {near}? " for near in get_close_matches(name, names, 1))


def _replicates() -> dict[str, list[str]]:
    """The numbers of each recipe's replicates, in order."""
    found: dict[str, list[str]] = {}
    paths = [path.parent for path in DIRECTORY.glob(f"*/*/{DESCRIPTION}")]
    for path in sorted(paths, key=lambda p: (p.parent.name, int(p.name))):
        found.setdefault(path.parent.name, []).append(path.name)
    return found


def _validation(path: Path) -> float:
    """The log validation loss that a shipped policy reached, by its card.

    To the two digits that some fits can tell: the first of those that are level is as good.
    """
    card = json.loads((path / DESCRIPTION).read_text())["card"]
    return round(float(card["evaluation"]["log_validation_loss"]), 2)
