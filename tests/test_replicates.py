"""The unroll in JAX takes l2o's steps and finds l2o's meta-gradients; so do the fits in JAX."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
SEED, EXAMPLES, BATCH, WARMUP, STEPS, ALPHA, MAGNITUDE = 3, 200, 16, 4, 6, 0.2, 0.05
IN_JAX = """
import sys
import jax, jax.numpy as jnp, numpy as np
import draws, jax_unroll
from l2o.rules import Choice, RNNProp, Scale, get_pool
arrays = dict(np.load(sys.argv[1] + "/in.npz"))
take = lambda start: [jnp.asarray(v) for k, v in arrays.items() if k.startswith(start)]
data = (jnp.asarray(arrays["inputs"]), jnp.asarray(arrays["labels"]))
name = sys.argv[2]
job, taught = jax_unroll.Job(Choice(get_pool("large"))), []
if name == "choice":
    job, taught = jax_unroll.Job(RNNProp(), (job.rule,)), [take("teacher")]
if name == "minmax":
    job, taught = jax_unroll.Job(RNNProp(), get_pool("small"), True), [[], []]
if name == "attacked":
    job = jax_unroll.Job(RNNProp(), adversarial=float(arrays["magnitude"]))
if name == "scale":
    job = jax_unroll.Job(Scale())
places = (arrays["theta"], arrays["scale"], arrays["early"])
here = jax_unroll.warm_up(job, take("weight"), data, *places)
cut = jax_unroll.Cut(arrays["cut"], arrays.get("held"), 0)
gradient, after, report = jax_unroll.truncation(
    job, take("weight"), taught, data, here, cut, float(arrays["alpha"])
)
draws.BATCH = arrays["cut"].shape[1]
examples, key = draws.Draws(len(data[1]), name == "attacked"), list(arrays["key"])
drawn = examples.steps(key, 0, 30)
if name == "attacked":
    drawn = np.concatenate([drawn, examples.judged(key, 0, 30)])
_, scale = draws.begin([[list(arrays["key"])]], True)
found = {f"gradient{k:02}": g for k, g in enumerate(gradient)}
found |= {"theta": after.student.parameters, "report": jnp.stack([1.0 * x for x in report])}
if name == "none":
    found["rehearsed"] = jax_unroll.rehearse(job, take("weight"), data, here, cut)[1]
np.savez(sys.argv[1] + "/out.npz", drawn=drawn, drawn_scale=scale, **found)
"""


FITS_IN_JAX = """
import sys
import jax.numpy as jnp, numpy as np
import draws, fits
from l2o.rules import RNNProp, WarmUp
assert "tensorflow" not in sys.modules
arrays = {k: jnp.asarray(v) for k, v in np.load(sys.argv[1] + "/in.npz").items()}
fits.SCORED_AT_ONCE = 50
weights = [v for k, v in sorted(arrays.items()) if k.startswith("weight")]
data, rule = (arrays["inputs"], arrays["labels"]), WarmUp(RNNProp(), 4)
fit, found = fits.begun(rule, arrays["theta"]), []
for start in (0, 12):
    chosen = fits.batch_indices([3], len(data[1]), 16, start, 12)
    fit = fits.advance(rule, weights, 0.01, 0.7, data, fit, chosen)
    found.append(fits.score(data, jnp.stack([fit.parameters, fit.average])))
np.savez(sys.argv[1] + "/out.npz", found=np.stack(found))
"""
REPLICATES_IN_JAX = """
import jax.numpy as jnp, numpy as np
import replicates
options = ["in", "out", "--strategy", "none", "--preset", "smoke"]
phase, = replicates.phases_of(replicates.parser().parse_args(options))
periods = []

class Stubbed(replicates.Replicates):
    def _practise(self, state, stage, period, progress):
        reports = np.ones((10, 2, 3))
        reports[0, :, 2] = reports[:, 1, 2] = 0  # the second replicate loses all its updates
        return state._replace(skipped=state.skipped + jnp.array([1, 10])), reports

    def _validate(self, weights, stage):
        return np.array([[0.0, 2.0], [np.inf, 1.0]]) if len(periods) != 6 else np.full((2, 2), 9.0)

note = lambda phase, r, facts, weights: periods.append((r, facts))
run = Stubbed(phase, None, [5, 6], None, None, [], None, note)
try:
    run.run(replicates.fresh(phase.job.rule, [0, 1]))
except SystemExit as stop:
    assert str(stop) == "policy diverged with seeds 6, in their last try", stop
else:
    raise AssertionError("a replicate diverged and nobody said so")
