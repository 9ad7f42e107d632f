"""RAPv2, trained on base attributes and tested on novel ones that it was never trained on.

Made of the folder of ``rapv2``; see `pedbench.formats.novel`.
"""

from __future__ import annotations

from pedbench.datasets.rapv2 import Dataset as RAPv2
from pedbench.formats.novel import NovelDataset, novel_spec

BIBTEX = ""  # its parent's


class Dataset(NovelDataset):
    PARENTS = {"rapv2": RAPv2}
    SPEC = novel_spec(PARENTS)
