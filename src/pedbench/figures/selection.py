"""How much choosing the epoch on test images flatters a method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pedbench.collect import select
from pedbench.figures.material import Material, Place, stem, words
from pedbench.figures.style import BLUE, ORANGE, WIDTH, Picture

RULES: dict[str, tuple[str, Any]] = {
    "validation": ("best on validation", {"marker": "s", "color": BLUE, "s": 22, "zorder": 3}),
    "released": ("maximum on test", {"marker": "^", "color": ORANGE, "s": 34, "zorder": 2}),
}


def pictures(m: Material) -> Iterator[Picture]:
    """One figure per dataset and split in selection.csv."""
    if m.selection.empty:
        return
    for place in m.of_task("par"):
        table = select(m.selection, dataset=place[0], split=place[1])
        if table.empty:
            continue
        yield Picture(
            stem("selection", place),
            draw(m, table, place),
            f"Which epoch is reported? {words(place)}",
            "Test score against that of the last epoch, mean over the seeds: of the epoch with the "
            "best mA on validation images, and of the maximum of each metric over the epochs on "
            "the test images themselves, as some released code reports. That maximum chooses on "
            "the test images, so it is no result: it shows how much such a choice flatters.",
            "Training",
        )


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """Points above the last epoch, mean over the seeds: rows (metric, method, variant), a column
    per rule."""
    above = table.assign(**{rule: 100 * (table[rule] - table["last_epoch"]) for rule in RULES})
    values: Any = above.groupby(["metric", "method", "variant"])[list(RULES)]
    return values.mean()


def draw(m: Material, table: pd.DataFrame, place: Place) -> Figure:
    found = differences(table)
    there = set(table["metric"])
    metrics = {label: name for label, name in m.metrics(place).items() if name in there}
    known = set(zip(table["method"], table["variant"], strict=True))
    rows = [row for row in m.rows(place) if row in known]
    figure = Figure(figsize=(WIDTH, 1.4 + 0.22 * len(rows)))
    axes: Any = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    y = range(len(rows))
    for ax, (label, metric) in zip(axes, metrics.items(), strict=True):
        here = found.loc[metric].reindex(rows)
        ax.axvline(0, color="0.3", linewidth=0.8, zorder=1)
        ax.hlines(y, 0, here["released"], color="0.6", linewidth=1.5, zorder=1)
        for rule, (meaning, look) in RULES.items():
            ax.scatter(here[rule], y, label=meaning, **look)
        ax.set(xlabel=f"{label} above the last epoch (points)")
        ax.set_yticks(y, [m.name(row) for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=2, loc="outside lower center")
    figure.suptitle(words(place))
    return figure
