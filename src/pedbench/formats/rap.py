"""What the two releases of RAP share: folders, label codes, and an annotation file of one name
that differs in every field, so that the one is often met in the place of the other."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pedbench.contracts import UNKNOWN, Attribute, PedbenchError, Record, Subset
from pedbench.formats.labels import columns, decoded, same_number, subset_of_rows
from pedbench.formats.layout import Pictures, first_of, release_folder
from pedbench.formats.matlab import field, positions, read_mat

ANNOTATIONS = ("RAP_annotation/RAP_annotation.mat", "RAP_annotation.mat")
PICTURES = ("RAP_dataset", "RAP_datasets")
VARIABLE = "RAP_annotation"
CODES = {0: 0, 1: 1, 2: UNKNOWN}  # 2: the annotators could not tell
DRAWS = 5


@dataclass(frozen=True)
class Version:
    """A release: how its file calls things, and what tells it from the other one."""

    title: str
    dataset: str  # the name under which the suite reads it
    images: int
    columns: int
    name: str
    labels: str
    attributes: str
    identities: str
    partitions: tuple[str, ...]  # misspelt in one release; copies have it in either way
    parts: Mapping[Subset, str]
    halves: str  # the division of persons for re-identification
    separator: str  # in the names of pictures


V1 = Version(
    title="RAPv1",
    dataset="rapv1",
    images=41_585,
    columns=92,
    name="imagesname",
    labels="label",
    attributes="attribute_eng",
    identities="identity",
    partitions=("partion", "partition"),
    parts={"train": "train_index", "test": "test_index"},
    halves="reid_partion",
    separator="_",
)
V2 = Version(
    title="RAPv2",
    dataset="rapv2",
    images=84_928,
    columns=152,
    name="name",
    labels="data",
    attributes="attribute",
    identities="person_identity",
    partitions=("partition_attribute", "partion_attribute"),
    parts={"train": "train_index", "val": "val_index", "test": "test_index"},
    halves="partition_reid",
    separator="-",
)
OTHER = {V1.title: V2, V2.title: V1}


@dataclass(frozen=True)
class Annotation:
    """One release's file, for N images. ``labels (N, A)`` are in the order of the attributes that
    were asked for; ``identities (N,)`` are -1 where unknown; each of ``partitions`` gives the
    subset of every image; ``halves`` has the numbers of persons and images in the training and
    the test part for re-identification. ``release`` is the folder of it all."""

    path: Path
    release: Path
    names: list[str]
    labels: np.ndarray
    identities: np.ndarray
    partitions: list[list[Subset | None]]
    halves: tuple[tuple[int, int], ...]


def draws(split: str) -> tuple[str, ...]:
    """The names of a split's five draws: the first, which papers use, has no number."""
    return (split, *(f"{split}_{number}" for number in range(2, DRAWS + 1)))


def read(
    root: Path,
    version: Version,
    attributes: Sequence[Attribute],
    spellings: Mapping[str, Sequence[str]],
) -> Annotation:
    """The annotation of ``version`` below ``root``.

    Raises PedbenchError when it is missing, of the other release, or inconsistent in itself.
    """
    release = release_folder(root, PICTURES, ANNOTATIONS)
    path = first_of(release, *ANNOTATIONS)
    struct = field(path, read_mat(path), VARIABLE)
    _check_release(path, struct, version)
    names = [str(name).strip() for name in field(path, struct, version.name)]
    values = np.atleast_2d(field(path, struct, version.labels))
    heads = [str(name).strip() for name in field(path, struct, version.attributes)]
    identities = np.maximum(np.asarray(field(path, struct, version.identities)), -1)
    same_number(
        path, {"names": len(names), "rows of labels": len(values), "identities": len(identities)}
    )
    same_number(path, {"names of attributes": len(heads), "columns of labels": values.shape[1]})
    used = np.arange(len(heads))
    if "selected_attribute" in struct:  # of RAPv2: what is evaluated; names repeat elsewhere
        used = positions(path, "selected_attribute", struct["selected_attribute"], len(heads))
    places = used[columns(path, [heads[place] for place in used], attributes, spellings)]
    labels = decoded(path, values[:, places], CODES, names, attributes)
    partitions = _partitions(path, field(path, struct, *version.partitions), version, len(names))
    halves = _halves(path, field(path, struct, version.halves), identities)
    return Annotation(path, release, names, labels, identities, partitions, halves)


