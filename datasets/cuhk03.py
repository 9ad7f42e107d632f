"""CUHK03 in its new protocol: two cameras, persons found by a detector or drawn by hand."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pedbench.contracts import BaseDataset, DatasetSpec, PedbenchError, Record, Remark, Subset
from pedbench.formats.cuhk03 import FORMS
from pedbench.formats.fakes import cell, noise, write_mat
from pedbench.formats.held_out import remaining, with_validation
from pedbench.formats.labels import same_number
from pedbench.formats.layout import Pictures, folders
from pedbench.formats.matlab import field, positions, read_mat

MAT = "cuhk-03.mat"
IMAGES = {14_097: "detected", 14_096: "labeled"}  # how many there are tells which form it is
TESTED = {
    "detected": {"query": 1_400, "gallery": 5_332},
    "labeled": {"query": 1_400, "gallery": 5_328},
}
PEOPLE = {"train": 767, "query": 700, "gallery": 700}


class Dataset(BaseDataset):
    SPEC = DatasetSpec(
        title="CUHK03",
        licence="research only, by a request form of CUHK",
        attributes=(),
        splits=("detected", "labeled", "detected_val", "labeled_val"),
        reid=("detected", "labeled", "detected_val", "labeled_val"),
        counts={
            "detected": {"train": 7_365, **TESTED["detected"]},
            "labeled": {"train": 7_368, **TESTED["labeled"]},
            "detected_val": TESTED["detected"],
            "labeled_val": TESTED["labeled"],
        },
        identities={
            "detected": PEOPLE,
            "labeled": PEOPLE,
            "detected_val": remaining(767),
            "labeled_val": remaining(767),
        },
        without={
            "reid": "pictures were cut by a detector or by hand, and results on the two do not "
            "compare; use 'detected' or 'labeled'",
            "classic": "its 20 divisions of 1,367 and 100 persons are scored by drawing one "
            "picture per person as gallery, over and over, without mAP; use 'detected' or "
            "'labeled', the new protocol of 767 and 700 persons",
        },
        citation="""
@inproceedings{li2014deepreid,
  author = {Li, Wei and Zhao, Rui and Xiao, Tong and Wang, Xiaogang},
  title = {{DeepReID}: Deep Filter Pairing Neural Network for Person Re-identification},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2014}
}

@inproceedings{zhong2017reranking,
  author = {Zhong, Zhun and Zheng, Liang and Cao, Donglin and Li, Shaozi},
  title = {Re-ranking Person Re-identification with k-reciprocal Encoding},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2017}
}
""",
    )

    def records(self, root: Path) -> Iterator[Record]:
        folder = _folder(root)
        found: list[Record] = []
        problems: list[str] = []
        for form in FORMS:
            if not (folder / _list(form)).is_file():
                warnings.warn(
                    f"{folder}: no {_list(form)}, so splits '{form}' and '{form}_val' have no "
                    "images; the file is of the code of the new protocol",
                    Remark,
                    stacklevel=2,
                )
                continue
            try:
                records = list(_listed(root, folder, form))
                found += with_validation(records, form, f"{form}_val", "cuhk03")
            except PedbenchError as error:
                problems += str(error).splitlines()
        if problems:
            raise PedbenchError("\n".join(problems))
        yield from sorted(found, key=lambda record: record.image)

    def fake(self, root: Path, rng: np.random.Generator) -> None:
        for form in FORMS:
            files, labels, cameras = [], [], []
            for person in range(1, 12):
                for number in (1, 2, 6, 7, 8):
                    file = f"{1 + person // 7}_{person:03d}_{1 + number // 6}_{number:02d}.png"
                    noise(root / f"images_{form}" / file, rng)
                    files.append(file)
                    labels.append(person)
                    cameras.append(1 + number // 6)
            person, rows = np.array(labels), np.arange(1, len(labels) + 1, dtype=np.uint16)
            shot = (rows - 1) % 5
            tested = person > 8
            told: dict[str, Any] = {
                "filelist": cell(files),
                "labels": person[:, None].astype(np.uint16),
                "camId": np.array(cameras, np.uint8)[:, None],
                "train_idx": rows[~tested, None],
                "query_idx": rows[tested & (shot % 3 == 0), None],
                "gallery_idx": rows[tested & (shot % 3 != 0), None],
            }
            write_mat(root / _list(form), told)


def _list(form: str) -> str:
    return f"cuhk03_new_protocol_config_{form}.mat"


def _folder(root: Path) -> Path:
    """That of the lists: ``root``, or one in it. Raises PedbenchError when there is none."""
    if not root.is_dir():
        raise PedbenchError(f"{root}: no such folder; correct the path")
    lists = [_list(form) for form in FORMS]
    places = (root, *folders(root))
    inside = [folder for folder in places if any((folder / name).is_file() for name in lists)]
    if len(inside) == 1 or root in inside:
        return inside[0]
    if inside:
        several = ", ".join(map(str, inside))
        raise PedbenchError(f"{root}: several folders in it are of CUHK03 ({several}): name one")
    raise PedbenchError(
        f"{root}: neither {' nor '.join(lists)} found there or in its folders: they come with the "
        "code of the new protocol, not with the pictures"
    )


def _listed(root: Path, folder: Path, form: str) -> Iterator[Record]:
    """The images of one form."""
    path = folder / _list(form)
    told = read_mat(path)
    names = [str(name) for name in field(path, told, "filelist")]
    other = IMAGES.get(len(names), form)
    if other != form:
        raise PedbenchError(
            f"{path}: lists {len(names):,} images, which are the {other} ones; put the file for "
            f"the {form} ones in its place"
        )
    labels, cameras = (np.atleast_1d(field(path, told, key)) for key in ("labels", "camId"))
    same_number(path, {"images": len(names), "labels": len(labels), "cameras": len(cameras)})
    part: dict[int, str] = {}
    for key in ("train", "query", "gallery"):
        where = f"{key}_idx"
        for index in positions(path, where, field(path, told, where), len(names)).tolist():
            if index in part:
                raise PedbenchError(
                    f"{path}: image {names[index]} is both {part[index]} and {key}; the file was "
                    "changed: obtain it again"
                )
            part[index] = key
    pictures = Pictures(_pictures(root, folder, form), root)
    for index, key in sorted(part.items()):
        name = names[index]
        if name.split("_")[2:3] != [str(cameras[index])]:
            raise PedbenchError(
                f"{path}: image {name} is of camera {cameras[index]} by camId, but its name says "
                "otherwise; the file was changed: obtain it again"
            )
        subset: Subset = "train" if key == "train" else "test"
        yield Record(
            image=f"{form}/{os.path.splitext(name)[0]}",
            labels=(),
            subset={form: subset},
            queries=(form,) if key == "query" else (),
            identity=int(labels[index]),
            camera=int(cameras[index]) - 1,
            file=pictures.find(name),
        )
    pictures.remark()


def _pictures(root: Path, folder: Path, form: str) -> Path:
    """The folder of pictures. Raises PedbenchError that tells how they come out of the release."""
    for parent in dict.fromkeys((folder, root)):
        if (parent / f"images_{form}").is_dir():
            return parent / f"images_{form}"
    mats = [p / MAT for p in (folder, root, root / "cuhk03_release") if (p / MAT).is_file()]
    raise PedbenchError(
        f"{folder}: no folder images_{form}; the release keeps its pictures in {MAT}: take them "
        f"out with 'python -m pedbench.formats.cuhk03 {mats[0] if mats else MAT} {folder}'"
    )
