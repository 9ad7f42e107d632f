"""Accuracy against cost, with the Pareto front."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from pedbench.collect import select
from pedbench.config import HEADLINE
from pedbench.figures.material import Material, Place, stem, words
from pedbench.figures.style import BLUE, WIDTH, Picture, scale_x

COSTS = {
    "parameters_trained": "trained parameters",
    "seconds_fit": "training time (s)",
    "train_peak_mb": "peak memory in training (MB)",
}
PLACE = ["dataset", "split", "device", "threads"]


def pictures(m: Material) -> Iterator[Picture]:
    """One figure per dataset, split and device: numbers of two devices share no axis."""
    if m.cost.empty:
        return
    devices = list(dict.fromkeys(m.cost["device"]))
    groups: Any = m.cost.groupby(PLACE, dropna=False, sort=False)
    for (dataset, split, device, threads), group in groups:
        place: Place = dataset, split
        table = with_score(m, place, group)
        panels = {c: t for c, t in COSTS.items() if c in table and len(table[c].dropna()) > 1}
        of_runs = (
            list(table["device_of_runs"].dropna().unique()) if "device_of_runs" in table else []
        )
        if len(of_runs) != 1:
            panels.pop("seconds_fit", None)
        if not panels:
            continue
        name = stem("cost", place)
        yield Picture(
            name if len(devices) == 1 else f"{name}_device{devices.index(device)}",
            draw(m, table, place, panels),
            f"Accuracy against cost on {words(place)}",
            f"Test {metric_of(m, place)}, mean over the seeds, against cost ({device}, threads: "
            f"{threads}"
            + (f"; training time: the runs on {of_runs[0]}" if "seconds_fit" in panels else "")
            + "). "
            "Filled, joined by the line: the Pareto front, that is, no other method scores at "
            "least as high for less. The front describes these test results; it chooses nothing.",
            "Cost",
        )


def metric_of(m: Material, place: Place) -> str:
    """What stands against cost: mA or mAP."""
    return HEADLINE[m.tasks[place]]


def with_score(m: Material, place: Place, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``table`` in the order of the tables with their ``score``, the mean over the
    seeds on test images."""
    dataset, split = place
    scores = select(m.scores, dataset=dataset, split=split, subset="test", attribute="")
    scores = select(scores, metric=metric_of(m, place))
    values: Any = scores.groupby(["method", "variant"])["value"]
    mean = values.mean().rename("score")
    table = table.set_index(["method", "variant"])
    rows = [row for row in m.rows(place) if row in table.index and row in mean.index]
    return table.loc[rows].join(mean)


def pareto(cost: NDArray[Any], score: NDArray[Any]) -> NDArray[np.bool_]:
    """Which points no other beats: none costs at most as much and scores at least as high, one of
    the two strictly. Shape ``(N,)`` each; a point without cost (NaN) is not on the front."""
    cheaper, higher = cost[:, None] >= cost, score[:, None] <= score
    strictly = (cost[:, None] > cost) | (score[:, None] < score)
    return ~(cheaper & higher & strictly).any(axis=1) & ~np.isnan(cost)


def draw(m: Material, table: pd.DataFrame, place: Place, panels: dict[str, str]) -> Figure:
    """A number for each method; what the numbers mean is below the panels."""
    names = [f"{n} {m.name(row)}" for n, row in enumerate(table.index, 1)]  # type: ignore[arg-type]
    columns = 2 if max(map(len, names)) > 38 else 3 if max(map(len, names)) > 24 else 4
    figure = Figure(figsize=(WIDTH, 2.6 + 0.03 * len(names) + 0.15 * -(-len(names) // columns)))
    axes: Any = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    score = table["score"].to_numpy(float)
    for ax, (column, label) in zip(axes, panels.items(), strict=True):
        cost = table[column].to_numpy(float)
        front = pareto(cost, score)
        order = np.argsort(cost[front], kind="stable")
        ax.plot(cost[front][order], score[front][order], color=BLUE, linewidth=1, zorder=1)
        ax.plot(cost[~front], score[~front], "o", color=BLUE, markerfacecolor="white")
        ax.plot(cost[front], score[front], "o", color=BLUE)
        scale_x(ax, cost[~np.isnan(cost)])
        ax.margins(x=0.15, y=0.05)
        ax.set(xlabel=label)
    axes[0].set(ylabel=f"{metric_of(m, place)} (%)")
    handles = [Line2D([], [], linestyle="", label=name) for name in names]
    figure.legend(
        handles=handles,
        ncols=columns,
        loc="outside lower center",
        fontsize=7,
        handlelength=0,
        handletextpad=0,
    )
    figure.suptitle(words(place))
    figure.draw_without_rendering()  # places on paper are known after this
    for ax, column in zip(axes, panels, strict=True):
        write_numbers(ax, table[column].to_numpy(float), score)
    return figure


def write_numbers(ax: Any, x: NDArray[Any], y: NDArray[Any]) -> None:
    """1, 2, ... beside the points, as near as no point or number is in the way; left of the front,
    where no other points are, and right of the others."""
    places = ax.transData.transform(np.column_stack([x, y])) * 72 / ax.figure.dpi  # in points
    front, known = pareto(x, y), ~np.isnan(x)
    taken = [tuple(place) for place in places[known]]
    for i in np.flatnonzero(known):
        side = -1 if front[i] else 1
        right, up = places[i] + (8 * side, 0)
        lift = next(k for k in sorted(range(-99, 100), key=abs) if free(taken, right, up + k))
        taken.append((right, up + lift))
        arrow = {"arrowstyle": "-", "linewidth": 0.4, "color": "0.4"} if abs(lift) > 5 else None
        offset = {"xytext": (8 * side, lift), "textcoords": "offset points"}
        offset |= {"ha": "center", "va": "center"}
        text = ax.annotate(str(i + 1), (x[i], y[i]), fontsize=6.5, arrowprops=arrow, **offset)
        text.set_zorder(1.5)  # hides lines, not points
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])


def free(taken: Iterable[tuple[float, float]], right: float, up: float) -> bool:
    """Whether a number has room there; all in points of paper."""
    return all(abs(right - x) >= 8 or abs(up - y) >= 6.5 for x, y in taken)
