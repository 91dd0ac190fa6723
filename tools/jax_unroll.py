"""The unroll in JAX, for the Train network alone: replicates are a batch dimension like any other.

A transcription of `l2o.amalgamation.unroll` and `meta`, whose docstrings say what each function is;
the rules are l2o's own, which run on any backend of Keras. tests/test_replicates.py holds the one
against the other. What departs: a warm-up that is not finite is not undone, and Gaussian noise is
drawn by JAX.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2o.rules.analytical import Adam
from l2o.rules.layout import Layout

# Of the Train network on images of 28 by 28, which its pools cut to 26 by 26.
SHAPES = ((3, 3, 1, 16), (16,), (5, 5, 16, 32), (32,), (512, 10), (10,))
LAYOUT = Layout(tuple(f"tensor_{k}" for k in range(len(SHAPES))), SHAPES)
WARMUP_RATE, CLIP_RATIO, CLIP_FLOOR, LOG_FLOOR = 0.01, 0.1, 1e-3, 1e-10
DISTANCE_MARGIN = 1e3


class Job(NamedTuple):
    """Who learns what from whom.

    Attributes:
        rule: The student's.
        teachers: Rules.
        minmax: Whether the distance is the largest or the mean.
        gaussian, adversarial: Magnitudes of l2o's relative perturbations; 0 for none.
    """

    rule: Any
    teachers: tuple = ()
    minmax: bool = False
    gaussian: float = 0.0
    adversarial: float = 0.0


class Cut(NamedTuple):
    """What a truncation sees.

    Attributes:
        steps: Examples to train on, int32 [T, B].
        judged: Examples [T, B] of the meta loss; None if they are the same.
        seed: Of the noise, an integer.
    """

    steps: Any
    judged: Any
    seed: Any


class Runner(NamedTuple):
    """Parameters [D] and the rule's state."""

    parameters: Any
    state: Any


class Trajectory(NamedTuple):
    """The student in coordinates divided by `scale` [D]; `start` [D] and teachers are clean."""

    student: Runner
    start: Any
    scale: Any
    teachers: tuple


class MetaState(NamedTuple):
    """A policy's weights, the meta-optimizer's moments, the number of updates left out."""

    weights: list
    optimizer: Any
    skipped: Any


def network_loss(parameters, data, chosen):
    """The mean loss of the examples `chosen` [B] of `data`, pixels [N, 28, 28] and labels [N]."""
    inputs, labels = data[0][chosen], data[1][chosen]
    first, first_bias, second, second_bias, dense, bias = LAYOUT.unflatten(parameters)
    x = inputs[:, :26, :26, None].astype(jnp.float32) / 255
    x = _pool(jax.nn.relu(_patches(x, 3) @ first.reshape(9, 16) + first_bias))
    x = _pool(jax.nn.relu(_patches(x, 5) @ second.reshape(400, 32) + second_bias))
    logits = x.reshape(len(x), 512) @ dense + bias
    picked = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - picked)


def _patches(x, size):
    """[B, H, H, C] to [B, H', H', size size C], which a kernel multiplies: fast where batched."""
    n = x.shape[1] - size + 1
    windows = [x[:, i : i + n, j : j + n] for i in range(size) for j in range(size)]
    return jnp.concatenate(windows, axis=-1)


