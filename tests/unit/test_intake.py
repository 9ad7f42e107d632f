"""What can be off in any dataset's folder: seen at once, named with its cause, nothing written.

The tests named after mistakes are those that no format has to itself.
"""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pedbench import registry
from pedbench.cli import main
from pedbench.contracts import Attribute, BaseDataset, DatasetSpec, PedbenchError, Record, Remark
from pedbench.formats.fakes import noise
from pedbench.formats.layout import Pictures, release_folder
from pedbench.intake import Findings, build_manifest, decoded, examine, header
from pedbench.manifest import decode, read_manifest

COUNT = 24
ATTRIBUTES = (
    Attribute("hat", "head", "with a hat", "without a hat"),
    Attribute("bag", "upper", "with a bag", "without a bag"),
)


class Listed(BaseDataset):
    """``labels.csv`` (image, identity, subset, two labels) and ``images/``."""

    SPEC = DatasetSpec(
        title="Listed",
        licence="none",
        attributes=ATTRIBUTES,
        splits=("standard",),
        counts={"standard": {"train": 12, "val": 6, "test": 6}},
        identities={"standard": {"test": 3}},
        disjoint=("standard",),
    )

    def fake(self, root: Path, rng: np.random.Generator) -> None:
        lines = []
        for index in range(COUNT):
            noise(root / "images" / f"{index:02d}.png", rng, 16, 8)
            subset = "train" if index < 12 else "val" if index < 18 else "test"
            lines.append(f"{index:02d}.png,{index // 2},{subset},{index % 2},1")
        (root / "labels.csv").write_text("\n".join(lines) + "\n")

    def records(self, root: Path):
        folder = release_folder(root, "labels.csv", "images")
        pictures = Pictures(folder / "images", root)
        for line in sorted((folder / "labels.csv").read_text().split()):
            image, identity, subset, *labels = line.split(",")
            file = image if "/" in image else pictures.find(image)
            where: Any = {"standard": subset}
            yield Record(image, tuple(map(int, labels)), where, int(identity), file=file)
        pictures.remark()


@pytest.fixture
def root(tmp_path) -> Path:
    Listed().fake(tmp_path / "release", np.random.default_rng(0))
    return tmp_path / "release"


def look(root: Path, any_counts: bool = False, each: Any = header) -> Findings:
    return examine("listed", Listed(), root, {"check_counts": not any_counts}, each)


def edit(root: Path, old: str, new: str) -> None:
    text = (root / "labels.csv").read_text()
    assert old in text
    (root / "labels.csv").write_text(text.replace(old, new))


def problem(root: Path, each: Any = header) -> str:
    """The only thing that is off, whatever the counts."""
    (found,) = look(root, any_counts=True, each=each).problems
    return found


def test_a_whole_folder_has_no_problem_and_its_look_shows_progress(root, capsys):
    found = look(root)
    assert not found.problems and not found.remarks and len(found.records) == COUNT
    assert f"images: 100%|██████████| {COUNT}/{COUNT}" in capsys.readouterr().err


def test_mistake_01_one_folder_too_deep(root, tmp_path):
    deep = tmp_path / "download"
    shutil.copytree(root, deep / "release")
    (deep / "__MACOSX").mkdir()
    found = look(deep)
    assert not found.problems and found.records[0].file == "release/images/00.png"
    assert found.records[0].image == "00.png"
    shutil.copytree(root, deep / "copy")
    assert "several folders in it are a release" in problem(deep)
    assert f"{deep}/copy, {deep}/release" in problem(deep)
    outer = tmp_path / "outer"
    shutil.copytree(root, outer / "a/b")
    assert f"labels.csv, images not found there (nor in {outer}/a); did you mean {outer}/a/b?" in (
        problem(outer)
    )


def test_mistake_02_another_level_is_named(root):
    assert f"did you mean {root}?" in problem(root / "images")
    assert problem(root / "nowhere").endswith("nowhere: no such folder; correct the path")
    assert "is a file; name the folder that holds it" in problem(root / "labels.csv")


