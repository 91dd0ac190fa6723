"""The policy directory: a trained policy on disk.

    policy.json         format, the rule's settings, the weights' file, shapes and dtypes, the card,
                        and a checksum over all of it
    weights-....h5      one dataset a weight tensor

policy.json is replaced in one rename after the weights it names are on disk, so that the directory
holds the old policy or the new one at every moment. No pickle; nothing in it is ever executed.

Format 1 had the rule without warm-up, which was 100 steps at 0.01, and its weight decay beside it.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from l2o.errors import UserError
from l2o.rules import UpdateRule, WarmUp, core, decayed, rule_from_config
from l2o.runs.files import half_written, write_atomically

FORMAT, FORMAT_1 = "l2o policy 2", "l2o policy 1"
DESCRIPTION, WEIGHTS = "policy.json", "weights-{}.h5"
MOST_BYTES = 2**28  # of a file that is read; a policy has tens of kilobytes
_WEIGHTS = re.compile(r"weights-[0-9a-f]{16}\.h5")
_SUBSTITUTED = ", IN PLACE OF "  # in descriptions of data, all that older cards have
_TRIES = 5  # to read a policy that is being replaced
_OVERHEAD = 2**20  # that HDF5 adds, at the very most


class PolicyError(UserError):
    """A policy directory that cannot be read; the message says why in one line."""


@dataclass(frozen=True)
class Policy:
    """A rule with its weights: what can be wrapped as an optimizer.

    Attributes:
        rule: The update rule, wrapped as it is to be used: with its warm-up, averaging and decay.
        weights: As the rule's `initial_weights`, NumPy arrays.
        card: Where it comes from: problem, data, pool, schedule, seed, versions, validation.
    """

    rule: UpdateRule
    weights: list[np.ndarray] = field(default_factory=list, repr=False)
    card: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path | str) -> None:
        """Writes the whole policy as a directory; see `save_policy`."""
        save_policy(path, self.rule, self.weights, self.card)


def doubts(card: Mapping[str, Any]) -> list[str]:
    """What a policy's card says against relying on it, each to follow "was trained"."""
    found = []
    if card.get("preset") == "smoke":
        found.append("by the smoke preset, which is too short for a useful policy")
    name, _, rest = str(card.get("data")).split(" (")[0].partition(_SUBSTITUTED)
    if meant := card.get("in_place_of", rest):
        found.append(f"on {name}, IN PLACE OF {meant}")
    return found


