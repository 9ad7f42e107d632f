"""PA100K, trained on base attributes and tested on novel ones that it was never trained on.

Made of the folder of ``pa100k``; see `pedbench.formats.novel`.
"""

from __future__ import annotations

from pedbench.datasets.pa100k import Dataset as PA100K
from pedbench.formats.novel import NovelDataset, novel_spec

BIBTEX = ""  # its parent's


class Dataset(NovelDataset):
    PARENTS = {"pa100k": PA100K}
    SPEC = novel_spec(PARENTS)
