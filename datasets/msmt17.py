"""MSMT17: fifteen cameras of a campus; the largest set here, with blurred faces or without."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pedbench.contracts import BaseDataset, DatasetSpec, PedbenchError, Record, Remark, Subset
from pedbench.formats.fakes import noise
from pedbench.formats.held_out import remaining, with_validation
from pedbench.formats.layout import folders, release_folder

TRAIN, TEST = ("mask_train_v2", "train"), ("mask_test_v2", "test")  # of V2 and of V1
LISTS = ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")
PERSONS = 1_041  # in training; those of test are numbered from 0 again, so theirs come after
NAME = re.compile(r"(\d{4})/\d{4}_\d{3}_(\d{2})_\d{4}(morning|noon|afternoon)_\d{4}_\d+(_ex)?\.jpg")
TESTED = {"query": 11_659, "gallery": 82_161}


class Dataset(BaseDataset):
    SPEC = DatasetSpec(
        title="MSMT17",
        licence="research only, by a signed request to the authors",
        attributes=(),
        splits=("reid", "reid_val", "reid_list_train"),
        reid=("reid", "reid_val", "reid_list_train"),
        counts={
            "reid": {"train": 32_621, **TESTED},
            "reid_val": TESTED,
            "reid_list_train": {"train": 30_248, **TESTED},
        },
        identities={
            "reid": {"train": PERSONS, "query": 3_060, "gallery": 3_060},
            "reid_val": remaining(PERSONS),
            "reid_list_train": {"train": PERSONS},
        },
        citation="""
@inproceedings{wei2018person,
  author = {Wei, Longhui and Zhang, Shiliang and Gao, Wen and Tian, Qi},
  title = {Person Transfer {GAN} to Bridge Domain Gap for Person Re-Identification},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2018}
}
""",
    )

    def records(self, root: Path) -> Iterator[Record]:
        folder = _folder(root)
        _remark(folder)
        found: list[Record] = []
        problems: list[str] = []
        for name in LISTS:
            try:
                found += _listed(root, folder, name)
            except PedbenchError as error:
                problems += str(error).splitlines()
        if problems:
            raise PedbenchError("\n".join(problems))
        divided = with_validation(found, "reid", "reid_val", "msmt17")
        yield from sorted(divided, key=lambda record: record.image)

    def fake(self, root: Path, rng: np.random.Generator) -> None:
        base = root / "MSMT17_V1"
        lines: dict[str, list[str]] = {name: [] for name in LISTS}
        times = ("0303morning", "0302noon", "0113afternoon")
        for folder, people in (("train", (0, 1, 2, 3, 4, 5, 1040)), ("test", (0, 1, 3059))):
            for person in people:
                for shot, camera in enumerate(rng.permutation(15)[:5] + 1):
                    ending = "_ex" if rng.random() < 0.4 else ""
                    file = f"{person:04d}_{shot:03d}_{camera:02d}_{times[shot % 3]}_0015_{shot}"
                    name = f"{person:04d}/{file}{ending}.jpg"
                    noise(base / folder / name, rng)
                    into = "val" if shot == 4 else "train"
                    if folder == "test":
                        into = "query" if shot < 2 else "gallery"
                    lines[f"list_{into}.txt"].append(f"{name} {person}\n")
        for name, each in lines.items():
            (base / name).write_text("".join(each))
        (base / "train" / "0000" / "._x.jpg").write_bytes(b"no picture")


def _folder(root: Path) -> Path:
    """That of the release; torchreid puts it two levels below its root."""
    start = root / "msmt17"
    start = start if start.is_dir() else root
    copies = [f for f in (start, *(folders(start) if start.is_dir() else ())) if _is_market(f)]
    if copies:
        raise PedbenchError(
            f"{copies[0]}: a copy in the folders of Market-1501 (bounding_box_train), in which "
            "persons are numbered otherwise; name the folder of the release, with its lists "
            f"({', '.join(LISTS)})"
        )
    return release_folder(start, TRAIN, TEST)


def _is_market(folder: Path) -> bool:
    return (folder / "bounding_box_train").is_dir()


def _remark(folder: Path) -> None:
    """Tell which version it is: results on one do not compare with those on the other."""
    blurred = (folder / TRAIN[0]).is_dir()
    warnings.warn(
        f"{folder}: "
        + (
            "MSMT17_V2, faces are blurred; most published numbers are of V1"
            if blurred
            else "MSMT17_V1 by its folders, faces are not blurred; no number compares with V2's"
        ),
        Remark,
        stacklevel=2,
    )


def _listed(root: Path, folder: Path, name: str) -> list[Record]:
    """The images of one list."""
    path = folder / name
    if not path.is_file():
        raise PedbenchError(
            f"{path}: missing, and only the list says which images are in it; it comes with the "
            "release and belongs beside the folders of pictures"
        )
    train = name in LISTS[:2]
    place = next(folder / each for each in (TRAIN if train else TEST) if (folder / each).is_dir())
    subset: Subset = "train" if train else "test"
    splits = ("reid", "reid_list_train") if name != "list_val.txt" else ("reid",)
    found, wrong = [], []
    lines = path.read_text(encoding="utf-8").rstrip().splitlines()  # copies end in blank lines
    for number, line in enumerate(lines, start=1):
        image, _, person = line.strip().rpartition(" ")
        match = NAME.fullmatch(image)
        if match is None or not person.isdecimal() or int(match[1]) != int(person):
            wrong.append((number, line))
            continue
        file = (place.relative_to(root) / image).as_posix()
        found.append(
            Record(
                image=f"{subset}/{image}",
                labels=(),
                subset=dict.fromkeys(splits, subset),
                queries=splits if name == "list_query.txt" else (),
                identity=int(person) + (0 if train else PERSONS),
                camera=int(match[2]) - 1,
                file=file,
            )
        )
    if wrong:
        raise PedbenchError(
            f"{path}: {len(wrong)} lines are not as in the release "
            "('0000/0000_000_01_0303morning_0015_0.jpg 0': the folder is the person's number), "
            f"such as line {wrong[0][0]}, '{wrong[0][1]}'; the list was changed or belongs to "
            "another layout: obtain it again"
        )
    return found
