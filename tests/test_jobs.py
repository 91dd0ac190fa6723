"""`--jobs` and `--scheduler`: the same results from several processes, whatever becomes of them."""

import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest
from dask.sizeof import sizeof
from distributed import LocalCluster
from distributed.protocol.compression import maybe_compress
from ports import free_ports

from l2o.commands.evaluate import main as evaluate
from l2o.errors import UserError
from l2o.evaluation.results import read_results
from l2o.policies.checkpoint import PolicyError, load_policy
from l2o.runs.jobs import Workers
from l2o.runs.signals import handling, interrupt, interruptible

_ROOT = Path(__file__).parent.parent
_TRAIN = (
    "train.py --strategy none --data digits --problem mnist_mlp --preset smoke --truncation 2 "
    "--unrolls 2 --alphas 0.2 --updates 2 --warmup-steps 2 --replicates 2"
).split()
_EVALUATE = "evaluate.py --optimizer adam sgd --epochs 40 --problem".split()
_OWN = """
import os, signal, time

import distributed, keras, numpy, l2o

x = numpy.random.default_rng(0).normal(size=(80, 3))

def model():
    layers = keras.layers
    return keras.Sequential([layers.Input((3,)), layers.Dense(4, "tanh"), layers.Dense(1)])

def regression():
    return l2o.Problem(model, (x, x.sum(1)), loss="mse", batch_size=8)

def deadly():
    try:
        distributed.get_worker()
    except ValueError:  # the command's own process
        return regression()
    os.kill(os.getpid(), signal.SIGKILL)
"""
_ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}


def start(folder, *words, **environment) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    (folder / "own.py").write_text(_OWN)
    return subprocess.Popen(
        [sys.executable, _ROOT / words[0], *words[1:], "--output", "out"], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | environment,
    )  # fmt: skip


def end(process: subprocess.Popen, status: int = 0, said: str = "") -> str:
    out, error = process.communicate(timeout=300)
    assert (process.returncode, error) == (status, said), out
    return out


def wait_for(what, process: subprocess.Popen, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            process.kill()
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def rows(run: Path) -> list[tuple]:
    """The table in an order of its own, without the seconds that fits took."""
    path = run / "out" / "results.csv"
    found = read_results(run / "out") if path.exists() and path.read_text().strip() else []
    return sorted((r.key, r.epoch, r.train_loss, r.validation_loss) for r in found)


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [c for c in children if "spawn_main" in " ".join(c.cmdline())]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Ten evaluations of a user's own problem in one process of one thread."""
    folder = tmp_path_factory.mktemp("alone")
    line = (*_EVALUATE, "own:regression", "--repeats", "5")
    end(start(folder, *line, **_ONE_THREAD))
    assert len(rows(folder)) == 10 * 41
    return folder


def assert_alike(run: Path, alone: Path) -> None:
    """Nothing is lost, nothing is there twice, and no number is another."""
    assert rows(run) == rows(alone)
    expected = {p.name: p.read_bytes() for p in (alone / "out" / "steps").iterdir()}
    assert {p.name: p.read_bytes() for p in (run / "out" / "steps").iterdir()} == expected


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_nothing(alone, tmp_path):
    line = (*_EVALUATE, "own:regression", "--repeats", "5", "--jobs", "2")
    process = start(tmp_path, *line)
    wait_for(lambda: rows(tmp_path), process)
    first, _ = workers_of(process)
    assert all(
        connection.laddr.ip == "127.0.0.1"
        for each in (psutil.Process(process.pid), first)
        for connection in each.net_connections()
        if connection.status == "LISTEN"
    )
    first.kill()
    end(process)
    assert_alike(tmp_path, alone)
    before = os.stat(tmp_path / "out" / "results.csv").st_mtime_ns
    end(start(tmp_path, *line))  # there is nothing left to do
    assert os.stat(tmp_path / "out" / "results.csv").st_mtime_ns == before


@pytest.mark.slow
def test_a_scheduler_and_its_workers(alone, tmp_path):
    """As a user starts them; one of the workers is killed, and then the command stopped."""
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    line = (*_EVALUATE, "own:regression", "--repeats", "5", "--scheduler", address)
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    dask = (sys.executable, "-m", "dask")
    quiet = ("--no-dashboard", "--host", "127.0.0.1")
    with ExitStack() as stack:
        for words in (
            ("scheduler", "--port", address.rpartition(":")[2]),
            ("worker", address, "--nthreads", "1", "--nworkers", "2"),
        ):
            daemon = subprocess.Popen([*dask, *words, *quiet], cwd=tmp_path, **silent)
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)
        process = start(tmp_path, *line)
        wait_for(lambda: rows(tmp_path), process)
        process.send_signal(signal.SIGINT)
        assert end(process, 130).endswith("is kept in out; the same command goes on.\n")
        assert 0 < len(rows(tmp_path)) < len(rows(alone))
        process = start(tmp_path, *line)
        there = len(rows(tmp_path))
        wait_for(lambda: len(rows(tmp_path)) > there, process)
        workers_of(daemon)[0].kill()
        assert f"Workers of {address}: 2" in end(process)
    assert_alike(tmp_path, alone)


