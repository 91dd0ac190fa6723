"""The learned policies, against a plain NumPy LSTM; see test_scale.py for the hierarchical one."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf
from made_weights import made_tensors

from l2o.rules import (
    SGD,
    Adam,
    Choice,
    Layout,
    Momentum,
    Original,
    RMSProp,
    RNNProp,
    Scale,
    get_pool,
    rule_from_config,
)

_WARM, _STEPS = 4, 20
_LAYOUT = Layout(("a", "b", "c", "d"), ((), (3,), (2, 2), (1, 2, 1, 1, 1)))
_RANKS = [0, 1, 1, 1, 2, 2, 2, 2, 4, 4]
_TEACHERS = (Adam(0.01), RMSProp(0.02), SGD(0.3))


_RULES = (RNNProp(), Choice(_TEACHERS), Original(), Scale())


@pytest.fixture(params=_RULES, ids=lambda rule: rule.name)
def rule(request):
    return request.param


def gradients(count=_WARM + _STEPS, layout=_LAYOUT, dtype="float64") -> np.ndarray:
    generator = np.random.default_rng(0)
    scale = np.logspace(-3, 1, layout.size)
    return (generator.normal(size=(count, layout.size)) * scale).astype(dtype)


def run(rule, weights, gradients, warm=0, layout=_LAYOUT) -> tuple[np.ndarray, tuple]:
    """Steps [steps, D] after `warm` observed gradients, and the last state."""
    state, steps = rule.initial_state(layout), []
    for gradient in gradients[:warm]:
        state = rule.observe(weights, tf.constant(gradient), None, state, layout)
    for gradient in gradients[warm:]:
        step, state = rule.update(weights, tf.constant(gradient), None, state, layout)
        steps.append(np.asarray(step))
    return np.stack(steps), state


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_lstm(weights, inputs) -> np.ndarray:
    """Head outputs [steps, D, outputs] of stacked LSTMs; Keras' gates: in, forget, cell, out."""
    *cells, kernel, bias = [np.asarray(w) for w in weights]
    values = inputs
    for k in range(0, len(cells), 3):
        hidden = carry = np.zeros((inputs.shape[1], cells[k + 1].shape[0]))
        outputs = []
        for x in values:
            gates = np.split(x @ cells[k] + hidden @ cells[k + 1] + cells[k + 2], 4, axis=-1)
            enter, forget, candidate, leave = gates
            carry = sigmoid(forget) * carry + sigmoid(enter) * np.tanh(candidate)
            hidden = sigmoid(leave) * np.tanh(carry)
            outputs.append(hidden)
        values = np.stack(outputs)
    return values @ kernel + bias


