"""From predictions to ``scores.{val,test}.json``: all metrics of every finished run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pedbench.contracts import PedbenchError
from pedbench.evaluation import KINDS, evaluation
from pedbench.files import file_sha256, read_json, write_json
from pedbench.manifest import read_manifest
from pedbench.results import Run, read_runs
from pedbench.runs import RunFolder


def score_runs(folders: Iterable[Path], manifests: Mapping[str, Path], marker: Path) -> int:
    """Score every run folder whose scores are not those of its predictions; return how many.

    ``manifests`` maps a dataset to its manifest. Each ``scores.{subset}.json`` holds ``overall``
    and per-attribute metrics as fractions (null: undefined), what they were computed with and
    the sha256 of the predictions or rankings. ``marker`` lists those checksums and is written last.
    """
    opened = {dataset: read_manifest(Path(path)) for dataset, path in manifests.items()}
    written, checksums = 0, {}
    for run in read_runs(folders):
        for subset in RunFolder(run.folder).predicted:
            source = basis(run, subset)
            checksums[f"{run.key}/{subset}"] = source[KINDS[run.task].file]
            path = run.folder / f"scores.{subset}.json"
            if not is_current(path, source):
                write_json(path, source | evaluation(run, opened[run.dataset], subset).scores())
                written += 1
    write_json(marker, checksums)
    return written


def basis(run: Run, subset: str) -> dict[str, Any]:
    """What the scores depend on; scores of the same basis are the same."""
    kind = KINDS[run.task]
    path = run.folder / f"{kind.file}.{subset}.parquet"
    if not path.is_file():
        raise PedbenchError(f"{path}: no such file; delete {run.folder} and run again")
    return {
        "digest": run.config["digest"],
        kind.file: file_sha256(path),
        "protocol": run.protocol_label,
        **{setting: run.protocol[setting] for setting in kind.settings},
    }


def is_current(path: Path, source: Mapping[str, Any]) -> bool:
    return path.is_file() and source.items() <= read_json(path).items()
