"""Market-1501 and MSMT17: trained on the persons of one, asked for those of the other.

Made of the folders of ``market1501`` and ``msmt17``; see `pedbench.formats.cross_reid`. Its own
``roots`` entry is needed only where one folder holds both under these names.
"""

from __future__ import annotations

from pedbench.datasets.market1501 import Dataset as Market1501
from pedbench.datasets.msmt17 import Dataset as MSMT17
from pedbench.formats.cross_reid import CrossReidDataset, cross_reid_spec

BIBTEX = ""  # those of its parents


class Dataset(CrossReidDataset):
    PARENTS = {"market1501": Market1501, "msmt17": MSMT17}
    SPEC = cross_reid_spec(PARENTS)
