"""Writes docs/commands.md from the commands' own parsers and the settings' docstrings.

    python docs/reference.py

The page is kept in the repository, so that it can be read there; a test fails where it is stale.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import re
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

from l2o.amalgamation.curriculum import Curriculum
from l2o.amalgamation.presets import CURRICULA
from l2o.amalgamation.settings import CHOICES, PARTS
from l2o.commands import evaluate, report, train_options, tune

PAGE = Path(__file__).parent / "commands.md"
HEAD = """\
# Commands

<!-- Written by docs/reference.py from parsers and docstrings: change those, then run it again. -->

What `l2o train --help` and so on say, and every setting of a training. `python -m l2o` is `l2o`; in
a checkout `python train.py` is `l2o train`, and `python evaluate.py` is `l2o evaluate`. All exit
with status 0, with 2 for something you can mend (one line on stderr says what), and with 130 when
stopped by Ctrl-C; `l2o train` with 1 where training diverged for good.
"""
SETTINGS = """\
## Settings of a training

Each by its flag of `l2o train`, where it has one, by `--set NAME=VALUE` otherwise, and by its name
in `l2o.amalgamate`, which takes `scheme` as `strategy` and `teachers` as `pool`. Values are
separated by spaces after a flag and by commas after `--set`. A preset is a whole set of them; the
defaults are those of `paper`, with what `cpu` and `smoke` have in their place.

| setting | flag | default | meaning |
|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    train, *others = (module.parser() for module in (train_options, tune, evaluate, report))
    return "\n".join([HEAD, _command(train), _settings(train), *map(_command, others)])


def _settings(parser: argparse.ArgumentParser) -> str:
    """All settings, in the order of their dataclasses."""
    flags = {action.dest: action.option_strings[-1] for action in parser._actions}
    rows = []
    for part in PARTS:
        meanings = _attributes(part)
        for field in dataclasses.fields(part):
            if field.name in CHOICES:
                name = field.name
                flag = f"`{flags[name]}`" if name in flags else ""
                default = _default(part, field)
                rows.append(f"| `{name}` | {flag} | {default} | {_cell(meanings[name])} |")
    return SETTINGS + "\n".join(rows) + "\n"


def _attributes(part: type) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say of each field."""
    found: dict[str, str] = {}
    for kind in part.__mro__[:-1]:
        text = inspect.getdoc(kind) or ""
        section = re.search(r"Attributes:\n(.*?)(?=\n\n|\Z)", text, re.DOTALL)
        for entry in re.split(r"\n {4}(?=\w)", f"\n{section[1]}")[1:] if section else []:
            name, meaning = entry.split(":", 1)
            found.setdefault(name, " ".join(meaning.split()))
    return found


def _default(part: type, field: dataclasses.Field) -> str:
    """A field's default, and where presets have others, theirs."""
    if part is not Curriculum:
        unset = field.default in (None, dataclasses.MISSING)
        return "" if unset else _shown(field.default)
    paper, *others = CURRICULA.items()
    own = getattr(paper[1], field.name)
    differing = [(n, value) for n, c in others if (value := getattr(c, field.name)) != own]
    return "; ".join([_shown(own), *(f"{name} {_shown(value)}" for name, value in differing)])


def _shown(value: object) -> str:
    return " ".join(map(_shown, value)) if isinstance(value, tuple) else f"{value}"


def _command(parser: argparse.ArgumentParser) -> str:
    groups = [g for g in parser._action_groups if g.title != "options" and g._group_actions]
    parts = [f"## {parser.prog}", _literal(parser.description)]
    parts += [_group(group) for group in groups]
    return "\n\n".join(parts + [_literal(parser.epilog)] * bool(parser.epilog)) + "\n"


def _literal(text: str | None) -> str:
    return f"```text\n{text}\n```"


def _group(group: argparse._ArgumentGroup) -> str:
    rows = [f"| {_flag(action)} | {_cell(action.help)} |" for action in group._group_actions]
    title = str(group.title)
    title = title[0].upper() + title[1:]
    return "\n".join([f"**{title}**\n", "| option | meaning |", "|---|---|", *rows])


def _flag(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else f" {action.metavar}"
    name = "".join(action.option_strings[-1:])
    return f"`{f'{name}{value}'.strip()}{' ...' * (action.nargs == '+')}`"


def _cell(text: str | None) -> str:
    return str(text).replace("%%", "%").replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page())
