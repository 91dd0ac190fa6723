"""The plan of an amalgamation: its settings, and the phases it is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from l2o.amalgamation.curriculum import MOST_STEPS, Progress, Stages, steps_left
from l2o.amalgamation.episodes import Evolution
from l2o.amalgamation.losses import META_LOSSES
from l2o.amalgamation.meta import CLIP_FLOOR, CLIP_RATIO
from l2o.amalgamation.perturbation import Perturbation
from l2o.amalgamation.unroll import SCALE_LIMIT, Teacher
from l2o.rules import Original, RNNProp, Scale, TensorChoice, UpdateRule

MOST_SEED = 2**32 - 1  # NumPy's global generator takes no larger one
POLICIES: dict[str, type[UpdateRule]] = {
    p.name: p for p in (RNNProp, Original, Scale, TensorChoice)
}


@dataclass(frozen=True)
class Meta:
    """Settings of the meta-training that the curriculum does not have.

    Attributes:
        seed: Everything random derives from it.
        learning_rate: Of the meta-optimizer, Adam.
        clip_ratio: Longest meta-gradient of a weight tensor, in lengths of the tensor; see
            `meta.clip`.
        clip_floor: A shorter tensor counts as this long.
        warmup_steps: Steps of plain SGD before an unroll. A fit with the policy begins with as
            many, but 20 at most.
        warmup_rate: Their learning rate.
        scaling: Random scaling, for RNNProp.
        scale_limit: Largest logarithm of a scale: coordinates are scaled by exp(U(-S, S)) with a
            random sign (after Lv et al. 2017, where S is 3).
        first_order: No meta-gradient through the network's gradient: faster, less exact.
        recompute: The policy's memory is kept for the backward pass every so many steps at most,
            and computed again between; 0 keeps it at every step: a little faster, more memory.
        held_out: The meta loss is measured on a tenth of the data, drawn for each unroll, that the
            unroll never trains on (after Metz et al. 2019).
        meta_loss: "log": of log loss; "difference": of the loss itself, which may then be zero or
            negative.
        perturbation: Of the policy while it is trained: "gaussian": noise on the weights;
            "adversarial", "pgd" or "fgsm": weights moved to where the loss is higher; "input":
            noise on the gradients that it sees.
        evolution: How an evolution strategy estimates the meta-gradient; none: it is taken by
            backpropagation through truncations.
    """

    seed: int = 0
    learning_rate: float = 1e-3
    clip_ratio: float = CLIP_RATIO
    clip_floor: float = CLIP_FLOOR
    warmup_steps: int = 100
    warmup_rate: float = 0.01
    scaling: bool = True
    scale_limit: float = SCALE_LIMIT
    first_order: bool = False
    recompute: int = 10
    held_out: bool = False
    meta_loss: str = "log"
    perturbation: Perturbation | None = None
    evolution: Evolution | None = None

    def __post_init__(self):
        for name in ("learning_rate", "clip_ratio", "clip_floor", "warmup_rate", "scale_limit"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be a number above 0. Received: {getattr(self, name)}"
                )
        for name in ("seed", "warmup_steps", "recompute"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0. Received: {getattr(self, name)}")
        if self.warmup_steps > MOST_STEPS:
            raise ValueError(
                f"warmup_steps must be at most {MOST_STEPS}. Received: {self.warmup_steps}"
            )
        if self.meta_loss not in META_LOSSES:
            raise ValueError(
                f"Unknown meta_loss. Allowed: {', '.join(META_LOSSES)}. Received: {self.meta_loss}"
            )
        if self.seed > MOST_SEED:
            raise ValueError(f"seed must be at most {MOST_SEED}. Received: {self.seed}")
        if self.evolution and self.perturbation:
            raise ValueError(
                "A perturbation is for backpropagation; an evolution strategy adds noise by itself"
            )


@dataclass(frozen=True)
class Phase:
    """One policy to be trained.

    Attributes:
        name: Also the name of its directory in the run's.
        rule: The policy.
        scheme: How it is amalgamated.
        schedule: Its curriculum.
        teachers: Whom it imitates; `None` means the policy of the phase before.
        start: Weights it begins with; `None` draws them from the run's seed.
    """

    name: str
    rule: UpdateRule
    scheme: str
    schedule: Stages
    teachers: tuple[Teacher, ...] | None = ()
    start: tuple[np.ndarray, ...] | None = None


class Place(NamedTuple):
    """Where a phase is, between two checkpoints.

    Attributes:
        key: Names the phase's stream of trajectories.
        behind: Trajectories of all periods before this one.
        origin: As many, when that began which this period goes on with.
        number: The piece of the period; a run is saved between pieces.
        unroll: N.
        warmup: Steps of plain SGD before an unroll.
        share: Of the stage's longest run of periods, what is behind.
    """

    key: Sequence[int]
    behind: int
    origin: int
    number: int
    unroll: int
    warmup: int
    share: float = 0.0


def inner_steps_left(phases: tuple[Phase, ...], number: int, progress: Progress):
    """(training, validation) inner steps of the present stage, and of the whole run.

    Trajectories are counted one by one, whether or not they run side by side.
    """
    here = steps_left(phases[number].schedule, progress)
    later = [steps for p in phases[number + 1 :] for steps in steps_left(p.schedule, Progress())]
    total = np.sum([*here, *later, (0, 0)], axis=0)
    return (here[0] if here else (0, 0)), (int(total[0]), int(total[1]))
