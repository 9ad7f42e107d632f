"""Fake manifests and finished runs, so that everything after training is tested in seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from pedbench.collect import collect
from pedbench.contracts import Attribute
from pedbench.files import digest, read_json, write_json
from pedbench.intake import NOT_THE_RELEASE
from pedbench.manifest import Manifest, write_manifest
from pedbench.runs import PREDICTED, RunFolder
from pedbench.score import score_runs
from pedbench.stats import write_stats
from pedbench.tasks import reid

ATTRIBUTES = tuple(
    Attribute(n, "whole", f"with {n}", f"without {n}") for n in ("hat", "bag", "a_b")
)
SKILL = {"zero_shot": 0.2, "linear_probe": 1.0, "full": 1.6, "promptpar": 1.5}


def beside_counts(remarks: Iterable[str]) -> list[str]:
    """What is remarked on a fake tree, beside that its numbers are not those of the release."""
    return [remark for remark in remarks if not remark.startswith(NOT_THE_RELEASE)]


@dataclass(frozen=True)
class FakeResults:
    """``results/`` with manifests and runs, and the arguments the stages want of it."""

    root: Path
    folders: list[Path]

    @property
    def manifests(self) -> dict[str, Path]:
        return {path.stem: path for path in sorted((self.root / "manifests").glob("*.parquet"))}

    @property
    def plan(self) -> dict[str, Any]:
        """The contents of the plan.json these runs would have come from."""
        keys = ("dataset", "split", "method", "variant")
        variants = dict.fromkeys(folder.parent for folder in self.folders)
        experiments = [
            dict(zip(keys, v.parts[-4:], strict=True))
            | {"folder": str(v), "in_tables": not v.name.startswith("swept")}
            | {"seeds": [int(f.name.removeprefix("seed")) for f in self.folders if f.parent == v]}
            for v in variants
        ]
        datasets = {n: {"manifest": str(p), "root": f"data/{n}"} for n, p in self.manifests.items()}
        comparison = {"baseline": "linear_probe/default", "alpha": 0.05, "resamples": 200}
        comparison |= {"metrics": ["mA", "F1", "mAP", "rank1"], "seed": 0}
        presets = ["equal_budget"]
        return {
            "results": str(self.root), "datasets": datasets, "experiments": experiments,
            "presets": presets, "sweeps": [], "comparison": comparison,
        }  # fmt: skip


def fake_results(
    root: Path,
    datasets: Iterable[str] = ("a",),
    splits: Iterable[str] = ("standard", "zero_shot"),
    skill: Mapping[str, float] = SKILL,
    seeds: Iterable[int] = (0, 1, 2),
    images: int = 120,
) -> FakeResults:
    """A deterministic benchmark; ``skill`` is the separation of positives from negatives.

    ``zero_shot`` has one run. Keys of ``skill`` are ``method`` or ``method/variant``.
    """
    folders = []
    for dataset in datasets:
        manifest = fake_manifest(root / "manifests" / f"{dataset}.parquet", dataset, images)
        for split in splits:
            for name, value in skill.items():
                method, _, variant = name.partition("/")
                for seed in (0,) if method == "zero_shot" else seeds:
                    key = (dataset, split, method, variant or "default", seed)
                    folders.append(fake_run(root, manifest, key, value))
    return FakeResults(root, folders)


def fake_reid_results(
    root: Path,
    dataset: str = "r",
    skill: Mapping[str, float] = SKILL,
    seeds: Iterable[int] = (0, 1, 2),
    persons: int = 10,
) -> FakeResults:
    """The same of re-identification, split ``reid``; ``skill`` is the distance of two persons."""
    manifest = fake_reid_manifest(root / "manifests" / f"{dataset}.parquet", dataset, persons)
    folders = []
    for name, value in skill.items():
        method, _, variant = name.partition("/")
        for seed in (0,) if method == "zero_shot" else seeds:
            key = (dataset, "reid", method, variant or "default", seed)
            folders.append(fake_reid_run(root, manifest, key, value))
    return FakeResults(root, folders)


def fake_mixed_results(root: Path, **options: Any) -> FakeResults:
    """Dataset ``a`` of attribute recognition and ``r`` of re-identification, in one plan."""
    par = fake_results(root, splits=("standard",), **options)
    options.pop("images", None)
    return FakeResults(root, par.folders + fake_reid_results(root, **options).folders)


def finish(results: FakeResults) -> FakeResults:
    """What the workflow makes of the runs before figures and tables, and its plan."""
    root, plan = results.root, results.plan
    write_json(root / "plan.json", plan)
    score_runs(results.folders, results.manifests, root / "scored.json")
    collect(results.folders, root / "long.parquet")
    write_stats(results.folders, results.manifests, root / "stats", **plan["comparison"])
    return results


def fake_manifest(path: Path, dataset: str, images: int) -> Manifest:
    """``images`` in every subset, two of each identity, a few unknown labels."""
    rng = np.random.default_rng(crc32(dataset.encode()))
    count = 3 * images
    rows = pd.DataFrame({"image": [f"{i:05d}.png" for i in range(count)]})
    rows["sha256"] = "0" * 64
    rows["identity"] = (np.arange(count) // 2).astype(np.int32)
    rows["camera"] = np.int16(0)
    for attribute, share in zip(ATTRIBUTES, (0.5, 0.3, 0.15), strict=True):
        labels = (rng.random(count) < share).astype(np.int8)
        labels[rng.random(count) < 0.02] = -1
        rows[f"label:{attribute.name}"] = labels
    subsets = np.repeat(["train", "val", "test"], images)
    rows["split:standard"] = subsets
    rows["split:zero_shot"] = subsets[::-1]
    rows.loc[count - 1, ["identity", "split:zero_shot"]] = 0, ""  # standard shares this person
    rows["split:trainval"] = np.where(subsets == "test", "test", "train")
    manifest = Manifest(dataset, Path("data") / dataset, ATTRIBUTES, digest(dataset), rows)
    write_manifest(manifest, path)
    return manifest


def fake_reid_manifest(path: Path, dataset: str, persons: int) -> Manifest:
    """``persons`` in each subset, each twice on three cameras, no labels. Of val and test the first
    image of a person and camera is a query; of the last person there is one camera alone, and its
    second image is nobody's."""
    subset, person, camera, image = (
        part.ravel() for part in np.indices((3, persons, 3, 2), dtype=np.int32)
    )
    lonely = (person == persons - 1) & (camera > 0)
    keep = ~lonely | (subset == 0)
    rows = pd.DataFrame({"image": [f"{i:05d}.png" for i in range(keep.sum())], "sha256": "0" * 64})
    identity = subset * persons + person
    nobody = (subset > 0) & (person == persons - 1) & (image == 1)
    rows["identity"] = np.where(nobody, 9999, identity).astype(np.int32)[keep]
    rows["camera"] = camera[keep].astype(np.int16)
    rows["split:reid"] = np.array(["train", "val", "test"])[subset][keep]
    rows["query:reid"] = ((subset > 0) & (image == 0))[keep]
    manifest = Manifest(dataset, Path("data") / dataset, (), digest(dataset), rows)
    write_manifest(manifest, path)
    return manifest


