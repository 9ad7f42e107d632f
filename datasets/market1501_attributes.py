"""Market-1501 attributes: labels of persons, shared by all pictures of a person in Market-1501."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pedbench.contracts import (
    UNKNOWN,
    Attribute,
    BaseDataset,
    DatasetSpec,
    PedbenchError,
    Record,
    Remark,
    Subset,
)
from pedbench.formats.fakes import cell, write_mat
from pedbench.formats.held_out import remaining, with_validation
from pedbench.formats.labels import same_number
from pedbench.formats.market import (
    DISTRACTOR,
    GALLERY,
    QUERY,
    TRAIN,
    fake_market,
    market_folder,
    pictures,
)
from pedbench.formats.matlab import field, read_mat

FILE = "market_attribute.mat"
FOLDERS: Mapping[Subset, str] = {"train": TRAIN, "test": GALLERY}
TESTED = {"query": 3_368, "gallery": 15_913}
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
    FOLDER_OF = "market1501"
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
        splits=("trainval", "reid", "reid_val"),
        reid=("reid", "reid_val"),
        counts={
            "trainval": {"train": 12_936, "test": 13_115},
            "reid": {"train": 12_936, **TESTED},
            "reid_val": TESTED,
        },
        identities={
            "trainval": {"train": 751, "test": 750},
            "reid": {"train": 751, "query": 750, "gallery": 751},  # with 0, the distractors
            "reid_val": remaining(751),
        },
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
        folder = market_folder(root, *FOLDERS.values())
        path = _annotation(root, folder)
        struct = field(path, read_mat(path), "market_attribute")
        reid = (folder / QUERY).is_dir()
        if not reid:
            warnings.warn(
                f"{folder}: no folder {QUERY}, so there are no splits 'reid' and 'reid_val'",
                Remark,
                stacklevel=2,
            )
        found: list[Record] = []
        problems: list[str] = []
        for subset, name in FOLDERS.items():
            try:
                persons = _persons(path, subset, field(path, struct, subset))
            except PedbenchError as error:
                problems.append(str(error))
                continue
            folders = (name, QUERY) if reid and subset == "test" else (name,)
            shown = {folder / name: pictures(folder / name) for name in folders}
            there = {p for each in shown.values() for p, _ in each.values()} - {DISTRACTOR}
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
                record
                for place, which in shown.items()
                for record in _records(root, place, which, subset, persons, reid)
            ]
        if problems:
            raise PedbenchError("\n".join(problems))
        if reid:
            found = with_validation(found, "reid", "reid_val", "market1501")
        yield from sorted(found, key=lambda record: record.image)

    def fake(self, root: Path, rng: np.random.Generator) -> None:
        people = {"train": (2, 7, 11, 30, 1200, 1499, 1500), "test": (1, 3, 1490, 1501)}
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
        fake_market(root, people, rng)


def _records(
    root: Path,
    folder: Path,
    shown: Mapping[str, tuple[int, int]],
    subset: Subset,
    persons: Mapping[int, tuple[int, ...]],
    reid: bool,
) -> Iterator[Record]:
    """The images of a folder. Queries and distractors, whose attributes nobody knows, are for
    re-identification only."""
    query = folder.name == QUERY
    for file, (person, camera) in shown.items():
        own: dict[str, Subset] = {"reid": subset} if reid else {}
        if not query and person != DISTRACTOR:
            own["trainval"] = subset
        if own:
            yield Record(
                image=f"{folder.name}/{file}",
                labels=persons.get(person, (UNKNOWN,) * len(SOURCE)),
                subset=own,
                queries=("reid",) if query else (),
                identity=person,
                camera=camera,
                file=(folder.relative_to(root) / file).as_posix(),
            )


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
