"""PETA: 19,000 pedestrians of ten older re-identification sets, 35 binary attributes.

The release that papers use is the unified one, in which CASIA numbered all images through::

    PETA/
      images/00001.png ... 19000.png
      PETA.mat                         MATLAB v5
      README

``PETA.mat`` holds one struct ``peta``: ``data`` (19000, 109) with image number, identity (1 to
8699), source (1 to 10), identity in the source, and 105 labels of 0 or 1; ``attribute``, the names
of the 105; ``selected_attribute``, the 1-based columns of ``data`` that are evaluated (5 to 39, so
the four columns in front count); ``partion_attribute`` (spelled so), five random partitions of the
images by 1-based rows: 9,500 train, 1,900 val, 7,600 test. Columns are found by name here.

All partitions are by image: 58 % of the test images of the first one show a person who is also in
training. ``peta_zs`` divides by person. Papers train on train and val together (``trainval``) and
use the first partition.

The original release (CUHK; folders such as ``3DPeS/archive`` with files under their old names) has
no such numbers. They follow from it: sort the file names of each source by bytes, take the sources
in the order of `SOURCES`, and count through. The counts, sums and identities below were taken from
the real ``PETA.mat``.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pedbench.contracts import (
    SUBSETS,
    Attribute,
    BaseDataset,
    DatasetSpec,
    PedbenchError,
    Record,
    Remark,
    Subset,
)
from pedbench.formats.fakes import cell, divide, noise, write_mat
from pedbench.formats.labels import columns, decoded, subset_of_rows, trainval
from pedbench.formats.layout import Pictures, folders, release_folder
from pedbench.formats.matlab import field, positions, read_mat
from pedbench.paths import resource

BIBTEX = """
@inproceedings{deng2014peta,
  author = {Deng, Yubin and Luo, Ping and Loy, Chen Change and Tang, Xiaoou},
  title = {Pedestrian Attribute Recognition At Far Distance},
  booktitle = {Proceedings of the 22nd ACM International Conference on Multimedia},
  pages = {789--792},
  year = {2014},
}
@inproceedings{li2015deepmar,
  author = {Li, Dangwei and Chen, Xiaotang and Huang, Kaiqi},
  title = {Multi-attribute Learning for Pedestrian Attribute Recognition in Surveillance
           Scenarios},
  booktitle = {Asian Conference on Pattern Recognition (ACPR)},
  year = {2015},
}
"""
ATTRIBUTES = (
    Attribute("accessoryHat", "head", "wearing a hat", "without a hat"),
    Attribute("accessoryMuffler", "head", "wearing a scarf", "without a scarf"),
    Attribute("accessoryNothing", "head", "without any accessories", "wearing an accessory"),
    Attribute("accessorySunglasses", "head", "wearing sunglasses", "without sunglasses"),
    Attribute("hairLong", "head", "with long hair", "with short hair"),
    Attribute("upperBodyCasual", "upper", "in a casual top", "in a top that is not casual"),
    Attribute("upperBodyFormal", "upper", "in a formal top", "in a top that is not formal"),
    Attribute("upperBodyJacket", "upper", "wearing a jacket", "without a jacket"),
    Attribute("upperBodyLogo", "upper", "with a logo on the top", "without a logo on the top"),
    Attribute("upperBodyPlaid", "upper", "in a plaid top", "in a top without plaid"),
    Attribute("upperBodyShortSleeve", "upper", "with short sleeves", "without short sleeves"),
    Attribute("upperBodyThinStripes", "upper", "in thin stripes", "without thin stripes"),
    Attribute("upperBodyTshirt", "upper", "wearing a T-shirt", "without a T-shirt"),
    Attribute("upperBodyOther", "upper", "in a top of an unusual kind", "in a top of a usual kind"),
    Attribute("upperBodyVNeck", "upper", "in a V-neck top", "in a top without a V-neck"),
    Attribute("lowerBodyCasual", "lower", "in casual legwear", "in legwear that is not casual"),
    Attribute("lowerBodyFormal", "lower", "in formal legwear", "in legwear that is not formal"),
    Attribute("lowerBodyJeans", "lower", "wearing jeans", "without jeans"),
    Attribute("lowerBodyShorts", "lower", "wearing shorts", "without shorts"),
    Attribute("lowerBodyShortSkirt", "lower", "wearing a short skirt", "without a short skirt"),
    Attribute("lowerBodyTrousers", "lower", "wearing trousers", "without trousers"),
    Attribute("footwearLeatherShoes", "feet", "in leather shoes", "in shoes not of leather"),
    Attribute("footwearSandals", "feet", "in sandals", "in closed shoes"),
    Attribute("footwearShoes", "feet", "in ordinary shoes", "without ordinary shoes"),
    Attribute("footwearSneaker", "feet", "in sneakers", "without sneakers"),
    Attribute("carryingBackpack", "upper", "carrying a backpack", "without a backpack"),
    Attribute("carryingOther", "whole", "carrying an unusual item", "carrying no unusual item"),
    Attribute("carryingMessengerBag", "upper", "with a messenger bag", "without a messenger bag"),
    Attribute("carryingNothing", "whole", "carrying nothing", "carrying something"),
    Attribute("carryingPlasticBags", "whole", "carrying plastic bags", "without plastic bags"),
    Attribute("personalLess30", "whole", "under 30 years", "aged 30 years or more"),
    Attribute("personalLess45", "whole", "aged 30 to 45 years", "under 30 or over 45"),
    Attribute("personalLess60", "whole", "aged 45 to 60 years", "under 45 or over 60"),
    Attribute("personalLarger60", "whole", "over 60 years", "aged 60 years or less"),
    Attribute("personalMale", "whole", "who is a man", "who is a woman"),
)  # fmt: skip
# where each of them is among the names in the file
IN_FILE = (
    10, 18, 19, 30, 15, 7, 9, 11, 14, 21, 26, 29, 32, 33, 34, 6, 8, 12, 25, 27, 31, 13, 23, 24, 28,
    4, 5, 17, 20, 22, 0, 1, 2, 3, 16,
)  # fmt: skip
AHEAD = 4  # columns of ``data`` in front of the labels
PARTITIONS = ("", "_2", "_3", "_4", "_5")
PERSONS = (  # train, val, train and val together, test
    (4905, 1264, 5695, 4110),
    (4966, 1247, 5746, 4048),
    (4944, 1264, 5745, 4080),
    (4947, 1268, 5740, 4046),
    (4955, 1274, 5767, 4030),
)
SOURCES = (
    "3DPeS", "CAVIAR4REID", "CUHK", "GRID", "i-LID", "MIT", "PRID", "SARC3D", "TownCentre", "VIPeR",
)  # fmt: skip
LICENCE = "research use only, citing the papers of CUHK and CASIA; obtained from CUHK's MMLAB"
IMAGES = 19_000
POSITIVES = "datasets/positives_peta.csv"  # of each attribute, in the first partition
AGES = (198, 18_798, 4)  # images that show none, one and two of the four ages
BLANK = ["09933.png"]  # the images without any of the attributes
OBTAIN = "obtain the unified release (images/00001.png ... 19000.png and PETA.mat)"


@dataclass(frozen=True)
class Annotation:
    """What ``PETA.mat`` says of its N images: ``images`` their file names, ``identities (N,)``,
    ``labels (N, 35)`` of 0 and 1, and per split the subset of each image."""

    images: list[str]
    identities: np.ndarray
    labels: np.ndarray
    splits: Mapping[str, Sequence[Subset | None]]


class Dataset(BaseDataset):
    SPEC = DatasetSpec(
        title="PETA",
        licence=LICENCE,
        attributes=ATTRIBUTES,
        splits=tuple(f"{name}{n}" for n in PARTITIONS for name in ("standard", "trainval")),
        counts={
            **{f"standard{n}": {"train": 9500, "val": 1900, "test": 7600} for n in PARTITIONS},
            **{f"trainval{n}": {"train": 11_400, "test": 7600} for n in PARTITIONS},
        },
        identities={
            split: persons
            for n, (train, val, both, test) in zip(PARTITIONS, PERSONS, strict=True)
            for split, persons in (
                (f"standard{n}", {"train": train, "val": val, "test": test}),
                (f"trainval{n}", {"train": both, "test": test}),
            )
        },
    )

    def records(self, root: Path) -> Iterator[Record]:
        folder = _folder(root)
        annotation = read_annotation(folder / "PETA.mat")
        files = _files(root, folder / "images", annotation.images)
        yield from listed(annotation, self.divisions(root, folder, annotation), files)

    def divisions(
        self, root: Path, folder: Path, annotation: Annotation
    ) -> Mapping[str, Sequence[Subset | None]]:
        """Per split the subset of each image; ``folder`` is the release's, in ``root``."""
        return annotation.splits

    def fake(self, root: Path, rng: np.random.Generator) -> None:
        count = 40
        fake_annotation(root / "PETA.mat", rng, count, persons=20)
        for number in range(1, count + 1):
            noise(root / "images" / f"{number:05d}.png", rng)
        for shadow in ("Thumbs.db", "._00001.png"):
            (root / "images" / shadow).write_bytes(b"left by a file browser")
        (root / "README").write_text("a fake tree for tests\n", encoding="utf-8")


