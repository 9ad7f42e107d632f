"""Synthetic ReID B: other persons by five milder cameras, two of them grey."""

from __future__ import annotations

from pedbench.world.dataset import REID, SyntheticReid, world_spec
from pedbench.world.domains import TARGET_REID_B

BIBTEX = ""  # drawn by this suite, which is cited anyway


class Dataset(SyntheticReid):
    DOMAIN = TARGET_REID_B
    SPEC = world_spec(TARGET_REID_B, "Synthetic ReID B", splits=(REID,), reid=(REID,))
