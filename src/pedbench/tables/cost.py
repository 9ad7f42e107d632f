"""The table of costs: no column mixes devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pedbench.collect import select
from pedbench.files import read_json
from pedbench.results import display_name
from pedbench.tables.definitions import Definition
from pedbench.tables.model import Block, Cell, Column, Row, Table
from pedbench.tables.source import Experiment, Results, place_of, row_of

PPT_CONSTANT = 1e7  # C of the PPT score
PPT, SECONDS = "ppt", "seconds_fit"


@dataclass(frozen=True)
class Figure:
    """A column of cost.csv: its label, how it is written, and what it is multiplied with."""

    column: str
    label: str
    form: str = "{:,.1f}"
    factor: float = 1.0


ANYWHERE = (  # the same on every device
    Figure("parameters_allocated", "Allocated", "{:,.0f}"),
    Figure("parameters_trained", "Trained", "{:,.0f}"),
    Figure("parameters_effective", "Effective", "{:,.0f}"),
    Figure("share_of_full", "% of CLIP", "{:.3g}"),
    Figure("adapter_bytes", "Adapter (kB)", factor=1e-3),
    Figure("gflop_per_image", "GFLOP/image", "{:.4f}"),
)
ON_DEVICE = (
    Figure("train_images_per_s", "Train (images/s)"),
    Figure("latency_ms_1", "Latency (ms)", "{:.2f}"),
    Figure("images_per_s_1", "images/s at 1"),
    Figure("images_per_s_8", "at 8"),
    Figure("images_per_s_32", "at 32"),
    Figure("train_peak_mb", "Peak train (MB)"),
    Figure("predict_peak_mb", "Peak predict (MB)"),
    Figure("energy_j_per_image", "J/image", "{:.2f}"),
)
OF_RUNS = Figure(SECONDS, "Training (s)")
SCORE = Figure(PPT, "PPT", "{:.2f}")
CAPTION = (
    "Parameters: all that the built model holds, those that train, and of these the ones that get "
    "a gradient; % of CLIP: trained, as a share of the plain backbone's; adapter: the file that is "
    "kept. Speed and memory were measured apart, one variant after the other; prediction as the "
    "latency of one image and as images per second at batch sizes 1, 8 and 32. Training time: mean "
    "over the seeds of the runs, beside other jobs. PPT = mA exp(-log10(P / C + 1)) with P trained "
    "parameters, C = 10 million and the runs' mA on the same dataset (V-PETL Bench, as we "
    "understand it). – : not measured, or nothing to measure."
)


def ppt(score: float, parameters: float) -> float:
    """Performance-parameter trade-off of V-PETL Bench (Xin et al., NeurIPS 2024, Datasets and
    Benchmarks), as we understand it: ``score`` in percent, discounted by trained ``parameters``."""
    return score * math.exp(-math.log10(parameters / PPT_CONSTANT + 1))


def cost_table(definition: Definition, results: Results) -> Table | None:
    """One row per variant in cost.csv. None when there is no such file, or no row of it."""
    if results.cost is None:
        return None
    measured = {(*place_of(row), *row_of(row)): row for row in results.cost.to_dict("records")}
    rows = [
        (e, measured[key])
        for e in results.shown(definition)
        if (key := (*place_of(e), *row_of(e))) in measured
    ]
    if not rows:
        return None
    columns: list[tuple[Column, Callable[[Experiment, Mapping[str, Any]], Cell]]] = []

    def add(group: str, figure: Figure, here: Callable[..., bool] = lambda e, row: True) -> None:
        def cell(e: Experiment, row: Mapping[str, Any]) -> Cell:
            return _cell(figure, row) if here(e, row) else Cell()

        columns.append((Column(group, figure.label, metric=figure.column), cell))

    rows = [(e, {**row, PPT: _ppt(e, row, results)}) for e, row in rows]
    for figure in ANYWHERE:
        add("Parameters" if figure.column.startswith("parameters") else "", figure)
    devices = list(dict.fromkeys(_device(row) for _, row in rows if _device(row)))
    for device in devices:
        for figure in ON_DEVICE:
            if any(_given(row[figure.column]) for _, row in rows if _device(row) == device):
                group = device if len(devices) > 1 else ""
                add(group, figure, lambda e, row, d=device: _device(row) == d)
    trained = list(dict.fromkeys(_device_of_runs(e) for e, row in rows if _given(row[SECONDS])))
    for device in filter(None, trained):
        group = f"Runs on {device}" if len(trained) > 1 else ""
        add(group, OF_RUNS, lambda e, row, d=device: _device_of_runs(e) == d)
    add("", SCORE)
    places = dict.fromkeys("/".join(place_of(e)) for e, _ in rows)
    shown = [
        Row(display_name(*row_of(e)), (), tuple(of(e, row) for _, of in columns), *row_of(e))
        for e, row in rows
    ]
    place = next(iter(places)).split("/") if len(places) == 1 else ("", "")
    block = Block("", tuple(shown), *place)
    runs = f"; the runs: {', '.join(filter(None, trained))}" if any(trained) else ""
    where = f"Measured on {', '.join(places)}; device: {'; '.join(devices) or 'unknown'}{runs}."
    caption = " ".join(filter(None, (definition.caption, where, CAPTION)))
    heads = tuple(column for column, _ in columns)
    return Table(definition.name, definition.title, caption, (), heads, (block,), align="right")


def _cell(figure: Figure, row: Mapping[str, Any]) -> Cell:
    value = row[figure.column]
    if not _given(value):
        return Cell()
    return Cell(float(value), printed=figure.form.format(float(value) * figure.factor))


def _given(value: Any) -> bool:
    return value is not None and not pd.isna(value)


def _device(row: Mapping[str, Any]) -> str:
    """Device and threads of a measurement; empty where there was none."""
    if not _given(row["device"]):
        return ""
    threads = f", {int(row['threads'])} threads" if _given(row["threads"]) else ""
    return f"{row['device']}{threads.replace(' 1 threads', ' 1 thread')}"


def _device_of_runs(experiment: Experiment) -> str:
    """The device of an experiment's runs; empty if there are several, whose times do not mix."""
    files = [Path(experiment["folder"]) / f"seed{n}/environment.json" for n in experiment["seeds"]]
    found = {str(read_json(file).get("device", "")) for file in files if file.is_file()}
    return found.pop() if len(found) == 1 else ""


def _ppt(experiment: Experiment, row: Mapping[str, Any], results: Results) -> float:
    """NaN without a score or a count of parameters."""
    place = dict(zip(("dataset", "split"), place_of(experiment), strict=True))
    method, variant = row_of(experiment)
    scores: Any = select(
        results.scores, **place, method=method, variant=variant, attribute="", metric="mA"
    )
    mean, parameters = scores["value"].mean(skipna=False), row["parameters_trained"]
    return ppt(float(mean), float(parameters)) if _given(parameters) else math.nan