first, second = ([facts for who, facts in periods if who == r] for r in (0, 1))
assert [f["verdict"] for f in first[:3]] == ["best", "exploded, undone", "kept"], first
assert [f["skipped"] for f in first] == list(range(1, len(first) + 1))
assert first[0]["validation_error"] == 1 and np.isnan(second[0]["validation_error"])
assert [f["verdict"] for f in second] == ["exploded, undone"] * 4 + ["diverged"]
"""
UNROLL_IN_JAX = """
import jax.numpy as jnp, numpy as np
import jax_unroll
from l2o.rules import SGD
data = (jnp.full((4, 28, 28), 200, "uint8"), jnp.arange(4))
theta = jnp.full(jax_unroll.LAYOUT.size, 0.01)
job = jax_unroll.Job(SGD(1.0), (SGD(1e30), SGD(1e-3)))
begun = tuple(jax_unroll.Runner(theta, t.initial_state(jax_unroll.LAYOUT)) for t in job.teachers)
_, path = jax_unroll.follow(job, [[], []], data, begun, np.zeros((2, 4), "int32"))
waited = (path == theta).all(axis=-1)  # where squared distances would not be finite
assert waited.tolist() == [[True, False]] * 2, waited
jax_unroll.truncation = lambda job, weights, *_: (weights, 0.0, (0.0, 0.0, True))
weights = [jnp.ones(2)]
state = jax_unroll.MetaState(weights, jax_unroll.Adam(1.0).initial_state(
    jax_unroll.Layout.of(weights)), jnp.zeros((), "int32"))
lane = jnp.zeros(1)
state, _, report = jax_unroll.meta_update(job, np.inf, state, [], data, lane, lane, 0.0)
assert state.skipped == 1 and report[2] == 0, "an update that is left out is reported"
"""
UPDATES_IN_JAX = """
import jax, jax.numpy as jnp, numpy as np
import jax_unroll
from l2o.rules import SGD
jax_unroll.truncation = lambda job, weights, teachers, data, t, *_: ([t], t, (t[0], 0.0, True))
w, m, v = np.array([3.0, 4.0]), 0, 0
weights = [jnp.asarray(w, "float32")]
moments = jax_unroll.Adam(1.0).initial_state(jax_unroll.Layout.of(weights))
state = jax_unroll.MetaState(weights, moments, jnp.zeros((), "int32"))
for t, pair in enumerate(([[30.0, 0], [30, 80]], [[0.1, 0], [0, -0.1]]), 1):  # clipped, then not
    state, _, report = jax_unroll.meta_update(
        jax_unroll.Job(SGD(1.0)), 0.5, state, [], (), jnp.array(pair), jnp.zeros(2), 0.0)
    assert np.isclose(report[0], np.mean(pair, axis=0)[0])
    g = np.mean(pair, axis=0)
    g = g * min(1, 0.1 * np.linalg.norm(w) / np.linalg.norm(g))
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    w = w - 0.5 * m / (1 - 0.9**t) / np.sqrt(v / (1 - 0.999**t) + 1e-14)
    np.testing.assert_allclose(state.weights[0], w, rtol=1e-5)
