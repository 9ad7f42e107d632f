"""Reading results: the plan and ``runs/{dataset}/{split}/{method}/{variant}/seed{n}/``.

Everything after training (scores, statistics, tables, figures, tracking) reads runs through
here and imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pedbench import registry
from pedbench.config import DEFAULT, plain
from pedbench.contracts import PedbenchError, TaskKind
from pedbench.files import read_json
from pedbench.manifest import Manifest
from pedbench.tasks.reid import Rankings

Document = dict[str, Any]  # the contents of a JSON file

PLAN = "plan.json"
KEYS = ("dataset", "split", "method", "variant", "seed")
RANKING = ("image", "identity", "camera", "matches", "first", "AP", "INP", "top")  # columns


@dataclass(frozen=True, eq=False)
class Run:
    """One finished seed. ``config`` holds plain values, without their origins."""

    folder: Path
    config: Mapping[str, Any]
    dataset: str
    split: str
    method: str
    variant: str
    seed: int

    @property
    def key(self) -> str:
        return f"{self.dataset}/{self.split}/{self.method}/{self.variant}/seed{self.seed}"

    @property
    def trained(self) -> bool:
        """Whether the finished run learned anything; that of zero-shot CLIP does not."""
        return "adapter.safetensors" in read_json(self.folder / "train.done.json")["files"]

    @property
    def protocol(self) -> Mapping[str, Any]:
        return self.config["protocol"]

    @property
    def task(self) -> TaskKind:
        """Runs from before there was another were all of attribute recognition."""
        return self.protocol.get("task", "par")

    @property
    def unknown_labels(self) -> str:
        """The protocol's setting; runs from before there was one ignored them."""
        return self.protocol.get("unknown_labels", "ignored")

    @property
    def protocol_label(self) -> str:
        return f"{self.protocol['name']} v{self.protocol['version']}"


@dataclass(frozen=True)
class Predictions:
    """``probabilities (M, A)`` float64, ``labels (M, A)`` in {0, 1, -1}, ``identity (M,)``."""

    attributes: tuple[str, ...]
    probabilities: np.ndarray
    labels: np.ndarray
    identity: np.ndarray


@dataclass(frozen=True)
class Retrieved:
    """The ``rankings`` of the Q queries of a subset and their ``identity (Q,)``; ``query (Q,)`` and
    ``gallery (G,)`` are positions in the subset, in the manifest's order."""

    rankings: Rankings
    identity: np.ndarray
    query: np.ndarray
    gallery: np.ndarray


def read_plan(root: Path) -> Document:
    """The plan of the results in ``root``, with the folders of its runs as seen from here.

    Raises PedbenchError when there is none.
    """
    if not (root / PLAN).is_file():
        raise PedbenchError(
            f"{root / PLAN}: no such file, so no results are here; run 'snakemake --cores all "
            f"{root}/tables', or name another folder with --results"
        )
    return located(read_json(root / PLAN), PurePosixPath(root.as_posix()))


def located(plan: Mapping[str, Any], root: PurePosixPath) -> Document:
    """``plan`` with its results in ``root``, wherever they were made. The datasets' own folders
    and files, which only their owner has, are left out."""
    return {
        **plan,
        "results": str(root),
        "datasets": {
            name: _without(d, "root", "parents", "options")
            | {"options": _without(d.get("options", {}), "phrases")}
            | {"manifest": str(root / "manifests" / f"{name}.parquet")}
            for name, d in plan["datasets"].items()
        },
        "experiments": [
            {**e, "folder": str(root.joinpath("runs", *(e[key] for key in KEYS[:-1])))}
            for e in plan["experiments"]
        ],
    }


def _without(values: Mapping[str, Any], *keys: str) -> Document:
    return {key: value for key, value in values.items() if key not in keys}


def read_variant(folder: Path) -> Mapping[str, Any]:
    """The plain values of the variant whose seeds lie below ``folder``."""
    return plain(read_json(folder / "config.json"))


def read_run(folder: Path) -> Run:
    """Raises PedbenchError when the folder's config.json is missing, damaged or incomplete."""
    path = folder / "config.json"
    config = plain(read_json(path))
    missing = [k for k in (*KEYS, "protocol", "digest", "manifest_digest") if k not in config]
    if missing:
        raise PedbenchError(
            f"{path}: no '{missing[0]}' in it, so this is not a run's config; delete the folder "
            "and run again"
        )
    return Run(folder, config, *(config[key] for key in KEYS))


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """All runs, sorted by dataset, split, method, variant and seed."""
    runs = [read_run(Path(folder)) for folder in folders]
    return sorted(runs, key=lambda r: (r.dataset, r.split, r.method, r.variant, r.seed))


