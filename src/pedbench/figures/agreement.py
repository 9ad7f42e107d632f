"""Do two methods make the same mistakes?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from pedbench.contracts import UNKNOWN
from pedbench.figures.material import Material, Place, stem, words
from pedbench.figures.style import WIDTH, Picture
from pedbench.results import read_predictions

Floats = NDArray[np.float64]


def pictures(m: Material) -> Iterator[Picture]:
    """One matrix per dataset and split with attributes and two methods or more."""
    for place in m.of_task("par"):
        if len(m.rows(place)) < 2:
            continue
        yield Picture(
            stem("agreement", place),
            draw(m, place),
            f"Do methods make the same mistakes? {words(place)}",
            "Correlation (phi) of being wrong on a test image and attribute, averaged over all "
            "pairs of runs of the two methods: 1: always the same mistakes, 0: unrelated. On the "
            "diagonal: two seeds of one method (–: a single run). Methods are ordered so that "
            "similar ones stand together.",
            "Comparison",
        )


def agreement(m: Material, place: Place) -> Floats:
    """``(V, V)``: mean phi between runs of two variants in table order; on the diagonal between
    different runs of one, NaN where there is one run or a run without (or with only) errors."""
    manifest = m.manifest(place[0])
    errors, owner = [], []
    for number, row in enumerate(m.rows(place)):
        for run in m.runs(place, row):
            predictions = read_predictions(run, manifest, "test")
            known = predictions.labels != UNKNOWN
            predicted = predictions.probabilities > run.protocol["threshold"]
            errors.append((predicted != (predictions.labels == 1))[known])
            owner.append(number)
    with np.errstate(invalid="ignore", divide="ignore"):
        phi = np.atleast_2d(np.corrcoef(np.array(errors, dtype=np.float64)))
    return block_means(phi, np.array(owner))


def block_means(phi: Floats, owner: NDArray[Any]) -> Floats:
    """Means of the blocks of ``phi (R, R)`` that belong to two owners; a run and itself aside."""
    count = int(owner.max()) + 1
    member = (owner[:, None] == np.arange(count)).astype(np.float64)
    pairs = member.sum(0)[:, None] * member.sum(0) - np.diag(member.sum(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (member.T @ (phi - np.diag(np.diag(phi))) @ member) / pairs


def order(phi: Floats) -> NDArray[Any]:
    """Similar ones side by side: average linkage on 1 - phi, leaves ordered optimally."""
    distance = 1 - np.nan_to_num(phi)
    np.fill_diagonal(distance, 0)
    condensed = squareform((distance + distance.T) / 2, checks=False)
    return leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))


def draw(m: Material, place: Place) -> Figure:
    phi = agreement(m, place)
    chosen = order(phi)
    phi, names = phi[np.ix_(chosen, chosen)], [m.name(m.rows(place)[i]) for i in chosen]
    size = max(WIDTH, 3 + 0.22 * len(names))
    figure = Figure(figsize=(size, size - 1))
    ax: Any = figure.subplots()
    image = ax.pcolormesh(phi, cmap="cividis")
    low, high = image.get_clim()
    at = {"ha": "center", "va": "center", "fontsize": 6}
    for (y, x), value in np.ndenumerate(phi):
        text = "–" if np.isnan(value) else f"{value:.2f}".replace("0.", ".")
        dark = value < (low + high) / 2
        ax.text(x + 0.5, y + 0.5, text, color="white" if dark else "black", **at)
    ticks = np.arange(len(names)) + 0.5
    ax.set_xticks(ticks, names, rotation=90)
    ax.set_yticks(ticks, names)
    ax.invert_yaxis()
    ax.set_aspect("equal")
    ax.grid(visible=False)
    figure.colorbar(image, ax=ax, label="correlation of errors (phi)", shrink=0.7)
    figure.suptitle(words(place))
    return figure
