"""Rules around a rule: against plain NumPy, in the optimizer, in the unroll and in a fit."""

import json
from itertools import combinations

import keras
import numpy as np
import pytest
import tensorflow as tf
from made_weights import made_weights

from l2o import AmalgamatedOptimizer, Policy, PolicyError, load_policy, save_policy
from l2o.amalgamation.unroll import Amalgamation, begin, run_student
from l2o.problems import Batch
from l2o.rules import (
    Adam,
    Averaged,
    Choice,
    Decayed,
    Horizon,
    Layout,
    Momentum,
    MovingAverage,
    Muon,
    RNNProp,
    Scale,
    Scheduled,
    WarmUp,
    averaged,
    averaging,
    constant,
    core,
    cosine,
    decayed,
    layer,
    layers,
    linear,
    rule_from_config,
    warmed_up,
)

_LAYOUT = Layout(("a", "b"), ((3, 2), (2,)))
_SHAPES = {"kernel": (3, 2), "bias": (2,), "scale": ()}
_RATE, _BETA, _SHARE, _DECAY, _STEPS, _START = 0.2, 0.8, 0.6, 0.02, 4, 0.05
# Each wrapper's arguments, from the innermost on.
_WRAPPERS = {
    Scheduled: (cosine(0.25, 12),),
    Averaged: (_SHARE,),
    Decayed: (_DECAY, ("bias",)),
    WarmUp: (_STEPS, _START),
    MovingAverage: (0.7,),
}
_CHOSEN = [c for n in range(len(_WRAPPERS) + 1) for c in combinations(_WRAPPERS, n)]


def wrapped(rule, kinds):
    for kind in kinds:
        rule = kind(rule, *_WRAPPERS[kind])
    return rule


def names_of(kinds) -> str:
    return "+".join(kind.__name__ for kind in kinds) or "bare"


class Plain:
    """Momentum and what may be around it, for tensors by name, each on its own: no vectors here."""

    def __init__(self, kinds, start: dict[str, np.ndarray]):
        self.kinds, self.theta = kinds, dict(start)
        zero = {name: np.zeros_like(x) for name, x in start.items()}
        self.momentum, self.lag, self.average = dict(zero), dict(zero), dict(zero)
        self.count = self.averaged = 0

    def step(self, gradients: dict[str, np.ndarray]) -> None:
        warm = WarmUp in self.kinds and self.count < _STEPS
        for name, g in gradients.items():
            theta = self.theta[name]
            decay = 0.0 if Decayed not in self.kinds or name == "bias" else _DECAY * theta
            self.momentum[name] = _BETA * self.momentum[name] + (1 - _BETA) * g
            if warm:
                move = _START * (g + decay)
            else:
                move = _RATE * self.momentum[name]
                if Scheduled in self.kinds:
                    move = move * _cosine(self.count)
                if Averaged in self.kinds:
                    t = self.averaged + 1
                    old, new = (_SHARE * min(n / 2000, 1) for n in (t - 1, t))
                    lag = (1 - 9 / (9 + t)) * (self.lag[name] + move)
                    move, self.lag[name] = move - (new * lag - old * self.lag[name]), lag
                move = move + decay
            self.theta[name] = theta - move
            kept = 0.7 if self.count else 0.0
            self.average[name] = kept * self.average[name] + (1 - kept) * self.theta[name]
        self.count += 1
        self.averaged += not warm


def _cosine(count: int) -> float:
    """Up over the first three of twelve steps, and down."""
    if count < 3:
        return (count + 1) / 3
    return (1 + np.cos(np.pi * min((count - 3) / 9, 1))) / 2


def _start() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    return {name: generator.normal(size=shape) for name, shape in _SHAPES.items()}


def _gradients(count: int) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(2)
    return [
        {name: generator.normal(size=shape) for name, shape in _SHAPES.items()}
        for _ in range(count)
    ]


@pytest.mark.parametrize("kinds", _CHOSEN, ids=names_of)
def test_a_composition_takes_the_steps_of_a_plain_loop(kinds, float64):
    """Of every choice of wrappers; the last one scores where it says."""
    rule, plain = wrapped(Momentum(_RATE, _BETA), kinds), Plain(kinds, _start())
    layout = Layout(tuple(_SHAPES), tuple(_SHAPES.values()))
    flat = lambda parts: np.concatenate([np.ravel(x) for x in parts.values()])  # noqa: E731
    state, theta = rule.initial_state(layout), tf.constant(flat(_start()))
    assert not any(np.any(x) for x in tf.nest.flatten(state))
    for gradients in _gradients(15):
        step, state = rule.update([], tf.constant(flat(gradients)), theta, state, layout)
        theta = theta - step
        plain.step(gradients)
        np.testing.assert_allclose(theta, flat(plain.theta), rtol=1e-12)
        scored = plain.average if MovingAverage in kinds else plain.theta
        np.testing.assert_allclose(rule.evaluated(theta, state), flat(scored), rtol=1e-12)


