"""Sets for re-identification: who is asked for, in which gallery; layouts and users' mistakes."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace

import h5py
import numpy as np
import pytest
from helpers import beside_counts
from PIL import Image

from pedbench.cli import main
from pedbench.contracts import BaseDataset, DatasetSpec, PedbenchError, Record
from pedbench.datasets import cuhk03
from pedbench.formats.cuhk03 import extract
from pedbench.formats.fakes import cell, noise, write_mat
from pedbench.formats.held_out import held_out, remaining, with_validation
from pedbench.formats.matlab import read_mat
from pedbench.intake import build_manifest, examine
from pedbench.manifest import read_manifest
from pedbench.registry import load_dataset

LISTS = ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")


def fake(name, root):
    load_dataset(name).fake(root, np.random.default_rng(0))
    return root


def look(name, root):
    """Without opening pictures."""
    return examine(name, load_dataset(name), root, {"check_counts": False}, lambda path: None)


def rows(name, root):
    found = look(name, root)
    assert not found.problems
    return {r.image: replace(r, file="") for r in found.records}


def parts(name, root, split):
    """Identities by "train", "val query" and so on."""
    found: dict[str, set[int]] = {}
    for record in rows(name, root).values():
        if subset := record.subset.get(split):
            role = "query" if split in record.queries else "gallery"
            key = subset if subset == "train" else f"{subset} {role}"
            found.setdefault(key, set()).add(record.identity)
    return found


# --- what the core asks of a split ----------------------------------------------------------------


class Listed(BaseDataset):
    SPEC = DatasetSpec("Listed", "free", (), ("reid",), reid=("reid",))

    def __init__(self, *records):
        self.given = records

    def records(self, root):
        yield from self.given


def image(name, subset, identity, camera, query=False):
    asked = ("reid",) if query else ()
    return Record(name, (), {"reid": subset}, identity, camera, queries=asked)


GOOD = (
    image("a.png", "train", 1, 0),
    image("b.png", "test", 2, 0, query=True),
    image("c.png", "test", 2, 1),
    image("d.png", "test", 0, 1),
)


def problems(*records, tmp_path):
    found = examine("listed", Listed(*records), tmp_path, {}, lambda path: None)
    return " ".join((*found.problems, *found.remarks))


def test_a_split_of_queries_and_a_gallery(tmp_path):
    for record in GOOD:
        noise(tmp_path / record.image, np.random.default_rng(0), 8, 8)
    assert not problems(*GOOD, tmp_path=tmp_path)
    build_manifest("listed", Listed(*GOOD), tmp_path, {}, tmp_path / "m.parquet")
    manifest = read_manifest(tmp_path / "m.parquet")
    assert manifest.is_reid("reid") and not manifest.is_reid("standard")
    assert manifest.is_query("reid").tolist() == [False, True, False, False]
    assert manifest.subset("reid", "test").is_query("reid").tolist() == [True, False, False]
    assert manifest.labels.shape == (4, 0)
    other = [*GOOD[:2], replace(GOOD[2], queries=("reid",)), GOOD[3]]
    asked = build_manifest("listed", Listed(*other), tmp_path, {}, tmp_path / "other.parquet")
    assert asked.digest != manifest.digest


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, {"identity": -1}, "1 image (a.png) without an identity"),
        (2, {"camera": -1}, "1 image (c.png) without a camera"),
        (0, {"identity": 2}, "1 identity (2) in more than one subset"),
        (1, {"queries": ()}, "no image of test is a query"),
        (2, {"camera": 0}, "for 1 query (b.png): skipped in scoring"),
    ],
)
def test_what_is_off_in_a_split_is_told(position, change, message, tmp_path):
    records = list(GOOD)
    records[position] = replace(records[position], **change)
    assert message in problems(*records, tmp_path=tmp_path)


def test_a_gallery_is_needed(tmp_path):
    assert "no image of test belongs to the gallery" in problems(*GOOD[:2], tmp_path=tmp_path)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train": 1, "query": 1, "gallery": 2, "test": 3}, ""),
        ({"train": 1, "query": 2, "gallery": 1}, "query 1 of 2 images, gallery 2 of 1 images"),
        ({"val_gallery": 1}, "val_gallery 0 of 1 images"),
    ],
)
def test_counts_of_queries_and_gallery(counts, message, tmp_path):
    dataset = Listed(*GOOD)
    dataset.expected = lambda options: {"reid": counts}
    found = examine("listed", dataset, tmp_path, {}, lambda path: None).problems
    assert (message in " ".join(found)) if message else not found


# --- persons held out for validation --------------------------------------------------------------


@pytest.fixture
def divided():
    """40 persons by three cameras, two pictures each; every fifth by one camera only."""
    records = [
        image(f"{person:02d}_{camera}_{shot}.png", "train", person, camera)
        for person in range(40)
        for camera in range(1 if person % 5 == 0 else 3)
        for shot in range(2)
    ]
    return with_validation([*records, *GOOD[1:]], "reid", "reid_val", "salt")


def test_persons_are_held_out_and_asked_for_across_cameras(divided):
    val = [r for r in divided if r.subset["reid_val"] == "val"]
    persons = {r.identity for r in val}
    assert len(persons) == remaining(40)["val_gallery"] == 6
    assert persons == held_out(range(40), "salt") == held_out(range(39, -1, -1), "salt")
    assert persons != held_out(range(40), "other")
    trained = {r.identity for r in divided if r.subset["reid_val"] == "train"}
    assert len(trained) == remaining(40)["train"] and not trained & persons
    for person in persons:
        own = [r for r in val if r.identity == person]
        asked = [r for r in own if "reid_val" in r.queries]
        gallery = {r.camera for r in own if r not in asked}
        assert len(asked) == (0 if person % 5 == 0 else 1)
        assert all(gallery - {r.camera} for r in asked)


def test_the_published_split_stays_as_it_is(divided):
    assert {r.subset["reid"] for r in divided if r.identity > 2} == {"train"}
    assert [r.queries for r in divided if r.image in "b.png c.png"] == [("reid", "reid_val"), ()]


def test_a_person_without_a_second_camera_is_not_asked_for():
    alone = [image(f"{p}.png", "train", p, 0) for p in range(20)]
    assert not any(r.queries for r in with_validation(alone, "reid", "reid_val", "s"))


# --- Market-1501 ----------------------------------------------------------------------------------


def test_market_keeps_distractors_and_drops_junk(tmp_path):
    found = parts("market1501", fake("market1501", tmp_path), "reid")
    assert found["train"] == {2, 7, 11, 30, 1200, 1499, 1500}
    assert found["test query"] == {1, 3, 1490, 1501}
    assert found["test gallery"] == {0, 1, 3, 1490, 1501}
    spec = load_dataset("market1501").SPEC
    assert spec.counts["reid"] == {"train": 12_936, "query": 3_368, "gallery": 15_913}
    assert spec.identities["reid_val"] == {"train": 638, "val_gallery": 113}


def test_doctor_tells_how_many_are_queries(tmp_path, capsys):
    root = str(fake("market1501", tmp_path))
    assert main(["doctor", "--dataset", "market1501", "--root", root, "--any-counts"]) == 0
    said = capsys.readouterr().out
    assert "split reid: train 28, test 21 (4 queries)" in said
    assert "split reid_val: train 24, val 4 (2 queries), test 21 (4 queries)" in said


def test_mistake_20_market_junk_and_thumbs(tmp_path):
    root = fake("market1501", tmp_path)
    assert (root / "Market-1501-v15.09.15/bounding_box_test/Thumbs.db").exists()
    (remark,) = beside_counts(look("market1501", root).remarks)
    assert "1 image" in remark and "/-1_c1s1_000401_03.jpg" in remark and "not used" in remark
    (root / "Market-1501-v15.09.15/query/0001_c2_f0046182.jpg").write_bytes(b"")
    assert "not named as in Market-1501" in look("market1501", root).problems[0]


def test_market_files_may_end_in_capitals(tmp_path):
    root = fake("market1501", tmp_path)
    before = rows("market1501", root)
    for file in sorted(root.rglob("*.jpg"))[::2]:
        file.rename(file.with_suffix(".JPG"))
    after = rows("market1501", root)
    assert {name.lower() for name in after} == {name.lower() for name in before} != set(after)


@pytest.mark.parametrize("place", ["market1501/Market-1501-v15.09.15", "Market-1501", "."])
def test_mistake_21_market_layouts(place, tmp_path):
    root = fake("market1501", tmp_path / "market")
    before, moved = rows("market1501", root), tmp_path / "moved"
    (moved / place).parent.mkdir(parents=True, exist_ok=True)
    (root / "Market-1501-v15.09.15").rename(moved / place)
    assert rows("market1501", moved) == before
    shutil.rmtree(moved / place / "query")
    assert "query not found there" in look("market1501", moved).problems[0]


# --- MSMT17 ---------------------------------------------------------------------------------------


@pytest.fixture
def msmt(tmp_path):
    return fake("msmt17", tmp_path / "msmt")


def test_msmt_persons_of_test_come_after_those_of_training(msmt):
    found = parts("msmt17", msmt, "reid")
    assert found["train"] == {0, 1, 2, 3, 4, 5, 1040}
    assert found["test query"] == found["test gallery"] == {1041, 1042, 1041 + 3059}
    for record in rows("msmt17", msmt).values():
        assert record.camera == int(record.image.split("_")[2]) - 1


def test_msmt_with_and_without_the_list_of_validation(msmt):
    sizes = Counter(
        split for r in rows("msmt17", msmt).values() for split in r.subset if "test/" not in r.image
    )
    assert sizes["reid"] == sizes["reid_val"] == 35 and sizes["reid_list_train"] == 28
    spec = load_dataset("msmt17").SPEC
    assert [spec.counts[s]["train"] for s in ("reid", "reid_list_train")] == [32_621, 30_248]


def test_mistake_22_msmt_versions_are_told_apart(msmt, tmp_path):
    base = msmt / "MSMT17_V1"
    before = rows("msmt17", msmt)
    assert any("faces are not blurred" in r for r in look("msmt17", msmt).remarks)
    for old, new in (("train", "mask_train_v2"), ("test", "mask_test_v2")):
        (base / old).rename(base / new)
    base.rename(msmt / "MSMT17_V2")
    assert any("MSMT17_V2, faces are blurred" in r for r in look("msmt17", msmt).remarks)
    assert rows("msmt17", msmt) == before
    shutil.copytree(msmt / "MSMT17_V2", msmt / "MSMT17_V1")
    assert "several folders in it are a release" in look("msmt17", msmt).problems[0]


@pytest.mark.parametrize("place", ["msmt17/MSMT17_V1", "MSMT17/MSMT17", "MSMT17", "."])
def test_mistake_22_msmt_layouts(msmt, place, tmp_path):
    before, moved = rows("msmt17", msmt), tmp_path / "moved"
    (moved / place).parent.mkdir(parents=True, exist_ok=True)
    (msmt / "MSMT17_V1").rename(moved / place)
    root = moved / "MSMT17" if place == "MSMT17/MSMT17" else moved
    assert rows("msmt17", root) == before


def test_msmt_lists_may_end_in_blank_lines(msmt):
    before = rows("msmt17", msmt)
    path = msmt / "MSMT17_V1/list_query.txt"
    path.write_text(path.read_text() + "\n \n")
    assert rows("msmt17", msmt) == before


def test_mistake_22_msmt_lists_are_missing(msmt):
    for name in LISTS[:2]:
        (msmt / "MSMT17_V1" / name).unlink()
    found = look("msmt17", msmt).problems
    assert len(found) == 2
    assert "list_train.txt: missing" in found[0] and "list_val.txt: missing" in found[1]


def test_mistake_22_msmt_in_the_folders_of_market(msmt):
    (msmt / "MSMT17_V1/train").rename(msmt / "MSMT17_V1/bounding_box_train")
    assert "persons are numbered otherwise" in look("msmt17", msmt).problems[0]


@pytest.mark.parametrize(
    "line",
    [
        "0000/0000_000_01_0303morning_0015_0.jpg 1",  # the folder is another person
        "0000/0000_c01_000.jpg 0",
        "0000/0000_000_01_0303morning_0015_0.jpg",
    ],
)
def test_mistake_22_msmt_lists_of_another_layout(msmt, line):
    path = msmt / "MSMT17_V1/list_query.txt"
    path.write_text(path.read_text() + line + "\n")
    (problem,) = look("msmt17", msmt).problems
    assert "1 lines are not as in the release" in problem and f"line 7, '{line}'" in problem


# --- CUHK03 ---------------------------------------------------------------------------------------


@pytest.fixture
def cuhk(tmp_path):
    return fake("cuhk03", tmp_path / "cuhk")


def config(root, form):
    return root / f"cuhk03_new_protocol_config_{form}.mat"


def edit(path, **changes):
    found = read_mat(path)
    found["filelist"] = cell(found["filelist"])
    write_mat(path, found | changes)


def test_cuhk_in_two_forms(cuhk):
    for form in ("detected", "labeled"):
        found = parts("cuhk03", cuhk, form)
        assert found["train"] == set(range(1, 9))
        assert found["test query"] == found["test gallery"] == {9, 10, 11}
    images = rows("cuhk03", cuhk)
    assert images["detected/1_001_1_01"].camera == 0 and images["detected/1_001_2_06"].camera == 1
    assert all(split.startswith(i.split("/")[0]) for i, r in images.items() for split in r.subset)
    spec = load_dataset("cuhk03").SPEC
    assert [sum(spec.counts[s].values()) for s in ("detected", "labeled")] == [14_097, 14_096]
    assert "one picture per person" in spec.without["classic"]


def test_cuhk_with_one_form_only(cuhk):
    config(cuhk, "labeled").unlink()
    found = look("cuhk03", cuhk)
    assert not found.problems and any("splits 'labeled'" in remark for remark in found.remarks)
    assert {s for r in found.records for s in r.subset} == {"detected", "detected_val"}
    config(cuhk, "detected").unlink()
    assert "come with the code of the new protocol" in look("cuhk03", cuhk).problems[0]


def test_mistake_24_cuhk_forms_are_confused(cuhk, monkeypatch):
    counts = load_dataset("cuhk03").SPEC.counts
    sums = {sum(counts[form].values()): form for form in ("detected", "labeled")}
    assert sums == cuhk03.IMAGES
    files = len(read_mat(config(cuhk, "detected"))["filelist"])
    monkeypatch.setattr(cuhk03, "IMAGES", {files: "labeled"})
    (problem,) = look("cuhk03", cuhk).problems
    assert f"detected.mat: lists {files} images, which are the labeled ones" in problem


def test_cuhk_indices_and_cameras_are_checked(cuhk):
    found = read_mat(config(cuhk, "detected"))
    edit(config(cuhk, "detected"), query_idx=found["query_idx"][:, None] - found["query_idx"].min())
    edit(config(cuhk, "labeled"), camId=3 - found["camId"][:, None])
    indices, cameras = look("cuhk03", cuhk).problems
    assert "indices start at 0" in indices
    assert "camera 2 by camId, but its name says otherwise" in cameras
    edit(config(cuhk, "detected"), query_idx=found["train_idx"][:1, None])
    assert "is both train and query" in look("cuhk03", cuhk).problems[0]


def test_cuhk_pictures_come_out_of_the_release(cuhk, tmp_path):
    mat, pixels = tmp_path / "cuhk-03.mat", np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
    with h5py.File(mat, "w") as file:
        picture = file.create_dataset("#refs#/picture", data=pixels.T)  # MATLAB writes transposed
        nothing = file.create_dataset("#refs#/nothing", data=np.zeros(2, np.uint64))
        row = [picture.ref] * 4 + [nothing.ref] + [picture.ref] * 3 + [nothing.ref] * 2
        pair = file.create_dataset("#refs#/pair", data=np.array([row] * 2).T, dtype=h5py.ref_dtype)
        for form in ("detected", "labeled"):
            file.create_dataset(form, data=np.array([[pair.ref] * 5]), dtype=h5py.ref_dtype)
    assert extract(mat, tmp_path / "out") == 2 * 5 * 2 * 7
    folder = tmp_path / "out/images_detected"
    assert np.array_equal(np.asarray(Image.open(folder / "5_002_2_06.png")), pixels)
    assert {p.name for p in folder.glob("1_001_*")} == {
        *(f"1_001_1_{n:02d}.png" for n in (1, 2, 3, 4)),
        *(f"1_001_2_{n:02d}.png" for n in (6, 7, 8)),
    }
    with pytest.raises(PedbenchError, match=r"detected.mat: not CUHK03's cuhk-03.mat"):
        extract(config(cuhk, "detected"), tmp_path / "out")
    shutil.rmtree(cuhk / "images_detected")
    shutil.move(mat, cuhk / "cuhk-03.mat")
    (problem,) = look("cuhk03", cuhk).problems
    assert f"python -m pedbench.formats.cuhk03 {cuhk}/cuhk-03.mat {cuhk}'" in problem


# --- across datasets, and drawn -------------------------------------------------------------------


def test_trained_on_one_and_asked_for_in_the_other(tmp_path):
    root = fake("market1501_msmt17", tmp_path)
    found = rows("market1501_msmt17", root)
    for a, b in (("market1501", "msmt17"), ("msmt17", "market1501")):
        inside = {i: r for i, r in found.items() if f"{a}_to_{b}" in r.subset}
        where = {(i.split("/")[0], r.subset[f"{a}_to_{b}"]) for i, r in inside.items()}
        assert where == {(a, "train"), (b, "test")}
        assert {i.split("/")[0] for i, r in inside.items() if r.queries} == {b}
    for what in ("identity", "camera"):
        market, msmt = (
            {getattr(r, what) for i, r in found.items() if i.startswith(name)}
            for name in ("market1501/", "msmt17/")
        )
        assert min(market) >= 0 and not market & msmt
    counts = load_dataset("market1501_msmt17").SPEC.counts
    assert counts["msmt17_to_market1501"] == {"train": 32_621, "query": 3_368, "gallery": 15_913}


def test_the_synthetic_pair_makes_its_parents(tmp_path, monkeypatch):
    dataset = load_dataset("synthetic_reid_cross")
    for parent in dataset.PARENTS.values():
        small = {"seed": 0, "identities": 8, "images_per_identity": 4}
        monkeypatch.setattr(parent, "DEFAULTS", small)
    dataset.generate(tmp_path, {})
    found = parts("synthetic_reid_cross", tmp_path, "synthetic_reid_to_synthetic_reid_b")
    assert {key: len(ids) for key, ids in found.items()} == {
        **{"train": 4, "val query": 1, "val gallery": 1, "test query": 3, "test gallery": 3}
    }


def test_the_synthetic_set_asks_for_all_but_every_tenth_person(tmp_path):
    dataset, options = load_dataset("synthetic_reid"), {"identities": 20, "images_per_identity": 5}
    dataset.generate(tmp_path, options)
    found = examine("synthetic_reid", dataset, tmp_path, options, lambda path: None)
    assert not found.problems and not found.remarks  # each query has a match by another camera
    tested = [r for r in found.records if r.subset["reid"] != "train"]
    asked = Counter(r.identity for r in tested if r.queries)
    assert asked == {p: 2 for p in {r.identity for r in tested} if p % 10 != 9}
    assert not any(r.queries for r in found.records if r.subset["reid"] == "train")
    with pytest.raises(PedbenchError, match="images_per_identity is 1; use .* at least 2"):
        dataset.generate(tmp_path, {"images_per_identity": 1})
