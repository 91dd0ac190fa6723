"""What trajectories begin with and see: examples, initial parameters, scales, as l2o draws them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jax_unroll import LAYOUT, SHAPES

from l2o.amalgamation.draws import batch_indices, held_out

BATCH, SCALE_LIMIT = 128, 1.0


def read_examples(path: Path, part: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [N, 28, 28] and labels int32 [N] of mnist.npz.

    Args:
        path: The file.
        part: "" for the training examples, "validation_" or "test_".
    """
    with np.load(path) as arrays:
        inputs, labels = arrays[f"{part}inputs"], arrays[f"{part}labels"]
    return inputs.reshape(-1, 28, 28).astype("uint8"), labels.astype("int32")


@dataclass(frozen=True)
class Draws:
    """Examples that trajectories see, as `l2o.amalgamation.batches` draws them.

    Attributes:
        examples: N, of the training set.
        held_out: Whether a tenth, drawn for each trajectory, is for the meta loss alone.
    """

    examples: int
    held_out: bool

    def steps(self, key: list[int], start: int, steps: int) -> np.ndarray:
        """int32 [steps, B] to train on."""
        kept = held_out(self.examples, key)[0] if self.held_out else np.arange(self.examples)
        return kept[batch_indices([*key, 1], len(kept), BATCH, start, steps)].astype("int32")

    def judged(self, key: list[int], start: int, steps: int) -> np.ndarray:
        """int32 [steps, B] of the meta loss, where that is on held-out examples."""
        tenth = held_out(self.examples, key)[1]
        return tenth[batch_indices([*key, 4], len(tenth), BATCH, start, steps)].astype("int32")


def begin(keys: list, scaled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Glorot-uniform parameters and scales [R, M, D].

    Args:
        keys: Nested lists [R][M], of each replicate's trajectories.
        scaled: Whether scales are random, or ones.
    """
    places, scales = [], []
    for key in (key for row in keys for key in row):
        generator = np.random.default_rng([*key, 0])
        initial = np.random.default_rng(int(generator.integers(2**31)))
        tensors = []
        for shape in SHAPES:
            fans = math.prod(shape[:-2]) * sum(shape[-2:]) if len(shape) > 1 else math.inf
            limit = math.sqrt(6 / fans)
            tensors.append(initial.uniform(-limit, limit, math.prod(shape)))
        places.append(np.concatenate(tensors).astype("float32"))
        exponents = generator.uniform(-SCALE_LIMIT, SCALE_LIMIT, LAYOUT.size)
        signs = generator.choice((-1.0, 1.0), LAYOUT.size)
        scales.append((signs * np.exp(exponents) if scaled else np.abs(signs)).astype("float32"))
    lead = (len(keys), len(keys[0]), LAYOUT.size)
    return np.reshape(places, lead), np.reshape(scales, lead)