@pytest.mark.filterwarnings("ignore:weight_decay", "ignore:Gradients do", "ignore:.*not finite")
@pytest.mark.parametrize("kinds", [(), (Averaged, Decayed, WarmUp), tuple(_WRAPPERS)], ids=names_of)
@pytest.mark.parametrize("accumulated", [None, 2])
def test_the_optimizer_takes_the_steps_of_a_plain_loop(kinds, accumulated, float64):
    """Also without some gradients, over skipped steps, with accumulation and excluded variables."""
    rule = wrapped(Momentum(_RATE, _BETA), [k for k in kinds if k is not Decayed])
    settings = {"weight_decay": _DECAY} if Decayed in kinds else {}
    optimizer = AmalgamatedOptimizer(rule, gradient_accumulation_steps=accumulated, **settings)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    variables = [keras.Variable(x, name=name) for name, x in _start().items()]
    plain, held = Plain(kinds, _start()), []
    for k, gradients in enumerate(_gradients(24)):
        if k % 8 in (4, 5):  # the whole of an accumulation
            gradients["kernel"] = gradients["kernel"] * np.inf
        given = dict(gradients)
        if k % 6 == 0 and not accumulated:
            given["scale"] = None
        optimizer.apply([x if x is None else tf.constant(x) for x in given.values()], variables)
        held.append({name: x for name, x in given.items() if x is not None})
        if len(held) == (accumulated or 1):
            with np.errstate(invalid="ignore"):
                mean = {name: np.mean([h[name] for h in held], axis=0) for name in held[0]}
            if all(np.isfinite(x).all() for x in mean.values()):
                plain.step(mean)
            held = []
        for variable, (name, wanted) in zip(variables, plain.theta.items(), strict=True):
            np.testing.assert_allclose(variable, wanted, rtol=1e-9, err_msg=f"{name} {k}")
    assert optimizer.skipped_steps == (6 if accumulated is None else 3)


class Quadratic:
    """An task with the gradient theta + x of a batch x, wherever it stands."""

    layout = _LAYOUT

    def initial(self, seed):
        return np.random.default_rng(3).normal(size=_LAYOUT.size), []

    def loss(self, parameters, carried, batch, training):
        return 9 + tf.reduce_sum(parameters * (parameters / 2 + batch.inputs)), carried


@pytest.mark.parametrize("kinds", [(Averaged,), (Decayed,), tuple(_WRAPPERS)], ids=names_of)
def test_in_the_unroll_a_wrapped_rule_sees_scaled_coordinates(kinds, float64):
    """Parameters divided by the scale, and gradients times it."""
    rule, plain = wrapped(Momentum(_RATE, _BETA), kinds), None
    job = Amalgamation(rule, (), "none", Quadratic())
    trajectory = begin(job, (0,), scaled=True)
    scale = trajectory.scale.numpy()
    assert np.any(scale != 1)
    inputs = np.random.default_rng(4).normal(size=(10, _LAYOUT.size))
    _, _, after = run_student(job, [], trajectory, Batch(tf.constant(inputs), tf.zeros(10)))
    start = {"all": trajectory.student.parameters.numpy()}
    plain = Plain(kinds, start)
    for x in inputs:
        plain.step({"all": scale * (scale * plain.theta["all"] + x)})
    np.testing.assert_allclose(after.student.parameters, plain.theta["all"], rtol=1e-10)


def test_the_meta_gradient_goes_through_the_parameters_that_a_rule_sees(float64):
    """Decay is part of where the next step begins."""
    rule = Decayed(RNNProp(units=2, layers=1), 0.1)
    job = Amalgamation(rule, (), "none", Quadratic())
    weights = [tf.constant(w) for w in made_weights(rule)]
    trajectory = begin(job, (0,), scaled=False)
    batch = Batch(tf.constant(np.random.default_rng(4).normal(size=(5, 8))), tf.zeros(5))

    def loss(weights):
        return tf.reduce_sum(run_student(job, weights, trajectory, batch)[0])

    with tf.GradientTape() as tape:
        tape.watch(weights)
        value = loss(weights)
    gradient, size = tape.gradient(value, weights), 1e-5
    direction = np.random.default_rng(5).normal(size=weights[0].shape)
    ends = [loss([weights[0] + sign * size * direction, *weights[1:]]) for sign in (1, -1)]
    expected = (ends[0] - ends[1]) / (2 * size)
    np.testing.assert_allclose(np.sum(gradient[0] * direction), expected, rtol=1e-6)


def test_schedules_by_their_formulas(float64):
    """With T their own or the fit's, which differs from fit to fit and is no state."""
    count = tf.constant(np.arange(25.0))
    falls = {
        constant: np.ones(25),
        linear: 1 - np.clip((np.arange(25) - 5) / 15, 0, 1),
        cosine: (1 + np.cos(np.pi * np.clip((np.arange(25) - 5) / 15, 0, 1))) / 2,
    }
    rise = np.minimum((np.arange(25) + 1) / 5, 1)
    for make, fall in falls.items():
        np.testing.assert_allclose(make(0.25, 20).factor(count), rise * fall, atol=1e-15)
        found = make(0.25).factor(count, Horizon(tf.constant(20.0), None))
        np.testing.assert_allclose(found, rise * fall, atol=1e-15)
    np.testing.assert_allclose(linear(steps=10, end=0.5).factor(count[:3]), [1, 0.95, 0.9])
    np.testing.assert_allclose(constant().factor(count), 1)
    with pytest.raises(ValueError, match="A cosine schedule needs the number of steps"):
        rule = Scheduled(Adam(0.1), cosine())
        rule.update([], count[:8], count[:8], rule.initial_state(_LAYOUT), _LAYOUT)
    for wrong in ({"shape": "sine"}, {"warmup": 2.0}, {"steps": -1}, {"steps": "a"}):
        with pytest.raises(ValueError, match="Received"):
            Scheduled(Adam(0.1), wrong)


