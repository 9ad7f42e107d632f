"""PA100K: its places, its checks, and what its users get wrong."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from helpers import beside_counts

from pedbench import registry
from pedbench.formats.fakes import cell, write_mat
from pedbench.formats.matlab import read_mat
from pedbench.intake import examine, header

UNCHECKED = {"check_counts": False}
SIZES = {"train": 20, "val": 8, "test": 8}


@pytest.fixture
def root(tmp_path):
    registry.load_dataset("pa100k").fake(tmp_path / "PA100K", np.random.default_rng(0))
    return tmp_path / "PA100K"


def look(root, options=UNCHECKED):
    return examine("pa100k", registry.load_dataset("pa100k"), root, options, header)


def rewrite(root, **changes):
    """The annotation with some variables replaced; lists become cells."""
    path = root / "annotation.mat"
    variables = {**read_mat(path), **changes}
    cells = {k: cell(v) if isinstance(v, list) else v for k, v in variables.items()}
    write_mat(path, cells)


def test_fake_tree_has_nothing_to_mend(root):
    found = look(root)
    assert not found.problems and not beside_counts(found.remarks)
    assert len(found.records) == 36
    assert {r.subset["trainval"] for r in found.records if r.subset["standard"] == "val"} == {
        "train"
    }


def test_labels_follow_the_names_of_the_columns(root):
    before = {r.image: r.labels for r in look(root).records}
    mat, order = read_mat(root / "annotation.mat"), np.random.default_rng(1).permutation(26)
    labels = {f"{s}_label": mat[f"{s}_label"][:, order] for s in ("train", "val", "test")}
    rewrite(root, attributes=[mat["attributes"][i] for i in order], **labels)
    assert {r.image: r.labels for r in look(root).records} == before


def test_names_out_of_order_are_remarked(root):
    names = read_mat(root / "annotation.mat")["train_images_name"]
    rewrite(root, train_images_name=[names[1], names[0], *names[2:]])
    assert any("image 1 is called 000002.jpg" in remark for remark in look(root).remarks)


def test_attribute_that_is_absent_is_named(root):
    names = read_mat(root / "annotation.mat")["attributes"]
    rewrite(root, attributes=["Cap" if name == "Hat" else name for name in names])
    (absent, there) = look(root).problems
    assert "attribute 'Hat' is not in the annotation" in absent and "Cap" in there


def test_age_view_and_sleeve_are_checked_at_full_size(root, monkeypatch):
    monkeypatch.setattr("pedbench.datasets.pa100k.IMAGES", 36)
    labels = {f"{s}_label": np.zeros((n, 26), int) for s, n in SIZES.items()}
    for table in labels.values():
        table[:, [1, 4, 13]] = 1  # AgeOver60, Front, ShortSleeve
    rewrite(root, **labels)
    assert not look(root).problems
    labels["val_label"][:3, 14] = 1
    rewrite(root, **labels)
    (problem,) = look(root).problems
    assert "3 images have not exactly one sleeve (ShortSleeve, LongSleeve)" in problem


@pytest.mark.parametrize("place", ["release_data/release_data", "release_data", "data/data"])
def test_mistake_15_other_places(root, place):
    before = look(root).records
    (root / "data").rename(root / "pictures")
    (root / place).parent.mkdir(exist_ok=True)
    (root / "pictures").rename(root / place)
    (root / "annotation").mkdir()
    (root / "annotation.mat").rename(root / "annotation" / "annotation.mat")
    found = look(root.parent)  # and the user named the folder above
    assert not found.problems
    assert [(r.image, r.labels) for r in found.records] == [(r.image, r.labels) for r in before]


def test_mistake_15_all_places_are_listed(root):
    (root / "annotation.mat").unlink()
    (problem,) = look(root).problems
    assert "annotation.mat or annotation/annotation.mat not found" in problem


def test_mistake_15_folders_without_a_picture_are_listed(root):
    shutil.rmtree(root / "data")
    (root / "data" / "release_data").mkdir(parents=True)
    (problem,) = look(root).problems
    assert f"no picture found in {root}/data, {root}/data/release_data" in problem


def test_mistake_16_truncated_archive(root):
    for path in sorted((root / "data").glob("*.jpg"))[-12:]:
        path.unlink()
    (problem,) = look(root).problems
    assert "12 images (" in problem and "36" in problem and "incomplete" in problem


def test_mistake_28_names_and_labels_of_different_number(root):
    labels = read_mat(root / "annotation.mat")["val_label"]
    rewrite(root, val_label=labels[:-1])
    (problem,) = look(root).problems
    assert "8 val names, 7 val labels" in problem
    rewrite(root, val_label=labels[:, :-1])
    (problem,) = look(root).problems
    assert "26 attributes, 25 val columns" in problem


def test_counts_of_the_release_are_asserted(root):
    problems = "\n".join(look(root, {}).problems)
    assert "split 'trainval': train 28 of 90000 images" in problems