def fake_reid_run(
    root: Path, manifest: Manifest, key: tuple[str, str, str, str, int], skill: float
) -> Path:
    """A finished run folder with features and rankings of val and test."""
    folder = begin_run(root, manifest, key, "reid")
    rng = np.random.default_rng([crc32(":".join(key[:4]).encode()), key[4]])
    for subset in PREDICTED:
        rows = manifest.subset("reid", subset).rows
        persons = np.random.default_rng(3).normal(size=(10_000, 6))
        hard = np.random.default_rng(7).normal(size=(len(rows), 6))
        noise = 0.5 * rng.normal(size=hard.shape)
        write_retrieval(folder, subset, rows, skill * persons[rows["identity"]] + hard + noise)
    return end_run(folder, key)


def write_retrieval(folder: Path, subset: str, rows: pd.DataFrame, features: np.ndarray) -> None:
    """Features and rankings of the images ``rows`` of a subset."""
    lists = pa.FixedSizeListArray.from_arrays(
        pa.array(features.astype(np.float32).ravel()), features.shape[1]
    )
    pq.write_table(
        pa.table({"image": rows["image"], "feature": lists}),
        folder / f"predictions.{subset}.parquet",
    )
    asks = rows["query:reid"].to_numpy(bool)
    (who, whose), (here, there) = (
        (rows.loc[asks, name], rows.loc[~asks, name]) for name in ("identity", "camera")
    )
    found = reid.rank(features[asks], features[~asks], who, whose, here, there)
    columns: dict[str, Any] = {name: rows.loc[asks, name] for name in ("image", "identity")}
    columns |= {"camera": rows.loc[asks, "camera"]}
    columns |= {name: getattr(found, name) for name in ("matches", "first", "AP", "INP")}
    columns["top"] = pa.FixedSizeListArray.from_arrays(pa.array(found.top.ravel()), 10)
    pq.write_table(pa.table(columns), folder / f"rankings.{subset}.parquet")