def test_mistake_02_what_is_missing_is_told_of_the_folder_that_comes_nearest(root, tmp_path):
    alone = tmp_path / "alone"
    (alone / "images").mkdir(parents=True)
    (alone / "notes").mkdir()
    other = f"; another copy is at {root}"
    assert problem(alone) == (
        f"listed: {alone}: labels.csv not found there (nor in {alone}/images, {alone}/notes){other}"
    )
    shutil.move(alone / "images", alone / "notes/images")
    assert problem(alone) == f"listed: {alone}/notes: labels.csv not found there{other}"
    shutil.copy(root / "labels.csv", alone)
    assert problem(alone) == f"listed: {alone}: images not found there{other}"


@pytest.mark.parametrize("locked", ["root", "neighbour", "inside"])
def test_folders_that_may_not_be_read_hide_no_other_error(root, tmp_path, monkeypatch, locked):
    mine = tmp_path / "mine"
    (mine / "lost+found").mkdir(parents=True)
    shut = {"root": mine, "neighbour": root, "inside": mine / "lost+found"}[locked]
    monkeypatch.setattr(os, "access", lambda path, mode: path != shut)  # the tests may be root's

    def refused(self):
        if self == shut:
            raise PermissionError(13, "Permission denied", str(self))
        return iter([self / name for name in os.listdir(self)])

    monkeypatch.setattr(Path, "iterdir", refused)
    missing, other = "labels.csv, images not found there", f"; another copy is at {root}"
    assert (
        problem(mine)
        == f"listed: {mine}: "
        + {
            "root": "you may not read this folder; ask its owner for permission",
            "neighbour": f"{missing} (nor in {mine}/lost+found)",
            "inside": f"{missing}{other}",
        }[locked]
    )


def test_mistake_03_what_systems_leave_is_not_seen(root):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._00.png"):
        (root / "images" / name).write_bytes(b"no picture")
    (root / "__MACOSX").mkdir()
    assert not look(root).problems and not look(root).remarks


def test_mistake_04_missing_images_are_counted_and_the_first_five_named(root):
    for index in range(3, 10):
        (root / f"images/{index:02d}.png").unlink()
    said = problem(root)
    assert "7 images (images/03.png, images/04.png, images/05.png, images/06.png, images/07" in said
    assert f"missing of {COUNT} below {root}" in said and "incomplete" in said
    assert "08.png" not in said


def test_mistake_05_surplus_images_are_told_and_not_used(root, tmp_path):
    shutil.copy(root / "images/00.png", root / "images/19001.png")
    found = look(root)
    assert not found.problems
    (said,) = found.remarks
    assert said == "1 image (images/19001.png) in the folder but not among the dataset's: not used"
    made = build_manifest("listed", Listed(), root, {}, tmp_path / "m.parquet")
    assert len(made.rows) == COUNT and read_manifest(tmp_path / "m.parquet").remarks == (said,)


def test_mistake_30_nothing_is_written_beside_the_data(root, tmp_path):
    for path in (root / "images", root):
        path.chmod(0o555)
    before = snapshot(root)
    build_manifest("listed", Listed(), root, {}, tmp_path / "m.parquet")
    assert snapshot(root) == before


