"""The unroll: a policy trains a network, and the meta-gradient goes back through all of it.

A `Trajectory` holds everything one unroll carries from truncation to truncation. Three pure
functions move it on: `warm_up` (plain SGD at the start), `follow` (the teachers' steps, outside
the meta-gradient) and `practise` (the student's). `truncation` puts them together and takes the
meta-gradient (Huang et al. 2022, Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from l2o.amalgamation.losses import META_LOSSES, SCHEMES, log_distance
from l2o.amalgamation.optimizee import (
    Batch,
    Optimizee,
    Scaled,
    batch_indices,
    loss_and_gradient,
)
from l2o.amalgamation.perturbation import Perturbation, attacked, noisy_gradient, noisy_weights
from l2o.amalgamation.recompute import recomputed
from l2o.rules.base import State, UpdateRule

SCALE_LIMIT = 3.0  # random scaling: s = exp(U(-3, 3)) (Lv et al. 2017)
# Squared distances to a teacher must not overflow either, in coordinates divided by any scale.
DISTANCE_MARGIN = 1e3


class Runner(NamedTuple):
    """One optimizer on its way: parameters [D], what the network carries, the rule's state."""

    parameters: Any
    carried: list
    state: State


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


class Report(NamedTuple):
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
        optimizee: The network.
        warmup_rate: SGD's rate during warm-up.
        first_order: Whether the meta-gradient stops at the network's gradient.
        recompute: Steps a segment that the backward pass computes again instead of keeping, or 0
            to keep everything.
        perturbation: Of the policy in `truncation`, or none.
        meta_loss: A name in `META_LOSSES`: "log", or "difference", without logarithms, for a loss
            that need not be positive.
    """

    rule: UpdateRule
    teachers: tuple[Teacher, ...]
    scheme: str
    optimizee: Optimizee
    warmup_rate: float = 0.01
    first_order: bool = False
    recompute: int = 0
    perturbation: Perturbation | None = None
    meta_loss: str = "log"

    def __post_init__(self):
        for kind, name, known in (
            ("scheme", self.scheme, SCHEMES),
            ("meta loss", self.meta_loss, META_LOSSES),
        ):
            if name not in known:
                allowed = ", ".join(known)
                raise ValueError(f"Unknown {kind}. Allowed: {allowed}. Received: {name}")
        if (SCHEMES[self.scheme] is None) != (not self.teachers):
            raise ValueError(
                f"Scheme '{self.scheme}' and {len(self.teachers)} teachers do not go together: "
                "'none' has no teachers, every other scheme needs at least one"
            )


def begin(
    job: Amalgamation, key: Sequence[int], scaled: bool, limit: float = SCALE_LIMIT
) -> Trajectory:
    """A fresh trajectory, everything random in it derived from `key`.

    Args:
        job: The amalgamation.
        key: Integers that name the trajectory: run seed, phase, index.
        scaled: Whether the student works in randomly scaled coordinates.
        limit: Largest logarithm of a scale.
    """
    layout = job.optimizee.layout
    generator = np.random.default_rng([*key, 0])
    parameters, carried = job.optimizee.initial(int(generator.integers(2**31)))
    scale = np.ones(layout.size, parameters.dtype)
    if scaled:
        exponents = generator.uniform(-limit, limit, layout.size)
        scale = np.exp(exponents).astype(parameters.dtype)
    student = Runner(parameters / scale, carried, job.rule.initial_state(layout))
    teachers = [Runner(parameters, carried, t.rule.initial_state(layout)) for t in job.teachers]
    seed = np.random.default_rng([*key, 2]).integers(2**31, size=2, dtype="int32")
    start = (student.parameters, carried)
    trajectory = Trajectory(student, start, scale, teachers, seed, np.int32(0))
    return tf.nest.map_structure(tf.convert_to_tensor, trajectory)


def batches(
    data: Batch,
    key: Sequence[int],
    batch_size: int,
    start: int,
    steps: int,
    among: np.ndarray | None = None,
    stream: int = 1,
) -> Batch:
    """A trajectory's batches from step `start` on.

    Args:
        data: The training examples, as NumPy arrays.
        key: As in `begin`.
        batch_size: B.
        start: The first step, counted from the start of the trajectory, warm-up included.
        steps: S.
        among: Indices of the examples to draw from; all by default.
        stream: Sequences with another number are drawn independently.

    Returns:
        Inputs [S, B, ...] and labels [S, B].
    """
    examples = len(data.labels) if among is None else len(among)
    indices = batch_indices([*key, stream], examples, batch_size, start, steps)
    indices = indices if among is None else among[indices]
    return Batch(data.inputs[indices], data.labels[indices])


def held_out(data: Batch, key: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the examples a trajectory trains on, and of the tenth it never does.

    Drawn anew for each trajectory, for the held-out meta loss (after Metz et al. 2019).
    """
    order = np.random.default_rng([*key, 3]).permutation(len(data.labels))
    kept, tenth = np.split(order, [len(order) - len(order) // 10])
    return kept, tenth


def batch_at(batches: Batch, i) -> Batch:
    """Batch number `i` of several."""
    return Batch(batches.inputs[i], batches.labels[i])


def warm_up(job: Amalgamation, weights: list, trajectory: Trajectory, batches: Batch) -> Trajectory:
    """Plain SGD in clean coordinates; the student's and the teachers' moments follow.

    Args:
        job: The amalgamation.
        weights: The student's.
        trajectory: A fresh one.
        batches: W of them; W = 0 leaves the trajectory as it is.
    """
    layout, scale = job.optimizee.layout, trajectory.scale

    def step(i, trajectory):
        student, teachers = trajectory.student, trajectory.teachers
        clean = student.parameters * scale
        _, gradient, carried = loss_and_gradient(
            job.optimizee, clean, student.carried, batch_at(batches, i)
        )
        clean -= job.warmup_rate * gradient
        state = job.rule.observe(weights, gradient * scale, student.state, layout)
        teachers = [
            Runner(clean, carried, t.rule.observe(t.weights, gradient, runner.state, layout))
            for t, runner in zip(job.teachers, teachers, strict=True)
        ]
        student = Runner(clean / scale, carried, state)
        start = (student.parameters, carried)
        return i + 1, trajectory._replace(student=student, start=start, teachers=teachers)

    return tf.while_loop(lambda i, _: i < tf.shape(batches.labels)[0], step, (0, trajectory))[1]


def follow(job: Amalgamation, runners: list[Runner], batches: Batch) -> tuple[Any, list[Runner]]:
    """The teachers' steps over T batches.

    A step that is not finite, or so far that distances would not be, is not taken: the teacher
    waits where it is.

    Returns:
        Parameters [T, K, D] after each step, in clean coordinates, and the runners.
    """
    layout, steps = job.optimizee.layout, int(batches.labels.shape[0])

    def step(i, runners, path):
        batch, moved = batch_at(batches, i), []
        for (rule, weights), old in zip(job.teachers, runners, strict=True):
            _, gradient, carried = loss_and_gradient(
                job.optimizee, old.parameters, old.carried, batch
            )
            move, state = rule.update(weights, gradient, old.state, layout)
            new = Runner(old.parameters - move, carried, state)
            reach = tf.reduce_sum(tf.square(DISTANCE_MARGIN * new.parameters))
            moved.append(choose(all_finite([new, reach]), new, old))
        return i + 1, moved, path.write(i, tf.stack([r.parameters for r in moved]))

    path = tf.TensorArray(runners[0].parameters.dtype, size=steps)
    loop = tf.while_loop(lambda i, *_: i < steps, step, (0, runners, path))
    return loop[2].stack(), loop[1]


def practise(
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
    if path is None:
        path = tf.zeros((steps, 0, job.optimizee.layout.size), scale.dtype)
    noise, start = (trajectory.seed, trajectory.step), trajectory.student
    moved = lambda runner: trajectory._replace(student=runner, step=noise[1] + steps)  # noqa: E731
    if not job.recompute:
        inputs = (weights, start, scale, (batches, judged), path, noise)
        losses, distances, runner = _segment(job, inputs)
        return losses, distances, moved(runner)
    count, run = steps // job.recompute, recomputed(_segment)
    cut = lambda x: tf.reshape(x, (count, job.recompute, *x.shape[1:]))  # noqa: E731
    pieces = tf.nest.map_structure(cut, (batches, judged, path))

    def step(k, runner, losses, distances):
        here = (noise[0], noise[1] + k * job.recompute)
        batches, judged, path = tf.nest.map_structure(lambda x: x[k], pieces)
        inputs = (weights, runner, scale, (batches, judged), path, here)
        loss, distance, runner = run(job, inputs)
        return k + 1, runner, losses.write(k, loss), distances.write(k, distance)

    arrays = [tf.TensorArray(scale.dtype, size=count) for _ in range(2)]
    loop = tf.while_loop(lambda k, *_: k < count, step, (0, start, *arrays), parallel_iterations=1)
    _, runner, losses, distances = loop
    losses = tf.reshape(losses.stack(), (-1,))
    return losses, tf.reshape(distances.stack(), (-1, path.shape[1])), moved(runner)


def _segment(job: Amalgamation, inputs: tuple) -> tuple:
    """Some steps of `practise`; everything a gradient goes to is in `inputs`."""
    weights, runner, *constants = inputs
    constants = tf.nest.map_structure(tf.stop_gradient, constants)
    scale, (batches, judged), path, (seed, first) = constants
    optimizee, measured = Scaled(job.optimizee, scale), META_LOSSES[job.meta_loss]

    def step(i, runner, losses, distances):
        loss, gradient, carried = loss_and_gradient(
            optimizee, runner.parameters, runner.carried, batch_at(batches, i)
        )
        if judged:
            here = (runner.parameters, runner.carried, batch_at(judged, i))
            loss, _ = optimizee.loss(*here, training=True)
        if job.first_order:
            gradient = tf.stop_gradient(gradient)
        acting = noisy_weights(job.perturbation, weights, seed, first + i)
        seen = noisy_gradient(job.perturbation, gradient, seed, first + i)
        move, state = job.rule.update(acting, seen, runner.state, optimizee.layout)
        runner = Runner(runner.parameters - move, carried, state)
        distance = log_distance(runner.parameters, path[i] / scale)
        return i + 1, runner, losses.write(i, measured(loss)), distances.write(i, distance)

    steps = int(batches.labels.shape[0])
    arrays = [tf.TensorArray(scale.dtype, size=steps) for _ in range(2)]
    loop = tf.while_loop(lambda i, *_: i < steps, step, (0, runner, *arrays), parallel_iterations=1)
    _, runner, losses, distances = loop
    return losses.stack(), distances.stack(), runner


def start_losses(job: Amalgamation, trajectory: Trajectory, batches: Batch):
    """log M(x_i, theta_0) [T] over T batches, or as `job.meta_loss` has it."""
    parameters, carried = trajectory.start

    def loss(batch):
        value, _ = job.optimizee.loss(parameters * trajectory.scale, carried, batch, training=True)
        return META_LOSSES[job.meta_loss](value)

    return tf.map_fn(loss, batches, fn_output_signature=trajectory.scale.dtype)


def truncation(
    job: Amalgamation, weights: list, trajectory: Trajectory, warm, batches, alpha, judged=()
):
    """One truncation with its meta-gradient.

    Args:
        job: The amalgamation.
        weights: The student's.
        trajectory: Where the unroll stands.
        warm: W warm-up batches; W = 0 but for the first truncation of an unroll.
        batches: T batches.
        alpha: Weight of the distance.
        judged: T held-out batches for the meta loss, or () if `batches` are for that too.

    Returns:
        Meta-gradient (a list like `weights`) at the perturbed weights, the trajectory after it,
        and a `Report`. What is not finite leaves no trace: the trajectory is then the one that
        came in.
    """
    before = trajectory
    trajectory = warm_up(job, weights, trajectory, warm)
    scheme, path, teachers = SCHEMES[job.scheme], None, trajectory.teachers
    if scheme is not None:
        path, teachers = follow(job, trajectory.teachers, batches)

    def learn(weights):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            losses, distances, after = practise(job, weights, trajectory, batches, path, judged)
            distance = tf.zeros((), losses.dtype) if scheme is None else scheme(distances)
            loss = tf.reduce_mean(losses) + alpha * distance
        gradient = tape.gradient(loss, weights, unconnected_gradients="zero")
        return gradient, losses, distance, after

    weights = attacked(job.perturbation, weights, lambda weights: learn(weights)[0])
    gradient, losses, distance, after = learn(weights)
    meta_loss = tf.reduce_mean(losses - start_losses(job, trajectory, judged or batches))
    after = after._replace(teachers=teachers)
    finite = all_finite([gradient, after, meta_loss, distance])
    report = Report(meta_loss, distance, tf.cast(finite, losses.dtype))
    return gradient, choose(finite, after, before), report


def rehearse(job: Amalgamation, weights: list, trajectory: Trajectory, warm, batches, judged=()):
    """`truncation` without teachers, perturbation and meta-gradient: what validation runs.

    Returns:
        The trajectory after it and the mean meta loss, which may be infinite or NaN.
    """
    job = replace(job, perturbation=None)
    trajectory = warm_up(job, weights, trajectory, warm)
    losses, _, after = practise(job, weights, trajectory, batches, judged=judged)
    meta_loss = tf.reduce_mean(losses - start_losses(job, trajectory, judged or batches))
    return after, meta_loss


def all_finite(structure):
    """Whether every float of every tensor in `structure` is finite, a bool scalar."""
    tensors = [x for x in tf.nest.flatten(structure) if x.dtype.is_floating]
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(x)) for x in tensors])


def choose(condition, yes, no):
    """`yes` if the scalar `condition` holds, else `no`; both of one structure."""
    return tf.nest.map_structure(lambda a, b: tf.where(condition, a, b), yes, no)