def records(
    root: Path,
    version: Version,
    annotation: Annotation,
    splits: Mapping[str, Sequence[Subset | None]],
    rows: Sequence[int] | np.ndarray,
) -> Iterator[Record]:
    """The images of ``rows``, sorted by name; ``splits`` gives every row's subset in each split.

    Raises PedbenchError when the pictures are those of the other release.
    """
    folder = first_of(annotation.release, *PICTURES)
    pictures, names = Pictures(folder, root), annotation.names
    _check_pictures(folder, pictures, version, names)
    for row in sorted(rows, key=names.__getitem__):
        name, camera = names[row], re.match(r"CAM(\d+)", names[row])
        subset: dict[str, Subset] = {
            split: found for split, of_row in splits.items() if (found := of_row[row]) is not None
        }
        yield Record(
            name,
            tuple(annotation.labels[row].tolist()),
            subset,
            identity=int(annotation.identities[row]),
            camera=int(camera[1]) if camera else -1,
            file=pictures.find(name),
        )
    pictures.remark()


def _check_release(path: Path, struct: dict[str, Any], version: Version) -> None:
    other = OTHER[version.title]
    if version.labels in struct or other.labels not in struct:
        return
    shape = np.shape(struct[other.labels])
    raise PedbenchError(
        f"{path}: this is the annotation of {other.title}: it has the field '{other.labels}' "
        f"({' x '.join(map(str, shape))}) in place of '{version.labels}' ({version.images:,} x "
        f"{version.columns} in {version.title}). Both files have the same name, and a bundle that "
        f"circulates holds RAPv1's in the folder of RAPv2. Put the file of {version.title} there, "
        f"or, if this is a folder of {other.title}, name it as the root of {other.dataset}"
    )


def _check_pictures(
    folder: Path, pictures: Pictures, version: Version, names: Sequence[str]
) -> None:
    """Raises PedbenchError when there are pictures, but not one of this annotation."""
    if not pictures.names or any(os.path.splitext(name)[0] in pictures.stems for name in names):
        return
    here, other = min(pictures.names), OTHER[version.title]
    cause = "they are of another dataset"
    if f"{other.separator}tarid" in here:
        cause = (
            f"they are those of {other.title}, whose names have '{other.separator}' where "
            f"{version.title} has '{version.separator}'"
        )
    raise PedbenchError(
        f"{folder}: none of the images of the annotation is there ({names[0]}, ...), but other "
        f"pictures are ({here}, ...): {cause}. Put the pictures of {version.title} there"
    )


def _partitions(path: Path, found: Any, version: Version, count: int) -> list[list[Subset | None]]:
    if not isinstance(found, list) or len(found) != DRAWS:
        number = len(found) if isinstance(found, list) else 1
        raise PedbenchError(
            f"{path}: {number} partitions in '{version.partitions[0]}', but the release has "
            f"{DRAWS}; the file was changed: obtain it again"
        )
    partitions = []
    for number, struct in enumerate(found, start=1):
        where = f"partition {number}"
        parts: dict[Subset, np.ndarray] = {
            subset: positions(path, f"{where}: {name}", field(path, struct, name), count)
            for subset, name in version.parts.items()
        }
        partitions.append(subset_of_rows(path, where, parts, count))
    return partitions


def _halves(path: Path, found: Any, identities: np.ndarray) -> tuple[tuple[int, int], ...]:
    persons = [field(path, found, name) for name in ("train_identity", "test_identity")]
    inside = [identities[np.isin(identities, some)] for some in persons]
    return tuple((len(np.unique(some)), len(some)) for some in inside)
