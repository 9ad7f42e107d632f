"""WIDER Attribute: persons in scenes; an image is the box of one of them, cut out of its picture.

Nothing here could be compared with the released files, only with code that reads them, and the
numbers of boxes with an independent list of labels.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
from PIL import Image

from pedbench.contracts import (
    SUBSETS,
    UNKNOWN,
    Attribute,
    BaseDataset,
    DatasetSpec,
    PedbenchError,
    Record,
    Remark,
    Subset,
)
from pedbench.formats.fakes import noise
from pedbench.formats.labels import columns, decoded
from pedbench.formats.layout import clipped, first_of, release_folder

PICTURES = "Image"
ANNOTATIONS = ("Anno", "Annotations", "wider_attribute_annotation")
FILES = ("wider_attribute_trainval.json", "wider_attribute_test.json")
CODES = {1: 1, -1: 0, 0: UNKNOWN}  # 0: the annotators did not specify it
SPELLINGS = {"Tshiirt": ("Tshirt",)}
# boxes of train and val together, and of test
RELEASED, USED, CROPPED = (28_345, 29_179), (28_340, 29_177), (28_330, 29_161)
# share of positives in train, unspecified ones counted as negative; of an independent label list
RATIOS = (
    *(0.5631, 0.2242, 0.0514, 0.2280, 0.2175, 0.4679, 0.0736),
    *(0.1474, 0.0845, 0.3639, 0.1019, 0.0340, 0.2662, 0.0526),
)
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Target:
    """One person: the name of the picture, the place among its persons, and the box."""

    picture: str
    number: int
    codes: tuple[float, ...]
    box: Box

    @property
    def image(self) -> str:
        return f"{self.picture}#{self.number}"


class Dataset(BaseDataset):
    SPEC = DatasetSpec(
        title="WIDER Attribute",
        licence="non-commercial research; from the CUHK multimedia laboratory",
        attributes=(
            Attribute("Male", "whole", "who is a man", "who is a woman"),
            Attribute("longHair", "head", "with long hair", "with short hair"),
            Attribute("sunglass", "head", "wearing sunglasses", "without sunglasses"),
            Attribute("Hat", "head", "wearing a hat", "without a hat"),
            Attribute("Tshiirt", "upper", "wearing a T-shirt", "without a T-shirt"),
            Attribute("longSleeve", "upper", "with long sleeves", "with short sleeves"),
            Attribute("formal", "whole", "in formal clothes", "in casual clothes"),
            Attribute("shorts", "lower", "wearing shorts", "without shorts"),
            Attribute("jeans", "lower", "wearing jeans", "without jeans"),
            Attribute("longPants", "lower", "wearing long trousers", "without long trousers"),
            Attribute("skirt", "lower", "wearing a skirt", "without a skirt"),
            Attribute("faceMask", "head", "wearing a face mask", "with an uncovered face"),
            Attribute("logo", "upper", "with a logo on the clothes", "in clothes without a logo"),
            Attribute("stripe", "upper", "in striped clothes", "in clothes without stripes"),
        ),
        splits=("standard", "trainval"),
        counts={  # without the seven boxes of no area
            "standard": {"train": 22_958, "val": 5_382, "test": 29_177},
            "trainval": {"train": 28_340, "test": 29_177},
        },
        citation="""
