"""The meta-update: replicas, clipping, Adam, and what is not finite."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from made_weights import made_weights

from l2o.amalgamation.meta import MetaTraining, clip, initial_state
from l2o.amalgamation.unroll import (
    Amalgamation,
    Teacher,
    begin,
    run_teachers,
    truncation,
    validate_truncation,
    warm_up,
)
from l2o.problems import Batch, Problem
from l2o.rules import SGD, Adam, Momentum, PowerSign, RNNProp
from l2o.tasks.batches import batches, rows
from l2o.tasks.task import Task

_KEY, _BATCH, _STEPS, _WARMUP, _ALPHA = (5, 0), 8, 3, 2, 0.2
_TEACHERS = (Adam(0.01), Momentum(0.2))


def training(build, data, teachers=_TEACHERS, **settings) -> MetaTraining:
    """Meta-training on one device with one trajectory, unless settings say otherwise."""
    settings = {"devices": 1, "meta_batch": 1, "loss": None, "scheme": "minmax"} | settings
    devices = [f"CPU:{k}" for k in range(settings.pop("devices"))]
    task = Task(Problem(build, loss=settings.pop("loss")))
    scheme, imitated = settings.pop("scheme"), tuple(Teacher(t, []) for t in teachers)
    job = Amalgamation(RNNProp(units=4), imitated, scheme, task)
    strategy = tf.distribute.MirroredStrategy(devices)
    return MetaTraining(job, data, _BATCH, _STEPS, strategy=strategy, **settings)


def unroll(meta, updates, first=0):
    """Some updates from fresh trajectories: the state, the trajectories and the reports."""
    state, reports = initial_state(made_weights(meta.job.rule)), []
    trajectories = meta.begin(state.weights, _KEY, first, _WARMUP)
    for k in range(updates):
        behind = _WARMUP + k * _STEPS
        state, trajectories, report = meta.update(state, trajectories, _KEY, first, behind, _ALPHA)
        reports.append(report)
    return state, trajectories, reports


def gathered(meta, trajectories) -> list[np.ndarray]:
    """Every tensor of the trajectories [meta-batch, ...]."""
    local = meta.strategy.experimental_local_results
    return [np.concatenate(local(x)) for x in tf.nest.flatten(trajectories)]


def row_of(meta, trajectories, row: int):
    """One trajectory of those on the first device."""
    local = meta.strategy.experimental_local_results
    return tf.nest.map_structure(lambda x: local(x)[0][row], trajectories)


def numbers(structure) -> list[np.ndarray]:
    return [np.asarray(x) for x in tf.nest.flatten(structure)]


def close(actual, expected, rtol, atol=0.0):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def same(actual, expected) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(actual, expected, strict=True))


def finite(arrays) -> bool:
    return all(np.isfinite(a).all() for a in arrays)


def as_float64(data) -> Batch:
    return Batch(data.inputs.astype("float64"), data.labels)


def test_two_replicas_are_one_device_with_all_their_trajectories(network, data, float64):
    results = []
    for devices in (1, 2):
        meta = training(network, as_float64(data), devices=devices, meta_batch=4)
        state, trajectories, reports = unroll(meta, 2)
        results.append([*numbers((state, reports)), *gathered(meta, trajectories)])
    close(*results, rtol=1e-5, atol=1e-10)
    parameters = gathered(meta, trajectories.student.parameters)[0]
    assert parameters.shape[0] == 4
    assert len(np.unique(parameters.round(6), axis=0)) == 4


def test_an_update_is_traced_once(network, data):
    """Fresh trajectories, warm ones and those of an update before are alike to TensorFlow."""
    meta = training(network, data)
    state = initial_state(meta.job.rule.initial_weights(0))
    for warmup in (0, _WARMUP):
        trajectories = meta.begin(state.weights, _KEY, 0, warmup)
        for behind in (warmup, warmup + _STEPS):
            state, trajectories, _ = meta.update(state, trajectories, _KEY, 0, behind, _ALPHA)
    assert meta._update.experimental_get_tracing_count() == 1


def test_trajectories_begin_with_their_warm_up(network, data, float64):
    data, first = as_float64(data), 3
    meta = training(network, data, meta_batch=2)
    weights = [tf.constant(w) for w in made_weights(meta.job.rule)]
    trajectories = meta.begin(weights, _KEY, first, _WARMUP)
    for row in range(2):
        key = [*_KEY, first + row]
        fresh = begin(meta.job, key, scaled=True)
        warm = warm_up(meta.job, weights, fresh, cut(data, key, 0, _WARMUP))
        close(numbers(row_of(meta, trajectories, row)), numbers(warm), rtol=1e-9, atol=1e-12)
        assert not np.allclose(warm.student.parameters, fresh.student.parameters, rtol=1e-6)


def clipped(gradient, weights) -> list[np.ndarray]:
    """A tensor's gradient is at most a tenth as long as the tensor, taken for 1e-3 at least."""
    result = []
    for g, w in zip(gradient, weights, strict=True):
        g, w = np.asarray(g, "float64"), np.asarray(w, "float64")
        longest = 0.1 * max(np.sqrt(np.sum(w**2)), 1e-3)
        result.append(g * min(1, longest / max(np.sqrt(np.sum(g**2)), 1e-300)))
    return result


