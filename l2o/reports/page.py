"""A report as Markdown and as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from math import isinf, isnan

NONE = "–"
Value = str | int | float | tuple[float, float]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its head, unit included.
        digits: Decimals of its floats; -1 for general format.
        infinite: What an infinite value means in words.
        interval: Whether its values are pairs.
    """

    name: str
    digits: int = 3
    infinite: str = "∞"
    interval: bool = False

    def text(self, value: Value) -> str:
        """A cell as people read it; a dash where there is no value."""
        if isinstance(value, tuple):
            return NONE if isnan(value[0]) else f"[{', '.join(map(self.text, value))}]"
        if not isinstance(value, float):
            return str(value)
        if isnan(value):
            return NONE
        if isinf(value):
            return self.infinite
        return f"{value:g}" if self.digits < 0 else f"{value:,.{self.digits}f}"


@dataclass(frozen=True)
class Table:
    """A table; those of one file go into one CSV file together.

    Attributes:
        file: Name of the CSV file without ending.
        columns: The columns.
        rows: A value for each column: a pair is an interval, nan is none.
        prefix: Columns that only the CSV file has, with their values.
    """

    file: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]
    prefix: dict[str, str | int] = field(default_factory=dict)


COSTS = (Column("seconds", 1), Column("CPU seconds", 1))  # of a fit, by clock and processor


@dataclass(frozen=True)
class Picture:
    """A figure: name of its file without ending, title, caption, PNG."""

    file: str
    title: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Notice:
    """What nobody should overlook, a sentence a line."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Remarks:
    """Small print, a sentence a line."""

    lines: Sequence[str]


Block = str | Table | Picture | Notice | Remarks


@dataclass(frozen=True)
class Section:
    """A heading and what is under it; a string is a paragraph."""

    title: str
    blocks: Sequence[Block]


def csv_text(tables: Sequence[Table]) -> str:
    """Tables of one file as CSV, numbers in full, an interval as two columns, no value as empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for k, table in enumerate(tables):
        if k == 0:
            names = [*table.prefix]
            for column in table.columns:
                ends = (" from", " to") if column.interval else ("",)
                names += [column.name + end for end in ends]
            writer.writerow(names)
        for row in table.rows:
            values: list[Value] = [*table.prefix.values()]
            for value in row:
                values += value if isinstance(value, tuple) else [value]
            writer.writerow("" if isinstance(v, float) and isnan(v) else v for v in values)
    return text.getvalue()


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The report as Markdown; it refers to the pictures by `figures/FILE.png`."""
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        parts += [_markdown_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _markdown_block(block: Block) -> str:
    match block:
        case Table():
            head = [column.name for column in block.columns]
            rows = [[c.text(v) for c, v in zip(block.columns, row, strict=True)]
                    for row in block.rows]  # fmt: skip
            lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
            return "\n".join(
                "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |"
                for line in lines
            )
        case Picture():
            return f"![{block.title}](figures/{block.file}.png)\n\n{block.caption}"
        case Notice():
            return "\n>\n".join(f"> **{line}**" for line in block.lines)
        case Remarks():
            return "\n".join(f"- {line}" for line in block.lines)
    return block


def html(title: str, sections: Sequence[Section]) -> str:
    """The report as one page: pictures and style inside, no script."""
    links = "".join(
        f'<a href="#s{k}">{escape(section.title)}</a>' for k, section in enumerate(sections)
    )
    body = "".join(
        f'<section id="s{k}"><h2>{escape(section.title)}</h2>'
        + "".join(map(_html_block, section.blocks))
        + "</section>\n"
        for k, section in enumerate(sections)
    )
    return _PAGE.format(title=escape(title), style=_STYLE, links=links, body=body)


def _html_block(block: Block) -> str:
    match block:
        case Table():
            head = "".join(f"<th>{escape(column.name)}</th>" for column in block.columns)
            rows = "".join(
                "<tr>"
                + "".join(f"<td>{escape(c.text(v))}</td>"
                          for c, v in zip(block.columns, row, strict=True))
                + "</tr>"
                for row in block.rows
            )  # fmt: skip
            return (f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
                    f"<tbody>{rows}</tbody></table></div>")  # fmt: skip
        case Picture():
            data, caption = base64.b64encode(block.png).decode(), escape(block.caption)
            return (f'<figure><div class="wide"><img alt="{escape(block.title)}" '
                    f'src="data:image/png;base64,{data}"></div>'
                    f"<figcaption>{caption}</figcaption></figure>")  # fmt: skip
        case Notice():
            lines = "".join(f"<li>{escape(line)}</li>" for line in block.lines)
            return f'<ul class="notice" role="note">{lines}</ul>'
        case Remarks():
            return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in block.lines) + "</ul>"
    return f"<p>{escape(block)}</p>"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1><nav>{links}</nav>
<p class="narrow">Wide tables and figures scroll sideways.</p></header>
<main>
{body}</main>
</body>
</html>
"""

_STYLE = """
:root { --ink: #1c1e21; --soft: #5c6370; --paper: #ffffff; --line: #d9dce1; --stripe: #f5f6f8;
  --link: #0b5cad; --warn-ink: #6b3b00; --warn: #fff3dc; --warn-line: #e0a030; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6ea; --soft: #a0a7b4; --paper: #15171b;
  --line: #373b43; --stripe: #1d2025; --link: #7db8f5; --warn-ink: #ffdca3; --warn: #33270f;
  --warn-line: #a87416; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0 0 .5rem; font-size: 1.7rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line);
  font-size: 1.2rem; overflow-wrap: anywhere; }
p, ul, figcaption { max-width: 46rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .9rem; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
ul { padding-left: 1.2rem; color: var(--soft); font-size: .9rem; }
.notice { list-style: none; padding: .8rem 1rem; background: var(--warn); color: var(--warn-ink);
  border-left: 4px solid var(--warn-line); font-weight: 600; font-size: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .65rem; text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--line);
  vertical-align: bottom; }
thead th { white-space: normal; min-width: 4.2rem; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper);
  text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 7.5rem;
  max-width: 13rem; }
.narrow { display: none; color: var(--soft); font-size: .9rem; }
@media (max-width: 40rem) { .narrow { display: block; }
  th:first-child, td:first-child { max-width: 8.5rem; }
  th, td { padding: .3rem .45rem; } h1 { font-size: 1.45rem; } }
tbody tr:nth-child(even) td { background: var(--stripe); }
figure { margin: 1rem 0 0; }
figure .wide { background: #ffffff; border: 1px solid var(--line); border-radius: 6px; }
img { display: block; width: 100%; min-width: 40rem; max-width: 54rem; margin: 0 auto;
  padding: .5rem; }
figcaption { margin-top: .5rem; color: var(--soft); font-size: .9rem; }
@media print { .wide { overflow: visible; } img { min-width: 0; } }
"""
