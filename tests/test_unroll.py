"""The unroll: its trajectories against plain training, its meta-gradient against differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from made_weights import made_tensors

from l2o.amalgamation.unroll import (
    Amalgamation,
    Runner,
    Teacher,
    begin,
    run_teachers,
    truncation,
    validate_truncation,
    warm_up,
)
from l2o.problems import Batch, Problem
from l2o.rules import SGD, Adam, Choice, Momentum, Original, RMSProp, RNNProp, Scale
from l2o.tasks.batches import batches, entry
from l2o.tasks.task import Task

_BATCH, _ALPHA = 8, 0.3
_TEACHERS = (Adam(0.02), Momentum(0.3))
_STUDENT = RNNProp(units=4)
_CHOICE = Choice((Adam(0.02), RMSProp(0.01), SGD(0.3)), units=4)


@pytest.fixture
def make(network, float64):
    """Puts together a job in float64."""

    def job(rule=_STUDENT, teachers=_TEACHERS, scheme="mean", **settings) -> Amalgamation:
        imitated = tuple(Teacher(teacher, []) for teacher in teachers)
        return Amalgamation(rule, imitated, scheme, Task(Problem(network)), **settings)

    return job


@pytest.fixture
def slices(data):
    """The batches of steps `start` to `stop`, in float64."""
    data = Batch(data.inputs.astype("float64"), data.labels)

    def cut(start: int, stop: int, key=(7, 0)) -> Batch:
        return tensors(batches(data, key, _BATCH, start, stop - start))

    return cut


def tensors(structure):
    return tf.nest.map_structure(tf.convert_to_tensor, structure)


def close(actual, expected, rtol=1e-9, atol=1e-12):
    """Asserts that two structures hold nearly the same numbers."""
    tf.nest.assert_same_structure(actual, expected)
    for a, b in zip(tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def each(slices, start: int, stop: int) -> list[Batch]:
    return [entry(slices(start, stop), i) for i in range(stop - start)]


def compiled(job, weights, trajectory, steps):
    """A truncation as meta-training runs it."""
    run = tf.function(lambda *args: truncation(job, *args, _ALPHA), autograph=False)
    return run(weights, trajectory, steps)


class PlainModel:
    """A Keras model trained in the usual way, its variables assigned: no task involved."""

    def __init__(self, build, parameters, carried):
        self.model = build()
        self.assign(parameters)
        for variable, value in zip(self.model.non_trainable_variables, carried, strict=True):
            variable.assign(value)

    def assign(self, parameters):
        parameters = np.asarray(parameters)
        for variable in self.model.trainable_variables:
            size = np.prod(variable.shape)
            variable.assign(parameters[:size].reshape(variable.shape))
            parameters = parameters[size:]

    @property
    def parameters(self) -> np.ndarray:
        return np.concatenate([v.numpy().ravel() for v in self.model.trainable_variables])

    @property
    def carried(self) -> list[np.ndarray]:
        return [v.numpy() for v in self.model.non_trainable_variables]

    def loss_and_gradient(self, batch) -> tuple[float, np.ndarray]:
        """Loss and gradient [D] of a batch; moves the batch-norm statistics."""
        loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        with tf.GradientTape() as tape:
            loss = loss_of(batch.labels, self.model(batch.inputs, training=True))
        variables = [v.value for v in self.model.trainable_variables]
        gradients = tape.gradient(loss, variables)
        return float(loss), np.concatenate([np.ravel(g) for g in gradients])

    def train(self, rule, weights, state, batches, scale=1.0, seen=lambda model: None):
        """Steps of `rule` in coordinates divided by `scale`: losses and the last state."""
        layout, losses = Task(Problem(lambda: self.model)).layout, []
        for i in range(len(batches.labels)):
            loss, gradient = self.loss_and_gradient(entry(batches, i))
            here = tf.constant(self.parameters / scale)
            step, state = rule.update(weights, tf.constant(gradient * scale), here, state, layout)
            self.assign(self.parameters - scale * np.asarray(step))
            losses.append(loss)
            seen(self)
        return np.array(losses), state


def initial_loss(build, start, batch) -> float:
    """M(x, theta_0)."""
    return PlainModel(build, *start).loss_and_gradient(batch)[0]


def objective(job, weights, trajectory, batches, path, held=None):
    """The loss of a truncation in plain words, and the network's gradients.

    Gradients in `held` stand in for the network's own: that is what first order means.
    """
    scale, (parameters, carried, state) = trajectory.scale, trajectory.student
    layout, losses, distances, gradients = job.task.layout, [], [], []
    for i in range(len(batches.labels)):
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            loss, carried = job.task.loss(
                parameters * scale, carried, entry(batches, i), training=True
            )
        gradients.append(tape.gradient(loss, parameters))
        gradient = gradients[i] if held is None else held[i]
        step, state = job.rule.update(weights, gradient, parameters, state, layout)
        parameters = parameters - step
        half_square = tf.reduce_sum((parameters - path[i] / scale) ** 2, axis=-1) / 2
        distances.append(np.log(half_square + 1e-10) - np.log(layout.size))
        losses.append(np.log(loss + 1e-10))
    reduce = {"mean": np.mean, "minmax": np.max}[job.scheme]
    distance = np.mean([reduce(d) for d in distances])
    return np.mean(losses) + _ALPHA * distance, gradients


@pytest.mark.parametrize(
    "rule, scheme, first_order",
    [
        (_STUDENT, "minmax", False),
        (_STUDENT, "minmax", True),
        (_CHOICE, "mean", False),
        (_CHOICE, "mean", True),
        (Original(units=4), "minmax", False),
        (Scale(units=4, tensor_units=3, global_units=2), "mean", False),
    ],
)
def test_meta_gradient_is_that_of_central_differences(rule, scheme, first_order, make, slices):
    job, weights = make(rule, scheme=scheme, first_order=first_order), made_tensors(rule)
    trajectory, steps = begin(job, [7, 0], scaled=True), slices(2, 5)
    trajectory = warm_up(job, weights, trajectory, slices(0, 2))
    gradient, _, _ = compiled(job, weights, trajectory, steps)
    path, _ = run_teachers(job, trajectory.teachers, steps)
    _, recorded = objective(job, weights, trajectory, steps, path)
    held = recorded if first_order else None
    generator, size = np.random.default_rng(2), 1e-5
    for k, weight in enumerate(weights):
        direction = generator.normal(size=weight.shape)
        direction /= np.linalg.norm(direction)
        ends = [
            objective(job, [*weights[:k], w, *weights[k + 1 :]], trajectory, steps, path, held)[0]
            for w in (weight + size * direction, weight - size * direction)
        ]
        expected = (ends[0] - ends[1]) / (2 * size)
        # Differences are rounded to some 1e-11, which a weight of little effect feels.
        np.testing.assert_allclose(np.sum(gradient[k] * direction), expected, rtol=1e-5, atol=1e-10)


def test_first_and_second_order_differ_only_in_the_gradient(make, slices):
    weights = made_tensors(_STUDENT)
    results = []
    for first_order in (False, True):
        job = make(first_order=first_order)
        trajectory = begin(job, [7, 0], scaled=True, limit=3.0)
        trajectory = warm_up(job, weights, trajectory, slices(0, 2))
        results.append(truncation(job, weights, trajectory, slices(2, 5), _ALPHA))
    (second, *same), (first, *other) = results
    close(same, other)
    assert not np.allclose(first[0], second[0], rtol=1e-2)


@pytest.mark.parametrize("rule", [_STUDENT, _CHOICE], ids=lambda rule: rule.name)
def test_recomputing_segments_changes_nothing(rule, make, slices):
    weights, results = made_tensors(rule), []
    for segment in (0, 2):
        job = make(rule, scheme="minmax", recompute=segment)
        trajectory = begin(job, [7, 0], scaled=True)
        trajectory = warm_up(job, weights, trajectory, slices(0, 2))
        results.append(compiled(job, weights, trajectory, slices(2, 6)))
    close(*results, rtol=1e-6)


def test_the_student_is_trained_as_a_plain_model_would_be(network, make, slices):
    """In scaled coordinates: parameters, batch-norm statistics, the rule's state, and losses."""
    job, weights = make(), made_tensors(_STUDENT)
    trajectory = begin(job, [7, 0], scaled=True)
    clean = trajectory.student.parameters * trajectory.scale
    plain = PlainModel(network, clean, trajectory.student.carried)
    state = _STUDENT.initial_state(job.task.layout)
    scale = trajectory.scale.numpy()
    losses, state = plain.train(_STUDENT, weights, state, slices(0, 4), scale)
    _, after, report = truncation(job, weights, trajectory, slices(0, 4), _ALPHA)
    close(after.student.parameters * scale, plain.parameters)
    close(after.student.carried, plain.carried)
    close(after.student.state, state, rtol=1e-6, atol=1e-9)
    starts = [
        initial_loss(network, (clean, trajectory.student.carried), b) for b in each(slices, 0, 4)
    ]
    np.testing.assert_allclose(report.meta_loss, np.mean(np.log(losses) - np.log(starts)))


