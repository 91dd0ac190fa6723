"""A policy in an optimizer's configuration, as JSON can hold it."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from l2o.policies.checkpoint import Policy, PolicyError, fingerprint, load_policy
from l2o.policies.shipped import pretrained_path, shipped_as
from l2o.rules import rule_from_config


def policy_config(policy: Policy) -> dict[str, Any]:
    """The rule, and its weights: those that ship with this release by name and fingerprint."""
    config: dict[str, Any] = {"rule": policy.rule.get_config()}
    if policy.weights and (name := shipped_as(policy.weights)):
        return config | {"shipped": name, "fingerprint": fingerprint(policy.weights)}
    return config | {"weights": [_encoded(w) for w in policy.weights], "card": policy.card}


def policy_from_config(config: dict[str, Any]) -> Policy:
    """The policy of a `policy_config`.

    Raises:
        PolicyError: If it cannot be read, or its weights do not ship with this release.
    """
    try:
        rule = rule_from_config(config["rule"])
        if "shipped" in config:
            shipped = load_policy(pretrained_path(str(config["shipped"])))
            if (here := fingerprint(shipped.weights)) != config["fingerprint"]:
                raise ValueError(
                    f"the weights of {config['shipped']!r} that it names have the fingerprint "
                    f"{config['fingerprint']}, those that ship with this release {here}"
                )
            return Policy(rule, shipped.weights, shipped.card)
        return Policy(rule, [_decoded(w) for w in config["weights"]], dict(config["card"]))
    except (KeyError, TypeError, ValueError) as error:
        text = str(error) if type(error) in (ValueError, PolicyError) else repr(error)
        raise PolicyError(f"The optimizer's policy cannot be read: {text}") from error


def _encoded(array: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "base64": data}


def _decoded(config: dict[str, Any]) -> np.ndarray:
    data = base64.b64decode(config["base64"], validate=True)
    return np.frombuffer(data, config["dtype"]).reshape(config["shape"])
