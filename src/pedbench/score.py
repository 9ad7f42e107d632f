"""From predictions to ``scores.{val,test}.json``: all metrics of every finished run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pedbench.contracts import PedbenchError
from pedbench.files import file_sha256, read_json, write_json
from pedbench.manifest import Manifest, read_manifest
from pedbench.results import Run, read_predictions, read_runs
from pedbench.runs import RunFolder
from pedbench.tasks import par


def score_runs(folders: Iterable[Path], manifests: Mapping[str, Path], marker: Path) -> int:
    """Score every run folder whose scores are not those of its predictions; return how many.

    ``manifests`` maps a dataset to its manifest. Each ``scores.{subset}.json`` holds ``overall``
    and per-attribute metrics as fractions (null: undefined), what they were computed with and
    the sha256 of the predictions. ``marker`` lists those checksums and is written last.
    """
    opened = {dataset: read_manifest(Path(path)) for dataset, path in manifests.items()}
    written, checksums = 0, {}
    for run in read_runs(folders):
        for subset in RunFolder(run.folder).predicted:
            source = basis(run, subset)
            checksums[f"{run.key}/{subset}"] = source["predictions"]
            path = run.folder / f"scores.{subset}.json"
            if not is_current(path, source):
                write_json(path, source | score_run(run, opened[run.dataset], subset))
                written += 1
    write_json(marker, checksums)
    return written


def basis(run: Run, subset: str) -> dict[str, Any]:
    """What the scores depend on; scores of the same basis are the same."""
    path = run.folder / f"predictions.{subset}.parquet"
    if not path.is_file():
        raise PedbenchError(f"{path}: no such file; delete {run.folder} and run again")
    return {
        "digest": run.config["digest"],
        "predictions": file_sha256(path),
        "protocol": run.protocol_label,
        "threshold": run.protocol["threshold"],
    }


def is_current(path: Path, source: Mapping[str, Any]) -> bool:
    return path.is_file() and source.items() <= read_json(path).items()


def score_run(run: Run, manifest: Manifest, subset: str) -> dict[str, Any]:
    """``{"images": M, "overall": {...}, "attributes": {attribute: {...}}}`` of one subset."""
    p = read_predictions(run, manifest, subset)
    threshold = run.protocol["threshold"]
    attributes = par.score_attributes(p.probabilities, p.labels, p.attributes, threshold)
    return {
        "images": len(p.labels),
        "overall": _defined(par.score(p.probabilities, p.labels, threshold)),
        "attributes": {name: _defined(metrics) for name, metrics in attributes.items()},
    }


def _defined(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}
