"""How the cost of an inner step grows: one thing varied at a time.

    python benchmarks/growth.py                                # every sweep
    python benchmarks/growth.py batch devices                  # two of them
    python benchmarks/growth.py parameters --values 1e4 1e5    # some of its values

Distillation from Choice on the Train CNN, but: the sweep of parameters trains a dense network, 2
steps a meta-update; that of teachers has the mean of as many; that of the unroll counts its
beginning and warm-up too; that of devices shares 4 trajectories. Each case runs in a process of its
own; one that dies, as it does where memory runs out, leaves its row empty. Prints a table and one
JSON line; 1 pg is a plain gradient of the Train CNN at batch 128.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measuring import Case, alone, count, measure, parser, report

BASE = Case("distil", truncation=20)
SWEEPS = {
    "parameters": (replace(BASE, truncation=2), (10**4, 10**5, 10**6, 10**7)),
    "truncation": (BASE, (10, 20, 50, 100, 200)),
    "unroll": (BASE, (20, 100, 200, 500)),
    "teachers": (replace(BASE, kind="mean"), (1, 2, 4, 6)),
    "batch": (BASE, (32, 64, 128, 256, 512)),
    "meta_batch": (BASE, (1, 2, 4)),
    "devices": (replace(BASE, meta_batch=4), (1, 2, 4)),
}


def size(text: str) -> int:
    """A value of a sweep: "10000", or "1e4"."""
    try:
        value = float(text)
    except ValueError:
        value = 0.5
    return count(f"{value:.0f}" if value.is_integer() else text)


def main() -> None:
    command = parser(__doc__)
    sweeps = "; ".join(f"{name}: {', '.join(map(str, v))}" for name, (_, v) in SWEEPS.items())
    command.add_argument("sweep", nargs="*", help=f"default all. {sweeps}")
    command.add_argument("--values", type=size, nargs="+", metavar="V",
                         help="instead of those, for one sweep")  # fmt: skip
    options = command.parse_args()
    chosen = options.sweep or list(SWEEPS)
    if unknown := set(chosen) - set(SWEEPS):
        command.error(f"unknown sweep {', '.join(unknown)}; allowed: {', '.join(SWEEPS)}")
    if options.values and len(chosen) > 1:
        command.error("--values goes with one sweep alone")
    try:
        cases = [
            (name, value, replace(SWEEPS[name][0], **{name: value}))
            for name in chosen
            for value in options.values or SWEEPS[name][1]
        ]
    except ValueError as error:
        command.error(str(error))
    print(f"{'':10} {'':>10} {'step':>10} {'step':>9} {'first run':>9} {'peak':>9}")
    known, results = {}, []
    for name, value, case in cases:
        if case not in known:  # what is varied comes by its usual value in every sweep
            known[case] = tried(case, options.repeats)
        result = known[case]
        results.append({"sweep": name, "value": value} | asdict(case) | result)
        print(f"{name:10} {value:10,} {row(result)}", flush=True)
    report("growth", repeats=options.repeats, results=results)


def tried(case: Case, repeats: int) -> dict:
    """As `measure`, in a process of its own; empty if it dies, or memory does not suffice."""
    try:
        return alone(measure, case, repeats)
    except (BrokenProcessPool, MemoryError):
        return {}
    except Exception as error:  # TensorFlow's own, which this process does without
        if type(error).__name__ != "ResourceExhaustedError":
            raise
        return {}


def row(result: dict) -> str:
    """The measured part of a table's row."""
    if not result:
        return "the process died; out of memory?"
    return (
        f"{result['step_ms']:7.1f} ms {result['step_pg']:6.2f} pg {result['first_run_s']:7.1f} s "
        f"{result['peak_mb']:6.0f} MB"
    )


if __name__ == "__main__":
    main()
