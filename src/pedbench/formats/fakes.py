"""Writing small trees in the native layout of a release, for ``fake``: noise and right nesting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def noise(path: Path, rng: np.random.Generator, height: int = 64, width: int = 32) -> None:
    """A picture of noise; its format is that of the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def cell(values: Sequence[Any], row: bool = False) -> np.ndarray:
    """A MATLAB cell array ``(N, 1)``, or ``(1, N)``, of text, structs (dicts) or arrays."""
    found = np.empty((len(values), 1), object)
    for index, value in enumerate(values):
        found[index, 0] = value
    return found.T if row else found


def write_mat(path: Path, variables: Mapping[str, Any]) -> None:
    """A MATLAB v5 file; structs are dicts, cells come from `cell`."""
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, dict(variables), oned_as="column")


def write_hdf5(path: Path, variables: Mapping[str, Any]) -> None:
    """A MATLAB v7.3 file of numeric arrays and lists of text, with the signature of a real one."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        texts = file.create_group("#refs#")
        for name, value in variables.items():
            if isinstance(value, np.ndarray):
                file[name] = value.T
                file[name].attrs["MATLAB_class"] = np.bytes_("double")
                continue
            references = np.empty((1, len(value)), h5py.ref_dtype)
            for index, text in enumerate(value):
                codes = np.array([[ord(letter)] for letter in text], np.uint16)
                entry = texts.create_dataset(f"{name}{index}", data=codes)
                entry.attrs["MATLAB_class"] = np.bytes_("char")
                references[0, index] = entry.ref
            found = file.create_dataset(name, data=references, dtype=h5py.ref_dtype)
            found.attrs["MATLAB_class"] = np.bytes_("cell")
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file".ljust(116) + bytes(8) + b"\x00\x02IM")


def divide(count: int, rng: np.random.Generator, *shares: float) -> list[np.ndarray]:
    """0-based positions ``0...count-1``, shuffled, in parts of these shares; the last takes the
    rest, and none is empty while ``count`` is large enough."""
    order, ends = rng.permutation(count), np.cumsum(shares)
    return np.split(order, [max(i + 1, round(count * end)) for i, end in enumerate(ends)])
