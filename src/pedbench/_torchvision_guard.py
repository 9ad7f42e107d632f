"""Lets torchvision be imported beside a torch its extension was not built for.

The registry's torchvision is linked to CUDA. Beside a CPU torch its extension cannot be loaded,
and the import then dies because operators it describes were never declared. Nothing here calls
those operators, so declaring them is enough; calling one still raises. Where the extension does
load, nothing is declared: a second declaration would abort the process.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[object] = []  # a torch Library forgets its operators when collected


def _extension_loads(package: Path) -> bool:
    import torch

    for library in [*package.glob("_C*.so"), *package.glob("_C*.pyd")]:
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return True
    return False


def _declare_operators() -> None:
    from torch.library import Library

    library = Library("torchvision", "FRAGMENT")
    for schema in _OPERATORS:
        library.define(schema)
    _declared.append(library)


class TorchvisionGuard(MetaPathFinder):
    """Runs once, when torchvision is first looked for, by whomever; then removes itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.origin and not _extension_loads(Path(spec.origin).parent):
            _declare_operators()
        return None  # the normal import goes on


def install() -> None:
    """Put the guard in front of the import machinery; imports no torch."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, TorchvisionGuard())
