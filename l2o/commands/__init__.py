"""Command lines: parse, call, print."""

import sys
from importlib import import_module

from l2o.extras import require


def run(name: str, *arguments) -> None:
    """Runs a command and exits with its status; a package that is missing is one line and status 2.

    Args:
        name: Of the command, a module of this package.
        *arguments: As its `main` takes them.
    """
    try:
        require("evaluate" if name in ("evaluate", "report") else "train", f"l2o {name}")
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    import_module(f"l2o.commands.{name}").main(*arguments)
