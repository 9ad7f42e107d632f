"""How far down the gallery one has to look: cumulative matching characteristics (CMC)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pedbench.collect import has_validation, rank_by_validation
from pedbench.config import HEADLINE
from pedbench.figures.material import Material, Place, Row, stem, words
from pedbench.figures.style import WIDTH, Picture, looks, short
from pedbench.results import read_rankings
from pedbench.tasks.reid import cmc

RANKS = np.arange(1, 51)
SHOWN = 8  # lines that can still be told apart
TICKS = (1, 2, 5, 10, 20, 50)


def pictures(m: Material) -> Iterator[Picture]:
    """One figure per dataset and split for re-identification."""
    for place in m.of_task("reid"):
        rows = chosen(m, place)
        yield Picture(
            stem("cmc", place),
            draw(m, place, rows),
            f"Cumulative matching characteristic, {words(place)}",
            "Share of the test queries with a right image among the first r of the gallery, "
            "against r; mean over the seeds. Queries without any right image are left out."
            + selected(m, place, rows),
            "Comparison",
        )


def selected(m: Material, place: Place, rows: list[Row]) -> str:
    """A sentence on which ``rows`` are shown, where they are not all."""
    if len(rows) == len(m.rows(place)):
        return ""
    count = len(rows) - (m.baseline in rows)
    if has_validation(m.scores, *place):
        return f" Shown: the baseline and the best {count} of the other methods by validation mAP."
    return (
        f" Shown: the baseline and the last {count} of the other methods in the plan (there are no "
        "validation images to choose by)."
    )


def chosen(m: Material, place: Place) -> list[Row]:
    """The baseline and the best others on validation images, else the last of the plan, in the
    order of the tables."""
    others = [row for row in m.rows(place) if row != m.baseline]
    best = rank_by_validation(others, m.scores, *place, HEADLINE["reid"])
    best = best[: SHOWN - (m.baseline in m.rows(place))]
    return [row for row in m.rows(place) if row in best or row == m.baseline]


def curve(m: Material, place: Place, row: Row) -> NDArray[np.float64]:
    """In percent at each of `RANKS`: the mean over the seeds, as far as the gallery reaches."""
    manifest = m.manifest(place[0])
    found = [read_rankings(run, manifest, "test") for run in m.runs(place, row)]
    ranks = RANKS[: len(found[0].gallery)]
    return 100 * np.mean([cmc(f.rankings, list(ranks)) for f in found], axis=0)


def draw(m: Material, place: Place, rows: list[Row]) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.4))
    ax: Any = figure.subplots()
    for row, look in zip(rows, looks(len(rows)), strict=True):
        shares = curve(m, place, row)
        at = [r - 1 for r in TICKS if r <= len(shares)]
        ax.plot(RANKS[: len(shares)], shares, label=m.name(row), markevery=at, **look)
    ax.set_xscale("log")
    ax.set_xticks(TICKS)
    ax.set_xticks([], minor=True)
    ax.xaxis.set_major_formatter(short)
    ax.set(xlabel="rank r", ylabel="queries found (%)")
    figure.legend(ncols=3, loc="outside lower center", fontsize=7)
    figure.suptitle(words(place))
    return figure
