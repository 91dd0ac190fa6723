"""How everything is drawn: an optimizer's style, a panel a case, one legend, the file.

Every optimizer keeps its colour, line style and marker through all figures; tuned teachers are
grey, so that what is learned stands out, in print too.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from math import ceil

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.typing import LineStyleType
from PIL import Image

from l2o.reports.comparison import Case, Summary, oracle, oracle_name

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


ORACLE = Style("#000000", (0, (4, 1.5)), "")


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
        axes.set_title(title(case))
    for axes in grid[len(cases) :]:
        axes.remove()
    return figure, list(grid[: len(cases)])


def title(case: Case) -> str:
    """The case in words, other data on a line of its own."""
    return case.title.replace(", ON ", "\nON ")


def counted(summary: Summary, unit: str = "") -> str:
    """An optimizer with its number of evaluations, and how many of them diverged."""
    diverged = f", {summary.diverged} diverged" if summary.diverged else ""
    return f"{summary.label} ({unit}{len(summary.evaluations)}{diverged})"


def legend(figure: Figure, cases: Cases, look: Look, teachers: bool = False) -> None:
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
        handles.append(_line(ORACLE, " or ".join(names)))
        if any(s.teacher and s is not look.oracle(c) for c, found in cases.items() for s in found):
            handles.append(_line(Style("#bbbbbb", "-", ""), "other teachers", width=0.7))
    if not handles:
        return
    # A label's letter is some 0.09 inches wide, its line half an inch.
    longest = max(len(str(handle.get_label())) for handle in handles)
    fitting = int(figure.get_figwidth() // (0.6 + 0.09 * longest))
    columns = max(1, min(3, len(handles), fitting))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * ceil(len(handles) / columns))


def _line(style: Style, label: str, joined: bool = True, width: float = 1.5) -> Line2D:
    return Line2D([], [], color=style.color, marker=style.marker, label=label, linewidth=width,
                  linestyle=style.linestyle if joined else "none")  # fmt: skip