def read_annotation(path: Path) -> Annotation:
    """What ``PETA.mat`` says, needing no images. Raises PedbenchError with all that is off."""
    peta = field(path, read_mat(path), "peta")
    if not isinstance(peta, dict):
        raise PedbenchError(f"{path}: 'peta' is no struct; {OBTAIN}")
    data = field(path, peta, "data")
    names = [str(name).strip() for name in field(path, peta, "attribute")]
    partitions = field(path, peta, "partion_attribute", "partition_attribute")
    if np.ndim(data) != 2 or data.shape[1] != AHEAD + len(names):
        raise PedbenchError(
            f"{path}: 'data' is of shape {np.shape(data)}, but {AHEAD} columns (image, identity, "
            f"source, identity in the source) and {len(names)} of labels, as 'attribute' names "
            f"them, make {AHEAD + len(names)}; labels would be shifted: obtain the released file"
        )
    images = [f"{number:05d}.png" for number in range(1, len(data) + 1)]
    chosen = np.array(columns(path, names, ATTRIBUTES))
    labels = decoded(path, data[:, AHEAD + chosen], {0: 0, 1: 1}, images, ATTRIBUTES)
    splits: dict[str, Sequence[Subset | None]] = {}
    problems = [
        *_wrong_rows(data),
        *_wrong_selection(peta, chosen),
        *_read_partitions(path, partitions, len(data), splits),
    ]
    if len(data) == IMAGES and not problems:
        problems += _wrong_sums(images, labels, splits["standard"])
    if problems:
        raise PedbenchError("\n".join(f"{path}: {problem}" for problem in problems))
    return Annotation(images, data[:, 1], labels, splits)


