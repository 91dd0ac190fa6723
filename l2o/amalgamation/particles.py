"""Particles of an evolution strategy: pairs of fits, by windows of steps, as pure functions.

One particle of a pair has noise added to the policy's weights, the other has it subtracted; both
see the same network, batches and horizon. The difference of their losses over a window, times the
noise, estimates the meta-gradient (`estimate`), without the bias of a truncation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import tensorflow as tf

from l2o.amalgamation.episodes import Entry, Evolution
from l2o.amalgamation.losses import SCHEMES, log_distance
from l2o.amalgamation.recompute import scan
from l2o.amalgamation.unroll import (
    DISTANCE_MARGIN,
    Amalgamation,
    Runner,
    Teacher,
    TruncationResult,
    all_finite,
    choose,
    inner_step,
)
from l2o.problems.dataset import Batch
from l2o.rules.base import Horizon
from l2o.rules.layout import Layout
from l2o.tasks.batches import entry as rows_of
from l2o.tasks.task import Scaled, loss_and_gradient

END = 0.8  # the share of a fit after which it nears its end
FARTHEST = 80.0  # logarithm of a squared distance at most; beyond, float32 ends


class Particles(NamedTuple):
    """P pairs of particles between two windows.

    Attributes:
        student: [P, 2, ...], in coordinates divided by their pair's scale.
        teachers: [P, ...] each, in clean coordinates.
        first: Loss of the fit's first step, [P].
    """

    student: Runner
    teachers: list[Runner]
    first: Any


class Outcome(NamedTuple):
    """What a window came to for each particle, [P, 2].

    Attributes:
        value: What the meta-gradient is of: the meta loss, in which the end of a fit weighs more,
            and the distance to the teachers.
        meta_loss: The same without the distance.
        distance: By the scheme; 0 without teachers.
    """

    value: Any
    meta_loss: Any
    distance: Any


def resting(job: Amalgamation, pairs: int, particles: int = 2) -> Particles:
    """Particles before their first fit, all zero."""
    layout = job.task.layout
    parameters, carried = job.task.initial(0)
    still = lambda rule: Runner(parameters, carried, rule.initial_state(layout))  # noqa: E731

    def zeros(runner: Runner, *shape: int) -> Runner:
        runner = tf.nest.map_structure(tf.convert_to_tensor, runner)
        return tf.nest.map_structure(lambda x: tf.zeros((*shape, *x.shape), x.dtype), runner)

    student = zeros(still(job.rule), pairs, particles)
    teachers = [zeros(still(teacher.rule), pairs) for teacher in job.teachers]
    return Particles(student, teachers, tf.zeros((pairs,), student.parameters.dtype))


def begun(particles: Particles, entry: Entry) -> Particles:
    """Particles of which some are at the start of a new fit: a rule's state at rest is zero."""

    def anew(x, start):
        fresh = tf.reshape(entry.fresh, (-1, *[1] * (x.shape.rank - 1)))
        return tf.where(fresh, tf.cast(start, x.dtype), x)

    def renewed(runner: Runner, parameters, carried) -> Runner:
        state = tf.nest.map_structure(lambda x: anew(x, 0), runner.state)
        carried = [anew(x, start) for x, start in zip(runner.carried, carried, strict=True)]
        return Runner(anew(runner.parameters, parameters), carried, state)

    parameters, carried = entry.start
    both = [x[:, None] for x in carried]
    student = renewed(particles.student, (parameters / entry.scale)[:, None], both)
    teachers = [renewed(teacher, parameters, carried) for teacher in particles.teachers]
    return particles._replace(student=student, teachers=teachers)


