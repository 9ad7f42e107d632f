"""Programs that a test needs: absent, it skips by name, or fails where CI promises them."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def need(tool: str) -> str:
    """Path of ``tool``."""
    return shutil.which(tool) or _without(f"{tool} is not installed")


def need_root(why: str) -> None:
    if os.getuid() != 0:
        _without(f"{why} needs root")


def _without(what: str) -> NoReturn:
    if os.environ.get("PEDBENCH_REQUIRE_TOOLS") == "1":
        pytest.fail(f"{what}, but PEDBENCH_REQUIRE_TOOLS=1")
    pytest.skip(what)
