"""The table of selection bias: how much the best epoch on the test split flatters."""

from __future__ import annotations

import pandas as pd

from pedbench.collect import select
from pedbench.results import display_name, headline
from pedbench.tables.definitions import METRICS, Definition
from pedbench.tables.model import Block, Cell, Column, Row, Table, cell_of
from pedbench.tables.scores import label_of
from pedbench.tables.source import Results, place_of, variants
from pedbench.tables.text import of_data

COLUMNS = {  # name -> label and how it comes from selection.csv
    "last_epoch": "last epoch",
    "validation": "best validation",
    "released": "test maximum",
    "released_minus_validation": "over validation",
    "released_minus_last": "over last",
}
CAPTION = (
    "Test images, in percent: the score of the last epoch, of the epoch with the best validation "
    "mA, and the highest of all epochs, for each metric by itself. The test maximum is what "
    "selecting epochs on the test split gives, as released code does; it is no result and stands "
    "in no other table. Over validation, over last: by how much it "
    "is above the two fair ones. Mean ± standard deviation "
    "over the seeds."
)


def selection_table(definition: Definition, results: Results) -> Table | None:
    """A block per dataset and split. None when selection.csv does not exist or has no rows."""
    if results.selection is None or results.selection.empty:
        return None
    table = results.selection.assign(
        released_minus_validation=results.selection["released"] - results.selection["validation"],
        released_minus_last=results.selection["released"] - results.selection["last_epoch"],
    )
    labels = _labels(definition, results)
    pairs = [(metric, column) for metric in labels for column in COLUMNS]
    blocks, shown = [], results.shown(definition)
    for dataset, split in results.places(definition):
        rows = []
        for method, variant in variants(shown):
            own = select(table, dataset=dataset, split=split, method=method, variant=variant)
            if len(own):
                cells = tuple(_cell(own, *pair) for pair in pairs)
                rows.append(Row(display_name(method, variant), (), cells, method, variant))
        if rows:
            blocks.append(Block(f"{dataset}/{split}", tuple(rows), dataset, split))
    if not blocks:
        return None
    columns = tuple(
        Column(labels[metric], COLUMNS[column], metric=f"{labels[metric]} {column}")
        for metric, column in pairs
    )
    places = {(block.dataset, block.split) for block in blocks}
    about = of_data([e for e in shown if place_of(e) in places], results)
    caption = " ".join(filter(None, (CAPTION, definition.caption, *about)))
    return Table(definition.name, definition.title, caption, (), columns, tuple(blocks))


def _labels(definition: Definition, results: Results) -> dict[str, str]:
    """Metric of selection.csv -> its heading; "F1" is the protocol's."""
    protocol = results.protocol("par")
    wanted = [headline(protocol) if m == "F1" else m for m in definition.metrics]
    return {METRICS["par"][metric]: label_of(metric) for metric in wanted}


def _cell(rows: pd.DataFrame, metric: str, column: str) -> Cell:
    values = select(rows, metric=metric)[column]
    return cell_of(100 * values.to_numpy()) if len(values) else Cell()
