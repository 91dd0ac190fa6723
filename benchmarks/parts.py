"""Where the time of a distillation step goes: each part measured alone.

    python benchmarks/parts.py
    python benchmarks/parts.py --truncation 20 --repeats 3

RNNProp on the Train CNN, distilled from a Choice policy over the large pool, second order. Every
part is a call of its own, which costs something too, and saves nothing that parts share: their sum
is only near to the whole step, which is measured beside them. 1 pg is a plain gradient. Prints a
table and one JSON line.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measuring import (
    GRADIENTS,
    Case,
    add_truncation,
    amalgamation,
    examples,
    parser,
    plain_gradient,
    report,
    seconds,
    unroll,
)

PLAIN = "plain gradient"


class Part(NamedTuple):
    """How often an inner step has a part, and what runs it once."""

    times: float
    run: Callable[[], object]


def parts(case: Case) -> dict[str, Part]:
    """The parts of a distillation step."""
    import tensorflow as tf

    from l2o.amalgamation.losses import log_distance
    from l2o.amalgamation.recompute import Recomputed, gradients, recomputed_gradient
    from l2o.amalgamation.unroll import begin
    from l2o.rules import get_pool
    from l2o.tasks.batches import batches, entry
    from l2o.tasks.task import Scaled, loss_and_gradient

    tf.get_logger().setLevel("ERROR")  # it warns of functions that are much alike
    job, data, key = amalgamation(case), examples(), [0, 0, 0]
    task, layout, trajectory = job.task, job.task.layout, begin(job, key, True)
    (parameters, carried, state), scale = trajectory.student, trajectory.scale
    clean, weights = parameters * scale, job.rule.initial_weights(0)
    pool = [(rule, rule.initial_state(layout)) for rule in get_pool("large")]

    def load(steps: int):
        return tf.nest.map_structure(tf.constant, batches(data, key, case.batch, 0, steps))

    batch = entry(load(1), 0)
    gradient = loss_and_gradient(task, clean, carried, batch)[1]

    def see(parameters):
        return recomputed_gradient(Scaled(task, scale), parameters, carried, batch)

    def update(rule, weights, state, gradient=gradient):
        return Recomputed(rule).update(weights, gradient, clean, state, layout)

    def policy(weights, gradient, state):
        return update(job.rule, weights, state, gradient)

    def distance(parameters):
        return log_distance(parameters, (clean - gradient)[None] / scale)

    def backward(function, *inputs):
        ones = tf.nest.map_structure(tf.ones_like, tf.nest.flatten(function(*inputs)))
        return lambda: gradients(function, inputs, ones)  # the forward pass is pruned

    def call(function: Callable) -> Callable:
        traced = tf.function(lambda: [x for x in tf.nest.flatten(function()) if x is not None])
        return lambda: traced()[0].numpy()

    teacher, beside = job.teachers[0], trajectory.teachers[0]
    calls = {
        "gradient of the network": (2, lambda: loss_and_gradient(task, clean, carried, batch)),
        "second-order part": (1, backward(see, parameters)),
        "policy, forward": (2, lambda: policy(weights, gradient, state)),
        "policy, backward": (1, backward(policy, weights, gradient, state)),
        "teacher's policy": (1, lambda: update(*teacher, beside.state)),
        "distance, forward": (1, lambda: distance(parameters)),
        "distance, backward": (1, backward(distance, parameters)),
        "loss at the start": (1, lambda: task.loss(clean, carried, batch, True)[0]),
        "six teachers": (0, lambda: [update(rule, [], own) for rule, own in pool]),
    }
    traced = {name: Part(times, call(function)) for name, (times, function) in calls.items()}
    loading = Part(1 / case.truncation, lambda: load(case.truncation))
    return traced | {"data of a truncation": loading}


def side_by_side(runs: dict[str, Callable]) -> dict[str, float]:
    """Median seconds of each, called in turns: other load on the machine hits all."""
    taken = [{name: seconds(run) for name, run in runs.items()} for _ in range(GRADIENTS)]
    return {name: statistics.median(each[name] for each in taken) for name in runs}


def main() -> None:
    command = parser(__doc__)
    add_truncation(command)
    options = command.parse_args()
    case = Case("distil", truncation=options.truncation)
    whole, pieces = unroll(case), {PLAIN: Part(0, plain_gradient())} | parts(case)
    runs = {name: part.run for name, part in pieces.items()}
    for run in (whole, whole, *runs.values()):
        run()
    rounds = [
        side_by_side(runs) | {"whole step": seconds(whole) / case.steps}
        for _ in range(options.repeats)
    ]
    for taken in rounds:
        taken["sum"] = sum(part.times * taken[name] for name, part in pieces.items())
    print(f"{'':22} {'once':>10} {'once':>9} {'a step':>7} {'a step':>9}")
    results = []
    for name in rounds[0]:
        ms = 1e3 * statistics.median(taken[name] for taken in rounds)
        pg = statistics.median(taken[name] / taken[PLAIN] for taken in rounds)
        times = pieces[name].times if name in pieces else 1
        results.append({"part": name, "ms": ms, "pg": pg, "times": times})
        print(f"{name:22} {ms:7.2f} ms {pg:6.2f} pg {times:6g}x {times * pg:6.2f} pg")
    report("parts", repeats=options.repeats, truncation=case.truncation, results=results)


if __name__ == "__main__":
    main()
