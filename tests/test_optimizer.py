"""AmalgamatedOptimizer's step: the rule's own, the trainer's own, and what is skipped or left."""

from dataclasses import dataclass
from typing import ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf
from made_weights import made_weights

import l2o
import l2o.packing
import l2o.step
from l2o import AmalgamatedOptimizer, Policy
from l2o.amalgamation.unroll import Amalgamation, begin, run_student
from l2o.problems import Batch
from l2o.rules import (
    SGD,
    Adam,
    Averaged,
    Choice,
    Decayed,
    Layout,
    Momentum,
    MovingAverage,
    Muon,
    RNNProp,
    Scale,
    Scheduled,
    State,
    TensorChoice,
    UpdateRule,
    WarmUp,
    cosine,
    warmed_up,
)
from l2o.saved import separated

_AROUND = {
    "scheduled": lambda rule: Scheduled(rule, cosine(0.1, 150)),
    "averaged": lambda rule: Averaged(rule, 0.5),
    "decayed": lambda rule: Decayed(rule, 1e-3),
    "warmed up": lambda rule: WarmUp(rule, 30, 0.02),
    "average": lambda rule: MovingAverage(rule, 0.9),
}
SHAPES = ((), (5,), (3, 4), (0, 3), (2, 1, 3, 2), (1, 2, 1, 2, 1))
LAYOUT = Layout(tuple("abcdef"), SHAPES)
NAMES = tuple(f"[{k}]" for k in range(len(SHAPES)))
STEPS, WARM = 8, 3


def policy(rule) -> Policy:
    """The rule with weights whose every entry has a say."""
    return Policy(rule, made_weights(rule))


def gradients(steps=STEPS, layout=LAYOUT) -> np.ndarray:
    """[steps, D], of magnitudes from 1e-3 to 10."""
    generator = np.random.default_rng(0)
    scale = np.logspace(-3, 1, layout.size)
    return (generator.normal(size=(steps, layout.size)) * scale).astype("float32")


def start(layout=LAYOUT) -> np.ndarray:
    return np.random.default_rng(2).normal(size=layout.size).astype("float32")


def cut(vector, layout=LAYOUT) -> list[np.ndarray]:
    parts = np.split(vector, np.cumsum(layout.sizes)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, layout.shapes, strict=True)]


def variables(layout=LAYOUT) -> list[keras.Variable]:
    return [keras.Variable(part) for part in cut(start(layout), layout)]


def flat(tensors) -> np.ndarray:
    return np.concatenate([np.ravel(keras.ops.convert_to_numpy(t)) for t in tensors])


def walk(optimizer, vectors, layout=LAYOUT) -> np.ndarray:
    """Parameters [steps, D] after each of the optimizer's steps."""
    parameters, path = variables(layout), []
    for vector in vectors:
        optimizer.apply(cut(vector, layout), parameters)
        path.append(flat(parameters))
    return np.stack(path)


def expected(policy, vectors, warm=WARM, rate=1.0, warmup_rate=0.01, layout=LAYOUT) -> np.ndarray:
    """The same by the rule alone, on one flat vector."""
    rule = warmed_up(policy.rule, warm, warmup_rate)
    state, parameters, path = rule.initial_state(layout), start(), []
    for vector in map(tf.constant, vectors):
        here = tf.constant(parameters)
        step, state = rule.update(policy.weights, vector, here, state, layout)
        parameters = parameters - rate * np.asarray(step)
        path.append(parameters)
    return np.stack(path)


def close(actual, wanted, tolerance=1e-6):
    np.testing.assert_allclose(actual, wanted, rtol=tolerance, atol=tolerance)


def state_of(optimizer) -> list[np.ndarray]:
    """All that an optimizer remembers, the iteration counter and rate left out."""
    return [v.numpy() for v in optimizer.variables[2:]]


def states_of(optimizer) -> list[dict[str, np.ndarray]]:
    """The state of each variable, by name."""
    return separated(optimizer._slots.groups, optimizer._slots.states)