noisy = lambda key: jax_unroll._noisy(0.1, [jnp.full(10_000, 2.0)], jax.random.key(key))[0] - 2
assert abs(noisy(0).std() / 0.2 - 1) < 0.05 and abs(noisy(0).mean()) < 0.01
assert (noisy(0) != noisy(1)).all()
"""


def run_in_jax(code: str, *words) -> None:
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed (pip install 'l2o[jax]')")
    environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT / "tools")}
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("name", ["none", "choice", "minmax", "attacked", "scale"])
def test_the_truncation_is_that_of_l2o(name, tmp_path):
    import tensorflow as tf
    from made_weights import made_weights

    from l2o.amalgamation.batches import entry
    from l2o.amalgamation.draws import batch_indices, held_out
    from l2o.amalgamation.optimizee import Batch, KerasOptimizee
    from l2o.amalgamation.perturbation import Perturbation
    from l2o.amalgamation.unroll import Amalgamation, Teacher, begin, rehearse, truncation, warm_up
    from l2o.rules import Choice, RNNProp, Scale, get_pool
    from problems import networks

    choice = Choice(get_pool("large"))
    rule, teachers, scheme = {
        "none": (choice, (), "none"),
        "choice": (RNNProp(), (Teacher(choice, made_weights(choice)),), "mean"),
        "minmax": (RNNProp(), tuple(Teacher(t, []) for t in get_pool("small")), "minmax"),
        "attacked": (RNNProp(), (), "none"),
        "scale": (Scale(), (), "none"),
    }[name]
    weights = [np.asarray(w) for w in made_weights(rule)]
    attack = Perturbation("adversarial", MAGNITUDE) if name == "attacked" else None
    job = Amalgamation(
        rule,
        teachers,
        scheme,
        KerasOptimizee(lambda: networks.cnn((28, 28, 1), 10)),
        perturbation=attack,
    )
    generator = np.random.default_rng(0)
    data = Batch(
        generator.integers(256, size=(EXAMPLES, 28, 28, 1), dtype="uint8"),
        generator.integers(10, size=EXAMPLES).astype("int32"),
    )
    key = [SEED, 1, 0, 7]
    kept, tenth = held_out(EXAMPLES, key) if attack else (np.arange(EXAMPLES), None)

    def indices(start, steps, among=kept, stream=1):
        return among[batch_indices([*key, stream], len(among), BATCH, start, steps)]

    early, cut, drawn = indices(0, WARMUP), indices(WARMUP, STEPS), indices(0, 30)
    held = {"held": indices(WARMUP, STEPS, tenth, 4)} if attack else {}
    if attack:
        drawn = np.concatenate([drawn, indices(0, 30, tenth, 4)])
    trajectory = begin(job, key, name != "none")
    theta, scale = (np.asarray(x) for x in (trajectory.start[0], trajectory.scale))
    trajectory = warm_up(job, weights, trajectory, entry(data, early))
    judged = entry(data, held["held"]) if attack else ()

    @tf.function(autograph=False)
    def learn(weights, trajectory):
        return truncation(job, weights, trajectory, entry(data, cut), ALPHA, judged)

    gradient, after, report = learn(weights, trajectory)

    taught = {f"teacher{k:02}": w for t in teachers for k, w in enumerate(t.weights)}
    np.savez(
        tmp_path / "in.npz",
        inputs=data.inputs[..., 0],
        labels=data.labels,
        theta=theta * scale,
        scale=scale,
        early=early,
        cut=cut,
        alpha=ALPHA,
        magnitude=MAGNITUDE,
        key=key,
        **held,
        **taught,
        **{f"weight{k:02}": w for k, w in enumerate(weights)},
    )
    run_in_jax(IN_JAX, tmp_path, name)
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_array_equal(found["drawn"], drawn)
        if name != "none":
            np.testing.assert_array_equal(found["drawn_scale"][0, 0], scale)
        else:
            loss = rehearse(job, weights, trajectory, entry(data, cut))[1]
            np.testing.assert_allclose(found["rehearsed"], loss, rtol=1e-3)
        np.testing.assert_allclose(found["report"], [float(x) for x in report], rtol=1e-3)
        np.testing.assert_allclose(found["theta"], after.student.parameters, atol=1e-3)
        for k, wanted in enumerate(gradient):
            wanted = wanted.numpy()
            error = np.abs(found[f"gradient{k:02}"] - wanted).max()
            assert error <= 1e-2 * np.abs(wanted).max() + 1e-6, k


def test_the_fit_is_that_of_evaluate(tmp_path):
    """Warm-up, weight decay and moving average included."""
    import tensorflow as tf
    from made_weights import made_weights

    from l2o.amalgamation.optimizee import Batch, KerasOptimizee
    from l2o.evaluation.fit import Fit
    from l2o.rules import Decayed, MovingAverage, RNNProp, WarmUp
    from problems import networks

    optimizee = KerasOptimizee(lambda: networks.cnn((28, 28, 1), 10))
    generator = np.random.default_rng(0)
    labels = generator.integers(10, size=200).astype("int32")
    inputs = generator.integers(100, size=(200, 28, 28, 1)) + 15 * labels[:, None, None, None]
    inputs, rule = inputs.astype("uint8"), RNNProp()
    data, weights, wanted = Batch(*map(tf.constant, (inputs, labels))), made_weights(rule), []
    for momentum in (0.0, 0.7):
        wrapped = MovingAverage(WarmUp(Decayed(rule, 0.01), 4), momentum)
        fit = Fit(optimizee, wrapped, weights, data, data, 16)
        wanted.append([np.log(epoch.validation_loss) for epoch in fit.run(3, 2).epochs[1:]])
    np.savez(
        tmp_path / "in.npz",
        inputs=inputs[..., 0],
        labels=labels,
        theta=optimizee.initial(3)[0],
        **{f"weight{k:02}": w for k, w in enumerate(weights)},
    )
    run_in_jax(FITS_IN_JAX, tmp_path)
    with np.load(tmp_path / "out.npz") as arrays:
        np.testing.assert_allclose(arrays["found"].T, wanted, rtol=1e-3)


def test_replicates_go_on_and_end_as_a_run_does():
    """What was left out stays counted; one that diverges is named, and not carried on."""
    run_in_jax(REPLICATES_IN_JAX)


def test_updates_are_adams_with_clipped_mean_gradients_and_noise_is_of_the_weights_size():
    run_in_jax(UPDATES_IN_JAX)


def test_what_is_not_finite_is_not_taken_and_said():
    run_in_jax(UNROLL_IN_JAX)
