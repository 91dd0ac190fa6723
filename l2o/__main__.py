"""The command `l2o`, which is `python -m l2o` as well."""

from __future__ import annotations

import os
import sys

import l2o
from l2o.commands import run

COMMANDS = ("train", "tune", "evaluate", "report")
HELP = """\
usage: l2o COMMAND [OPTION ...]

  l2o train      meta-trains an optimizer from a pool of teachers
  l2o tune       searches the teachers' learning rates
  l2o evaluate   fits problems with optimizers, and compares them
  l2o report     makes tables, figures and a page of results

l2o COMMAND --help says how."""


def main(arguments: list[str] | None = None) -> None:
    """Runs a command, which exits by itself; status 2 where there is none of that name.

    Args:
        arguments: Those of the process by default.
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(HELP)
    elif name == "--version":
        print(l2o.__version__)
    elif name in COMMANDS:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # in the processes of --jobs
        run(name, rest, f"l2o {name}")
    else:
        allowed = ", ".join(COMMANDS)
        print(f"error: unknown command '{name}'; allowed: {allowed}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":  # the processes of --jobs import this file
    main()
