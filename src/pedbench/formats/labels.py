"""Tables of labels: columns found by name, codes as 1, 0 and unknown, rows divided into subsets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pedbench.contracts import Attribute, PedbenchError, Subset


def same_number(path: Path, counts: Mapping[str, int]) -> None:
    """Raises PedbenchError with all ``counts`` (what is counted -> its number) unless equal."""
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{number} {what}" for what, number in counts.items())
        raise PedbenchError(
            f"{path}: {told}: these numbers must be equal; the file was changed or put together "
            "from two releases: obtain it again"
        )


def columns(
    path: Path,
    names: Sequence[str],
    attributes: Sequence[Attribute],
    spellings: Mapping[str, Sequence[str]] | None = None,
) -> list[int]:
    """The position in ``names`` of each attribute. Case, blanks and signs do not matter;
    ``spellings`` holds further names of an attribute.

    Raises PedbenchError that lists the attributes that are not there, or are there twice.
    """
    places: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        places.setdefault(_folded(name), []).append(position)
    found, problems = [], []
    for attribute in attributes:
        known = (attribute.name, *(spellings or {}).get(attribute.name, ()))
        here = sorted({place for name in known for place in places.get(_folded(name), ())})
        if len(here) != 1:
            count = f"{len(here)} times" if here else "not"
            problems.append(f"{path}: attribute '{attribute.name}' is {count} in the annotation")
        found += here[:1]
    if problems:
        there = ", ".join(names)
        raise PedbenchError("\n".join((*problems, f"{path}: its attributes are: {there}")))
    return found


def decoded(
    path: Path,
    values: np.ndarray,
    codes: Mapping[int, int],
    images: Sequence[str],
    attributes: Sequence[Attribute],
) -> np.ndarray:
    """``values (N, A)`` of a file as labels, int8: ``codes`` maps each of its codes to 1, 0 or -1.

    Raises PedbenchError that names image and attribute of the first value that is no code.
    """
    labels, strange = np.zeros(values.shape, np.int8), np.ones(values.shape, bool)
    for code, label in codes.items():
        labels[values == code] = label
        strange &= values != code
    if strange.any():
        row, place = np.argwhere(strange)[0]
        raise PedbenchError(
            f"{path}: row {row + 1} ({images[row]}), '{attributes[place].name}': label "
            f"{values[row, place]:g}, but the release knows {', '.join(map(str, codes))} only "
            f"({strange.sum()} such labels in all); the file was changed: obtain it again"
        )
    return labels


def subset_of_rows(
    path: Path, split: str, parts: Mapping[Subset, np.ndarray], count: int
) -> list[Subset | None]:
    """Of each of ``count`` rows its subset, or None; ``parts`` holds 0-based rows.

    Raises PedbenchError when a row is in two parts or twice in one.
    """
    found: list[Subset | None] = [None] * count
    for subset, rows in parts.items():
        for row in rows.tolist():
            if found[row] is not None:
                raise PedbenchError(
                    f"{path}: {split}: row {row + 1} is listed as {found[row]} and again as "
                    f"{subset}; the file was changed: obtain it again"
                )
            found[row] = subset
    return found


def trainval(subsets: Sequence[Subset | None]) -> list[Subset | None]:
    """The same with train and val as one training subset."""
    return ["train" if subset == "val" else subset for subset in subsets]


def _folded(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())
