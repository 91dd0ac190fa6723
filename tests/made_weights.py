"""Weights of policies that move: those of a fresh one have a head of zeros."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from l2o import save_policy
from l2o.rules import RNNProp


def made_weights(rule, seed: int = 0) -> list[np.ndarray]:
    """Fresh weights with every entry moved, so that gates, heads and biases all have a say."""
    generator = np.random.default_rng(seed + 1)
    fresh = [np.asarray(w) for w in rule.initial_weights(seed)]
    return [(w + 0.3 * generator.normal(size=w.shape)).astype(w.dtype) for w in fresh]


def made_tensors(rule) -> list[tf.Tensor]:
    """`made_weights` as tensors, which a gradient can be asked for."""
    return [tf.constant(w) for w in made_weights(rule)]


def make_policy(path: Path, seed: int = 0, rule=None) -> Path:
    """A policy directory, of a small RNNProp by default."""
    rule = rule or RNNProp(units=2)
    save_policy(path, rule, made_weights(rule, seed), {"updates": 7})
    return path
