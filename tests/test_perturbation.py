"""Perturbations of the policy: noise, attacks, and their place in a truncation."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from made_weights import made_tensors
from scipy import stats

from l2o.amalgamation import unroll
from l2o.amalgamation.perturbation import (
    KINDS,
    Perturbation,
    attacked,
    noisy_gradient,
    noisy_weights,
)
from l2o.amalgamation.unroll import (
    Amalgamation,
    Teacher,
    begin,
    truncation,
    validate_truncation,
    warm_up,
)
from l2o.problems import Batch, Problem
from l2o.rules import Adam, Momentum, RNNProp
from l2o.tasks.batches import batches
from l2o.tasks.task import Task

_KEY, _BATCH, _ALPHA = (7, 0), 8, 0.3
_SEED = tf.constant([11, 12])
_RULE = RNNProp(units=4, layers=1)
_NOISE = ("gaussian", "input")
_ATTACKS = ("adversarial", "pgd", "fgsm")


def weights_of(shapes=((40, 50), (300,), (20, 15)), dtype="float64") -> list:
    """Tensors of very different sizes of entries."""
    generator = np.random.default_rng(0)
    sizes = np.logspace(-2, 1, len(shapes))
    return [
        tf.constant((s * generator.normal(size=shape)).astype(dtype))
        for s, shape in zip(sizes, shapes, strict=True)
    ]


def norm(tensor) -> float:
    return np.linalg.norm(np.ravel(tensor))


def dense_network() -> keras.Model:
    layers = keras.layers
    return keras.Sequential([layers.Input((8, 8, 1)), layers.Flatten(), layers.Dense(3)])


@pytest.fixture
def make(float64):
    """Puts together a job with a perturbation, in float64."""
    task = Task(Problem(dense_network))
    teachers = tuple(Teacher(rule, []) for rule in (Adam(0.02), Momentum(0.3)))

    def job(perturbation=None, rule=_RULE, teachers=teachers, **settings) -> Amalgamation:
        scheme = "minmax" if teachers else "none"
        return Amalgamation(rule, teachers, scheme, task, perturbation=perturbation, **settings)

    return job


@pytest.fixture
def slices(data):
    """The batches of steps `start` to `stop`, in float64."""
    data = Batch(data.inputs.astype("float64"), data.labels)

    def cut(start: int, stop: int) -> Batch:
        steps = batches(data, _KEY, _BATCH, start, stop - start)
        return tf.nest.map_structure(tf.convert_to_tensor, steps)

    return cut


def unrolled(job, slices, weights=None, compiled=False):
    """A truncation of four steps after two of warm-up."""

    weights, steps = weights or made_tensors(_RULE), slices(2, 6)
    trajectory = warm_up(job, weights, begin(job, _KEY, scaled=True), slices(0, 2))
    run = lambda *args: truncation(job, *args, _ALPHA)  # noqa: E731
    return (tf.function(run, autograph=False) if compiled else run)(weights, trajectory, steps)


def loss_of(report) -> float:
    """The truncation's loss, but for a constant."""
    return float(report.meta_loss + _ALPHA * report.distance)


def numbers(structure) -> list[np.ndarray]:
    return [np.asarray(x) for x in tf.nest.flatten(structure)]


