"""The report of results: tables, figures, Markdown, and one HTML page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np

from l2o.evaluation.results import Result
from l2o.policies.checkpoint import doubts
from l2o.reports import targets, versus
from l2o.reports.comparison import (
    Case,
    Summary,
    difference,
    no_oracle,
    oracle,
    oracle_name,
    summarize,
    winner,
)
from l2o.reports.figures import Drawing, drawings, perturbation
from l2o.reports.page import (
    COSTS,
    Block,
    Column,
    Notice,
    Picture,
    Remarks,
    Section,
    Table,
    Value,
    csv_text,
    html,
    markdown,
)
from l2o.reports.style import png
from l2o.reports.text import notes
from l2o.rules import WarmUp
from l2o.runs.files import write_atomically

TITLE = "Evaluation of optimizers"
Cards = Mapping[str, Mapping[str, Any]]


def write_report(
    results: Iterable[Result],
    output: Path | str,
    cards: Cards = {},  # noqa: B006  (read only)
    samples: Mapping[str, np.ndarray] = {},  # noqa: B006
    selection: str = "",
) -> list[Path]:
    """Writes what results say: report.md, report.html, tables/*.csv and figures/*.png.

    Args:
        results: Rows of results.
        output: A directory; files of the same names are replaced.
        cards: Policies' cards by their origin, for what they cost and how they were trained.
        samples: Images by dataset, uint8 [n, height, width, channels].
        selection: What was chosen from more results, for the reader to know; "" for nothing.

    Returns:
        The files, the page first.

    Raises:
        ValueError: If there are no results.
    """
    cases, output = summarize(results), Path(output)
    if not cases:
        raise ValueError("There are no results to report")
    figures = drawings(cases, cards, samples)
    sections = report(cases, figures, cards, selection)
    blocks = [block for section in sections for block in section.blocks]
    tables: dict[str, list[Table]] = defaultdict(list)
    for block in blocks:
        if isinstance(block, Table):
            tables[block.file].append(block)
    files: dict[str, str | bytes] = {
        "report.html": html(TITLE, sections),
        "report.md": markdown(TITLE, sections),
        **{f"tables/{name}.csv": csv_text(group) for name, group in tables.items()},
        **{f"figures/{b.file}.png": b.png for b in blocks if isinstance(b, Picture)},
    }
    for name, content in files.items():
        write_atomically(output / name, content)
    return [output / name for name in files]


def report(
    cases: Mapping[Case, Sequence[Summary]],
    figures: Sequence[Drawing],
    cards: Cards = {},  # noqa: B006
    selection: str = "",
) -> list[Section]:
    """The report's sections, figures drawn; `write_report` says what the arguments are."""
    sections = [Section("Overview", _overview(cases, cards, selection))]
    if ahead := versus.blocks(cases):
        sections.append(Section("Policies and baselines of today", ahead))
    if soon := targets.blocks(cases):
        sections.append(Section(f"Time to the last loss of {targets.REFERENCE}", soon))
    for f in figures:
        if f.draw:
            sections.append(Section(f.title, [Picture(f.file, f.title, f.caption, png(f.draw))]))
    private = any(isfinite(s.epsilon) for found in cases.values() for s in found)
    sections += [Section(case.title, _case(case, found, private)) for case, found in cases.items()]
    sections.append(Section("Stability", _stability(cases)))
    costs, inputs = _costs(cases, cards), _inputs(cases, cards)
    sections += [Section(title, [table]) for title, table in
                 (("Table 4: training cost, until the policy was saved", costs),
                  ("Table 6: input perturbation", inputs))
                 if table.rows]  # fmt: skip
    lacking = [f"{f.title}: needs {f.lacking}." for f in figures if not f.draw]
    if not soon:
        lacking.append(f"Time to the last loss of {targets.REFERENCE}: {targets.NEEDS}.")
    if not costs.rows:
        lacking.append("Table 4, training cost: needs the policies' cards.")
    if not inputs.rows:
        lacking.append("Table 6, input perturbation: needs policies trained under it.")
    if lacking:
        sections.append(Section("What these results do not contain", [Remarks(lacking)]))
    return sections


def _overview(cases, cards: Cards, selection: str) -> list[Block]:
    evaluations = [(s.label, e) for found in cases.values() for s in found for e in s.evaluations]
    labels = list(dict.fromkeys(s.label for found in cases.values() for s in found))
    warnings = [
        f"{case.problem} ran on substituted data: {case.used}. Its numbers are not "
        f"{case.in_place_of}'s."
        for case in cases
        if case.in_place_of
    ]
    warnings += [
        f"{case.problem}: {s.diverged} of {len(s.evaluations)} evaluations of {s.label} diverged."
        for case, found in cases.items()
        for s in found
        if s.diverged
    ]
    warnings += [
        f"{case.title}: {steps} steps are no more than the usual warm-up, SGD for whatever has it."
        for case, found in cases.items()
        if (steps := max(e.rows[-1].steps for s in found for e in s.evaluations)) <= WarmUp.steps
    ]
    warnings += dict.fromkeys(
        f"{label} was trained {doubt}."
        for label, e in evaluations
        for doubt in doubts(cards.get(e.key.origin, {}))
    )
    of_name: dict[str, dict[str, None]] = defaultdict(dict)
    for label, e in evaluations:
        if label != e.key.optimizer:
            of_name[e.key.optimizer][label] = None
    warnings += [
        f"{', '.join(group)} were all called {name}: a policy that was trained anew, for example."
        for name, group in of_name.items()
    ]
    stand_ins = defaultdict(list)
    for case, found in cases.items():
        if no_oracle(found):
            stand_ins[no_oracle(found)].append(case.title)
    warnings += [
        f"{', '.join(problems)}: {reason}; the best of what there is stands in for it."
        for reason, problems in stand_ins.items()
    ]
    rows = []
    for case, found in cases.items():
        best, reference = winner(found), oracle(found)
        d = difference(best, reference) if reference and best is not reference else None
        rows.append([case.title, best.label, best.performance.mean, best.test_accuracy * 100,
                     reference.label if reference else "none",
                     reference.performance.mean if reference else nan,
                     reference.test_accuracy * 100 if reference else nan,
                     *((d.mean, (d.low, d.high)) if d else (nan, (nan, nan))),
                     *best.costs, *(reference.costs if reference else (nan, nan))])  # fmt: skip
    name = "best teacher" if stand_ins else "oracle"
    columns = [Column("problem"), Column("best optimizer"), Column("log validation loss"),
               Column("test accuracy, %", 2), Column(name), Column(f"{name}'s loss"),
               Column(f"{name}'s accuracy, %", 2), Column("paired difference"),
               Column("95% interval", interval=True), *COSTS,
               *(Column(f"{name}'s {cost.name}", 1) for cost in COSTS)]  # fmt: skip
    return [
        *([Notice(warnings)] if warnings else []),
        *([f"A selection of the results there are: {selection}."] if selection else []),
        f"Evaluations: {len(evaluations)}, of {len(labels)} optimizers in {len(cases)} "
        f"{'setting' if len(cases) == 1 else 'settings'} (a setting is a problem, its data and a "
        "number of epochs). Losses are cross-entropy in nats (of your own problems, what you "
        "gave), their logarithms natural; lower is better. Seconds are those of one fit on "
        "average, by the clock and of the processor, without measuring. The epoch with the best "
        "validation loss is chosen, and test is reported at that epoch; the best log test loss "
        "alone is of the epoch that is best on test, as Huang et al. report. The oracle is, for "
        "each problem, the tuned teacher with the best mean on validation. The best optimizer "
        "below, of those with all of the oracle's seeds, is picked by the very losses it is "
        "compared by, which flatters it.",
        "Diverged evaluations are counted and named; they are in no mean, interval, stability or "
        "paired difference. In time to target they never reached what they had not reached "
        "before. The same goes for evaluations whose loss fell below zero, where it has no "
        "logarithm. A teacher with such a one is not chosen as oracle.",
        Table("overview", columns, rows),
        *_counts(cases, labels),
    ]


def _counts(cases, labels: Sequence[str]) -> list[Block]:
    """How many evaluations there are of what; nothing where every optimizer is in every case."""
    counts = {(case, s.label): len(s.evaluations) for case, found in cases.items() for s in found}
    if len(counts) == len(cases) * len(labels):
        return []
    rows = [[label, *(counts.get((case, label), nan) for case in cases)] for label in labels]
    columns = [Column("optimizer"), *(Column(case.title) for case in cases)]
    return ["Evaluations of each optimizer in each setting:", Table("evaluations", columns, rows)]


def _prefix(case: Case) -> dict[str, str | int]:
    """What tells a case's lines in a CSV file from another's."""
    return {"problem": case.problem, "data": case.data, "in_place_of": case.in_place_of,
            "epochs": case.epochs}  # fmt: skip


def _case(case: Case, found: Sequence[Summary], private: bool) -> list[Block]:
    prefix = _prefix(case)
    best = oracle(found)
    blocks: list[Block] = []
    if case.in_place_of:
        blocks.append(Notice([f"Data really used: {case.used}."]))
    columns = [Column("optimizer"), Column("n"), Column("diverged"), Column("log validation loss"),
               Column("95% interval", interval=True), Column("log test loss"),
               Column("best log test loss"), Column("final log validation loss"),
               Column("final log training loss"),
               Column("validation accuracy, %", 2), Column("test accuracy, %", 2),
               *COSTS, Column("log validation loss at equal CPU seconds"), Column("ε")]  # fmt: skip
    name = f" ({oracle_name(found)})"
    rows: list[list[Value]] = [
        [s.label + name * (s is best), len(s.evaluations), s.diverged,
         s.performance.mean, (s.performance.low, s.performance.high), s.test,
         s.best_test, s.final, s.final_train,
         100 * s.validation_accuracy, 100 * s.test_accuracy, *s.costs, s.within,
         s.epsilon if isfinite(s.epsilon) else nan]
        for s in found
    ]  # fmt: skip
    if not private:  # in all tables or in none: they share a file
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    blocks.append(Table("results", columns, rows, prefix))
    if notes(found):
        blocks.append(Remarks(notes(found)))
    if best is not None and len(found) > 1:
        blocks += _against_oracle(found, best, prefix)
    blocks += targets.case_blocks(found, prefix)
    return blocks


def _against_oracle(found, best: Summary, prefix) -> list[Block]:
    pairs = [(s, difference(s, best)) for s in found if s is not best]
    rows = [[s.label, d.mean, (d.low, d.high), d.pairs, d.unpaired, *s.costs] for s, d in pairs]
    columns = [Column("optimizer"), Column("difference"), Column("95% interval", interval=True),
               Column("pairs"), Column("left out"), *COSTS]  # fmt: skip
    return [f"Paired differences of the best log validation loss to the {oracle_name(found)}, "
            f"{best.label}: pairs share problem and seed; below zero is better than it.",
            Table("against_oracle", columns, rows, prefix)]  # fmt: skip


def _stability(cases) -> list[Block]:
    columns = [Column("optimizer"), Column("replicates"), Column("n"), Column("meta-stability", 4),
               Column("evaluation stability", 4), Column("optimization stability", 4),
               Column("95% interval", 4, interval=True), *COSTS]  # fmt: skip
    blocks: list[Block] = [
        "Meta-stability is the standard deviation between replicates (trainings of the policy), "
        "evaluation stability that between evaluations of one replicate, both of the best log "
        "validation loss by the mixed-effects model y = μ + a + b + e: a of the replicate, b of "
        "the seed, which replicates share. Optimization stability is the standard deviation of "
        "the log validation loss, from epoch 1, about its smoothed curve: its mean by the same "
        "model, with an interval. Lower is steadier everywhere.",
    ]
    remarks: dict[str, list[str]] = defaultdict(list)
    for case, found in cases.items():
        prefix = _prefix(case)
        rows = [[s.label, s.performance.replicates, s.performance.evaluations, s.performance.meta,
                 s.performance.evaluation, s.optimization.mean,
                 (s.optimization.low, s.optimization.high), *s.costs] for s in found]  # fmt: skip
        blocks += [f"{case.title}:", Table("stability", columns, rows, prefix)]
        for s in found:
            for note in s.performance.notes:
                if s.label not in remarks[note]:
                    remarks[note].append(s.label)
    blocks.append(Remarks([f"{note}: {', '.join(labels)}." for note, labels in remarks.items()]))
    labels = list(dict.fromkeys(s.label for found in cases.values() for s in found))
    by = {(case, s.label): s.performance.evaluation for case, found in cases.items() for s in found}
    rows = [[label, *(by.get((case, label), nan) for case in cases)] for label in labels]
    wide = [Column("optimizer"), *(Column(case.title, 4) for case in cases)]
    return [*blocks, "Table 5: evaluation stability by problem.",
            Table("table-5", wide, rows)]  # fmt: skip


def _costs(cases, cards: Cards) -> Table:
    """Table 4: what each policy's training cost until it was saved, means over its replicates."""
    origins: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for found in cases.values():
        for s in found:
            for e in s.evaluations:
                if {"updates", "seconds"} <= cards.get(e.key.origin, {}).keys():
                    origins[s.label][e.key.origin] = cards[e.key.origin]
    rows: list[list[Value]] = [
        [label, *(", ".join(sorted({str(card.get(key, "?")) for card in group.values()}))
                  for key in ("strategy", "pool", "preset", "devices")), len(group),
         float(np.mean([card["updates"] for card in group.values()])),
         float(np.mean([card["seconds"] for card in group.values()])) / 3600]
        for label, group in origins.items()
    ]  # fmt: skip
    columns = [Column("policy"), Column("strategy"), Column("pool"), Column("preset"),
               Column("devices"), Column("replicates"), Column("meta-updates", 0),
               Column("hours", 2)]  # fmt: skip
    return Table("table-4", columns, rows)


def _inputs(cases, cards: Cards) -> Table:
    """Table 6: policies trained under noise on their inputs."""
    rows = []
    for case, found in cases.items():
        for s in found:
            kind, magnitude = perturbation(s, cards) or ("", nan)
            if kind == "input":
                rows.append([s.label, case.title, magnitude, s.performance.replicates,
                             s.performance.mean, s.performance.meta,
                             s.performance.evaluation, *s.costs])  # fmt: skip
    columns = [Column("policy"), Column("problem"), Column("magnitude", -1), Column("replicates"),
               Column("log validation loss"), Column("meta-stability", 3),
               Column("evaluation stability", 3), *COSTS]  # fmt: skip
    return Table("table-6", columns, rows)