def read_predictions(run: Run, manifest: Manifest, subset: str) -> Predictions:
    """The run's predictions beside the manifest's labels, the unknown ones as its protocol has
    them; logits become probabilities.

    Raises PedbenchError when the file is missing or damaged, or when its images and attributes
    are not those of the manifest.
    """
    path = run.folder / f"predictions.{subset}.parquet"
    table = _read_table(path)
    images = manifest.subset(run.split, subset).settled(subset, run.unknown_labels)
    attributes = tuple(attribute.name for attribute in images.attributes)
    same = table.column_names == ["image", *attributes]
    same = same and table["image"].to_pylist() == list(images.rows["image"])
    _check_same(run, path, "images or attributes", same)
    logits = table.drop_columns(["image"]).to_pandas().to_numpy(np.float64)
    if not np.isfinite(logits).all():
        raise PedbenchError(f"{path}: holds NaN or infinite logits; delete {run.folder}, run again")
    identity = images.rows["identity"].to_numpy()
    return Predictions(attributes, sigmoid(logits), images.labels, identity)


def read_features(run: Run, manifest: Manifest, subset: str) -> np.ndarray:
    """``(M, D)`` float32: what retrieval compares, of every image, in the manifest's order.

    Raises PedbenchError when the file is missing or damaged, or not of the manifest's images.
    """
    path = run.folder / f"predictions.{subset}.parquet"
    table = _read_table(path)
    images = manifest.subset(run.split, subset).rows["image"]
    _check_same(run, path, "columns", table.column_names == ["image", "feature"])
    _check_same(run, path, "images", table["image"].to_pylist() == list(images))
    features = _matrix(path, table["feature"], np.float32)
    if not np.isfinite(features).all():
        raise PedbenchError(
            f"{path}: holds NaN or infinite features; delete {run.folder}, run again"
        )
    return features


def read_rankings(run: Run, manifest: Manifest, subset: str) -> Retrieved:
    """The run's rankings of the manifest's queries.

    Raises PedbenchError when the file is missing or damaged, when its queries are not those of the
    manifest, or when no ranking of its gallery can have such numbers.
    """
    path = run.folder / f"rankings.{subset}.parquet"
    table = _read_table(path)
    images = manifest.subset(run.split, subset)
    is_query = images.is_query(run.split)
    query, gallery = np.flatnonzero(is_query), np.flatnonzero(~is_query)
    asked = images.rows.iloc[query]
    _check_same(run, path, "columns", table.column_names == list(RANKING))
    known = asked.assign(matches=_matches(asked, images.rows.iloc[gallery]))
    for column in ("image", "identity", "camera", "matches"):
        _check_same(run, path, "queries", table[column].to_pylist() == known[column].to_list())
    rankings = Rankings(
        *(table[name].to_numpy() for name in ("matches", "first", "AP", "INP")),
        top=_matrix(path, table["top"], np.int32),
    )
    possible = _possible(rankings, len(gallery))
    if not possible.all():
        raise PedbenchError(
            f"{path}: row {int(np.argmin(possible))} holds numbers that no ranking has; delete "
            f"{run.folder} and run again"
        )
    return Retrieved(rankings, asked["identity"].to_numpy(), query, gallery)


def _matches(asked: pd.DataFrame, gallery: pd.DataFrame) -> np.ndarray:
    """How many images of ``gallery`` show the person of each query, taken by other cameras."""
    every, own = (
        asked[by].merge(gallery.groupby(by, as_index=False).size(), "left", by)["size"].fillna(0)
        for by in (["identity"], ["identity", "camera"])
    )
    return (every - own).to_numpy(int)


def _possible(r: Rankings, gallery: int) -> np.ndarray:
    """Which queries, ``(Q,)``, could be ranked so among as many images."""
    found = np.where(r.valid, (r.first >= 1) & (r.first <= gallery), r.first == 0)
    for share in (r.AP, r.INP):
        found &= np.where(r.valid, (share > 0) & (share <= 1), np.isnan(share))
    return found & ((r.top >= -1) & (r.top < gallery)).all(axis=1)


def _read_table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except FileNotFoundError:
        raise PedbenchError(f"{path}: no such file; run again, the run will be finished") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise PedbenchError(f"{path}: not readable ({error}); delete it and run again") from error


def _check_same(run: Run, path: Path, what: str, same: bool) -> None:
    if not same:
        raise PedbenchError(
            f"{path}: its {what} are not those of the manifest of {run.dataset}; the dataset has "
            f"changed since: delete {run.folder} and run again"
        )


def _matrix(path: Path, lists: pa.ChunkedArray, dtype: Any) -> np.ndarray:
    """A column of lists of one length, as rows ``(M, D)``."""
    if not pa.types.is_fixed_size_list(lists.type) or lists.null_count:
        raise PedbenchError(f"{path}: its lists differ in length; delete it and run again")
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in lists.chunks]
    return np.concatenate(values).astype(dtype, copy=False).reshape(-1, lists.type.list_size)


def headline(protocol: Mapping[str, Any]) -> str:
    """The metric that "F1" stands for under ``protocol``."""
    return f"F1_{protocol['f1']}"


def display_name(method: str, variant: str) -> str:
    """``PromptPAR (region deep)``: the title that opens the method's docstring, and the variant."""
    try:
        title = registry.title(method)
    except PedbenchError:  # results may outlive the file of their method
        title = method
    return title if variant == DEFAULT else f"{title} ({variant.replace('_', ' ')})"


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """``1 / (1 + exp(-x))`` without overflow."""
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, small) / (1.0 + small)