def same(actual, expected) -> bool:
    pairs = zip(numbers(actual), numbers(expected), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def close(actual, expected, **tolerance):
    for a, b in zip(numbers(actual), numbers(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "absolute"])
def test_gaussian_noise_has_the_stated_deviation_in_every_tensor(absolute):
    weights, sigma = weights_of(), 1e-2
    perturbation = Perturbation("gaussian", sigma, absolute)
    draws = [noisy_weights(perturbation, weights, _SEED, step) for step in range(100)]
    noise = [np.stack([d[k] for d in draws]) - weights[k].numpy() for k in range(len(weights))]
    for weight, sample in zip(weights, noise, strict=True):
        expected = sigma if absolute else sigma * norm(weight) / np.sqrt(weight.numpy().size)
        assert stats.kstest(sample.ravel() / expected, "norm").pvalue > 1e-3
        np.testing.assert_allclose(sample.std(), expected, rtol=0.03)
    flat = np.concatenate([(n / n.std()).reshape(100, -1) for n in noise], axis=1)
    assert np.abs(np.corrcoef(flat) - np.eye(100)).max() < 0.1  # of one step with another
    assert len(np.unique(flat)) == flat.size


def test_noise_derives_from_seed_and_step():
    weights, perturbation = weights_of(), Perturbation("gaussian", 0.1)
    noisy = lambda seed, step: noisy_weights(perturbation, weights, tf.constant(seed), step)  # noqa: E731
    assert same(noisy([1, 2], 3), noisy([1, 2], tf.constant(3)))
    for seed, step in (([1, 2], 4), ([1, 3], 3), ([2, 2], 3)):
        assert not same(noisy([1, 2], 3), noisy(seed, step))


def test_relative_noise_leaves_zeros_alone_and_its_size_has_no_gradient():
    weights, perturbation = [tf.zeros((3, 2)), tf.constant(2.0)], Perturbation("gaussian", 0.1)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        noisy = noisy_weights(perturbation, weights, _SEED, 0)
        total = 3 * tf.reduce_sum(noisy[0]) + 5 * noisy[1]
    assert not np.any(noisy[0]) and float(noisy[1]) != 2
    close(tape.gradient(total, weights), [np.full((3, 2), 3.0), 5.0], rtol=0)


def test_input_noise_is_on_the_gradient():
    gradient, perturbation = tf.fill((20_000,), 3.0), Perturbation("input", 1e-2)
    noise = noisy_gradient(perturbation, gradient, _SEED, 0).numpy() - 3
    assert stats.kstest(noise / 1e-2, "norm").pvalue > 1e-3
    assert not same(noisy_gradient(perturbation, gradient, _SEED, 1) - 3, noise)
    weights = weights_of()
    assert noisy_weights(perturbation, weights, _SEED, 0) is weights
    assert noisy_gradient(Perturbation("gaussian", 1.0), gradient, _SEED, 0) is gradient


def test_steps_of_equation_6_have_the_stated_norm_and_the_gradients_direction():
    weights, seen, generator = weights_of(), [], np.random.default_rng(3)
    gradients = [[tf.constant(generator.normal(size=w.shape)) for w in weights] for _ in range(3)]

    def gradient_of(weights):
        seen.append(weights)
        return gradients[len(seen) - 1]

    last = attacked(Perturbation("adversarial", 1e-2, attack_steps=3), weights, gradient_of)
    path = [*seen, last]
    assert len(seen) == 3 and same(seen[0], weights)
    for a in range(3):
        for k, weight in enumerate(weights):
            step = path[a + 1][k] - path[a][k]
            gradient = gradients[a][k].numpy()
            np.testing.assert_allclose(norm(step), 1e-2 * norm(weight), rtol=1e-10)
            cosine = np.sum(step * gradient) / norm(step) / norm(gradient)
            np.testing.assert_allclose(cosine, 1, rtol=1e-10)


def test_an_attack_bears_gradients_that_are_zero_or_huge():
    weights = weights_of(dtype="float32")
    gradient = [0 * weights[0], 1e36 * weights[1], 1e-36 * weights[2]]
    moved = attacked(Perturbation("adversarial", 1e-2), weights, lambda _: gradient)
    assert same(moved[0], weights[0])
    close(moved[1:], [1.01 * w for w in weights[1:]], rtol=1e-5)


def test_pgd_climbs_in_its_ball_and_fgsm_to_its_corners():
    weights = weights_of()
    slopes = [tf.constant(np.random.default_rng(4).normal(size=w.shape)) for w in weights]
    for steps in (1, 2, 5):
        perturbation = Perturbation("pgd", 0.15, attack_steps=steps)
        moved = attacked(perturbation, weights, lambda _: slopes)
        expected = [np.clip(steps * 0.1 * s, -0.15, 0.15) for s in map(np.asarray, slopes)]
        close([m - w for m, w in zip(moved, weights, strict=True)], expected, atol=1e-12)
    # Back from the ball's face as soon as the gradient turns.
    turning = iter([[100 * s for s in slopes], [-0.1 * s for s in slopes]])
    moved = attacked(Perturbation("pgd", 0.15, attack_steps=2), weights, lambda _: next(turning))
    inner = [np.abs(m - w).max() for m, w in zip(moved, weights, strict=True)]
    assert max(inner) < 0.15
    moved = attacked(Perturbation("fgsm", 1e-3), weights, lambda _: slopes)
    expected = [1e-3 * np.sign(s) for s in slopes]
    close([m - w for m, w in zip(moved, weights, strict=True)], expected, atol=1e-12)


@pytest.mark.parametrize(
    "compiled, kinds", [(True, ("gaussian", "adversarial")), (False, ("pgd", "fgsm", "input"))]
)
def test_magnitude_0_is_no_perturbation_bit_for_bit(compiled, kinds, make, slices):
    def run(*perturbation):
        job = make(Perturbation(*perturbation) if perturbation else None, teachers=())
        return unrolled(job, slices, compiled=compiled)

    nothing = run()
    for kind in kinds:
        assert same(run(kind, 0.0), nothing)
    assert not same(unrolled(make(Perturbation(kinds[0], 1e-2), teachers=()), slices), nothing)


@pytest.mark.parametrize("kind", _ATTACKS)
def test_an_attack_raises_the_truncations_loss(kind, make, slices):
    losses = [loss_of(unrolled(make(), slices)[2])]
    for steps in (1,) if kind == "fgsm" else (1, 3):
        attack = Perturbation(kind, 1e-3, attack_steps=steps)
        losses.append(loss_of(unrolled(make(attack), slices)[2]))
    assert np.all(np.diff(losses) > 1e-6)


def test_the_meta_gradient_is_that_at_the_attacked_weights(make, slices):
    """Algorithm 2, by truncations that are not perturbed."""
    attack = Perturbation("adversarial", 1e-2, attack_steps=2)
    weights = made_tensors(_RULE)
    for _ in range(2):
        gradient, *_ = unrolled(make(), slices, weights=weights)
        weights = [
            w + 1e-2 * norm(start) * g / (norm(g) or 1.0)  # the head's bias has no effect
            for w, g, start in zip(weights, gradient, made_tensors(_RULE), strict=True)
        ]
    close(unrolled(make(attack), slices), unrolled(make(), slices, weights=weights), rtol=1e-8)


@pytest.mark.parametrize("kind", _NOISE)
def test_the_meta_gradient_under_noise_is_that_of_central_differences(kind, make, slices):
    """Segments that are computed again see the noise they saw: else the gradient would differ."""
    perturbation = Perturbation(kind, 0.05, absolute=kind == "gaussian")
    job, weights = make(perturbation, recompute=2, teachers=()), made_tensors(_RULE)
    trajectory = warm_up(job, weights, begin(job, _KEY, scaled=True), slices(0, 2))
    compiled = tf.function(
        lambda *args: truncation(job, *args, slices(2, 6), _ALPHA), autograph=False
    )
    run = lambda weights: compiled(weights, trajectory)  # noqa: E731
    gradient, _, _ = run(weights)
    plain, *_ = unrolled(replace(job, perturbation=None), slices)
    assert not np.allclose(gradient[0], plain[0], rtol=1e-3)
    generator, size = np.random.default_rng(2), 1e-5
    direction = [generator.normal(size=w.shape) for w in weights]
    ends = [
        loss_of(run([w + end * d for w, d in zip(weights, direction, strict=True)])[2])
        for end in (size, -size)
    ]
    slope = sum(np.sum(g * d) for g, d in zip(gradient, direction, strict=True))
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * size), rtol=1e-6)


