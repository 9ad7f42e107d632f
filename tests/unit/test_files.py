"""Writes that fail, and files that are damaged."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pedbench.contracts import PedbenchError
from pedbench.files import canonical_json, digest, read_json, write_json, write_text


def test_full_disk_keeps_the_old_file_and_says_so(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def full(self, text, **_):
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(
        PedbenchError, match=r"a\.json: the disk .* is full.*Finished runs are untouched"
    ):
        write_json(path, {"new": 2})
    monkeypatch.undo()
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def killed(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"new": 2})
    monkeypatch.undo()
    assert read_json(path) == {"old": 1}


def test_a_file_in_the_folder_s_place_is_named(tmp_path):
    (tmp_path / "results").write_text("not a folder")
    with pytest.raises(
        PedbenchError, match="results/x/a.json: cannot be written.*'results' in the config"
    ):
        write_text(tmp_path / "results" / "x" / "a.json", "1")


def test_damaged_json_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"half": ')
    with pytest.raises(PedbenchError, match=r"a\.json: not valid JSON.*delete it"):
        read_json(path)


def test_digest_ignores_the_order_of_keys():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    with pytest.raises(ValueError):
        canonical_json({"a": float("nan")})
