"""PA100K: 100,000 pedestrians of outdoor surveillance cameras; 26 attributes.

Layout::

    PA100K/
      data/000001.jpg ... 100000.jpg   also in release_data/ or release_data/release_data/
      annotation.mat                   also in annotation/

``standard`` is the annotation's train / val / test (80,000 / 10,000 / 10,000), ``trainval`` has its
train and val as train. Persons are said not to cross subsets; identities were not published, so
nobody can check. Names and shapes of the annotation and the groups of `ONE_HOT` are those of the
real file; places of pictures are those that public code knows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

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
from pedbench.formats import fakes
from pedbench.formats.labels import columns, decoded, same_number
from pedbench.formats.layout import Pictures, first_of, is_picture, release_folder
from pedbench.formats.matlab import field, read_mat

BIBTEX = """
@inproceedings{liu2017hydraplus,
  author = {Xihui Liu and Haiyu Zhao and Maoqing Tian and Lu Sheng and Jing Shao and
               Shuai Yi and Junjie Yan and Xiaogang Wang},
  title = {{HydraPlus-Net}: Attentive Deep Features for Pedestrian Analysis},
  booktitle = {IEEE International Conference on Computer Vision (ICCV)},
  year = {2017}
}
"""

PICTURES = ("data", "release_data/release_data", "release_data", "data/data", "data/release_data")
ANNOTATIONS = ("annotation.mat", "annotation/annotation.mat")
IMAGES = 100_000
CODES = {0: 0, 1: 1}
ONE_HOT = {  # of the real file: every image has exactly one of each group
    "age": ("AgeOver60", "Age18-60", "AgeLess18"),
    "view": ("Front", "Side", "Back"),
    "sleeve": ("ShortSleeve", "LongSleeve"),
}


class Dataset(BaseDataset):
    SPEC = DatasetSpec(
        title="PA100K",
        licence="CC BY 4.0, by the authors of HydraPlus-Net",
        attributes=(
            Attribute("Female", "whole", "who is a woman", "who is a man"),
            Attribute("AgeOver60", "whole", "who is over sixty", "who is sixty or younger"),
            Attribute(
                "Age18-60",
                "whole",
                "who is between eighteen and sixty",
                "who is a minor or over sixty",
            ),
            Attribute("AgeLess18", "whole", "who is under eighteen", "who is of full age"),
            Attribute("Front", "whole", "facing the camera", "not facing the camera"),
            Attribute("Side", "whole", "seen in profile", "not seen in profile"),
            Attribute("Back", "whole", "seen from the back", "not seen from the back"),
            Attribute("Hat", "head", "with a hat on", "without a hat"),
            Attribute("Glasses", "head", "with glasses", "without glasses"),
            Attribute("HandBag", "whole", "with a handbag", "without a handbag"),
            Attribute("ShoulderBag", "upper", "with a shoulder bag", "without a shoulder bag"),
            Attribute("Backpack", "upper", "with a backpack", "without a backpack"),
            Attribute(
                "HoldObjectsInFront",
                "upper",
                "holding something before the chest",
                "holding nothing before the chest",
            ),
            Attribute("ShortSleeve", "upper", "in short sleeves", "not in short sleeves"),
            Attribute("LongSleeve", "upper", "in long sleeves", "not in long sleeves"),
            Attribute("UpperStride", "upper", "in a striped top", "in a top without stripes"),
            Attribute("UpperLogo", "upper", "in a top with a logo", "in a top without a logo"),
            Attribute("UpperPlaid", "upper", "in a checked top", "in a top without checks"),
            Attribute(
                "UpperSplice", "upper", "in a top of several colours", "in a top of one colour"
            ),
            Attribute(
                "LowerStripe",
                "lower",
                "with stripes on the trousers or skirt",
                "without stripes on the trousers or skirt",
            ),
            Attribute(
                "LowerPattern",
                "lower",
                "with a pattern on the trousers or skirt",
                "with plain trousers or a plain skirt",
            ),
            Attribute("LongCoat", "upper", "in a long coat", "without a long coat"),
            Attribute("Trousers", "lower", "in long trousers", "without long trousers"),
            Attribute("Shorts", "lower", "in shorts", "without shorts"),
            Attribute("Skirt&Dress", "lower", "in a skirt or a dress", "without skirt or dress"),
            Attribute("boots", "feet", "in boots", "without boots"),
        ),
        splits=("standard", "trainval"),
        counts={
            "standard": {"train": 80_000, "val": 10_000, "test": 10_000},
            "trainval": {"train": 90_000, "test": 10_000},
        },
    )
    TRAINVAL: ClassVar[dict[Subset, Subset]] = {"train": "train", "val": "train", "test": "test"}

    def records(self, root: Path) -> Iterator[Record]:
        release = release_folder(root, PICTURES, ANNOTATIONS)
        path = first_of(release, *ANNOTATIONS)
        names, subsets, labels = self._annotation(path)
        pictures = Pictures(_pictures(release), root)
        for row in np.argsort(names):
            image, subset = names[row], subsets[row]
            yield Record(
                image,
                tuple(labels[row].tolist()),
                {"standard": subset, "trainval": self.TRAINVAL[subset]},
                file=pictures.find(image),
            )
        pictures.remark()

    def _annotation(self, path: Path) -> tuple[list[str], list[Subset], np.ndarray]:
        """Names, subsets and labels ``(N, 26)`` of all images, in the order of the file."""
        mat, attributes = read_mat(path), self.SPEC.attributes
        named = field(path, mat, "attributes")
        places = columns(path, named, attributes)
        names: list[str] = []
        subsets: list[Subset] = []
        tables = []
        for subset in SUBSETS:
            here = field(path, mat, f"{subset}_images_name")
            table = np.atleast_2d(field(path, mat, f"{subset}_label"))
            same_number(path, {f"{subset} names": len(here), f"{subset} labels": len(table)})
            same_number(path, {"attributes": len(named), f"{subset} columns": table.shape[1]})
            names += here
            subsets.extend(subset for _ in here)
            tables.append(decoded(path, table[:, places], CODES, here, attributes))
        labels = np.concatenate(tables)
        _check_names(path, names)
        if len(names) == IMAGES:
            self._check_groups(path, labels)
        return names, subsets, labels

    def _check_groups(self, path: Path, labels: np.ndarray) -> None:
        column = {a.name: i for i, a in enumerate(self.SPEC.attributes)}
        problems = []
        for group, members in ONE_HOT.items():
            wrong = int((labels[:, [column[name] for name in members]].sum(1) != 1).sum())
            if wrong:
                problems.append(
                    f"{path}: {wrong} images have not exactly one {group} ({', '.join(members)}), "
                    "but in the release all have; labels or names of columns were changed: obtain "
                    "the file again"
                )
        if problems:
            raise PedbenchError("\n".join(problems))

    def fake(self, root: Path, rng: np.random.Generator) -> None:
        counts: dict[Subset, int] = {"train": 20, "val": 8, "test": 8}
        variables = {"attributes": fakes.cell([a.name for a in self.SPEC.attributes])}
        number = 0
        for subset, count in counts.items():
            names = [f"{number + i + 1:06d}.jpg" for i in range(count)]
            labels = rng.integers(0, 2, (count, len(self.SPEC.attributes)), dtype=np.uint8)
            variables[f"{subset}_images_name"] = fakes.cell(names)
            variables[f"{subset}_label"] = labels
            for name in names:
                fakes.noise(root / "data" / name, rng)
            number += count
        (root / "data" / "Thumbs.db").write_bytes(b"not a picture")
        fakes.write_mat(root / "annotation.mat", variables)


def _pictures(release: Path) -> Path:
    """The first known place with a picture in it; the folder around another one has none."""
    folders = [release / name for name in PICTURES if (release / name).is_dir()]
    for folder in folders:
        if any(is_picture(file) for file in folder.iterdir()):
            return folder
    tried = ", ".join(str(folder) for folder in folders)
    raise PedbenchError(f"{release}: no picture found in {tried}; the download is incomplete")


def _check_names(path: Path, names: list[str]) -> None:
    for number, name in enumerate(names, start=1):
        if name != f"{number:06d}.jpg":
            warnings.warn(
                f"{path}: image {number} is called {name}, not {number:06d}.jpg as in the release: "
                "the annotation was changed",
                Remark,
                stacklevel=2,
            )
            return
