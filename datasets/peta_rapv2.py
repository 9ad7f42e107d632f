"""PETA and RAPv2 in the attributes they share: trained on one, tested on the other.

Made of the folders of ``peta`` and ``rapv2``; see `pedbench.formats.cross`. Its own ``roots``
entry is needed only where one folder holds both under these names.
"""

from __future__ import annotations

from pedbench.datasets.peta import Dataset as Peta
from pedbench.datasets.rapv2 import Dataset as RAPv2
from pedbench.formats.cross import CrossDataset, cross_spec

BIBTEX = ""  # those of its parents


class Dataset(CrossDataset):
    PARENTS = {"peta": Peta, "rapv2": RAPv2}
    SPEC = cross_spec(PARENTS)
