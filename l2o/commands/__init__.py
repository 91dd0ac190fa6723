"""Command lines: parse, call, print."""

import sys
from importlib import import_module

from l2o.extras import require


def run(name: str, arguments: list[str] | None = None) -> None:
    """Runs a command and exits with its status; a package that is missing is one line and status 2.

    Args:
        name: "train" or "evaluate".
        arguments: Those behind the command's name, of this process's command line by default.
    """
    try:
        require("train" if name == "train" else "evaluate", f"l2o {name}")
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    import_module(f"l2o.commands.{name}").main(arguments)
