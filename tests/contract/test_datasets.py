"""What every dataset in datasets/ must do; a new file is tested without being named here."""

from __future__ import annotations

import numpy as np
import pytest

from pedbench import registry
from pedbench.contracts import PedbenchError
from pedbench.intake import build_manifest
from pedbench.manifest import read_manifest

UNCHECKED = {"check_counts": False}  # fake trees are smaller than the real ones

every = pytest.mark.parametrize("name", registry.datasets())


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
    assert len(names) == len(set(names)) > 1
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
        subsets = {"train", "test"} if "trainval" in split else {"train", "val", "test"}
        assert set(manifest.rows[f"split:{split}"]) - {""} == subsets
    for split in dataset.SPEC.disjoint:
        rows = manifest.rows[manifest.rows[f"split:{split}"] != ""]
        assert (rows.groupby("identity")[f"split:{split}"].nunique() == 1).all()
    assert manifest.labels.shape[1] == len(dataset.SPEC.attributes)


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
    with pytest.raises(
        PedbenchError, match=f"split '{split}', subset 'train': .* 1000000 expected"
    ):
        build_manifest(name, dataset, root, {}, tmp_path / "m.parquet")