def fake_run(
    root: Path, manifest: Manifest, key: tuple[str, str, str, str, int], skill: float
) -> Path:
    """A finished run folder with predictions for test and, where the split has it, val."""
    folder = begin_run(root, manifest, key, "par")
    rng = np.random.default_rng([crc32(":".join(key[:4]).encode()), key[4]])
    for subset in [s for s in PREDICTED if manifest.has(key[1], s)]:
        images = manifest.subset(key[1], subset)
        hard = np.random.default_rng(7).normal(size=images.labels.shape)
        signs = np.where(images.labels == 1, 1.0, -1.0)
        logits = skill * signs + hard + 0.5 * rng.normal(size=hard.shape)
        write_predictions(folder, subset, images, logits)
    return end_run(folder, key)


def begin_run(
    root: Path, manifest: Manifest, key: tuple[str, str, str, str, int], task: str
) -> Path:
    """The folder of a run with its settings."""
    folder = root.joinpath("runs", *key[:4], f"seed{key[4]}")
    config = fake_config(key, manifest.digest, task)
    write_json(folder / "config.json", config)
    write_json(folder.parent / "config.json", config)
    return folder


def end_run(folder: Path, key: tuple[str, str, str, str, int]) -> Path:
    """All of a run but its predictions; marked as done."""
    if key[2] != "zero_shot":
        save_file({"head": np.zeros(2)}, folder / "adapter.safetensors")
    rows = ((0, 2, 0.5, "probe"), (0, 2, 0.4, "fit"), (1, 4, 0.3, "fit"))
    steps = [dict(zip(("epoch", "step", "loss/bce", "stage"), row, strict=True)) for row in rows]
    lines = [str(row).replace("'", '"') for row in steps]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    machine = {"commit": "c0ffee", "dirty": False, "device": "cpu", "python": "3.11"}
    machine |= {"device_name": "Fake CPU", "threads": 1, "packages": {"torch": "2.0"}}
    machine["weights_sha256"] = "0" * 64
    write_json(folder / "environment.json", machine)
    cost = {"parameters_trained": 12, "seconds_fit": 1.5 + key[4]}
    write_json(folder / "cost.json", cost)
    RunFolder(folder).finish(read_json(folder / "config.json")["digest"])
    return folder


def fake_config(
    key: tuple[str, str, str, str, int], manifest_digest: str, task: str = "par"
) -> dict[str, Any]:
    protocol = {"name": "embedded", "version": "1", "threshold": 0.5, "f1": "instance"}
    protocol["selection"] = "last_epoch"
    if task == "reid":
        protocol |= {"name": "embedded_reid", "task": "reid"}
    config = {
        **dict(zip(("dataset", "split", "method", "variant", "seed"), key, strict=True)),
        "backbone": {"value": "tiny", "from": "config.yaml"},
        "protocol": {k: {"value": v, "from": "embedded.yaml"} for k, v in protocol.items()},
        "params": {"lr": {"value": 0.01, "from": f"config/presets/a.yaml: {key[2]}"}},
        "manifest_digest": manifest_digest,
    }
    return {**config, "digest": digest(config)}


def write_predictions(folder: Path, subset: str, images: Manifest, logits: np.ndarray) -> None:
    columns: dict[str, Any] = {"image": list(images.rows["image"])}
    for column, attribute in enumerate(images.attributes):
        columns[attribute.name] = logits[:, column].astype(np.float32)
    pq.write_table(pa.table(columns), folder / f"predictions.{subset}.parquet")


class Killed(Exception):
    """Stands for SIGKILL between two steps."""


def kill_after_save(fit: Any, number: int) -> None:
    """Let ``fit``, an `engine.Fit`, end right after checkpoint ``number``, from 0."""
    save, saves = fit._save, count()

    def dying(optimiser: Any) -> None:
        save(optimiser)
        if next(saves) == number:
            raise Killed

    fit._save = dying
