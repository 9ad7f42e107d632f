"""A table as data, which every format is written from, so that no two can disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

ABSENT, BETTER, WORSE, TICK = "–", "↑", "↓", "✓"

Key = TypeVar("Key")


@dataclass(frozen=True)
class Cell:
    """A number: the mean of ``seeds`` runs with its deviation, or, if ``printed`` is given, that
    text as it stands. Ranks 1 and 2 are set off; ``note`` is for the CSV."""

    mean: float = float("nan")
    sd: float = float("nan")
    seeds: int = 0
    mark: str = ""
    rank: int = 0
    printed: str | None = None
    note: str = ""

    @property
    def text(self) -> str:
        if self.printed is not None:
            return self.printed
        if np.isnan(self.mean):
            return ABSENT
        spread = f" ± {self.sd:.2f}" if self.seeds > 1 else ""
        return f"{self.mean:.2f}{spread}{self.mark}"


@dataclass(frozen=True)
class Column:
    """A column of numbers under the heading ``group``; the CSV calls it ``metric`` (its label, if
    empty) on ``dataset`` and ``split``. ``key`` is for whoever fills it."""

    group: str
    label: str
    dataset: str = ""
    split: str = ""
    metric: str = ""
    key: str = ""


@dataclass(frozen=True)
class Row:
    """``lead``: texts of the table's leading columns. ``method`` and ``variant`` are empty in a
    published row; ``source`` is who printed it."""

    name: str
    lead: tuple[str, ...]
    cells: tuple[Cell, ...]
    method: str = ""
    variant: str = ""
    source: str = ""


@dataclass(frozen=True)
class Block:
    """Rows of one kind under a heading of their own (none: an empty one). ``dataset`` and
    ``split`` where the block, and not the column, says which."""

    heading: str
    rows: tuple[Row, ...]
    dataset: str = ""
    split: str = ""


@dataclass(frozen=True)
class Table:
    """``lead``: labels of the leading columns after the name's; ``name`` is the file's, below
    ``results/tables/``. ``notes`` are longer remarks for notes.md. Scores align left, so that
    means stand below means whatever follows them; other numbers align right."""

    name: str
    title: str
    caption: str
    lead: tuple[str, ...]
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()
    align: Literal["left", "right"] = "left"

    def lead_align(self, index: int) -> Literal["left", "right", "center"]:
        """How a leading column stands: numbers right, check marks in the middle."""
        texts = {row.lead[index] for block in self.blocks for row in block.rows}
        if texts <= {TICK, ""}:
            return "center"
        numbers = all(text.replace(",", "").replace(".", "").isdigit() for text in texts)
        return "right" if numbers else "left"


def ranked(cells: Mapping[Key, Cell]) -> dict[Key, Cell]:
    """The ``cells`` of a column with best and second, as shown, set off; ties share a rank."""
    means = {round(cell.mean, 2) for cell in cells.values() if not np.isnan(cell.mean)}
    best = sorted(means, reverse=True)[:2]
    ranks = {value: rank for rank, value in enumerate(best, start=1)}
    return {row: replace(c, rank=ranks.get(round(c.mean, 2), 0)) for row, c in cells.items()}


def cell_of(values: Sequence[float] | np.ndarray, mark: str = "") -> Cell:
    """Mean and deviation over seeds; NaN where one of them is."""
    array = np.asarray(values, dtype=float)
    sd = array.std(ddof=1) if len(array) > 1 else float("nan")
    return Cell(float(array.mean()), float(sd), len(array), mark)