def same(actual, wanted):
    for a, b in zip(actual, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_steps_are_the_rules_own(any_rule):
    taught = policy(any_rule)
    optimizer = AmalgamatedOptimizer(taught, 0.7, WARM, 0.02)
    path = walk(optimizer, gradients())
    close(path, expected(taught, gradients(), rate=0.7, warmup_rate=0.02))
    assert np.abs(path[-1] - path[WARM]).max() > 5e-4
    assert int(optimizer.iterations) == STEPS and optimizer.skipped_steps == 0


class Linear:
    """An task whose gradient is the batch itself, wherever the parameters are."""

    layout = LAYOUT

    def initial(self, seed):
        return start(), []

    def loss(self, parameters, carried, batch, training):
        return tf.reduce_sum(parameters * batch.inputs), carried


def test_the_trainers_step_and_the_optimizers_agree_for_200_steps(any_rule):
    agree_for_200_steps(warmed_up(any_rule, 100, 0.01))


@pytest.mark.parametrize("kinds", [tuple(_AROUND)[1:4], tuple(_AROUND)], ids=str)
def test_they_agree_whatever_is_around_a_rule(kinds):
    rule = RNNProp(units=2, layers=1)
    for kind in kinds:
        rule = _AROUND[kind](rule)
    agree_for_200_steps(rule)


def agree_for_200_steps(rule):
    """Losses of `Linear` may be negative and their logarithms NaN: only the student matters."""
    taught, warm = policy(rule), 100
    vectors = gradients(200)
    early, late = (Batch(tf.constant(v), tf.zeros(100)) for v in (vectors[:warm], vectors[warm:]))
    job = Amalgamation(taught.rule, (), "none", Linear())
    weights, students = [tf.constant(w) for w in taught.weights], []
    after = begin(job, (0,), scaled=False)
    for batches in (early, late):
        _, _, after = run_student(job, weights, after, batches)
        students.append(after.student)
    optimizer = AmalgamatedOptimizer(taught)
    path = walk(optimizer, vectors)
    # To a millionth of the largest coordinate, which is what 200 sums in float32 leave of it.
    for actual, wanted in zip((path[99], path[-1]), students, strict=True):
        largest = np.abs(wanted.parameters).max()
        np.testing.assert_allclose(actual, wanted.parameters, rtol=0, atol=1e-6 * largest)
    for name, values in after.student.state.coordinate.items():
        states = [state[name] for state in states_of(optimizer)]
        close(np.concatenate(states, axis=-1), values, 1e-5)


def test_warm_up_is_sgd_times_the_learning_rate(any_rule):
    """What decays does so too, at SGD's rate."""
    path = walk(AmalgamatedOptimizer(policy(any_rule), 5.0, 1, 0.5), gradients(1))
    decay = any_rule.shrinkage(start(), LAYOUT)
    close(path[0], start() - 5.0 * 0.5 * (gradients(1)[0] + decay))


def test_a_variable_without_gradient_stays_and_so_does_its_state():
    optimizer = AmalgamatedOptimizer(policy(RNNProp(units=4)), warmup_steps=0)
    alone = AmalgamatedOptimizer(policy(RNNProp(units=4)), warmup_steps=0)
    first, second, twin = (keras.Variable(np.ones((2, 3), "float32")) for _ in range(3))
    one = np.full((2, 3), 0.3, "float32")
    optimizer.apply([one, one], [first, second])
    alone.apply([one], [twin])
    before = list(states_of(optimizer)[1].values())
    assert any(np.abs(x).max() > 0 for x in before)
    stood = second.numpy()
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([one, None], [first, second])
    alone.apply([one], [twin])
    same(states_of(optimizer)[1].values(), before)
    for a, b in zip(states_of(optimizer)[0].values(), states_of(alone)[0].values(), strict=True):
        close(a, b)
    np.testing.assert_array_equal(second.numpy(), stood)
    close(first.numpy(), twin.numpy())
    with pytest.raises(ValueError, match="No gradients provided"):
        optimizer.apply([None, None], [first, second])


@pytest.mark.parametrize("clip", ["name", "clipvalue", "clipnorm", "global_clipnorm"])
def test_sparse_gradients_count_as_dense_ones(clip):
    """Rows that occur twice are summed."""
    setting = {clip: "some" if clip == "name" else 3.0}
    rows, where = np.array([[1, 2, 3, 4], [3, -1, 0, 9], [0.5] * 4], "float32"), [2, 0, 2]
    dense = np.zeros((3, 4), "float32")
    np.add.at(dense, where, rows)
    results = []
    for gradient in (tf.IndexedSlices(tf.constant(rows), tf.constant(where), (3, 4)), dense):
        optimizer = AmalgamatedOptimizer(Adam(0.05), warmup_steps=1, **setting)
        parameters = variables()
        for vector in gradients(3):
            each = cut(vector)
            each[2] = gradient
            optimizer.apply(each, parameters)
        results.append(flat(parameters))
    close(*results)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("clip", ["clipvalue", "clipnorm", "global_clipnorm", "name"])
def test_a_step_with_a_gradient_that_is_not_finite_is_skipped(bad, clip):
    setting = {clip: "some" if clip == "name" else 1e9} | {"weight_decay": 1e-4}
    optimizer = AmalgamatedOptimizer(Adam(0.05), warmup_steps=0, **setting)
    vectors, parameters = gradients(3), variables()
    optimizer.apply(cut(vectors[0]), parameters)
    before, stood = state_of(optimizer), flat(parameters)
    spoiled = vectors[1].copy()
    spoiled[4] = bad
    with pytest.warns(UserWarning, match="1 of 2 steps so far were skipped"):
        optimizer.apply(cut(spoiled), parameters)
    np.testing.assert_array_equal(flat(parameters), stood)
    assert optimizer.skipped_steps == 1 and int(optimizer.iterations) == 2
    moved = [not np.array_equal(a, b) for a, b in zip(state_of(optimizer), before, strict=True)]
    names = [v.name for v, has in zip(optimizer.variables[2:], moved, strict=True) if has]
    assert names == ["skipped_steps"]
    optimizer.apply(cut(vectors[2]), parameters)
    untroubled = AmalgamatedOptimizer(Adam(0.05), warmup_steps=0, **setting)
    close(flat(parameters), walk(untroubled, vectors[[0, 2]])[-1])


def test_skipped_steps_are_warned_of_once(recwarn):
    optimizer = AmalgamatedOptimizer(SGD(1.0))
    variable = keras.Variable([1.0])
    for _ in range(3):
        optimizer.apply([np.array([np.nan], "float32")], [variable])
    assert optimizer.skipped_steps == 3
    assert sum("were skipped" in str(w.message) for w in recwarn.list) == 1


def test_a_skipped_step_is_warned_of_again_after_the_variables_are_set_back():
    optimizer, variable = AmalgamatedOptimizer(SGD(1.0)), keras.Variable([1.0])
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 of 1 steps so far were skipped"):
            optimizer.apply([np.array([np.nan], "float32")], [variable])
        for each in optimizer.variables:
            each.assign(np.zeros(each.shape))


def test_skipped_steps_are_counted_among_steps_of_accumulated_gradients():
    optimizer = AmalgamatedOptimizer(SGD(1.0), gradient_accumulation_steps=2)
    variable = keras.Variable([1.0])
    with pytest.warns(UserWarning, match="1 of 1 steps so far were skipped"):
        for _ in range(2):
            optimizer.apply([np.array([np.nan], "float32")], [variable])


def test_huge_but_finite_gradients_do_not_poison_the_state(any_rule):
    optimizer, size = AmalgamatedOptimizer(policy(any_rule), warmup_steps=0), LAYOUT.size
    path = walk(optimizer, np.full((3, size), [[1], [1e15], [1]], "float32"))
    assert np.isfinite(path).all()
    assert all(np.isfinite(x).all() for x in state_of(optimizer))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_state_is_float32_whatever_the_variables_are(dtype):
    optimizer = AmalgamatedOptimizer(policy(RNNProp(units=4)), warmup_steps=1)
    variable = keras.Variable(np.ones((4,)), dtype=dtype)
    for _ in range(3):
        optimizer.apply([keras.ops.full((4,), 0.5, dtype)], [variable])
    assert {v.dtype for v in optimizer.variables[2:]} <= {"float32", "int32"}
    assert variable.dtype == dtype and np.isfinite(np.asarray(variable, "float32")).all()
    twin = keras.Variable(np.ones((4,)), dtype="float32")
    exact = AmalgamatedOptimizer(policy(RNNProp(units=4)), warmup_steps=1)
    for _ in range(3):
        exact.apply([np.full((4,), 0.5, "float32")], [twin])
    close(np.asarray(variable, "float32"), twin.numpy(), 1e-6 if dtype == "float32" else 1e-2)


def test_a_gradient_whose_square_is_infinite_is_skipped(any_rule):
    """Or second moments would be infinite from then on."""
    optimizer, size = AmalgamatedOptimizer(policy(any_rule), warmup_steps=0), LAYOUT.size
    calm = np.ones((3, size), "float32")
    with pytest.warns(UserWarning, match="skipped"):
        path = walk(optimizer, calm * [[1], [1e20], [1]])
    assert optimizer.skipped_steps == 1
    np.testing.assert_array_equal(path[1], path[0])
    again = walk(AmalgamatedOptimizer(policy(any_rule), warmup_steps=0), calm[:2])
    np.testing.assert_array_equal(path[2], again[1])


@pytest.mark.parametrize("floatx", ["float16", "bfloat16"])
@pytest.mark.parametrize("rule", [RNNProp(units=4), Scale(units=4), Adam(0.1)])
def test_state_is_float32_whatever_keras_makes_by_default(floatx, rule, request):
    weighty = policy(rule)
    request.addfinalizer(lambda: keras.config.set_floatx("float32"))
    keras.config.set_floatx(floatx)
    optimizer = AmalgamatedOptimizer(weighty, warmup_steps=1)
    variable = keras.Variable(np.ones((4,)), dtype=floatx)
    for _ in range(3):
        optimizer.apply([keras.ops.full((4,), 0.5)], [variable])
    assert {v.dtype for v in optimizer.variables[2:]} <= {"float32", "int32"}
    assert (np.asarray(variable, "float32") < 1).all()


def test_float64_is_exact(float64):
    optimizer = AmalgamatedOptimizer(Adam(0.1), 0.7, warmup_steps=1, warmup_learning_rate=0.01)
    variable, g = keras.Variable(np.zeros(1)), np.array([0.3])
    optimizer.apply([g], [variable])
    np.testing.assert_allclose(variable.numpy(), -0.7 * 0.01 * g, rtol=1e-12)
    optimizer.apply([g], [variable])
    step = 0.7 * 0.1 * g / np.sqrt(g**2 + 1e-10)
    np.testing.assert_allclose(variable.numpy(), -0.7 * 0.01 * g - step, rtol=1e-12)


@pytest.mark.parametrize("rule", [RNNProp(units=4), Scale(units=4)])
def test_trained_weights_work_in_float64(rule, request):
    trained = policy(rule)
    single = walk(AmalgamatedOptimizer(trained, warmup_steps=1), gradients())
    request.addfinalizer(lambda: keras.config.set_floatx("float32"))
    keras.config.set_floatx("float64")
    optimizer = AmalgamatedOptimizer(trained, warmup_steps=1)
    path = walk(optimizer, gradients().astype("float64"))
    assert {str(v.dtype) for v in optimizer.variables[2:]} <= {"float64", "int32"}
    np.testing.assert_allclose(path, single, rtol=1e-3, atol=1e-4)


def test_one_compiled_step_serves_alike_models():
    l2o.step.compiled_step_in_place.cache_clear()
    paths = [walk(AmalgamatedOptimizer(Momentum(0.1)), gradients(2)) for _ in range(2)]
    np.testing.assert_array_equal(*paths)
    assert l2o.step.compiled_step_in_place.cache_info().misses == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"policy": "adam"},
            "policy must be a Policy or an UpdateRule; .*reads one. Received: 'adam'",
        ),
        ({"policy": RNNProp()}, "needs weights of shapes"),
        ({"warmup_steps": -1}, "warmup_steps must be an integer >= 0. Received: -1"),
        ({"warmup_steps": True}, "warmup_steps must be an integer >= 0. Received: True"),
        ({"weight_decay": True}, "weight_decay must be a number >= 0. Received: True"),
        ({"warmup_steps": 2.5}, "warmup_steps must be an integer >= 0. Received: 2.5"),
        ({"warmup_learning_rate": -1.0}, "warmup_learning_rate must be >= 0. Received: -1.0"),
        ({"warmup_learning_rate": np.nan}, "warmup_learning_rate must be >= 0. Received: nan"),
        ({"policy": Scheduled(SGD(1.0), cosine())}, "needs the steps of the fit: give steps="),
        ({"averaging": 1}, "averaging must be a number from 0 to below 1. Received: 1"),
        ({"clipnorm": 1.0, "clipvalue": 1.0}, "Only one of"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps"),
        ({"momentum": 0.9}, "not recognized"),
        ({"learning_rate": "fast"}, "learning_rate"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        AmalgamatedOptimizer(**{"policy": SGD(1.0)} | arguments)


def test_a_gradient_has_its_variables_shape():
    optimizer, variable = (
        AmalgamatedOptimizer(SGD(1.0), warmup_steps=0),
        keras.Variable(np.zeros((2, 3))),
    )
    for wrong in ((3, 2), (2, 4), (6,), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"its shape \(2, 3\). Received: \("):
            optimizer.apply([np.ones(wrong, "float32")], [variable])
    np.testing.assert_array_equal(variable.numpy(), np.zeros((2, 3)))
    optimizer.apply([np.array([1.0, 2.0, 3.0], "float32")], [variable])  # as Keras' own have it
    np.testing.assert_array_equal(variable.numpy(), [[-1.0, -2.0, -3.0]] * 2)


def test_gradients_are_as_many_as_variables():
    optimizer, variable = AmalgamatedOptimizer(SGD(1.0)), keras.Variable(1.0)
    with pytest.raises(ValueError, match="Received: 2 gradients, 1 variables"):
        optimizer.apply([np.ones((), "float32")] * 2, [variable])


def test_complex_variables_are_refused():
    variable = tf.Variable(tf.complex(1.0, 1.0))
    with pytest.raises(ValueError, match="must be real. Received: .* of complex64"):
        AmalgamatedOptimizer(SGD(1.0)).build([variable])


@dataclass(frozen=True)
class TensorNorm(UpdateRule):
    """Gradient over its tensor's running RMS: with state of tensors, and not coordinatewise."""

    name: ClassVar[str] = "tensor-norm-of-the-tests"
    coordinatewise: ClassVar[bool] = False

    def initial_state(self, layout):
        zeros = tf.zeros((2, layout.tensors))
        return State({"seen": tf.zeros(layout.size)}, {"power": zeros}, {"count": tf.zeros(())})

    def observe(self, weights, gradient, parameters, state, layout):
        return self.update(weights, gradient, parameters, state, layout)[1]

    def update(self, weights, gradient, parameters, state, layout, horizon=None):
        power = tf.math.unsorted_segment_mean(gradient**2, layout.segments, layout.tensors)
        power = 0.9 * state.tensor["power"] + 0.1 * tf.stack([power, 2 * power])
        step = gradient / tf.sqrt(1e-6 + tf.gather(power[1], layout.segments))
        seen, count = state.coordinate["seen"] + gradient, state.shared["count"] + 1
        return step / count, State({"seen": seen}, {"power": power}, {"count": count})


@dataclass(frozen=True)
class Forgetful(TensorNorm):
    name: ClassVar[str] = "forgetful-of-the-tests"
    coordinatewise: ClassVar[bool] = True


def test_a_rule_with_state_of_tensors_must_see_all_at_once():
    with pytest.raises(ValueError, match="has state of tensors, power, .*coordinatewise = False"):
        AmalgamatedOptimizer(Forgetful())


@dataclass(frozen=True)
class Renaming(TensorNorm):
    """Comes back with another tensor than it was given."""

    name: ClassVar[str] = "renaming-of-the-tests"

    def update(self, weights, gradient, parameters, state, layout, horizon=None):
        step, new = super().update(weights, gradient, parameters, state, layout, horizon)
        return step, new._replace(tensor={"strength": new.tensor["power"]})


@dataclass(frozen=True)
class Plain(TensorNorm):
    name: ClassVar[str] = "plain-of-the-tests"

    def update(self, weights, gradient, parameters, state, layout, horizon=None):
        return gradient, state._asdict()


@pytest.mark.parametrize(
    ("rule", "warm", "differs"),
    [
        (Renaming(), 0, "Missing: tensor['power']; not given: tensor['strength']"),
        (Renaming(), 2, "Missing: tensor['power']; not given: tensor['strength']"),
        (Plain(), 0, "not given: dict in place of a State"),
    ],
    ids=str,
)
def test_a_rule_that_returns_another_state_is_named_in_one_line(rule, warm, differs):
    optimizer = AmalgamatedOptimizer(rule, warmup_steps=warm)
    with pytest.raises(ValueError, match=f"Rule '{rule.name}' must return a state") as caught:
        optimizer.apply(cut(gradients(1)[0]), variables())
    assert str(caught.value).endswith(differs) and "\n" not in str(caught.value)


def test_rules_with_state_of_tensors():
    wanted = expected(Policy(TensorNorm()), gradients())
    close(walk(AmalgamatedOptimizer(TensorNorm(), warmup_steps=WARM), gradients()), wanted)


@pytest.fixture(params=[6, 20], ids=["large ones apart", "all together"])
def small_tiles(monkeypatch, request):
    """Groups of more than 6 coordinates, or of all 34, loop over tiles of 5 or fewer.

    Those of a tensorwise rule lie in about three columns.
    """
    monkeypatch.setattr(l2o.packing, "LARGE", request.param)
    monkeypatch.setattr(l2o.packing, "COLUMNS", 3)
    monkeypatch.setattr(l2o.packing, "TILE", 5)
    caches = (l2o.step.compiled_step, l2o.step.compiled_step_in_place)
    for cache in caches:
        cache.cache_clear()
    yield [(2, 5), (3, 4), (3, 4)] if request.param == 6 else [(7, 5)]
    for cache in caches:
        cache.cache_clear()


_TILED = [
    Adam(0.05),
    Choice((Adam(0.02), SGD(0.1)), 2, layers=1),
    Averaged(Momentum(0.1), 0.5),
    Decayed(Adam(0.05), 1e-3, ("[1]", "[2]")),
    TensorNorm(),
    TensorChoice(3),
    Averaged(Decayed(TensorChoice(3), 1e-3, ("[1]", "[2]")), 0.5),
]


@pytest.mark.parametrize("rule", _TILED, ids=str)
def test_tiles_change_nothing(rule, small_tiles):
    """A rule that is not coordinatewise runs on the whole vector all the same."""
    optimizer = AmalgamatedOptimizer(policy(rule), warmup_steps=WARM)
    path = walk(optimizer, gradients())
    found = [(group.tiles, group.length) for group in optimizer._slots.groups]
    if rule.tensorwise:
        shapes = [group.shape() for group in optimizer._slots.groups]
        assert shapes == ([(3, 5), (4, 3), (4, 3)] if len(small_tiles) > 1 else [(11, 7)])
    else:
        assert found == (small_tiles if rule.coordinatewise else [(1, 34)])
    close(path, expected(policy(rule), gradients(), layout=Layout(NAMES, SHAPES)))


def expected_of_some(policy, vectors, absent) -> tuple[np.ndarray, list[dict]]:
    """Parameters and states where every second step lacks the gradients of `absent`.

    By the rule, on those that have one and on what belongs to them alone.
    """
    rule, weights = policy.rule, policy.weights
    pairs = zip(NAMES, SHAPES, strict=True)
    ones = [rule.initial_state(Layout((name,), (shape,))) for name, shape in pairs]
    each, shared = [[s.coordinate, s.tensor] for s in ones], ones[0].shared
    parameters = cut(start())
    for k, vector in enumerate(vectors):
        here = [j for j in range(len(SHAPES)) if not (k % 2 and j in absent)]
        layout = Layout(*(tuple(x[j] for j in here) for x in (NAMES, SHAPES)))
        joined = [
            {name: tf.concat([each[j][kind][name] for j in here], -1) for name in each[0][kind]}
            for kind in (0, 1)
        ]
        state = State(*joined, shared)
        values, gradient = (flat([x[j] for j in here]) for x in (parameters, cut(vector)))
        step, new = rule.update(weights, tf.constant(gradient), tf.constant(values), state, layout)
        shared = new.shared
        for i, (j, part) in enumerate(zip(here, cut(values - step.numpy(), layout), strict=True)):
            parameters[j] = part
            place = slice(layout.offsets[i], layout.offsets[i] + layout.sizes[i])
            each[j][0] = {n: x[..., place] for n, x in new.coordinate.items()}
            each[j][1] = {n: x[..., i : i + 1] for n, x in new.tensor.items()}
    return flat(parameters), [
        {**c, **{f"tensor_{name}": x for name, x in t.items()}} for c, t in each
    ]


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("rule", [*_TILED, Scale(2, 2, 2), Muon(0.05)], ids=str)
@pytest.mark.parametrize("absent", [(1, 3), (0, 1, 2, 5)], ids=str)
def test_gradients_may_be_missing_now_and_then(rule, absent, small_tiles):
    optimizer, parameters = AmalgamatedOptimizer(policy(rule), warmup_steps=0), variables()
    for k, vector in enumerate(gradients()):
        parts = [None if j in absent and k % 2 else g for j, g in enumerate(cut(vector))]
        optimizer.apply(parts, parameters)
    wanted, states = expected_of_some(policy(rule), gradients(), absent)
    close(flat(parameters), wanted)
    for one, other in zip(states_of(optimizer), states, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            close(value, other[name], 1e-5)