def listed(
    annotation: Annotation, splits: Mapping[str, Sequence[Subset | None]], files: Sequence[str]
) -> Iterator[Record]:
    """A record of each image; ``files`` are the pictures, relative to the root."""
    labels, identities = annotation.labels.tolist(), annotation.identities.tolist()
    for row, image in enumerate(annotation.images):
        subset: dict[str, Subset] = {
            split: s for split, of in splits.items() if (s := of[row]) is not None
        }
        yield Record(image, tuple(labels[row]), subset, identities[row], file=files[row])


def fake_annotation(path: Path, rng: np.random.Generator, count: int, persons: int) -> None:
    """A ``PETA.mat`` of ``count`` images in the nesting of the real one, with fewer colours."""
    colours = ("Black", "Blue", "Red", "White")
    names = [a.name for _, a in sorted(zip(IN_FILE, ATTRIBUTES, strict=True), key=lambda p: p[0])]
    names += [
        f"{part}{colour}" for part in ("upperBody", "lowerBody", "hair") for colour in colours
    ]
    # as in the real file, all images of a person have the same labels
    person = np.sort(
        np.concatenate([np.arange(persons), rng.integers(0, persons, count - persons)])
    )
    labels = rng.integers(0, 2, (persons, len(names)))[person]
    source = 1 + np.arange(count) * len(SOURCES) // count
    ahead = np.stack([np.arange(count) + 1, person + 1, source, person % 7], axis=1)
    subsets = ("train", "val", "test")
    partitions = [
        {s: (rows + 1).astype(np.uint16)[:, None] for s, rows in zip(subsets, parts, strict=True)}
        for parts in (divide(count, rng, 0.5, 0.1) for _ in PARTITIONS)
    ]
    selected = np.arange(AHEAD + 1, AHEAD + 1 + len(ATTRIBUTES), dtype=np.uint8)
    peta = {
        "data": np.concatenate([ahead, labels], axis=1).astype(np.uint16),
        "attribute": cell(names),
        "selected_attribute": selected[None],
        "partion_attribute": cell(partitions),
    }
    write_mat(path, {"peta": peta})


