"""The table of costs: no column mixes devices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pedbench.collect import select
from pedbench.config import HEADLINE
from pedbench.results import display_name
from pedbench.tables.definitions import Definition
from pedbench.tables.model import Block, Cell, Column, Row, Table
from pedbench.tables.source import Experiment, Place, Results, place_of, row_of
from pedbench.tables.text import of_data

PPT_CONSTANT = 1e7  # C of the PPT score


@dataclass(frozen=True)
class Quantity:
    """A column of cost.csv: its label, how it is written (if not said: with one decimal below 100),
    and what it is multiplied with."""

    column: str
    label: str
    form: str = ""
    factor: float = 1.0
    group: str = ""

    def cell(self, value: float) -> Cell:
        shown = value * self.factor
        form = self.form or ("{:,.1f}" if shown < 100 else "{:,.0f}")
        return Cell(float(value), printed=form.format(shown))


ANYWHERE = (  # the same on every device
    Quantity("parameters_allocated", "Allocated", "{:,.0f}", group="Parameters"),
    Quantity("parameters_trained", "Trained", "{:,.0f}", group="Parameters"),
    Quantity("parameters_effective", "Effective", "{:,.0f}", group="Parameters"),
    Quantity("share_of_full", "% of CLIP", "{:.3g}"),
    Quantity("adapter_bytes", "Adapter (kB)", factor=1e-3),
    Quantity("gflop_per_image", "GFLOP/image", "{:.4f}"),
)
ON_DEVICE = (
    Quantity("train_images_per_s", "Train (images/s)"),
    Quantity("latency_ms_1", "Latency (ms)", "{:.2f}"),
    Quantity("images_per_s_1", "images/s at 1"),
    Quantity("images_per_s_8", "at 8"),
    Quantity("images_per_s_32", "at 32"),
    Quantity("train_peak_mb", "Peak train (MB)"),
    Quantity("predict_peak_mb", "Peak predict (MB)"),
    Quantity("energy_j_per_image", "J/image", "{:.2f}"),
)
OF_RUNS = Quantity("seconds_fit", "Training (s)")
PPT = Quantity("ppt", "PPT", "{:.2f}")
CAPTION = (
    "Parameters: all that the built model holds, those that train, and of these the ones that get "
    "a gradient; % of CLIP: trained, as a share of the plain backbone's; adapter: the file that is "
    "kept. Speed and memory were measured apart, one variant after the other; prediction as the "
    "latency of one image and as images per second at batch sizes 1, 8 and 32. Training time: mean "
    "over the seeds of the runs, beside other jobs. PPT = {score} exp(-log10(P / C + 1)) with P "
    "trained parameters, C = 10 million and the runs' {score} on the same dataset (V-PETL Bench, "
    "as we understand it). – : not measured, or nothing to measure."
)


def ppt(score: float, parameters: float) -> float:
    """Performance-parameter trade-off of V-PETL Bench (Xin et al., NeurIPS 2024, Datasets and
    Benchmarks), as we understand it: ``score`` in percent, discounted by trained ``parameters``."""
    return score * math.exp(-math.log10(parameters / PPT_CONSTANT + 1))


Key = tuple[str, Quantity]  # device and quantity


@dataclass(frozen=True)
class Measured:
    """A row of cost.csv. The device of the measurement and that of the runs are empty where there
    is none; ``cells`` by device and quantity, the device empty where it does not matter."""

    experiment: Experiment
    device: str
    device_of_runs: str
    cells: Mapping[Key, Cell]


def cost_table(definition: Definition, results: Results) -> Table | None:
    """One row per variant in cost.csv. None when there is no such file, or no row of it."""
    found = _measured(definition, results)
    if not found:
        return None
    devices = _names(variant.device for variant in found)
    of_runs = _names(variant.device_of_runs for variant in found)
    keys = [
        *(("", quantity) for quantity in ANYWHERE),
        *((device, quantity) for device in devices for quantity in ON_DEVICE),
        *((device, OF_RUNS) for device in of_runs),
        ("", PPT),
    ]
    keys = [key for key in keys if any(key in variant.cells for variant in found)]
    rows = tuple(
        Row(display_name(*row), (), tuple(v.cells.get(key, Cell()) for key in keys), *row)
        for v in found
        for row in (row_of(v.experiment),)
    )
    places = list(dict.fromkeys(place_of(variant.experiment) for variant in found))
    block = Block("", rows, *(places[0] if len(places) == 1 else ("", "")))
    columns = tuple(_column(*key, devices, of_runs) for key in keys)
    about = of_data([variant.experiment for variant in found], results)
    caption = " ".join([_caption(definition, places, devices, of_runs), *about])
    return Table(definition.name, definition.title, caption, (), columns, (block,), align="right")


def _measured(definition: Definition, results: Results) -> list[Measured]:
    """What ``definition`` shows and cost.csv has, in the table's order."""
    if results.cost is None:
        return []
    measured = {(*place_of(row), *row_of(row)): row for row in results.cost.to_dict("records")}
    return [
        _read(e, measured[key], results)
        for e in results.shown(definition)
        if (key := (*place_of(e), *row_of(e))) in measured
    ]


