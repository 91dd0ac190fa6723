"""The trainer: carries a policy through its curriculum, and everything safely to disk.

An amalgamation has one phase, or two for the choice scheme: the Choice policy on the meta loss
alone, then RNNProp distilled from it (Huang et al. 2022, Equation 4). A phase is a curriculum;
its state is a few `MetaState`s and a `Progress`, saved between unrolls. Trajectories are not
saved: they derive from their index, so a run taken up again lives the interrupted unroll again,
bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import tensorflow as tf

from l2o.amalgamation.curriculum import Progress, Stage, enter, judge, standard_error
from l2o.amalgamation.estimators import Estimator, make_estimator
from l2o.amalgamation.meta import MetaState, initial_state
from l2o.amalgamation.plan import Meta, Phase, Place
from l2o.amalgamation.state import RunState, pack, unpack
from l2o.amalgamation.unroll import Teacher
from l2o.errors import RunError
from l2o.policies.checkpoint import Policy, save_policy
from l2o.rules import UpdateRule, warmed_up
from l2o.rules.warmup import SHORT
from l2o.runs.cluster import workers
from l2o.runs.directory import CSVLog, RunDirectory
from l2o.runs.lock import DirectoryError
from l2o.runs.signals import handling
from l2o.tasks.batches import Stream
from l2o.tasks.task import Task

CHECKPOINT_SECONDS = 60
UPDATES = ("phase", "stage", "period", "update", "unroll", "step", "meta_loss", "distance",
           "finite", "seconds")  # fmt: skip
PERIODS = ("phase", "stage", "period", "repeats", "unroll", "alpha", "meta_loss", "distance",
           "validation_unroll", "validation_loss", "validation_error", "verdict", "skipped",
           "updates", "seconds")  # fmt: skip


class Stopped(KeyboardInterrupt):
    """The run was interrupted; what it had is saved."""


class Diverged(RunError):
    """The run cannot recover; the policies saved so far are its last good ones."""


class Trainer:
    """Runs the phases of an amalgamation in a run directory.

    Args:
        phases: In order.
        meta: Settings.
        tasks: What it is trained on.
        strategy: A `tf.distribute` strategy.
        directory: Where it is kept.
        card: What every saved policy says of its origin; the trainer adds its own findings.
        callback: Told of events; see `display.Display`.

    Raises:
        DirectoryError: If the directory's checkpoints cannot be read.
        RunError: If there are not examples enough.
    """

    def __init__(
        self,
        phases: tuple[Phase, ...],
        meta: Meta,
        tasks: Sequence[Task],
        strategy: tf.distribute.Strategy,
        directory: RunDirectory,
        card: dict[str, Any],
        callback: Callable[[str, dict[str, Any]], None] = lambda event, facts: None,
    ):
        for task in tasks:
            examples, batch_size = len(task.dataset.train.labels), task.batch_size
            held_out = examples // 10 if meta.held_out else 0
            tenth = meta.held_out and not meta.evolution  # which makes do with a smaller batch
            if (held_out if tenth else examples - held_out) < batch_size:
                need = f"a batch of {batch_size}" + " from the held-out tenth" * tenth
                raise RunError(
                    f"There are not examples enough of {task.name} for {need}. Received: {examples}"
                )
        self._phases, self._meta, self._tasks = phases, meta, tasks
        self._strategy, self._directory = strategy, directory
        self._card, self._callback, self._stopping = card, callback, False
        self._run = self._restore()
        self.resumed = (run := self._run) is not None
        self.over = run is not None and run.progress.finished and run.phase + 1 == len(phases)

    def run(self) -> Policy:
        """Trains to the end, from where the directory's last run got.

        Returns:
            The policy of the last phase.

        Raises:
            Stopped: After SIGINT or SIGTERM, once what there is has been saved.
            Diverged: If a period was lost in its last try; see `curriculum.judge`.
            DirectoryError: If a table that is there is not this run's.
        """
        with handling(self._stop):
            run = self._run or self._fresh(0)
            path = self._directory.path
            with (
                CSVLog(path / "updates.csv", UPDATES, run.updates) as self._updates,
                CSVLog(path / "periods.csv", PERIODS, run.periods) as self._periods,
            ):
                self._clock = self._saved = time.monotonic()
                return self._finish(run)

    def _finish(self, run: RunState) -> Policy:
        """All phases that are left."""
        while True:
            phase = self._phases[run.phase]
            estimator = self._estimator = self._made(phase, run)
            while not run.progress.finished:
                if run.progress.diverged:
                    raise Diverged(_described(phase, run.progress))
                self._advance(phase, estimator, run)
            if run.phase + 1 == len(self._phases):
                return Policy(self._usable(phase.rule), _arrays(run.now.weights), self._card)
            run = replace(
                self._fresh(run.phase + 1), previous=run.now.weights, seconds=self._seconds(run),
                updates=run.updates, periods=run.periods,
            )  # fmt: skip
            self._clock = time.monotonic()
            self._save(run)

    def _stop(self, *_) -> None:
        if self._stopping:  # asked a second time: do not wait for the truncation to end
            raise KeyboardInterrupt
        self._stopping = True
        self._callback("stopping", {})

    def _seconds(self, run: RunState) -> float:
        return run.seconds + time.monotonic() - self._clock

    def _fresh(self, number: int) -> RunState:
        """A run at the start of a phase."""
        phase = self._phases[number]
        weights: Sequence | None = phase.start
        if weights is None:
            generator = np.random.default_rng(Stream.INITIAL_WEIGHTS.key(self._meta.seed, number))
            weights = phase.rule.initial_weights(int(generator.integers(2**20)))
        state = initial_state(weights)
        return RunState(number, Progress(), state, state, state, previous=[])

    def _made(self, phase: Phase, run: RunState) -> Estimator:
        teachers = phase.teachers
        if teachers is None:
            teachers = (Teacher(self._phases[run.phase - 1].rule, run.previous),)
        return make_estimator(phase, self._meta, self._tasks, teachers, self._strategy)

    def _advance(self, phase: Phase, estimator: Estimator, run: RunState) -> None:
        """One period with its validation, before which the stage's start has its own."""
        schedule, progress = phase.schedule, run.progress
        stage = schedule.stages[progress.stage]
        self._train_period(estimator, phase, stage, run)
        if progress.incoming is None:  # only now, as nobody wants to wait for a first update
            losses = self._validate(estimator, phase, stage, run, run.kept)
            progress = run.progress = enter(progress, float(losses.mean()))
            self._save(run)
            self._callback("entered", {"phase": phase, "stage": progress.stage, "losses": losses})
        losses = self._validate(estimator, phase, stage, run, run.now)
        updates = self._updates_of(phase, stage, run)
        skipped = int(run.now.skipped) - int(run.kept.skipped)
        run.progress, verdict = judge(schedule, progress, float(losses.mean()), skipped / updates)
        sums = np.array(run.sums) / (updates - skipped) if skipped < updates else (np.nan, np.nan)
        facts = {
            "phase": phase.name,
            "stage": progress.stage + 1,
            "period": progress.period + 1,
            "repeats": progress.repeats,
            "unroll": stage.unroll(progress.period),
            "alpha": stage.alpha,
            "meta_loss": float(sums[0]),
            "distance": float(sums[1]),
            "validation_unroll": stage.validation_unroll,
            "validation_loss": float(losses.mean()),
            "validation_error": standard_error(losses),
            "verdict": "diverged" if run.progress.diverged else verdict.word,
            "skipped": int(run.now.skipped),
            "updates": run.updates,
            "seconds": round(self._seconds(run), 1),
        }
        self._periods.append(facts)
        run.periods += 1
        run.pieces, run.sums = 0, (0.0, 0.0)
        longer = stage.unroll(progress.period) != stage.unroll(run.progress.period)
        if verdict.stage_over or not verdict.keep or longer:
            run.trajectories, run.origin = [], run.progress.trajectories
        now = run.now if verdict.keep else run.kept
        if verdict.best:
            run.best = now
        if verdict.stage_over:
            now = run.best
        run.now = run.kept = now._replace(skipped=run.now.skipped)  # they stay counted
        if verdict.best:  # before the checkpoint: after it, a crash would leave it undone
            self._save_policy(phase, run, facts)
        self._save(run)
        self._callback("period", facts | {"stage_over": verdict.stage_over})

    def _train_period(
        self, estimator: Estimator, phase: Phase, stage: Stage, run: RunState
    ) -> None:
        """The pieces of a period that are not behind yet."""
        schedule, progress = phase.schedule, run.progress
        unroll = stage.unroll(progress.period)
        span, updates = estimator.span(unroll), self._updates_of(phase, stage, run)
        place = Place(
            Stream.TRAINING.key(self._meta.seed, run.phase), progress.trajectories, run.origin, 0,
            unroll, self._meta.warmup_steps if progress.period >= stage.cold_periods else 0,
        )  # fmt: skip
        for number in range(run.pieces, updates // span):
            share = (progress.period + number * span / updates) / schedule.max_periods
            begun, place = time.monotonic(), place._replace(number=number, share=share)
            state, behind, sums = run.now, run.updates, np.array(run.sums)
            trajectories = estimator.begin(state.weights, place, run.trajectories)
            for step in range(span):
                self._leave_if_stopping(run)
                left_out = int(state.skipped)
                state, trajectories, result = estimator.update(
                    state, trajectories, place, step, stage.alpha
                )
                meta_loss, distance = float(result.meta_loss), float(result.distance)
                finite = int(state.skipped) == left_out
                seconds, begun = time.monotonic() - begun, time.monotonic()
                behind += 1
                if finite:
                    sums += (meta_loss, distance)
                row = (phase.name, progress.stage + 1, progress.period + 1, behind, unroll,
                       step * schedule.truncation, meta_loss, distance, int(finite),
                       round(seconds, 3))  # fmt: skip
                self._updates.append(dict(zip(UPDATES, row, strict=True)))
                self._callback(
                    "update",
                    {
                        "phase": phase, "run": run, "meta_loss": meta_loss,
                        "distance": distance, "finite": finite, "seconds": seconds,
                        "unroll": unroll, "done": number * span + step + 1, "total": updates,
                        "speed": estimator.inner_steps() / seconds,
                    },
                )  # fmt: skip
            run.now, run.pieces, run.trajectories = state, number + 1, trajectories
            run.updates, run.sums = behind, (float(sums[0]), float(sums[1]))
            self._leave_if_stopping(run)
            if time.monotonic() - self._saved > CHECKPOINT_SECONDS:
                self._save(run, together=False)
        self._save(run)

    def _updates_of(self, phase: Phase, stage: Stage, run: RunState) -> int:
        """Meta-updates of the present period."""
        schedule = phase.schedule
        unrolls = schedule.period // schedule.meta_batch
        return unrolls * (stage.unroll(run.progress.period) // schedule.truncation)

    def _leave_if_stopping(self, run: RunState) -> None:
        if self._stopping:
            self._save(run, together=False)
            raise Stopped

    def _validate(
        self, estimator: Estimator, phase: Phase, stage: Stage, run: RunState, state: MetaState
    ) -> np.ndarray:
        """Meta losses [V] of a policy on the fixed trajectories."""
        schedule, done = phase.schedule, 0.0
        steps = schedule.validation_trajectories * stage.validation_unroll

        def tick(seconds: float, share: float) -> None:
            nonlocal done
            done += share
            facts = {"phase": phase, "run": run, "done": done * steps, "total": steps}
            self._callback("validating", facts | {"each": seconds / (share * steps)})
            self._leave_if_stopping(run)

        return estimator.validate(
            state.weights,
            Stream.VALIDATION.key(self._meta.seed, run.phase),
            schedule.validation_trajectories,
            stage.validation_unroll,
            tick,
        )

    def _save_policy(self, phase: Phase, run: RunState, facts: dict[str, Any]) -> None:
        card = self._card | {
            "phase": phase.name,
            "schedule": asdict(phase.schedule),
            "validation": {k: facts[k] for k in ("validation_loss", "validation_unroll",
                                                 "stage", "period")},
            "updates": facts["updates"],
            "seconds": facts["seconds"],
        }  # fmt: skip
        path, rule = self._directory.path / phase.name, self._usable(phase.rule)
        save_policy(path, rule, _arrays(run.best.weights), card)

    def _usable(self, rule: UpdateRule) -> UpdateRule:
        """A trained rule as it is to be used: after no more of a warm-up than in training."""
        return warmed_up(rule, min(SHORT, self._meta.warmup_steps), self._meta.warmup_rate)

    def _save(self, run: RunState, together: bool = True) -> None:
        """Saves the run; `together`, where all workers do at the same point of it."""
        if self._meta.evolution and workers() and not together:
            return  # their particles could not be gathered
        self._updates.sync()
        self._periods.sync()
        now = time.monotonic()
        run.seconds, self._clock, self._saved = self._seconds(run), now, now
        kept = self._estimator.kept(run.trajectories) if run.trajectories else []
        self._directory.save(*pack(replace(run, trajectories=kept)))

    def _restore(self) -> RunState | None:
        saved = self._directory.load()
        if saved is None:
            return None
        try:
            fresh = self._fresh(saved[1]["phase"])
            run = unpack(*saved, fresh)
            self._phases[run.phase].schedule.stages[run.progress.stage]
            return run
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise DirectoryError(
                f"The checkpoint in {self._directory.path} is no checkpoint of this run: "
                f"{' '.join(str(error).split())}"
            ) from error


def _described(phase: Phase, progress: Progress) -> str:
    """What a run that diverged says."""
    times = "" if not progress.repeats else f" in the last of {progress.repeats + 1} tries"
    return (
        f"The meta-updates or the validation of {phase.name}, stage {progress.stage + 1}, period "
        f"{progress.period + 1} were not finite{times}, so the run cannot go on"
    )


def _arrays(tensors: list) -> list[np.ndarray]:
    return [np.asarray(t) for t in tensors]