@pytest.mark.parametrize("kind", _NOISE)
def test_noise_goes_by_the_step_of_the_unroll(kind, make, slices):
    """Two truncations, or one of both, or segments: the student's way is the same."""
    job, weights = make(Perturbation(kind, 0.05)), made_tensors(_RULE)
    trajectory = begin(job, _KEY, scaled=True)
    ways = []
    for cuts, recompute in (((0, 4), 0), ((0, 2, 4), 0), ((0, 1, 4), 0), ((0, 4), 2)):
        after, job = trajectory, replace(job, recompute=recompute)
        for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
            _, after, _ = truncation(job, weights, after, slices(start, stop), _ALPHA)
        assert int(after.step) == 4
        ways.append(after.student.parameters)
    for way in ways[1:]:
        close(way, ways[0], rtol=1e-9)
    other = trajectory._replace(seed=trajectory.seed + 1)
    _, after, _ = truncation(job, weights, other, slices(0, 4), _ALPHA)
    assert not np.allclose(after.student.parameters, ways[0], rtol=1e-6)


def test_trajectories_have_seeds_of_their_own(make):
    job = make()
    seeds = [begin(job, key, scaled=True).seed for key in ((7, 0), (7, 0), (7, 1), (8, 0))]
    assert same(seeds[0], seeds[1])
    assert len({tuple(s.numpy()) for s in seeds}) == 3


