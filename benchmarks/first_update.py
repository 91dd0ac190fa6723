"""Process start to first meta-update: a real `python train.py`, until its table has a row.

    python benchmarks/first_update.py
    python benchmarks/first_update.py -- --preset smoke --data digits --problem mnist_mlp

Options after -- are train.py's. Each repeat is a new process with a run directory of its own, and
is ended as soon as updates.csv has its first row. "imported" is a process that imports everything,
says its --help and ends; "began" is when the run directory is there, that is with data and network,
before anything is traced. The first repeat may find files that are not yet in memory. Prints a
table and one JSON line.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measuring import parser, report, seconds

ROOT = Path(__file__).parents[1]
PAUSE = 0.01  # seconds between two looks at the run directory


class TrainError(Exception):
    """train.py ended before its first meta-update."""


def first_update(options: list[str], output: Path) -> tuple[float, float]:
    """Seconds from the start of a process until its run directory and its first update are there.

    Raises:
        TrainError: If the process ends before.
    """
    command = [sys.executable, str(ROOT / "train.py"), *options, "--output", str(output)]
    began, begun = 0.0, time.perf_counter()
    with open(output.with_suffix(".log"), "w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while not _rows(output / "updates.csv"):
                if not began and (output / "config.json").exists():
                    began = time.perf_counter() - begun
                if process.poll() is not None:
                    log.seek(0)
                    said = log.read().split("\n")
                    raise TrainError(f"train.py ended: {' '.join(said[-3:]).strip()}")
                time.sleep(PAUSE)
            return began, time.perf_counter() - begun
        finally:
            process.kill()
            process.wait()


def import_alone() -> None:
    """A process that imports what train.py does, and ends."""
    command = [sys.executable, str(ROOT / "train.py"), "--help"]
    subprocess.run(command, capture_output=True, check=True)


def _rows(table: Path) -> int:
    """Whole rows below the header."""
    return table.read_text().count("\n") - 1 if table.exists() else 0


def main() -> None:
    command = parser(__doc__)
    command.add_argument("options", nargs="*", help="train.py's, after --; default none")
    chosen = command.parse_args()
    rows = []
    print(f"{'':8} {'imported':>9} {'began':>9} {'first update':>12}")
    for k in range(chosen.repeats):
        imported = seconds(import_alone)
        with tempfile.TemporaryDirectory() as directory:
            try:
                rows.append((imported, *first_update(chosen.options, Path(directory) / "run")))
            except TrainError as error:
                command.exit(2, f"error: {error}\n")
        print(f"{k + 1:<8} {_line(rows[-1])}", flush=True)
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    print(f"{'median':8} {_line(medians)}")
    names = ("imported_s", "began_s", "first_update_s")
    result = dict(zip(names, medians, strict=True)) | {"each_s": [row[-1] for row in rows]}
    report("first_update", repeats=chosen.repeats, options=chosen.options, result=result)


def _line(row) -> str:
    return f"{row[0]:7.1f} s {row[1]:7.1f} s {row[2]:10.1f} s"


if __name__ == "__main__":
    main()