def _pool(x):
    """Max-pool 2, whose gradient goes to the first of equals."""
    first = lambda a, b: jnp.where(a >= b, a, b)  # noqa: E731
    n, h, w, c = x.shape
    x = x.reshape(n, h // 2, 2, w // 2, 2, c)
    upper, lower = (first(x[:, :, k, :, 0], x[:, :, k, :, 1]) for k in (0, 1))
    return first(upper, lower)


def _log(loss):
    return jnp.log(loss + LOG_FLOOR)


def warm_up(job: Job, weights: list, data, theta, scale, indices) -> Trajectory:
    """A fresh trajectory from `theta` [D] after SGD on the examples `indices` [W, B]."""

    def step(carry, chosen):
        clean, state, states = carry
        gradient = jax.grad(network_loss)(clean, data, chosen)
        state = job.rule.observe(weights, gradient * scale, clean / scale, state, LAYOUT)
        states = tuple(
            rule.observe([], gradient, clean, taught, LAYOUT)
            for rule, taught in zip(job.teachers, states, strict=True)
        )
        return (clean - WARMUP_RATE * gradient, state, states), None

    states = tuple(rule.initial_state(LAYOUT) for rule in job.teachers)
    begun = (theta, job.rule.initial_state(LAYOUT), states)
    (clean, state, states), _ = jax.lax.scan(step, begun, indices)
    teachers = tuple(Runner(clean, taught) for taught in states)
    return Trajectory(Runner(clean / scale, state), clean, scale, teachers)


def follow(job: Job, weights: list, data, runners: tuple, indices):
    """The teachers after T steps, and their parameters [T, K, D] after each."""

    def step(runners, chosen):
        places = jnp.stack([runner.parameters for runner in runners])
        gradients = jax.vmap(jax.grad(network_loss), (0, None, None))(places, data, chosen)
        moved = []
        for k, (rule, runner) in enumerate(zip(job.teachers, runners, strict=True)):
            here, gradient = runner.parameters, gradients[k]
            move, state = rule.update(weights[k], gradient, here, runner.state, LAYOUT)
            new = Runner(here - move, state)
            reach = jnp.sum(jnp.square(DISTANCE_MARGIN * new.parameters))
            moved.append(_choose(_all_finite((new, reach)), new, runner))
        return tuple(moved), jnp.stack([runner.parameters for runner in moved])

    return jax.lax.scan(step, runners, indices)


def practise(job: Job, weights: list, data, trajectory: Trajectory, cut: Cut, path):
    """Log losses [T], distances [T, K] to `path` [T, K, D], and the student, after T steps."""
    scale = trajectory.scale

    @jax.checkpoint
    def step(runner, here):
        chosen, judged, goals, key = here
        see = jax.value_and_grad(lambda p: network_loss(p * scale, data, chosen))
        loss, gradient = see(runner.parameters)
        if judged is not None:
            loss = network_loss(runner.parameters * scale, data, judged)
        acting = _noisy(job.gaussian, weights, key)
        move, state = job.rule.update(acting, gradient, runner.parameters, runner.state, LAYOUT)
        runner = Runner(runner.parameters - move, state)
        squares = jnp.sum(jnp.square(runner.parameters - goals / scale), axis=-1)
        distance = jnp.log(squares / 2 + LOG_FLOOR) - math.log(LAYOUT.size)
        return runner, (_log(loss), distance)

    keys = jax.random.split(jax.random.key(cut.seed), len(cut.steps))
    here = (cut.steps, cut.judged, path, keys)
    runner, (losses, distances) = jax.lax.scan(step, trajectory.student, here)
    return losses, distances, runner


def _noisy(magnitude: float, weights: list, key) -> list:
    if not magnitude:
        return weights
    size = lambda w: jnp.sqrt(jnp.mean(jnp.square(jax.lax.stop_gradient(w))))  # noqa: E731
    keys = jax.random.split(key, len(weights))
    return [
        w + magnitude * size(w) * jax.random.normal(k, w.shape)
        for w, k in zip(weights, keys, strict=True)
    ]


def truncation(job: Job, weights: list, teachers: list, data, trajectory, cut: Cut, alpha):
    """Meta-gradient, the trajectory after T steps, and (meta loss, distance, finite).

    Args:
        job: Who learns what from whom.
        weights: The student's.
        teachers: Their weights.
        data: Pixels uint8 [N, 28, 28] and labels int32 [N].
        trajectory: Where the unroll stands.
        cut: The examples.
        alpha: Weight of the distance.
    """
    runners, path = trajectory.teachers, jnp.zeros((len(cut.steps), 0, LAYOUT.size))
    if job.teachers:
        runners, path = follow(job, teachers, data, runners, cut.steps)

    def objective(weights):
        losses, distances, student = practise(job, weights, data, trajectory, cut, path)
        distance = jnp.zeros(())
        if job.teachers:
            distance = jnp.mean((jnp.max if job.minmax else jnp.mean)(distances, axis=-1))
        loss = jnp.mean(losses)
        return loss + alpha * distance, (loss, distance, student)

    learn = jax.grad(objective, has_aux=True)
    if job.adversarial:
        upward = zip(weights, learn(weights)[0], strict=True)
        length = lambda g: jnp.where(_norm(g) > 0, _norm(g), 1)  # noqa: E731
        weights = [w + job.adversarial * _norm(w) * g / length(g) for w, g in upward]
    gradient, (loss, distance, student) = learn(weights)
    begun = lambda chosen: _log(network_loss(trajectory.start, data, chosen))  # noqa: E731
    judged = cut.steps if cut.judged is None else cut.judged
    loss = loss - jnp.mean(jax.lax.map(begun, judged))
    after = trajectory._replace(student=student, teachers=runners)
    finite = _all_finite((gradient, after, loss, distance))
    return gradient, _choose(finite, after, trajectory), (loss, distance, finite)


def rehearse(job: Job, weights: list, data, trajectory: Trajectory, cut: Cut):
    """An unscaled trajectory after T steps without teachers, and the mean meta loss."""

    def step(runner, here):
        chosen, judged = here
        loss, gradient = jax.value_and_grad(network_loss)(runner.parameters, data, chosen)
        if judged is not None:
            chosen, loss = judged, network_loss(runner.parameters, data, judged)
        move, state = job.rule.update(weights, gradient, runner.parameters, runner.state, LAYOUT)
        start = network_loss(trajectory.start, data, chosen)
        return Runner(runner.parameters - move, state), _log(loss) - _log(start)

    student, losses = jax.lax.scan(step, trajectory.student, (cut.steps, cut.judged))
    return trajectory._replace(student=student), jnp.mean(losses)


def meta_update(
    job: Job, rate: float, state: MetaState, teachers, data, trajectories, cuts: Cut, alpha
):
    """One update of one replicate from [M] trajectories; see `truncation` for the rest.

    Returns:
        The new state and trajectories, and [meta loss, distance, whether all was finite].
    """
    each = lambda t, cut: truncation(job, state.weights, teachers, data, t, cut, alpha)  # noqa: E731
    gradients, trajectories, (loss, distance, finite) = jax.vmap(each)(trajectories, cuts)
    gradient = [jnp.mean(g, axis=0) for g in gradients]
    layout = Layout.of(state.weights)
    clipped = layout.flatten([_clip(g, w) for g, w in zip(gradient, state.weights, strict=True)])
    adam = Adam(rate, epsilon=1e-14)
    flat = layout.flatten(state.weights)
    move, optimizer = adam.update([], clipped, flat, state.optimizer, layout)
    weights = list(layout.unflatten(flat - move))
    new = MetaState(weights, optimizer, state.skipped)
    finite = jnp.all(finite) & _all_finite(new)
    state = _choose(finite, new, state._replace(skipped=state.skipped + 1))
    return state, trajectories, jnp.stack([loss.mean(), distance.mean(), 1.0 * finite])


def _norm(x):
    return jnp.sqrt(jnp.sum(jnp.square(x)))


def _clip(gradient, weight):
    longest, length = CLIP_RATIO * jnp.maximum(_norm(weight), CLIP_FLOOR), _norm(gradient)
    return gradient * jnp.where(length > longest, longest / jnp.where(length > 0, length, 1), 1)


def _all_finite(structure):
    floats = [x for x in jax.tree.leaves(structure) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))


def _choose(condition, yes, no):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
