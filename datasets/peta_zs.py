"""PETA-ZS: the images and labels of PETA, divided so that no person is in two subsets.

Needed are the files of ``peta`` and, in the same folder, the published division::

    PETA/
      images/00001.png ... 19000.png
      PETA.mat
      dataset_zs_run0.pkl              of five draws the papers use this one

The pickle comes with the code of the paper (github.com/valencebond/Rethinking_of_PAR). It is read
by `pedbench.formats.pickles`, which runs nothing, and only image names and the three index arrays
are taken from it: labels and identities are those of ``PETA.mat``.

``zero_shot`` is that division (11,241 / 3,826 / 3,933 images of 5,211 / 1,703 / 1,785 persons) and
``zero_shot_trainval`` has its train and val as train, as in the papers. Without the pickle both are
empty. ``zero_shot_rebuilt`` needs ``PETA.mat`` only: 60, 20 and 20 % of the persons, ranked by a
hash. It is ours, not the published one. The numbers of the published division are those printed in
papers, which sum to PETA's; no copy of the pickle was at hand.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pedbench.contracts import DatasetSpec, Subset
from pedbench.datasets.peta import ATTRIBUTES, LICENCE, Annotation, read_annotation
from pedbench.datasets.peta import Dataset as Peta
from pedbench.formats.labels import subset_of_rows, trainval
from pedbench.formats.zero_shot import PICKLE, find_pickle, published, rebuilt

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
@article{jia2021rethinking,
  author = {Jia, Jian and Huang, Houjing and Chen, Xiaotang and Huang, Kaiqi},
  title = {Rethinking of Pedestrian Attribute Recognition: A Reliable Evaluation under Zero-Shot
           Pedestrian Identity Setting},
  journal = {arXiv preprint arXiv:2107.03576},
  year = {2021},
}
"""
COUNTS = {"train": 11_241, "val": 3826, "test": 3933}  # from the literature


class Dataset(Peta):
    inputs = ("datasets/peta.py",)
    FOLDER_OF = "peta"
    SPEC = DatasetSpec(
        title="PETA-ZS",
        licence=LICENCE,
        attributes=ATTRIBUTES,
        splits=("zero_shot", "zero_shot_trainval", "zero_shot_rebuilt"),
        counts={
            "zero_shot": COUNTS,
            "zero_shot_trainval": {"train": 15_067, "test": 3933},
            "zero_shot_rebuilt": {"train": 11_390, "val": 3824, "test": 3786},
        },
        identities={
            "zero_shot": {"train": 5211, "val": 1703, "test": 1785},
            "zero_shot_trainval": {"train": 6914, "test": 1785},
            "zero_shot_rebuilt": {"train": 5219, "val": 1740, "test": 1740},
        },
        disjoint=("zero_shot", "zero_shot_trainval", "zero_shot_rebuilt"),
    )

    def divisions(
        self, root: Path, folder: Path, annotation: Annotation
    ) -> Mapping[str, Sequence[Subset | None]]:
        identities = annotation.identities.tolist()
        persons = rebuilt("peta_zs", identities)
        splits: dict[str, Sequence[Subset | None]] = {
            "zero_shot_rebuilt": [persons.get(person) for person in identities]
        }
        path = find_pickle(root, folder)
        if path is not None:
            parts = published(path, annotation.images, COUNTS)
            of = subset_of_rows(path, "zero_shot", parts, len(annotation.images))
            splits["zero_shot"] = of
            splits["zero_shot_trainval"] = trainval(of)
        return splits

    def fake(self, root: Path, rng: np.random.Generator) -> None:
        super().fake(root, rng)
        annotation = read_annotation(root / "PETA.mat")
        fake_pickle(root / PICKLE, annotation.images, annotation.identities, rng)


def fake_pickle(
    path: Path, images: Sequence[str], identities: np.ndarray, rng: np.random.Generator
) -> None:
    """A pickle of the released shape that divides by person; what is not taken from it is wrong."""
    share = rng.permutation(identities.max() + 1)[identities] / (identities.max() + 1)
    train, val, test = (
        rng.permutation(np.flatnonzero((low <= share) & (share < high)))
        for low, high in ((0, 0.6), (0.6, 0.8), (0.8, 1))
    )
    content = {
        "description": "peta_zs",
        "reorder": "group_order",
        "root": "/home/somebody/PETA/images",
        "image_name": list(images),
        "label": np.zeros((len(images), 105), int),
        "attr_name": [f"attribute {i}" for i in range(105)],
        "label_idx": {"eval": list(range(35)), "color": [], "extra": []},
        "partition": {
            "train": train,
            "val": val,
            "trainval": np.concatenate([train, val]),
            "test": test,
        },
        "weight_train": [np.zeros(105)],
        "weight_trainval": [np.zeros(105)],
    }
    path.write_bytes(pickle.dumps(content))
