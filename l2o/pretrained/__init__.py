"""The policies that are shipped: each directory here is one, with its card inside."""

from __future__ import annotations

from pathlib import Path

from l2o.checkpoint import DESCRIPTION, PolicyError

DIRECTORY = Path(__file__).parent


def available() -> tuple[str, ...]:
    """Names of the shipped policies; none in this version if it is empty."""
    return tuple(sorted(path.parent.name for path in DIRECTORY.glob(f"*/{DESCRIPTION}")))


def path_of(name: str) -> Path:
    """The directory of a shipped policy.

    Raises:
        PolicyError: If none of that name is shipped.
    """
    if name in available():
        return DIRECTORY / name
    shipped = ", ".join(available()) or "none in this version"
    raise PolicyError(
        f"{name!r} is neither a policy directory nor a shipped policy. Shipped: {shipped}"
    )
