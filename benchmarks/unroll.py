"""Time and memory of the unroll, in plain gradients of the Train CNN measured in the same run.

    python benchmarks/unroll.py [CASE ...] [--recompute S] [--first-order] [--meta-batch M]

Each case runs in a process of its own, so that its peak memory is its own. Batches come from
noise of MNIST's shape, which costs what MNIST costs. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent.parent))

CASES = {
    "student": "RNNProp on the meta loss alone",
    "choice": "the Choice policy, large pool, on the meta loss",
    "distil": "RNNProp distilled from a Choice policy, large pool",
    "minmax-small": "RNNProp, min-max, small pool",
    "minmax-large": "RNNProp, min-max, large pool",
    "mean-large": "RNNProp, mean, large pool",
    "validation": "RNNProp, no meta-gradient",
}
TRUNCATION, BATCH, REPEATS = 100, 128, 5


def job(case: str, optimizee, recompute: int, first_order: bool):
    """The amalgamation of a case."""
    from l2o.amalgamation.unroll import Amalgamation, Teacher
    from l2o.rules import Choice, RNNProp, get_pool

    rule, scheme, teachers = RNNProp(), "none", ()
    if case == "choice":
        rule = Choice(get_pool("large"))
    elif case == "distil":
        teacher = Choice(get_pool("large"))
        scheme, teachers = "mean", (Teacher(teacher, teacher.initial_weights(1)),)
    elif "-" in case:
        scheme, pool = case.split("-")
        teachers = tuple(Teacher(rule, []) for rule in get_pool(pool))
    settings = {"first_order": first_order, "recompute": recompute}
    return Amalgamation(rule, teachers, scheme, optimizee, **settings)


def measure(case: str, recompute: int, first_order: bool, meta_batch: int) -> dict:
    """Runs a case.

    Returns:
        Milliseconds of a plain gradient and of an inner step of one trajectory, their ratio,
        seconds of the first update (tracing) and the process's peak memory in MB.
    """
    import numpy as np
    import tensorflow as tf

    from l2o.amalgamation.meta import MetaTraining, initial_state
    from l2o.amalgamation.optimizee import Batch, KerasOptimizee, loss_and_gradient
    from problems import networks

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (10_000, 28, 28, 1)).astype("uint8")
    data = Batch(images, generator.integers(0, 10, 10_000).astype("int32"))
    optimizee = KerasOptimizee(lambda: networks.cnn((28, 28, 1), 10))
    parameters, carried = optimizee.initial(0)
    batch = Batch(tf.constant(data.inputs[:BATCH]), tf.constant(data.labels[:BATCH]))
    plain = tf.function(lambda p: loss_and_gradient(optimizee, p, carried, batch)[1])

    def plain_seconds() -> float:
        return statistics.median(_seconds(lambda: plain(parameters).numpy()) for _ in range(50))

    training = MetaTraining(
        job(case, optimizee, recompute, first_order), data, BATCH, TRUNCATION, meta_batch,
        tf.distribute.MirroredStrategy(["/cpu:0"]),
    )  # fmt: skip
    state, key, start = initial_state(training.job.rule.initial_weights(0)), [0, 0, 0], 0
    trajectories = training.begin(key, 0)

    def update() -> None:
        nonlocal state, trajectories, start
        if case == "validation":
            training.validate(state.weights, key, meta_batch, TRUNCATION, 0)
        else:
            state, trajectories, report = training.update(
                state, trajectories, key, 0, start, 0, 0.2
            )
            float(report.meta_loss)
        start += TRUNCATION

    plain_seconds()
    first = _seconds(update)
    update()
    gradients, steps = [], []
    for _ in range(REPEATS):  # side by side: other load on the machine hits both
        gradients.append(plain_seconds())
        steps.append(_seconds(update) / (TRUNCATION * meta_batch))
    return {
        "case": case,
        "gradient_ms": 1e3 * statistics.median(gradients),
        "step_ms": 1e3 * statistics.median(steps),
        "step_pg": statistics.median(s / g for s, g in zip(steps, gradients, strict=True)),
        "first_update_s": first,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _seconds(run) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cases = ", ".join(f"{name} ({text})" for name, text in CASES.items())
    parser.add_argument("case", nargs="*", help=f"default all: {cases}")
    parser.add_argument("--recompute", type=int, default=10, metavar="S", help="as train.py's")
    parser.add_argument("--first-order", action="store_true")
    parser.add_argument("--meta-batch", type=int, default=1, metavar="M")
    options = parser.parse_args()
    chosen = options.case or list(CASES)
    if unknown := set(chosen) - set(CASES):
        parser.error(f"unknown case {', '.join(unknown)}; allowed: {', '.join(CASES)}")
    settings = (options.recompute, options.first_order, options.meta_batch)
    print(f"{'case':14} {'gradient':>9} {'step':>9} {'step':>9} {'tracing':>8} {'peak':>9}")
    results = []
    for case in chosen:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            result = pool.apply(measure, (case, *settings))
        results.append(result)
        print(
            f"{case:14} {result['gradient_ms']:6.1f} ms {result['step_ms']:6.1f} ms "
            f"{result['step_pg']:6.2f} pg {result['first_update_s']:6.1f} s "
            f"{result['peak_mb']:6.0f} MB",
            flush=True,
        )
    machine = {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
    names = ("recompute", "first_order", "meta_batch")
    settings = dict(zip(names, settings, strict=True))
    print(json.dumps({"machine": machine, "settings": settings, "results": results}))


if __name__ == "__main__":
    main()
