"""How near to the machine's limit the unroll comes: its operations a second, and the peak.

    python benchmarks/limit.py
    python benchmarks/limit.py --truncation 20

The peak is the best that a float32 product of two square matrices reaches in the same process. The
operations are those of convolutions and matrix products, counted in the graph of a truncation of
one step (operations.py); what is computed again for the backward pass counts as often as it is
computed. Prints a table and one JSON line.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measuring import (
    Case,
    add_truncation,
    amalgamation,
    examples,
    median_seconds,
    parser,
    plain_gradient,
    report,
    seconds,
    traced_gradient,
    unroll,
)
from benchmarks.operations import count_operations

SIZES = (512, 1024, 2048)
CALLS = 5  # of each product in each round; the fastest of all is the peak


def step_operations(case: Case) -> dict[str, int]:
    """Operations of an inner step of one trajectory, by kind."""
    import tensorflow as tf

    from l2o.amalgamation.unroll import begin, truncation
    from l2o.tasks.batches import batches

    job, data, key = amalgamation(replace(case, truncation=1)), examples(), [0, 0, 0]
    trajectory, weights = begin(job, key, scaled=True), job.rule.initial_weights(0)
    one = tf.nest.map_structure(tf.constant, batches(data, key, case.batch, 0, 1))
    step = tf.function(lambda *values: truncation(job, *values, one, 0.2)[:2])
    return count_operations(step.get_concrete_function(weights, trajectory))


def products() -> dict[int, Callable]:
    """Float32 products of two square matrices, by size."""
    import tensorflow as tf

    multiply = tf.function(tf.matmul)

    def product(size: int) -> Callable:
        factors = [tf.random.stateless_normal((size, size), (size, k)) for k in range(2)]
        return lambda: multiply(*factors).numpy()

    return {size: product(size) for size in SIZES}


def main() -> None:
    command = parser(__doc__)
    add_truncation(command)
    options = command.parse_args()
    case = Case("distil", truncation=options.truncation)
    run, gradient, multiply = unroll(case), plain_gradient(), products()
    counted = {
        "plain gradient": dict(count_operations(traced_gradient()[0])),
        "distillation step": step_operations(case),
    }
    for function in (run, run, gradient, *multiply.values()):
        function()
    peaks, rates = [], []
    for _ in range(options.repeats):  # in turns: other load on the machine hits all
        peaks += [2 * n**3 / seconds(f) for n, f in multiply.items() for _ in range(CALLS)]
        taken = (median_seconds(gradient), seconds(run) / case.steps)
        rates.append([sum(k.values()) / t for k, t in zip(counted.values(), taken, strict=True)])
    peak, results = max(peaks) / 1e9, []
    print(f"{'':22} {'operations':>12} {'a second':>14} {'of the peak':>12}")
    print(f"{'matrix products':22} {'':12} {peak:8.1f} GFLOP")
    for k, (name, kinds) in enumerate(counted.items()):
        rate = statistics.median(row[k] for row in rates) / 1e9
        share = rate / peak
        results.append({"what": name, "operations": kinds, "gflops": rate, "share": share})
        total = sum(kinds.values()) / 1e9
        print(f"{name:22} {total:6.3f} GFLOP {rate:8.1f} GFLOP {share:12.0%}")
        for kind, operations in sorted(kinds.items()):
            print(f"  {kind:20} {operations / 1e9:6.3f}")
    report("limit", repeats=options.repeats, peak_gflops=peak, results=results)


if __name__ == "__main__":
    main()