def _folder(root: Path) -> Path:
    """The folder of the release, or why there is none."""
    try:
        return release_folder(root, "PETA.mat", "images")
    except PedbenchError as error:
        raise PedbenchError("\n".join((str(error), *_likely_causes(root)))) from None


def _likely_causes(root: Path) -> Iterator[str]:
    places = (root, *folders(root)) if root.is_dir() else ()
    pickles = [p for place in places for p in sorted(place.glob("*.pkl"))]
    if pickles and not any((place / "PETA.mat").exists() for place in places):
        yield (
            f"{pickles[0]}: made from PETA.mat by other code, and loading a pickle runs what it "
            "says, so it is not read in place of PETA.mat: put the released PETA.mat beside images"
        )
    if any(place.joinpath(name).is_dir() for place in places for name in SOURCES):
        yield _original(root)


def _original(folder: Path) -> str:
    return (
        f"{folder}: this is the original release of CUHK, with images under their old names; "
        f"{OBTAIN}. To number the images yourself: sort the file names of each source by bytes, "
        f"take the sources in the order {', '.join(SOURCES)}, and count through from 00001"
    )


def _files(root: Path, folder: Path, images: Sequence[str]) -> list[str]:
    """The picture of each image, relative to ``root``, also with six digits or another ending."""
    pictures = Pictures(folder, root)
    six = [f"0{image}" for image in images]
    if pictures.names and not _any_of(images, pictures):
        if not _any_of(six, pictures):
            raise PedbenchError(
                f"{folder}: no {images[0]} nor any other image of the annotation, but "
                f"{len(pictures.names)} others, as {min(pictures.names)}\n{_original(folder)}"
            )
        warnings.warn(
            f"{folder}: file names have six digits, those of the release five: they were renamed; "
            "make sure that the numbers are still those of the release",
            Remark,
            stacklevel=2,
        )
        images = six
    files = [pictures.find(image) for image in images]
    pictures.remark()
    return files


def _any_of(images: Sequence[str], pictures: Pictures) -> bool:
    return any(Path(image).stem in pictures.stems for image in images)


def _wrong_rows(data: np.ndarray) -> Iterator[str]:
    off = np.flatnonzero(data[:, 0] != np.arange(1, len(data) + 1))
    if len(off):
        yield (
            f"the first column of 'data' must number the images from 1, but row {off[0] + 1} has "
            f"{data[off[0], 0]}; rows were moved or columns shifted: obtain the released file"
        )


