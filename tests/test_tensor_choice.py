"""TensorChoice: against a loop in NumPy, and what must not matter to it."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from l2o.rules import Horizon, Layout, TensorChoice
from l2o.rules.tensor_choice import DIRECTIONS, FEATURES, inputs, matrix_of, time_of

_SHAPES = ((6, 4), (4,), (2, 2, 3, 5), (), (4, 3))
_LAYOUT = Layout(("dense/kernel", "dense/bias", "conv/kernel", "scale", "embedding/table"), _SHAPES)
_RULE = TensorChoice(units=3)


@pytest.fixture(autouse=True)
def doubles(float64):
    """All here is in float64."""


def drawn(seed=0, layout=_LAYOUT):
    """Parameters, and gradients of eight steps."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=layout.size) / 3, generator.normal(size=(8, layout.size))


def weights(seed=1):
    """Of a policy that has learned something."""
    generator = np.random.default_rng(seed)
    return [tf.constant(generator.normal(size=s) / 2) for s in _RULE.weight_shapes()]


def trained(parameters, gradients, learned, horizon=None, layout=_LAYOUT, rule=_RULE):
    """The steps [8, D] of a fit."""
    state, steps, x = rule.initial_state(layout), [], tf.constant(parameters)
    for gradient in gradients:
        step, state = rule.update(learned, tf.constant(gradient), x, state, layout, horizon)
        x = x - step
        steps.append(step.numpy())
    return np.stack(steps)


