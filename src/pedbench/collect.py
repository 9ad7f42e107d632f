"""From scores to ``results/long.parquet``: one tidy row per number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pedbench.contracts import PedbenchError
from pedbench.files import read_json, write_atomic
from pedbench.results import Run, read_runs
from pedbench.runs import RunFolder

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

    Raises PedbenchError naming two runs when runs of one dataset were made from different manifests
    or, solving one task, under different protocols.
    """
    runs = read_runs(folders)
    for _, group in groupby(runs, key=lambda run: run.dataset):
        check_comparable(list(group))
    schema = pa.schema(list(COLUMNS.items()))  # run by run: a million rows of Python are 2 GB
    table = pa.concat_tables(
        [schema.empty_table(), *(pa.Table.from_pylist(list(_rows(run)), schema) for run in runs)]
    )
    keys = [(name, "ascending") for name in list(COLUMNS)[:8]]
    table = table.sort_by(keys)
    write_atomic(out, lambda path: pq.write_table(table, path))


@dataclass(frozen=True)
class Mismatch:
    """Two runs that must not stand in one table, ``what`` of them differs, and how."""

    what: Literal["protocols", "manifests"]
    first: Run
    second: Run
    values: tuple[str, str]

    def __str__(self) -> str:
        return (
            f"{self.first.key} and {self.second.key} cannot be compared: their {self.what} differ "
            f"({' against '.join(self.values)})"
        )


def mismatch(runs: list[Run]) -> Mismatch | None:
    """The first in ``runs``, all of one dataset. Each task has a protocol of its own."""
    of_tasks = [
        [run for run in runs if run.task == task] for task in sorted({r.task for r in runs})
    ]
    found = (_different(of_task, "protocols", _protocol) for of_task in of_tasks)
    manifests = _different(runs, "manifests", lambda run: run.config["manifest_digest"])
    return next(filter(None, found), manifests)


def check_comparable(runs: list[Run]) -> None:
    """Raises PedbenchError when ``runs``, all of one dataset, must not stand in one table."""
    if found := mismatch(runs):
        raise PedbenchError(
            f"{found}. Run both again, or delete {found.second.folder} (or {found.first.folder}) "
            "if it is left over from earlier."
        )


def read_long(path: Path) -> pd.DataFrame:
    """The long table. Raises PedbenchError when it is missing or not readable."""
    try:
        return pq.read_table(path, schema=pa.schema(list(COLUMNS.items()))).to_pandas()
    except (pa.ArrowInvalid, OSError) as error:
        raise PedbenchError(f"{path}: not readable ({error}); delete it and run again") from error


def read_csv(path: Path) -> pd.DataFrame:
    """A CSV file of another step; only an empty field is undefined, whatever a variant is called.

    Raises PedbenchError when it is missing or not readable.
    """
    try:
        return pd.read_csv(path, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise PedbenchError(f"{path}: not readable ({error}); delete it and run again") from error


def rank_by_validation(
    rows: Iterable[tuple[str, str]], long: pd.DataFrame, dataset: str, split: str, metric: str
) -> list[tuple[str, str]]:
    """``rows``, methods with their variants, by the mean of the seeds' ``metric`` on validation
    images, highest first; equal ones, and those without a value, keep their order. On a split
    without validation images the last come first: one's own method stands last in a plan."""
    rows = list(rows)
    if not has_validation(long, dataset, split):
        return rows[::-1]
    scores = select(long, dataset=dataset, split=split, subset="val", metric=metric, attribute="")
    means: Any = scores.groupby(["method", "variant"])["value"].mean()
    means = means.fillna(-1.0)
    return sorted(rows, key=lambda row: -means.get(row, -1.0))


def has_validation(long: pd.DataFrame, dataset: str, split: str) -> bool:
    """Whether ``rank_by_validation`` has scores to go by, so that its first is the best."""
    return not select(long, dataset=dataset, split=split, subset="val").empty


def select(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows of ``table`` whose columns have these ``values``."""
    for name, value in values.items():  # noqa: B007
        table = table.query(f"{name} == @value")
    return table


def _protocol(run: Run) -> str:
    if run.task == "reid":
        return run.protocol_label
    p = run.protocol
    unknown = "negative" if run.unknown_labels == "negative" else "left out"
    return (
        f"{run.protocol_label}, threshold {p['threshold']}, F1 {p['f1']}, unknown labels {unknown}"
    )


def _different(
    runs: list[Run], what: Literal["protocols", "manifests"], get: Callable[[Run], str]
) -> Mismatch | None:
    seen: dict[str, Run] = {}
    for run in runs:
        seen.setdefault(get(run), run)
    if len(seen) < 2:
        return None
    (one, first), (other, second) = list(seen.items())[:2]
    return Mismatch(what, first, second, (one, other))


def _rows(run: Run) -> Iterator[dict[str, Any]]:
    for subset in RunFolder(run.folder).predicted:
        scores = read_json(run.folder / f"scores.{subset}.json")
        for attribute, metrics in {"": scores["overall"], **scores.get("attributes", {})}.items():
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
                    "higher_is_better": True,  # every metric is
                    "protocol": run.protocol_label,
                    "digest": run.config["digest"],
                }