def window(
    job: Amalgamation,
    evolution: Evolution,
    warmup: int,
    weights,
    signs,
    particles: Particles,
    entry: Entry,
    data: Batch,
    alpha,
    spread: Callable = tf.vectorized_map,
) -> tuple[Outcome, Particles]:
    """W steps of every particle.

    Args:
        job: Who learns what from whom.
        evolution: Settings.
        warmup: Steps of plain SGD, in clean coordinates, that a fit begins with.
        weights: The policy's, as one vector [K].
        signs: What the noise of each particle of a pair is multiplied by, [2].
        particles: Where they stand.
        entry: Who begins anew, and what all are given.
        data: All examples.
        alpha: Weight of the distance.
        spread: `tf.vectorized_map`, or something like it.
    """
    pairs, each = int(entry.fresh.shape[0]), int(signs.shape[0])
    learner = Layout.of(job.rule.initial_weights(0))
    student, teachers, first = begun(particles, entry)
    flat = partial(tf.nest.map_structure, lambda x: tf.reshape(x, (-1, *x.shape[2:])))
    split = partial(tf.nest.map_structure, lambda x: tf.reshape(x, (pairs, each, *x.shape[1:])))
    twice = partial(tf.nest.map_structure, lambda x: tf.repeat(x, each, axis=0))

    def taken(task: Scaled, who: Teacher, runner: Runner, batch: Batch, noise, horizon, at):
        """An inner step, or one of plain SGD in clean coordinates while the fit warms up."""
        gradient_of = partial(_noisy_gradient, noise) if evolution.noisy else loss_and_gradient
        seen, new = inner_step(task, *who, runner, batch, gradient_of, horizon)
        if not warmup:
            return seen, new
        state = who.rule.observe(who.weights, seen.gradient, *runner[::2], task.layout)
        plain = runner.parameters - job.warmup_rate * seen.gradient / task.scale**2
        return seen, choose(at < warmup, Runner(plain, seen.carried, state), new)

    def learn(given):
        """A step of one particle."""
        weights, runner, scale, horizon, at, batch, noise, judged, goals = given
        task, student = Scaled(job.task, scale), Teacher(job.rule, learner.unflatten(weights))
        seen, new = taken(task, student, runner, batch, noise, horizon, at)
        loss = seen.loss
        if judged:
            loss, _ = task.loss(runner.parameters, runner.carried, judged, training=True)
        return new, loss, log_distance(new.parameters, goals / scale)

    def teach(given):
        """A step of the teachers of one pair, each taken where it is finite."""
        runners, horizon, at, batch, noise = given
        moved, task = [], Scaled(job.task, tf.ones((), first.dtype))
        for teacher, old in zip(job.teachers, runners, strict=True):
            _, new = taken(task, teacher, old, batch, noise, horizon, at)
            reach = tf.reduce_sum(tf.square(DISTANCE_MARGIN * new.parameters))
            moved.append(choose(all_finite([new, reach]), new, old))
        return moved

    def step(runners, given):
        (student, teachers), (number, examples, *judged) = runners, given
        batch, at = rows_of(data, examples), entry.step + number
        goals, noise = tf.zeros((pairs, 0, job.task.layout.size), first.dtype), ()
        if evolution.noisy:
            noise = _noise(entry, tf.cast(at, "int32"), job.task.layout.size)
        if teachers:
            teachers = spread(teach, (teachers, horizon, at, batch, noise))
            goals = tf.stack([teacher.parameters for teacher in teachers], 1)
        judged = rows_of(data, judged[0]) if judged else ()
        shared = twice((entry.scale, horizon, at, batch, noise, judged, goals))
        student, losses, distances = spread(learn, (perturbed, student, *shared))
        return (student, teachers), (losses, distances)

    perturbed = flat(weights + evolution.noise_size * signs[:, None] * entry.noise[:, None])
    horizon = Horizon(entry.steps * entry.told, entry.epochs * entry.told)
    numbers = tf.range(entry.examples.shape[1], dtype=first.dtype)
    indices = tf.nest.flatten([entry.examples, entry.judged])
    batches = [tf.transpose(x, (1, 0, 2)) for x in indices]
    (student, teachers), (losses, distances) = scan(
        step, (flat(student), teachers), (numbers, *batches), like=(first, first)
    )
    losses = tf.reshape(losses, (-1, pairs, each))
    first = tf.where(entry.fresh, losses[0, :, 0], first)
    meta_loss = _meta_loss(job, evolution, losses, first, entry)
    distance, scheme = tf.zeros_like(meta_loss), SCHEMES[job.scheme]
    if scheme is not None:
        near = tf.where(distances < FARTHEST, distances, FARTHEST)  # or not a number
        distance = split(tf.map_fn(scheme, tf.transpose(near, (1, 0, 2))))
    after = Particles(split(student), teachers, first)
    return Outcome(meta_loss + alpha * distance, meta_loss, distance), after


def _noise(entry: Entry, at, size: int):
    """The noise on the gradients of a step that has the number `at` [P] in its fit, [P, size]."""
    keys = tf.unstack(entry.seed + tf.stack([tf.zeros_like(at), at], 1))
    drawn = [tf.random.stateless_normal((size,), key, dtype=entry.noisiness.dtype) for key in keys]
    return entry.noisiness[:, None] * tf.stack(drawn)


def _noisy_gradient(noise, task: Scaled, parameters, carried: list, batch: Batch):
    """`loss_and_gradient`, cut to length 1 in clean coordinates with noise [D] added, if it is any.

    That is DP-SGD's gradient (Abadi et al. 2016) but for the place of the cut, which is there that
    of each example.
    """
    seen = loss_and_gradient(task, parameters, carried, batch)
    clean = seen.gradient / task.scale
    private = clean / tf.maximum(tf.norm(clean), 1.0) + noise
    noisy = tf.reduce_any(noise != 0)
    return seen._replace(gradient=tf.where(noisy, private * task.scale, seen.gradient))


def _meta_loss(job: Amalgamation, evolution: Evolution, losses, first, entry: Entry):
    """The mean over a window, of losses [W, P, 2], in which the end of a fit weighs more: [P, 2].

    Its mean over the windows of a fit is the weighted mean over all of its steps.
    """
    first = first[:, None]
    limit = tf.maximum(first, job.start)  # a first batch may be an easy one
    limit += (evolution.loss_limit - 1) * tf.abs(limit)
    losses = tf.where(losses < limit, losses, limit)  # or not a number
    number = entry.step + tf.range(losses.shape[0], dtype=first.dtype)[:, None]
    late, within = (
        tf.cast(x, first.dtype) for x in (number >= END * entry.steps, number < entry.steps)
    )
    more = evolution.end_weight - 1
    weight = within * (1 + more * late) / (1 + more * (1 - END))
    return tf.reduce_mean(weight[:, :, None] * (job.measured(losses) - job.measured(first)), axis=0)


class Estimate(NamedTuple):
    """Of one replica and one problem.

    Attributes:
        gradient: The meta-gradient [K].
        result: Means over particles.
    """

    gradient: Any
    result: TruncationResult


def estimate(evolution: Evolution, outcome: Outcome, total) -> Estimate:
    """The meta-gradient of the value of pairs, whose noise so far is `total` [P, K]."""
    difference = outcome.value[:, 0] - outcome.value[:, 1]
    gradient = tf.linalg.matvec(total, difference, transpose_a=True)
    gradient /= 2 * evolution.noise_size * tf.cast(tf.shape(total)[0], total.dtype)
    finite = tf.cast(all_finite(gradient), total.dtype)
    meta_loss, distance = (tf.reduce_mean(x) for x in outcome[1:])
    return Estimate(gradient, TruncationResult(meta_loss, distance, finite))
