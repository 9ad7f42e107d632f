"""RAP-ZS: RAPv2's images of known persons, divided so that no person is in two subsets.

Needed are the files of ``rapv2`` and, in the same folder, the published division::

    RAP2/
      RAP_dataset/CAM01-2014-02-15-...-tarid0-frame218-line1.png ...
      RAP_annotation/RAP_annotation.mat
      dataset_zs_run0.pkl              of five draws the papers use this one

The pickle comes with the code of the paper (github.com/valencebond/Rethinking_of_PAR). It is read
by `pedbench.formats.pickles`, which runs nothing, and only image names and the three index arrays
are taken from it. Of RAPv2's 84,928 images the 26,638 take part whose person is known, and of its
attributes all but ``Age46-60``.

``zero_shot`` is that division, ``zero_shot_trainval`` has its train and val as train, as in the
papers; without the pickle both are empty. ``zero_shot_rebuilt`` needs the annotation only: 60, 20
and 20 % of the persons, ranked by a hash; it is ours, not the published one. No copy of annotation
or pickle was at hand: the numbers are those of papers.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pedbench.contracts import SUBSETS, BaseDataset, DatasetSpec, PedbenchError, Record, Subset
from pedbench.datasets.rapv2 import SPELLINGS
from pedbench.datasets.rapv2 import Dataset as RAPv2
from pedbench.formats import rap
from pedbench.formats.labels import subset_of_rows, trainval
from pedbench.formats.zero_shot import PICKLE, find_pickle, published, rebuilt

BIBTEX = """
@article{jia2021rethinking,
  author = {Jia, Jian and Huang, Houjing and Chen, Xiaotang and Huang, Kaiqi},
  title = {Rethinking of Pedestrian Attribute Recognition: A Reliable Evaluation under Zero-Shot
           Pedestrian Identity Setting},
  journal = {arXiv preprint arXiv:2107.03576},
  year = {2021},
}
"""

LEFT_OUT = "Age46-60"  # by the authors of the division
# From the literature, but for val: that is what the others leave of the 26,638 images whose person
# is known. PromptPAR's supplement prints 4,628, with which the sum is wrong.
COUNTS = {"train": 17_062, "val": 4_648, "test": 4_928}


class Dataset(BaseDataset):
    FOLDER_OF = "rapv2"
    SPEC = DatasetSpec(
        title="RAP-ZS",
        licence=RAPv2.SPEC.licence,
        attributes=tuple(a for a in RAPv2.SPEC.attributes if a.name != LEFT_OUT),
        splits=("zero_shot", "zero_shot_trainval", "zero_shot_rebuilt"),
        counts={
            "zero_shot": COUNTS,
            "zero_shot_trainval": {"train": 21_710, "test": 4_928},
        },
        identities={
            "zero_shot": {"train": 1_566, "val": 522, "test": 501},
            "zero_shot_trainval": {"train": 2_088, "test": 501},
            "zero_shot_rebuilt": {"train": 1_553, "val": 518, "test": 518},
        },
        disjoint=("zero_shot", "zero_shot_trainval", "zero_shot_rebuilt"),
    )

    def records(self, root: Path) -> Iterator[Record]:
        annotation = rap.read(root, rap.V2, self.SPEC.attributes, SPELLINGS)
        splits: dict[str, Sequence[Subset | None]] = {}
        file = find_pickle(root, annotation.release)
        if file:
            division = _division(file, annotation)
            splits |= {"zero_shot": division, "zero_shot_trainval": trainval(division)}
        persons = rebuilt("rap_zs", annotation.identities)
        splits["zero_shot_rebuilt"] = [persons.get(i) for i in annotation.identities.tolist()]
        known = np.flatnonzero(annotation.identities >= 0)
        return rap.records(root, rap.V2, annotation, splits, known)

    def fake(self, root: Path, rng: np.random.Generator) -> None:
        RAPv2().fake(root, rng)
        annotation = rap.read(root, rap.V2, self.SPEC.attributes, SPELLINGS)
        persons = rng.permutation(np.unique(annotation.identities[annotation.identities >= 0]))
        parts = {
            subset: rng.permutation(np.flatnonzero(np.isin(annotation.identities, some)))
            for subset, some in zip(SUBSETS, np.split(persons, [9, 12]), strict=True)
        }
        parts["trainval"] = np.concatenate([parts["train"], parts["val"]])
        content = {"image_name": annotation.names, "partition": parts}
        (root / PICKLE).write_bytes(pickle.dumps(content))


def _division(file: Path, annotation: rap.Annotation) -> list[Subset | None]:
    """The subset of every row; raises PedbenchError when it divides images of unknown persons."""
    rows = published(file, annotation.names, COUNTS)
    division = subset_of_rows(file, "partition", rows, len(annotation.names))
    unknown = sum(
        subset is not None and identity < 0
        for subset, identity in zip(division, annotation.identities, strict=True)
    )
    if unknown:
        raise PedbenchError(
            f"{file}: it divides {unknown} images whose person is unknown in {annotation.path}; "
            "the two files belong to different releases"
        )
    return division
