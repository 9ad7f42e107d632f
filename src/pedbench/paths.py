"""Where the files shipped beside the code are."""

from __future__ import annotations

from pathlib import Path

from pedbench.contracts import PedbenchError

_RESOURCES = Path(__file__).resolve().parents[2] / "resources"


def resource(name: str) -> Path:
    """Path of ``resources/{name}``. Raises PedbenchError if it is not there."""
    path = _RESOURCES / name
    if path.exists():
        return path
    raise PedbenchError(
        f"the shipped file {path} is missing: restore it from the repository, and install "
        "pedbench from a checkout with 'pip install -e .'"
    )
