"""What every dataset in datasets/ must do; a new file is tested without being named here."""

from __future__ import annotations

import numpy as np
import pytest

from pedbench import registry
from pedbench.contracts import PedbenchError
from pedbench.intake import build_manifest
from pedbench.manifest import read_manifest

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
    build_manifest(name, _unchecked(dataset), root, {}, tmp_path / "m.parquet")
    manifest = read_manifest(tmp_path / "m.parquet")
    for split in dataset.SPEC.splits:
        parts = [manifest.subset(split, s) for s in ("train", "val", "test")]
        images = [set(part.rows["image"]) for part in parts]
        assert not (images[0] & images[1] | images[0] & images[2] | images[1] & images[2])
        assert all(part.labels.shape[1] == len(dataset.SPEC.attributes) for part in parts)
        if split == "zero_shot":
            people = [set(part.rows["identity"]) for part in parts]
            assert not (people[0] & people[1] | people[0] & people[2] | people[1] & people[2])


@every
def test_missing_and_truncated_images_are_named(name, made, tmp_path):
    dataset, root = made
    victim = root / next(iter(dataset.records(root))).image
    data = victim.read_bytes()
    victim.write_bytes(data[: len(data) // 2])
    with pytest.raises(PedbenchError, match=f"{victim.name}: image is truncated"):
        build_manifest(name, _unchecked(dataset), root, {}, tmp_path / "m.parquet")
    victim.unlink()
    with pytest.raises(PedbenchError, match=f"{victim.name}: image is missing"):
        build_manifest(name, _unchecked(dataset), root, {}, tmp_path / "m.parquet")
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


def _unchecked(dataset):
    """Fake trees are smaller than the real ones."""
    dataset.expected = lambda options: {}
    return dataset