def plain(parameters, gradients, learned, total, epochs):
    """The same by loops, written from the definition."""
    w0, b0, w1, b1 = (w.numpy() for w in learned)
    rms = lambda x: np.sqrt(np.mean(np.square(x)))  # noqa: E731
    clip = lambda x, low, high: min(max(math.log(x), low), high)  # noqa: E731
    x, count = parameters.copy(), len(parameters)
    m, n, v = np.zeros(count), np.zeros(count), np.zeros(count)
    steps = []
    for t, g in enumerate(gradients, start=1):
        m, n, v = 0.9 * m + 0.1 * g, 0.99 * n + 0.01 * g, 0.99 * v + 0.01 * g * g
        step, overall, offset = np.zeros(count), rms(x), 0
        for name, shape in zip(_LAYOUT.names, _SHAPES, strict=True):
            here = slice(offset, offset + math.prod(shape))
            offset = here.stop
            a, b, p = m[here] / (1 - 0.9**t), n[here] / (1 - 0.99**t), v[here] / (1 - 0.99**t)
            y, theta = g[here], x[here]
            r = 1 / np.sqrt(p)
            ways = [a * r, b * r, y * r, np.sign(a), a, b, y,
                    (1 + np.sign(y) * np.sign(a)) * y, theta]  # fmt: skip
            ways = [way / (rms(way) or 1) for way in ways]
            hidden = "embedding" not in name and len(shape) > 1
            if hidden:
                rows = {(6, 4): 6, (2, 2, 3, 5): 12}[shape]
                z = (0.9 * m[here] + 0.1 * y).reshape(rows, -1)
                z = z / np.linalg.norm(z)
                for _ in range(5):
                    z = 3.4445 * z + (-4.775 * z @ z.T + 2.0315 * z @ z.T @ z @ z.T) @ z
                ways.append(z.ravel() * math.sqrt(max(z.shape)))
            else:
                ways.append(ways[0])
            noise = np.sqrt(p.mean())
            if total:
                shares = [
                    t / total - place for place in (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1, 1.1)
                ]
                known = [
                    *np.tanh(10 * np.array(shares)),
                    1,
                    np.clip(math.log(total) - 6.5, -3, 3) / 2,
                ]
                known += [1, np.clip(math.log(epochs), -2, 5) / 2]
                done = min(max((t - 1 - total // 20) / max(total - total // 20, 1), 0), 1)
                w = min(t / max(total // 20, 1), 1)
                w *= 1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * done)) / 2
            else:
                known, w = [0] * 13, min(t / 50, 1) / math.sqrt(1 + t / 1000)
            size = math.prod(shape)
            known += [math.tanh(math.log(t / k)) for k in (10, 100, 1000)]
            known += [1 + clip(rms(a) / noise, -4, 1) / 2, 1 + clip(rms(b) / noise, -4, 1) / 2,
                      clip(rms(y) / noise, -2, 2),
                      clip(rms(theta) / overall, -4, 2) / 2]  # fmt: skip
            known += [1 if len(shape) > 1 else -1, 1 if hidden else -1,
                      math.log(math.prod(shape[:-1])) / 2 - 2, math.log(count) / 4 - 2,
                      math.log(size) / 3 - math.log(count) / 3 + 1]  # fmt: skip
            out = np.tanh(known @ w0 + b0) @ w1 + b1
            shares = np.eye(10)[0] + out[1:]
            if not hidden:
                shares = np.array([shares[0] + shares[9], *shares[1:9], 0])
            mixed = sum(c * way for c, way in zip(shares, ways, strict=True))
            mixed = mixed / np.linalg.norm(shares)
            length = max(rms(theta), 0.3 * overall)
            step[here] = 0.03 * w * math.exp(4 * math.tanh(out[0] / 4)) * length * mixed
        x = x - step
        steps.append(step)
    return np.stack(steps)


@pytest.mark.parametrize("total, epochs", [(8, 2.0), (400, 30.0), (0, 0.0)])
@pytest.mark.parametrize("learned", [False, True])
def test_against_numpy(learned, total, epochs):
    some = weights() if learned else [tf.zeros(s, "float64") for s in _RULE.weight_shapes()]
    horizon = Horizon(float(total), epochs) if total else None
    found = trained(*drawn(), some, horizon)
    np.testing.assert_allclose(found, plain(*drawn(), some, total, epochs), rtol=1e-5, atol=1e-8)


def test_a_horizon_of_zero_is_none():
    args = (*drawn(), weights())
    np.testing.assert_array_equal(trained(*args), trained(*args, Horizon(0.0, 0.0)))
    assert not np.allclose(trained(*args), trained(*args, Horizon(100.0, 1.0)))


def test_it_begins_as_its_teacher_whatever_the_seed():
    """A fresh policy is one of zero weights."""
    args, still = drawn(), [tf.zeros(s, "float64") for s in _RULE.weight_shapes()]
    for seed in (0, 1):
        fresh = _RULE.initial_weights(seed)
        assert [tuple(w.shape) for w in fresh] == list(_RULE.weight_shapes())
        np.testing.assert_allclose(trained(*args, fresh), trained(*args, still), rtol=1e-12)


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e6])
def test_a_factor_of_the_loss_changes_nothing(factor):
    parameters, gradients = drawn()
    whole = trained(parameters, gradients, weights(), Horizon(8.0, 1.0))
    scaled = trained(parameters, factor * gradients, weights(), Horizon(8.0, 1.0))
    np.testing.assert_allclose(scaled, whole, rtol=1e-5)


def test_a_factor_of_all_parameters_is_one_of_their_steps():
    parameters, gradients = drawn()
    whole = trained(parameters, gradients, weights(), Horizon(8.0, 1.0))
    scaled = trained(30 * parameters, gradients / 30, weights(), Horizon(8.0, 1.0))
    np.testing.assert_allclose(scaled, 30 * whole, rtol=1e-6, atol=1e-9)


def test_permuted_coordinates_have_permuted_steps():
    """Of vectors, any; of matrices, rows and columns."""
    layout = Layout(("a/bias", "a/kernel"), ((7,), (5, 4)))
    parameters, gradients = drawn(2, layout)
    generator = np.random.default_rng(3)
    matrix = 7 + np.arange(20).reshape(5, 4)[generator.permutation(5)][:, generator.permutation(4)]
    order = np.concatenate([generator.permutation(7), matrix.ravel()])
    whole = trained(parameters, gradients, weights(), layout=layout)
    permuted = trained(parameters[order], gradients[:, order], weights(), layout=layout)
    np.testing.assert_allclose(permuted, whole[:, order], rtol=1e-7)


def test_tensors_of_zeros_of_one_number_and_of_none():
    """What is zero moves as its network does; what has no gradient stands still; all is finite."""
    layout = Layout(("a", "b", "c", "d"), ((4, 4), (4,), (), (0,)))
    generator = np.random.default_rng(0)
    parameters = np.concatenate([generator.normal(size=16), np.zeros(4), [0.5]])
    gradients = generator.normal(size=(8, 21))
    gradients[:, 20] = 0
    steps = trained(parameters, gradients, weights(), Horizon(8.0, 1.0), layout)
    assert np.isfinite(steps).all()
    assert np.all(np.abs(steps[1, 16:20]).max() > 1e-4)
    # Decay alone moves a number that has no gradient.
    rms = np.sqrt(np.mean(parameters**2))
    assert np.abs(steps[:, 20]).max() < 0.03 * np.exp(4) * max(0.5, 0.3 * rms) * 1.01
    still = trained(np.zeros(21), gradients, weights(), Horizon(8.0, 1.0), layout)
    assert np.isfinite(still).all() and np.abs(still[0, :20]).max() > 0


def test_after_its_end_a_fit_creeps():
    parameters, gradients = drawn()
    still = [tf.zeros(s, "float64") for s in _RULE.weight_shapes()]
    steps = trained(parameters, np.repeat(gradients[:1], 8, 0), still, Horizon(4.0, 1.0))
    sizes = np.sqrt(np.mean(steps**2, axis=1))
    assert np.all(sizes[5:] < 2e-3 * sizes[0])


def test_the_matrix_that_a_tensor_is():
    assert matrix_of("dense/kernel", (784, 20)) == (784, 20)
    assert matrix_of("conv/kernel", (3, 3, 16, 32)) == (144, 32)
    assert matrix_of("query/kernel", (48, 4, 12)) == (48, 48)
    for name, shape in (("bias", (5,)), ("scale", ()), ("token_embedding/embeddings", (65, 16)),
                        ("row", (1, 7)), ("empty", (0, 3))):  # fmt: skip
        assert matrix_of(name, shape) is None


def test_what_the_network_sees_is_of_a_few_units():
    """Over fits of all lengths, tensors of all sizes, gradients of all kinds."""
    layout = Layout(("big", "one", "deep"), ((3000, 3000), (), (3, 3, 512, 512)))
    generator, seen = np.random.default_rng(0), []
    for _ in range(200):
        total = math.exp(generator.uniform(0, 16))
        time = time_of(tf.constant(math.ceil(generator.uniform() * total), "float64"),
                       Horizon(total, math.exp(generator.uniform(-7, 9))))  # fmt: skip
        wild = lambda *shape: tf.constant(np.exp(generator.normal(size=shape) * 9))  # noqa: E731
        lengths = {name: wild(3) for name in DIRECTIONS}
        seen.append(inputs(time, wild(3), lengths, wild(), layout))
    assert np.shape(seen[0]) == (FEATURES, 3)
    assert np.abs(seen).max() < 5


@pytest.mark.parametrize("width", [16, 64])
def test_a_network_of_four_times_the_width_needs_no_other_rate(width, float64):
    """The untrained rule: a fit of 150 steps fits a teacher network as well, wide or narrow."""
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(256, 8))
    y = np.tanh(x @ generator.normal(size=(8, 4))) @ generator.normal(size=(4, 1))
    model = keras.Sequential(
        [
            keras.layers.Input((8,)),
            keras.layers.Dense(width, activation="tanh"),
            keras.layers.Dense(1),
        ]
    )
    layout = Layout.of(model.trainable_variables, [v.path for v in model.trainable_variables])
    rule = TensorChoice(units=3)
    still = [tf.zeros(s, "float64") for s in rule.weight_shapes()]

    @tf.function
    def step(parameters, state):
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            out, _ = model.stateless_call(layout.unflatten(parameters), [], x)
            loss = tf.reduce_mean(tf.square(out - y))
        slope = tape.gradient(loss, parameters)
        move, state = rule.update(still, slope, parameters, state, layout, Horizon(150.0, 150.0))
        return loss, parameters - move, state

    parameters, state = (
        layout.flatten([v.value for v in model.trainable_variables]),
        rule.initial_state(layout),
    )
    losses = []
    for _ in range(150):
        loss, parameters, state = step(parameters, state)
        losses.append(float(loss))
    assert losses[-1] < 0.05 * losses[0]
