"""The restricted reader of pickles builds arrays and plain containers, and runs nothing."""

from __future__ import annotations

import os
import pickle
import struct
import sys
import types

import numpy as np
import pytest

from pedbench.contracts import PedbenchError
from pedbench.formats.pickles import read_pickle


class Call:
    """Pickles into a call that its reader makes."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def easydict(monkeypatch):
    """A module that need not be installed: dicts whose items are attributes too."""
    module = types.ModuleType("easydict")

    class EasyDict(dict):
        def __setitem__(self, key, value):
            super().__setitem__(key, value)
            self.__dict__[key] = value

    EasyDict.__module__, EasyDict.__qualname__ = "easydict", "EasyDict"
    vars(module)["EasyDict"] = EasyDict
    monkeypatch.setitem(sys.modules, "easydict", module)
    return EasyDict


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.uint16).reshape(2, 3)),
        np.arange(6)[::2],
        np.array([1.5, 2.5], ">f4"),
        np.array([True, False]),
        np.array(["a", "bcd"]),
        np.array(["a", None], object),
        np.zeros((0, 4)),
    ],
)
def test_arrays_come_back(tmp_path, array, protocol):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([array], protocol))
    found = np.asarray(read_pickle(tmp_path / "a.pkl")[0])
    assert found.dtype == array.dtype and found.shape == array.shape
    assert np.array_equal(found, array)


def test_plain_containers_and_scalars_come_back(tmp_path):
    value = {"a": [1, 2.5, "x", None, True, b"y"], 3: (np.float32(0.5), {"b"}), "c": np.int64(-7)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
    assert read_pickle(tmp_path / "a.pkl") == value


def test_easydict_needs_no_library(tmp_path, easydict, monkeypatch):
    outer, inner = easydict(), easydict()
    inner["train"], outer["partition"] = np.arange(3), inner
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(outer))
    monkeypatch.delitem(sys.modules, "easydict")
    found = read_pickle(tmp_path / "a.pkl")
    assert isinstance(found, dict) and list(found) == ["partition"]
    assert np.asarray(found["partition"]["train"]).tolist() == [0, 1, 2]


def test_both_names_of_numpys_core_are_known(tmp_path):
    data = pickle.dumps(np.arange(3), 3)
    for core in (b"numpy.core", b"numpy._core"):
        other = data.replace(b"numpy._core", core).replace(b"numpy.core", core)
        (tmp_path / "a.pkl").write_bytes(other)
        assert np.asarray(read_pickle(tmp_path / "a.pkl")).tolist() == [0, 1, 2]


ATTACKS = {
    "command": (lambda trap: Call(os.system, f"touch {trap}"), r"(posix|nt)\.system"),
    "eval": (lambda trap: Call(eval, f"open({str(trap)!r}, 'w')"), "builtins.eval"),
    "open": (lambda trap: Call(open, str(trap), "w"), r"_?io.open"),
    "numpy": (lambda trap: Call(np.savetxt, str(trap), [1]), r"numpy.*savetxt"),
    "method": (lambda trap: Call(np.ndarray.tofile, np.arange(3), str(trap)), "builtins.getattr"),
}


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("name", ATTACKS)
def test_mistake_27_a_malicious_pickle_runs_nothing(tmp_path, name, protocol):
    """Among good values; read as usual, it would leave a file."""
    attack, named = ATTACKS[name]
    trap, path = tmp_path / "trap", tmp_path / "bad.pkl"
    assert _bites(attack(trap), trap)
    path.write_bytes(pickle.dumps({"image_name": ["a"], "x": attack(trap)}, protocol))
    with pytest.raises(PedbenchError, match=rf"bad\.pkl: this pickle asks for '{named}'"):
        read_pickle(path)
    assert not trap.exists()


def _bites(attack, trap) -> bool:
    """Whether an ordinary reader falls into the trap, which is then set anew."""
    pickle.loads(pickle.dumps(attack))
    bitten = trap.exists()
    trap.unlink(missing_ok=True)
    return bitten


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"cos\nsystem\n(S'touch trap'\ntR.", "os.system"),  # protocol 0, by hand
        (b"(S'touch trap'\nios\nsystem\n.", "os.system"),  # INST
        (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", "numpy.ndarray.tofile"),
        (b"\x80\x04\x8c\x05numpy\x8c\x04load\x93.", "numpy.load"),
        (b"cbuiltins\ngetattr\n(cos\nsystem\nX\x06\x00\x00\x00systemtR.", "builtins.getattr"),
        (b"ccopyreg\n_reconstructor\n.", "copyreg._reconstructor"),
        (b"cnumpy._core.multiarray\nfromfile\n.", "numpy._core.multiarray.fromfile"),
    ],
)
def test_mistake_27_names_are_refused_before_they_are_looked_up(tmp_path, data, named):
    (tmp_path / "bad.pkl").write_bytes(data)
    with pytest.raises(PedbenchError, match=f"asks for '{named}'"):
        read_pickle(tmp_path / "bad.pkl")


def test_forged_objects_are_no_array(tmp_path):
    """Bytes posing as references to objects: numpy would follow them."""
    state = (1, (1,), np.dtype("O"), False, struct.pack("P", 0x41414141))
    forged = Call(*np.arange(1).__reduce__()[:1], np.ndarray, (0,), b"b")
    forged.__class__ = type("State", (Call,), {"__reduce__": lambda self: (*self.call, state)})
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(forged))
    with pytest.raises(ValueError, match="an array of type O8"):
        np.asarray(read_pickle(tmp_path / "bad.pkl"))


@pytest.mark.parametrize("data", [b"", b"\x80\x04", b"no pickle", pickle.dumps([1, 2])[:-1]])
def test_damaged_pickles_are_named(tmp_path, data):
    (tmp_path / "a.pkl").write_bytes(data)
    with pytest.raises(PedbenchError, match=r"a\.pkl: not a readable pickle"):
        read_pickle(tmp_path / "a.pkl")
    with pytest.raises(PedbenchError, match=r"b\.pkl: no such file"):
        read_pickle(tmp_path / "b.pkl")
