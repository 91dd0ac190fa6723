"""Scale, the hierarchical policy, against its equations written out coordinate by coordinate."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from made_weights import made_tensors

from l2o import AmalgamatedOptimizer
from l2o.policies.checkpoint import Policy, load_policy, save_policy
from l2o.rules import Layout, Original, Scale
from l2o.rules.recurrent import GRU, weight_seeds

_WARM, _STEPS = 3, 10
_LAYOUT = Layout(("a", "b", "c", "d"), ((), (3,), (0, 2), (2, 2)))


def gradients(count=_WARM + _STEPS, layout=_LAYOUT) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, layout.size))


def run(rule, weights, gradients, warm=_WARM, layout=_LAYOUT) -> np.ndarray:
    """Steps [steps, D] after `warm` observed gradients."""
    state, steps = rule.initial_state(layout), []
    for gradient in gradients[:warm]:
        state = rule.observe(weights, tf.constant(gradient), None, state, layout)
    for gradient in gradients[warm:]:
        step, state = rule.update(weights, tf.constant(gradient), None, state, layout)
        steps.append(np.asarray(step))
    return np.stack(steps)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_gru(weights, x, h) -> np.ndarray:
    """One step of one GRU; Keras' gates: update, reset, candidate."""
    kernel, recurrent, bias = weights
    n = len(h)
    update, reset = (
        sigmoid(x @ kernel[:, cut] + h @ recurrent[:, cut] + bias[cut])
        for cut in (slice(0, n), slice(n, 2 * n))
    )
    last = slice(2 * n, None)
    candidate = np.tanh(x @ kernel[:, last] + (reset * h) @ recurrent[:, last] + bias[last])
    return update * h + (1 - update) * candidate


def numpy_scale(weights, gradients, warm, layout, rate=1e-3, epsilon=1e-10) -> np.ndarray:
    """Steps [steps, D] of Scale, one coordinate at a time."""
    weights = [np.asarray(w) for w in weights]
    lower, middle, upper = weights[:3], weights[3:6], weights[6:9]
    decay_head, rate_head, step_head = weights[9:11], weights[11:13], weights[13:15]
    linear, kept = weights[15], sigmoid(weights[16][0])
    places = [range(o, o + s) for o, s in zip(layout.offsets, layout.sizes, strict=True)]
    size, owner = layout.size, {j: k for k, place in enumerate(places) for j in place}
    mean, power = np.zeros((size, 4)), np.zeros((size, 4))
    hidden = np.zeros((size, lower[1].shape[0]))
    of_tensor = np.zeros((layout.tensors, middle[1].shape[0]))
    of_all = np.zeros(upper[1].shape[0])
    log_rate = average = np.full(size, np.log(rate))
    steps = []
    for t, gradient in enumerate(gradients):
        for j, g in enumerate(gradient):
            decays = sigmoid(hidden[j] @ decay_head[0] + decay_head[1])
            for s in range(4):
                b_mean, b_power = decays ** (0.5**s)
                mean[j, s] = b_mean * mean[j, s] + (1 - b_mean) * g
                power[j, s] = b_power * power[j, s] + (1 - b_power) * g**2
        if t < warm:
            continue
        before, step = log_rate.copy(), np.zeros(size)
        log_rate, average = log_rate.copy(), average.copy()
        for j in range(size):
            m = mean[j] / np.sqrt(power[j] + epsilon)
            logs = np.log(power[j] + epsilon)
            relative = before[j] - before[list(places[owner[j]])].mean()
            x = np.concatenate([m, logs - logs.mean(), [relative], of_tensor[owner[j]], of_all])
            hidden[j] = numpy_gru(lower, x, hidden[j])
            log_rate[j] = average[j] + (hidden[j] @ rate_head[0] + rate_head[1])[0]
            average[j] = kept * average[j] + (1 - kept) * log_rate[j]
            direction = hidden[j] @ step_head[0] + step_head[1] + m @ linear
            step[j] = (np.exp(log_rate[j]) + 0.01) * direction[0]
        filled = [k for k in range(layout.tensors) if layout.sizes[k]]
        for k in filled:
            x = np.concatenate([hidden[list(places[k])].mean(axis=0), of_all])
            of_tensor[k] = numpy_gru(middle, x, of_tensor[k])
        of_all = numpy_gru(upper, of_tensor[filled].mean(axis=0), of_all)
        steps.append(step)
    return np.stack(steps)


def test_scale_is_its_formula(float64):
    rule = Scale()
    weights, values = made_tensors(rule), gradients()
    steps = run(rule, weights, values)
    assert steps.shape == (_STEPS, _LAYOUT.size)
    np.testing.assert_allclose(steps, numpy_scale(weights, values, _WARM, _LAYOUT), rtol=1e-7)


def test_the_gru_is_keras_own(float64):
    gru = GRU(5, 4)
    weights = [w + 0.1 for w in gru.initial_weights(weight_seeds(3))]
    cell = keras.layers.GRUCell(4, reset_after=False)
    cell.build((None, 5))
    cell.set_weights([np.asarray(w) for w in weights])
    generator = np.random.default_rng(0)
    inputs, hidden = generator.normal(size=(7, 5)), generator.normal(size=(7, 4))
    expected, _ = cell(tf.constant(inputs), [tf.constant(hidden)])
    actual = gru(weights, tf.constant(inputs.T), tf.constant(hidden.T))
    np.testing.assert_allclose(np.transpose(actual), expected, rtol=1e-6)