@pytest.mark.parametrize("teacher", [*_TEACHERS, SGD(0.3)], ids=lambda rule: rule.name)
def test_a_teacher_is_trained_as_it_would_be_alone(teacher, network, make, slices):
    """Warm-up and two truncations, in clean coordinates, whatever the student does."""
    job, weights = make(teachers=(RMSProp(0.02), teacher)), made_tensors(_STUDENT)
    trajectory = begin(job, [7, 0], scaled=True)
    plain, path = PlainModel(network, *trajectory.teachers[1][:2]), []
    layout = job.task.layout
    state = teacher.initial_state(layout)
    for batch in each(slices, 0, 3):
        _, gradient = plain.loss_and_gradient(batch)
        state = teacher.observe([], tf.constant(gradient), None, state, layout)
        plain.assign(plain.parameters - 0.01 * gradient)
    _, state = plain.train(
        teacher, [], state, slices(3, 9), seen=lambda model: path.append(model.parameters)
    )
    trajectory = warm_up(job, weights, trajectory, slices(0, 3))
    actual, _ = run_teachers(job, trajectory.teachers, slices(3, 9))
    close(actual[:, 1], tf.constant(path))
    for start in (3, 6):
        steps = slices(start, start + 3)
        _, trajectory, _ = truncation(job, weights, trajectory, steps, _ALPHA)
    close(trajectory.teachers[1], Runner(tf.constant(plain.parameters), plain.carried, state))


