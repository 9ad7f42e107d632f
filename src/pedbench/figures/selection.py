"""How much choosing the epoch on test images flatters a method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pedbench.collect import select
from pedbench.figures.material import Material, Place, stem, words
from pedbench.figures.style import PALETTE, WIDTH, Picture

RING: Any = {"marker": "o", "facecolor": "none", "edgecolor": "0.1", "s": 60, "zorder": 4}
RULES: dict[str, tuple[str, Any]] = {
    "last_epoch": ("last epoch", RING),
    "validation": (
        "best on validation",
        {"marker": "s", "color": PALETTE[0], "s": 22, "zorder": 2},
    ),
    "released": ("maximum on test", {"marker": "^", "color": PALETTE[1], "s": 26, "zorder": 3}),
}


def pictures(m: Material) -> Iterator[Picture]:
    """One figure per dataset and split in selection.csv."""
    if m.selection.empty:
        return
    for place in m.places:
        table = select(m.selection, dataset=place[0], split=place[1])
        if table.empty:
            continue
        yield Picture(
            stem("selection", place),
            draw(m, table, place),
            f"Which epoch is reported? {words(place)}",
            "Test score, mean over the seeds, of the last epoch, of the epoch with the best mA on "
            "validation images, and the maximum of each metric over the epochs on the test images "
            "themselves, as some released code reports. That maximum chooses on the test images, "
            "so it is no result: it shows how much such a choice flatters.",
            "Training",
        )


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Percent, mean over the seeds: rows (metric, method, variant), a column per rule."""
    values: Any = table.groupby(["metric", "method", "variant"])[list(RULES)]
    return 100 * values.mean()


def draw(m: Material, table: pd.DataFrame, place: Place) -> Figure:
    found = means(table)
    there = set(table["metric"])
    metrics = {label: name for label, name in m.metrics.items() if name in there}
    known = set(zip(table["method"], table["variant"], strict=True))
    rows = [row for row in m.rows(place) if row in known]
    figure = Figure(figsize=(WIDTH, 1.4 + 0.22 * len(rows)))
    axes: Any = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for ax, (label, metric) in zip(axes, metrics.items(), strict=True):
        here = found.loc[metric].reindex(rows)
        y = range(len(rows))
        ax.hlines(y, here.min(axis=1), here.max(axis=1), color="0.6", linewidth=1.5, zorder=1)
        for rule, (meaning, look) in RULES.items():
            ax.scatter(here[rule], y, label=meaning, **look)
        ax.set(xlabel=f"{label} (%)")
        ax.set_yticks(y, [m.name(row) for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=3, loc="outside lower center")
    figure.suptitle(words(place))
    return figure
