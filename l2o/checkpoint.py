"""The policy directory: a trained policy on disk.

    policy.json      format, the rule's settings, shapes and checksum of the weights, the card
    weights.h5       one dataset a weight tensor

No pickle, and nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from l2o.rules.base import UpdateRule, rule_from_config

FORMAT = "l2o policy 1"
DESCRIPTION, WEIGHTS = "policy.json", "weights.h5"


class PolicyError(ValueError):
    """A policy directory that cannot be read; the message says why in one line."""


@dataclass(frozen=True)
class Policy:
    """A rule with its weights.

    Attributes:
        rule: The update rule.
        weights: As the rule's `initial_weights`, NumPy arrays.
        card: Where it comes from: problem, data, pool, schedule, seed, versions, validation.
    """

    rule: UpdateRule
    weights: list[np.ndarray]
    card: dict[str, Any] = field(default_factory=dict)


def save_policy(
    path: Path | str, rule: UpdateRule, weights: Sequence, card: dict[str, Any]
) -> None:
    """Writes a policy directory in place of the one that is there, if any.

    Raises:
        PolicyError: If `path` holds something that is no policy; it is left alone.
    """
    import h5py

    path = Path(path)
    if path.exists() and any(path.iterdir()) and not (path / DESCRIPTION).exists():
        raise PolicyError(f"{path} holds something that is no policy; it is left as it is")
    weights = [np.asarray(w) for w in weights]
    description = {
        "format": FORMAT,
        "rule": rule.get_config(),
        "weights": [{"shape": list(w.shape), "dtype": str(w.dtype)} for w in weights],
        "sha256": _checksum(weights),
        "card": card,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("new", "old"))
    for directory in (new, old):
        shutil.rmtree(directory, ignore_errors=True)
    new.mkdir()
    with h5py.File(new / WEIGHTS, "w") as file:
        for k, array in enumerate(weights):
            file[str(k)] = array
    (new / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
    if path.exists():
        os.replace(path, old)
    os.replace(new, path)
    shutil.rmtree(old, ignore_errors=True)


def load_policy(path: Path | str) -> Policy:
    """Reads a policy directory.

    Raises:
        PolicyError: If it is missing, damaged, altered or no policy.
    """
    import h5py

    path = Path(path)
    if not path.is_dir():
        raise PolicyError(f"There is no policy directory at {path}")
    if not (path / DESCRIPTION).exists():
        raise PolicyError(f"{path} is no policy directory: it has no {DESCRIPTION}")
    try:
        description = json.loads((path / DESCRIPTION).read_text())
        kind = description.get("format") if isinstance(description, dict) else None
    except (OSError, ValueError) as error:
        raise PolicyError(f"{path / DESCRIPTION} cannot be read: {error}") from error
    if kind != FORMAT:
        raise PolicyError(f"{path / DESCRIPTION} has format {kind!r}; this reads '{FORMAT}'")
    try:
        rule = rule_from_config(description["rule"])
        with h5py.File(path / WEIGHTS, "r") as file:
            weights = [file[str(k)][()] for k in range(len(description["weights"]))]
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise PolicyError(f"The policy in {path} cannot be read: {reason}") from error
    if _checksum(weights) != description.get("sha256"):
        raise PolicyError(f"{path / WEIGHTS} is not what was saved: its checksum differs")
    expected = [tuple(w.shape) for w in rule.initial_weights(0)]
    if expected != [w.shape for w in weights]:
        raise PolicyError(f"The weights in {path} do not fit the rule '{rule.name}'")
    return Policy(rule, weights, description.get("card", {}))


def _checksum(weights: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in weights:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
