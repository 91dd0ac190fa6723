"""Evolution strategies: their mean is the analytic meta-gradient; pairs share all but noise."""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf
from made_tasks import task_of, with_data

from l2o.amalgamation import evolution as module
from l2o.amalgamation.episodes import Evolution, Timetable
from l2o.amalgamation.evolution import EvolutionTraining
from l2o.amalgamation.meta import initial_state, one_by_one
from l2o.amalgamation.particles import estimate, resting, window
from l2o.amalgamation.plan import Place
from l2o.amalgamation.unroll import Amalgamation, Runner, Teacher, inner_step
from l2o.problems import Batch
from l2o.rules import Adam, RMSProp, RNNProp, UpdateRule
from l2o.rules.base import Horizon
from l2o.rules.layout import Layout
from l2o.tasks.convolution import max_of_windows, product_of_patches, side_by_side
from l2o.tasks.load import load_task

_PLAIN = Evolution(shortest=20, end_weight=3.0, loss_limit=1e6)
_PLACE = Place((0, 0), 0, 0, 0, 20, 0)


@dataclass(frozen=True)
class Rates(UpdateRule):
    """A rate for each half of the coordinates, which changes in time: three weights."""

    name: ClassVar[str] = "rates of a test"

    def initial_weights(self, seed):
        floatx = keras.config.floatx()
        return [tf.constant([-2.0, -1.5], floatx), tf.constant([0.3], floatx)]

    def initial_state(self, layout):
        return Adam(0.1).initial_state(layout)

    def observe(self, weights, gradient, parameters, state, layout):
        return Adam(0.1).observe([], gradient, parameters, state, layout)

    def update(self, weights, gradient, parameters, state, layout, horizon=None):
        state = self.observe(weights, gradient, parameters, state, layout)
        time = tf.cast(state.shared["count"], gradient.dtype) / tf.cast(
            horizon.steps, gradient.dtype
        )
        rate = tf.exp(weights[0] + weights[1] * time)
        return tf.repeat(rate, [layout.size - layout.size // 2, layout.size // 2]) * gradient, state


class Quadratic:
    """Two coordinates of unlike curvature, the minimum moving with the batch."""

    layout = Layout(("x",), ((2,),))

    def initial(self, seed):
        return np.array([1.0, -2.0]) * (1 + seed / 100), []

    def loss(self, parameters, carried, batch, training):
        centre = tf.reduce_mean(batch.inputs, 0)
        curvature = tf.constant([1.0, 3.0], parameters.dtype)
        return tf.reduce_sum(curvature * tf.square(parameters - centre)) + 0.1, carried


@pytest.fixture
def quadratic(float64):
    inputs = np.random.default_rng(1).normal(size=(32, 2)) / 3
    return with_data(Quadratic(), Batch(inputs, np.zeros(32, "int32")), 4)


def table(task, evolution, window, pairs, weights=3, **settings):
    return Timetable(task, (7,), range(pairs), evolution, window, 20, weights, **settings)


def moved(job, evolution, entries, weights, signs=(1.0, -1.0), warmup=0, spread=None):
    """Outcomes of windows one after the other, and the particles after them."""
    spread = {} if spread is None else {"spread": spread}
    data = tf.nest.map_structure(tf.constant, job.task.dataset.train)
    pairs = len(entries[0].fresh)
    particles, outcomes = resting(job, pairs, len(signs)), []

    @tf.function(autograph=False)
    def run(particles, entry):
        return window(
            job, evolution, warmup, weights, tf.constant(signs, weights.dtype), particles, entry,
            data, 0.0, **spread,
        )  # fmt: skip

    for entry in entries:
        outcome, particles = run(particles, tf.nest.map_structure(tf.constant, entry))
        outcomes.append(outcome)
    return outcomes, particles


def analytic(job, evolution, entry, weights):
    """The meta-gradient of one fit's weighted loss, by backpropagation through all of it."""
    data, steps = job.task.dataset.train, int(entry.steps[0])
    layout = Layout.of(job.rule.initial_weights(0))
    share = [1 if t < 0.8 * steps else evolution.end_weight for t in range(steps)]
    with tf.GradientTape() as tape:
        tape.watch(weights)
        parameters = tf.constant(entry.start[0][0])
        runner = Runner(parameters, [], job.rule.initial_state(job.task.layout))
        losses = []
        for t in range(steps):
            batch = Batch(tf.constant(data.inputs[entry.examples[0, t]]), tf.zeros(4))
            seen, runner = inner_step(
                job.task, job.rule, layout.unflatten(weights), runner, batch,
                lambda *at: plain(*at), Horizon(float(steps)),
            )  # fmt: skip
            losses.append(tf.math.log(seen.loss + 1e-10))
        total = tf.add_n([w * x for w, x in zip(share, losses, strict=True)]) / sum(share)
    return tape.gradient(total, weights)


def plain(task, parameters, carried, batch):
    from l2o.tasks.task import loss_and_gradient

    return loss_and_gradient(task, parameters, carried, batch)


@pytest.mark.parametrize("fresh_noise", [False, True])
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_the_mean_estimate_is_the_analytic_gradient(steps, fresh_noise, quadratic):
    """Whatever the window: summed over a fit's, with weights that stay as they are."""
    evolution = replace(_PLAIN, fresh_noise=fresh_noise, noise_size=0.01)
    job, pairs = Amalgamation(Rates(), (), "none", quadratic), 400
    weights = tf.constant([-2.0, -1.5, 0.3], "float64")
    # One fit, whose batches and start all pairs share, each with noise of its own.
    entries = [
        table(quadratic, evolution, steps, 1, abreast=True).entry(k) for k in range(20 // steps)
    ]
    generator, noises = np.random.default_rng(0), []
    many = []
    for entry in entries:
        if fresh_noise or not noises:
            noises.append(generator.normal(size=(pairs, 3)))
        entry = tf.nest.map_structure(lambda x: np.repeat(x, pairs, 0), entry)
        many.append(entry._replace(noise=noises[-1], total=np.sum(noises, 0)))
    outcomes, _ = moved(job, evolution, many, weights)
    each = sum(
        entry.total * (outcome.value[:, 0] - outcome.value[:, 1]).numpy()[:, None]
        for entry, outcome in zip(many, outcomes, strict=True)
    ) / (2 * evolution.noise_size * len(many))
    whole = entries[0]._replace(examples=np.concatenate([e.examples for e in entries], 1))
    wanted = analytic(job, evolution, whole, weights).numpy()
    error = each.std(0, ddof=1) / np.sqrt(pairs)
    assert np.all(np.abs(each.mean(0) - wanted) < 3 * error), (each.mean(0), wanted, error)
    assert np.all(error < 0.5 * np.abs(wanted).max())  # or anything would pass
    whole = [
        estimate(evolution, outcome, tf.constant(entry.total)).gradient
        for outcome, entry in zip(outcomes, many, strict=True)
    ]
    np.testing.assert_allclose(np.mean(whole, 0), each.mean(0))


def test_noise_is_kept_for_a_fit_or_drawn_for_each_window(quadratic):
    for fresh_noise in (False, True):
        evolution = replace(_PLAIN, fresh_noise=fresh_noise, shortest=10)
        entries = [table(quadratic, evolution, 5, 6).entry(k) for k in range(12)]
        for pair in range(6):
            total = 0
            for before, entry in zip([None, *entries], entries, strict=False):
                fresh = bool(entry.fresh[pair])
                same = before is not None and np.array_equal(entry.noise[pair], before.noise[pair])
                assert same == (not fresh and not fresh_noise)
                total = entry.noise[pair] + (0 if fresh or not fresh_noise else total)
                np.testing.assert_allclose(entry.total[pair], total)
                assert fresh == (entry.step[pair] == 0)


def test_fits_are_out_of_step_of_many_lengths_and_the_same_whenever_asked(quadratic):
    evolution = replace(_PLAIN, shortest=5)
    make = lambda: table(quadratic, evolution, 5, 64)  # noqa: E731
    one, entries = make(), []
    for number in range(30):
        entries.append(one.entry(number))
    again = make().entry(17)
    tf.nest.map_structure(np.testing.assert_array_equal, again, entries[17])
    begun = np.stack([entry.fresh for entry in entries])
    assert begun[0].all() and not begun[1:].all(axis=1).any()
    lengths = {float(x) for entry in entries for x in entry.steps}
    assert lengths == {5.0, 10.0, 15.0, 20.0}
    for entry in entries:
        assert np.all(entry.step < entry.steps)
        np.testing.assert_allclose(entry.epochs, entry.steps * 4 / 32)


def test_fits_of_a_validation_are_one_of_each_pair_and_count_to_their_end(quadratic):
    evolution = replace(_PLAIN, shortest=5)
    job = Amalgamation(Rates(), (), "none", quadratic)
    weights = tf.constant([-2.0, -1.5, 0.3], "float64")
    rows = table(quadratic, evolution, 5, 3, abreast=True)
    entries = [rows.entry(number) for number in range(4)]
    assert [list(entry.fresh) for entry in entries] == [[True] * 3, *[[False] * 3] * 3]
    np.testing.assert_array_equal(entries[3].steps, [20, 15, 10])
    losses = [outcome.meta_loss[:, 0] for outcome in moved(job, evolution, entries, weights)[0]]
    counted = [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]]
    np.testing.assert_array_equal(np.array(losses) != 0, counted)


def test_both_of_a_pair_see_the_same_and_step_as_an_optimizer_with_their_weights(quadratic):
    """Against a plain loop: a fit of 20 steps, after a warm-up of three."""
    evolution = replace(_PLAIN, noise_size=0.3)
    job = Amalgamation(Rates(), (), "none", quadratic, warmup_rate=0.05)
    weights, layout = (
        tf.constant([-2.0, -1.5, 0.3], "float64"),
        Layout.of(Rates().initial_weights(0)),
    )
    entries = [table(quadratic, evolution, 5, 2, abreast=True).entry(k) for k in range(4)]
    outcomes, particles = moved(job, evolution, entries, weights, warmup=3)
    data = quadratic.dataset.train.inputs
    for sign, column in ((1.0, 0), (-1.0, 1)):
        mine = layout.unflatten(weights + sign * 0.3 * entries[0].noise[0])
        x, state, values = entries[0].start[0][0], Rates().initial_state(quadratic.layout), []
        for t in range(20):
            batch = data[entries[t // 5].examples[0, t % 5]]
            slope = 2 * np.array([1.0, 3.0]) * (x - batch.mean(0))
            values.append(np.log(np.sum([1, 3] * (x - batch.mean(0)) ** 2) + 0.1 + 1e-10))
            step, state = Rates().update(mine, tf.constant(slope), x, state, quadratic.layout,
                                         Horizon(20.0))  # fmt: skip
            x = x - (0.05 * slope if t < 3 else step.numpy())
        np.testing.assert_allclose(particles.student.parameters[0, column], x)
        found = np.mean([outcome.meta_loss[0, column] for outcome in outcomes])
        wanted = np.average(values, weights=[1] * 16 + [3] * 4) - values[0]
        np.testing.assert_allclose(found, wanted)


def test_noisy_gradients_are_cut_and_both_of_a_pair_have_the_same_noise(quadratic):
    """In clean coordinates, by plain SGD: every step is its gradient cut to 1, and noise."""
    evolution = replace(_PLAIN, noisy=1.0, reparameterised=0.5, noise_size=0.3)
    job = Amalgamation(Rates(), (Teacher(Adam(0.1), []),), "mean", quadratic, warmup_rate=0.1)
    weights = tf.constant([-2.0, -1.5, 0.3], "float64")
    pairs, steps = 64, 5
    entry = table(quadratic, evolution, steps, pairs).entry(0)
    entry = entry._replace(step=np.zeros(pairs))
    assert np.ptp(entry.scale) and np.all(entry.noisiness * math.sqrt(2) > 0.3)
    _, particles = moved(job, evolution, [entry], weights, warmup=steps)
    clean = particles.student.parameters * entry.scale[:, None]
    np.testing.assert_allclose(clean[:, 0], clean[:, 1], rtol=1e-9)
    np.testing.assert_allclose(clean[:, 0], particles.teachers[0].parameters, rtol=1e-9)

    one = entry._replace(examples=entry.examples[:, :1])
    _, particles = moved(job, evolution, [one], weights, warmup=1)
    start = entry.start[0]
    centres = np.stack([quadratic.dataset.train.inputs[k[0]].mean(0) for k in entry.examples])
    slopes = 2 * np.array([1.0, 3.0]) * (start - centres)
    cut = slopes / np.maximum(np.linalg.norm(slopes, axis=1, keepdims=True), 1)
    found = (start - (particles.student.parameters[:, 0] * entry.scale).numpy()) / 0.1
    noise = (found - cut) / entry.noisiness[:, None]
    assert abs(noise.mean()) < 3 / math.sqrt(noise.size)
    assert abs(noise.std() - 1) < 3 / math.sqrt(2 * noise.size)
    assert len(np.unique(noise.round(6))) == noise.size

    still = entry._replace(noisiness=np.zeros(pairs))  # as a fit that is not drawn to be noisy
    plain = [moved(job, s, [g], weights)[1].student.parameters.numpy()
             for s, g in ((evolution, still), (replace(evolution, noisy=0.0), entry))]  # fmt: skip
    np.testing.assert_allclose(*plain)


def test_scaled_fits_and_their_teachers_begin_where_clean_ones_do(quadratic):
    """Reparameterised or randomly scaled, SGD of the warm-up leads to the same place."""
    job = Amalgamation(
        RNNProp(units=2), (Teacher(Adam(0.1), []), Teacher(RMSProp(0.1), [])), "minmax", quadratic
    )
    weights = Layout.of(job.rule.initial_weights(0)).flatten(job.rule.initial_weights(0))
    places = []
    for evolution, limit in (
        (_PLAIN, 0.0),
        (replace(_PLAIN, reparameterised=1.0), 0.0),
        (_PLAIN, 2.0),
    ):
        drawn = table(quadratic, evolution, 5, 4, len(weights), scale_limit=limit).entry(0)
        (outcome,), particles = moved(job, evolution, [drawn], weights, warmup=5)
        clean = particles.student.parameters * drawn.scale[:, None]
        np.testing.assert_allclose(clean[:, 0], particles.teachers[0].parameters)
        np.testing.assert_allclose(clean[:, 0], particles.teachers[1].parameters)
        assert np.all(outcome.distance < -20)
        places.append(clean)
        assert np.ptp(drawn.scale) == (
            0 if evolution is _PLAIN and not limit else np.ptp(drawn.scale)
        )
    np.testing.assert_allclose(places[0], places[1], rtol=1e-6)
    np.testing.assert_allclose(places[0], places[2], rtol=1e-6)


def test_side_by_side_or_one_by_one(network, data):
    """A convolution with batch norm and pools: the same losses, whichever way."""
    job = Amalgamation(
        RNNProp(units=2), (Teacher(Adam(0.01), []),), "mean", task_of(network, data, 8)
    )
    weights = Layout.of(job.rule.initial_weights(0)).flatten(job.rule.initial_weights(0))
    drawn = Timetable(
        job.task, (1,), range(2), Evolution(noise_size=0.1), 3, 6, len(weights), held_out=False
    )
    entries = [drawn.entry(k) for k in range(2)]
    alone, _ = moved(job, _PLAIN, entries, weights, spread=one_by_one)
    with side_by_side():
        together, _ = moved(job, _PLAIN, entries, weights, spread=module.vectorized("a network"))
    tf.nest.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), together, alone
    )


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize("strides, size", [(1, (3, 3)), (2, (3, 2)), ((2, 1), (1, 4)), (3, (5, 5))])
def test_a_convolution_as_a_product_of_patches(strides, size, padding, float64):
    generator = np.random.default_rng(0)
    inputs = tf.constant(generator.normal(size=(2, 9, 10, 3)))
    kernel = tf.constant(generator.normal(size=(*size, 3, 4)))
    np.testing.assert_allclose(
        product_of_patches(inputs, kernel, strides, padding),
        tf.nn.convolution(inputs, kernel, strides, padding),
    )


@pytest.mark.parametrize("size", [2, 3])
def test_a_max_pool_by_other_operations_has_the_same_gradient(size, float64):
    """Also where several entries of a window are the largest, which is each of zeros here."""
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).clip(0)
    found = []
    for pool in (max_of_windows, tf.nn.max_pool):
        with tf.GradientTape() as tape:
            tape.watch(y := tf.constant(x))
            out = pool(y, size, size, "VALID", "NHWC")
            total = tf.reduce_sum(out * tf.constant(np.arange(out.shape[1])[:, None, None] + 1.0))
        found.append((out, tape.gradient(total, y)))
    tf.nest.map_structure(np.testing.assert_array_equal, *found)


def test_what_diverges_counts_for_the_limit_and_leaves_with_its_fit(quadratic):
    """Rates of e^40: losses overflow; the estimate is finite, and new fits begin as ever."""
    job, evolution = Amalgamation(Rates(), (), "none", quadratic), replace(_PLAIN, loss_limit=1.4)
    weights = tf.constant([40.0, 40.0, 0.0], "float64")
    entries = [table(quadratic, evolution, 20, 3, abreast=True).entry(k) for k in range(1)]
    (outcome,), particles = moved(job, evolution, entries, weights)
    assert not np.isfinite(particles.student.parameters).all()
    assert np.isfinite(estimate(evolution, outcome, tf.constant(entries[0].total)).gradient).all()
    assert np.all(outcome.meta_loss <= np.log(1.4) + 1e-6) and np.all(outcome.meta_loss > 0.2)


@pytest.fixture
def train(data, float64):
    """Meta-updates of a policy on two problems, by replicas."""

    def net(units):
        return lambda: keras.Sequential(
            [keras.layers.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(units),
             keras.layers.Dense(3)]
        )  # fmt: skip

    rule = Rates()
    jobs = tuple(
        Amalgamation(rule, (Teacher(Adam(0.01), []),), "mean", task_of(net(units), data, 4))
        for units in (1, 3)
    )

    def make(replicas):
        strategy = tf.distribute.MirroredStrategy([f"CPU:{k}" for k in range(replicas)])
        evolution = Evolution(shortest=4, reparameterised=0.5)
        return EvolutionTraining(jobs, evolution, 2, 4, strategy, 1e-2, 1, 1.0, held_out=True)

    def run(replicas=1, updates=5, kept=(), state=None, first=0):
        training = make(replicas)
        state = state or initial_state(rule.initial_weights(0))
        particles = training.begin(state.weights, _PLACE, list(kept))
        for number in range(first, first + updates):
            place = _PLACE._replace(number=number)
            state, particles, result = training.update(state, particles, place, 0, 0.5)
            assert float(result.finite) == 1
        return state, training.kept(particles), training

    return run


def test_replicas_share_the_work(train):
    alone, kept, _ = train(1)
    spread, gathered, _ = train(2)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)  # noqa: E731
    tf.nest.map_structure(same, alone, spread)
    tf.nest.map_structure(same, kept, gathered)


