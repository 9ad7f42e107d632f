"""Market-1501's folders: persons, cameras and roles are in the names of folders and files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pedbench.contracts import PedbenchError
from pedbench.formats.fakes import noise
from pedbench.formats.layout import is_picture, release_folder

TRAIN, GALLERY, QUERY = "bounding_box_train", "bounding_box_test", "query"
JUNK, DISTRACTOR = -1, 0  # numbers of no person: left out; a wrong answer, whatever the query

_NAME = re.compile(r"(-?\d+)_c(\d)s\d+_\d+_\d+\.(?i:jpg)")
_FOLDER = "Market-1501-v15.09.15"


def market_folder(root: Path, *wanted: str) -> Path:
    """That which holds ``wanted``; torchreid puts it two levels below its root. Raises
    PedbenchError when it is not there."""
    start = root / "market1501"
    return release_folder(start if start.is_dir() else root, *wanted)


def pictures(folder: Path) -> dict[str, tuple[int, int]]:
    """File -> person and camera (from 0) of every picture but the junk, sorted. Raises
    PedbenchError when a picture is not named as in the release."""
    files = (p for p in folder.iterdir() if p.suffix.lower() == ".jpg" and is_picture(p))
    names = sorted(p.name for p in files)
    found = {name: _NAME.fullmatch(name) for name in names}
    strange = [name for name, match in found.items() if match is None]
    if strange:
        raise PedbenchError(
            f"{folder}: {len(strange)} files are not named as in Market-1501 "
            f"(0002_c1s1_000451_03.jpg), such as {strange[0]}; obtain the data set again"
        )
    every = {name: (int(m[1]), int(m[2]) - 1) for name, m in found.items() if m}
    return {name: which for name, which in every.items() if which[0] != JUNK}


def fake_market(
    root: Path, people: Mapping[str, tuple[int, ...]], rng: np.random.Generator
) -> Path:
    """A folder of ``people``, by "train" and "test", each with four pictures by as many cameras
    and, in test, a query. Returns where it is."""
    base = root / _FOLDER
    for subset, folder in (("train", TRAIN), ("test", GALLERY)):
        for person in people[subset]:
            cameras = rng.permutation(6)[:4] + 1
            for shot, camera in enumerate(cameras):
                noise(base / folder / f"{person:04d}_c{camera}s1_00{shot:04d}_01.jpg", rng)
            if subset == "test":
                noise(base / QUERY / f"{person:04d}_c{cameras[0]}s1_001051_00.jpg", rng)
        (base / folder / "Thumbs.db").write_bytes(b"no picture")
    for number in ("-1", "0000"):
        noise(base / GALLERY / f"{number}_c1s1_000401_03.jpg", rng)
    return base
