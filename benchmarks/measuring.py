"""What the benchmarks share: how an unroll is set up and measured, the clock, the machine.

TensorFlow is imported where it is used: each case runs in a process of its own, and the one that
waits for it stays small.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

GRADIENTS = 20  # plain ones, of which the median counts
CLASSES, SHAPE, EXAMPLES = 10, (28, 28, 1), 10_000


@dataclass(frozen=True)
class Case:
    """An unroll to be measured.

    Attributes:
        kind: "student": RNNProp on the meta loss alone. "choice": a Choice policy on it. "distil":
            RNNProp, imitating a Choice policy. "mean", "minmax": RNNProp, imitating analytical
            teachers. "validation": RNNProp without a meta-gradient.
        teachers: How many of the large pool there are; the first two are the small pool.
        parameters: About how many a dense network has that is trained; 0: the Train CNN.
        batch: Examples an inner step.
        truncation: Inner steps a meta-update.
        unroll: Inner steps of an unroll, whose beginning and warm-up count too; 0: one that goes
            on, of which only meta-updates count.
        meta_batch: Trajectories a meta-update.
        devices: Logical CPU devices (or GPUs) that share them.
        recompute: As train.py's.
        first_order: Whether the meta-gradient stops at the network's gradient.

    Raises:
        ValueError: If the sizes do not go together.
    """

    kind: str = "distil"
    teachers: int = 6
    parameters: int = 0
    batch: int = 128
    truncation: int = 100
    unroll: int = 0
    meta_batch: int = 1
    devices: int = 1
    recompute: int = 10
    first_order: bool = False

    def __post_init__(self):
        for fits, rule, received in (
            (1 <= self.teachers <= 6, "Teachers must be from 1 to 6", self.teachers),
            (self.batch <= EXAMPLES, f"A batch must be at most {EXAMPLES}", self.batch),
            (
                self.unroll % self.truncation == 0,
                f"An unroll must be a multiple of the truncation, {self.truncation}",
                self.unroll,
            ),
            (
                self.meta_batch % self.devices == 0,
                f"Devices must divide the meta-batch, {self.meta_batch}",
                self.devices,
            ),
        ):
            if not fits:
                raise ValueError(f"{rule}. Received: {received}")

    @property
    def steps(self) -> int:
        """Inner steps of one run, over all trajectories."""
        return (self.unroll or self.truncation) * self.meta_batch


def examples():
    """Noise of MNIST's shape, which costs what MNIST costs."""
    import numpy as np

    from l2o.problems import Batch

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (EXAMPLES, *SHAPE)).astype("uint8")
    return Batch(images, generator.integers(0, CLASSES, EXAMPLES).astype("int32"))


def dense(parameters: int):
    """A network with one hidden layer and about so many parameters."""
    import keras

    layers, pixels = keras.layers, SHAPE[0] * SHAPE[1] * SHAPE[2]
    width = max(1, round((parameters - CLASSES) / (pixels + 1 + CLASSES)))
    hidden = layers.Dense(width, "relu")
    return keras.Sequential([layers.Input(SHAPE), layers.Flatten(), hidden, layers.Dense(CLASSES)])


def amalgamation(case: Case):
    """The `Amalgamation` of a case."""
    from l2o.amalgamation.unroll import Amalgamation, Teacher
    from l2o.problems import Problem, networks
    from l2o.rules import Choice, RNNProp, get_pool
    from l2o.tasks.task import Task

    def build():
        return dense(case.parameters) if case.parameters else networks.cnn(SHAPE, CLASSES)

    pool, rule, scheme, teachers = get_pool("large")[: case.teachers], RNNProp(), "none", ()
    if case.kind == "choice":
        rule = Choice(pool)
    elif case.kind == "distil":
        scheme, teachers = "mean", (Teacher(Choice(pool), Choice(pool).initial_weights(1)),)
    elif case.kind in ("mean", "minmax"):
        scheme, teachers = case.kind, tuple(Teacher(teacher, []) for teacher in pool)
    settings = {"first_order": case.first_order, "recompute": case.recompute}
    return Amalgamation(rule, teachers, scheme, Task(Problem(build)), **settings)


def unroll(case: Case) -> Callable[[], None]:
    """What runs `case.steps` inner steps, the first time with tracing."""
    from l2o.amalgamation.meta import MetaTraining, initial_state
    from l2o.amalgamation.plan import Meta
    from l2o.runs.devices import make_strategy

    strategy = make_strategy(case.devices, case.meta_batch)  # before anything uses a device
    training = MetaTraining(
        amalgamation(case), examples(), case.batch, case.truncation, case.meta_batch, strategy
    )
    state, key = initial_state(training.job.rule.initial_weights(0)), [0, 0, 0]
    trajectories, behind = training.begin(state.weights, key, 0, 0), 0

    def updates(until: int) -> None:
        nonlocal state, trajectories, behind
        while behind < until:
            state, trajectories, report = training.update(state, trajectories, key, 0, behind, 0.2)
            float(report.meta_loss)  # waits for it
            behind += case.truncation

    def run() -> None:
        nonlocal trajectories, behind
        if case.kind == "validation":
            training.validate(state.weights, key, case.meta_batch, case.truncation, 0)
        elif case.unroll:
            behind = Meta.warmup_steps
            trajectories = training.begin(state.weights, key, 0, behind)
            updates(behind + case.unroll)
        else:
            updates(behind + case.truncation)

    return run


