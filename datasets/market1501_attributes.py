"""Market-1501 attributes: labels of persons, shared by all pictures of a person in Market-1501."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pedbench.contracts import (
    Attribute,
    BaseDataset,
    DatasetSpec,
    PedbenchError,
    Record,
    Subset,
)
from pedbench.formats.fakes import cell, noise, write_mat
from pedbench.formats.labels import same_number
from pedbench.formats.layout import release_folder
from pedbench.formats.matlab import field, read_mat

FILE = "market_attribute.mat"
FOLDERS: Mapping[Subset, str] = {"train": "bounding_box_train", "test": "bounding_box_test"}
NAME = re.compile(r"(-?\d+)_c(\d)s\d+_\d+_\d+\.jpg")
JUNK, DISTRACTOR = -1, 0  # numbers of no person
UPPER = ("black", "white", "red", "purple", "gray", "blue", "green", "yellow")
LOWER = ("black", "white", "pink", "gray", "blue", "green", "brown", "yellow", "purple")
AGES = 4


def _colour(part: str, name: str) -> Attribute:
    word = "grey" if name == "gray" else name
    piece = "top" if part == "up" else "bottoms"
    article = "a " if part == "up" else ""
    region = "upper" if part == "up" else "lower"
    return Attribute(
        f"{part}{name}", region, f"in {article}{word} {piece}", f"not in {article}{word} {piece}"
    )


# Attribute -> the field of the file and the code of its presence; codes start at 1.
SOURCE: Mapping[str, tuple[str, int]] = {
    "female": ("gender", 2),
    "long_hair": ("hair", 2),
    "age_young": ("age", 1),
    "age_teenager": ("age", 2),
    "age_adult": ("age", 3),
    "age_old": ("age", 4),
    "short_sleeve": ("up", 2),
    "short_lower": ("down", 2),
    "pants": ("clothes", 2),
    **{name: (name, 2) for name in ("hat", "backpack", "bag", "handbag")},
    **{f"up{name}": (f"up{name}", 2) for name in UPPER},
    **{f"down{name}": (f"down{name}", 2) for name in LOWER},
}


class Dataset(BaseDataset):
    SPEC = DatasetSpec(
        title="Market-1501 attributes",
        licence="labels: none stated, a citation is asked for; pictures (Market-1501): research",
        attributes=(
            Attribute("female", "whole", "who is a woman", "who is a man"),
            Attribute("long_hair", "head", "with long hair", "with short hair"),
            Attribute("age_young", "whole", "who is a young child", "who is not a young child"),
            Attribute("age_teenager", "whole", "who is a teenager", "who is not a teenager"),
            Attribute("age_adult", "whole", "who is an adult", "who is not an adult"),
            Attribute("age_old", "whole", "who is old", "who is not old"),
            Attribute("short_sleeve", "upper", "with short sleeves", "with long sleeves"),
            Attribute("short_lower", "lower", "with bare lower legs", "with covered legs"),
            Attribute("pants", "lower", "wearing trousers", "wearing a dress"),
            Attribute("hat", "head", "wearing a hat", "without a hat"),
            Attribute("backpack", "upper", "wearing a backpack", "without a backpack"),
            Attribute("bag", "whole", "carrying a bag", "without a bag"),
            Attribute("handbag", "whole", "carrying a handbag", "without a handbag"),
            *(_colour("up", name) for name in UPPER),
            *(_colour("down", name) for name in LOWER),
        ),
        splits=("trainval",),
        counts={"trainval": {"train": 12_936, "test": 13_115}},
        identities={"trainval": {"train": 751, "test": 750}},
        disjoint=("trainval",),
        without={
            "standard": "the release divides its persons into train and test only; use 'trainval'"
        },
        citation="""
@article{lin2019improving,
  author = {Lin, Yutian and Zheng, Liang and Zheng, Zhedong and Wu, Yu and Hu, Zhilan and
    Yan, Chenggang and Yang, Yi},
  title = {Improving Person Re-identification by Attribute and Identity Learning},
  journal = {Pattern Recognition},
  year = {2019}
}

