"""From the long table to ``results/figures/``: PDF and PNG in one style, equal bytes each time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pedbench.collect import read_long, select
from pedbench.files import write_atomic
from pedbench.results import display_name, headline, read_variant
from pedbench.runs import refusal
from pedbench.stats import INTERVALS, VS_BASELINE, read_stats

WIDTH = 7.0  # inches: the text width of a two-column paper
STYLE: Any = {
    **sns.axes_style("whitegrid"),
    **sns.plotting_context("paper"),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
    "savefig.dpi": 200,
}
BLUE, ORANGE = sns.color_palette("colorblind", 2).as_hex()
PLAIN = {"pdf": {"CreationDate": None}, "png": {"Software": None}}  # no time, no version


def write_figures(long: Path, stats: Path, plan: Mapping[str, Any], out: Path) -> None:
    """One figure per sweep and one overview per dataset and split, below ``out``.

    ``plan`` holds the contents of plan.json; ``stats`` is the folder that ``stats.write_stats``
    wrote. The baseline of the tests is drawn as a dashed line.
    """
    baseline = plan["comparison"]["baseline"]
    experiments = [e for e in plan["experiments"] if e["in_tables"]]
    scores = select(read_long(long), subset="test", attribute="")
    scores = scores.assign(value=100 * scores["value"])
    intervals, tests = read_stats(stats / INTERVALS), read_stats(stats / VS_BASELINE)
    with rc_context(STYLE):
        for sweep in plan["sweeps"]:
            here = select(scores, dataset=sweep["dataset"], split=sweep["split"])
            f1 = headline(read_variant(Path(experiments[0]["folder"]))["protocol"])
            save(sweep_figure(sweep, here, f1, baseline), out / sweep["name"])
        run = [e for e in experiments if refusal(Path(e["folder"])) is None]
        for dataset, split in dict.fromkeys((e["dataset"], e["split"]) for e in run):
            place = {"dataset": dataset, "split": split}
            rows = [(e["method"], e["variant"]) for e in run if place.items() <= e.items()]
            figure = overview(rows, select(intervals, **place), select(tests, **place), baseline)
            level = f"{100 * (1 - plan['comparison']['alpha']):g} % confidence intervals"
            figure.suptitle(f"{dataset}, {split} split ({level})", fontsize="medium")
            save(figure, out / f"methods_{dataset}_{split}")


def sweep_figure(
    sweep: Mapping[str, Any], scores: pd.DataFrame, f1: str, baseline: str | None
) -> Figure:
    """mA and F1 against the swept parameter: mean over the seeds, band of one standard deviation.

    Values are evenly spaced, whatever their size. Points without scores are left out.
    """
    figure = Figure(figsize=(WIDTH, 2.7))
    axes: Any = figure.subplots(1, 2)
    (one,) = sweep["lines"]
    points = {f"{one['method']}/{p['variant']}": i for i, p in enumerate(one["points"])}
    scores = scores.assign(choice=scores["method"] + "/" + scores["variant"])
    scores = scores.assign(x=scores["choice"].map(points.get))
    for ax, (label, metric) in zip(axes, {"mA": "mA", "F1": f1}.items(), strict=True):
        values = select(scores, metric=metric)
        line = values.dropna(subset=["x"])
        sns.lineplot(line, x="x", y="value", errorbar="sd", marker="o", color=BLUE, ax=ax)
        if baseline in set(values["choice"]):
            mean = select(values, choice=baseline)["value"].mean()
            ax.axhline(mean, color=ORANGE, linestyle="--", label=name_of(baseline))
            ax.legend()
        ax.set_xticks(range(len(points)), [str(point["value"]) for point in one["points"]])
        ax.set(xlabel=sweep["parameter"].replace("_", " "), ylabel=f"{label} (%)")
    title = f"{display_name(one['method'], one['base'])} on {sweep['dataset']}"
    figure.suptitle(f"{title}, {sweep['split']} split (mean ± sd over seeds)", fontsize="medium")
    return figure


def overview(
    rows: Sequence[tuple[str, str]],
    intervals: pd.DataFrame,
    tests: pd.DataFrame,
    baseline: str | None,
) -> Figure:
    """The compared metrics of every (method, variant) with confidence intervals."""
    figure = Figure(figsize=(WIDTH, 1.3 + 0.22 * len(rows)))
    metrics = list(dict.fromkeys(intervals["metric"]))
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
            if "/".join(row) == baseline:
                ax.axvline(value, color=ORANGE, linestyle="--", zorder=0)
        ax.set(xlabel=f"{metric} (%)")
        ax.set_yticks(range(len(rows)), [display_name(*row) for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    if baseline and tuple(baseline.split("/")) in rows:
        figure.legend(handles=key(name_of(baseline)), ncols=3, loc="outside lower center")
    return figure


def key(baseline: str) -> list[Line2D]:
    """What the marks of an overview mean."""
    return [
        Line2D([], [], color=ORANGE, linestyle="--", label=baseline),
        Line2D([], [], color=BLUE, marker="o", label="differs from it"),
        Line2D([], [], color=BLUE, marker="o", markerfacecolor="white", label="not separated"),
    ]


def name_of(choice: str | None) -> str:
    """The display name of ``method/variant``."""
    return display_name(*(choice or "/").split("/"))


def save(figure: Figure, stem: Path) -> None:
    """``stem``.pdf and ``stem``.png."""
    for kind, metadata in PLAIN.items():
        path = stem.with_name(f"{stem.name}.{kind}")
        write_atomic(path, lambda p, k=kind, m=metadata: figure.savefig(p, format=k, metadata=m))
