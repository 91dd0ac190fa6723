"""Perturbations of the policy while it is meta-trained (Huang et al. 2022, Section 4).

A policy that is trained under perturbation lies where the meta loss is flat, and its replicates
differ less. Noise is a pure function of (weights, seed, step): a step that the backward pass
computes again draws the same. Attacks climb the loss of a truncation before its meta-gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from l2o.rules.layout import Layout
from l2o.rules.wrapper import Wrapper

PGD_RATE = 0.1


def _relative(magnitude: float, weight, shift, gradient):
    """psi + epsilon |phi| grad / |grad| (Equation 6); psi where the gradient is zero."""
    largest = tf.reduce_max(tf.abs(gradient))
    direction = tf.math.divide_no_nan(gradient, largest)  # the gradient's square may overflow
    length = magnitude * tf.norm(weight)
    return shift + length * tf.math.divide_no_nan(direction, tf.norm(direction))


def _projected(magnitude: float, weight, shift, gradient):
    """psi + rate grad, each entry cut to +-epsilon (Madry et al. 2018)."""
    return tf.clip_by_value(shift + PGD_RATE * gradient, -magnitude, magnitude)


def _sign(magnitude: float, weight, shift, gradient):
    """epsilon sign(grad) (Goodfellow et al. 2015)."""
    return magnitude * tf.sign(gradient)


ATTACKS = {"adversarial": _relative, "pgd": _projected, "fgsm": _sign}
KINDS = ("gaussian", *ATTACKS, "input")


@dataclass(frozen=True)
class Perturbation:
    """What is perturbed, and how much.

    Attributes:
        kind: "gaussian": noise on the weights, fresh at every inner step. "adversarial": ascent
            steps relative to each weight tensor's norm (Algorithm 2, Equation 6). "pgd" and
            "fgsm": the same with projected gradients and with the gradient's sign. "input": noise
            on the gradients that the policy sees (Equation 11).
        magnitude: How much. Of "gaussian", the standard deviation in units of a weight tensor's
            root mean square (Equation 5), or simply the standard deviation if `absolute`; of
            "adversarial", epsilon in units of a tensor's norm; of "pgd" and "fgsm", the largest
            change of a weight; of "input", the standard deviation. For "gaussian" and
            "adversarial" try 0.001.
        absolute: For "gaussian" alone.
        attack_steps: Ascent steps of "adversarial" and "pgd"; A of them cost A meta-gradients.
    """

    kind: str
    magnitude: float
    absolute: bool = False
    attack_steps: int = 1

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(
                f"Unknown perturbation. Allowed: {', '.join(KINDS)}. Received: {self.kind}"
            )
        if not 0 <= self.magnitude < math.inf:
            raise ValueError(f"The magnitude must be finite and >= 0. Received: {self.magnitude}")
        if self.absolute and self.kind != "gaussian":
            raise ValueError(f"Only 'gaussian' can be absolute. Received: {self.kind}")
        if self.attack_steps < 1:
            raise ValueError(f"attack_steps must be at least 1. Received: {self.attack_steps}")
        if self.attack_steps > 1 and self.kind not in ("adversarial", "pgd"):
            raise ValueError(
                "Only 'adversarial' and 'pgd' can have more than one attack step. "
                f"Received: {self.attack_steps} of {self.kind}"
            )


@dataclass(frozen=True)
class Perturbed(Wrapper):
    """A rule at one inner step, with the noise of that step, if noise is the perturbation.

    Attributes:
        perturbation: Any, or none.
        seed: int32 [2], of the trajectory.
        step: int32 scalar, counted from the start of the unroll.
    """

    perturbation: Perturbation | None
    seed: Any
    step: Any

    def update(self, weights, gradient, parameters, state, layout, horizon=None):
        weights = noisy_weights(self.perturbation, weights, self.seed, self.step)
        gradient = noisy_gradient(self.perturbation, gradient, self.seed, self.step)
        return self.inner.update(weights, gradient, parameters, state, layout, horizon)


def noisy_weights(perturbation: Perturbation | None, weights: list, seed, step) -> list:
    """What `Perturbed` updates with; gradients pass as if the noise were a constant."""
    if perturbation is None or perturbation.kind != "gaussian":
        return weights
    layout, sigma = Layout.of(weights), perturbation.magnitude
    noise = layout.unflatten(_normal(layout.size, weights[0].dtype, seed, step))
    if not perturbation.absolute:
        scales = [tf.sqrt(tf.reduce_mean(tf.square(tf.stop_gradient(w)))) for w in weights]
        noise = [scale * n for scale, n in zip(scales, noise, strict=True)]
    return [w + sigma * n for w, n in zip(weights, noise, strict=True)]


def noisy_gradient(perturbation: Perturbation | None, gradient, seed, step):
    """The gradient [D] that `Perturbed` sees."""
    if perturbation is None or perturbation.kind != "input":
        return gradient
    noise = _normal(gradient.shape[0], gradient.dtype, seed, step)
    return gradient + perturbation.magnitude * noise


def attacked(
    perturbation: Perturbation | None, weights: list, gradient_of: Callable[[list], list]
) -> list:
    """The weights phi + psi_A after the ascent steps, if the perturbation is an attack.

    Args:
        perturbation: Any, or none.
        weights: phi, the policy's.
        gradient_of: The gradient of the truncation's loss at some weights.
    """
    if perturbation is None or perturbation.kind not in ATTACKS:
        return weights
    attack, magnitude = ATTACKS[perturbation.kind], perturbation.magnitude
    moved = lambda shift: [w + s for w, s in zip(weights, shift, strict=True)]  # noqa: E731

    def ascend(k, shift):
        triples = zip(weights, shift, gradient_of(moved(shift)), strict=True)
        return k + 1, [attack(magnitude, *triple) for triple in triples]

    start = (0, [tf.zeros_like(w) for w in weights])
    steps = perturbation.attack_steps
    _, shift = tf.while_loop(lambda k, _: k < steps, ascend, start, parallel_iterations=1)
    return moved(shift)


def _normal(size: int, dtype, seed, step):
    """Standard normal numbers [size] that (seed, step) determines."""
    seed = tf.random.experimental.stateless_fold_in(seed, step)
    return tf.random.stateless_normal((size,), seed, dtype=dtype)
