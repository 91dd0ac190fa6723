"""The unroll: a policy trains a network, and the meta-gradient goes back through all of it.

`inner_step` is one step of any rule on any network. A `Trajectory` holds everything one unroll
carries from truncation to truncation. Three pure functions move it on: `warm_up` (plain SGD at the
start), `run_teachers` (the teachers' steps, outside the meta-gradient) and `run_student`.
`truncation` puts the last two together and takes the meta-gradient (Huang et al. 2022,
Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from l2o.amalgamation.losses import META_LOSSES, SCHEMES, log_distance
from l2o.amalgamation.perturbation import Perturbation, Perturbed, attacked
from l2o.amalgamation.recompute import Recomputed, recomputed_gradient, scan, unrolled
from l2o.problems.dataset import Batch
from l2o.rules.base import Horizon, State, UpdateRule
from l2o.tasks.batches import Stream
from l2o.tasks.task import Scaled, Task, loss_and_gradient, random_scale

SCALE_LIMIT = 1.0  # random scaling: s = ±exp(U(-1, 1)), where Lv et al. 2017 have exp(U(-3, 3))
# Squared distances to a teacher must not overflow either, in coordinates divided by any scale.
DISTANCE_MARGIN = 1e3


class Runner(NamedTuple):
    """One optimizer on its way: parameters [D], what the network carries, the rule's state."""

    parameters: Any
    carried: list
    state: State


def inner_step(
    task: Task | Scaled,
    rule: UpdateRule,
    weights: list,
    runner: Runner,
    batch: Batch,
    gradient_of: Callable[..., Any] = loss_and_gradient,
    horizon: Horizon | None = None,
) -> tuple[Any, Runner]:
    """One inner step: the gradient of the batch's loss, the rule's update, the new runner.

    Args:
        task: What is trained.
        rule: What trains it.
        weights: The rule's; empty for an analytical one.
        runner: Where the step begins.
        batch: What the gradient is taken on.
        gradient_of: (task, parameters, carried, batch) -> loss, `gradient` and `carried`.
        horizon: How long the fit is, where that is known.

    Returns:
        What `gradient_of` returned, and the runner after the step.
    """
    parameters, carried, state = runner
    seen = gradient_of(task, parameters, carried, batch)
    move, state = rule.update(weights, seen.gradient, parameters, state, task.layout, horizon)
    return seen, Runner(parameters - move, seen.carried, state)


class Trajectory(NamedTuple):
    """What an unroll carries from one truncation to the next.

    Attributes:
        student: In coordinates divided by `scale`.
        start: The student's parameters [D] and carried values where the unroll began, after
            warm-up.
        scale: [D], of ones where there is no random scaling.
        teachers: One runner a teacher, in clean coordinates.
        seed: int32 [2], of the noise in every step.
        step: int32 scalar, the student's steps so far.
    """

    student: Runner
    start: tuple[Any, list]
    scale: Any
    teachers: list[Runner]
    seed: Any
    step: Any


class TruncationResult(NamedTuple):
    """What a truncation came to, all float scalars.

    Attributes:
        meta_loss: mean_i [log M(x_i, theta_i) - log M(x_i, theta_0)], or as the job has it.
        distance: The scheme's distance to the teachers; 0 without teachers.
        finite: 1 if losses, parameters, states and meta-gradient are all finite, else 0.
    """

    meta_loss: Any
    distance: Any
    finite: Any


class Teacher(NamedTuple):
    """A rule to be imitated, with its weights (empty for an analytical one)."""

    rule: UpdateRule
    weights: list


