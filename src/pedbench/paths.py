"""Where the files shipped beside the code are."""

from __future__ import annotations

from pathlib import Path

from pedbench.contracts import PedbenchError

_PACKAGE = Path(__file__).resolve().parent
_HOMES = (_PACKAGE.parents[1] / "resources", _PACKAGE / "resources")  # checkout, installed


def resource(name: str) -> Path:
    """Path of ``resources/{name}``. Raises PedbenchError if it is not there."""
    for home in _HOMES:
        if (home / name).exists():
            return home / name
    raise PedbenchError(
        f"the shipped file resources/{name} is missing (looked in "
        f"{', '.join(str(home) for home in _HOMES)}): restore it from the repository, "
        "or install pedbench from a checkout with 'pip install -e .'"
    )
