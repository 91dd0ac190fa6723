"""A whole `python train.py`, from its start to its end, in plain gradients.

    python benchmarks/whole_run.py -- --strategy choice --pool large --preset cpu
    python benchmarks/whole_run.py --every 5 -- --preset smoke --data digits

Options after -- are train.py's. As a machine's speed changes within the hours that it takes, the
run is halted every minute for as long as 20 plain gradients take, and each stretch between two
halts counts as its seconds, divided by those of a gradient at its two ends. Stretches are kept
beside the run directory: stopped with Ctrl-C, the same command goes on. Prints a line a stretch,
the sum, and one JSON line.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measuring import count, median_seconds, parser, plain_gradient, report

ROOT = Path(__file__).parents[1]


def stretches(
    process: subprocess.Popen, gradient: Callable[[], float], every: float
) -> Iterator[tuple[float, float]]:
    """Halts a process now and then until it ends.

    Args:
        process: A running one; if it is not waited for, it is asked to stop and waited for.
        gradient: Measures the seconds of a plain gradient.
        every: Seconds between two halts.

    Yields:
        Seconds of a stretch without its halts, and those of a gradient, the mean of its two ends.
    """
    before = gradient()
    try:
        while process.poll() is None:
            begun = time.perf_counter()
            with suppress(subprocess.TimeoutExpired):
                process.wait(every)
            process.send_signal(signal.SIGSTOP)
            spent, after = time.perf_counter() - begun, gradient()
            process.send_signal(signal.SIGCONT)
            yield spent, (before + after) / 2
            before = after
    finally:
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGINT)
        process.wait()


def main() -> None:
    command = parser(__doc__, repeats=False)
    command.add_argument("--every", type=count, default=60, metavar="SECONDS",
                         help="between two halts; default 60")  # fmt: skip
    command.add_argument("--output", type=Path, default=Path("runs/whole"), metavar="RUN",
                         help="the run directory; default runs/whole")  # fmt: skip
    command.add_argument("options", nargs="*", help="train.py's, after --; default none")
    chosen = command.parse_args()
    table, log = (Path(f"{chosen.output}.{kind}") for kind in ("stretches.csv", "log"))
    table.parent.mkdir(parents=True, exist_ok=True)
    compute = plain_gradient()
    compute()
    rows = list(csv.reader(table.open())) if table.exists() else []
    train = [sys.executable, str(ROOT / "train.py"), *chosen.options, "--output"]
    print(f"{'stretch':>7} {'seconds':>8} {'gradient':>11} {'so far':>11}")
    with table.open("a", buffering=1) as kept, log.open("a") as said:
        process = subprocess.Popen(
            [*train, str(chosen.output)], stdout=said, stderr=said,
            start_new_session=True,  # Ctrl-C is for this one, which passes it on
        )  # fmt: skip
        try:
            for row in stretches(process, lambda: median_seconds(compute), chosen.every):
                rows.append(row)
                csv.writer(kept).writerow(row)
                pg = sum(float(spent) / float(gradient) for spent, gradient in rows)
                print(f"{len(rows):7} {row[0]:6.1f} s {1e3 * row[1]:8.2f} ms {pg:8,.0f} pg",
                      flush=True)  # fmt: skip
        except KeyboardInterrupt:
            command.exit(130, "Stopped; the same command goes on.\n")
    if process.returncode:
        last = log.read_text().strip().split("\n")[-1]
        command.exit(process.returncode, f"error: train.py ended: {last}\n")
    hours = sum(float(spent) for spent, _ in rows) / 3600
    report("whole_run", options=chosen.options, result={"pg": pg, "hours": hours})


if __name__ == "__main__":
    main()
