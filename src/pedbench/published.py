"""Published numbers: CSVs of ``resources/published/`` as rows of a table, character by character.

An F1 is told apart by its definition: the one of the method's released code where
``f1_definitions.csv`` names it; "harmonic" where the printed F1 is the harmonic mean of the printed
precision and recall to `TOLERANCE`; else "unstated".
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from string import Formatter
from typing import Any

from pedbench.config import ROOT
from pedbench.contracts import PedbenchError
from pedbench.registry import suggest

FOLDER = "resources/published"
F1_DEFINITIONS = "f1_definitions.csv"
TOLERANCE = 0.02  # printed numbers are rounded to two decimals
UNSTATED = "unstated"
UNTRACED = "not traced"

Line = Mapping[str, str]  # of a CSV, by column


@dataclass(frozen=True)
class Selection:
    """Which lines of a CSV a table shows, and how. ``name``, ``method`` and ``source`` are
    templates over the CSV's columns; ``method`` is looked up in ``f1_definitions.csv``."""

    file: str
    datasets: Mapping[str, str]  # label in the CSV -> dataset/split
    where: Mapping[str, list[str]] = field(default_factory=dict)  # column -> values shown
    name: str = "{method}"
    method: str = "{method}"
    source: str = ""


@dataclass
class Row:
    """What papers print of one method. ``scores`` and ``notes`` have a dataset/split as (first)
    key; ``lead`` is what `read_rows` was asked for besides the scores."""

    name: str
    lead: tuple[str, ...]
    source: str
    threshold: str  # empty: not stated
    scores: dict[tuple[str, str], str] = field(default_factory=dict)  # (place, metric) -> text
    notes: dict[str, str] = field(default_factory=dict)
    untraced: bool = False  # exists in the paper, but its numbers could not be read


def read_rows(
    chosen: Selection, metrics: Sequence[str], lead: Iterable[str], where: str
) -> list[Row]:
    """The published rows by year, else in the CSV's order. Lines on several datasets that agree in
    all that is not a score make one row.

    ``lead`` are templates of further texts, ``metrics`` the CSV's columns of scores, of which those
    that it does not have are left out, and so are rows without any, unless their ``status`` says
    that they are not traced; "F1" becomes "F1_{definition}", and "F1_instance" is an F1
    of that definition only. ``where`` names in messages what asked.

    Raises PedbenchError for an unknown file, column or value and for two lines in one cell.
    """
    lines, lead = read_lines(chosen.file, where), list(lead)
    _check(chosen, lines, lead, where)
    rows: dict[tuple[Any, ...], Row] = {}
    for line in sorted(lines, key=lambda line: line.get("year", "")):
        wanted = all(line[key] in values for key, values in chosen.where.items())
        place = chosen.datasets.get(line["dataset"])
        if place is None or not wanted:
            continue
        f1, threshold = f1_of(line, chosen.method.format_map(line))
        texts = tuple(template.format_map(line).strip() for template in lead)
        key = (chosen.name.format_map(line), texts, chosen.source.format_map(line), threshold)
        row = rows.setdefault(key, Row(*key))
        own = f"F1_{f1}"
        names = {own: "F1"} if "F1" in metrics or own in metrics else {}
        names |= {metric: metric for metric in metrics if not metric.startswith("F1")}
        new = {(place, name): line[column] for name, column in names.items() if line.get(column)}
        if new.keys() & row.scores.keys():
            raise PedbenchError(
                f"{where}: two lines of {FOLDER}/{chosen.file} are '{row.name}' on "
                f"{line['dataset']}; tell them apart with 'where', 'name' or 'columns'"
            )
        row.scores |= new
        if line.get("note"):
            row.notes[place] = line["note"]
        row.untraced |= line.get("status") == UNTRACED
    return [row for row in rows.values() if row.scores or row.untraced]


def f1_of(line: Line, method: str) -> tuple[str, str]:
    """Definition of the F1 in ``line``, and the threshold as stated, or empty."""
    if known := f1_definitions().get(method):
        return known["f1"], known["threshold"]
    if not (line.get("Prec") and line.get("Recall") and line.get("F1")):
        return UNSTATED, ""
    precision, recall, f1 = (float(line[key]) for key in ("Prec", "Recall", "F1"))
    harmonic = 2 * precision * recall / (precision + recall)
    return ("harmonic" if abs(f1 - harmonic) <= TOLERANCE else UNSTATED), ""


@cache
def f1_definitions() -> Mapping[str, Line]:
    """Method, as the papers print it -> its line of ``f1_definitions.csv``."""
    return {line["method"]: line for line in read_lines(F1_DEFINITIONS, "pedbench")}


@cache
def read_lines(file: str, where: str) -> list[Line]:
    """The lines of a CSV, every cell as text. Raises PedbenchError when there is no such file."""
    known = sorted(path.name for path in (ROOT / FOLDER).glob("*.csv"))
    if file not in known:
        raise PedbenchError(
            f"{where}: there is no {FOLDER}/{file}{suggest(file, known) or f' ({known})'}"
        )
    with (ROOT / FOLDER / file).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _check(chosen: Selection, lines: list[Line], lead: list[str], where: str) -> None:
    """Every column and value that ``chosen`` and ``lead`` speak of exists."""
    columns = list(lines[0])
    templates = [chosen.name, chosen.method, chosen.source, *lead]
    fields = [name for t in templates for _, name, *_ in Formatter().parse(t) if name is not None]
    for name in ("dataset", *fields, *chosen.where):
        if name not in columns:
            raise PedbenchError(
                f"{where}: {chosen.file} has no column '{name}'{suggest(name, columns)} "
                f"(it has: {', '.join(columns)})"
            )
    for column, values in {**chosen.where, "dataset": chosen.datasets}.items():
        found = dict.fromkeys(line[column] for line in lines)
        for value in values:
            if value not in found:
                raise PedbenchError(
                    f"{where}: no line of {chosen.file} has {column} '{value}'"
                    f"{suggest(value, found)} (there are: {', '.join(found)})"
                )
