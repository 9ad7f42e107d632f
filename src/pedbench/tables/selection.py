"""The table of selection bias: how much the best epoch on the test split flatters."""

from __future__ import annotations

import pandas as pd

from pedbench.collect import select
from pedbench.results import display_name, headline
from pedbench.tables.definitions import METRICS, Definition
from pedbench.tables.model import Block, Cell, Column, Row, Table, cell_of
from pedbench.tables.source import Results, place_of, row_of

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
    names = {}
    for metric in definition.metrics:
        name = headline(results.protocol) if metric == "F1" else METRICS[metric]
        if name in set(table["metric"]):
            shown = name.replace("F1_", "F1 (") + ")" if name.startswith("F1_") else metric
            names[name] = shown
    columns = tuple(
        Column(shown, label, metric=f"{shown} {column}", key=f"{name} {column}")
        for name, shown in names.items()
        for column, label in COLUMNS.items()
    )
    blocks = []
    for dataset, split in results.places(definition):
        here = [e for e in results.shown(definition) if place_of(e) == (dataset, split)]
        rows = []
        for method, variant in map(row_of, here):
            own = select(table, dataset=dataset, split=split, method=method, variant=variant)
            if len(own):
                cells = tuple(_cell(own, *column.key.split(" ")) for column in columns)
                rows.append(Row(display_name(method, variant), (), cells, method, variant))
        if rows:
            blocks.append(Block(f"{dataset}/{split}", tuple(rows), dataset, split))
    if not blocks:
        return None
    caption = " ".join(filter(None, (CAPTION, definition.caption)))
    return Table(definition.name, definition.title, caption, (), columns, tuple(blocks))


def _cell(rows: pd.DataFrame, metric: str, column: str) -> Cell:
    values = select(rows, metric=metric)[column]
    return cell_of(100 * values.to_numpy()) if len(values) else Cell()
