"""LFWA: faces of Labeled Faces in the Wild with the 40 attributes of CelebA.

No released file was at hand: nesting and spelling are those that public code reads, the numbers of
images are the literature's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from pedbench.contracts import (
    Attribute,
    BaseDataset,
    DatasetSpec,
    PedbenchError,
    Record,
    Remark,
    Subset,
)
from pedbench.formats.fakes import divide, noise, write_hdf5
from pedbench.formats.labels import columns, decoded, subset_of_rows
from pedbench.formats.layout import release_folder
from pedbench.formats.matlab import field, positions, read_either

LABELS, INDICES = "lfw_att_40.mat", "indices_train_test.mat"
PICTURES = ("lfw/lfw", "lfw", "lfw-deepfunneled/lfw-deepfunneled", "lfw-deepfunneled") + (
    *("lfw-funneled/lfw-funneled", "lfw-funneled", "lfw_funneled"),
)
OTHERS = {  # what is often there in place of LABELS -> what it is
    "lfw_att_73.mat": "the 73 attributes of LFWA+, in another order",
    "lfw_attributes.txt": "73 real-valued scores of LFW itself, which are no labels",
}


class Dataset(BaseDataset):
    SPEC = DatasetSpec(
        title="LFWA",
        licence=(
            "non-commercial research; labels from the CUHK multimedia laboratory, pictures from "
            "Labeled Faces in the Wild"
        ),
        attributes=(
            Attribute(
                "5_o_Clock_Shadow", "head", "with a five o'clock shadow", "with a smooth chin"
            ),
            Attribute("Arched_Eyebrows", "head", "with arched eyebrows", "with straight eyebrows"),
            Attribute("Attractive", "whole", "with an attractive face", "with a plain face"),
            Attribute(
                "Bags_Under_Eyes", "head", "with bags under the eyes", "without bags under the eyes"
            ),
            Attribute("Bald", "head", "with a bald head", "with hair on the head"),
            Attribute("Bangs", "head", "with hair in bangs", "with a bare forehead"),
            Attribute("Big_Lips", "head", "with big lips", "with thin lips"),
            Attribute("Big_Nose", "head", "with a big nose", "with a small nose"),
            Attribute("Black_Hair", "head", "with black hair", "without black hair"),
            Attribute("Blond_Hair", "head", "with blond hair", "without blond hair"),
            Attribute("Blurry", "whole", "in a blurred picture", "in a sharp picture"),
            Attribute("Brown_Hair", "head", "with brown hair", "without brown hair"),
            Attribute("Bushy_Eyebrows", "head", "with bushy eyebrows", "with thin eyebrows"),
            Attribute("Chubby", "whole", "with a chubby face", "with a lean face"),
            Attribute("Double_Chin", "head", "with a double chin", "without a double chin"),
            Attribute("Eyeglasses", "head", "wearing eyeglasses", "without eyeglasses"),
            Attribute("Goatee", "head", "with a goatee", "without a goatee"),
            Attribute("Gray_Hair", "head", "with grey hair", "without grey hair"),
            Attribute("Heavy_Makeup", "whole", "with heavy make-up", "with little or no make-up"),
            Attribute("High_Cheekbones", "head", "with high cheekbones", "with low cheekbones"),
            Attribute("Male", "whole", "who is a man", "who is a woman"),
            Attribute(
                "Mouth_Slightly_Open", "head", "with a slightly open mouth", "with a closed mouth"
            ),
            Attribute("Mustache", "head", "with a moustache", "without a moustache"),
            Attribute("Narrow_Eyes", "head", "with narrow eyes", "with wide eyes"),
            Attribute("No_Beard", "head", "without a beard", "with a beard"),
            Attribute("Oval_Face", "whole", "with an oval face", "with a round or square face"),
            Attribute("Pale_Skin", "whole", "with pale skin", "without pale skin"),
            Attribute("Pointy_Nose", "head", "with a pointed nose", "with a blunt nose"),
            Attribute(
                "Receding_Hairline", "head", "with a receding hairline", "with a full hairline"
            ),
            Attribute("Rosy_Cheeks", "head", "with rosy cheeks", "without rosy cheeks"),
            Attribute("Sideburns", "head", "with sideburns", "without sideburns"),
            Attribute("Smiling", "head", "who is smiling", "with a serious face"),
            Attribute("Straight_Hair", "head", "with straight hair", "without straight hair"),
            Attribute("Wavy_Hair", "head", "with wavy hair", "without wavy hair"),
            Attribute("Wearing_Earrings", "head", "wearing earrings", "without earrings"),
            Attribute("Wearing_Hat", "head", "wearing a hat", "without a hat"),
            Attribute("Wearing_Lipstick", "head", "wearing lipstick", "without lipstick"),
            Attribute("Wearing_Necklace", "upper", "wearing a necklace", "without a necklace"),
            Attribute("Wearing_Necktie", "upper", "wearing a necktie", "without a necktie"),
            Attribute("Young", "whole", "with a young face", "with an old face"),
        ),
        splits=("trainval",),
        counts={"trainval": {"train": 6_263, "test": 6_880}},  # the literature's
        without={
            "standard": "the release divides its images into train and test only; use 'trainval'"
        },
        citation="""