@dataclass(frozen=True)
class Amalgamation:
    """Who learns what from whom, on which network: all that is fixed while tracing.

    Attributes:
        rule: The student's policy.
        teachers: Whom it imitates.
        scheme: A name in `SCHEMES`.
        task: The network.
        warmup_rate: SGD's rate during warm-up.
        first_order: Whether the meta-gradient stops at the network's gradient.
        recompute: Most steps of a segment; see `unrolled`.
        perturbation: Of the policy in `truncation`, or none.
        meta_loss: A name in `META_LOSSES`: "log", or "difference", without logarithms, for a loss
            that need not be positive.
        start: About the loss of this network before a fit; 0 is not known.
        gain: What the meta loss is divided by: about what there is to gain on this network.
    """

    rule: UpdateRule
    teachers: tuple[Teacher, ...]
    scheme: str
    task: Task
    warmup_rate: float = 0.01
    first_order: bool = False
    recompute: int = 0
    perturbation: Perturbation | None = None
    meta_loss: str = "log"
    start: float = 0.0
    gain: float = 1.0

    def __post_init__(self):
        for kind, name, known in (
            ("scheme", self.scheme, SCHEMES),
            ("meta loss", self.meta_loss, META_LOSSES),
        ):
            if name not in known:
                allowed = ", ".join(known)
                raise ValueError(f"Unknown {kind}. Allowed: {allowed}. Received: {name}")
        if any(rule.needs_horizon for rule in (self.rule, *(t.rule for t in self.teachers))):
            raise ValueError("A schedule in meta-training needs steps of its own")
        if (SCHEMES[self.scheme] is None) != (not self.teachers):
            raise ValueError(
                f"Scheme '{self.scheme}' and {len(self.teachers)} teachers do not go together: "
                "'none' has no teachers, every other scheme needs at least one"
            )

    def measured(self, loss):
        """What the meta loss is made of, of a loss or of a tensor of losses."""
        return META_LOSSES[self.meta_loss](loss) / self.gain


def begin(
    job: Amalgamation, key: Sequence[int], scaled: bool, limit: float = SCALE_LIMIT
) -> Trajectory:
    """A fresh trajectory, everything random in it derived from `key`.

    Args:
        job: The amalgamation.
        key: Integers that name the trajectory: run seed, phase, stream, index.
        scaled: Whether the student works in randomly scaled coordinates.
        limit: Largest logarithm of a scale's size. Its sign is random too, so that a step which
            does not depend on the gradient leads nowhere.
    """
    layout = job.task.layout
    generator = np.random.default_rng(Stream.START.key(*key))
    parameters, carried = job.task.initial(int(generator.integers(2**31)))
    scale = random_scale(generator, layout.size, limit) if scaled else np.ones(layout.size)
    scale = scale.astype(parameters.dtype)
    student = Runner(parameters / scale, carried, job.rule.initial_state(layout))
    teachers = [Runner(parameters, carried, t.rule.initial_state(layout)) for t in job.teachers]
    seed = np.random.default_rng(Stream.NOISE.key(*key)).integers(2**31, size=2, dtype="int32")
    trajectory = Trajectory(student, student[:2], scale, teachers, seed, np.int32(0))
    return tf.nest.map_structure(tf.convert_to_tensor, trajectory)


def warm_up(job: Amalgamation, weights: list, trajectory: Trajectory, batches: Batch) -> Trajectory:
    """Plain SGD in clean coordinates over W batches; moments follow, the teachers' too.

    Returns:
        The trajectory after it, or, if that is not finite, the one that came in.
    """
    layout, scale = job.task.layout, trajectory.scale

    def step(trajectory, batch):
        parameters, carried, state = trajectory.student
        clean = parameters * scale
        _, gradient, carried = loss_and_gradient(job.task, clean, carried, batch)
        after = clean - job.warmup_rate * gradient
        state = job.rule.observe(weights, gradient * scale, parameters, state, layout)
        student = Runner(after / scale, carried, state)
        teachers = [
            Runner(after, carried, t.rule.observe(t.weights, gradient, clean, old.state, layout))
            for t, old in zip(job.teachers, trajectory.teachers, strict=True)
        ]
        return trajectory._replace(student=student, start=student[:2], teachers=teachers), ()

    warm, _ = scan(step, trajectory, batches, like=())
    return choose(all_finite(warm), warm, trajectory)


def run_teachers(
    job: Amalgamation, runners: list[Runner], batches: Batch
) -> tuple[Any, list[Runner]]:
    """The teachers' steps over T batches.

    A step that is not finite, or so far that distances would not be, is not taken: the teacher
    waits where it is.

    Returns:
        Parameters [T, K, D] after each step, in clean coordinates, and the runners.
    """

    def step(runners, batch):
        moved = []
        for (rule, weights), old in zip(job.teachers, runners, strict=True):
            _, new = inner_step(job.task, Recomputed(rule), weights, old, batch)
            reach = tf.reduce_sum(tf.square(DISTANCE_MARGIN * new.parameters))
            moved.append(choose(all_finite([new, reach]), new, old))
        return moved, tf.stack([runner.parameters for runner in moved])

    runners, path = scan(step, runners, batches, like=runners[0].parameters)
    return path, runners