def test_warm_up_is_sgd_in_clean_coordinates(network, make, slices):
    job, weights = make(warmup_rate=0.01), made_tensors(_STUDENT)
    fresh = begin(job, [7, 0], scaled=True)
    scale, layout = fresh.scale.numpy(), job.task.layout
    plain = PlainModel(network, fresh.student.parameters * scale, fresh.student.carried)
    student = _STUDENT.initial_state(layout)
    teachers = [teacher.initial_state(layout) for teacher in _TEACHERS]
    for batch in each(slices, 0, 3):
        _, gradient = plain.loss_and_gradient(batch)
        plain.assign(plain.parameters - 0.01 * gradient)
        gradient = tf.constant(gradient)
        student = _STUDENT.observe(weights, gradient * scale, None, student, layout)
        teachers = [
            teacher.observe([], gradient, None, state, layout)
            for teacher, state in zip(_TEACHERS, teachers, strict=True)
        ]
    warm = warm_up(job, weights, fresh, slices(0, 3))
    expected = [tf.constant(x) for x in plain.carried]
    close(warm.student, Runner(tf.constant(plain.parameters / scale), expected, student))
    close(warm.start, (warm.student.parameters, expected))
    for runner, state in zip(warm.teachers, teachers, strict=True):
        close(runner, Runner(tf.constant(plain.parameters), expected, state))
    assert float(warm.student.state.shared["count"]) == 3
    assert not np.any(warm.student.state.coordinate["hidden0"])
    assert not np.allclose(plain.carried[0], fresh.student.carried[0])


