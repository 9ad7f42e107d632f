"""Scores against a swept parameter: prompt length and depth (PromptPAR, Fig. 5), labels, ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import t as student

from pedbench.collect import select
from pedbench.config import ROOT
from pedbench.figures.material import Material, Place, words
from pedbench.figures.style import GREY, WIDTH, Picture, looks, wide
from pedbench.published import FOLDER, read_lines


def pictures(m: Material) -> Iterator[Picture]:
    """One figure per sweep of the plan."""
    for sweep in m.plan["sweeps"]:
        yield picture(m, sweep)


def picture(m: Material, sweep: Mapping[str, Any]) -> Picture:
    """Both metrics of the task against the parameter, a line per method, each with its confidence
    band."""
    place: Place = sweep["dataset"], sweep["split"]
    scores = select(m.scores, dataset=place[0], split=place[1], subset="test", attribute="")
    lines, tested = sweep["lines"], all_tested(m, sweep)
    metrics = m.metrics(place)
    printed = published(sweep["parameter"], place, metrics.get("F1"))
    figure = Figure(figsize=(WIDTH, 2.9))
    axes: Any = figure.subplots(1, 2)
    for ax, (label, metric) in zip(axes, metrics.items(), strict=True):
        values = select(scores, metric=metric)
        for line, look in zip(lines, looks(len(lines)), strict=True):
            points: Any = curve(line, values, 1 - m.plan["comparison"]["alpha"])
            if tested:
                points = points.assign(**of_stats(m, place, line, metric))
            x = positions(points["value"], lines)
            name = m.name((line["method"], line["base"]))
            ax.plot(x, points["mean"], label=name, **look)
            band = {"color": look["color"], "alpha": 0.2 if len(lines) == 1 else 0.12}
            ax.fill_between(x, points["ci_low"], points["ci_high"], linewidth=0, **band)
        if m.baseline in m.rows(place):
            method, variant = m.baseline
            mean = select(values, method=method, variant=variant)["value"].mean()
            ax.axhline(mean, color="0.3", linestyle=(0, (5, 3)), label=m.name(m.baseline))
        draw_published(ax, select(printed, metric=label), lines)
        axis(ax, lines, printed["value"].dropna().tolist())
        ax.set(xlabel=sweep["parameter"].replace("_", " "), ylabel=f"{label} (%)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=min(len(labels), 4), loc="outside lower center")
    figure.suptitle(words(place))
    return Picture(
        sweep["name"],
        figure,
        f"Score against {sweep['parameter'].replace('_', ' ')}",
        caption(m, sweep, tested, printed),
        "Sweeps",
    )


def curve(line: Mapping[str, Any], scores: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """``value, variant, mean, ci_low, ci_high, seeds`` of every point of ``line`` that was run.

    ``scores`` holds one metric at one place. The interval is Student's t over the seeds; with one
    seed there is none (NaN).
    """
    rows = []
    for point in line["points"]:
        seeds = select(scores, method=line["method"], variant=point["variant"])["value"]
        if seeds.empty:
            continue
        mean, n = seeds.mean(skipna=False), len(seeds)
        half = student.ppf((1 + confidence) / 2, n - 1) * seeds.std() / n**0.5 if n > 1 else np.nan
        rows.append((point["value"], point["variant"], mean, mean - half, mean + half, n))
    names = ["value", "variant", "mean", "ci_low", "ci_high", "seeds"]
    return pd.DataFrame(rows, columns=names)


def all_tested(m: Material, sweep: Mapping[str, Any]) -> bool:
    """Whether the statistics hold an interval of every point, so that one kind serves all."""
    place = {"dataset": sweep["dataset"], "split": sweep["split"]}
    found = select(m.intervals, **place)
    known = set(zip(found["method"], found["variant"], strict=True))
    return all((li["method"], p["variant"]) in known for li in sweep["lines"] for p in li["points"])


def of_stats(
    m: Material, place: Place, line: Mapping[str, Any], metric: str
) -> dict[str, np.ndarray]:
    """``ci_low`` and ``ci_high`` at the points of ``line`` of a metric of the long table."""
    dataset, split = place
    found = select(m.intervals, dataset=dataset, split=split, metric=metric, method=line["method"])
    found = found.set_index("variant").loc[[point["variant"] for point in line["points"]]]
    return {name: found[name].to_numpy() for name in ("ci_low", "ci_high")}


def numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def values_of(lines: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Every value of the sweep once; numbers ascending, others as they stand."""
    values = list(dict.fromkeys(p["value"] for line in lines for p in line["points"]))
    return sorted(values) if numeric(values) else values


