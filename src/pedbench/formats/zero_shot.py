"""Divisions by person: the published ones, from their pickle, and others drawn from identities."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pedbench.contracts import SUBSETS, PedbenchError, Remark, Subset
from pedbench.formats.layout import folders
from pedbench.formats.pickles import read_pickle

PICKLE = "dataset_zs_run0.pkl"  # of five draws the papers use this one
ORIGIN = "the repository 'Rethinking_of_PAR' (github.com/valencebond), where the split was made"
SHARES = (0.6, 0.8)  # of the persons: where train ends and where val ends


def find_pickle(root: Path, folder: Path) -> Path | None:
    """The pickle of the published division in ``root``, the release's ``folder``, or one folder
    down; None, with a Remark that says where to get it, if it is in none of these."""
    places = list(dict.fromkeys([folder, root, *folders(folder), *folders(root)]))
    for place in places:
        if (place / PICKLE).is_file():
            return place / PICKLE
    others = sorted({p.name for place in places[:2] for p in place.glob("*.pkl")})
    instead = ""
    if others:
        instead = (
            f" ({', '.join(others)} will not do: those named dataset.pkl hold the random splits, "
            "peta_new.pkl and rapv2_new.pkl another division of 2020, run1 to run4 other draws)"
        )
    warnings.warn(
        f"{folder}: {PICKLE} is not there{instead}, so the published splits zero_shot and "
        f"zero_shot_trainval are empty; obtain it from {ORIGIN} and put it into this folder, or "
        "use zero_shot_rebuilt, whose results compare with no published ones",
        Remark,
        stacklevel=2,
    )
    return None


def published(
    path: Path, names: Sequence[str], counts: Mapping[str, int]
) -> dict[Subset, np.ndarray]:
    """The 0-based rows of ``names`` (file names of the annotation) in each subset of a pickle.

    Only image names and the three index arrays are taken; labels, and the folder on somebody's
    computer that the file names too, are not looked at. A Remark tells when an annotation of full
    size is divided otherwise than into ``counts``. Raises PedbenchError when the file is another
    kind of pickle, or its indices or names are not those of this dataset.
    """
    found = read_pickle(path)
    if not isinstance(found, Mapping) or not {"image_name", "partition"} <= found.keys():
        raise PedbenchError(
            f"{path}: no 'image_name' and 'partition' in it; this is not the pickle of a zero-shot "
            f"split: obtain {PICKLE} from {ORIGIN}"
        )
    row_of = {name: row for row, name in enumerate(names)}
    listed = _array(path, "image_name", found["image_name"], "U").tolist()
    rows = np.array([row_of.get(name.rpartition("/")[2], -1) for name in listed], np.int64)
    parts: dict[Subset, np.ndarray] = {}
    for subset in SUBSETS:
        indices = _indices(path, found["partition"], subset, len(listed))
        strange = indices[rows[indices] < 0]
        if len(strange):
            raise PedbenchError(
                f"{path}: {len(strange)} images of '{subset}' are not in the annotation (first: "
                f"{listed[strange[0]]}); the file belongs to another dataset"
            )
        parts[subset] = rows[indices]
    sizes = {subset: len(part) for subset, part in parts.items()}
    if len(names) >= sum(counts.values()) and sizes != counts:
        warnings.warn(
            f"{path}: divides into {_told(sizes)}, the published division into {_told(counts)}: "
            "this is another one, as the version of 2020 (peta_new.pkl, rapv2_new.pkl) or another "
            f"run of the draw; obtain {PICKLE} from {ORIGIN}",
            Remark,
            stacklevel=2,
        )
    return parts


def rebuilt(salt: str, identities: Iterable[int]) -> dict[int, Subset]:
    """A division of persons in about 3 : 1 : 1, the same on every computer and for every order of
    ``identities``: persons are ranked by a hash. Unknown ones (-1) are left out.

    Warns with a Remark that it is not the published division.
    """
    warnings.warn(
        "zero_shot_rebuilt is drawn by this suite from the identities in the annotation; it is not "
        "the published zero-shot split, and no number on it compares with a published one",
        Remark,
        stacklevel=2,
    )
    persons = sorted(
        {int(i) for i in identities if i >= 0},
        key=lambda person: hashlib.sha256(f"{salt} {person}".encode()).digest(),
    )
    ends = [round(len(persons) * share) for share in SHARES]
    return {
        person: SUBSETS[sum(rank >= end for end in ends)] for rank, person in enumerate(persons)
    }


def _indices(path: Path, partition: Any, subset: str, count: int) -> np.ndarray:
    """The index array of ``subset``: 0-based, and plain, not one of several draws."""
    keys = (subset, f"{subset}_idx")
    there = list(partition) if isinstance(partition, Mapping) else []
    key = next((key for key in keys if key in there), None)
    if key is None:
        raise PedbenchError(
            f"{path}: partition has neither {' nor '.join(keys)} (it has: {', '.join(there)}); "
            f"obtain {PICKLE} from {ORIGIN}"
        )
    draws = partition[key]
    if isinstance(draws, list | tuple) and draws and not isinstance(draws[0], int | np.integer):
        raise PedbenchError(
            f"{path}: partition '{key}' holds {len(draws)} divisions: this is the pickle of the "
            f"ordinary, random splits; obtain {PICKLE} from {ORIGIN}"
        )
    indices = _array(path, f"partition '{key}'", draws, "iu").astype(np.int64)
    if len(indices) and not 0 <= indices.min() <= indices.max() < count:
        raise PedbenchError(
            f"{path}: partition '{key}': indices from {indices.min()} to {indices.max()}, but the "
            f"released ones count {count} images from 0; the file was changed: obtain it again"
        )
    return indices


def _array(path: Path, what: str, value: Any, kinds: str) -> np.ndarray:
    """A vector of one of numpy's ``kinds`` of entries."""
    try:
        found = np.asarray(value)
    except Exception as error:  # what a pickle calls an array may be none
        raise PedbenchError(f"{path}: {what} is no array ({error}); obtain it again") from error
    if found.ndim != 1 or found.dtype.kind not in kinds:
        raise PedbenchError(
            f"{path}: {what} is no list of {'names' if kinds == 'U' else 'whole numbers'}; the "
            "file was changed: obtain it again"
        )
    return found


def _told(sizes: Mapping[Any, int]) -> str:
    """``train 3, val 1, test 1``."""
    return ", ".join(f"{subset} {size:,}" for subset, size in sizes.items())