@pytest.mark.slow
def test_what_kills_its_process_again_and_again_is_named(tmp_path):
    process = start(tmp_path, *_EVALUATE, "own:deadly", "--repeats", "1", "--jobs", "2")
    _, error = process.communicate(timeout=500)
    assert process.returncode == 2 and error.count("\n") == 1
    assert error.startswith("error: own:deadly with ") and "killed its process 4 times" in error


@pytest.mark.parametrize("jobs", [("--jobs", "2"), ()])
def test_a_scheduler_that_cannot_be_reached(jobs, tmp_path, monkeypatch, capfd):
    """Nobody listens; somebody listens and does not answer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("l2o.runs.jobs._CONNECT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (free_ports(1)[0], silent.getsockname()[1]):
            address = f"tcp://127.0.0.1:{port}"
            line = ["--problem", "mnist_mlp", "--data", "digits", "--scheduler", address, *jobs]
            with pytest.raises(SystemExit) as status:
                evaluate(line)
            error = capfd.readouterr().err
            assert status.value.code == 2 and error.count("\n") == 1
            said = "--jobs is of this" if jobs else f"{address!r} cannot be reached: no answer with"
            assert said in error
    assert list(tmp_path.iterdir()) == []


def test_why_a_process_could_not_start_is_told():
    with Workers(1) as workers, pytest.raises(PolicyError, match="nowhere"):
        list(workers.spread(print, [()], load_policy, ("nowhere",), str))


def test_workers_of_several_threads_are_refused():
    with (
        LocalCluster(1, threads_per_worker=2, processes=False, dashboard_address="") as cluster,
        Workers(scheduler=cluster.scheduler_address) as workers,
        pytest.raises(UserError, match="must have one thread .*Received: 2 .at the worker inproc"),
    ):
        list(workers.spread(print, [()], str, (), str))


def test_another_threads_handler_is_told_by_this_one():
    asked, begun = threading.Event(), threading.Event()

    def work() -> None:
        with handling(lambda *_: asked.set()):
            begun.set()
            asked.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(60)
    assert interruptible()
    interrupt()
    thread.join()
    assert asked.is_set() and not interruptible()


@pytest.mark.slow
def test_replicates_in_two_processes(tmp_path):
    out = end(start(tmp_path, *_TRAIN, "--jobs", "2"))
    assert "2 runs in 2 processes" in out and out.count("of 2: model.compile(") == 2
    alone = _TRAIN[: _TRAIN.index("--replicates")]
    end(start(tmp_path / "one", *alone, "--seed", "1", **_ONE_THREAD))
    expected = load_policy(tmp_path / "one" / "out" / "policy")
    for a, b in zip(
        load_policy(tmp_path / "out" / "2" / "policy").weights, expected.weights, strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_command(number, tmp_path):
    line = [*_TRAIN, "--jobs", "2"]
    line[line.index("--updates") + 1] = "1000"
    process = start(tmp_path, *line)
    runs = [tmp_path / "out" / k for k in "12"]
    wait_for(lambda: all((run / "updates.csv").exists() for run in runs), process)
    workers = workers_of(process)
    assert len(workers) == 2
    process.send_signal(number)
    if number == signal.SIGKILL:
        process.communicate()
        _, left = psutil.wait_procs(workers, timeout=60)
        assert not left
    else:
        out = end(process, 130)
        assert out.endswith("Stopped. The runs are kept; the same command goes on with them.\n")
        assert not any(worker.is_running() for worker in workers)
        assert all((run / "checkpoint.npz").exists() for run in runs)
    assert all(map(is_free, runs))


def is_free(run: Path) -> bool:
    """Whether no process holds a run's directory."""
    with open(run / ".lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_dask_draws_from_a_generator_of_its_own():
    """Its threads would disturb what is drawn for a network between a seed and its layers."""
    with (
        LocalCluster(1, processes=False, dashboard_address="") as cluster,
        Workers(scheduler=cluster.scheduler_address),
    ):
        random.seed(0)
        expected = random.Random(0)
        for _ in range(20):
            sizeof([{"a": k, "b": [k]} for k in range(100)])
            maybe_compress(b"0" * 10**6)
            assert random.random() == expected.random()
