"""WIDER Attribute: boxes of scenes, three codes, and what is often there in its place."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from pedbench.contracts import UNKNOWN
from pedbench.intake import examine, header
from pedbench.manifest import decode
from pedbench.registry import load_dataset

TRAINVAL = "Anno/wider_attribute_trainval.json"


@pytest.fixture
def root(tmp_path):
    load_dataset("wider").fake(tmp_path / "WIDER", np.random.default_rng(0))
    return tmp_path / "WIDER"


def look(root):
    return examine("wider", load_dataset("wider"), root, {"check_counts": False}, header)


def edit(root, change, file=TRAINVAL):
    found = json.loads((root / file).read_text())
    change(found)
    (root / file).write_text(json.dumps(found))


def test_an_image_is_a_box_of_a_scene(root):
    found = look(root)
    assert not found.problems
    record = next(r for r in found.records if r.image == "train/0--Parade/0_train.jpg#1")
    assert record.file == "Image/train/0--Parade/0_train.jpg"
    assert record.subset == {"standard": "train", "trainval": "train"}
    part = decode(root / record.file, record.box)
    assert part.size == (20, 40)  # the box leaves the picture of 120 x 80 by 40 and 50 pixels


def test_splits_follow_the_names_of_the_pictures(root):
    for record in look(root).records:
        subset = record.image.partition("/")[0]
        merged = "test" if subset == "test" else "train"
        assert record.subset == {"standard": subset, "trainval": merged}


def test_numbers_are_those_without_empty_boxes():
    counts = load_dataset("wider").SPEC.counts
    assert counts["standard"] == {"train": 22_958, "val": 5_382, "test": 29_177}
    assert counts["trainval"] == {"train": 28_340, "test": 29_177}


def test_codes_of_labels(root):
    written = json.loads((root / TRAINVAL).read_text())["images"][2]
    record = next(r for r in look(root).records if r.image == f"{written['file_name']}#0")
    meaning = {1: 1, -1: 0, 0: UNKNOWN}
    assert record.labels == tuple(meaning[c] for c in written["targets"][0]["attribute"])
    assert UNKNOWN in record.labels


def test_attributes_are_found_by_name(root):
    before = {r.image: r.labels for r in look(root).records}

    def turn(found):
        names = list(found["attribute_id_map"].values())
        found["attribute_id_map"] = {str(i): n for i, n in enumerate(reversed(names))}
        for image in found["images"]:
            for target in image["targets"]:
                target["attribute"].reverse()

    edit(root, turn)
    assert {r.image: r.labels for r in look(root).records} == before


def test_boxes_with_nothing_in_them_are_left_out_and_named(root):
    found = look(root)
    assert "test/0--Parade/1_test.jpg#0" not in {r.image for r in found.records}
    (remark,) = [r for r in found.remarks if "left out" in r]
    assert remark.endswith("picture: 1 (test/0--Parade/1_test.jpg#0)")

    def away(found):
        found["images"][0]["targets"][0]["bbox"] = [130, 5, 20, 20]  # right of the picture

    edit(root, away)
    assert any("in their picture: 2 (" in remark for remark in look(root).remarks)


def test_three_numbers_circulate(root):
    (remark,) = [r for r in look(root).remarks if "Three numbers" in r]
    for number in ("18 + 12", "28,345 + 29,179", "28,340 + 29,177", "28,330 + 29,161"):
        assert number in remark


def test_both_annotation_files_are_told_at_once(root):
    (root / TRAINVAL).write_text('{"images": [')
    (root / "Anno/wider_attribute_test.json").unlink()
    truncated, absent = look(root).problems
    assert "wider_attribute_trainval.json: not the annotation" in truncated
    assert "wider_attribute_test.json: no such file" in absent


def test_a_picture_of_no_subset_is_refused(root):
    edit(root, lambda found: found["images"][0].update(file_name=""))
    assert "'' does not start with train, val, test" in look(root).problems[0]
    edit(root, lambda found: found["images"][0].update(file_name="0--Parade/0.jpg"))
    (problem,) = look(root).problems
    assert "'0--Parade/0.jpg' does not start with train, val, test" in problem


def test_mistake_17_crops_in_place_of_scenes(tmp_path):
    folder = tmp_path / "WIDER" / "split_image"
    folder.mkdir(parents=True)
    problem = " ".join(look(tmp_path / "WIDER").problems)
    assert "split_image: these are boxes cut out beforehand" in problem
    assert "28,330 and 29,161" in problem and "whole scenes" in problem
    folder.rename(tmp_path / "WIDER" / "Annotations")
    (tmp_path / "WIDER/Annotations/trainval_gt_label.txt").touch()
    assert "cut out beforehand" in " ".join(look(tmp_path / "WIDER").problems)


def test_mistake_17_wider_face(root, tmp_path):
    (tmp_path / "faces/WIDER_train/images/0--Parade").mkdir(parents=True)
    assert "this is WIDER FACE" in " ".join(look(tmp_path / "faces").problems)
    for subset in ("train", "val", "test"):  # its pictures beside the right annotation
        shutil.rmtree(root / "Image" / subset)
        (root / "Image" / subset / "0--Parade").mkdir(parents=True)
        (root / "Image" / subset / "61--Street_Battle").mkdir()
    (problem,) = look(root).problems
    assert "15 of 15 pictures" in problem and "61--Street_Battle" in problem
    assert "WIDER FACE" in problem


@pytest.mark.parametrize("code", [2, 4, 99])
def test_mistake_18_codes_of_other_copies(root, code):
    def change(found):
        found["images"][1]["targets"][0]["attribute"][3] = code

    edit(root, change)
    (problem,) = look(root).problems
    assert "train/0--Parade/1_train.jpg#0" in problem and "'Hat'" in problem
    assert f"label {code}" in problem and "1, -1, 0" in problem
