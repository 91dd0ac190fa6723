"""The benchmarks: each one's cheapest case, and what can be known of what they count."""

import json
import os
import runpy
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from l2o.problems import Batch, Problem, get_problem, load_dataset
from l2o.rules import POOLS, SGD, Adam, Decayed, Layout, Scheduled, WarmUp, constant
from l2o.tasks.task import Task, loss_and_gradient

FOLDER = Path(__file__).parents[1] / "benchmarks"
count_operations = runpy.run_path(str(FOLDER / "operations.py"))["count_operations"]


def run(script: str, line: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(FOLDER / script), *line.split()]
    return subprocess.run(command, capture_output=True, text=True)


def report(script: str, line: str) -> dict:
    """The JSON line of a benchmark, below a table."""
    done = run(script, line)
    assert done.returncode == 0, done.stderr[-2000:]
    *table, last = done.stdout.splitlines()
    assert len(table) >= 3
    found = json.loads(last)
    assert found["benchmark"] == script.removesuffix(".py")
    machine = found["machine"]
    assert machine["processor"] and machine["tensorflow"] == tf.__version__
    assert machine["cpus"] == len(os.sched_getaffinity(0))
    return found


@pytest.mark.slow
def test_unroll():
    found = report("unroll.py", "validation --truncation 2 --repeats 1")
    (result,) = found["results"]
    assert (result["case"], result["kind"], result["truncation"]) == ("validation",) * 2 + (2,)
    assert result["step_pg"] == pytest.approx(result["step_ms"] / result["gradient_ms"])
    assert result["first_run_s"] > result["step_ms"] / 1e3 > 0
    assert result["peak_mb"] > 100


@pytest.mark.slow
def test_first_update():
    line = "--repeats 1 -- --preset smoke --data digits --problem mnist_mlp --strategy none"
    result = report("first_update.py", f"{line} --warmup-steps 1 --truncation 2")["result"]
    assert 0 < result["began_s"] < result["first_update_s"] == result["each_s"][0]
    assert 0 < result["imported_s"] < result["first_update_s"]


def test_first_update_says_what_train_says():
    done = run("first_update.py", "--repeats 1 -- --strategy mena")
    assert done.returncode == 2
    assert done.stderr.startswith("error: train.py ended: ") and "'mena'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_whole_run(tmp_path):
    options = "--strategy none --problem mnist_mlp --data digits --preset smoke --truncation 2"
    short = "--unrolls 2 --alphas 0.1 --last-validation 2 --warmup-steps 1"
    line = f"--every 4 --output {tmp_path / 'run'} -- {options} {short}"
    result = report("whole_run.py", line)["result"]
    kept = (tmp_path / "run.stretches.csv").read_text().splitlines()
    rows = [list(map(float, row.split(","))) for row in kept]
    assert result["pg"] == pytest.approx(sum(spent / gradient for spent, gradient in rows))
    assert result["hours"] == pytest.approx(sum(spent for spent, _ in rows) / 3600)
    assert (tmp_path / "run" / "policy").is_dir()


def test_a_stretch_leaves_out_what_is_measured_between():
    stretches = runpy.run_path(str(FOLDER / "whole_run.py"))["stretches"]
    # Naps of 2.5 seconds: the first gradient takes half a second of them, a halt one nap at most.
    program = "import time\nfor _ in range(50): time.sleep(0.05)"
    gradients = iter(range(1, 100))

    def gradient() -> float:
        time.sleep(0.5)
        return next(gradients)

    begun = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        rows = list(stretches(process, gradient, every=0.4))
    whole = time.perf_counter() - begun
    assert process.returncode == 0 and len(rows) > 3
    assert [between for _, between in rows] == [k + 1.5 for k in range(len(rows))]
    assert 1.5 < sum(spent for spent, _ in rows) < 4
    assert whole - sum(spent for spent, _ in rows) >= 0.5 * (len(rows) + 1)