@inproceedings{li2016human,
  author = {Li, Yining and Huang, Chen and Loy, Chen Change and Tang, Xiaoou},
  title = {Human Attribute Recognition by Deep Hierarchical Contexts},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year = {2016}
}
""",
    )

    def records(self, root: Path) -> Iterator[Record]:
        folder = _folder(root)
        files = [first_of(folder, *ANNOTATIONS) / name for name in FILES]
        read, problems = [], []
        for file in files:
            try:
                read.append(_read(file, self.SPEC.attributes))
            except PedbenchError as error:
                problems.append(str(error))
        if problems:
            raise PedbenchError("\n".join(problems))
        targets = [target for found, _ in read for target in found]
        labels = np.concatenate([labels for _, labels in read])
        kept = _kept(folder, targets)
        _remark_on_numbers(targets, labels, kept)
        pictures = (folder / PICTURES).relative_to(root).as_posix()
        yield from sorted(
            (_record(targets[i], labels[i], pictures) for i in kept), key=lambda r: r.image
        )

    def fake(self, root: Path, rng: np.random.Generator) -> None:
        scenes, count = {"0": "Parade", "1": "Handshaking"}, 0
        of: dict[str, list[dict[str, Any]]] = {"trainval": [], "test": []}
        for subset, pictures in (("train", 6), ("val", 3), ("test", 6)):
            for number in range(pictures):
                scene, name = divmod(number, 3)[0], f"{number}_{subset}.jpg"
                file = f"{subset}/{scene}--{scenes[str(scene)]}/{name}"
                noise(root / PICTURES / file, rng, 80, 120)
                targets = [
                    {
                        "attribute": rng.choice([-1, 1], len(self.SPEC.attributes)).tolist(),
                        "bbox": [5.5 + 40 * place, 8.25, 30, 60.5],
                    }
                    for place in range(2)
                ]
                targets[0]["attribute"][count % len(self.SPEC.attributes)] = 0
                entry = {"file_name": file, "scene_id": scene, "targets": targets}
                of["trainval" if subset != "test" else "test"].append(entry)
                count += 1
        of["trainval"][0]["targets"][1]["bbox"] = [100, 40, 60, 90]  # leaves its picture
        degenerate = {"attribute": [-1] * len(self.SPEC.attributes), "bbox": [3, 4, 0, 20]}
        of["test"][1]["targets"].insert(0, degenerate)
        names = {str(i): a.name for i, a in enumerate(self.SPEC.attributes)}
        for part, images in of.items():
            file = root / ANNOTATIONS[0] / f"wider_attribute_{part}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            found = {"images": images, "attribute_id_map": names, "scene_id_map": scenes}
            file.write_text(json.dumps(found))


def _folder(root: Path) -> Path:
    try:
        return release_folder(root, PICTURES, ANNOTATIONS)
    except PedbenchError as error:
        for pattern in ("split_image", "*/trainval_gt_label.txt"):
            if found := [*root.glob(pattern), *root.glob(f"*/{pattern}")]:
                raise PedbenchError(
                    f"{found[0]}: these are boxes cut out beforehand, as they circulate with "
                    f"PromptPAR's code ({CROPPED[0]:,} and {CROPPED[1]:,} of them), not the "
                    "release. Obtain WIDER Attribute itself: the pictures of whole scenes in "
                    f"{PICTURES}/ and the JSON files in {ANNOTATIONS[0]}/; boxes are cut here"
                ) from error
        for name in ("WIDER_train", "wider_face_split"):
            if found := [*root.glob(name), *root.glob(f"*/{name}")]:
                raise PedbenchError(f"{found[0]}: {_FACE}") from error
        raise


_FACE = (
    "this is WIDER FACE, which has other pictures and another division. Obtain WIDER Attribute: "
    f"{PICTURES}/train/0--Parade/... and the JSON files in {ANNOTATIONS[0]}/"
)


def _read(path: Path, attributes: Sequence[Attribute]) -> tuple[list[Target], np.ndarray]:
    """The targets of one JSON file and their labels ``(N, A)``."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        targets = [
            Target(str(image["file_name"]), n, tuple(t["attribute"]), _box(t["bbox"]))
            for image in found["images"]
            for n, t in enumerate(image["targets"])
        ]
        names = found["attribute_id_map"]
        names = [str(names[str(i)]) for i in range(len(names))]
    except FileNotFoundError:
        raise PedbenchError(
            f"{path}: no such file; the release has {' and '.join(FILES)}"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise PedbenchError(
            f"{path}: not the annotation of WIDER Attribute, or truncated ({error!r}); obtain it "
            "again"
        ) from error
    for target in targets:
        if len(target.codes) != len(names):
            raise PedbenchError(
                f"{path}: {target.image} has {len(target.codes)} labels, but there are "
                f"{len(names)} attributes; the file was changed: obtain it again"
            )
        if (PurePosixPath(target.picture).parts or ("",))[0] not in SUBSETS:
            raise PedbenchError(
                f"{path}: '{target.picture}' does not start with {', '.join(SUBSETS)}: the file "
                "was changed, and its subsets cannot be told: obtain it again"
            )
    values = np.array([t.codes for t in targets], float).reshape(len(targets), len(names))
    values = values[:, columns(path, names, attributes, SPELLINGS)]
    return targets, decoded(path, values, CODES, [t.image for t in targets], attributes)


def _box(values: Sequence[float]) -> Box:
    x, y, width, height = (float(value) for value in values)
    if not np.isfinite([x, y, width, height]).all():
        raise ValueError(f"bbox {values}")
    return x, y, width, height


def _kept(folder: Path, targets: Sequence[Target]) -> list[int]:
    """Positions of the targets of whose box there is anything in the picture. Those whose picture
    cannot be opened stay; what is wrong with a picture is told elsewhere."""
    pictures = sorted({target.picture for target in targets})
    with ThreadPoolExecutor() as pool:
        sizes = pool.map(_size, (folder / PICTURES / picture for picture in pictures))
        size = dict(zip(pictures, sizes, strict=True))
    _check_scenes(folder / PICTURES, size)
    kept = [
        i
        for i, target in enumerate(targets)
        if clipped(target.box, *(size[target.picture] or (10**6, 10**6)))
    ]
    dropped = sorted(set(range(len(targets))) - set(kept))
    if dropped:
        some = ", ".join(targets[i].image for i in dropped[:7])
        warnings.warn(
            f"boxes left out, since nothing of them is in their picture: {len(dropped)} ({some})",
            Remark,
            stacklevel=3,
        )
    return kept


def _size(path: Path) -> tuple[int, int] | None:
    """Width and height, from the header."""
    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, SyntaxError, ValueError):
        return None


