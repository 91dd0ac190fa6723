"""Averaging, against where iterate and average lie by the formula."""

import numpy as np
import pytest
import tensorflow as tf
from made_weights import made_weights

from l2o import AmalgamatedOptimizer, Policy, PolicyError, load_policy, save_policy
from l2o.rules import Adam, Averaged, Layout, RNNProp, Scale, averaged, averaging

_LAYOUT = Layout(("a", "b"), ((3, 2), (2,)))


def test_the_network_stands_between_the_iterate_and_its_average(float64):
    """Through the warm-up, while averaging comes in, and with the whole window, from 4,491 on."""
    rule, bare, share = Averaged(Adam(0.01), 0.7), Adam(0.01), 0.7
    state, inner = rule.initial_state(_LAYOUT), bare.initial_state(_LAYOUT)
    update, alone = (
        tf.function(lambda g, s, rule=r: rule.update([], g, s, _LAYOUT), autograph=False)
        for r in (rule, bare)
    )
    generator = np.random.default_rng(0)
    y = x = z = np.ones(_LAYOUT.size)
    for t in range(-2, 5000):
        gradient = tf.constant(y + generator.normal(size=y.size))
        if t <= 0:  # the warm-up moves them together
            state = rule.observe([], gradient, state, _LAYOUT)
            inner = bare.observe([], gradient, inner, _LAYOUT)
            continue
        step, state = update(gradient, state)
        taken, inner = alone(gradient, inner)
        y, z = y - step.numpy(), z - taken.numpy()
        weight = 9 / (9 + t) if t < 4491 else 1 / 500
        x = (1 - weight) * x + weight * z
        if t in (1, 2, 100, 1900, 4490, 4999):
            s = share * min(t / 2000, 1)
            np.testing.assert_allclose(y, (1 - s) * z + s * x, atol=1e-9)
    assert abs(x - z).max() > 0.01  # so that it mattered


def test_averaging_is_put_on_exchanged_and_taken_off():
    rule = averaged(Adam(0.1), 0.8)
    assert rule == Averaged(Adam(0.1), 0.8) and averaging(rule) == 0.8
    assert averaged(rule, 0.5) == Averaged(Adam(0.1), 0.5)
    assert averaged(rule, 0) == averaged(Adam(0.1), 0) == Adam(0.1) and averaging(Adam(0.1)) == 0
    assert not Averaged(Scale()).coordinatewise and Averaged(RNNProp()).coordinatewise
    for wrong in (-0.1, 1, 1.5, np.nan, "0.8", None):
        with pytest.raises(ValueError, match="averaging must be a number from 0 to below 1"):
            averaged(Adam(0.1), wrong)
    wrong = ((Averaged(Adam(0.1)), 0.8), (None, 0.8), (Adam(0.1), 0.0), (Adam(0.1), 1.0),
             (Adam(0.1), "0.8"), (Adam(0.1), np.float32(0.8)))  # fmt: skip
    for rule, share in wrong:
        with pytest.raises(ValueError, match="Averaged needs|share must be"):
            Averaged(rule, share)


def test_averaging_goes_with_a_policy_unless_another_is_given(tmp_path):
    rule = RNNProp(units=3, layers=1)
    Policy(rule, made_weights(rule), {"seed": 1}).averaged(0.8).save(tmp_path / "p")
    assert load_policy(tmp_path / "p").rule == Averaged(rule, 0.8)
    assert load_policy(tmp_path / "p").card == {"seed": 1}
    for given, share in ((None, 0.8), (0, 0.0), (0.5, 0.5)):
        optimizer = AmalgamatedOptimizer.load(tmp_path / "p", averaging=given)
        assert optimizer.policy.rule == averaged(rule, share) and optimizer.averaging == share
        again = AmalgamatedOptimizer.from_config(optimizer.get_config())
        assert again.policy.rule == averaged(rule, share)
    with pytest.raises(ValueError, match="averaging must be .* Received: 1.5"):
        AmalgamatedOptimizer.load(tmp_path / "p", averaging=1.5)


@pytest.mark.filterwarnings("ignore:weight_decay")
def test_weight_decay_takes_off_the_network_and_not_off_what_is_averaged():
    """Where the policy leads nowhere, averaging changes nothing."""
    ends = []
    for share in (0, 0.8):
        variable = tf.Variable([1.0, 2.0])
        optimizer = AmalgamatedOptimizer(Adam(0.1), 1.0, 0, weight_decay=0.1, averaging=share)
        for _ in range(5):
            optimizer.apply([tf.zeros(2)], [variable])
        ends.append(variable.numpy())
    np.testing.assert_array_equal(*ends)
    np.testing.assert_allclose(ends[0], [0.9**5, 2 * 0.9**5], rtol=1e-6)


def test_the_sizes_of_an_averaged_rule_are_looked_at_before_it_is_built(tmp_path):
    small, large = RNNProp(units=2), RNNProp(units=10**6)
    save_policy(tmp_path / "p", Averaged(large), made_weights(small), {})
    with pytest.raises(PolicyError, match="do not fit"):
        load_policy(tmp_path / "p")
