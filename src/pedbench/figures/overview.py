"""All methods at a glance, with confidence intervals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pedbench.collect import select
from pedbench.figures.material import Material, Place, label, stem, words
from pedbench.figures.style import BLUE, ORANGE, WIDTH, Picture
from pedbench.tasks import tested


def pictures(m: Material) -> Iterator[Picture]:
    """One figure per dataset and split."""
    for place in m.places:
        title = f"All methods on {words(place)}"
        yield Picture(stem("methods", place), draw(m, place), title, caption(m), "Comparison")


def draw(m: Material, place: Place) -> Figure:
    """The compared metrics of every method and variant with confidence intervals."""
    dataset, split = place
    rows = m.rows(place)
    intervals = select(m.intervals, dataset=dataset, split=split)
    tests = select(m.tests, dataset=dataset, split=split)
    figure = Figure(figsize=(WIDTH, 1.3 + 0.22 * len(rows)))
    metrics = tested(m.plan["comparison"]["metrics"], m.tasks[place])
    metrics = metrics or tuple(m.metrics(place).values())
    axes: Any = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for ax, metric in zip(axes, metrics, strict=True):
        estimates = select(intervals, metric=metric).set_index(["method", "variant"])
        found = select(tests, metric=metric, significant=True)
        separated = set(zip(found["method"], found["variant"], strict=True))
        for y, row in enumerate(rows):
            value, low, high = estimates.loc[[row], ["value", "ci_low", "ci_high"]].to_numpy()[0]
            ax.plot([low, high], [y, y], color=BLUE)
            face = BLUE if row in separated else "white"
            ax.plot(value, y, "o", color=BLUE, markerfacecolor=face)
            if row == m.baseline:
                ax.axvline(value, color=ORANGE, linestyle="--", zorder=0)
        ax.set(xlabel=f"{label(metric)} (%)")
        ax.set_yticks(range(len(rows)), [m.name(row) for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    if m.baseline in rows:
        figure.legend(handles=key(m.name(m.baseline)), ncols=3, loc="outside lower center")
    figure.suptitle(f"{words(place)} ({m.level} confidence intervals)")
    return figure


def key(baseline: str) -> list[Line2D]:
    """What the marks mean."""
    return [
        Line2D([], [], color=ORANGE, linestyle="--", label=baseline),
        Line2D([], [], color=BLUE, marker="o", label="differs from it"),
        Line2D([], [], color=BLUE, marker="o", markerfacecolor="white", label="not separated"),
    ]


def caption(m: Material) -> str:
    text = f"Test images, mean over the seeds; {m.level} confidence intervals over images and seeds"
    if m.baseline is None:
        return f"{text}."
    return (
        f"{text}. Dashed: {m.name(m.baseline)}; filled: significantly different from it after "
        "Holm's correction (intervals of two methods may overlap although they differ)."
    )