@pytest.mark.parametrize("replicas", [1, 2])
def test_particles_that_were_kept_go_on_bit_for_bit(train, replicas):
    whole, _, _ = train(replicas, 6)
    half, kept, _ = train(replicas, 3)
    kept = [tf.constant(np.asarray(x)) for x in kept]
    again, _, _ = train(replicas, 3, kept, half, first=3)
    tf.nest.map_structure(np.testing.assert_array_equal, whole, again)


def test_validation_is_of_whole_fits_on_every_problem(train):
    state, _, training = train(1, 1)
    shares = []
    tick = lambda seconds, share: shares.append(share)  # noqa: E731
    found = training.validate(state.weights, (1,), 3, 20, tick)
    assert found.shape == (6,) and np.isfinite(found).all()
    np.testing.assert_allclose(sum(shares), 1)
    np.testing.assert_array_equal(found, training.validate(state.weights, (1,), 3, 20))


def test_thirty_windows_on_digits_make_a_policy_better():
    """By more than three standard errors of the difference, over sixteen fits."""
    task, rule = load_task("small_digits_relu_32", report=lambda text: None), RNNProp(units=4)
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    training = EvolutionTraining(
        (Amalgamation(rule, (), "none", task),),
        Evolution(shortest=40),
        20,
        8,
        strategy,
        0.02,
        1,
        1.0,
    )
    state = initial_state(rule.initial_weights(0))
    validate = lambda state: training.validate(state.weights, (5,), 16, 100)  # noqa: E731
    before, particles = validate(state), training.begin(state.weights, _PLACE, [])
    for number in range(30):
        place = _PLACE._replace(number=number, unroll=100)
        state, particles, _ = training.update(state, particles, place, 0, 0.0)
    gained = before - validate(state)
    assert gained.mean() > 3 * gained.std(ddof=1) / 4
    assert gained.mean() > 0.1


def test_initial_weights_are_drawn_by_one_thread_at_a_time(quadratic):
    """Problems are windowed in threads, and layers draw from generators that threads share."""
    within, most = [], []
    drawn = quadratic.initial

    def initial(seed):
        within.append(seed)
        most.append(len(within))
        time.sleep(0.01)
        within.remove(seed)
        return drawn(seed)

    quadratic.initial = initial
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda k: table(quadratic, _PLAIN, 5, 4).entry(k), range(8)))
    assert len(most) > 1 and set(most) == {1}
