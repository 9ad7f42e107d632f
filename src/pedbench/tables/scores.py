"""Tables of scores: ours over seeds, with marks, and what papers print, in blocks of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pedbench.collect import select
from pedbench.config import plain
from pedbench.files import read_json
from pedbench.published import UNSTATED
from pedbench.published import Row as Published
from pedbench.results import display_name, headline
from pedbench.runs import refusal
from pedbench.tables.definitions import METRICS, NONE, Definition, Lead, Variant, variant_of
from pedbench.tables.model import (
    ABSENT,
    BETTER,
    TICK,
    WORSE,
    Block,
    Cell,
    Column,
    Row,
    Table,
    cell_of,
    ranked,
)
from pedbench.tables.source import Experiment, Place, Results, row_of, variants
from pedbench.tables.text import caption, refusals
from pedbench.tasks.reid import LABELS

F1S = {"F1_instance": "instance", "F1_harmonic": "harmonic", f"F1_{UNSTATED}": "not stated"}
PUBLISHED, MEASURED = "Published", "Measured here"
AVERAGE: Place = ("average", "")


def scores_table(definition: Definition, results: Results) -> Table | None:
    """None when there is nothing to show: no published row, and fewer than two of the rows that
    ``definition`` names (one, if it names none)."""
    published = definition.published_rows()
    shown = results.shown(definition)
    ran = [e for e in shown if refusal(Path(e["folder"])) is None]
    if not published and len(variants(ran)) < (2 if definition.rows else 1):
        return None
    shown = shown if ran else []
    tests = tests_of(definition, results)
    columns = columns_of(definition, results, published, bool(shown))
    thresholds = bool(published) and definition.task == "par"
    threshold = ("Threshold",) if thresholds else ()
    blocks = []
    if published:
        rows = tuple(
            _published_row(row, definition.columns, columns, thresholds) for row in published
        )
        sources = ", ".join(dict.fromkeys(row.source for row in published))
        blocks.append(Block(f"{PUBLISHED}: {sources}", rows))
    if shown:
        cells = {c: _measured(c, definition, shown, results, tests) for c in columns}
        protocol = results.protocol(definition.task)
        own = (str(protocol["threshold"]),) if thresholds else ()
        rows = []
        for variant in variants(shown):
            lead = [lead_of(column, variant, shown, results) for column in definition.columns]
            of_row = tuple(cells[column].get(variant, Cell()) for column in columns)
            rows.append(Row(display_name(*variant), (*lead, *own), of_row, *variant))
        blocks.append(Block(MEASURED if published else "", tuple(rows)))
    sentences = [
        caption(definition, shown, results, tests, [c.key for c in columns], published),
        *refusals(shown),
    ]
    return Table(
        definition.name,
        definition.title,
        " ".join(sentences),
        (*(column.label for column in definition.columns), *threshold),
        tuple(columns),
        tuple(blocks),
        tuple(_notes(published, definition)),
    )


def columns_of(
    definition: Definition, results: Results, published: Sequence[Published], measured: bool
) -> list[Column]:
    """Every metric on every place; F1 once for each definition that is in use there."""
    places = results.places(definition)
    splits = {split for _, split in places}
    average = [AVERAGE] if definition.average and len(places) > 1 else []
    columns = []
    for dataset, split in [*places, *average]:
        place = f"{dataset}/{split}"
        name = dataset if len(splits) == 1 else place
        name = name if (dataset, split) != AVERAGE else "Average"
        printed = {metric for row in published for at, metric in row.scores if at == place}
        in_use = _metrics(definition, results, printed, measured)
        for metric in dict.fromkeys(in_use):
            group = definition.labels.get(place, name)
            columns.append(Column(group, label_of(metric), dataset, split, key=metric))
    return columns


def label_of(metric: str) -> str:
    """A metric as columns are headed; an F1 by its definition."""
    if metric in F1S:
        return f"F1 ({F1S[metric]})"
    return LABELS.get(metric, metric.replace("_", " "))


def _metrics(
    definition: Definition, results: Results, printed: set[str], measured: bool
) -> Iterator[str]:
    """Those of ``definition`` with "F1" replaced by the definitions in use."""
    own = {headline(results.protocol(definition.task))} if measured else set()
    for metric in definition.metrics:
        if metric == "F1":
            yield from (name for name in F1S if name in printed | own)
        else:
            yield metric


def _measured(
    column: Column,
    definition: Definition,
    shown: Sequence[Experiment],
    results: Results,
    tests: pd.DataFrame,
) -> dict[Variant, Cell]:
    """The cells of one column, ranked: of a place, or over all of them, seed by seed. There is no
    average over a gap."""
    known, place = METRICS[definition.task], (column.dataset, column.split)
    metric = known.get(column.key, column.key)
    places = results.places(definition) if place == AVERAGE else [place]
    scores = select(results.scores, attribute="", metric=metric)
    table = scores.pivot(
        index=["method", "variant", "seed"], columns=["dataset", "split"], values="value"
    )
    table = table.reindex(columns=pd.MultiIndex.from_tuples(places)).dropna(how="all")
    values = table.mean(axis=1, skipna=False).groupby(["method", "variant"])
    protocol = results.protocol(definition.task)
    marks = significance_marks(tests, protocol).get((*place, metric), {})
    rows = variants(shown)
    by_row: dict[Any, Any] = {row: v.to_numpy() for row, v in values}
    cells = {row: cell_of(by_row[row], marks.get(row, "")) for row in rows if row in by_row}
    return ranked(cells)


def tests_of(definition: Definition, results: Results) -> pd.DataFrame:
    """The tests of a table: against the plan's baseline, or, where ``definition`` names another,
    those of all pairs that it is in, turned so that it is what the others are compared with."""
    at = results.places(definition)
    if definition.baseline == NONE:
        return results.versus.iloc[:0]
    if definition.baseline in (None, results.baseline):
        tests = results.versus
    else:
        tests = _against(definition.baseline, results.pairs)
    places = zip(tests["dataset"], tests["split"], strict=True)
    return tests.loc[[place in at for place in places]]


def _against(baseline: str, pairs: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``pairs`` with ``baseline``, as differences to it."""
    method, variant = baseline.split("/")
    second = select(pairs, against_method=method, against_variant=variant)
    first: Any = select(pairs, method=method, variant=variant)
    turned = {"method": "against_method", "variant": "against_variant"}
    first = first.rename(columns={**turned, **{new: old for old, new in turned.items()}})
    return pd.concat([second, first.assign(difference=-first["difference"])])


