"""Synthetic ReID and its B: trained on the persons of one, asked for those of the other.

Both are made below its own folder; see `pedbench.formats.cross_reid`.
"""

from __future__ import annotations

from pedbench.datasets.synthetic_reid import Dataset as Reid
from pedbench.datasets.synthetic_reid_b import Dataset as ReidB
from pedbench.formats.cross_reid import CrossReidDataset, cross_reid_spec

BIBTEX = ""  # drawn by this suite, which is cited anyway


class Dataset(CrossReidDataset):
    PARENTS = {"synthetic_reid": Reid, "synthetic_reid_b": ReidB}
    SPEC = cross_reid_spec(PARENTS)
