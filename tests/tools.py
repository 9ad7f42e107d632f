"""Programs that a test needs: absent, it skips by name, or fails where CI promises them."""

from __future__ import annotations

import os
import shutil

import pytest


def need(tool: str) -> str:
    """Path of ``tool``."""
    found = shutil.which(tool)
    if found is None and os.environ.get("PEDBENCH_REQUIRE_TOOLS") == "1":
        pytest.fail(f"{tool} is not installed, but PEDBENCH_REQUIRE_TOOLS=1")
    if found is None:
        pytest.skip(f"{tool} is not installed")
    return found
