"""Command lines: their arguments, one-line errors."""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence

from l2o.errors import UserError
from l2o.policies.shipped import did_you_mean
from l2o.problems.dataset import ProblemError

STOPPED = 130  # the exit status of what a signal ended
_MOST = 10**12  # of anything that is counted


def run_command(command: Callable[[], int]) -> None:
    """Runs a command and exits with its status; what the user can mend is one line and status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal need not have an epsilon
            stream.reconfigure(errors="replace")
    try:
        status = command()
    except (ProblemError, UserError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        status = STOPPED
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except OSError as error:  # a full disk, most of all
        print(f"error: {one_line(str(error))}. What had been saved is kept", file=sys.stderr)
        status = 2
    sys.exit(status)


class Parser(argparse.ArgumentParser):
    """Argparse with errors of one line, and examples kept as they are written.

    Args:
        prog: How the command is called, for which "{prog}" stands in the texts.
        description: What it does.
        epilog: Examples.
    """

    def __init__(self, prog: str | None = None, description: str = "", epilog: str = ""):
        super().__init__(
            prog=prog,
            usage=prog and f"{prog} [OPTION ...]",
            description=description.replace("{prog}", str(prog)),
            epilog=epilog.replace("{prog}", str(prog)),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str):
        self.exit(2, f"error: {one_line(message)} (see --help)\n")


def again(fresh: bool) -> str:
    """What goes on with something that was stopped."""
    return "the same command" + " without --fresh" * fresh


def one_line(text: str) -> str:
    """A message whose line breaks, of a file's name perhaps, are spaces."""
    return " ".join(text.split())


def known(names: Sequence[str]) -> Callable[[str], str]:
    """An argument that must be one of `names`."""

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(unknown(text, names, ", ".join(names)))
        return text

    return parse


def unknown(name: str, names: Iterable[str], allowed: str) -> str:
    """What to say of a name that is not among those there are, which `allowed` has in words."""
    return f"unknown name '{name}'. {did_you_mean(name, names)}Allowed: {allowed}"


def count(text: str) -> int:
    """An argument that must be a whole number of at least 1."""
    return _whole(text, 1)


def devices(text: str) -> int | tuple[str, ...]:
    """An argument that says how many devices, or names GPUs: "2", or "gpu:0,gpu:2"."""
    names = tuple(text.split(","))
    if all(name.startswith("gpu:") and name[4:].isdecimal() for name in names):
        return names
    if text.isdecimal() and int(text):
        return int(text)
    raise argparse.ArgumentTypeError(
        f"must be a whole number of at least 1, or GPUs as gpu:0,gpu:2, not '{text}'"
    )


def whole(text: str) -> int:
    """An argument that must be a whole number of at least 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(
            f"must be a whole number of at least {least}, not '{text}'"
        )
    if value > _MOST:
        raise argparse.ArgumentTypeError(f"must be at most {_MOST:,}, not '{text}'")
    return value


def positive(text: str) -> float:
    """An argument that must be a finite number above 0."""
    return _number(text, lambda value: 0 < value < math.inf, "a number above 0")


def weight(text: str) -> float:
    """An argument that must be a finite number of at least 0."""
    return _number(text, lambda value: 0 <= value < math.inf, "a number of at least 0")


def fraction(text: str) -> float:
    """An argument that must be a number of at least 0 and below 1."""
    return _number(text, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def _number(text: str, allowed: Callable[[float], bool], what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not allowed(value):
        raise argparse.ArgumentTypeError(f"must be {what}, not '{text}'")
    return value