def softmax(x):
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("correction", ["exact", "constant"])
def test_rnnprop_is_its_formula(correction, float64):
    rule = RNNProp(bias_correction=correction, scale=0.1)
    weights = made_tensors(rule)
    m, v, inputs = 0.0, 0.0, []
    for t, g in enumerate(gradients(), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        exact = correction == "exact"
        m_hat, v_hat = m / (1 - 0.9 ** (t if exact else 1)), v / (1 - 0.999 ** (t if exact else 1))
        root = np.sqrt(v_hat + 1e-10)
        inputs.append(np.stack([m_hat / root, g / root], axis=-1))
    inputs = np.stack(inputs)[_WARM:]
    moving, still = (numpy_lstm(weights, x)[..., 0] for x in (inputs, 0 * inputs))
    steps, _ = run(rule, weights, gradients(), _WARM)
    assert steps.shape == (_STEPS, _LAYOUT.size)
    np.testing.assert_allclose(steps, 0.1 * np.tanh(moving - still), rtol=1e-6)


@pytest.mark.parametrize("horizon", [2000.0, 15.0])
def test_choice_is_its_formula(horizon, float64):
    rule = Choice(_TEACHERS, horizon=horizon)
    weights = made_tensors(rule)
    moves = np.stack([run(t, [], gradients(), _WARM)[0] for t in _TEACHERS], axis=-1)
    times = np.minimum(np.arange(_WARM + 1, _WARM + _STEPS + 1) / horizon, 1)
    times = np.broadcast_to(times[:, None, None], (*moves.shape[:2], 1))
    ranks = np.broadcast_to(np.eye(5)[_RANKS], (*moves.shape[:2], 5))
    choice = softmax(numpy_lstm(weights, np.concatenate([moves, times, ranks], axis=-1)))
    steps, _ = run(rule, weights, gradients(), _WARM)
    np.testing.assert_allclose(steps, (choice * moves).sum(axis=-1), rtol=1e-6, atol=1e-14)


def test_original_is_its_formula(float64):
    rule = Original()
    weights = made_tensors(rule)
    inputs = gradients()[_WARM:, :, None]
    moving, still = (numpy_lstm(weights, x)[..., 0] for x in (inputs, 0 * inputs))
    steps, _ = run(rule, weights, gradients(), _WARM)
    np.testing.assert_allclose(steps, 0.1 * (moving - still), rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("rule", [RNNProp(), Original()], ids=lambda rule: rule.name)
def test_a_coordinate_without_gradient_stays_where_it_is(rule, float64):
    weights, values = made_tensors(rule), gradients()
    values[:, 3] = 0
    steps, _ = run(rule, weights, values, _WARM)
    silence = np.zeros((_STEPS, 1, rule.network.inputs))
    assert np.abs(numpy_lstm(weights, silence)).min() > 1e-3  # what it would move by
    np.testing.assert_allclose(steps[:, 3], 0, atol=1e-15)
    assert np.all(np.abs(steps[:, :3]) > 1e-9)


def split_memory(state) -> tuple[list, list]:
    """What a policy's networks remember, and what follows the gradients."""
    tensors = [(key, value) for part in state for key, value in part.items()]
    is_memory = lambda key: any(s in key for s in ("hidden", "cell", "rate"))  # noqa: E731
    return [v for k, v in tensors if is_memory(k)], [v for k, v in tensors if not is_memory(k)]


def test_warm_up_moves_moments_and_count_but_not_memory(rule, float64):
    weights, layout = made_tensors(rule), _LAYOUT
    state = rule.initial_state(layout)
    for gradient in gradients()[:_WARM]:
        state = rule.observe(weights, gradient, None, state, layout)
    memory, moments = split_memory(state)
    assert float(state.shared["count"]) == _WARM
    assert all(value.shape[-1] == layout.size for value in state.coordinate.values())
    assert all(value.shape[-1] == layout.tensors for value in state.tensor.values())
    assert sum(value.shape == (20, layout.size) for value in memory) in (1, 4)
    assert not any(np.any(value) for value in memory)
    assert all(np.all(np.asarray(value) != 0) for value in moments)
    _, after = rule.update(weights, gradients()[0], None, state, layout)
    assert all(np.any(value) for value in split_memory(after)[0])


def test_observing_and_updating_keep_the_states_structure(rule):
    """A compiled loop carries the state: structure, shapes and types must stay."""
    weights, gradient = rule.initial_weights(0), gradients(1, dtype="float32")[0]
    fresh = rule.initial_state(_LAYOUT)
    seen = rule.observe(weights, gradient, None, fresh, _LAYOUT)
    _, moved = rule.update(weights, gradient, None, fresh, _LAYOUT)
    describe = lambda state: tf.nest.map_structure(lambda x: (x.shape, x.dtype), state)  # noqa: E731
    assert describe(fresh) == describe(seen) == describe(moved)


def test_number_of_weights():
    assert sum(math.prod(w.shape) for w in RNNProp().initial_weights(0)) == 5141
    # Inputs: K updates, time, five ranks; outputs: K.
    k = len(_TEACHERS)
    expected = 4 * 20 * (k + 6 + 20 + 1) + 4 * 20 * (20 + 20 + 1) + 21 * k
    assert sum(math.prod(w.shape) for w in Choice(_TEACHERS).initial_weights(0)) == expected
    assert sum(math.prod(w.shape) for w in Original().initial_weights(0)) == 5061
    # GRUs: three gates of inputs, hidden state and a bias; heads; linear(m); k.
    grus = 3 * 20 * (2 * 4 + 1 + 20 + 20 + 1) + 3 * 10 * (30 + 10 + 1) + 3 * 10 * (10 + 10 + 1)
    expected = grus + 4 * 21 + 4 + 1
    assert sum(math.prod(w.shape) for w in Scale().initial_weights(0)) == expected


def test_the_shapes_of_weights_are_known_before_they_are_made(any_rule):
    shapes = [tuple(w.shape) for w in any_rule.initial_weights(0)]
    assert list(any_rule.weight_shapes()) == shapes


def test_initial_weights_derive_from_the_seed(rule):
    one, again, other = (rule.initial_weights(seed) for seed in (3, 3, 4))
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a, b)
    kernels = [k for k, w in enumerate(one) if len(w.shape) == 2 and np.any(w)]
    assert len(kernels) == {"scale": 6, "choice": 5}.get(rule.name, 4)
    for k in kernels:
        assert not np.any(np.asarray(one[k]) == np.asarray(other[k]))
    drawn = [np.ravel(one[k]) for k in kernels]
    assert len(np.unique(np.concatenate(drawn))) > 0.99 * sum(map(len, drawn))


@pytest.mark.parametrize("rule", _RULES[:3], ids=lambda rule: rule.name)
def test_initializers(rule):
    *cells, head, head_bias = [np.asarray(w) for w in rule.initial_weights(0)]
    assert not head_bias.any()
    drawn = rule.name == "choice"
    assert head.any() == drawn
    for kernel in [*cells[::3], *[head] * drawn]:
        limit = np.sqrt(6 / sum(kernel.shape))
        assert 0.8 * limit < np.abs(kernel).max() <= limit
    for recurrent in cells[1::3]:
        np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(20), atol=1e-5)
    for bias in cells[2::3]:
        np.testing.assert_array_equal(bias, np.repeat([0, 1, 0, 0], 20))  # unit forget bias


