"""One table in four formats: CSV for machines; Markdown, LaTeX and HTML for readers."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import jinja2

from pedbench.tables.model import ABSENT, BETTER, TICK, WORSE, Block, Cell, Column, Row, Table

FIELDS = ("dataset", "split", "method", "variant", "name", "metric", "mean", "sd", "seeds", "mark")
LABEL = 9  # characters of a line of a column's heading in LaTeX
WIDE = 95  # characters of a row above which LaTeX scales the table down to the page's width
LATEX = str.maketrans(
    {
        **{symbol: f"\\{symbol}" for symbol in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "[": "{[}",  # at the start of a row it would be an option of the \\ before
        "±": r"$\pm$",
        "×": r"$\times$",
        "−": r"$-$",
        ABSENT: "--",
        BETTER: r"$\uparrow$",
        WORSE: r"$\downarrow$",
        TICK: r"$\checkmark$",
    }
)
PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def to_csv(table: Table) -> str:
    """One row per number: ``FIELDS``, then "measured" or "published", the leading columns, and
    source and note of what is published, whose numbers stand as printed."""
    stream = io.StringIO()
    out = csv.writer(stream, lineterminator="\n")
    out.writerow([*FIELDS, "kind", *table.lead, "source", "note"])
    for block, row in _rows(table):
        kind = "measured" if row.method else "published"
        for column, cell in zip(table.columns, row.cells, strict=True):
            out.writerow([
                column.dataset or block.dataset, column.split or block.split,
                row.method, row.variant, row.name, column.metric or column.label,
                *_numbers(cell, published=not row.method), kind, *row.lead, row.source, cell.note,
            ])  # fmt: skip
    return stream.getvalue()


def _rows(table: Table) -> list[tuple[Block, Row]]:
    return [(block, row) for block in table.blocks for row in block.rows]


def _numbers(cell: Cell, published: bool) -> list[str]:
    """Mean, deviation, seeds and mark; a published number as printed."""
    if published:
        return [cell.printed or "", "", "", ""]
    mean, sd = ("" if v != v else f"{v:.6f}" for v in (cell.mean, cell.sd))
    return [mean, sd, str(cell.seeds), cell.mark]


def to_markdown(table: Table) -> str:
    """The table, and its caption below it."""
    labels = [markdown(f"{column.group} {column.label}".strip()) for column in table.columns]
    lead = [markdown(label) for label in table.lead]
    lines = [["Method", *lead, *labels]]
    lines.append(["---"] * (1 + len(lead)) + ["---:"] * len(labels))
    for block in table.blocks:
        if block.heading:
            empty = [""] * (len(lines[0]) - 1)
            lines.append([f"***{markdown(block.heading)}***", *empty])
        for row in block.rows:
            cells = [_emphasis(cell.rank, markdown(cell.text)) for cell in row.cells]
            lines.append([markdown(row.name), *map(markdown, row.lead), *cells])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\n{markdown(table.caption)}\n"


def _emphasis(rank: int, text: str) -> str:
    return {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(rank, text)


def markdown(text: str) -> str:
    """``text`` with what Markdown would take for markup escaped."""
    return re.sub(r"([*|<])", r"\\\1", text)


def to_latex(table: Table) -> str:
    """A float as wide as the page, for a document with booktabs, graphicx and amssymb."""
    width = 1 + len(table.lead) + len(table.columns)
    side = table.align[0]
    aligned = "".join(table.lead_align(index)[0] for index in range(len(table.lead)))
    head = ["Method", *(_stack(*pair) for pair in zip(table.lead, aligned, strict=True))]
    head += [_stack(column.label, side) for column in table.columns]
    lines = [*_group_lines(table), _line(head), r"\midrule"]
    for number, block in enumerate(table.blocks):
        if number:
            lines.append(r"\midrule")
        if block.heading:
            # l does not wrap what is wider than the page
            kind = "l" if len(block.heading) <= WIDE else r"p{0.8\textwidth}"
            heading = rf"\multicolumn{{{width}}}{{{kind}}}{{\emph{{{latex(block.heading)}}}}}"
            lines += [_line([heading]), r"\midrule"]
        for row in block.rows:
            cells = [_set_off(cell.rank, latex(cell.text)) for cell in row.cells]
            lines.append(_line([latex(row.name), *map(latex, row.lead), *cells]))
    tabular = [
        rf"\begin{{tabular}}{{l{aligned}{side * len(table.columns)}}}",
        r"\toprule",
        *lines,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if _characters(table) > WIDE:
        tabular = [r"\resizebox{\textwidth}{!}{%", *tabular[:-1], tabular[-1] + "}"]
    caption = latex(". ".join(filter(None, (table.title, table.caption))))
    lines = [
        "% Needs the packages booktabs, graphicx and amssymb.",
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:{table.name.replace('/', '-')}}}",
        *tabular,
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def _group_lines(table: Table) -> list[str]:
    """The line of groups over the labels and the rules below it; none if no column has one."""
    groups = groups_of(table.columns)
    if not any(name for name, _ in groups):
        return []
    cells, rules, start = [""] * (1 + len(table.lead)), [], 2 + len(table.lead)
    for name, size in groups:
        cells.append(rf"\multicolumn{{{size}}}{{c}}{{{latex(name)}}}")
        if name:
            rules.append(rf"\cmidrule(lr){{{start}-{start + size - 1}}}")
        start += size
    return [_line(cells), "".join(rules)]


def groups_of(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Neighbouring columns of one group: its name and their number."""
    return [(name, len(list(same))) for name, same in groupby(columns, lambda c: c.group)]


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _stack(label: str, side: str) -> str:
    """A long label in several lines."""
    lines = textwrap.wrap(label, LABEL, break_long_words=False, break_on_hyphens=False)
    if len(lines) < 2:
        return latex(label)
    stacked = r"\\".join(map(latex, lines))
    return rf"\shortstack[{side}]{{{stacked}}}"


def _set_off(rank: int, text: str) -> str:
    return {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(rank, text)


def _characters(table: Table) -> int:
    """Of the longest possible row: the sum of the columns' widths."""
    labels = ["Method", *table.lead, *(column.label for column in table.columns)]
    labels = [max(label.split() or [""], key=len) for label in labels]
    texts = [[row.name, *row.lead, *(c.text for c in row.cells)] for _, row in _rows(table)]
    return sum(2 + max(map(len, column)) for column in zip(labels, *texts, strict=True))


def latex(text: str) -> str:
    """``text`` with LaTeX's special characters escaped."""
    return text.translate(LATEX)


def to_html(table: Table) -> str:
    """A page by itself."""
    return PAGES.get_template("table.html.j2").render(table=table, groups_of=groups_of)
