"""Kinds of plots: dots by optimizer, curves by epoch, one statistic against another, times.

A figure has a panel for each case. Every optimizer keeps its colour, line style and marker through
all figures; tuned teachers are grey, so that what is learned stands out, in print too.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from math import ceil, isfinite, isnan, log2
from textwrap import fill

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import LineStyleType
from PIL import Image

from l2o.reports.comparison import (
    Case,
    Evaluation,
    Summary,
    oracle,
    oracle_name,
)
from l2o.reports.stability import Stability
from l2o.reports.targets import Times

Cases = Mapping[Case, Sequence[Summary]]

# Okabe and Ito's colours, told apart by readers who do not see colours alike; without yellow,
# which white swallows, and black, which is the oracle's.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_GREYS = ("#444444", "#777777", "#999999")
# Six or three colours, five lines, seven markers: pairs of them repeat late.
_LINES: tuple[LineStyleType, ...] = (
    "-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 1, 1, 1, 1, 1)),
)  # fmt: skip
_MARKERS, _TEACHERS_MARKERS = "os^vDp*", "PX<>hd8"
_rc = partial(
    rc_context,
    {
        "font.size": 8.5,
        "axes.titlesize": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e3e3e3",
        "legend.frameon": False,
        "lines.markersize": 4.5,
        "text.parse_math": False,  # names may have dollar signs
    },
)
_WIDTH = 4.3  # inches, of a panel


@dataclass(frozen=True)
class Style:
    """How an optimizer is drawn everywhere."""

    color: str
    linestyle: LineStyleType
    marker: str


_ORACLE = Style("#000000", (0, (4, 1.5)), "")


@dataclass(frozen=True)
class Look:
    """What all figures of a report share.

    Attributes:
        styles: By optimizer's label.
        cases: All cases and optimizers, also those that one figure leaves out.
    """

    styles: Mapping[str, Style]
    cases: Cases

    def oracle(self, case: Case) -> Summary | None:
        """The best teacher of a case."""
        return oracle(self.cases[case])

    def oracle_name(self, case: Case) -> str:
        """What to call it."""
        return oracle_name(self.cases[case])


def look(cases: Cases) -> Look:
    """A style for each optimizer; teachers share greys. Who is seen most comes first."""
    teachers: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for summaries in cases.values():
        for s in summaries:
            (teachers if s.teacher else others)[s.label] += 1
    found = {}
    for labels, colours, markers in (
        (others, COLOURS, _MARKERS),
        (teachers, _GREYS, _TEACHERS_MARKERS),
    ):
        kinds = zip(cycle(colours), cycle(_LINES), cycle(markers))  # noqa: B905  (endless)
        ordered = sorted(labels, key=lambda label: (-labels[label], label))
        for label, kind in zip(ordered, islice(kinds, len(labels)), strict=True):
            found[label] = Style(*kind)
    return Look(found, cases)


def png(draw: Callable[[], Figure]) -> bytes:
    """A figure as PNG, of 256 colours: a quarter of the size, and no difference to see."""
    drawn, small = io.BytesIO(), io.BytesIO()
    with _rc():
        draw().savefig(drawn, format="png", dpi=150, facecolor="white")
    image = Image.open(drawn).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def panels(cases: Iterable[Case], height: float) -> tuple[Figure, list[Axes]]:
    """A figure with a panel a case, two in a row, each with its title."""
    cases = list(cases)
    columns = min(2, len(cases))
    rows = ceil(len(cases) / columns)
    figure = Figure((_WIDTH * max(columns, 1.4), height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, case in zip(grid, cases, strict=False):
        axes.set_title(_title(case))
    for axes in grid[len(cases) :]:
        axes.remove()
    return figure, list(grid[: len(cases)])


def _title(case: Case) -> str:
    return case.title.replace(", ON ", "\nON ")


def dots(
    cases: Cases,
    look: Look,
    value: Callable[[Evaluation], float],
    statistic: Callable[[Summary], Stability],
    label: str,
) -> Figure:
    """A dot an evaluation, a line an optimizer, the mean with its 95% interval below the dots.

    The dashed line is the oracle's mean. Intervals may be longer than the panel is wide.
    """
    most = max(len(summaries) for summaries in cases.values())
    figure, grid = panels(cases, 0.27 * most + 0.95)
    for axes, (case, summaries) in zip(grid, cases.items(), strict=True):
        best, name = look.oracle(case), f"{look.oracle_name(case)}: "
        if best is not None:
            axes.axvline(statistic(best).mean, color="#444444", linestyle="--", linewidth=0.8)
        ordered = sorted(summaries, key=lambda s: _last_if_none(statistic(s).mean))
        shown, ends = [], []
        for row, s in enumerate(ordered):
            style, stability = look.styles[s.label], statistic(s)
            values = [x for x in map(value, s.evaluations) if isfinite(x)]
            shown += values
            axes.plot(values, [row - 0.17] * len(values), linestyle="none", marker=style.marker,
                      color=style.color, alpha=0.55, markeredgewidth=0, markersize=4)  # fmt: skip
            axes.plot(stability.mean, row + 0.2, marker="|", color=style.color, markersize=7,
                      markeredgewidth=2)  # fmt: skip
            if not isnan(stability.low):
                ends += [stability.low, stability.high]
                axes.plot([stability.low, stability.high], [row + 0.2] * 2, color=style.color,
                          linewidth=1.6)  # fmt: skip
            if not values:
                axes.text(0.02, row, "nothing to draw", va="center", fontsize=8, style="italic",
                          transform=axes.get_yaxis_transform())  # fmt: skip
        if shown:
            span = max(max(shown) - min(shown), 0.02)
            low = max(min([*shown, *ends]), min(shown) - span / 2)
            high = min(max([*shown, *ends]), max(shown) + span / 2)
            axes.set_xlim(low - 0.08 * span, high + 0.08 * span)
        names = [name * (s is best) + counted(s) for s in ordered]
        axes.set_yticks(range(len(ordered)), names)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylim(len(ordered) - 0.5, -0.6)
        axes.set_xlabel(label)
    return figure


def curves(
    cases: Cases,
    look: Look,
    value: Callable[[int, Evaluation], float],
    label: str,
    cropped: bool = True,
) -> Figure:
    """A mean curve by epoch for each optimizer, with a band of one standard deviation.

    Teachers other than the oracle are thin and without names. Cropped, a panel starts at the
    first epoch, shows the range that the oracle moves in after a fifth of the epochs, and names
    those whose curves lie outside; else all is shown.

    Args:
        value: Of an epoch of an evaluation.
    """
    figure, grid = panels(cases, 2.75)
    for axes, (case, summaries) in zip(grid, cases.items(), strict=True):
        best = look.oracle(case)
        first = 1 if cropped else 0
        epochs, drawn = np.arange(first, case.epochs + 1), []
        for s in summaries:
            whole = [e for e in s.evaluations if e.chosen is not None]
            table = np.array([[value(epoch, e) for epoch in epochs] for e in whole])
            table = table[np.isfinite(table).all(-1)] if whole else table
            if not len(table):
                continue
            mean, deviation = table.mean(0), table.std(0, ddof=1) if len(table) > 1 else 0.0
            if s.teacher and s is not best:
                axes.plot(epochs, mean, color="#bbbbbb", linewidth=0.7, zorder=1)
                continue
            style = _ORACLE if s is best else look.styles[s.label]
            axes.plot(epochs, mean, color=style.color, linestyle=style.linestyle,
                      marker=style.marker, markevery=max(1, case.epochs // 8),
                      linewidth=1.5, zorder=3 if s is best else 2)  # fmt: skip
            drawn.append((s, style.color, mean, deviation))
        if not axes.lines:
            axes.text(0.5, 0.5, "nothing to draw", ha="center", transform=axes.transAxes)
        if cropped and drawn:
            _crop(axes, [(s is best, mean) for s, _, mean, _ in drawn])
        (low, high), outside = axes.get_ylim(), []
        for s, colour, mean, deviation in drawn:
            if (mean > high).all() or (mean < low).all():
                outside.append(s.label)
                continue
            axes.fill_between(epochs, mean - deviation, mean + deviation, color=colour, alpha=0.12,
                              linewidth=0)  # fmt: skip
        if outside:
            # Of many names: in lines, and panels do not make room for them.
            names = fill(f"outside: {', '.join(outside)}", 70, break_on_hyphens=False)
            axes.text(0.98, 0.98, names, ha="right", va="top", fontsize=7,
                      transform=axes.transAxes).set_in_layout(False)  # fmt: skip
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if best is not None:
            axes.set_title(f"{_title(case)}\n{look.oracle_name(case)}: {counted(best, 'n = ')}")
    _legend(figure, cases, look)
    return figure


def _crop(axes: Axes, spans: list[tuple[bool, np.ndarray]]) -> None:
    """Shows where the oracle goes after a fifth of the epochs, and who comes near or beyond."""
    reference = next((mean for is_best, mean in spans if is_best), spans[0][1])
    direction = np.sign(reference[-1] - reference[0])
    bests = [direction * (direction * mean).max() for _, mean in spans]
    bests = [best for best in bests if direction and (best - reference[0]) * direction >= 0]
    shown = [*reference[(len(reference) - 1) // 5 :], *bests]
    margin = 0.12 * (max(shown) - min(shown)) or 0.1
    axes.set_ylim(min(shown) - margin, max(shown) + margin)


def scatter(
    cases: Cases,
    look: Look,
    across: Callable[[Summary], float],
    up: Callable[[Summary], float],
    labels: tuple[str, str],
) -> Figure:
    """A marker an optimizer: one statistic against another."""
    figure, grid = panels(cases, 2.75)
    for axes, summaries in zip(grid, cases.values(), strict=True):
        for s in summaries:
            style = look.styles[s.label]
            axes.plot(across(s), up(s), color=style.color, marker=style.marker, markersize=7,
                      linestyle="none", markeredgecolor="white", markeredgewidth=0.5,
                      clip_on=False)  # fmt: skip
        axes.margins(0.12)
        axes.set_xlim(0, max(axes.get_xlim()[1], 1e-9))  # all may be zero
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
    _legend(figure, cases, look, teachers=True)
    return figure


def durations(
    cases: Mapping[Case, Sequence[Sequence[Times]]],
    look: Look,
    unit: str,
) -> Figure:
    """When each evaluation reached each target: hollow the easier, filled the harder.

    Where several coincide the marker is larger. At the right, how many never did.

    Args:
        cases: For each case and target, the optimizers' times.
        unit: "steps" or "seconds".
    """
    most = max(len(groups[-1]) for groups in cases.values())
    figure, grid = panels(cases, 0.27 * most + 1.0)
    for axes, groups in zip(grid, cases.values(), strict=True):
        axes.set_title(axes.get_title(), pad=16)  # room for a word over the panel
        labels = [times.label for times in groups[-1]]
        finite = [getattr(time, unit) for times in groups for t in times for time in t.each
                  if time.reached]  # fmt: skip
        longest = max(finite, default=0.0) or 1.0
        never = 1.15 * longest
        for hollow, times in zip((True, False), groups, strict=True):
            for t in times:
                style, row = (
                    look.styles[t.label],
                    labels.index(t.label) + (-0.18 if hollow else 0.18),
                )
                counts = Counter(getattr(time, unit) for time in t.each if time.reached)
                for x, count in counts.items():
                    axes.plot(x, row, marker=style.marker, color=style.color,
                              markersize=min(3.5 + 1.2 * log2(count), 9),
                              markerfacecolor="white" if hollow else style.color)  # fmt: skip
                if t.reached < len(t.each):
                    axes.text(never, row, f"{len(t.each) - t.reached}", fontsize=7, ha="center",
                              va="center", color="#666666" if hollow else "black",
                              fontweight="normal" if hollow else "bold")  # fmt: skip
        axes.axvline(1.07 * longest, color="#999999", linewidth=0.7)
        axes.set_xlim(0, 1.22 * longest)
        axes.text(never, -0.75, "never", ha="center", va="bottom", fontsize=7.5)
        axes.set_yticks(range(len(labels)), [f"{t.label} ({len(t.each)})" for t in groups[-1]])
        axes.set_ylim(len(labels) - 0.5, -0.7)
        axes.set_xlabel("training time, seconds" if unit == "seconds" else "steps")
    return figure


def counted(summary: Summary, unit: str = "") -> str:
    """An optimizer with its number of evaluations, and how many of them diverged."""
    diverged = f", {summary.diverged} diverged" if summary.diverged else ""
    return f"{summary.label} ({unit}{len(summary.evaluations)}{diverged})"


def _legend(figure: Figure, cases: Cases, look: Look, teachers: bool = False) -> None:
    """One legend below all panels: optimizers with their numbers of evaluations."""
    groups: dict[str, list[Summary]] = {}
    for summaries in cases.values():
        for s in summaries:
            if teachers or not s.teacher:
                groups.setdefault(s.label, []).append(s)
    handles = []
    for label in sorted(groups, key=list(look.styles).index):
        n = "/".join(map(str, sorted({len(s.evaluations) for s in groups[label]})))
        diverged = sum(s.diverged for s in groups[label])
        text = f"{label} (n = {n}" + (f"; {diverged} diverged)" if diverged else ")")
        handles.append(_line(look.styles[label], text, joined=not teachers))
    names = sorted({look.oracle_name(case) for case in cases if look.oracle(case)})
    if names and not teachers:
        handles.append(_line(_ORACLE, " or ".join(names)))
        if any(s.teacher and s is not look.oracle(c) for c, found in cases.items() for s in found):
            handles.append(_line(Style("#bbbbbb", "-", ""), "other teachers", width=0.7))
    if not handles:
        return
    columns = min(3, len(handles))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * ceil(len(handles) / columns))


def _line(style: Style, label: str, joined: bool = True, width: float = 1.5) -> Line2D:
    return Line2D([], [], color=style.color, marker=style.marker, label=label, linewidth=width,
                  linestyle=style.linestyle if joined else "none")  # fmt: skip


def _last_if_none(value: float) -> tuple[bool, float]:
    return isnan(value), value
