"""Datasets that are made of others: their root holds a folder, or a link, of each parent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pedbench.contracts import BaseDataset, PedbenchError

SPLIT = "standard"  # of the parents: what is divided anew
Parents = Mapping[str, type[BaseDataset]]


class OfParents(BaseDataset):
    """The folders of ``PARENTS``, by name, in one root."""

    def generate(self, root: Path, options: Mapping[str, Any]) -> None:
        """Link the parents' folders, ``options["roots"]``, in ``root``, and make there the parents
        that are made and have none; if the others have none, ``root`` was named by the user. Raises
        PedbenchError when something else is in a link's place."""
        roots = options.get("roots", {})
        for name, folder in roots.items():
            link, target = root / name, Path(folder).absolute()
            if link.is_symlink() and link.readlink() == target:
                continue
            if link.exists() and not link.is_symlink():
                raise PedbenchError(f"{link}: is in the place of a link to {target}; move it away")
            root.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(target, target_is_directory=True)
        for name in self.PARENTS.keys() - roots.keys():
            self.PARENTS[name]().generate(root / name, {})

    def expected(self, options: Mapping[str, Any]) -> Mapping[str, Mapping[str, int]]:
        return super().expected({key: options[key] for key in options if key != "roots"})

    def fake(self, root: Path, rng: np.random.Generator) -> None:
        for name, parent in self.PARENTS.items():
            parent().fake(root / name, rng)
