"""Synthetic A, the hard one: six cameras, four of them grey or inverted; 28 attributes."""

from __future__ import annotations

from pedbench.world.dataset import SyntheticDataset, world_spec
from pedbench.world.domains import TARGET_A

BIBTEX = ""  # drawn by this suite, which is cited anyway


class Dataset(SyntheticDataset):
    DOMAIN = TARGET_A
    SPEC = world_spec(TARGET_A, "Synthetic A")