@pytest.mark.parametrize("attack_steps", [1, 3])
def test_an_attack_costs_a_meta_gradient_a_step(attack_steps, make, slices, monkeypatch):
    """Counted in the student's gradients of the network, one a step of each meta-gradient."""
    calls, original = [], unroll.recomputed_gradient

    def counted(*args, **settings):
        calls.append(1)
        return original(*args, **settings)

    monkeypatch.setattr(unroll, "recomputed_gradient", counted)
    for perturbation in (None, Perturbation("adversarial", 1e-3, attack_steps=attack_steps)):
        calls.clear()
        job = make(perturbation)
        trajectory = begin(job, _KEY, scaled=True)
        truncation(job, made_tensors(_RULE), trajectory, slices(0, 3), _ALPHA)
        assert len(calls) == 3 * (1 if perturbation is None else attack_steps + 1)


def test_validation_is_not_perturbed(make, slices):
    results = []
    for perturbation in (None, *(Perturbation(kind, 0.1) for kind in KINDS)):
        job = make(perturbation)
        trajectory = begin(job, _KEY, scaled=True)
        results.append(validate_truncation(job, made_tensors(_RULE), trajectory, slices(2, 4)))
    assert all(same(result, results[0]) for result in results[1:])


@pytest.mark.parametrize("kind", _ATTACKS)
def test_an_attack_that_is_not_finite_leaves_no_trace(kind, make, slices):
    job, weights = make(Perturbation(kind, 1e-3)), made_tensors(_RULE)
    trajectory, steps = begin(job, _KEY, scaled=True), slices(2, 4)
    poisoned = Batch(steps.inputs * np.nan, steps.labels)
    _, after, report = truncation(job, weights, trajectory, poisoned, _ALPHA)
    assert float(report.finite) == 0
    assert same(after, trajectory)


@pytest.mark.parametrize(
    "settings, message",
    [
        (("noise", 0.1), "Allowed: gaussian, adversarial, pgd, fgsm, input. Received: noise"),
        (("gaussian", -0.1), "Received: -0.1"),
        (("gaussian", float("nan")), "Received: nan"),
        (("pgd", float("inf")), "Received: inf"),
        (("pgd", 0.1, True), "Only 'gaussian' can be absolute. Received: pgd"),
        (("adversarial", 0.1, False, 0), "Received: 0"),
        (("fgsm", 0.1, False, 2), "Received: 2 of fgsm"),
    ],
)
def test_settings_that_make_no_sense_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        Perturbation(*settings)