@pytest.mark.slow
def test_growth():
    first, second = report("growth.py", "parameters --values 1e3 1 --repeats 1")["results"]
    assert (first["value"], second["value"]) == (first["parameters"], second["parameters"])
    assert (first["parameters"], second["parameters"]) == (1000, 1)
    assert first["step_ms"] > 0 and first["sweep"] == "parameters"


@pytest.mark.slow
def test_limit():
    found = report("limit.py", "--truncation 1 --repeats 1")
    gradient, step = found["results"]
    for result in (gradient, step):
        assert result["share"] == pytest.approx(result["gflops"] / found["peak_gflops"])
    first, second, dense = 26**2 * 9 * 16, 9**2 * 25 * 16 * 32, 512 * 10
    assert gradient["operations"] == {
        "Conv2D": 2 * 128 * (first + second),
        "Conv2DBackpropFilter": 2 * 128 * (first + second),
        "Conv2DBackpropInput": 2 * 128 * second,  # not to the images
        "MatMul": 2 * 128 * 3 * dense,
    }
    # Two gradients, the loss at the start, and the second-order part: at least a gradient more.
    assert 3.3 < sum(step["operations"].values()) / sum(gradient["operations"].values()) < 8


@pytest.mark.slow
def test_parts():
    found = report("parts.py", "--truncation 2 --repeats 1")
    parts = {result["part"]: result for result in found["results"]}
    assert parts["plain gradient"]["pg"] == 1
    assert parts["data of a truncation"]["times"] == 1 / 2
    assert parts["policy, backward"]["ms"] > parts["policy, forward"]["ms"] > 0
    total = parts.pop("sum")["ms"]
    assert parts.pop("whole step")["ms"] > 0
    assert total == pytest.approx(sum(p["times"] * p["ms"] for p in parts.values()))


@pytest.mark.slow
def test_evaluation():
    found = report("evaluation.py", "--steps 2 --repeats 1")
    assert {"plain gradient", "loop, adam"} < {result["case"] for result in found["results"]}
    assert found["loop_to_fit"] > 0


@pytest.mark.slow
def test_optimizer():
    found = report("optimizer.py", "small10 --steps 2 --batch 8 --repeats 1 --threads 1 --parts")
    (result,) = found["results"]
    for name, bytes_a_parameter in (("adam", 8), ("policy", 332)):
        each = result[name]
        assert each["parameters"] == 1_258
        assert each["first_s"] > each["step_ms"] / 1e3 > 0 and each["peak_mb"] > 0
        bytes_there = each["state_mb"] * 2**20 / 1_258
        assert bytes_there == pytest.approx(bytes_a_parameter, abs=2)
    assert 0 < result["parts"]["arithmetic_ms"] < 100
    words = "small10 --steps 2 --batch 8 --repeats 1 --beside muon"
    found = report("optimizer.py", f"{words} --policy tensorchoice,orthogonal=0")
    bytes_there = found["results"][0]["policy"]["state_mb"] * 2**20 / 1_258
    assert bytes_there == pytest.approx(12, abs=2)


@pytest.mark.parametrize(
    "script, line, fault",
    [
        ("unroll.py", "distill", "unknown case distill; allowed: student"),
        ("unroll.py", "--recompute -1", "must be a whole number of at least 0, not '-1'"),
        ("unroll.py", "--repeats 0", "must be a whole number of at least 1, not '0'"),
        ("growth.py", "batches", "unknown sweep batches; allowed: parameters"),
        ("growth.py", "batch --values 1.5", "must be a whole number of at least 1, not '1.5'"),
        ("growth.py", "unroll --values 30", "a multiple of the truncation, 20. Received: 30"),
        ("growth.py", "devices --values 3", "must divide the meta-batch, 4. Received: 3"),
        ("growth.py", "teachers --values 7", "from 1 to 6. Received: 7"),
        ("growth.py", "--values 1", "--values goes with one sweep alone"),
        ("optimizer.py", "--steps 0", "must be a whole number of at least 1, not '0'"),
        ("optimizer.py", "cnn huge", ", dense10m, not huge"),
        ("whole_run.py", "--every 0", "must be a whole number of at least 1, not '0'"),
        ("warmup.py", "mnist", "unknown problem mnist; allowed: mnist_cnn"),
        ("warmup.py", "gru --warmups sgd", "no warm-up is called 'sgd'; there are sgd-N"),
        ("warmup.py", "gru --steps 1", "must be a whole number of at least 2, not '1'"),
    ],
)
def test_bad_lines(script, line, fault):
    done = run(script, line)
    assert done.returncode == 2 and not done.stdout
    assert fault in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("error", [MemoryError(), tf.errors.ResourceExhaustedError(None, None, "")])
