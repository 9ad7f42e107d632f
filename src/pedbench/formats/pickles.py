"""Pickles without their danger: arrays and plain containers are built, nothing else is even named.

Loading a pickle runs whatever it asks for. Here the few classes that files of this field ask for
are replaced by stand-ins which only keep what they are given, so that not even numpy takes
instructions from the file; every other name is refused before it is looked up.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pedbench.contracts import PedbenchError


def read_pickle(path: Path) -> Any:
    """What is in a pickle: dicts, lists, tuples, text and numbers; arrays come as `Array`, for
    ``np.asarray``.

    Raises PedbenchError when the file is missing, damaged, or asks for anything that is neither
    array nor plain container, which it names; nothing of such a file is executed.
    """
    try:
        with path.open("rb") as stream:
            return _Restricted(path, stream).load()
    except PedbenchError:
        raise
    except FileNotFoundError:
        raise PedbenchError(f"{path}: no such file") from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise PedbenchError(
            f"{path}: not a readable pickle ({type(error).__name__}: {error}); it is truncated or "
            "was changed: obtain it again"
        ) from error


class Array:
    """An array of numbers, truth values or text as its pickle describes it; made a numpy array by
    ``np.asarray``, which raises ValueError when the description is wrong."""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, fortran, self.data = state
        self.order = "F" if fortran else "C"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if isinstance(self.data, list):  # of objects
            flat = np.empty(len(self.data), object)
            flat[:] = self.data
        else:
            flat = np.frombuffer(self.data, self.dtype.plain())
        found = flat.reshape(self.shape, order=self.order)  # type: ignore[arg-type]
        return found if dtype is None else found.astype(dtype)


class _Dtype:
    """``numpy.dtype`` as its pickle describes it."""

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        self.code = code
        self.order: Any = "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def plain(self) -> np.dtype:
        found = np.dtype(str(self.code))
        if found.kind not in "biufUS":
            raise ValueError(f"an array of type {self.code}")
        return found.newbyteorder(self.order)


class _EasyDict(dict[Any, Any]):
    """``easydict.EasyDict``, whose attributes only repeat its items."""

    def __setstate__(self, state: Any) -> None:
        pass


def _reconstruct(*_: Any) -> Array:
    return Array()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: str) -> Array:
    found = Array()
    found.__setstate__((1, shape, dtype, order == "F", data))
    return found


def _scalar(dtype: Any, data: Any) -> Any:
    return np.frombuffer(data, dtype.plain())[0]


_STANDINS: dict[str, Callable[..., Any]] = {
    "easydict.EasyDict": _EasyDict,
    "numpy.ndarray": Array,
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _frombuffer,  # protocol 5
}


class _Restricted(pickle.Unpickler):
    def __init__(self, path: Path, stream: Any) -> None:
        super().__init__(stream)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}"
        standin = _STANDINS.get(wanted.replace("numpy._core.", "numpy.core."))  # numpy 2's name
        if standin is None:
            raise PedbenchError(
                f"{self.path}: this pickle asks for '{wanted}', which is neither an array nor a "
                "plain container; it was refused and nothing of it was executed. Do not load the "
                "file with anything else: obtain the released one"
            )
        return standin
