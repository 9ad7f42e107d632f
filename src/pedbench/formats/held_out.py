"""Validation persons for re-identification, where a release has none."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from pedbench.contracts import Record, Subset

SHARE = 0.15  # of the training persons


def held_out(persons: Iterable[int], salt: str) -> set[int]:
    """`SHARE` of ``persons``, the same on every computer and for every order: by rank of a hash."""
    ranked = sorted(set(persons), key=lambda person: _lot(f"{salt} {person}"))
    return set(ranked[: round(SHARE * len(ranked))])


def remaining(persons: int) -> Mapping[str, int]:
    """How many of ``persons`` in training stay there, and how many are held out."""
    return {"train": persons - round(SHARE * persons), "val_gallery": round(SHARE * persons)}


def with_validation(records: Iterable[Record], split: str, apart: str, salt: str) -> list[Record]:
    """Each record also in the split ``apart``: as in ``split``, but a share of the training persons
    is held out as val.

    Of a held-out person, half of the cameras (rounded down) give one picture each to the queries;
    all others are the gallery, so that every query has a match by another camera.
    """
    records = list(records)
    of_person: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        if record.subset.get(split) == "train":
            of_person[record.identity].append(record)
    persons = held_out(of_person, salt)
    queries = {image for person in persons for image in _queries(of_person[person], salt)}
    return [_moved(record, split, apart, persons, queries) for record in records]


def _queries(records: Iterable[Record], salt: str) -> list[str]:
    by_camera: dict[int, list[str]] = defaultdict(list)
    for record in records:
        by_camera[record.camera].append(record.image)
    firsts = [
        min(images, key=lambda image: _lot(f"{salt} {image}")) for images in by_camera.values()
    ]
    return sorted(firsts, key=lambda image: _lot(f"{salt} {image}"))[: len(firsts) // 2]


def _moved(record: Record, split: str, apart: str, persons: set[int], queries: set[str]) -> Record:
    subset = record.subset.get(split)
    if subset is None:
        return record
    asked = split in record.queries
    if subset == "train" and record.identity in persons:
        subset, asked = "val", record.image in queries
    moved: dict[str, Subset] = {**record.subset, apart: subset}
    return replace(record, subset=moved, queries=(*record.queries, *[apart] * asked))


def _lot(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
