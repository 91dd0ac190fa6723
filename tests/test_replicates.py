"""The unroll in JAX takes l2o's steps and finds l2o's meta-gradients."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
SEED, BATCH, WARMUP, STEPS, ALPHA = 3, 16, 4, 6, 0.2
IN_JAX = """
import sys
import jax, jax.numpy as jnp, numpy as np
import replicates, jax_unroll
from l2o.rules import Choice, RNNProp, get_pool
arrays = dict(np.load(sys.argv[1] + "/in.npz"))
take = lambda start: [jnp.asarray(v) for k, v in arrays.items() if k.startswith(start)]
data = (jnp.asarray(arrays["inputs"]), jnp.asarray(arrays["labels"]))
name = sys.argv[2]
job, taught = jax_unroll.Job(Choice(get_pool("large"))), []
if name == "choice":
    job, taught = jax_unroll.Job(RNNProp(), (job.rule,)), [take("teacher")]
if name == "minmax":
    job, taught = jax_unroll.Job(RNNProp(), get_pool("small"), True), [[], []]
here = jax_unroll.warm_up(job, data, arrays["theta"], arrays["scale"], arrays["early"])
gradient, after, report = jax_unroll.truncation(
    job, take("weight"), taught, data, here, arrays["cut"], float(arrays["alpha"])
)
replicates.BATCH = arrays["cut"].shape[1]
drawn = replicates.batch_indices(list(arrays["key"]), 0, 30, len(data[1]))
_, scale = replicates.begin([[list(arrays["key"])]], True)
found = {f"gradient{k:02}": g for k, g in enumerate(gradient)}
found |= {"theta": after.student.parameters, "report": jnp.stack([1.0 * x for x in report])}
np.savez(sys.argv[1] + "/out.npz", drawn=drawn, drawn_scale=scale, **found)
"""


@pytest.mark.parametrize("name", ["none", "choice", "minmax"])
def test_the_truncation_is_that_of_l2o(name, tmp_path):
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed (pip install 'l2o[jax]')")
    import tensorflow as tf
    from made_weights import made_weights

    from l2o.amalgamation.batches import batch_indices, batches
    from l2o.amalgamation.optimizee import Batch, KerasOptimizee
    from l2o.amalgamation.unroll import Amalgamation, Teacher, begin, truncation, warm_up
    from l2o.rules import Choice, RNNProp, get_pool
    from problems import networks

    choice = Choice(get_pool("large"))
    rule, teachers, scheme = {
        "none": (choice, (), "none"),
        "choice": (RNNProp(), (Teacher(choice, made_weights(choice)),), "mean"),
        "minmax": (RNNProp(), tuple(Teacher(t, []) for t in get_pool("small")), "minmax"),
    }[name]
    weights = [np.asarray(w) for w in made_weights(rule)]
    job = Amalgamation(
        rule, teachers, scheme, KerasOptimizee(lambda: networks.cnn((28, 28, 1), 10))
    )
    generator = np.random.default_rng(0)
    data = Batch(
        generator.integers(256, size=(80, 28, 28, 1), dtype="uint8"),
        generator.integers(10, size=80).astype("int32"),
    )
    key = [SEED, 1, 0, 7]
    tensors = lambda *where: tf.nest.map_structure(  # noqa: E731
        tf.convert_to_tensor, batches(data, key, BATCH, *where)
    )
    trajectory = begin(job, key, name != "none")
    theta, scale = (np.asarray(x) for x in (trajectory.start[0], trajectory.scale))
    trajectory = warm_up(job, weights, trajectory, tensors(0, WARMUP))
    learn = tf.function(lambda w, t, cut: truncation(job, w, t, cut, ALPHA), autograph=False)
    gradient, after, report = learn(weights, trajectory, tensors(WARMUP, STEPS))

    indices = lambda *where: batch_indices([*key, 1], 80, BATCH, *where)  # noqa: E731
    taught = {f"teacher{k:02}": w for t in teachers for k, w in enumerate(t.weights)}
    np.savez(
        tmp_path / "in.npz",
        inputs=data.inputs[..., 0],
        labels=data.labels,
        theta=theta * scale,
        scale=scale,
        early=indices(0, WARMUP),
        cut=indices(WARMUP, STEPS),
        alpha=ALPHA,
        key=key,
        **taught,
        **{f"weight{k:02}": w for k, w in enumerate(weights)},
    )
    environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT / "tools")}
    command = [sys.executable, "-c", IN_JAX, str(tmp_path), name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_array_equal(found["drawn"], indices(0, 30))
        if name != "none":
            np.testing.assert_array_equal(found["drawn_scale"][0, 0], scale)
        np.testing.assert_allclose(found["report"], [float(x) for x in report], rtol=1e-3)
        np.testing.assert_allclose(found["theta"], after.student.parameters, atol=1e-3)
        for k, wanted in enumerate(gradient):
            wanted = wanted.numpy()
            error = np.abs(found[f"gradient{k:02}"] - wanted).max()
            assert error <= 1e-2 * np.abs(wanted).max() + 1e-6, k
