"""Market-1501 attributes: labels of persons by name of field, pictures of persons only."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from helpers import beside_counts

from pedbench.contracts import UNKNOWN
from pedbench.formats.fakes import cell, noise, write_mat
from pedbench.formats.matlab import read_mat
from pedbench.intake import examine, header
from pedbench.registry import load_dataset

NAME, FILE, BASE = "market1501_attributes", "market_attribute.mat", "Market-1501-v15.09.15"
TRAINED = (2, 7, 11, 30, 1200, 1499, 1500)


@pytest.fixture
def root(tmp_path):
    load_dataset(NAME).fake(tmp_path / "market", np.random.default_rng(0))
    return tmp_path / "market"


def look(root):
    return examine(NAME, load_dataset(NAME), root, {"check_counts": False}, header)


def rows(root):
    found = look(root)
    assert not found.problems
    return {r.image: (r.labels, r.subset, r.identity, r.camera) for r in found.records}


def edit(root, change):
    """Rewrite the annotation after ``change`` of subset -> field -> values."""
    found = read_mat(root / FILE)["market_attribute"]
    change(found)
    written = {
        subset: {
            name: cell(values, row=True) if name == "image_index" else values[None].astype(np.uint8)
            for name, values in fields.items()
        }
        for subset, fields in found.items()
    }
    write_mat(root / FILE, {"market_attribute": written})


def test_labels_follow_the_person(root):
    struct = read_mat(root / FILE)["market_attribute"]["train"]
    names = [a.name for a in load_dataset(NAME).SPEC.attributes]
    person = struct["image_index"].index("0007")
    found = [row for row in rows(root).values() if row[2] == 7]
    assert found and {row[0] for row in found} == {found[0][0]}
    labels = dict(zip(names, found[0][0], strict=True))
    assert len(names) == 30
    assert labels["female"] == (struct["gender"][person] == 2)
    assert labels["short_sleeve"] == (struct["up"][person] == 2)
    assert labels["downpurple"] == (struct["downpurple"][person] == 2)


def test_persons_are_divided_and_cameras_start_at_0(root):
    for image, (_, subset, person, camera) in rows(root).items():
        folder, name = image.split("/")
        assert person == int(name[:4]) and camera == int(name[6]) - 1
        assert (subset["reid"] == "train") == (folder == "bounding_box_train")
        if "trainval" in subset:
            assert person and folder == "bounding_box_" + subset["trainval"]
            assert (person in TRAINED) == ("train" in folder)
        else:
            assert not person or folder == "query"


def test_queries_and_distractors_are_for_reidentification_only(root):
    found = {r.image: r for r in look(root).records}
    assert found["bounding_box_test/0000_c1s1_000401_03.jpg"].labels == (UNKNOWN,) * 30
    asked = [r for r in found.values() if "reid" in r.queries]
    assert {r.identity for r in asked} == {1, 3, 1490, 1501}
    of = {r.identity: r.labels for r in found.values() if r.subset.get("trainval") == "test"}
    assert all(r.labels == of[r.identity] and "trainval" not in r.subset for r in asked)


def test_attributes_without_queries_are_for_attributes_only(root):
    shutil.rmtree(root / BASE / "query")
    found = look(root)
    assert not found.problems
    assert {split for r in found.records for split in r.subset} == {"trainval"}
    assert any("no splits 'reid'" in remark for remark in found.remarks)


def test_the_same_person_in_both_halves_is_found(root):
    def share(found):
        found["test"]["image_index"][0] = "0002"

    edit(root, share)
    for file in (root / BASE).glob("*/0001_*"):
        file.rename(file.with_name(file.name.replace("0001_", "0002_")))
    assert "1 identity (2) in more than one subset" in " ".join(look(root).problems)


def test_persons_without_attributes_and_the_reverse(root):
    train = root / BASE / "bounding_box_train"
    noise(train / "0099_c1s1_000001_01.jpg", np.random.default_rng(0))
    for file in train.glob("0007_*"):
        file.unlink()
    more, fewer = look(root).problems
    assert "1 persons have pictures, but no attributes" in more and "0099" in more
    assert "1 persons have attributes, but no pictures" in fewer and "0007" in fewer


def test_a_code_that_does_not_exist(root):
    def change(found):
        found["test"]["hat"][1] = 0
        found["train"]["age"][0] = 5

    edit(root, change)
    age, hat = look(root).problems
    assert "train.age of person 0002 is 5, but codes are 1 to 4" in age
    assert "test.hat of person 0003 is 0, but codes are 1 to 2" in hat


def test_the_annotation_is_found_or_all_places_are_told(root):
    before = rows(root)
    (root / BASE / "attribute").mkdir()
    (root / FILE).rename(root / BASE / "attribute" / FILE)
    assert rows(root) == before
    shutil.rmtree(root / BASE / "attribute")
    (problem,) = look(root).problems
    assert f"{FILE} not found in {root}" in problem and "authors of the attributes" in problem


def test_splits():
    spec = load_dataset(NAME).SPEC
    assert spec.splits == ("trainval", "reid", "reid_val") and "standard" in spec.without
    assert spec.counts["trainval"] == {"train": 12936, "test": 13115}
    assert [spec.task_of(split) for split in spec.splits] == ["par", "reid", "reid"]


def test_mistake_20_junk_distractors_and_thumbs(root):
    names = {p.name for p in (root / BASE / "bounding_box_test").iterdir()}
    assert {"Thumbs.db", "-1_c1s1_000401_03.jpg", "0000_c1s1_000401_03.jpg"} <= names
    found = look(root)
    assert not found.problems
    classes = {r.identity for r in found.records if "trainval" in r.subset}
    assert classes == {1, 3, 1490, 1501, *TRAINED}
    (remark,) = beside_counts(found.remarks)
    assert "1 image" in remark and "-1_c1s1_000401_03.jpg" in remark and "not used" in remark
    noise(root / BASE / "bounding_box_test/person7.jpg", np.random.default_rng(0))
    assert "not named as in Market-1501" in look(root).problems[0]


@pytest.mark.parametrize("place", ["market1501/Market-1501-v15.09.15", "Market-1501", "."])
def test_mistake_21_layouts(root, place):
    before = rows(root)
    moved = root.parent / "moved"
    (moved / place).parent.mkdir(parents=True, exist_ok=True)
    (root / BASE).rename(moved / place)
    (root / FILE).rename((moved / place).parent / FILE if place != "." else moved / FILE)
    assert rows(moved) == before
    shutil.rmtree(moved / place / "bounding_box_test")
    assert "bounding_box_test not found there" in look(moved).problems[0]


def test_mistake_23_fields_by_name_though_their_order_differs(root):
    struct = read_mat(root / FILE)["market_attribute"]
    assert list(struct["train"]) != list(struct["test"])  # as in the released file
    before = rows(root)

    def turn(found):
        for subset, fields in found.items():
            found[subset] = {"image_index": fields.pop("image_index"), **fields}

    edit(root, turn)
    assert rows(root) == before


def test_mistake_23_age_is_four_attributes(root):
    edit(root, lambda found: found["train"]["age"].__setitem__(slice(0, 4), [1, 2, 3, 4]))
    names = [a.name for a in load_dataset(NAME).SPEC.attributes]
    ages = [names.index(f"age_{age}") for age in ("young", "teenager", "adult", "old")]
    of = {row[2]: [row[0][age] for age in ages] for row in rows(root).values()}
    assert [of[person] for person in TRAINED[:4]] == np.eye(4, dtype=int).tolist()
