"""What every dataset in datasets/ must do; a new file is tested without being named here."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pedbench import registry
from pedbench.cli import main
from pedbench.collect import collect
from pedbench.config import read_protocol, resolve
from pedbench.contracts import PedbenchError
from pedbench.files import write_json
from pedbench.intake import build_manifest
from pedbench.manifest import Manifest, read_manifest
from pedbench.prepared import prepare
from pedbench.runs import RunFolder, refusal
from pedbench.score import score_runs
from pedbench.stats import write_stats
from pedbench.tables.write import write_tables
from pedbench.train import train

UNCHECKED = {"check_counts": False}  # fake trees are smaller than the real ones

every = pytest.mark.parametrize("name", registry.datasets())


def places():
    """Of each dataset the first split of each task; what is made of other datasets, whose own way
    is the same, belongs to the long checks."""
    for name in registry.datasets():
        dataset = registry.load_dataset(name)
        first = {dataset.SPEC.task_of(split): split for split in reversed(dataset.SPEC.splits)}
        marks = [pytest.mark.system] if dataset.PARENTS else []
        for split in first.values():
            yield pytest.param(name, split, marks=marks)


@pytest.fixture
def made(name, tmp_path):
    dataset = registry.load_dataset(name)
    dataset.fake(tmp_path / "root", np.random.default_rng(0))
    return dataset, tmp_path / "root"


@every
def test_spec_is_complete(name):
    spec = registry.load_dataset(name).SPEC
    names = [a.name for a in spec.attributes]
    assert spec.title and spec.licence and spec.splits
    assert set(spec.reid) <= set(spec.splits)
    assert len(names) == len(set(names))
    assert len(names) > 1 or spec.splits == spec.reid
    assert all(a.phrase and a.negative and a.phrase != a.negative for a in spec.attributes)


@every
def test_records_are_sorted_and_repeatable(name, made):
    dataset, root = made
    first, second = list(dataset.records(root)), list(dataset.records(root))
    assert first == second
    assert [r.image for r in first] == sorted(r.image for r in first)


@every
def test_fake_tree_becomes_a_manifest(name, made, tmp_path):
    dataset, root = made
    build_manifest(name, dataset, root, UNCHECKED, tmp_path / "m.parquet")
    manifest = read_manifest(tmp_path / "m.parquet")
    for split in dataset.SPEC.splits:
        subsets = {"train", "test"} if without_val(split, dataset) else {"train", "val", "test"}
        assert set(manifest.rows[f"split:{split}"]) - {""} == subsets
        assert manifest.is_reid(split) == (split in dataset.SPEC.reid)
    for split in dataset.SPEC.reid:
        rows, query = manifest.rows, manifest.is_query(split)
        assert set(rows[f"split:{split}"][query]) == set(rows[f"split:{split}"]) - {"", "train"}
        inside = (rows[f"split:{split}"] != "").to_numpy()
        assert rows[["identity", "camera"]].to_numpy()[inside].min() >= 0
    for split in (*dataset.SPEC.disjoint, *dataset.SPEC.reid):
        rows = manifest.rows[manifest.rows[f"split:{split}"] != ""]
        assert rows.groupby("identity")[f"split:{split}"].nunique().to_numpy().max() == 1
    assert manifest.labels.shape[1] == len(dataset.SPEC.attributes)


def without_val(split, dataset):
    """Whether a split is one that papers train on, with nothing left to validate on."""
    published = split in dataset.SPEC.reid and split in dataset.SPEC.counts
    return "trainval" in split or (published and not split.endswith("_val"))


@every
def test_missing_and_truncated_images_are_named(name, made, tmp_path):
    dataset, root = made
    record = next(iter(dataset.records(root)))
    victim = root / (record.file or record.image)
    data = victim.read_bytes()
    victim.write_bytes(data[: len(data) // 2])
    with pytest.raises(PedbenchError, match=f"{victim.name}: image is truncated"):
        build_manifest(name, dataset, root, UNCHECKED, tmp_path / "m.parquet")
    victim.unlink()
    if record.image not in {r.image for r in dataset.records(root)}:
        return  # the folder is the list: only the counts can tell
    with pytest.raises(PedbenchError, match=f"1 image .*{victim.name}. missing of"):
        build_manifest(name, dataset, root, UNCHECKED, tmp_path / "m.parquet")
    assert not (tmp_path / "m.parquet").exists()


@every
def test_wrong_counts_name_split_and_numbers(name, made, tmp_path):
    dataset, root = made
    split = dataset.SPEC.splits[0]
    dataset.expected = lambda options: {split: {"train": 1_000_000}}
    with pytest.raises(PedbenchError, match=f"split '{split}': train \\d+ of 1000000 images"):
        build_manifest(name, dataset, root, {}, tmp_path / "m.parquet")


@every
def test_a_link_in_place_of_a_picture_must_stay_inside(name, made, tmp_path):
    dataset, root = made
    record = next(iter(dataset.records(root)))
    victim = root / (record.file or record.image)
    shutil.move(victim, tmp_path / "outside")
    victim.symlink_to(tmp_path / "outside")
    with pytest.raises(PedbenchError, match=f"{victim.name}.* not below {root}"):
        build_manifest(name, dataset, root, UNCHECKED, tmp_path / "m.parquet")


PROTOCOLS = {
    "par": read_protocol("embedded", ("tiny_clip",)),
    "reid": read_protocol("embedded_reid", ("tiny_clip_reid",)),
}
METHODS = {"zero_shot": "default", "linear_probe": "default", "promptpar": "region_deep"}


METRICS = {"par": ["mA", "F1"], "reid": ["mAP", "rank1"]}


@pytest.mark.parametrize(("name", "split"), list(places()))
def test_from_a_fake_tree_to_a_table_cell(
    name, split, made, tmp_path, backbone, monkeypatch, capsys
):
    """`doctor`, manifest, prepared pictures, two steps of training, predictions, scores, a table;
    nothing is written into the dataset's folder."""
    dataset, root = made
    before, task = listing(root), dataset.SPEC.task_of(split)
    assert main(["doctor", "--dataset", name, "--root", str(root), "--any-counts", "--decode"]) == 0
    assert capsys.readouterr().out.endswith("all is well\n")
    results = tmp_path / "results"
    sources, prepared = {name: results / "manifests" / f"{name}.parquet"}, results / "x.json"
    manifest = build_manifest(name, dataset, root, UNCHECKED, sources[name])
    prepare(manifest, backbone.image_size, "pad_square", 1, prepared)
    monkeypatch.setattr("pedbench.train.load_backbone", lambda *_, **__: backbone)
    write_json(results / "weights.json", {"sha256": backbone.weights_sha256, "file": None})
    swept = {"resize": "pad_square", "eval_batch_size": 64, "epochs": 1, "warmup_epochs": 0}
    swept |= two_steps(manifest, split)
    protocol = PROTOCOLS[task]
    experiments = []
    for method, variant in METHODS.items():
        key = {"dataset": name, "split": split, "method": method, "variant": variant}
        folder = results.joinpath("runs", *key.values())
        spec = {**resolve(method, variant, protocol, swept, "test"), "backbone": "random"}
        write_json(folder / "config.json", {**key, **spec})
        arguments = folder / "config.json", sources[name], results / "weights.json"
        train(*arguments, seeds=[0], threads=1, prepared=prepared)
        if refusal(folder) is None:
            own = {"folder": str(folder), "seeds": [0], "in_tables": True}
            experiments.append({**key, **own})
            assert read_steps(folder / "seed0") == (2 if registry.trains(method) else 0)
    runs = [Path(e["folder"]) / "seed0" for e in experiments]
    assert len(runs) == 3 or "novel" in split
    assert all(("val" in RunFolder(r).predicted) == manifest.has(split, "val") for r in runs)
    score_runs(runs, sources, results / "scored.json")
    collect(runs, results / "long.parquet")
    options = {"baseline": "linear_probe/default", "resamples": 10}
    write_stats(runs, sources, results / "stats", **options)
    definitions = results / "tables.yaml"
    shown = {"title": "T", "task": task, "places": [f"{name}/{split}"], "metrics": METRICS[task]}
    write_json(definitions, {"main": shown})
    plan = {"experiments": experiments, "comparison": {**options, "alpha": 0.05, "seed": 0}}
    plan |= {"datasets": {name: {"manifest": str(sources[name])}}, "sweeps": [], "presets": []}
    files = results / "long.parquet", results / "stats", []
    write_tables(*files, plan, results / "tables", definitions=str(definitions))
    cells = pd.read_csv(results / "tables/main.csv")
    assert len(cells) == 2 * len(runs) and cells["mean"].notna().to_numpy().all()
    assert listing(root) == before


def two_steps(manifest: Manifest, split: str) -> dict[str, int]:
    """Settings with which an epoch has two steps."""
    trained = manifest.subset(split, "train").rows
    if not manifest.is_reid(split):
        return {"batch_size": max(1, len(trained) // 2), "probe_epochs": 1}
    persons = len(set(trained["identity"]))
    each = len(trained) // persons // 2  # a fake tree has equally many of every person
    return {"batch_size": persons * each, "images_per_identity": each}


def read_steps(run: Path) -> int:
    """Of the last stage of training, if there was any."""
    log = run / "metrics.jsonl"
    return json.loads(log.read_text().splitlines()[-1])["step"] if log.exists() else 0


def listing(root: Path) -> dict[str, tuple[int, int, int]]:
    """Of every folder and file: mode, time and a digest of what is in it."""
    found = {}
    for folder, folders, names in os.walk(root, followlinks=True):
        for path in (Path(folder), *(Path(folder, name) for name in names)):
            content = path.read_bytes() if path.is_file() else b"".join(map(os.fsencode, folders))
            found[str(path)] = (path.stat().st_mode, path.stat().st_mtime_ns, hash(content))
    return found
