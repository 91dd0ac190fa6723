"""The plan of an amalgamation: its settings, and the phases it is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from l2o.amalgamation.curriculum import MOST_STEPS, Progress, Schedule, steps_left
from l2o.amalgamation.meta import CLIP_FLOOR, CLIP_RATIO
from l2o.amalgamation.perturbation import Perturbation
from l2o.amalgamation.unroll import SCALE_LIMIT, Teacher
from l2o.rules import Choice, Original, RNNProp, Scale, UpdateRule, get_pool

MOST_SEED = 2**32 - 1  # NumPy's global generator takes no larger one
POLICIES: dict[str, type[UpdateRule]] = {p.name: p for p in (RNNProp, Original, Scale)}


@dataclass(frozen=True)
class Meta:
    """Settings of the meta-training that the curriculum does not have.

    Attributes:
        seed: Everything random derives from it.
        learning_rate: Of the meta-optimizer, Adam.
        clip_ratio, clip_floor: Of the meta-gradient; see `meta.clip`.
        warmup_steps, warmup_rate: Plain SGD before an unroll.
        scaling: Random scaling, for RNNProp.
        scale_limit: Largest logarithm of a scale.
        first_order: No meta-gradient through the network's gradient.
        recompute: The policy's memory is kept for the backward pass every so many steps at most,
            and computed again between; 0 keeps it at every step.
        held_out: The meta loss is measured on examples that its unroll never trains on.
        meta_loss: "log", or "difference" for a loss that need not be positive.
        perturbation: Of the policy while it is trained.
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
        if self.seed > MOST_SEED:
            raise ValueError(f"seed must be at most {MOST_SEED}. Received: {self.seed}")


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
    schedule: Schedule
    teachers: tuple[Teacher, ...] | None = ()
    start: tuple[np.ndarray, ...] | None = None


def plan(
    strategy: str,
    pool: str,
    schedule: Schedule,
    choice: Schedule | None = None,
    rule: UpdateRule | None = None,
) -> tuple[Phase, ...]:
    """The phases of an amalgamation strategy.

    Args:
        strategy: "none", "mean", "minmax" or "choice".
        pool: Name of the pool of teachers.
        schedule: Curriculum of the policy.
        choice: Curriculum of the Choice policy, for "choice" only.
        rule: The policy; RNNProp by default.
    """
    teachers, rule = get_pool(pool), rule or RNNProp()
    if strategy == "choice":
        return (
            Phase("choice", Choice(teachers), "none", choice),
            Phase("policy", rule, "mean", schedule, teachers=None),
        )
    imitated = () if strategy == "none" else tuple(Teacher(teacher, []) for teacher in teachers)
    return (Phase("policy", rule, strategy, schedule, imitated),)


def inner_steps_left(phases: tuple[Phase, ...], number: int, progress: Progress):
    """(training, validation) inner steps of the present stage, and of the whole run.

    Trajectories are counted one by one, whether or not they run side by side.
    """
    here = steps_left(phases[number].schedule, progress)
    later = [steps for p in phases[number + 1 :] for steps in steps_left(p.schedule, Progress())]
    total = np.sum([*here, *later, (0, 0)], axis=0)
    return (here[0] if here else (0, 0)), (int(total[0]), int(total[1]))