def positions(values: pd.Series, lines: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Where ``values`` stand on the axis: numbers where they are, others evenly spaced."""
    known = values_of(lines)
    return list(values) if numeric(known) else [known.index(value) for value in values]


def axis(ax: Any, lines: Sequence[Mapping[str, Any]], printed: Sequence[float]) -> None:
    """A tick at every value; logarithmic where positive numbers span a wide range."""
    values = values_of(lines)
    if not numeric(values):
        ax.set_xticks(range(len(values)), [str(value) for value in values])
        return
    ticks = sorted({*values, *printed})
    if ticks[0] > 0 and wide(ticks):
        ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xticks([], minor=True)


def published(parameter: str, place: Place, f1: str | None) -> pd.DataFrame:
    """``value, metric, low, high, source, note`` that a paper states of this sweep on this dataset.

    One file per parameter in ``resources/published``: points (a column of the parameter's name;
    ``low`` equals ``high``) or ranges over all values (``value`` is empty). Their F1 is the mean
    over images, so it stands only beside that.
    """
    names = ["value", "metric", "low", "high", "source", "note"]
    file = f"sweep_{parameter}.csv"
    if not (ROOT / FOLDER / file).is_file() or place[1] != "standard":
        return pd.DataFrame(columns=names)
    table: Any = pd.DataFrame(read_lines(file, "figures"))
    table = table[table["dataset"].str.lower() == place[0]]
    if parameter in table:
        metrics = [name for name in ("mA", "F1") if name in table]
        table = table.melt([parameter, "source", "note"], metrics, "metric", "low")
        table = table.rename(columns={parameter: "value"}).assign(high=table["low"])
    else:
        table = table.rename(columns={"range_low": "low", "range_high": "high"})
        table = table.assign(value=np.nan)
    if f1 != "F1_instance":
        table = table[table["metric"] != "F1"]
    numbers = ["value", "low", "high"]
    table[numbers] = table[numbers].apply(pd.to_numeric)
    return table[names].reset_index(drop=True)


def draw_published(ax: Any, printed: pd.DataFrame, lines: Sequence[Mapping[str, Any]]) -> None:
    if printed.empty or not numeric(values_of(lines)):
        return
    look = {"color": GREY, "label": "published"}
    points = printed.dropna(subset=["value"])
    if len(points):
        ax.plot(points["value"], points["low"], marker="*", markersize=8, linestyle=":", **look)
    else:
        ax.axhspan(printed["low"].min(), printed["high"].max(), alpha=0.25, linewidth=0, **look)


def caption(m: Material, sweep: Mapping[str, Any], tested: bool, printed: pd.DataFrame) -> str:
    """What the bands are, and where published numbers come from."""
    over = "test images and seeds" if tested else "the seeds alone (Student's t)"
    place = sweep["dataset"], sweep["split"]
    metrics = m.metrics(place)
    parts = [
        f"{' and '.join(metrics)} on the test images of {words(place)}, mean over "
        f"the seeds, against {sweep['parameter'].replace('_', ' ')}",
        f"Band: {m.level} confidence interval over {over}; none where there is one seed",
    ]
    if m.baseline in m.rows(place):
        parts.append(f"Dashed: {m.name(m.baseline)}")
    if len(printed):
        sources = ", ".join(dict.fromkeys(printed["source"]))
        parts.append(f"Stars or grey range: as published ({sources})")
        parts += [f"Of these: {note}" for note in dict.fromkeys(printed["note"]) if note]
    if sweep["parameter"] == "label_fraction":
        parts.append("Epochs pass over the kept images, so fewer labels are also fewer steps")
    return ". ".join(parts) + "."