def test_clipping_is_per_tensor_and_adaptive():
    generator = np.random.default_rng(0)
    shapes = [(4, 3), (4, 3), (5,), (5,), (2, 2)]
    weights = [generator.normal(size=shape) for shape in shapes]
    gradient = [generator.normal(size=shape) for shape in shapes]
    for k, (weight, slope) in enumerate([(1, 10), (1, 1e-3), (0, 1), (1e-5, 1), (1, 0)]):
        weights[k], gradient[k] = weights[k] * weight, gradient[k] * slope
    as_given = [tf.constant(g, tf.float32) for g in gradient]
    result = clip(as_given, [tf.constant(w, tf.float32) for w in weights])
    close(result, clipped(gradient, weights), rtol=1e-5)
    np.testing.assert_array_equal(result[1], as_given[1])
    np.testing.assert_allclose(np.linalg.norm(result[2]), 1e-4, rtol=1e-5)


def test_a_gradient_whose_square_overflows_is_clipped_like_any_other():
    weights, gradient = [tf.constant([3.0, 4.0])], [tf.constant([-3e30, 4e30])]
    np.testing.assert_allclose(clip(gradient, weights)[0], [-0.3, 0.4], rtol=1e-5)


def test_update_is_adam_on_the_mean_of_the_clipped_meta_gradients(network, data, float64):
    """Keras' Adam, on gradients of trajectories that are run one by one here.

    Where gradients are far above both epsilons, which do not stand in the same place.
    """
    data, first = as_float64(data), 3
    meta = training(network, data, meta_batch=2, learning_rate=1e-2)
    alone = tf.function(lambda *args: truncation(meta.job, *args), autograph=False)
    state, trajectories, _ = unroll(meta, 0, first)
    variables = [keras.Variable(w) for w in state.weights]
    adam = keras.optimizers.Adam(1e-2, epsilon=1e-12)
    for k in range(3):
        results = []
        for row in range(2):
            trajectory = row_of(meta, trajectories, row)
            steps = cut(data, [*_KEY, first + row], _WARMUP + k * _STEPS)
            alpha = tf.constant(_ALPHA, tf.float64)
            results.append(alone(state.weights, trajectory, steps, alpha))
        gradient = [np.mean(pair, axis=0) for pair in zip(*(r[0] for r in results), strict=True)]
        short = clipped(gradient, state.weights)
        assert not np.allclose(flat(gradient), flat(short), rtol=0.1)
        for variable, weight in zip(variables, state.weights, strict=True):
            variable.assign(weight)
        adam.apply([tf.constant(g) for g in short], variables)
        before = flat(state.weights)
        expected = flat([v.value for v in variables]) - before
        behind = _WARMUP + k * _STEPS
        state, trajectories, _ = meta.update(state, trajectories, _KEY, first, behind, _ALPHA)
        plain = np.abs(flat(short)) > 1e-5
        assert plain.mean() > 0.5
        moved = flat(state.weights) - before
        np.testing.assert_allclose(moved[plain], expected[plain], rtol=2e-4)
        for row, (_, trajectory, _) in enumerate(results):
            actual = numbers(row_of(meta, trajectories, row))
            close(actual, numbers(trajectory), rtol=1e-6, atol=1e-12)


def flat(arrays) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in arrays])


def cut(data, key, behind, steps=_STEPS) -> Batch:
    """The batches of some steps."""
    return tensors(batches(data, key, _BATCH, behind, steps))


def tensors(structure):
    return tf.nest.map_structure(tf.convert_to_tensor, structure)


# Labels that make the loss infinite, its gradient NaN, or only the gradient's gradient NaN.
_LOSS, _GRADIENT, _META_GRADIENT = 10, 11, 12