def test_a_warm_up_that_is_not_finite_leaves_no_trace(make, slices):
    job, weights = make(), made_tensors(_STUDENT)
    fresh, batches = begin(job, [7, 0], scaled=True), slices(0, 2)
    poisoned = Batch(batches.inputs * np.nan, batches.labels)
    close(warm_up(job, weights, fresh, poisoned), fresh, rtol=0, atol=0)


def test_a_truncation_leaves_the_start_where_it_was(make, slices):
    job, weights = make(), made_tensors(_STUDENT)
    fresh = begin(job, [7, 0], scaled=True)
    _, after, _ = truncation(job, weights, fresh, slices(0, 2), _ALPHA)
    close(after.start, (fresh.student.parameters, fresh.student.carried), rtol=0, atol=0)
    assert not np.allclose(after.student.parameters, fresh.student.parameters)


def test_meta_loss_is_relative_to_the_start_of_the_unroll(network, make, slices):
    """theta_0 is the student after warm-up, in later truncations too."""
    job, weights = make(), made_tensors(_STUDENT)
    trajectory = start = warm_up(job, weights, begin(job, [7, 0], scaled=True), slices(0, 2))
    scale = start.scale.numpy()
    origin = (start.student.parameters * scale, start.student.carried)
    plain, state = PlainModel(network, *origin), start.student.state
    for first in (2, 5):
        steps = slices(first, first + 3)
        _, trajectory, report = truncation(job, weights, trajectory, steps, _ALPHA)
        losses, state = plain.train(_STUDENT, weights, state, steps, scale)
        starts = [initial_loss(network, origin, b) for b in each(slices, first, first + 3)]
        np.testing.assert_allclose(report.meta_loss, np.mean(np.log(losses) - np.log(starts)))
    close(trajectory.start, start.start)


@pytest.mark.parametrize("scheme, reduce", [("mean", np.mean), ("minmax", np.max)])
def test_distance_is_to_each_teacher_after_the_same_step(scheme, reduce, network, make, slices):
    """In the student's coordinates, and without resetting the teachers between truncations."""
    job, weights = make(scheme=scheme), made_tensors(_STUDENT)
    trajectory = begin(job, [7, 0], scaled=True)
    scale, layout, start = trajectory.scale.numpy(), job.task.layout, trajectory.teachers[0]

    def path(rule, weights, scale=1.0) -> np.ndarray:
        path = []
        PlainModel(network, start.parameters, start.carried).train(
            rule,
            weights,
            rule.initial_state(layout),
            slices(0, 6),
            scale,
            seen=lambda model: path.append(model.parameters),
        )
        return np.array(path)

    student = path(_STUDENT, weights, scale) / scale
    teachers = [path(teacher, []) / scale for teacher in _TEACHERS]
    squares = np.stack([np.sum((student - t) ** 2, axis=-1) for t in teachers], axis=-1)
    distances = np.log(squares / 2 + 1e-10) - np.log(layout.size)
    for start in (0, 3):
        steps = slices(start, start + 3)
        _, trajectory, report = truncation(job, weights, trajectory, steps, _ALPHA)
        expected = np.mean([reduce(d) for d in distances[start : start + 3]])
        np.testing.assert_allclose(report.distance, expected, rtol=1e-7)


def test_scaling_turns_a_rate_into_one_rate_a_coordinate(network, make, slices):
    """SGD at lr on theta / s is SGD at lr s^2 on theta."""
    job = make(rule=SGD(1e-3), teachers=(), scheme="none")
    trajectory = begin(job, [7, 0], scaled=True)
    scale = trajectory.scale.numpy()
    parameters = trajectory.student.parameters * scale
    plain = PlainModel(network, parameters, trajectory.student.carried)
    for batch in each(slices, 0, 5):
        _, gradient = plain.loss_and_gradient(batch)
        plain.assign(plain.parameters - 1e-3 * scale**2 * gradient)
    after, _ = validate_truncation(job, [], trajectory, slices(0, 5))
    close(after.student.parameters * scale, tf.constant(plain.parameters))
    assert not np.allclose(after.student.parameters, trajectory.student.parameters)


