"""From scores to ``results/long.parquet``: one tidy row per number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pedbench.contracts import PedbenchError
from pedbench.files import read_json, write_atomic
from pedbench.results import Run, read_runs
from pedbench.score import SUBSETS

COLUMNS = {
    "dataset": pa.string(),
    "split": pa.string(),
    "method": pa.string(),
    "variant": pa.string(),
    "seed": pa.int64(),
    "subset": pa.string(),
    "attribute": pa.string(),  # "" for a metric over all attributes
    "metric": pa.string(),
    "value": pa.float64(),  # a fraction; null: undefined
    "higher_is_better": pa.bool_(),
    "protocol": pa.string(),
    "digest": pa.string(),
}


def collect(folders: Iterable[Path], out: Path) -> None:
    """Write the scores of all runs to ``out``, sorted; equal scores give equal bytes.

    Raises PedbenchError naming two runs when runs of one dataset were made under different
    protocols or from different manifests.
    """
    runs = read_runs(folders)
    for _, group in groupby(runs, key=lambda run: run.dataset):
        check_comparable(list(group))
    rows = [row for run in runs for row in _rows(run)]
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(COLUMNS.items())))
    keys = [(name, "ascending") for name in list(COLUMNS)[:8]]
    table = table.sort_by(keys)
    write_atomic(out, lambda path: pq.write_table(table, path))


def check_comparable(runs: list[Run]) -> None:
    """Raises PedbenchError when ``runs``, all of one dataset, must not stand in one table."""
    _check_same(runs, "protocols", _protocol)
    _check_same(runs, "manifests", lambda run: run.config["manifest_digest"])


def read_long(path: Path) -> pd.DataFrame:
    """The long table. Raises PedbenchError when it is missing or not readable."""
    try:
        return pq.read_table(path, schema=pa.schema(list(COLUMNS.items()))).to_pandas()
    except (pa.ArrowInvalid, OSError) as error:
        raise PedbenchError(f"{path}: not readable ({error}); delete it and run again") from error


def select(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows of ``table`` whose columns have these ``values``."""
    for name, value in values.items():  # noqa: B007
        table = table.query(f"{name} == @value")
    return table


def _protocol(run: Run) -> str:
    p = run.protocol
    return f"{run.protocol_label}, threshold {p['threshold']}, F1 {p['f1']}"


def _check_same(runs: list[Run], what: str, get: Callable[[Run], str]) -> None:
    seen: dict[str, Run] = {}
    for run in runs:
        seen.setdefault(get(run), run)
    if len(seen) > 1:
        (one, first), (other, second) = list(seen.items())[:2]
        raise PedbenchError(
            f"{first.key} and {second.key} cannot be compared: their {what} differ "
            f"({one} against {other}). Run both again, or delete {second.folder} (or "
            f"{first.folder}) if it is left over from earlier."
        )


def _rows(run: Run) -> Iterator[dict[str, Any]]:
    for subset in SUBSETS:
        scores = read_json(run.folder / f"scores.{subset}.json")
        for attribute, metrics in {"": scores["overall"], **scores["attributes"]}.items():
            for metric, value in metrics.items():
                yield {
                    "dataset": run.dataset,
                    "split": run.split,
                    "method": run.method,
                    "variant": run.variant,
                    "seed": run.seed,
                    "subset": subset,
                    "attribute": attribute,
                    "metric": metric,
                    "value": value,
                    "higher_is_better": True,  # every PAR metric is
                    "protocol": run.protocol_label,
                    "digest": run.config["digest"],
                }