def _check_scenes(pictures: Path, size: dict[str, Any]) -> None:
    """WIDER FACE has some of the scenes too, in folders of the same names."""
    scenes = {PurePosixPath(picture).parent.name for picture in size}
    there = {p.name for subset in SUBSETS for p in pictures.glob(f"{subset}/*--*")}
    absent = [picture for picture in size if not (pictures / picture).is_file()]
    if there - scenes and len(absent) > len(size) / 2:
        raise PedbenchError(
            f"{pictures}: {len(absent)} of {len(size)} pictures of the annotation are missing, and "
            f"there are scenes that it does not have ({min(there - scenes)}): {_FACE}"
        )


def _remark_on_numbers(targets: Sequence[Target], labels: np.ndarray, kept: list[int]) -> None:
    subsets = np.array([PurePosixPath(t.picture).parts[0] for t in targets])[kept]
    of = Counter(subsets.tolist())
    found = (of["train"] + of["val"], of["test"])
    if found != USED:
        told = [f"{trainval:,} + {test:,}" for trainval, test in (found, RELEASED, USED, CROPPED)]
        warnings.warn(
            f"{told[0]} boxes (train and val + test). Three numbers circulate: {told[1]} of the "
            f"release, {told[2]} without boxes of no area, which are used here, and {told[3]} of "
            "the crops that go with PromptPAR's code",
            Remark,
            stacklevel=3,
        )
        return
    ratios = (labels[kept][subsets == "train"] == 1).mean(0)
    off = np.abs(ratios - RATIOS)
    if off.max() > 0.01:
        warnings.warn(
            f"attribute {off.argmax()} is positive in {ratios[off.argmax()]:.4f} of the boxes of "
            f"train, in the release in {RATIOS[off.argmax()]:.4f}; the labels were changed",
            Remark,
            stacklevel=3,
        )


def _record(target: Target, labels: np.ndarray, pictures: str) -> Record:
    subset = cast(Subset, PurePosixPath(target.picture).parts[0])
    merged: Subset = "test" if subset == "test" else "train"
    return Record(
        image=target.image,
        labels=tuple(labels.tolist()),
        subset={"standard": subset, "trainval": merged},
        file=f"{pictures}/{target.picture}",
        box=target.box,
    )
