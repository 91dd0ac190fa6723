"""Kinds of plots: dots by optimizer, curves by epoch, one statistic against another, times.

A figure has a panel for each case; `l2o.reports.style` says how all of them are drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import isfinite, isnan, log2
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from l2o.reports.comparison import Case, Evaluation, Summary
from l2o.reports.stability import Stability
from l2o.reports.style import ORACLE, Cases, Look, counted, legend, panels, title
from l2o.reports.targets import Times


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
            style = ORACLE if s is best else look.styles[s.label]
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
            axes.set_title(f"{title(case)}\n{look.oracle_name(case)}: {counted(best, 'n = ')}")
    legend(figure, cases, look)
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
    legend(figure, cases, look, teachers=True)
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


def _last_if_none(value: float) -> tuple[bool, float]:
    return isnan(value), value