def train_cnn():
    """The paper's Train CNN, layer by layer; `networks.cnn` is the same function with less work."""
    import keras

    layers = keras.layers
    first, second = layers.Conv2D(16, 3, activation="relu"), layers.Conv2D(32, 5, activation="relu")
    stack = [first, layers.MaxPool2D(2), second, layers.MaxPool2D(2)]
    return keras.Sequential([layers.Input(SHAPE), *stack, layers.Flatten(), layers.Dense(CLASSES)])


def traced_gradient():
    """The unit, 1 pg: one gradient of `train_cnn` at batch 128, by plain TensorFlow.

    Returns:
        A concrete function of the parameters, and parameters.
    """
    import tensorflow as tf

    from l2o.problems import Problem
    from l2o.tasks.task import Task, loss_and_gradient

    task = Task(Problem(train_cnn))
    parameters, carried = task.initial(0)
    batch = tf.nest.map_structure(lambda x: tf.constant(x[: Case.batch]), examples())
    gradient = tf.function(lambda p: loss_and_gradient(task, p, carried, batch)[1])
    parameters = tf.constant(parameters)
    return gradient.get_concrete_function(parameters), parameters


def plain_gradient() -> Callable[[], None]:
    """What computes the unit once."""
    gradient, parameters = traced_gradient()
    return lambda: gradient(parameters).numpy()


def measure(case: Case, repeats: int) -> dict:
    """Measures a case; wants a process of its own, whose peak memory is then the case's.

    Returns:
        Medians of the milliseconds of a plain gradient and of an inner step of one trajectory, and
        of their ratio; seconds of the first run (tracing); the process's peak memory in MB.
    """
    run, gradient = unroll(case), plain_gradient()
    first = seconds(run)
    seconds(run)
    median_seconds(gradient)
    gradients, steps = [], []
    for _ in range(repeats):  # in turns: other load on the machine hits both
        gradients.append(median_seconds(gradient))
        steps.append(seconds(run) / case.steps)
    return {
        "gradient_ms": 1e3 * statistics.median(gradients),
        "step_ms": 1e3 * statistics.median(steps),
        "step_pg": statistics.median(s / g for s, g in zip(steps, gradients, strict=True)),
        "first_run_s": first,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def alone(function: Callable, *arguments):
    """`function(*arguments)` in a process of its own.

    Raises:
        BrokenProcessPool: If that dies, as it does when memory runs out.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def seconds(run: Callable[[], object]) -> float:
    """How long a call takes."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def median_seconds(run: Callable[[], object], calls: int = GRADIENTS) -> float:
    """How long a call takes, the median of several."""
    return statistics.median(seconds(run) for _ in range(calls))


def count(text: str, least: int = 1) -> int:
    """An argument that must be a whole number of at least `least`."""
    if not text.isdecimal() or int(text) < least:
        message = f"must be a whole number of at least {least}, not '{text}'"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def parser(description: str, repeats: bool = True) -> argparse.ArgumentParser:
    """A command line, by default with `--repeats`; `description` is the script's docstring."""
    command = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if repeats:
        text = "measurements of which the median counts; default 5"
        command.add_argument("--repeats", type=count, default=5, metavar="R", help=text)
    return command


def add_truncation(command: argparse.ArgumentParser) -> None:
    """Adds `--truncation`."""
    text = "inner steps a meta-update; default 100"
    command.add_argument("--truncation", type=count, default=100, metavar="T", help=text)


def machine() -> dict:
    """The machine and what runs on it."""
    from l2o.runs.devices import cores

    names, path = [], Path("/proc/cpuinfo")
    if path.exists():
        lines = path.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpus = cores()
    threads = {"intra": "TF_NUM_INTRAOP_THREADS", "inter": "TF_NUM_INTEROP_THREADS"}
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cpus": cpus,  # as many threads of each kind TensorFlow has unless it is told otherwise
        "threads": {kind: int(os.environ.get(name, cpus)) for kind, name in threads.items()},
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("tensorflow", "keras", "numpy")},
    }


def report(benchmark: str, **content) -> None:
    """Prints the machine, and everything as one JSON line."""
    here = machine()
    print(
        f"{here['processor']}, {here['cpus']} CPUs; threads: {here['threads']['intra']} intra-op, "
        f"{here['threads']['inter']} inter-op; TensorFlow {here['tensorflow']}, "
        f"Keras {here['keras']}, Python {here['python']}"
    )
    print(json.dumps({"benchmark": benchmark, "machine": here} | content))
