"""Market-1501: six cameras before a supermarket, detected persons, distractors in the gallery."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pedbench.contracts import BaseDataset, DatasetSpec, Record
from pedbench.formats.held_out import remaining, with_validation
from pedbench.formats.market import (
    GALLERY,
    QUERY,
    TRAIN,
    fake_market,
    market_folder,
    pictures,
)

TESTED = {"query": 3_368, "gallery": 15_913}


class Dataset(BaseDataset):
    SPEC = DatasetSpec(
        title="Market-1501",
        licence="research only",
        attributes=(),
        splits=("reid", "reid_val"),
        reid=("reid", "reid_val"),
        counts={"reid": {"train": 12_936, **TESTED}, "reid_val": TESTED},
        identities={
            "reid": {"train": 751, "query": 750, "gallery": 751},  # with 0, the distractors
            "reid_val": remaining(751),
        },
        citation="""
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
        folder = market_folder(root, TRAIN, GALLERY, QUERY)
        found = [
            Record(
                image=f"{name}/{file}",
                labels=(),
                subset={"reid": "train" if name == TRAIN else "test"},
                queries=("reid",) if name == QUERY else (),
                identity=person,
                camera=camera,
                file=(folder.relative_to(root) / name / file).as_posix(),
            )
            for name in (GALLERY, TRAIN, QUERY)
            for file, (person, camera) in pictures(folder / name).items()
        ]
        yield from with_validation(found, "reid", "reid_val", "market1501")

    def fake(self, root: Path, rng: np.random.Generator) -> None:
        people = {"train": (2, 7, 11, 30, 1200, 1499, 1500), "test": (1, 3, 1490, 1501)}
        fake_market(root, people, rng)
