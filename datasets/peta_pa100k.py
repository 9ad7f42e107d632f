"""PETA and PA100K in the attributes they share: trained on one, tested on the other.

Made of the folders of ``peta`` and ``pa100k``; see `pedbench.formats.cross`. Its own ``roots``
entry is needed only where one folder holds both under these names.
"""

from __future__ import annotations

from pedbench.datasets.pa100k import Dataset as PA100K
from pedbench.datasets.peta import Dataset as Peta
from pedbench.formats.cross import CrossDataset, cross_spec

BIBTEX = ""  # those of its parents


class Dataset(CrossDataset):
    PARENTS = {"peta": Peta, "pa100k": PA100K}
    SPEC = cross_spec(PARENTS)