def test_choice_is_run_whole_where_a_teacher_must_be():
    """And needs the number of steps where one does."""
    assert Choice((Adam(0.1),)).coordinatewise and not Choice((Adam(0.1), Muon())).coordinatewise
    assert Choice((WarmUp(Scheduled(Adam(0.1), cosine())),)).needs_horizon
    assert not Choice((Scheduled(Adam(0.1), cosine(steps=9)),)).needs_horizon
    with pytest.raises(ValueError, match="schedule in meta-training needs steps"):
        Amalgamation(Scheduled(Adam(0.1), linear()), (), "none", Quadratic())


def test_every_composition_comes_back_from_its_configuration():
    for kinds in _CHOSEN:
        rule = wrapped(RNNProp(units=2), kinds)
        assert rule_from_config(json.loads(json.dumps(rule.get_config()))) == rule
        assert core(rule) == RNNProp(units=2) and len(layers(rule)) == 1 + len(kinds)
        assert rule.scaled and rule.coordinatewise
        assert all(layer(rule, kind) for kind in kinds)


def test_wrappers_are_put_on_exchanged_and_taken_off():
    """Each in its place, whatever the order."""
    rule = warmed_up(averaged(decayed(Adam(0.1), 0.01), 0.8), 7, 0.02)
    assert rule == WarmUp(Decayed(Averaged(Adam(0.1), 0.8), 0.01), 7, 0.02)
    assert decayed(averaged(warmed_up(Adam(0.1), 7, 0.02), 0.8), 0.01) == rule
    assert averaged(rule, 0.5) == WarmUp(Decayed(Averaged(Adam(0.1), 0.5), 0.01), 7, 0.02)
    assert averaged(rule, 0) == WarmUp(Decayed(Adam(0.1), 0.01), 7, 0.02)
    assert decayed(warmed_up(averaged(rule, 0), 0), 0) == Adam(0.1) == averaged(Adam(0.1), 0)
    assert averaging(rule) == 0.8 and averaging(Adam(0.1)) == 0
    assert not Averaged(Scale()).coordinatewise and Averaged(RNNProp()).coordinatewise
    for wrong in (-0.1, 1, 1.5, np.nan, "0.8", None):
        with pytest.raises(ValueError, match="averaging must be a number from 0 to below 1"):
            averaged(Adam(0.1), wrong)
    for wrong in (0.0, 1.0, "0.8", np.float32(0.8)):
        with pytest.raises(ValueError, match="share must be"):
            Averaged(Adam(0.1), wrong)
    for wrong in ("bias", 5, [1]):
        with pytest.raises(ValueError, match="exclude must be a tuple of words"):
            Decayed(Adam(0.1), 0.1, wrong)
    for wrong in (None, 7):
        with pytest.raises(ValueError, match="needs a Schedule. Received"):
            Scheduled(Adam(0.1), wrong)
    for kind, arguments in _WRAPPERS.items():
        with pytest.raises(ValueError, match=f"{kind.__name__} needs a rule. Received: None"):
            kind(None, *arguments)
        twice = kind(WarmUp(Adam(0.1)) if kind is not WarmUp else Adam(0.1), *arguments)
        with pytest.raises(ValueError, match=f"{kind.__name__} is in .* already"):
            kind(twice, *arguments)


def test_the_network_stands_between_the_iterate_and_its_average(float64):
    """Through the warm-up, while averaging comes in, and with the whole window, from 4,491 on."""
    rule, bare, share = Averaged(Adam(0.01), 0.7), Adam(0.01), 0.7
    state, inner = rule.initial_state(_LAYOUT), bare.initial_state(_LAYOUT)
    update, alone = (
        tf.function(lambda g, s, rule=r: rule.update([], g, g, s, _LAYOUT), autograph=False)
        for r in (rule, bare)
    )
    generator = np.random.default_rng(0)
    y = x = z = np.ones(_LAYOUT.size)
    for t in range(-2, 5000):
        gradient = tf.constant(y + generator.normal(size=y.size))
        if t <= 0:  # the warm-up moves them together
            state = rule.observe([], gradient, y, state, _LAYOUT)
            inner = bare.observe([], gradient, y, inner, _LAYOUT)
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


def test_averaging_goes_with_a_policy_unless_another_is_given(tmp_path):
    rule = RNNProp(units=3, layers=1)
    Policy(averaged(rule, 0.8), made_weights(rule), {"seed": 1}).save(tmp_path / "p")
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
