"""Synthetic B, the milder one: five cameras, two of them grey; 24 attributes."""

from __future__ import annotations

from pedbench.world.dataset import SyntheticDataset, world_spec
from pedbench.world.domains import TARGET_B

BIBTEX = ""  # drawn by this suite, which is cited anyway


class Dataset(SyntheticDataset):
    DOMAIN = TARGET_B
    SPEC = world_spec(TARGET_B, "Synthetic B")