def test_mistake_30_names_of_another_case_are_found_by_their_stem(root):
    """Copied by way of a file system that knows no case."""
    for path in sorted((root / "images").iterdir()):
        path.rename(path.with_suffix(".PNG"))
    found = look(root)
    assert not found.problems and found.records[0].image == "00.png"
    assert found.remarks[0].startswith(f"{COUNT} images have another ending than in the annotation")


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1", "I;16"])
def test_mistake_31_other_modes_become_rgb(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    picture = Image.fromarray(np.full((6, 4), 200, np.uint8))
    picture = Image.new(mode, (4, 6)) if mode == "I;16" else picture.convert(mode)
    picture.save(path)
    assert decode(path).mode == "RGB" and decode(path).size == (4, 6)


def test_mistake_31_exif_turns_nothing(tmp_path):
    """Labels and boxes are of the stored pixels."""
    picture, exif = Image.new("RGB", (4, 6)), Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    picture.save(tmp_path / "x.jpg", exif=exif)
    assert decode(tmp_path / "x.jpg").size == (4, 6)


def test_mistake_32_empty_truncated_and_foreign_files_are_all_named(root):
    images = root / "images"
    (images / "01.png").write_bytes(b"")
    (images / "02.png").write_text("<html>404</html>")
    (images / "03.png").write_bytes((images / "03.png").read_bytes()[:150])
    fast = look(root).problems
    assert [line.partition(": ")[2].partition(":")[0] for line in fast] == [
        str(images / "01.png"),
        str(images / "02.png"),
    ]
    whole = look(root, each=decoded).problems
    assert len(whole) == 3 and f"{images}/03.png: image is truncated" in whole[2]
    for index in range(4, 10):
        (images / f"{index:02d}.png").write_bytes(b"")
    said = look(root, each=decoded).problems
    assert len(said) == 6 and said[-1] == "listed: and 4 more images that cannot be read"


def test_mistake_33_a_name_that_stands_twice(root):
    edit(root, "05.png,2,train", "04.png,2,train")
    (root / "images/05.png").unlink()
    assert problem(root) == "listed: 1 image (04.png) listed twice; remove the second row of each"


def test_mistake_33_two_names_that_became_one_file(root):
    edit(root, "05.png,2,train", "04.bmp,2,train")
    (root / "images/05.png").unlink()
    assert "1 file (images/04.png) read by several images: names became equal" in problem(root)


def test_a_picture_is_below_the_root(root, tmp_path):
    """Whatever an annotation of others says; and no link leads a picture elsewhere."""
    outside = tmp_path / "secret.png"
    shutil.copy(root / "images/00.png", outside)
    for name in (str(outside), "../secret.png", "images/../../secret.png"):
        edit(root, "00.png,0,", f"{name},0,")
        assert f"1 image ({name}) not below {root}" in problem(root)
        with pytest.raises(PedbenchError, match="leads out of the dataset's folder"):
            build_manifest("listed", Listed(), root, {}, tmp_path / "m.parquet")
        edit(root, f"{name},0,", "00.png,0,")
    (root / "images/00.png").unlink()
    (root / "images/00.png").symlink_to(outside)
    assert f"1 image (images/00.png) not below {root}" in problem(root)
    assert not (tmp_path / "m.parquet").exists()


def test_links_of_folders_and_within_the_folder_are_followed(root, tmp_path):
    (root / "images").rename(tmp_path / "scratch")
    (root / "images").symlink_to(tmp_path / "scratch")
    assert not look(root).problems
    (tmp_path / "scratch/store").mkdir()  # as git-annex does
    (tmp_path / "scratch/00.png").rename(tmp_path / "scratch/store/0")
    (tmp_path / "scratch/00.png").symlink_to("store/0")
    (tmp_path / "elsewhere").symlink_to(root)
    for place in (root, tmp_path / "elsewhere"):
        assert not look(place, each=decoded).problems


def test_labels_subsets_and_shared_persons(root):
    edit(root, "00.png,0,train,0,1", "00.png,0,train,0,2")
    edit(root, "01.png,0,train", "01.png,11,tarin")
    edit(root, "02.png,1,train", "02.png,11,train")
    said = look(root, any_counts=True).problems
    assert "00.png: labels must be 2 values in 0, 1, -1 (unknown), got [0, 2]" in said[0]
    assert "subset 'tarin' is none of train, val, test" in said[1]
    assert "split 'standard': 1 identity (11) in more than one subset" in said[2]


def test_counts_of_images_and_persons(root):
    edit(root, "23.png,11,test", "23.png,10,test")
    edit(root, "22.png,11,test", "22.png,10,test")
    edit(root, "00.png,0,train", "00.png,0,val")
    told = "split 'standard': train 11 of 12 images, val 7 of 6 images, test 2 of 3 identities"
    said = look(root).problems[-1]
    assert said.startswith(f"listed: {told}. The folder is incomplete or of another release: ")
    assert "restore it from your copy of the dataset or obtain it again; or accept it with" in said
    found = look(root, any_counts=True)
    assert not any("of 12 images" in line for line in found.problems)
    assert found.remarks == (f"not the release, accepted by 'check_counts: false': {told}",)


def test_only_of_a_dataset_that_is_made_the_folder_may_go(root, monkeypatch):
    (root / "images/00.png").unlink()
    assert "incomplete; restore it from your copy of the dataset or obtain it" in problem(root)
    monkeypatch.setattr(Listed, "generate", lambda self, root, options: None)
    assert "incomplete; delete the folder, and it will be made anew" in problem(root)
    edit(root, "12.png,6,val", "12.png,6,test")
    assert "another release: delete the folder, and it will be made" in look(root).problems[-1]


def test_what_cannot_be_read_is_one_line(root, monkeypatch):
    def records(self, root):
        raise PermissionError(13, "Permission denied", str(root / "labels.csv"))

    monkeypatch.setattr(Listed, "records", records)
    assert problem(root) == f"listed: {root}/labels.csv: cannot be read (Permission denied)"


@pytest.mark.parametrize("line", ["00.png,0", "00.png,zero,train,0,1"])
def test_an_annotation_of_another_shape_is_one_line(root, line):
    edit(root, "00.png,0,train,0,1", line)
    said = problem(root)
    assert said.startswith("listed: annotation of an unexpected shape (ValueError(")
    assert "in test_intake.py, line " in said and "obtain the released one" in said


def test_remarks_reach_the_manifest_and_other_warnings_their_reader(root, tmp_path, monkeypatch):
    whole = Listed.records

    def records(self, root):
        warnings.warn("the boxes are odd", Remark, stacklevel=1)
        warnings.warn("other", UserWarning, stacklevel=1)
        yield from whole(self, root)

    monkeypatch.setattr(Listed, "records", records)
    with pytest.warns(UserWarning, match="other"):
        build_manifest("listed", Listed(), root, {}, tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet").remarks == ("the boxes are odd",)


@pytest.fixture
def doctor(root, monkeypatch, capsys):
    """Exit code and output of ``pedbench doctor --dataset``."""
    monkeypatch.setattr(registry, "load_dataset", lambda name: Listed())

    def run(*options: str) -> tuple[int, str]:
        arguments = ["doctor", "--dataset", "listed", "--root", str(root), *options]
        code = main([a for a in arguments if a])
        return code, capsys.readouterr().out

    return run


def test_doctor_on_a_whole_folder(doctor, root, monkeypatch, capsys):
    before = snapshot(root)
    code, said = doctor("--decode")
    assert code == 0 and said == (
        f"Listed in {root} (none)\nsplit standard: train 12, val 6, test 6\nall is well\n"
    )
    assert snapshot(root) == before
    monkeypatch.setenv("PEDBENCH_ROOT_LISTED", str(root))
    assert main(["doctor", "--dataset", "listed"]) == 0
    monkeypatch.delenv("PEDBENCH_ROOT_LISTED")
    assert main(["doctor", "--dataset", "listed"]) == 1
    assert (
        "name the folder of listed with --root, with 'roots' in the config, or set PEDBENCH_"
        in (capsys.readouterr().err)
    )


def test_doctor_tells_everything_at_once(doctor, root):
    (root / "images/00.png").unlink()
    (root / "images/01.png").write_bytes(b"")
    (root / "images/02.png").write_bytes((root / "images/02.png").read_bytes()[:150])
    (root / "images/new.png").write_bytes(b"")
    edit(root, "23.png,11,test", "23.png,0,test")
    edit(root, "12.png,6,val,0", "12.png,6,val,7")
    edit(root, "13.png,6,val", "13.png,6,train")
    for options, number in (((), 5), (("--any-counts",), 4), (("--any-counts", "--decode"), 5)):
        code, said = doctor(*options)
        assert code == number == said.count("FAIL  "), said
        assert f"{number} to mend, each said above" in said
        assert "note  1 image (images/new.png)" in said
        assert said.count("note  ") == 1 + ("note  not the release, accepted by" in said)
        assert ("train 13 of 12 images" in said.partition("FAIL")[0]) == bool(options)


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    """Time and bytes of every file below ``root``."""
    files = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    return {str(f): (f.stat().st_mtime_ns, f.read_bytes()) for f in files}