@inproceedings{zheng2015scalable,
  author = {Zheng, Liang and Shen, Liyue and Tian, Lu and Wang, Shengjin and Wang, Jingdong and
    Tian, Qi},
  title = {Scalable Person Re-identification: A Benchmark},
  booktitle = {IEEE International Conference on Computer Vision (ICCV)},
  year = {2015}
}
""",
    )

    def records(self, root: Path) -> Iterator[Record]:
        folder = _folder(root)
        path = _annotation(root, folder)
        struct = field(path, read_mat(path), "market_attribute")
        prefix = folder.relative_to(root)
        found: list[Record] = []
        problems: list[str] = []
        for subset, name in FOLDERS.items():
            try:
                persons = _persons(path, subset, field(path, struct, subset))
            except PedbenchError as error:
                problems.append(str(error))
                continue
            pictures = _pictures(folder / name)
            there = {person for person, _ in pictures.values()}
            for numbers, what in (
                (there - persons.keys(), "pictures, but no attributes"),
                (persons.keys() - there, "attributes, but no pictures"),
            ):
                if numbers:
                    some = ", ".join(f"{number:04d}" for number in sorted(numbers)[:5])
                    problems.append(
                        f"{folder / name}: {len(numbers)} persons have {what} in {FILE} ({some}): "
                        "the folder is incomplete or of another data set"
                    )
            found += [
                Record(
                    image=f"{name}/{file}",
                    labels=persons[person],
                    subset={"trainval": subset},
                    identity=person,
                    camera=camera - 1,
                    file=(prefix / name / file).as_posix(),
                )
                for file, (person, camera) in pictures.items()
                if person in persons
            ]
        if problems:
            raise PedbenchError("\n".join(problems))
        yield from sorted(found, key=lambda record: record.image)

    def fake(self, root: Path, rng: np.random.Generator) -> None:
        people = {"train": (2, 7, 11, 1500), "test": (1, 3, 1490, 1501)}
        fields = list(dict.fromkeys(name for name, _ in SOURCE.values()))
        struct: dict[str, Any] = {}
        for subset in ("test", "train"):
            order = fields if subset == "train" else fields[::-1]
            numbers = people[subset]
            codes = {
                name: rng.integers(1, (AGES if name == "age" else 2) + 1, (1, len(numbers)))
                for name in order
            }
            told = {name: values.astype(np.uint8) for name, values in codes.items()}
            told["image_index"] = cell([f"{number:04d}" for number in numbers], row=True)
            struct[subset] = told
        write_mat(root / FILE, {"market_attribute": struct})
        base = root / "Market-1501-v15.09.15"
        for subset, name in FOLDERS.items():
            for person in people[subset]:
                for shot in range(1, 5):
                    file = f"{person:04d}_c{rng.integers(1, 7)}s1_00{shot:04d}_01.jpg"
                    noise(base / name / file, rng)
            (base / name / "Thumbs.db").write_bytes(b"no picture")
        for number in ("-1", "0000"):
            noise(base / FOLDERS["test"] / f"{number}_c1s1_000401_03.jpg", rng)
        noise(base / "query" / "0001_c1s1_001051_00.jpg", rng)


def _folder(root: Path) -> Path:
    """That of Market-1501; torchreid puts it two levels below its root."""
    start = root / "market1501"
    return release_folder(start if start.is_dir() else root, *FOLDERS.values())


def _annotation(root: Path, folder: Path) -> Path:
    tried = list(dict.fromkeys([root, folder.parent, folder]))
    tried += [one / name for one in tried for name in ("attribute", "Market-1501_Attribute")]
    for one in tried:
        if (one / FILE).is_file():
            return one / FILE
    raise PedbenchError(
        f"{root}: {FILE} not found in {', '.join(map(str, tried))}; it comes from the authors of "
        "the attributes, not with Market-1501"
    )


def _persons(path: Path, subset: str, struct: Mapping[str, Any]) -> dict[int, tuple[int, ...]]:
    """Person -> labels. The order of the fields differs between train and test."""
    index = [str(number) for number in field(path, dict(struct), "image_index")]
    labels = np.empty((len(index), len(SOURCE)), int)
    problems = []
    for column, (name, code) in enumerate(SOURCE.values()):
        codes = np.atleast_1d(field(path, dict(struct), name))
        same_number(path, {f"persons of {subset}": len(index), f"values of {name}": len(codes)})
        strange = ~np.isin(codes, range(1, (AGES if name == "age" else 2) + 1))
        if strange.any():
            at = int(strange.argmax())
            problems.append(
                f"{path}: {subset}.{name} of person {index[at]} is {codes[at]}, but codes are 1 "
                f"to {AGES if name == 'age' else 2}; the file was changed: obtain it again"
            )
        labels[:, column] = codes == code
    if problems:
        raise PedbenchError("\n".join(dict.fromkeys(problems)))
    return {int(n): tuple(row) for n, row in zip(index, labels.tolist(), strict=True)}


def _pictures(folder: Path) -> dict[str, tuple[int, int]]:
    """File -> person and camera (from 1) of every picture of a person."""
    names = [p.name for p in folder.iterdir() if p.suffix == ".jpg" and p.name[:2] != "._"]
    found = {name: NAME.fullmatch(name) for name in sorted(names)}
    strange = [name for name, match in found.items() if match is None]
    if strange:
        raise PedbenchError(
            f"{folder}: {len(strange)} files are not named as in Market-1501 "
            f"(0002_c1s1_000451_03.jpg), such as {strange[0]}; obtain the data set again"
        )
    every = {name: (int(m[1]), int(m[2])) for name, m in found.items() if m}
    return {n: which for n, which in every.items() if which[0] not in (JUNK, DISTRACTOR)}