def save_policy(
    path: Path | str, rule: UpdateRule, weights: Sequence, card: dict[str, Any]
) -> None:
    """Writes a policy directory in place of the one that is there, if any.

    Args:
        path: The directory.
        rule: The update rule, wrapped as it is to be used.
        weights: As from the rule's `initial_weights`.
        card: Anything JSON can hold.

    Raises:
        PolicyError: If `path` holds something that is no policy; it is left alone.
        TypeError: If JSON cannot hold the card.
    """
    path, weights = Path(path), [np.asarray(w) for w in weights]
    if not _is_free(path):
        raise PolicyError(f"{path} holds something that is no policy; it is left as it is")
    description: dict[str, Any] = {
        "format": FORMAT,
        "rule": rule.get_config(),
        "file": WEIGHTS.format(fingerprint(weights)),
        "weights": [{"shape": w.shape, "dtype": str(w.dtype)} for w in weights],
        "card": card,
    }
    description = json.loads(json.dumps(description))  # as a reader will see it
    description["sha256"] = _digest(description, weights)
    write_atomically(path / description["file"], _to_hdf5(weights))
    write_atomically(path / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    for old in path.glob(WEIGHTS.format("*")):
        if _WEIGHTS.fullmatch(old.name) and old.name != description["file"]:
            old.unlink(missing_ok=True)


def load_policy(path_or_name: Path | str) -> Policy:
    """Reads a policy directory, or a shipped policy.

    Args:
        path_or_name: The directory, or where there is none, the policy's name: "choice-large", or
            "choice-large/3" for a certain replicate.

    Raises:
        PolicyError: If it is missing, damaged, altered or no policy.
    """
    from l2o.policies.shipped import policy_path  # which reads policies itself

    path = policy_path(path_or_name)
    for _ in range(_TRIES):
        try:
            return _parse(path, _description(path))
        except FileNotFoundError as error:
            # Whoever saves meanwhile takes the old weights away once the new ones are named.
            missing = error.filename
    raise PolicyError(f"{path} lacks the weights: {missing}")


def fingerprint(weights: Sequence[np.ndarray], description: Mapping[str, Any] = {}) -> str:  # noqa: B006
    """Sixteen digits that tell weights, and what is said of them, apart."""
    return _digest(description, weights)[:16]


def _is_free(path: Path) -> bool:
    """Whether a policy may be written here: nothing, a policy, or the leavings of a save."""
    if not path.exists():
        return True
    if not path.is_dir():
        return False
    if (path / DESCRIPTION).is_file():
        return b'"l2o policy ' in _read_bytes(path / DESCRIPTION)
    return all(_is_leaving(p.name) for p in path.iterdir())


def _is_leaving(name: str) -> bool:
    """Whether a save that was cut short can have left a file of that name alone."""
    meant = half_written(name)
    return meant == DESCRIPTION or _WEIGHTS.fullmatch(meant or name) is not None


def _description(path: Path) -> str:
    if not path.is_dir():
        raise PolicyError(f"There is no policy directory at {path}")
    if not (path / DESCRIPTION).exists():
        inside = [p.parent for p in sorted(path.glob(f"*/{DESCRIPTION}"))]
        hint = f"; there is one in {' and in '.join(map(str, inside))}" if inside else ""
        raise PolicyError(f"{path} is no policy directory: it has no {DESCRIPTION}{hint}")
    try:
        return _read_bytes(path / DESCRIPTION).decode()
    except (OSError, ValueError) as error:
        raise PolicyError(f"{path / DESCRIPTION} cannot be read: {_line(error)}") from error


def _parse(path: Path, text: str) -> Policy:
    try:
        description = json.loads(text)
        kind = description.get("format") if isinstance(description, dict) else None
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"{path / DESCRIPTION} cannot be read: {_line(error)}") from error
    if kind not in (FORMAT, FORMAT_1):
        raise PolicyError(
            f"{path / DESCRIPTION} has format {kind!r}; this reads {FORMAT!r} and {FORMAT_1!r}"
        )
    try:
        shapes = _declared(description["weights"])
        file = path / Path(description["file"]).name  # whatever it says, in this directory
        weights = _from_hdf5(_read_bytes(file, _size(shapes) + _OVERHEAD), shapes)
    except FileNotFoundError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise PolicyError(f"The weights in {path} cannot be read: {_line(error)}") from error
    if _digest(description, weights) != description.get("sha256"):
        raise PolicyError(
            f"{path} is not what was saved: the checksum of {DESCRIPTION} and {file.name} differs"
        )
    try:
        rule = rule_from_config(description["rule"])
        if kind == FORMAT_1:
            rule = WarmUp(decayed(rule, description.get("weight_decay", 0.0)))
        pairs = zip_longest(rule.weight_shapes(), (shape for shape, _ in shapes))
        fits = all(own == declared for own, declared in pairs)
        card = dict(description["card"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise PolicyError(f"The policy in {path} cannot be read: {_line(error)}") from error
    if not fits:
        raise PolicyError(f"The weights in {path} do not fit the rule '{core(rule).name}'")
    return Policy(rule, weights, card)


def _read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """A file's content, unless there is far more of it than there can be."""
    if path.is_file() and (size := path.stat().st_size) > min(most, MOST_BYTES):
        raise ValueError(f"{path.name} is too long. Received: {size} bytes")
    return path.read_bytes()


def _declared(weights: list) -> list[tuple[tuple[int, ...], np.dtype]]:
    """The shape and dtype of each weight tensor, as a description gives them."""
    shapes = [(tuple(w["shape"]), np.dtype(w["dtype"])) for w in weights]
    for shape, dtype in shapes:
        if dtype.kind != "f" or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"no tensor of floats has shape {shape} and dtype {dtype}")
    if _size(shapes) > MOST_BYTES:
        raise ValueError(f"tensors of {_size(shapes)} bytes are no policy's")
    return shapes


def _size(shapes: list) -> int:
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)


def _to_hdf5(weights: Sequence[np.ndarray]) -> bytes:
    import h5py  # here: `import l2o` is light

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for k, array in enumerate(weights):
            file[str(k)] = array
    return buffer.getvalue()


def _from_hdf5(content: bytes, shapes: list) -> list[np.ndarray]:
    """The tensors, if they are as declared and lie in the content itself, uncompressed."""
    import h5py

    weights = []
    with h5py.File(io.BytesIO(content), "r") as file:
        for k, (shape, dtype) in enumerate(shapes):
            link = file.get(str(k), getlink=True)
            if not isinstance(link, h5py.HardLink) or not isinstance(file[str(k)], h5py.Dataset):
                raise ValueError(f"tensor {k} is not in the file")
            tensor = file[str(k)]
            if (tensor.shape, tensor.dtype) != (shape, dtype):
                raise ValueError(f"tensor {k} is not as declared: {tensor.shape} {tensor.dtype}")
            if tensor.chunks or tensor.external or tensor.is_virtual:
                raise ValueError(f"tensor {k} is not stored in one piece")
            weights.append(np.asarray(tensor))
    return weights


def _digest(description: Mapping[str, Any], weights: Sequence[np.ndarray]) -> str:
    described = {key: value for key, value in description.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for array in weights:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
