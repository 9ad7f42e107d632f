"""What is learned of each attribute: AP against the baseline (PromptPAR, Fig. 4), and where mA is
gained: frequent attributes or rare ones (Fig. 7)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from pedbench.collect import read_csv, select
from pedbench.figures.material import Material, Place, Row, stem, words
from pedbench.figures.style import BLUE, ORANGE, WIDTH, Picture, scale_x, signed
from pedbench.stats import ATTRIBUTES

CATEGORY = "Attributes"
CHOSEN = (
    "the method with the highest mA on validation images (where the split has none, the last in "
    "the plan), the baseline aside"
)


def pictures(m: Material) -> Iterator[Picture]:
    """Per dataset and split: AP of the best method and gains of all; mA gains against frequency."""
    table = read_csv(m.stats / ATTRIBUTES)
    if m.baseline is None or table.empty:
        return
    places = [p for p in m.of_task("par") if m.baseline in m.rows(p) and len(m.rows(p)) > 1]
    base = m.name(m.baseline)
    for place in places:
        best = m.best(place)
        assert best is not None
        here = select(table, dataset=place[0], split=place[1], metric="AP")
        yield Picture(
            stem("attributes", place),
            dumbbells(m, here, place, best),
            f"Attributes of {words(place)}: {m.name(best)} against {base}",
            "Average precision (AP) of each attribute on test images, mean over the seeds, sorted "
            f"by the difference, which stands on the right with its {m.level} confidence interval "
            f"(not corrected for the number of attributes). Filled: {m.name(best)}, {CHOSEN}; "
            f"hollow: {base}.",
            CATEGORY,
        )
        yield Picture(
            stem("attribute_gains", place),
            heatmap(m, here, place),
            f"Attributes of {words(place)}: gain of every method over {base}",
            f"Difference in average precision (AP, percentage points) to {base}, mean over the "
            "seeds, test images. Attributes are sorted by the mean gain over the methods.",
            CATEGORY,
        )
    if places:
        yield Picture(
            "gain_by_frequency",
            frequency(m, select(table, metric="mA"), places),
            f"Gain over {base} against the attributes' frequency",
            "Difference in an attribute's mA against its share of positives among the training "
            f"labels, mean over the seeds, test images, of {CHOSEN}. Bars: {m.level} confidence "
            "intervals. ρ: Spearman's rank correlation over the attributes; negative: rare "
            "attributes gain more.",
            CATEGORY,
        )


def of_row(table: pd.DataFrame, row: Row) -> Any:
    """The rows of one variant by attribute, but for attributes that are undefined."""
    found = select(table, method=row[0], variant=row[1]).set_index("attribute")
    return found.dropna(subset=["value"])


def against_baseline(m: Material, table: pd.DataFrame, row: Row) -> pd.DataFrame:
    """``ours, base, difference, ci_low, ci_high`` by attribute, smallest difference first."""
    assert m.baseline is not None
    base = of_row(table, m.baseline)["value"].rename("base")
    found = of_row(table, row).rename(columns={"value": "ours"}).join(base, how="inner")
    return found.sort_values("difference", kind="stable")


def dumbbells(m: Material, table: pd.DataFrame, place: Place, best: Row) -> Figure:
    found: Any = against_baseline(m, table, best)
    assert m.baseline is not None
    figure = Figure(figsize=(WIDTH, 1.3 + 0.17 * len(found)))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    y = np.arange(len(found))
    left.hlines(y, found["base"], found["ours"], color="0.6", linewidth=2, zorder=1)
    white: Any = {"facecolor": "white", "edgecolor": ORANGE, "linewidth": 1.4}
    left.scatter(found["base"], y, s=26, marker="s", zorder=2, label=m.name(m.baseline), **white)
    left.scatter(found["ours"], y, s=30, color=BLUE, zorder=3, label=m.name(best))
    left.set_yticks(y, [str(name).replace("_", " ") for name in found.index])
    left.set(xlabel="AP (%)", ylim=(-0.7, len(found) - 0.3))
    right.hlines(y, found["ci_low"], found["ci_high"], color=BLUE)
    right.plot(found["difference"], y, "o", color=BLUE, markersize=4)
    right.axvline(0, color="0.3", linewidth=0.8)
    right.set(xlabel="difference (points)")
    figure.legend(ncols=2, loc="outside lower center")
    figure.suptitle(words(place))
    return figure


def gains(m: Material, table: pd.DataFrame, place: Place) -> pd.DataFrame:
    """Differences to the baseline: rows are the other variants in table order, columns the
    attributes that are defined for all, by mean gain, largest first."""
    rows = [row for row in m.rows(place) if row != m.baseline]
    differences = [of_row(table, row)["difference"].rename(row) for row in rows]
    found: Any = pd.concat(differences, axis=1).dropna().T
    return found[found.mean().sort_values(ascending=False, kind="stable").index]


def heatmap(m: Material, table: pd.DataFrame, place: Place) -> Figure:
    """Attributes and methods, the fewer of them as columns. In grey both ends of the colours are
    dark, hence the numbers."""
    found = gains(m, table, place)
    methods = [m.name(row) for row in found.index]  # type: ignore[arg-type]
    found = found.set_axis(pd.Index(methods), axis=0)
    found = found.set_axis([str(name).replace("_", " ") for name in found], axis=1)
    found = found.T if len(found) < len(found.columns) else found
    values = found.to_numpy()
    rows, columns = values.shape
    figure = Figure(figsize=(max(WIDTH, 2.6 + 0.31 * columns), 2.4 + 0.2 * rows))
    ax: Any = figure.subplots()
    limit = float(np.abs(values).max()) or 1.0
    image = ax.pcolormesh(values, cmap="RdBu", vmin=-limit, vmax=limit)
    at = {"ha": "center", "va": "center", "fontsize": 6.5}
    for (y, x), value in np.ndenumerate(values):
        colour = "white" if abs(value) > 0.6 * limit else "black"
        ax.text(x + 0.5, y + 0.5, signed(value), color=colour, **at)
    ax.set_xticks(np.arange(columns) + 0.5, list(found), rotation=90)
    ax.set_yticks(np.arange(rows) + 0.5, list(found.index))
    ax.invert_yaxis()
    ax.grid(visible=False)
    figure.colorbar(image, ax=ax, label="AP gain (points)", shrink=0.6, pad=0.01)
    assert m.baseline is not None
    figure.suptitle(f"{words(place)}: AP minus that of {m.name(m.baseline)}")
    return figure


def frequency(m: Material, table: pd.DataFrame, places: list[Place]) -> Figure:
    """One panel per place."""
    columns = min(len(places), 3)
    lines = -(-len(places) // columns)
    figure = Figure(figsize=(WIDTH, 0.4 + 2.5 * lines))
    axes: Any = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for ax in axes.flat[len(places) :]:
        ax.set_visible(False)
    for ax, place in zip(axes.flat, places, strict=False):
        best = m.best(place)
        assert best is not None
        found = by_frequency(m, select(table, dataset=place[0], split=place[1]), best)
        rank = ""
        if len(found) > 2:
            rho, _ = spearmanr(found["ratio"], found["difference"])
            rank = f", ρ = {rho:.2f}".replace("-", "−")
        ax.vlines(found["ratio"], found["ci_low"], found["ci_high"], color="0.7", linewidth=1)
        ax.scatter(found["ratio"], found["difference"], s=18, color=BLUE, zorder=2)
        ax.axhline(0, color="0.3", linewidth=0.8)
        scale_x(ax, found["ratio"])
        name_extremes(ax, found)
        ax.set_title(f"{words(place)}\n{m.name(best)}{rank}", fontsize="small")
        ax.set(xlabel="positive training labels (%)")
    for ax in axes[:, 0]:
        ax.set(ylabel="mA gain (points)")
    return figure


def by_frequency(m: Material, table: pd.DataFrame, row: Row) -> pd.DataFrame:
    """:func:`against_baseline` with ``ratio``, the percentage of positives in training; without
    attributes that have none."""
    found = against_baseline(m, table, row)
    found = found.assign(ratio=100 * found["train_ratio"])
    return found.query("ratio > 0")


def name_extremes(ax: Any, found: pd.DataFrame) -> None:
    """The names of the attributes that gain least and most, the first and the last."""
    middle = np.sqrt(found["ratio"].min() * found["ratio"].max())
    for attribute in (found.index[0], found.index[-1]) if len(found) > 1 else ():
        x, y = found.loc[attribute, "ratio"], found.loc[attribute, "difference"]
        side, shift = ("right", -4) if x > middle else ("left", 4)
        text = str(attribute).replace("_", " ")
        at = {"textcoords": "offset points", "ha": side, "va": "center", "fontsize": 7}
        ax.annotate(text, (x, y), (shift, 0), **at)