def test_a_case_that_dies_leaves_its_row_empty(error):
    growth = runpy.run_path(str(FOLDER / "growth.py"))
    with pytest.raises(BrokenProcessPool):
        growth["alone"](os._exit, 1)

    def fails(*arguments):
        raise error

    growth["tried"].__globals__["alone"] = fails
    assert growth["tried"](growth["Case"](), 1) == {} and "died" in growth["row"]({})


def test_a_case_of_two_teachers_has_the_small_pool():
    assert POOLS["large"][:2] == POOLS["small"]


def operations(build, shape) -> dict:
    """Of a gradient of a network, counted, for 5 examples."""
    task = Task(Problem(build))
    parameters, carried = task.initial(0)
    batch = Batch(tf.zeros((5, *shape)), tf.zeros(5, tf.int32))
    gradient = tf.function(lambda p: loss_and_gradient(task, p, carried, batch)[1])
    return count_operations(gradient.get_concrete_function(tf.constant(parameters)))


def test_operations_of_a_dense_network():
    layers = keras.layers
    hidden = [layers.Input((7,)), layers.Dense(4, "tanh"), layers.Dense(3)]
    counted = operations(lambda: keras.Sequential(hidden), (7,))
    forward, kernels, between = 7 * 4 + 4 * 3, 7 * 4 + 4 * 3, 4 * 3
    assert counted == {"MatMul": 2 * 5 * (forward + kernels + between)}


def test_operations_of_a_convolution(network):
    # [8, 8, 1] to [6, 6, 2] by kernels of [3, 3, 1], then 18 features to 3 classes.
    convolution, dense = 6 * 6 * 2 * 3 * 3, 18 * 3
    assert operations(network, (8, 8, 1)) == {
        "Conv2D": 2 * 5 * convolution,
        "Conv2DBackpropFilter": 2 * 5 * convolution,
        "MatMul": 2 * 5 * 3 * dense,
    }


@pytest.mark.parametrize("transpose", [False, True])
def test_operations_of_what_is_needed_alone(transpose):
    product = 2 * 4 * 4 * 4

    @tf.function(jit_compile=True, autograph=False)
    def called(x):
        return tf.matmul(x, x, transpose_b=transpose), tf.matmul(x, x + 1), tf.matmul(x, x + 2)

    @tf.custom_gradient
    def replaced(x):
        return called(x)[:2], lambda *upstream: upstream[0]

    def function(x):
        loop = tf.while_loop(lambda i, _: i < 1, lambda i, y: (i + 1, tf.matmul(y, y)), (0, x))
        chosen = tf.cond(x[0, 0] > 0, lambda: tf.matmul(x, x), lambda: x)
        return loop[1] + chosen, replaced(x)[0]

    concrete = tf.function(function, autograph=False).get_concrete_function(tf.ones((4, 4)))
    assert count_operations(concrete) == {"MatMul": 3 * product}


def test_a_product_of_unknown_shape_is_refused():
    function = tf.function(lambda x: tf.matmul(x, x))
    concrete = function.get_concrete_function(tf.TensorSpec((None, None)))
    with pytest.raises(ValueError, match="Received: "):
        count_operations(concrete)


