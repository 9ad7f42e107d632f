"""PETA, trained on base attributes and tested on novel ones that it was never trained on.

Made of the folder of ``peta``; see `pedbench.formats.novel`.
"""

from __future__ import annotations

from pedbench.datasets.peta import Dataset as Peta
from pedbench.formats.novel import NovelDataset, novel_spec

BIBTEX = ""  # its parent's


class Dataset(NovelDataset):
    PARENTS = {"peta": Peta}
    SPEC = novel_spec(PARENTS)