def _read(experiment: Experiment, row: Mapping[str, Any], results: Results) -> Measured:
    device, of_runs = _device(row), _text(row.get("device_of_runs"))
    values = {**row, PPT.column: _ppt(experiment, row, results)}
    keys = [
        *(("", quantity) for quantity in (*ANYWHERE, PPT)),
        *((device, quantity) for quantity in ON_DEVICE),
        (of_runs, OF_RUNS),
    ]
    given = [(on, quantity) for on, quantity in keys if _given(values[quantity.column])]
    cells = {(on, quantity): quantity.cell(values[quantity.column]) for on, quantity in given}
    return Measured(experiment, device, of_runs if (of_runs, OF_RUNS) in cells else "", cells)


def _names(devices: Iterable[str]) -> list[str]:
    return [device for device in dict.fromkeys(devices) if device]


def _column(
    device: str, quantity: Quantity, devices: Sequence[str], of_runs: Sequence[str]
) -> Column:
    """Headed by the device if there are several."""
    group = quantity.group
    if quantity in ON_DEVICE and len(devices) > 1:
        group = device
    if quantity is OF_RUNS and len(of_runs) > 1:
        group = f"Runs on {device}"
    return Column(group, quantity.label, metric=quantity.column)


def _caption(
    definition: Definition, places: Sequence[Place], devices: Sequence[str], of_runs: Sequence[str]
) -> str:
    where = ", ".join("/".join(place) for place in places)
    runs = f"; the runs: {', '.join(of_runs)}" if of_runs else ""
    measured = f"Measured on {where}; device: {'; '.join(devices) or 'unknown'}{runs}."
    explained = CAPTION.format(score=HEADLINE[definition.task])
    return " ".join(filter(None, (definition.caption, measured, explained)))


def _given(value: Any) -> bool:
    return value is not None and not pd.isna(value)


def _text(value: Any) -> str:
    return str(value) if _given(value) else ""


def _device(row: Mapping[str, Any]) -> str:
    """Device and threads of a measurement; empty where there was none."""
    threads = f", {int(row['threads'])} threads" if _given(row["threads"]) else ""
    return _text(row["device"]) and f"{row['device']}{threads.replace(' 1 threads', ' 1 thread')}"


def _ppt(experiment: Experiment, row: Mapping[str, Any], results: Results) -> float:
    """NaN without a score or a count of parameters."""
    place = dict(zip(("dataset", "split"), place_of(experiment), strict=True))
    metric = HEADLINE[results.tasks[place_of(experiment)]]
    method, variant = row_of(experiment)
    scores: Any = select(
        results.scores, **place, method=method, variant=variant, attribute="", metric=metric
    )
    mean, parameters = scores["value"].mean(skipna=False), row["parameters_trained"]
    return ppt(float(mean), float(parameters)) if _given(parameters) else math.nan