@inproceedings{liu2015deep,
  author = {Liu, Ziwei and Luo, Ping and Wang, Xiaogang and Tang, Xiaoou},
  title = {Deep Learning Face Attributes in the Wild},
  booktitle = {IEEE International Conference on Computer Vision (ICCV)},
  year = {2015}
}
""",
    )

    def records(self, root: Path) -> Iterator[Record]:
        folder = _folder(root)
        path, attributes = folder / LABELS, self.SPEC.attributes
        table = read_either(path)
        names = [str(n).replace("\\", "/") for n in field(path, table, "name")]
        told = [str(name) for name in field(path, table, "AttrName")]
        if len(told) == 73:
            raise PedbenchError(f"{path}: {OTHERS['lfw_att_73.mat']}; obtain the one of 40")
        values = np.asarray(field(path, table, "label"), float)
        if values.shape != (len(names), len(told)):
            raise PedbenchError(
                f"{path}: 'label' is {values.shape}, but there are {len(names)} images and "
                f"{len(told)} attributes; the file was changed: obtain it again"
            )
        values = values[:, columns(path, told, attributes)]
        labels = decoded(path, values, {1: 1, 0: 0}, names, attributes).tolist()
        subsets = _subsets(folder / INDICES, names)
        pictures = _pictures(folder, names).relative_to(root)
        persons = {person: i for i, person in enumerate(sorted({_person(n) for n in names}))}
        for i in sorted(range(len(names)), key=names.__getitem__):
            subset = subsets[i]
            yield Record(
                image=names[i],
                labels=tuple(labels[i]),
                subset={} if subset is None else {"trainval": subset},
                identity=persons[_person(names[i])],
                file=(pictures / names[i]).as_posix(),
            )

    def fake(self, root: Path, rng: np.random.Generator) -> None:
        persons = [f"Person_{letter}" for letter in "ABCDEFGHIJKLMNO"]
        names = [f"{person}/{person}_{n:04d}.jpg" for person in persons for n in (1, 2)]
        names = [names[i] for i in rng.permutation(len(names))]
        for name in names:
            noise(root / "lfw" / name, rng, 50, 50)
        labels = rng.integers(0, 2, (len(names), len(self.SPEC.attributes))).astype(float)
        table = {
            "AttrName": [a.name for a in self.SPEC.attributes],
            "label": labels,
            "name": [name.replace("/", "\\") for name in names],
        }
        write_hdf5(root / LABELS, table)
        train, test = (1.0 + part[:, None] for part in divide(len(names), rng, 0.5))
        write_hdf5(root / INDICES, {"indices_img_train": train, "indices_img_test": test})


def _folder(root: Path) -> Path:
    try:
        return release_folder(root, LABELS, INDICES)
    except PedbenchError as error:
        told = [
            f"{path} is {what}; the labels are in {LABELS}"
            for name, what in OTHERS.items()
            for path in (root / name, *root.glob(f"*/{name}"))
            if path.is_file()
        ]
        copies = [p for end in ("csv", "pth", "pickle", "pkl") for p in root.glob(f"*.{end}")]
        told += [f"{path} is no file of the release and is not opened" for path in copies]
        raise PedbenchError("\n".join((str(error), *told))) from error


def _subsets(path: Path, names: list[str]) -> list[Subset | None]:
    table = read_either(path)
    train, test = (
        positions(path, key, field(path, table, key), len(names))
        for key in ("indices_img_train", "indices_img_test")
    )
    return subset_of_rows(path, "trainval", {"train": train, "test": test}, len(names))


def _pictures(folder: Path, names: list[str]) -> Path:
    """The folder of the pictures; LFW comes as photographed and in two aligned forms."""
    there = [folder / name for name in PICTURES if (folder / name).is_dir()]
    if not there:
        raise PedbenchError(
            f"{folder}: no pictures in it, none of {', '.join(PICTURES)}: unpack those of Labeled "
            "Faces in the Wild (lfw.tgz) there"
        )
    persons = {_person(name) for name in names}
    found = next((p for p in there if any((p / one).is_dir() for one in persons)), there[0])
    if found.name != "lfw":
        warnings.warn(
            f"pictures are those of {found.name}, which were aligned; scores may differ from those "
            "on the original ones in lfw",
            Remark,
            stacklevel=3,
        )
    return found


def _person(name: str) -> str:
    return PurePosixPath(name).parent.name
