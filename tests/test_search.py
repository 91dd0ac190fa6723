"""Baselines of today: schedules, schedule-free averages, and searches of what to tune."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import l2o
from l2o.evaluation import search
from l2o.evaluation.baselines import get_candidates
from l2o.evaluation.evaluations import evaluate
from l2o.evaluation.fit import Fit
from l2o.evaluation.search import SPACES, Space, better_space, names
from l2o.problems import Batch, Problem
from l2o.rules import Adam
from l2o.tasks.batches import batch_indices
from l2o.tasks.task import Task

_EPOCHS, _BATCH, _EXAMPLES = 4, 16, 96
_STEPS = _EPOCHS * (_EXAMPLES // _BATCH)


def network() -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [layers.Input((6,)), layers.Dense(12, activation="tanh"), layers.Dense(3)]
    )


def examples(count: int = _EXAMPLES) -> Batch:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(count, 6)).astype("float32")
    labels = np.argmax(inputs @ generator.normal(size=(6, 3)), 1).astype("int32")
    return Batch(inputs, labels)


class Falling(keras.optimizers.schedules.LearningRateSchedule):
    """Up over the first step in twenty, then along a shape; computed apart from the library."""

    def __init__(self, rate: float, shape: str):
        self.table = []
        start = math.floor(0.05 * _STEPS)
        for step in range(_STEPS):
            done = (step - start) / (_STEPS - start)
            fall = {"constant": 1, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
            self.table.append(rate * (fall[shape] if step >= start else (step + 1) / start))

    def __call__(self, step):
        return tf.gather(tf.constant(self.table, tf.float32), tf.cast(step, tf.int32))


_NAMES = {
    "keras:AdamW@0.01+cosine+decay0.1": ("AdamW", 0.01, "cosine", {"weight_decay": 0.1}),
    "keras:Nadam@0.01+linear": ("Nadam", 0.01, "linear", {}),
    "keras:Lion@0.003+cosine+decay0.5": ("Lion", 0.003, "cosine", {"weight_decay": 0.5}),
    "keras:Muon@0.02+constant": ("Muon", 0.02, "constant", {}),
    "keras:SGD@0.1+linear": ("SGD", 0.1, "linear", {}),
}


@pytest.mark.parametrize("name", _NAMES)
def test_the_loop_takes_the_steps_of_keras_own_fit(name):
    kind, rate, shape, settings = _NAMES[name]
    data, task = examples(), Task(Problem(network))
    (candidate,) = get_candidates(name)
    assert candidate.name == name and candidate.warmup == 0
    train = tf.nest.map_structure(tf.constant, data)
    history = Fit(task, candidate.rule, (), train, train, _BATCH).run(3, _EPOCHS)

    model = network()
    parameters, _ = task.initial(3)
    model.set_weights([np.asarray(w) for w in task.layout.unflatten(parameters)])
    optimizer = getattr(keras.optimizers, kind)(Falling(rate, shape), **settings)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    for step, indices in enumerate(batch_indices([3], _EXAMPLES, _BATCH, 0, _STEPS)):
        expected = model.train_on_batch(data.inputs[indices], data.labels[indices])
        model.reset_metrics()
        assert history.losses[step] == pytest.approx(float(expected), rel=2e-4, abs=1e-6)
    score = model.evaluate(data.inputs, data.labels, _EXAMPLES, verbose=0)
    assert history.epochs[-1].validation_loss == pytest.approx(score, rel=2e-4)


def test_schedule_free_is_scored_at_its_average():
    """Whose recursion is followed in NumPy, apart from Keras.

    Under TensorFlow Keras 3.15 reads z for the old x after it has moved z, and so does this.
    """
    data, task = examples(), Task(Problem(network))
    (candidate,) = get_candidates("keras:ScheduleFreeAdamW@0.01+constant")
    train = tf.nest.map_structure(tf.constant, data)
    history = Fit(task, candidate.rule, (), train, train, _BATCH).run(3, _EPOCHS)

    parameters, _ = task.initial(3)
    z = y = parameters.astype("float64")
    v = np.zeros_like(z)
    start = math.floor(0.05 * _STEPS)
    gradient_of = tf.function(lambda p, b: _gradient(task, p, b), autograph=False)
    for step, indices in enumerate(batch_indices([3], _EXAMPLES, _BATCH, 0, _STEPS)):
        batch = Batch(tf.constant(data.inputs[indices]), tf.constant(data.labels[indices]))
        g = gradient_of(tf.constant(y, tf.float32), batch).numpy().astype("float64")
        v += 0.001 * (g**2 - v)
        rate = 0.01 * min((step + 1) / max(start, 1), 1)
        z = z - rate * g / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
        x = (y - 0.1 * z) / 0.9
        x = x + (z - x) / (step + 1)
        y = 0.1 * z + 0.9 * x
    loss = lambda p: float(task.loss(tf.constant(p, tf.float32), [], train, training=False)[0])  # noqa: E731
    assert history.epochs[-1].validation_loss == pytest.approx(loss(x), rel=1e-3)
    assert abs(loss(x) - loss(y)) > 1e-3 * loss(x)


def _gradient(task, parameters, batch):
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        loss, _ = task.loss(parameters, [], batch, training=True)
    return tape.gradient(loss, parameters)


# --- searches -----------------------------------------------------------------------------------


def test_trials_are_the_same_for_every_problem_and_fill_the_space():
    space = SPACES["AdamW"]
    found = names("AdamW", space, 16, seed=0)
    assert found == names("AdamW", space, 16, seed=0) != names("AdamW", space, 16, seed=1)
    assert len(set(found)) == 16 and all(get_candidates(name) for name in found)
    rates = [float(name.split("@")[1].split("+")[0]) for name in found]
    low, high = space.rate
    assert low <= min(rates) and max(rates) <= high
    logs = (np.log(rates) - np.log(low)) / (np.log(high) - np.log(low))
    assert np.histogram(logs, 4, (0, 1))[0].tolist() == [4, 4, 4, 4]  # as Sobol's points lie
    shapes = [name.split("+")[1] for name in found]
    assert set(shapes) == {"constant", "linear", "cosine"}


def test_a_longer_search_begins_with_the_shorter_one():
    space = SPACES["Lion"]
    assert names("Lion", space, 8, 0)[:3] == names("Lion", space, 3, 0)


@pytest.mark.parametrize(
    "best, rate", [(0.9e-1, (1e-1, 1.0)), (1.1e-3, (1e-4, 1e-3)), (1e-2, None)]
)
def test_where_the_best_is_at_an_edge_the_range_grows(best, rate):
    grown = better_space(Space(rate=(1e-3, 1e-1), decay=None), best)
    assert (grown and grown.rate) == (None if rate is None else pytest.approx(rate))


def test_a_tuned_optimizer_is_the_best_of_its_trials_on_fresh_seeds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(search, "GROWTHS", 1)
    data = examples(320)
    x, y, _ = data
    problem = Problem(network, (x, y), batch_size=_BATCH, name="made:up")
    settings = {"repeats": 2, "epochs": 2, "output": tmp_path / "r", "tune": 3}
    rows = l2o.evaluate(problem, ("tuned:SGD", "keras:Adam+constant"), **settings)
    trials = [r for r in rows if r.optimizer.startswith("trial:SGD") and r.epoch == 2]
    tuned = [r for r in rows if r.optimizer == "tuned:SGD" and r.epoch == 2]
    assert len(trials) >= 3 and len(tuned) == 2
    assert not {r.seed for r in tuned} & {r.seed for r in trials}
    best = min(trials, key=lambda r: r.validation_loss)
    (candidate,) = get_candidates(best.optimizer.replace("trial:", "keras:"))
    again = evaluate(problem, candidate, repeats=2, epochs=2)
    same = [r.validation_loss for r in again if r.epoch == 2]
    assert [r.validation_loss for r in tuned] == pytest.approx(same, rel=1e-5)
    assert f"tuned:SGD of made:up is {candidate.name}" in capsys.readouterr().out

    there = (tmp_path / "r/results.csv").read_bytes()
    again = l2o.evaluate(problem, ("tuned:SGD", "keras:Adam+constant"), **settings)
    assert repr(again) == repr(rows)  # a number that is not one equals nothing
    assert (tmp_path / "r/results.csv").read_bytes() == there  # nothing was fitted again


def test_what_cannot_be_tuned_is_refused():
    with pytest.raises(ValueError, match="tuned:Adom.*Allowed: .*tuned:AdamW"):
        evaluate("digits_cnn", "tuned:Adom", epochs=1)


def test_objects_have_names_in_a_dictionary_and_what_cannot_be_is_one_line():
    data = examples(320)
    problem = Problem(network, data[:2], batch_size=_BATCH, name="made:up")
    rows = evaluate(problem, {"slow": Adam(1e-4), "fast": Adam(1e-2)}, repeats=1, epochs=1)
    assert {r.optimizer for r in rows} == {"slow", "fast"}
    with pytest.raises(ValueError, match="called adam; .* in a dictionary"):
        evaluate(problem, [Adam(1e-4), Adam(1e-2)], repeats=1, epochs=1)
    for settings, said in (
        ({"repeats": 0}, "repeats must be .* Received: 0"),
        ({"epochs": -1}, "epochs must be .* Received: -1"),
        ({"jobs": 1.5}, "jobs must be .* Received: 1.5"),
        ({"seed": -5}, "seed must be .* Received: -5"),
        ({"optimizers": []}, "optimizers must be one or several"),
        ({"optimizers": [keras.optimizers.Adam()]}, "An optimizer is a name, a policy or a rule"),
        ({"problems": network}, "problems must be one or several"),
    ):
        with pytest.raises(ValueError, match=said):
            evaluate(**{"problems": problem, "optimizers": "adam"} | settings)