@pytest.mark.parametrize("name", ["mnist_cnn", "fmnist_cnn", "mnist_mlp"])
def test_published_problems_train_on_all_images_and_choose_on_test(name, monkeypatch):
    digits = load_dataset("digits")
    monkeypatch.setattr("l2o.problems.load_dataset", lambda dataset, data: digits)
    own = runpy.run_path(str(FOLDER / "published.py"))[name]()
    train, held, test = digits.train, digits.validation, digits.test
    for part, kind in enumerate(("inputs", "labels")):
        both = np.concatenate([getattr(train, kind), getattr(held, kind)])
        np.testing.assert_array_equal(own.data[part], both)
        np.testing.assert_array_equal(own.validation[part], getattr(test, kind))
    plain = get_problem(name).build(digits)
    assert own.model_fn().count_params() == plain.count_params()
    assert own.test is None


@pytest.mark.slow
def test_warmup(tmp_path):
    line = f"digits_cnn --steps 4 --seeds 2 --output {tmp_path / 'fits.csv'}"
    results = report("warmup.py", f"{line} --warmups adam sgd-1 ramp-2 rms-1 none")["results"]
    kept = (tmp_path / "fits.csv").read_text()
    found = {r["warmup"]: r for r in results}
    assert list(found) == ["adam", "sgd-100", "sgd-1", "ramp-2", "rms-1", "none"]
    assert len({r["end"] for r in results}) == 6 and found["sgd-100"]["end_difference"] == 0
    for part in ("half", "end"):
        difference = found["none"][part] - found["sgd-100"][part]
        assert found["none"][f"{part}_difference"] == pytest.approx(difference)
        assert found["none"][f"{part}_error"] > 0
    # What is there is not run again, and a seed alone has no standard error.
    again = report("warmup.py", f"{line.replace('--seeds 2', '--seeds 1')} --warmups none")
    assert (tmp_path / "fits.csv").read_text() == kept
    assert [r["seeds"] for r in again["results"]] == [1, 1]
    assert np.isnan(again["results"][1]["end_error"])


@pytest.fixture(scope="module")
def warmup() -> dict:
    """The benchmark's functions."""
    return runpy.run_path(str(FOLDER / "warmup.py"))


def test_warmups_by_name(warmup):
    rule = WarmUp(Decayed(Adam(0.1), 0.01), 3, 0.02)
    assert warmup["with_warmup"](rule, "none") == Decayed(Adam(0.1), 0.01)
    assert warmup["with_warmup"](rule, "sgd-20") == WarmUp(Decayed(Adam(0.1), 0.01), 20, 0.01)
    ramp = Decayed(Scheduled(Adam(0.1), constant(1.0, 4)), 0.01)
    assert warmup["with_warmup"](rule, "ramp-4") == ramp
    layout, gradient = Layout(("a",), ((4,),)), tf.constant([3.0, -4.0, 0.0, 0.0])
    sized = warmup["with_warmup"](SGD(0.1), "rms-1")
    state = sized.initial_state(layout)
    for expected in (gradient * (1e-3 / 2.5), gradient * 0.1):
        step, state = sized.update([], gradient, gradient, state, layout)
        np.testing.assert_allclose(step, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_networks_of_a_text_see_no_later_character(name, warmup, monkeypatch):
    cut = warmup["sequences"](np.arange(200) % 7)
    assert cut.inputs.shape == cut.labels.shape == (3, 64)
    np.testing.assert_array_equal(cut.labels, (cut.inputs + 1) % 7)
    task = warmup[name]
    monkeypatch.setitem(task.__globals__, "text", lambda: (cut, cut, 7))
    model, inputs = task().build(), cut.inputs
    changed = inputs.copy()
    changed[:, 40] = (changed[:, 40] + 1) % 7
    before, after = model(inputs), model(changed)
    assert before.shape == (3, 64, 7)
    np.testing.assert_allclose(before[:, :40], after[:, :40], atol=1e-6)
    assert np.abs(before[:, 40] - after[:, 40]).min() > 0


@pytest.mark.slow
def test_evolution():
    results = report("evolution.py", "--pairs 2 --repeats 1")["results"]
    assert {row["problem"][:3] for row in results} == {"MLP", "tra", "con"}
    assert len(results) == 9 and results[0]["weights"] == 2410
    assert all(row["steps_per_s"] > 0 and row["compiling_s"] > 0 for row in results)