def _wrong_selection(peta: Mapping[str, Any], chosen: np.ndarray) -> Iterator[str]:
    """Whether ``selected_attribute`` means the attributes that were found by name."""
    if "selected_attribute" not in peta:
        return
    selected = sorted(np.atleast_1d(peta["selected_attribute"]).tolist())
    wanted = sorted((chosen + AHEAD + 1).tolist())
    if selected != wanted:
        shifted = selected == [column - AHEAD for column in wanted]
        why = f"shifted by {AHEAD}" if shifted else f"from {selected[0]} to {selected[-1]}"
        yield (
            f"'selected_attribute' is {why}: the evaluated attributes are, by their names, columns "
            f"{wanted[0]} to {wanted[-1]} of 'data', counted from 1 with the {AHEAD} in front of "
            "the labels; the file was changed: obtain the released one"
        )


def _read_partitions(
    path: Path, partitions: Any, count: int, splits: dict[str, Sequence[Subset | None]]
) -> Iterator[str]:
    """Fill ``splits``; tell what is off."""
    if len(partitions) != len(PARTITIONS):
        yield f"{len(partitions)} partitions, but the release has {len(PARTITIONS)}"
    for name, partition in zip(PARTITIONS, partitions, strict=False):
        split = f"standard{name}"
        try:
            parts: dict[Subset, np.ndarray] = {
                "train": positions(path, split, field(path, partition, "train"), count),
                "val": positions(path, split, field(path, partition, "val"), count),
                "test": positions(path, split, field(path, partition, "test"), count),
            }
            of = subset_of_rows(path, split, parts, count)
        except PedbenchError as error:
            yield str(error).removeprefix(f"{path}: ")
            continue
        if None in of:
            yield f"{split}: {of.count(None)} images, first row {of.index(None) + 1}, in no subset"
        splits[split] = of
        splits[f"trainval{name}"] = trainval(of)


def _wrong_sums(
    images: Sequence[str], labels: np.ndarray, standard: Sequence[Subset | None]
) -> Iterator[str]:
    """Sums over the labels of the release, which shifted or exchanged columns do not have."""
    advice = "columns are shifted or exchanged, or labels were changed: obtain the released file"
    wrong = _wrong_positives(labels, standard)
    if wrong:
        more = f" and {len(wrong) - 3} other attributes" if len(wrong) > 3 else ""
        yield f"positive labels: {'; '.join(wrong[:3])}{more}; {advice}"
    names = [a.name for a in ATTRIBUTES]
    first, last = names.index("personalLess30"), names.index("personalLarger60")
    of_ages = labels[:, first : last + 1].sum(1)
    ages = tuple(np.bincount(of_ages, minlength=len(AGES)).tolist())
    blank = [images[row] for row in np.flatnonzero(~labels.any(1)).tolist()]
    if ages != AGES:
        yield f"images of 0, 1, 2 ages: {ages}, {AGES} expected; {advice}"
    if blank != BLANK:
        yield f"{len(blank)} images without any attribute, only {BLANK[0]} expected; {advice}"


def _wrong_positives(labels: np.ndarray, standard: Sequence[Subset | None]) -> list[str]:
    """Of each attribute whose positives in train, val or test are not those of the release."""
    of = np.array(standard)
    found = {subset: labels[of == subset].sum(0, dtype=np.int64) for subset in SUBSETS}
    with resource(POSITIVES).open(encoding="utf-8", newline="") as stream:
        wanted = {row["attribute"]: row for row in csv.DictReader(stream)}
    wrong = []
    for column, name in enumerate(a.name for a in ATTRIBUTES):
        has = [int(found[subset][column]) for subset in SUBSETS]
        should = [int(wanted[name][subset]) for subset in SUBSETS]
        if has != should:
            wrong.append(f"'{name}' has {_three(has)}, {_three(should)} expected")
    return wrong


def _three(numbers: Sequence[int]) -> str:
    pairs = zip(SUBSETS, numbers, strict=True)
    return ", ".join(f"{number:,} in {subset}" for subset, number in pairs)