def treacherous_loss(labels, logits):
    labels = tf.cast(labels, tf.int32)  # a loss is given floats
    plain = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.minimum(labels, 2), logits)
    zero = 0 * tf.reduce_sum(logits, axis=-1)

    def where(label):  # zero there, one elsewhere; both with a zero gradient
        return tf.where(labels == label, zero, zero + 1)

    root, power = tf.sqrt(where(_GRADIENT)), where(_META_GRADIENT) ** 1.5
    return tf.where(labels == _LOSS, np.inf, plain) + root + power - 2


def dense_network() -> keras.Model:
    layers = [keras.layers.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential(layers)


@pytest.fixture(scope="module")
def treacherous() -> MetaTraining:
    """Two trajectories a meta-update, on data that a test may poison."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(64, 8, 8, 1)).astype("float32")
    data = Batch(inputs, generator.integers(0, 3, 64).astype("int32"))
    return training(dense_network, data, (SGD(0.1),), loss=treacherous_loss, meta_batch=2)


@pytest.fixture
def healthy(treacherous):
    """The data as it was, again after the test."""
    before = [x.copy() for x in treacherous.data[:2]]
    yield before
    for array, values in zip(treacherous.data[:2], before, strict=True):
        array[:] = values


def poison(data, kind, examples=slice(None)):
    if kind in ("nan", "inf"):
        data.inputs[examples] = float(kind)
    else:
        data.labels[examples] = kind


_POISONS = {
    "NaN in the data": "nan",
    "infinity in the data": "inf",
    "infinite loss": _LOSS,
    "NaN in the gradient": _GRADIENT,
    "NaN in the meta-gradient": _META_GRADIENT,
}


@pytest.mark.parametrize("start", [0, _STEPS], ids=["first truncation", "second truncation"])
@pytest.mark.parametrize("kind", _POISONS.values(), ids=_POISONS)
def test_what_is_not_finite_is_skipped_and_counted(kind, start, treacherous, healthy):
    meta = treacherous
    state, trajectories, _ = unroll(meta, start // _STEPS)
    before = numbers((state.weights, state.optimizer)), gathered(meta, trajectories)
    poison(meta.data, kind)
    behind = _WARMUP + start
    state, trajectories, report = meta.update(state, trajectories, _KEY, 0, behind, _ALPHA)
    assert float(report.finite) == 0
    assert int(state.skipped) == 1
    assert same(numbers((state.weights, state.optimizer)), before[0])
    assert same(gathered(meta, trajectories), before[1])

    for array, values in zip(meta.data[:2], healthy, strict=True):
        array[:] = values
    state, trajectories, report = meta.update(state, trajectories, _KEY, 0, behind, _ALPHA)
    assert float(report.finite) == 1
    assert int(state.skipped) == 1
    after = numbers(state.weights)
    assert finite(after) and not same(after, before[0][: len(after)])
    assert finite(gathered(meta, trajectories))


@pytest.mark.parametrize("kind", _POISONS.values(), ids=_POISONS)
def test_the_poison_is_what_it_says(kind, treacherous, healthy):
    """Loss, gradient and second derivative of a poisoned batch, up to the first bad one."""
    poison(treacherous.data, kind)
    task, batch = treacherous.job.task, tensors(rows(treacherous.data, slice(8)))
    parameters = tf.constant(task.initial(0)[0])
    with tf.GradientTape() as outer:
        outer.watch(parameters)
        with tf.GradientTape() as inner:
            inner.watch(parameters)
            loss, _ = task.loss(parameters, [], batch, training=True)
        gradient = inner.gradient(loss, parameters)
        square = tf.reduce_sum(gradient**2)
    second = outer.gradient(square, parameters)
    expected = {_LOSS: "loss", _GRADIENT: "gradient", _META_GRADIENT: "second"}.get(kind, "loss")
    found = {"loss": loss, "gradient": gradient, "second": second}
    assert next(name for name, x in found.items() if not finite(numbers(x))) == expected


@pytest.mark.parametrize("kind", [_LOSS, _GRADIENT], ids=["infinite loss", "NaN in the gradient"])
def test_one_bad_trajectory_of_two_stops_the_update(kind, treacherous, healthy):
    """The bad one alone stays where it was."""
    meta = treacherous
    everyone = Batch(np.arange(64), np.arange(64))
    mine, others = (batches(everyone, [*_KEY, k], _BATCH, 0, 5).labels for k in (0, 1))
    only_mine = sorted(set(mine[_WARMUP:].ravel()) - set(others.ravel()))
    poison(meta.data, kind, only_mine[0])
    state, trajectories, _ = unroll(meta, 0)
    weights, before = numbers(state.weights), gathered(meta, trajectories)
    state, trajectories, report = meta.update(state, trajectories, _KEY, 0, _WARMUP, _ALPHA)
    after = gathered(meta, trajectories)
    assert float(report.finite) == 0.5
    assert int(state.skipped) == 1
    assert same(numbers(state.weights), weights)
    assert same([x[0] for x in after], [x[0] for x in before])
    assert finite(after) and not same([x[1] for x in after], [x[1] for x in before])


def test_diverging_teachers_wait_and_the_update_stays_finite(network, data):
    """Of the first only its parameters overflow in the end; squares of them would long before."""
    diverging = (SGD(1e6), PowerSign(1e6), SGD(1e38))
    meta = training(network, data, (*diverging, Adam(0.01)))
    state, trajectories, reports = unroll(meta, 3)
    assert [float(r.finite) for r in reports] == [1, 1, 1]
    assert int(state.skipped) == 0
    assert finite(numbers((state, reports))) and finite(gathered(meta, trajectories))
    assert not same(numbers(state.weights), made_weights(meta.job.rule))
    trajectory = begin(meta.job, [*_KEY, 0], scaled=True)
    path, runners = run_teachers(
        meta.job, trajectory.teachers, tensors(batches(data, _KEY, _BATCH, 0, 9))
    )
    assert finite(numbers((path, runners)))
    for k, counts in enumerate([range(9), range(9), [0], [9]]):
        assert float(runners[k].state.shared["count"]) in counts
        np.testing.assert_array_equal(path[-1, k], runners[k].parameters)
    np.testing.assert_array_equal(path[-1, 2], trajectory.teachers[2].parameters)


def test_validation_is_the_mean_meta_loss_of_whole_unscaled_unrolls(network, data):
    meta, ticks = training(network, data, (), scheme="none"), []
    weights = made_weights(meta.job.rule)
    losses = meta.validate(weights, [9, 9], 2, 2 * _STEPS, _WARMUP, ticks.append)
    expected = []
    for index in range(2):
        key = [9, 9, index]
        trajectory = begin(meta.job, key, scaled=False)
        trajectory = warm_up(meta.job, weights, trajectory, cut(data, key, 0, _WARMUP))
        steps = cut(data, key, _WARMUP, 2 * _STEPS)
        expected.append(float(validate_truncation(meta.job, weights, trajectory, steps)[1]))
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert len(ticks) == 4


@pytest.mark.parametrize("meta_batch", [0, 3, -2])
def test_a_meta_batch_that_replicas_cannot_share_is_an_error(meta_batch, data):
    with pytest.raises(ValueError, match=f"2 replicas. Received: {meta_batch}"):
        training(dense_network, data, devices=2, meta_batch=meta_batch)


_PROCESS = """
import sys
import keras, numpy as np, tensorflow as tf
from l2o.amalgamation.meta import MetaTraining, initial_state
from l2o.problems import Batch, Problem
from l2o.tasks.task import Task
from l2o.amalgamation.unroll import Amalgamation, Teacher
from l2o.rules import Adam, RNNProp

tf.config.experimental.enable_op_determinism()
layers = keras.layers
build = lambda: keras.Sequential(
    [layers.Input((8, 8, 1)), layers.Conv2D(2, 3), layers.BatchNormalization(),
     layers.MaxPooling2D(2), layers.Flatten(), layers.Dense(3)]
)
generator = np.random.default_rng(0)
data = Batch(generator.normal(size=(64, 8, 8, 1)).astype("float32"), np.arange(64) % 3)
rule = RNNProp(units=4)
job = Amalgamation(rule, (Teacher(Adam(0.01), []),), "mean", Task(Problem(build)))
meta = MetaTraining(job, data, 8, 3, 2, tf.distribute.MirroredStrategy(["CPU:0"]))
for seed in map(int, sys.argv[1:]):
    state = initial_state(rule.initial_weights(seed))
    trajectories = meta.begin(state.weights, [seed], 0, 2)
    for behind in (2, 5):
        state, trajectories, report = meta.update(state, trajectories, [seed], 0, behind, 0.2)
    arrays = [np.asarray(x) for x in tf.nest.flatten((state, trajectories, report))]
    print(seed, b"".join(x.tobytes() for x in arrays).hex())
"""


def test_a_seed_gives_the_same_bits_in_every_process():
    command = [sys.executable, "-c", _PROCESS]
    processes = [
        subprocess.Popen([*command, *seeds], stdout=subprocess.PIPE, text=True)
        for seeds in (["1", "2"], ["2", "1"])
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    one, other = (dict(line.split() for line in output.splitlines()) for output in outputs)
    assert set(one) == {"1", "2"} and len(one["1"]) > 1000
    assert one == other
    assert one["1"] != one["2"]
