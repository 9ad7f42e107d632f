"""Writes that fail, and files that are damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pedbench.checkpoint import save_tensors
from pedbench.contracts import Attribute, PedbenchError
from pedbench.files import (
    canonical_json,
    digest,
    empty_folder,
    read_json,
    write_json,
    write_text,
)
from pedbench.manifest import Manifest
from pedbench.predict import write_predictions


def _json(path: Path, value: int) -> None:
    write_json(path, {"value": value})


def _tensors(path: Path, value: int) -> None:
    save_tensors(path, {"weight": torch.full((3,), value)}, {"step": value})


def _predictions(path: Path, value: int) -> None:
    hat = Attribute("hat", "head", "wearing a hat", "without a hat")
    manifest = Manifest("a", Path("a"), (hat,), "0", pd.DataFrame({"image": ["0.png"]}))
    write_predictions(path, manifest, np.full((1, 1), value), "digest")


every_writer = pytest.mark.parametrize("write", [_json, _tensors, _predictions])


@every_writer
def test_full_disk_keeps_the_old_file_and_says_so(tmp_path, write, monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is not there")
    path = tmp_path / "file"
    write(path, 1)
    old = path.read_bytes()
    monkeypatch.setattr("pedbench.files.secrets.token_hex", lambda size: "own")
    (tmp_path / ".file.own.tmp").symlink_to("/dev/full")  # where the writer writes
    with pytest.raises(PedbenchError, match="file: the disk .* is full.*Finished runs are untouch"):
        write(path, 2)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
    write(path, 2)
    assert path.read_bytes() != old


@every_writer
def test_interrupted_write_leaves_the_old_file_alone(tmp_path, monkeypatch, write):
    path = tmp_path / "file"
    write(path, 1)
    old = path.read_bytes()

    def interrupted(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(path, 2)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_folder_s_place_is_named(tmp_path):
    (tmp_path / "results").write_text("not a folder")
    with pytest.raises(
        PedbenchError, match="results/x/a.json: cannot be written.*'results' in the config"
    ):
        write_text(tmp_path / "results" / "x" / "a.json", "1")


def test_a_folder_is_emptied_and_a_file_in_its_place_is_named(tmp_path):
    write_text(tmp_path / "out/left/over", "x")
    for _ in range(2):
        empty_folder(tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []
    write_text(tmp_path / "file", "x")
    with pytest.raises(PedbenchError, match=r"file: cannot be written"):
        empty_folder(tmp_path / "file")


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
