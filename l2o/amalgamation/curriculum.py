"""The curriculum: which unrolls to train on, and what to make of each validation.

Plain Python, pure functions on frozen dataclasses: the trainer does the work, this says what the
work is (Huang et al. 2022, Algorithm 1 and Appendix B). A stage is a run of periods; after each
the policy is validated, and `judge` says whether to keep it, whether it is the stage's best,
whether to undo it, and whether the stage is over.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from math import inf, isfinite

import numpy as np

MOST_STEPS = 100_000
MOST_SKIPPED = 0.5  # of a period's meta-updates


@dataclass(frozen=True)
class Stage:
    """Periods under one validation.

    Attributes:
        unrolls: N of each period; the last one holds for all that follow.
        validation_unroll: N of the validation after each period.
        alpha: Weight of the distance to the teachers.
        cold_periods: Periods at the start whose unrolls have no warm-up.
    """

    unrolls: tuple[int, ...]
    validation_unroll: int
    alpha: float = 0.0
    cold_periods: int = 0

    def unroll(self, period: int) -> int:
        """N of period number `period` of this stage, counted from 0."""
        return self.unrolls[min(period, len(self.unrolls) - 1)]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The rules by which periods and stages end.

    Attributes:
        truncation: T, inner steps a meta-update.
        meta_batch: Trajectories a meta-update.
        period: Trajectories a period (the paper's meta-epochs), after which the policy is
            validated.
        min_periods: Fewest periods of a stage.
        max_periods: Most periods of a stage.
        patience: A stage ends after so many periods without a new best.
        max_repeats: How often a period that made things worse is undone and repeated.
        tolerance: A validation loss worse than the reference by more than this share of the
            reference's size undoes the period.
        validation_trajectories: Fixed trajectories that a validation averages over.

    Raises:
        ValueError: For values that cannot be.
    """

    truncation: int = 100
    meta_batch: int = 4
    period: int = 40
    min_periods: int = 5
    max_periods: int = 20
    patience: int = 5
    max_repeats: int = 4
    tolerance: float = 0.5
    validation_trajectories: int = 4

    def __post_init__(self):
        positive = ("truncation", "meta_batch", "period", "min_periods", "max_periods", "patience")
        for name in (*positive, "validation_trajectories"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1. Received: {getattr(self, name)}")
        # A meta-update's batches are drawn together.
        if self.truncation * self.meta_batch > MOST_STEPS:
            raise ValueError(
                f"A meta-update has at most {MOST_STEPS:,} inner steps: the truncation times the "
                f"meta-batch. Received: {self.truncation} and {self.meta_batch}"
            )
        if self.max_repeats < 0 or not 0 < self.tolerance < inf:
            raise ValueError(
                "max_repeats must be at least 0 and tolerance positive and finite. "
                f"Received: {self.max_repeats} and {self.tolerance}"
            )
        if self.max_periods < self.min_periods:
            raise ValueError(
                f"max_periods must be at least min_periods, {self.min_periods}. "
                f"Received: {self.max_periods}"
            )
        if self.period % self.meta_batch:
            raise ValueError(
                "A period's trajectories must be a multiple of the meta-batch. "
                f"Received: {self.period} and {self.meta_batch}"
            )


@dataclass(frozen=True)
class Stages(Pace):
    """The curriculum of one policy: its stages, in order, and the rules by which they end.

    Raises:
        ValueError: For values that cannot be.
    """

    stages: tuple[Stage, ...]

    def __post_init__(self):
        super().__post_init__()
        if not self.stages:
            raise ValueError("A schedule needs at least one stage. Received: none")
        for stage in self.stages:
            if not stage.unrolls:
                raise ValueError("A stage needs at least one unroll. Received: none")
            unrolls = [("unroll N", unroll) for unroll in stage.unrolls]
            for which, unroll in (*unrolls, ("unroll of a validation", stage.validation_unroll)):
                if unroll < 1 or unroll % self.truncation:
                    raise ValueError(
                        f"Every {which} must be a positive multiple of the truncation, "
                        f"{self.truncation}. Received: {unroll}"
                    )
            if not 0 <= stage.alpha < inf:
                raise ValueError(f"alpha must be at least 0 and finite. Received: {stage.alpha}")
            if stage.cold_periods < 0:
                raise ValueError(f"cold_periods must be at least 0. Received: {stage.cold_periods}")


@dataclass(frozen=True, kw_only=True)
class Curriculum(Pace):
    """What may be chosen about the schedules of a run; the paper's by default.

    Attributes:
        unrolls: Inner steps of an unroll, one value a stage.
        alphas: Weight of the distance to the teachers, one value a stage.
        last_validation: Inner steps of the last stage's validation; the others have the next
            stage's unroll.
        choice_unrolls: Inner steps of the Choice policy's unrolls, one value a period.
        choice_validation: Inner steps of the Choice policy's validation.
        choice_cold_periods: First periods of the Choice policy without warm-up.

    Raises:
        ValueError: For values that cannot be.
    """

    unrolls: tuple[int, ...] = (100, 200, 500, 1000)
    alphas: tuple[float, ...] = (0.2, 0.1, 0.05, 0.02)
    last_validation: int = 2000
    choice_unrolls: tuple[int, ...] = (100, 200, 500, 500, 500)
    choice_validation: int = 1000
    choice_cold_periods: int = 1

    def __post_init__(self):
        super().__post_init__()
        self.schedule  # noqa: B018  its own checks

    @property
    def schedule(self) -> Stages:
        """The policy's: one stage an unroll, each validated on the next one's."""
        if len(self.unrolls) != len(self.alphas):
            raise ValueError(
                f"Each stage needs one unroll and one alpha. Received: {len(self.unrolls)} unrolls "
                f"and {len(self.alphas)} alphas"
            )
        validations = (*self.unrolls[1:], self.last_validation)
        return self._paced(
            Stage((n,), validation, alpha)
            for n, validation, alpha in zip(self.unrolls, validations, self.alphas, strict=True)
        )

    @property
    def choice(self) -> Stages:
        """The Choice policy's: as many periods as unrolls.

        Raises:
            ValueError: If its unrolls cannot be.
        """
        stage = Stage(
            self.choice_unrolls, self.choice_validation, cold_periods=self.choice_cold_periods
        )
        count = len(stage.unrolls)
        try:
            lone = {"min_periods": count, "max_periods": count, "patience": count}
            return self._paced([stage], **lone)
        except ValueError as error:
            raise ValueError(f"Schedule of the Choice policy: {error}") from error

    def _paced(self, stages: Iterable[Stage], **changes: int) -> Stages:
        pace = {f.name: getattr(self, f.name) for f in fields(Pace)}
        return Stages(tuple(stages), **(pace | changes))


@dataclass(frozen=True)
class Progress:
    """Where a curriculum is.

    Attributes:
        stage: Index of the stage.
        period: Periods of it that are behind, undone ones not counted.
        repeats: How often the present period has been undone.
        trajectories: Trajectories used up so far, undone ones included: no two periods see the
            same.
        incoming: Validation loss of the checkpoint the stage began with; None until it is known.
        best: The stage's best validation loss, or None before there is one.
        best_period: The period it came after.
        finished: Whether the last stage is over.
        diverged: Whether the run ended before it, without a way on.
    """

    stage: int = 0
    period: int = 0
    repeats: int = 0
    trajectories: int = 0
    incoming: float | None = None
    best: float | None = None
    best_period: int = 0
    finished: bool = False
    diverged: bool = False


@dataclass(frozen=True)
class Verdict:
    """What the trainer is to do after a validation.

    Attributes:
        keep: Go on from the present policy; otherwise from the last one that was kept.
        best: Remember the present policy as the stage's best.
        exploded: The validation was worse than the reference allows, or the period was lost.
        stage_over: Take up the stage's best policy; the next stage, if any, begins with it.
        behind: The stage's best, but not as good as the policy it began with.
    """

    keep: bool
    best: bool = False
    exploded: bool = False
    stage_over: bool = False
    behind: bool = False

    @property
    def word(self) -> str:
        """In a table."""
        if self.exploded:
            return "exploded, kept" if self.keep else "exploded, undone"
        if self.best:
            return "best, behind the stage's start" if self.behind else "best"
        return "kept"


def enter(progress: Progress, loss: float) -> Progress:
    """The stage begins: `loss` is the incoming checkpoint's under the stage's validation."""
    return replace(progress, incoming=loss if isfinite(loss) else inf)


def standard_error(losses: np.ndarray) -> float:
    """Of the mean of a validation's losses; 0 where there is one, NaN where not all are finite."""
    if len(losses) < 2 or not np.isfinite(losses).all():
        return 0.0 if len(losses) == 1 else float("nan")
    return float(losses.std(ddof=1) / np.sqrt(len(losses)))


def judge(
    schedule: Stages, progress: Progress, loss: float, skipped: float = 0.0
) -> tuple[Progress, Verdict]:
    """What to make of a period.

    The reference is the stage's best so far, and before there is one the incoming checkpoint's
    loss. A period that explodes is undone and repeated on fresh trajectories.

    Our choices where the paper is silent: a period is lost, and counts as exploded, if its
    validation is not finite or more than half of its meta-updates were left out because they were
    not. Once the repeats are used up, a period that exploded counts and training goes on from where
    it is; but a lost one ends the run, since all tries began with the same policy. The incoming
    checkpoint does not count for the stage's best, which is the best of the periods.

    Args:
        schedule: The curriculum.
        progress: Where it is.
        loss: The validation loss after the period.
        skipped: Share of the period's meta-updates that were left out.

    Raises:
        ValueError: Before the stage was entered, or after the last one is over.
    """
    if progress.incoming is None or progress.finished or progress.diverged:
        raise ValueError(f"There is no period to judge. Received: {progress}")
    start = progress.incoming
    reference = start if progress.best is None else progress.best
    progress = replace(progress, trajectories=progress.trajectories + schedule.period)
    lost = not isfinite(loss) or skipped > MOST_SKIPPED
    exploded = lost or loss > reference + schedule.tolerance * abs(reference)
    if exploded and progress.repeats < schedule.max_repeats:
        return replace(progress, repeats=progress.repeats + 1), Verdict(False, exploded=True)
    if lost:
        return replace(progress, diverged=True), Verdict(False, exploded=True)
    period = progress.period + 1
    progress = replace(progress, period=period, repeats=0)
    best = progress.best is None or loss < progress.best
    if best:
        progress = replace(progress, best=loss, best_period=period)
    over = period >= last_period(schedule, progress)
    verdict = Verdict(True, best, exploded, over, behind=best and loss > start)
    if over and progress.stage + 1 < len(schedule.stages):
        progress = Progress(progress.stage + 1, trajectories=progress.trajectories)
    elif over:
        progress = replace(progress, finished=True)
    return progress, verdict


def last_period(schedule: Stages, progress: Progress) -> int:
    """The number of periods after which the stage ends if no new best comes."""
    patient = progress.best_period + schedule.patience
    return min(max(schedule.min_periods, patient), schedule.max_periods)


def steps_left(schedule: Stages, progress: Progress) -> list[tuple[int, int]]:
    """Inner steps still to come, (training, validation) for each stage from the present one on.

    The present stage is counted to where it ends without a new best, later ones to their fewest
    periods.
    """
    if progress.finished:
        return []
    left = []
    for number, stage in enumerate(schedule.stages[progress.stage :]):
        behind = progress.period if number == 0 else 0
        end = last_period(schedule, progress if number == 0 else Progress())
        training = schedule.period * sum(stage.unroll(p) for p in range(behind, end))
        validations = end - behind + (number > 0 or progress.incoming is None)
        unrolled = schedule.validation_trajectories * stage.validation_unroll
        left.append((training, validations * unrolled))
    return left