def test_permuting_coordinates_permutes_the_steps(rule, float64):
    """Coordinates of one tensor may change places; for RNNProp and Original all of them."""
    weights, values = made_tensors(rule), gradients(6)
    if rule.name in ("choice", "scale"):
        order = np.array([0, 3, 1, 2, 7, 5, 4, 6, 9, 8])
    else:
        order = np.random.default_rng(2).permutation(_LAYOUT.size)
    steps, _ = run(rule, weights, values)
    permuted, _ = run(rule, weights, values[:, order])
    np.testing.assert_allclose(permuted, steps[:, order], rtol=1e-10)
    assert not np.allclose(steps, steps[:, order], rtol=1e-3)


def test_choice_tells_ranks_apart_but_not_tensors(float64):
    rule, values = Choice(_TEACHERS), gradients(6)
    weights = made_tensors(rule)
    order = np.array([4, 5, 6, 7, 0, 8, 9, 1, 2, 3])  # whole tensors change places
    layout = Layout(("c", "a", "d", "b"), ((2, 2), (), (1, 1, 1, 2), (3,)))
    steps, _ = run(rule, weights, values)
    moved, _ = run(rule, weights, values[:, order], layout=layout)
    np.testing.assert_allclose(moved, steps[:, order], rtol=1e-10)
    flat = Layout(("all",), ((_LAYOUT.size,),))
    other, _ = run(rule, weights, values, layout=flat)
    np.testing.assert_allclose(other[:, 1:4], steps[:, 1:4], rtol=1e-10)
    for rank in (0, 2, 4):
        coordinates = np.equal(_RANKS, rank)
        assert not np.allclose(other[:, coordinates], steps[:, coordinates], rtol=1e-3)


def test_choice_steps_lie_in_the_hull_of_its_teachers():
    rule = Choice(get_pool("large"))
    values = gradients(dtype="float32")
    moves = np.stack([run(t, [], values)[0] for t in rule.teachers])
    steps, _ = run(rule, rule.initial_weights(0), values)
    low, high = moves.min(axis=0), moves.max(axis=0)
    slack = 1e-6 * (high - low)
    assert np.all((low - slack <= steps) & (steps <= high + slack))
    assert np.mean((low < steps) & (steps < high)) > 0.9


@pytest.mark.parametrize("chosen", range(len(_TEACHERS)))
def test_choice_is_stable_at_logits_of_a_thousand(chosen):
    rule, bias = Choice(_TEACHERS), np.full(len(_TEACHERS), -1000.0, "float32")
    bias[chosen] = 1000
    weights = [*rule.initial_weights(0)[:-1], tf.constant(bias)]
    values = gradients(5, dtype="float32")
    with tf.GradientTape() as tape:
        tape.watch(weights)
        state, total = rule.initial_state(_LAYOUT), 0.0
        for gradient in values:
            step, state = rule.update(weights, gradient, None, state, _LAYOUT)
            total += tf.reduce_sum(step)
    steps, _ = run(rule, weights, values)
    np.testing.assert_allclose(steps, run(_TEACHERS[chosen], [], values)[0], rtol=1e-6)
    assert all(np.isfinite(g).all() for g in tape.gradient(total, weights))


def test_rnnprop_steps_are_at_most_its_scale():
    rule = RNNProp()
    weights = [100 * w for w in made_tensors(rule)]
    steps, _ = run(rule, weights, 1e6 * gradients(dtype="float32"))
    assert 0.99 * rule.scale < np.abs(steps).max() <= 1.0001 * rule.scale


def test_choice_is_differentiable_through_its_teachers():
    rule = Choice((SGD(0.3), Momentum(0.2)))
    weights = [tf.zeros_like(w) for w in rule.initial_weights(0)]  # chooses evenly
    gradient = tf.constant(gradients(1, dtype="float32")[0])
    with tf.GradientTape() as tape:
        tape.watch(gradient)
        step, _ = rule.update(weights, gradient, None, rule.initial_state(_LAYOUT), _LAYOUT)
    np.testing.assert_allclose(tape.gradient(step, gradient), (0.3 + 0.1 * 0.2) / 2, rtol=1e-6)


@pytest.mark.parametrize(
    "rule",
    [
        RNNProp(units=4, layers=1, scale=0.2, epsilon=1e-8, bias_correction="constant"),
        Choice((Adam(0.1, bias_correction="constant"), Momentum(0.2, 0.5)), units=4, horizon=10.0),
        Original(units=4, layers=1, scale=0.2),
        Scale(4, 3, 2, scales=2, rate=0.1, mean_decay=0.5, power_decay=0.9, epsilon=1e-8),
    ],
    ids=lambda rule: rule.name,
)
def test_a_configuration_comes_back_as_the_same_policy(rule):
    back = rule_from_config(json.loads(json.dumps(rule.get_config())))
    assert back == rule
    assert hash(back) == hash(rule)
    shapes = [tuple(w.shape) for w in rule.initial_weights(0)]
    assert [tuple(w.shape) for w in back.initial_weights(0)] == shapes


@pytest.mark.parametrize("teachers", [(), ("adam",)])
def test_choice_needs_teachers(teachers):
    with pytest.raises(ValueError, match="teachers.*Received"):
        Choice(teachers)
