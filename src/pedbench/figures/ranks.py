"""Critical-difference diagrams (Demšar, JMLR 2006): mean ranks, and which methods tie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pedbench.collect import read_csv, select
from pedbench.figures.material import Material, label
from pedbench.figures.style import BLUE, WIDTH, Picture
from pedbench.stats import POSTHOC, RANKS


def pictures(m: Material) -> Iterator[Picture]:
    """One diagram per metric, where three methods or more were ranked over two blocks or more."""
    ranks, tests = read_csv(m.stats / RANKS), read_csv(m.stats / POSTHOC)
    if ranks.empty or tests.empty:
        return
    for metric in dict.fromkeys(ranks["metric"]):
        mean, p = matrix(select(ranks, metric=metric), select(tests, metric=metric))
        if len(mean) < 3 or p.isna().to_numpy().any():
            continue
        blocks = select(ranks, metric=metric)["blocks"].iloc[0]
        yield Picture(
            f"critical_difference_{metric}",
            draw(m, mean, p, metric),
            f"Mean ranks in {label(metric)}",
            f"Mean rank in test {label(metric)} over {blocks} blocks (dataset, split and seed); 1 "
            "is best. Methods joined by a bar are not told apart by Nemenyi's test (p at least "
            f"{m.plan['comparison']['alpha']:g}). Seeds of one dataset and split share their test "
            "images, so the blocks are not independent: a summary, not a test to rely on.",
            "Comparison",
        )


def matrix(ranks: pd.DataFrame, tests: pd.DataFrame) -> tuple[pd.Series, pd.DataFrame]:
    """Mean rank of each (method, variant), and the symmetric matrix of their p-values."""
    mean: Any = ranks.set_index(["method", "variant"])["mean_rank"]
    rows = list(mean.index)
    p = pd.DataFrame(np.nan, index=range(len(rows)), columns=range(len(rows)))
    at = {row: i for i, row in enumerate(rows)}
    for test in tests.to_dict("records"):
        i = at[test["method"], test["variant"]]
        j = at[test["against_method"], test["against_variant"]]
        p.iloc[i, j] = p.iloc[j, i] = test["p"]
    for i in range(len(rows)):
        p.iloc[i, i] = 1.0
    return mean, p


def draw(m: Material, mean: pd.Series, p: pd.DataFrame, metric: str) -> Figure:
    from scikit_posthocs import critical_difference_diagram

    names = [m.name(row) for row in mean.index]  # type: ignore[arg-type]
    figure = Figure(figsize=(WIDTH, 1.2 + 0.15 * len(names)))
    ax: Any = figure.subplots()
    ranks = pd.Series(mean.to_numpy(), index=names)
    drawn = critical_difference_diagram(
        ranks,
        p.set_axis(names, axis=0).set_axis(names, axis=1),
        ax=ax,
        alpha=m.plan["comparison"]["alpha"],
        label_fmt_left="{label} ({rank:.1f})",
        label_fmt_right="({rank:.1f}) {label}",
        label_props={"fontsize": 8},
        color_palette=dict.fromkeys(names, BLUE),
        elbow_props={"linewidth": 0.8},
        crossbar_props={"color": "0.2", "linewidth": 2.5, "marker": None},
        text_h_margin=0.02,
    )
    for (bar,) in drawn["crossbars"]:  # its points are in the order of a set, which varies
        bar.set_xdata(sorted(bar.get_xdata()))
    ax.set_title(f"mean rank in {label(metric)} (1: best)", fontsize="small")
    return figure
