"""MATLAB files as plain values: v5 by scipy, v7.3 (HDF5) by h5py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pedbench.contracts import PedbenchError


def read_mat(path: Path) -> dict[str, Any]:
    """Variable -> value. A struct becomes a dict, a cell array of one dimension a list of its
    entries, text a ``str``, an integer array int64 (MATLAB's are unsigned, and wrap when 1 is
    subtracted); vectors are one-dimensional.

    Raises PedbenchError when the file is missing, truncated, a v7.3 file (`read_hdf5` reads those)
    or no MATLAB file at all.
    """
    from scipy.io import loadmat

    try:
        found = loadmat(path, chars_as_strings=True, struct_as_record=True)
    except FileNotFoundError:
        raise PedbenchError(f"{path}: no such file") from None
    except NotImplementedError:
        raise PedbenchError(
            f"{path}: a MATLAB v7.3 file where the release has v5; it was saved anew, so obtain "
            "the released file"
        ) from None
    except Exception as error:  # scipy raises many kinds on a damaged file
        raise PedbenchError(
            f"{path}: not a readable MATLAB file ({error}); it is truncated or was changed: "
            "obtain it again"
        ) from error
    return {key: plain(value) for key, value in found.items() if not key.startswith("__")}


def plain(value: Any) -> Any:
    """What scipy makes of a struct, a cell or an array, without its dimensions of one."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.names:  # a struct, or an array of them
        rows = [{name: plain(row[name]) for name in value.dtype.names} for row in value.ravel()]
        return rows[0] if value.size == 1 else rows
    if value.dtype == object:
        return [plain(entry) for entry in value.ravel()]
    if value.dtype.kind in "US":
        return str(value.item()) if value.size == 1 else ("" if not value.size else list(value))
    if value.dtype.kind in "iu":
        value = value.astype(np.int64)
    return value.ravel() if value.ndim == 2 and 1 in value.shape else value


def read_hdf5(path: Path) -> dict[str, Any]:
    """The same of a v7.3 file. Arrays come as MATLAB shows them (the file holds them transposed).

    Raises PedbenchError when the file is missing, truncated or not HDF5.
    """
    import h5py

    def read(item: Any, in_cell: bool = False) -> Any:
        if isinstance(item, h5py.Group):
            return {name: read(item[name]) for name in item}
        array, kind = item[()], item.attrs.get("MATLAB_class", b"char" if in_cell else b"")
        if array.dtype == object:  # references
            return [read(file[reference], in_cell=True) for reference in array.ravel()]
        if kind == b"char" and array.dtype == np.uint16:
            return "".join(chr(code) for code in array.ravel())
        if "MATLAB_empty" in item.attrs:
            return "" if kind == b"char" else np.empty(0)
        if array.dtype.kind in "iu":
            array = array.astype(np.int64)
        return array.ravel() if 1 in array.shape else array.T

    if not path.is_file():
        raise PedbenchError(f"{path}: no such file")
    if not h5py.is_hdf5(path):
        raise PedbenchError(f"{path}: not a MATLAB v7.3 file (HDF5), or truncated")
    try:
        with h5py.File(path) as file:
            names = [str(name) for name in file]
            return {name: read(file[name]) for name in names if not name.startswith("#")}
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise PedbenchError(
            f"{path}: not readable ({error}); it is truncated or was changed: obtain it again"
        ) from error


def read_either(path: Path) -> dict[str, Any]:
    """Of a release in v7.3: `read_hdf5`, or `read_mat` of a copy that was saved anew as v5."""
    import h5py

    return read_hdf5(path) if path.is_file() and h5py.is_hdf5(path) else read_mat(path)


def field(path: Path, struct: Any, *names: str) -> Any:
    """The field of a struct under the first of ``names`` that it has, for misspellings circulate.

    Raises PedbenchError listing the fields that are there, or when ``struct`` is none.
    """
    if not isinstance(struct, Mapping):
        raise PedbenchError(
            f"{path}: {type(struct).__name__} in place of a struct with the field '{names[0]}'; "
            "the file was changed: obtain it again"
        )
    for name in names:
        if name in struct:
            return struct[name]
    raise PedbenchError(
        f"{path}: no field '{names[0]}' (it has: {', '.join(struct)}); this is another annotation"
    )


def positions(path: Path, where: str, indices: Any, count: int) -> np.ndarray:
    """1-based indices into ``count`` rows or columns as 0-based ones.

    Raises PedbenchError when they are outside 1...count; 0-based ones are recognised by their 0.
    """
    found = np.atleast_1d(np.asarray(indices)).astype(np.int64)
    if len(found) and found.min() == 0 and found.max() < count:
        raise PedbenchError(
            f"{path}: {where}: indices start at 0, but those of the release start at 1; the file "
            "was changed: obtain it again"
        )
    if len(found) and (found.min() < 1 or found.max() > count):
        raise PedbenchError(
            f"{path}: {where}: indices from {found.min()} to {found.max()}, but there are {count} "
            "rows; split and labels are of different releases"
        )
    return found - 1
