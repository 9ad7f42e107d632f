"""Synthetic ReID: persons found again by another of six cameras, one of them grey, one inverted."""

from __future__ import annotations

from pedbench.world.dataset import REID, SyntheticReid, world_spec
from pedbench.world.domains import TARGET_REID

BIBTEX = ""  # drawn by this suite, which is cited anyway


class Dataset(SyntheticReid):
    DOMAIN = TARGET_REID
    SPEC = world_spec(TARGET_REID, "Synthetic ReID", splits=(REID,), reid=(REID,))
