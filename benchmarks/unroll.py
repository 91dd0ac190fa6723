"""Time and memory of the unroll, in plain gradients of the Train CNN measured in the same run.

    python benchmarks/unroll.py                                # every case, as train.py has it
    python benchmarks/unroll.py distil minmax-large            # two of them
    python benchmarks/unroll.py distil --meta-batch 4          # time is of one trajectory's step
    python benchmarks/unroll.py distil --first-order --recompute 0

Each case runs in a process of its own, so that its peak memory is its own. Batches are noise of
MNIST's shape, which costs what MNIST costs. Prints a table and one JSON line.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measuring import Case, add_truncation, alone, count, measure, parser, report

CASES = {
    "student": (Case("student"), "RNNProp on the meta loss alone"),
    "choice": (Case("choice"), "the Choice policy, large pool, on the meta loss"),
    "distil": (Case("distil"), "RNNProp distilled from a Choice policy, large pool"),
    "minmax-small": (Case("minmax", teachers=2), "RNNProp, min-max, small pool"),
    "minmax-large": (Case("minmax"), "RNNProp, min-max, large pool"),
    "mean-small": (Case("mean", teachers=2), "RNNProp, mean, small pool"),
    "mean-large": (Case("mean"), "RNNProp, mean, large pool"),
    "validation": (Case("validation"), "RNNProp, no meta-gradient"),
}


def main() -> None:
    command = parser(__doc__)
    cases = "; ".join(f"{name}: {text}" for name, (_, text) in CASES.items())
    command.add_argument("case", nargs="*", help=f"default all. {cases}")
    add_truncation(command)
    command.add_argument("--meta-batch", type=count, default=1, metavar="M",
                         help="trajectories a meta-update; default 1")  # fmt: skip
    command.add_argument("--recompute", type=partial(count, least=0), default=10, metavar="S",
                         help="as train.py's; default 10")  # fmt: skip
    command.add_argument("--first-order", action="store_true",
                         help="no meta-gradient through the network's gradient")  # fmt: skip
    options = vars(command.parse_args())
    chosen, repeats = options.pop("case") or list(CASES), options.pop("repeats")
    if unknown := set(chosen) - set(CASES):
        command.error(f"unknown case {', '.join(unknown)}; allowed: {', '.join(CASES)}")
    print(f"{'case':14} {'gradient':>9} {'step':>9} {'step':>9} {'first run':>9} {'peak':>9}")
    results = []
    for name in chosen:
        case = replace(CASES[name][0], **options)
        result = alone(measure, case, repeats)
        results.append({"case": name} | asdict(case) | result)
        print(
            f"{name:14} {result['gradient_ms']:6.1f} ms {result['step_ms']:6.1f} ms "
            f"{result['step_pg']:6.2f} pg {result['first_run_s']:7.1f} s "
            f"{result['peak_mb']:6.0f} MB",
            flush=True,
        )
    report("unroll", repeats=repeats, results=results)


if __name__ == "__main__":
    main()