def run_student(
    job: Amalgamation,
    weights: list,
    trajectory: Trajectory,
    batches: Batch,
    path=None,
    judged: Batch | tuple = (),
):
    """The student's steps over T batches.

    Args:
        job: The amalgamation.
        weights: The student's.
        trajectory: Where it stands.
        batches: T of them.
        path: The teachers' parameters [T, K, D] after each step, in clean coordinates, or None.
        judged: T batches for the losses, if those are not `batches`.

    Returns:
        log M(x_i, theta_i) [T] (or as `job.meta_loss` has it), distances [T, K] (or an empty
        [T, 0]), and the trajectory, in which only the student has moved on.
    """
    steps, scale = int(batches.labels.shape[0]), trajectory.scale
    task = Scaled(job.task, scale)
    if path is None:
        path = tf.zeros((steps, 0, task.layout.size), scale.dtype)

    def step(weights, runner, entry, known):
        batch, judged, goals, number = entry
        rule = Perturbed(Recomputed(job.rule), job.perturbation, trajectory.seed, number)
        gradient_of = lambda *at: recomputed_gradient(*at, judged, known, job.first_order)  # noqa: E731
        seen, runner = inner_step(task, rule, weights, runner, batch, gradient_of)
        # Stopped here, as a loop's gradient goes to the loop's constants too.
        goals = tf.stop_gradient(goals / scale)
        return runner, seen, log_distance(runner.parameters, goals)

    entries = (batches, judged, path, trajectory.step + tf.range(steps))
    losses, distances, runner = unrolled(step, weights, trajectory.student, entries, job.recompute)
    after = trajectory._replace(student=runner, step=trajectory.step + steps)
    return job.measured(losses), distances, after


def start_losses(job: Amalgamation, trajectory: Trajectory, batches: Batch):
    """log M(x_i, theta_0) [T] over T batches, or as `job.meta_loss` has it."""
    task = Scaled(job.task, trajectory.scale)
    loss = lambda batch: job.measured(task.loss(*trajectory.start, batch, training=True)[0])  # noqa: E731
    return tf.map_fn(loss, batches, fn_output_signature=trajectory.scale.dtype)


def truncation(
    job: Amalgamation, weights: list, trajectory: Trajectory, batches: Batch, alpha, judged=()
):
    """One truncation with its meta-gradient.

    Args:
        job: The amalgamation.
        weights: The student's.
        trajectory: Where the unroll stands, after warm-up.
        batches: T batches.
        alpha: Weight of the distance.
        judged: T held-out batches for the meta loss, or () if `batches` are for that too.

    Returns:
        Meta-gradient (a list like `weights`) at the perturbed weights, the trajectory after it,
        and a `TruncationResult`. What is not finite leaves no trace: the trajectory is then the one
        that came in.
    """
    scheme, path, teachers = SCHEMES[job.scheme], None, trajectory.teachers
    if scheme is not None:
        path, teachers = run_teachers(job, trajectory.teachers, batches)

    def learn(weights):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            losses, distances, after = run_student(job, weights, trajectory, batches, path, judged)
            distance = tf.zeros((), losses.dtype) if scheme is None else scheme(distances)
            loss = tf.reduce_mean(losses) + alpha * distance
        gradient = tape.gradient(loss, weights, unconnected_gradients="zero")
        return gradient, losses, distance, after

    weights = attacked(job.perturbation, weights, lambda weights: learn(weights)[0])
    gradient, losses, distance, after = learn(weights)
    meta_loss = tf.reduce_mean(losses - start_losses(job, trajectory, judged or batches))
    after = after._replace(teachers=teachers)
    finite = all_finite([gradient, after, meta_loss, distance])
    result = TruncationResult(meta_loss, distance, tf.cast(finite, losses.dtype))
    return gradient, choose(finite, after, trajectory), result


def validate_truncation(
    job: Amalgamation, weights: list, trajectory: Trajectory, batches: Batch, judged=()
):
    """`truncation` without teachers, perturbation and meta-gradient: what validation runs.

    Returns:
        The trajectory after it and the mean meta loss, which may be infinite or NaN.
    """
    job = replace(job, perturbation=None)
    losses, _, after = run_student(job, weights, trajectory, batches, judged=judged)
    meta_loss = tf.reduce_mean(losses - start_losses(job, trajectory, judged or batches))
    return after, meta_loss


def all_finite(structure):
    """Whether every float of every tensor in `structure` is finite, a bool scalar."""
    tensors = [x for x in tf.nest.flatten(structure) if x.dtype.is_floating]
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(x)) for x in tensors])


def choose(condition, yes, no):
    """`yes` if the scalar `condition` holds, else `no`; both of one structure."""
    return tf.nest.map_structure(lambda a, b: tf.where(condition, a, b), yes, no)
