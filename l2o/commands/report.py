"""`l2o report`: what results say, all of them or some."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from l2o.commands.flags import ALL
from l2o.commands.terminal import Parser, count, run_command
from l2o.errors import UserError
from l2o.evaluation.baselines import ORACLE
from l2o.evaluation.made import read_made
from l2o.evaluation.results import Result, distinct, read_results
from l2o.evaluation.search import TRIAL
from l2o.evaluation.store import read_cards, read_samples
from l2o.policies.shipped import did_you_mean
from l2o.reports.comparison import evaluations, summarize
from l2o.reports.contents import write_report
from l2o.reports.text import shares_table
from l2o.rules import TEACHERS

DESCRIPTION = """\
Writes tables, figures and a page of results, all of them or some.

  {prog} results/cpu
  {prog} results/cpu --optimizer choice-large adam
  {prog} results/cpu results/more --problem mnist_cnn --output page

Names are those in its tables: a replicate is NAME/3, and NAME alone stands for
all of it where they are NAME+wd0.0003 and so on."""


def parser(prog: str = "l2o report") -> Parser:
    """The command line.

    Args:
        prog: How the command was called.
    """
    # fmt: off
    p = Parser(prog, DESCRIPTION)
    g = p.add_argument_group("what it is of; default everything")
    g.add_argument("results", nargs="+", type=Path, metavar="RESULTS",
                   help="tables of results, or directories with one")
    g.add_argument("--problem", nargs="+", metavar="NAME", help="results on these problems")
    g.add_argument("--optimizer", nargs="+", metavar="NAME", help="results of these optimizers")
    g.add_argument("--epochs", type=count, metavar="E", help="results of fits of this length")
    g = p.add_argument_group("where it goes")
    g.add_argument("--output", type=Path, metavar="DIR",
                   help="default report/ in the first directory, or selection/ for a part; files "
                   "there of the same names are replaced")
    # fmt: on
    return p


def main(arguments: list[str] | None = None, prog: str = "l2o report") -> None:
    """Runs the command; exits with status 0, 2 for a user's error."""
    run_command(lambda: _main(parser(prog).parse_args(arguments)))


def _main(options: argparse.Namespace) -> int:
    folders = [path if path.is_dir() else path.parent for path in options.results]
    read_made(*folders)  # first: it says why two tables differ
    results = read_results(*options.results)
    if not results:
        raise UserError(f"{', '.join(map(str, options.results))}: no results yet")
    results = counted(results)
    chosen = _chosen(results, options)
    selection = _selection(options) if chosen != results else ""
    cards, samples = read_cards(folders), read_samples(folders)
    output = options.output or folders[0] / ("selection" if selection else "report")
    try:
        page, *files = write_report(chosen, output, cards, samples, selection)
    except OSError as error:
        raise UserError(f"Cannot write {output}: {error.strerror}") from error
    print(shares_table(summarize(chosen)))
    print(f"Written: {page} and {len(files)} files beside it")
    return 0


def counted(results: Sequence[Result]) -> list[Result]:
    """The results of each fit once, without those of trials; says how many that leaves out."""
    trials = {r.key for r in results if r.optimizer.startswith(TRIAL)}
    if trials:
        print(f"Trials of searches, which are in the table alone: {len(trials)}")
        results = [r for r in results if r.key not in trials]
    found = distinct(results)
    if left_out := len({r.key for r in results}) - len({r.key for r in found}):
        print(f"Note: evaluations left out, their seeds being there as other repeats: {left_out}")
    return found


def _selection(options: argparse.Namespace) -> str:
    """The flags that `_chosen` follows, as they were given; "" if none was."""
    given = {name: getattr(options, name) for name in ("problem", "optimizer", "epochs")}
    return " ".join(
        f"--{name} {' '.join(value) if isinstance(value, list) else value}"
        for name, value in given.items()
        if value
    )


def _chosen(results: list[Result], options: argparse.Namespace) -> list[Result]:
    """The results that --problem, --optimizer and --epochs name, where they are given."""
    epochs = [str(options.epochs)] if options.epochs else []
    results = _named(results, "problem", options.problem or [], lambda r: [r.problem, ALL])
    results = _named(results, "epochs", epochs, lambda r: [str(r.epochs)])
    labels = {e.key: e.label for e in evaluations(results)}

    def names(r: Result) -> list[str]:
        if r.optimizer in TEACHERS:
            return [r.optimizer, ORACLE]
        return [*dict.fromkeys((r.optimizer, labels[r.key])), _replicate(r)]

    there = {name for r in results for name in (r.optimizer, _replicate(r))}
    optimizers = _whatever_is_added(options.optimizer or [], there)
    chosen = []
    for r in _named(results, "optimizer", optimizers, names):
        if _replicate(r) in optimizers:  # a line of its own, not pooled with other replicates
            chosen.append(replace(r, optimizer=_replicate(r)))
        if not optimizers or not {*names(r)}.isdisjoint({*optimizers} - {_replicate(r)}):
            chosen.append(r)
    return chosen


def _whatever_is_added(words: Sequence[str], there: set[str]) -> list[str]:
    """The words, but for a name that only has results as NAME+wd0.0003 and so on, all of those."""
    found = []
    for word in words:
        name, *number = word.split("/")
        longer = [n for n in sorted(there)
                  if n.startswith(f"{name}+") and n.split("/")[1:] == number]  # fmt: skip
        found += [word] if word in there or not longer else longer
    return found


def _replicate(r: Result) -> str:
    return f"{r.optimizer}/{r.replicate}"


def _named(
    results: list[Result], flag: str, words: Sequence[str], names: Callable[[Result], list[str]]
) -> list[Result]:
    """The results that one of the words names; all if there are no words."""
    there = dict.fromkeys(name for r in results for name in names(r))
    for word in words:
        if word not in there:
            raise UserError(f"--{flag}: there are no results of {word}. "
                            f"{did_you_mean(word, there)}Allowed: {', '.join(there)}")  # fmt: skip
    return [r for r in results if not words or not set(words).isdisjoint(names(r))]