def test_rehearsing_is_a_truncation_without_teachers(make, slices):
    job, weights = make(teachers=(), scheme="none"), made_tensors(_STUDENT)
    trajectory = begin(job, [7, 0], scaled=False)
    _, after, report = truncation(job, weights, trajectory, slices(2, 5), 0.0)
    again, meta_loss = validate_truncation(job, weights, trajectory, slices(2, 5))
    close(again, after)
    close(meta_loss, report.meta_loss)
    assert float(report.distance) == 0


def test_a_trajectory_derives_from_its_key(make):
    job = make()
    one, again, other = (begin(job, key, scaled=True) for key in ([7, 0], [7, 0], [7, 1]))
    close(one, again, rtol=0, atol=0)
    assert np.all(one.scale.numpy() != other.scale.numpy())
    assert np.mean(one.teachers[0].parameters.numpy() != other.teachers[0].parameters) > 0.5


def test_a_fresh_trajectory(network, make):
    """Glorot-uniform kernels, zero biases, teachers where the student is, scales ±exp(U(-1, 1))."""
    job = make()
    trajectory = begin(job, [7, 0], scaled=True)
    clean = trajectory.student.parameters * trajectory.scale
    for runner in trajectory.teachers:
        close(runner.parameters, clean)
    variables = network().trainable_variables
    values = job.task.layout.unflatten(clean)
    for value, name in zip(values, [v.name for v in variables], strict=True):
        if name == "kernel":
            fans = np.prod(value.shape[:-2], initial=1) * sum(value.shape[-2:])
            limit = np.sqrt(6 / fans)
            assert 0.8 * limit < np.abs(value).max() <= limit
        else:
            np.testing.assert_array_equal(value, np.full(value.shape, float(name == "gamma")))
    assert 0.4 < np.mean(trajectory.scale > 0) < 0.6
    exponents = np.log(np.abs(trajectory.scale))
    assert -1 <= exponents.min() < -0.83 and 0.83 < exponents.max() <= 1
    assert abs(exponents.mean()) < 0.2 and abs(exponents.std() - np.sqrt(1 / 3)) < 0.1
    unscaled = begin(job, [7, 0], scaled=False)
    np.testing.assert_array_equal(unscaled.scale, np.ones(job.task.layout.size))
    close(unscaled.student.parameters, clean)


def test_batches_are_slices_of_fresh_permutations():
    data = Batch(np.arange(20), np.arange(20))
    labels = batches(data, [7, 0], 6, 0, 9).labels  # three batches an epoch, two examples left out
    epochs = labels.reshape(3, 18)
    assert all(len(set(epoch)) == 18 for epoch in epochs.tolist())
    assert not np.array_equal(*epochs[:2])
    np.testing.assert_array_equal(batches(data, [7, 0], 6, 4, 3).labels, labels[4:7])
    assert not np.array_equal(batches(data, [7, 1], 6, 0, 9).labels, labels)
    with pytest.raises(ValueError, match="Received: 20"):
        batches(data, [7, 0], 21, 0, 1)


def test_pixels_are_divided_by_255(network):
    task = Task(Problem(network))
    parameters, carried = task.initial(0)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype="uint8")
    labels = tf.zeros(8, tf.int32)
    ways = [tf.constant(pixels), tf.constant(pixels / np.float32(255))]
    close(*(task.loss(parameters, carried, Batch(x, labels), True) for x in ways), rtol=1e-6)


@pytest.mark.parametrize(
    "teachers, scheme, message",
    [
        ((), "mean", "'mean' and 0 teachers"),
        (_TEACHERS, "none", "'none' and 2 teachers"),
        (_TEACHERS, "median", "Allowed: none, mean, minmax. Received: median"),
    ],
)
def test_schemes_and_teachers_that_do_not_fit_are_errors(teachers, scheme, message, make):
    with pytest.raises(ValueError, match=message):
        make(teachers=teachers, scheme=scheme)