def significance_marks(
    tests: pd.DataFrame, protocol: Mapping[str, Any]
) -> dict[tuple[str, str, str], dict[Variant, str]]:
    """(dataset, split, metric of the long table) -> row -> the mark of a significant difference."""
    marks: dict[tuple[str, str, str], dict[Variant, str]] = {}
    for test in select(tests, significant=True).to_dict("records"):
        metric = headline(protocol) if test["metric"] == "F1" else test["metric"]
        mark = BETTER if test["difference"] > 0 else WORSE
        place = test["dataset"], test["split"], metric
        marks.setdefault(place, {})[test["method"], test["variant"]] = mark
    return marks


def _published_row(
    row: Published, leads: Sequence[Lead], columns: Sequence[Column], threshold: bool
) -> Row:
    lead = [
        text or ABSENT if column.tick is None else {"1": TICK}.get(text, "")
        for column, text in zip(leads, row.lead, strict=True)
    ]
    cells = []
    for column in columns:
        place = f"{column.dataset}/{column.split}"
        text = row.scores.get((place, column.key))
        cells.append(Cell(printed=text, note=row.notes.get(place, "")) if text else Cell())
    if threshold:
        lead.append(row.threshold or "not stated")
    return Row(row.name, tuple(lead), tuple(cells), source=row.source)


def lead_of(column: Lead, variant: Variant, shown: Sequence[Experiment], results: Results) -> str:
    """What a leading column says of a measured row, read where the row comes first."""
    experiment = next(e for e in shown if row_of(e) == variant)
    facts = {**plain(results.specs[experiment["folder"]])}
    values = {**facts["protocol"], **facts["params"], "backbone": facts.get("backbone")}
    if any(values.get(key) != wanted for key, wanted in column.only.items()):
        return ABSENT
    if column.measured.startswith("parameters_trained"):
        return _parameters(experiment, column.measured)
    value = values.get(column.measured)
    if column.tick is None:
        return ABSENT if value in (None, "") else str(value)
    ((condition, wanted),) = column.tick.items()
    ticked = {
        "above": lambda: value is not None and value > wanted,
        "is": lambda: value is not None and value == wanted,
        "not": lambda: value is not None and value != wanted,
        "rows": lambda: variant in map(variant_of, wanted),
    }
    return TICK if ticked[condition]() else ""


def _parameters(experiment: Experiment, fact: str) -> str:
    """From the cost that every run writes down."""
    files = [Path(experiment["folder"]) / f"seed{n}/cost.json" for n in experiment["seeds"]]
    found = [read_json(file)["parameters_trained"] for file in files if file.is_file()]
    if not found:
        return ABSENT
    return f"{found[0] / 1e6:.2f}" if fact.endswith("_M") else f"{found[0]:,}"


def _notes(published: Sequence[Published], definition: Definition) -> Iterator[str]:
    """What is known of each published number."""
    for row in published:
        for place, note in row.notes.items():
            yield f"{row.name}, {definition.labels.get(place, place)}: {note}"
