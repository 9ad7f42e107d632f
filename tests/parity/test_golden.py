"""Every golden case of a folder: numbers that the authors' code computed at tiny scale.

A file's leading words name its kind; geometry and flags come from its ``config``, so a new case of
a known kind needs no code here. A kind is a function ``check_KIND`` and an entry of ``TOLERANCES``
in one of the modules kinds_*.py beside this file. ``PEDBENCH_GOLDEN`` names another folder. Every
array of a file must be compared; a file of unknown kind fails.

Tolerances suggested by the files' makers: outputs and losses 1e-5, gradients 2e-4, moves after
optimiser steps 1e-3.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest
from golden import Case

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("PEDBENCH_GOLDEN", HERE.parent / "golden"))
FILES = sorted(FOLDER.glob("*.npz"))
MODULES = [importlib.import_module(path.stem) for path in sorted(HERE.glob("kinds_*.py"))]
KINDS = {kind: module for module in MODULES for kind in module.TOLERANCES}


def kind_of(stem: str, kinds: Any) -> str | None:
    """The longest kind whose words begin ``stem``."""
    fits = [k for k in kinds if stem == k or stem.startswith(f"{k}_")]
    return max(fits, key=len, default=None)


def test_folder_holds_cases() -> None:
    assert FILES, f"{FOLDER} holds no .npz file"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    kind = kind_of(path.stem, KINDS)
    assert kind is not None, f"{path.name}: no check is written for a file of this kind"
    case = Case(path, KINDS[kind].TOLERANCES[kind])
    getattr(KINDS[kind], f"check_{kind}")(case)
    case.finish()