def test_initial_weights():
    """Keras' GRU initializers; heads are zero but for decays of 0.9 and 0.999."""
    *grus, kernel, logits, _, _, _, _, _, memory = map(np.asarray, Scale().initial_weights(0))
    for k, units in zip((0, 3, 6), (20, 10, 10), strict=True):
        limit = np.sqrt(6 / sum(grus[k].shape))
        assert 0.8 * limit < np.abs(grus[k]).max() <= limit
        np.testing.assert_allclose(grus[k + 1] @ grus[k + 1].T, np.eye(units), atol=1e-5)
        assert not grus[k + 2].any()
    assert not any(np.any(w) for w in (kernel, *Scale().initial_weights(0)[11:16]))
    np.testing.assert_allclose(sigmoid(logits), [0.9, 0.999], rtol=1e-5)
    np.testing.assert_allclose(memory, [3.2], rtol=1e-6)


def test_an_untrained_scale_stands_still_yet_has_a_meta_gradient():
    rule, values = Scale(), gradients().astype("float32")
    weights = rule.initial_weights(0)
    assert not run(rule, weights, values).any()
    with tf.GradientTape() as tape:
        tape.watch(weights)
        step, _ = rule.update(weights, values[0], None, rule.initial_state(_LAYOUT), _LAYOUT)
    slopes = tape.gradient(step, weights, unconnected_gradients="zero")
    assert all(np.any(slopes[k]) for k in (13, 14, 15))


@pytest.mark.parametrize("factor", [1e-2, 1e3])
def test_the_gradients_size_does_not_matter(factor, float64):
    """Up to epsilon, which 50 gradients of the warm-up leave behind."""
    rule, values = Scale(), gradients(60)
    weights = made_tensors(rule)
    steps = run(rule, weights, values, warm=50)
    close = {"rtol": 1e-3, "atol": 1e-5}
    assert np.abs(steps).mean() > 1e-3
    np.testing.assert_allclose(run(rule, weights, factor * values, warm=50), steps, **close)
    assert not np.allclose(run(rule, weights, 1e-7 * values, warm=50), steps, **close)


def test_tensors_may_change_places_and_empty_ones_do_not_count(float64):
    rule, values = Scale(), gradients()
    weights = made_tensors(rule)
    steps = run(rule, weights, values)
    order = np.array([4, 5, 6, 7, 0, 1, 2, 3])
    layout = Layout(("d", "a", "b"), ((2, 2), (), (3,)))
    np.testing.assert_allclose(
        run(rule, weights, values[:, order], layout=layout), steps[:, order], rtol=1e-7
    )


def test_coordinates_know_their_tensor_and_tensors_know_each_other(float64):
    rule, values = Scale(), gradients()
    weights = made_tensors(rule)
    steps = run(rule, weights, values)
    other = run(rule, weights, values, layout=Layout(("a", "b"), ((4,), (2, 2))))
    assert np.all(np.abs(other - steps)[-1] > 1e-9)
    values[:, :4] *= np.linspace(1, -1, len(values))[:, None]  # d's own gradients stay
    other = run(rule, weights, values)
    np.testing.assert_array_equal(other[0, 4:], steps[0, 4:])
    assert np.all(np.abs(other - steps)[-1, 4:] > 1e-9)


def test_second_derivatives_are_finite_where_the_gradient_is_zero():
    """The meta-gradient goes through gradients that are zero, as a dead unit's are."""
    rule = Scale()
    weights = [tf.cast(w, tf.float32) for w in made_tensors(rule)]
    gradient = tf.zeros(_LAYOUT.size)
    with tf.GradientTape() as outer:
        outer.watch([gradient, *weights])
        with tf.GradientTape() as inner:
            inner.watch(gradient)
            state, total = rule.initial_state(_LAYOUT), 0.0
            for _ in range(3):
                step, state = rule.update(weights, gradient, None, state, _LAYOUT)
                total += tf.reduce_sum(step**2)
        slope = inner.gradient(total, gradient)
    second = outer.gradient(slope, [gradient, *weights], unconnected_gradients="zero")
    assert np.isfinite(slope).all() and np.any(slope)
    assert all(np.isfinite(x).all() for x in second)
    assert np.any(second[0])


def test_huge_weights_and_gradients_leave_no_nan():
    rule, generator = Scale(), np.random.default_rng(2)
    weights = [tf.cast(w, tf.float32) for w in made_tensors(rule)]
    weights[:11] = [1000 * w for w in weights[:11]]  # decays and gates of exactly 0 and 1
    values = generator.choice([-1e15, 0, 1e-15, 1e15], (_STEPS, _LAYOUT.size)).astype("float32")
    assert np.isfinite(run(rule, weights, values, warm=0)).all()


@pytest.mark.parametrize("rule", [Original(), Scale()], ids=lambda rule: rule.name)
def test_policies_as_keras_optimizers(rule, tmp_path):
    """Saved, loaded and wrapped: warm-up and steps of the rule itself, one variable at rest."""
    layout = Layout(("a", "b", "d"), ((), (3,), (2, 2)))
    weights = [tf.cast(w, tf.float32) for w in made_tensors(rule)]
    save_policy(tmp_path / "policy", rule, weights, {})
    policy = load_policy(tmp_path / "policy")
    assert isinstance(policy, Policy) and policy.rule == rule
    optimizer = AmalgamatedOptimizer(policy, warmup_steps=_WARM)
    variables = [keras.Variable(np.ones(shape, "float32")) for shape in layout.shapes]
    optimizer.build(variables)
    values = gradients(layout=layout).astype("float32")
    path = []
    for gradient in values:
        optimizer.apply(layout.unflatten(tf.constant(gradient)), variables)
        path.append(layout.flatten([v.value for v in variables]).numpy())
    steps = run(rule, weights, values, layout=layout)
    expected = 1 - np.cumsum(np.concatenate([0.01 * values[:_WARM], steps]), axis=0)
    np.testing.assert_allclose(path, expected, rtol=1e-4, atol=1e-6)
