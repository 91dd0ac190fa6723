"""Writes docs/commands.md from the commands' own parsers.

    python docs/reference.py

The page is kept in the repository, so that it can be read there; a test fails where it is stale.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

from l2o.amalgamation.curriculum import PRESETS
from l2o.commands import evaluate, train_options

PAGE = Path(__file__).parent / "commands.md"
HEAD = """\
# Commands

<!-- Written by docs/reference.py from the parsers: change those, then run it again. -->

What `python train.py --help` and `python evaluate.py --help` say. Both exit with status 0, with 2
for something you can mend (one line on stderr says what), and with 130 when stopped by Ctrl-C;
`train.py` with 1 where training diverged for good.
"""
SCHEDULE = ("truncation", "meta_batch", "period", "min_periods", "max_periods", "patience",
            "max_repeats", "tolerance", "validation_trajectories")  # fmt: skip
STAGES = ("unrolls", "alphas", "last_validation", "choice_unrolls", "choice_validation")


def page() -> str:
    """The whole page."""
    train, compare = map(_command, (train_options.parser(), evaluate.parser()))
    return "\n".join([HEAD, train, _presets(), compare])


def _presets() -> str:
    """The values of train.py's presets."""
    rows = []
    for field in SCHEDULE + STAGES:
        of = [p.schedule if field in SCHEDULE else p for p in PRESETS.values()]
        values = [getattr(preset, field) for preset in of]
        shown = (" ".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in values)
        rows.append(f"| `--{field.replace('_', '-')}` | {' | '.join(shown)} |")
    head = f"| option | {' | '.join(PRESETS)} |\n|---|{'---|' * len(PRESETS)}"
    return "\n".join(["**What the presets of train.py stand for**\n", head, *rows]) + "\n"


def _command(parser: argparse.ArgumentParser) -> str:
    groups = [g for g in parser._action_groups if g.title != "options" and g._group_actions]
    parts = [f"## {parser.prog}", _literal(parser.description)]
    parts += [_group(group) for group in groups]
    return "\n\n".join([*parts, _literal(parser.epilog)]) + "\n"


def _literal(text: str | None) -> str:
    return f"```text\n{text}\n```"


def _group(group: argparse._ArgumentGroup) -> str:
    rows = [f"| {_flag(action)} | {_cell(action.help)} |" for action in group._group_actions]
    title = str(group.title)
    title = title[0].upper() + title[1:]
    return "\n".join([f"**{title}**\n", "| option | meaning |", "|---|---|", *rows])


def _flag(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else f" {action.metavar}"
    return f"`{action.option_strings[-1]}{value}{' ...' * (action.nargs == '+')}`"


def _cell(text: str | None) -> str:
    return str(text).replace("%%", "%").replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page())
