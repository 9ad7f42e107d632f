"""Training curves: loss, and validation mA where it was logged, against the epoch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pedbench.config import HEADLINE
from pedbench.figures.material import Material, Place, Row, stem, words
from pedbench.figures.style import BLUE, WIDTH, Picture

COLUMNS = 4
QUANTITIES = {
    "loss": ("training", "Training loss"),
    **{f"val/{metric}": ("validation", f"Validation {metric} (%)") for metric in HEADLINE.values()},
}
CAPTIONS = {
    "loss": "Training loss (sum of its terms, mean of the epoch's steps)",
    **{f"val/{m}": f"{m} on validation images after each epoch" for m in HEADLINE.values()},
}


def pictures(m: Material) -> Iterator[Picture]:
    """Per dataset and split: losses, and validation curves if any were logged."""
    for place in m.places:
        curves = {row: history(m, place, row) for row in m.rows(place)}
        for quantity, (name, label) in QUANTITIES.items():
            found = {
                row: c for row, c in curves.items() if quantity in c and len(c[quantity].dropna())
            }
            if found:
                yield Picture(
                    stem(name, place),
                    draw(m, found, quantity, f"{label}, {words(place)}"),
                    f"{label} on {words(place)}",
                    f"{CAPTIONS[quantity]} against the epoch: mean over the seeds, band from "
                    "lowest to highest. Dotted lines part the stages of a training; scales differ.",
                    "Training",
                )


def history(m: Material, place: Place, row: Row) -> pd.DataFrame:
    """One row per epoch and seed: ``epoch`` (1, 2, ... over all stages), ``stage``, ``loss``,
    ``val/mA`` in percent where logged. Empty where nothing is trained."""
    seeds = [read_log(run.folder / "metrics.jsonl") for run in m.runs(place, row)]
    return pd.concat(seeds, ignore_index=True)


def read_log(path: Path) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    table = pd.DataFrame(lines)
    terms = [name for name in table if str(name).startswith("loss")]
    table = table.assign(epoch=range(1, len(table) + 1), loss=table[terms].sum(axis=1))
    for quantity in QUANTITIES.keys() & set(table) - {"loss"}:
        table[quantity] *= 100
    return table


def stages(curve: pd.DataFrame) -> list[tuple[str, int]]:
    """Name and last epoch of each stage."""
    if "stage" not in curve:
        return []
    epochs = curve.drop_duplicates("epoch").sort_values("epoch")
    ends = epochs[epochs["stage"] != epochs["stage"].shift(-1)]
    return list(zip(ends["stage"], ends["epoch"], strict=True))


def draw(m: Material, curves: dict[Row, pd.DataFrame], quantity: str, title: str) -> Figure:
    columns = min(COLUMNS, len(curves))
    lines = -(-len(curves) // columns)
    figure = Figure(figsize=(WIDTH, 0.4 + 1.5 * lines))
    axes: Any = figure.subplots(lines, columns, squeeze=False)
    for ax in axes.flat[len(curves) :]:
        ax.set_visible(False)
    for ax, (row, curve) in zip(axes.flat, curves.items(), strict=False):
        band = curve.groupby("epoch")[quantity].agg(["mean", "min", "max"])
        ax.plot(band.index, band["mean"], color=BLUE, marker="o", markersize=2, linewidth=1)
        ax.fill_between(band.index, band["min"], band["max"], color=BLUE, alpha=0.25, linewidth=0)
        name_stages(ax, stages(curve), at_top=quantity == "loss")
        ax.set_title(fill(m.name(row), 26), fontsize=7.5)
        ax.tick_params(labelsize=6.5)
        ax.xaxis.get_major_locator().set_params(integer=True)
    figure.supxlabel("epoch", fontsize="small")
    figure.suptitle(title)
    return figure


def name_stages(ax: Any, found: list[tuple[str, int]], at_top: bool) -> None:
    """The name of each stage where the curve leaves room, a line between two."""
    height, align = (0.98, "top") if at_top else (0.02, "bottom")
    for name, last in found if len(found) > 1 else []:
        if (name, last) != found[-1]:
            ax.axvline(last + 0.5, color="0.4", linestyle=":", linewidth=1)
        at = {"transform": ax.get_xaxis_transform(), "ha": "right", "va": align, "fontsize": 6.5}
        ax.text(last + 0.3, height, name, **at)
