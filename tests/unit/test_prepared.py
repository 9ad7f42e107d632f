"""Prepared pictures: the bits of the files, whole after a kill, and never those of others."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import namedtuple

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image

from pedbench import prepared as module
from pedbench import train as job
from pedbench.cli import _digest_by_torch, main
from pedbench.contracts import IMAGE_SIZES, OPENAI, TINY, PedbenchError
from pedbench.data import Images
from pedbench.files import file_sha256, read_json, write_json
from pedbench.manifest import Manifest, write_manifest
from pedbench.nn.backbone import load_backbone
from pedbench.prepared import Prepared, prepare

SIZE = (32, 16)
BOXES = [(0.0, 0.0, np.inf, np.inf), (5.4, -3.0, 20.0, 30.0), (2.0, 7.0, 300.0, 300.0)]


@pytest.fixture
def pictures(tmp_path, monkeypatch) -> Manifest:
    """Eleven noise pictures of three shapes, some of them boxes; four make a chunk."""
    monkeypatch.setattr(module, "CHUNK", 4)
    rng = np.random.default_rng(0)
    names = [f"{n:02d}.png" for n in range(11)]
    (tmp_path / "pictures").mkdir()
    for number, name in enumerate(names):
        shape = ((40, 30, 3), (30, 40, 3), (64, 20, 3))[number % 3]
        noise = rng.integers(0, 256, shape, np.uint8)
        Image.fromarray(noise).save(tmp_path / "pictures" / name)
    rows = pd.DataFrame({"image": names})
    rows[["x", "y", "width", "height"]] = [BOXES[n % 2] for n in range(11)]
    rows["split:s"] = "train"
    return Manifest("noise", tmp_path / "pictures", (), "digest", rows)


@pytest.mark.parametrize("how", ["stretch", "pad_square", "pad_square_released"])
def test_the_bits_are_those_of_decoding(pictures, tmp_path, how):
    size = SIZE if how == "stretch" else (24, 24)
    prepare(pictures, size, how, 2, tmp_path / "p/x.json")
    store = Prepared(tmp_path / "p/x.json", pictures, size, how)
    for positions in (np.arange(11), np.array([10, 3, 3])):
        some = pictures.take(positions)
        expected = Images.decoded(some, size, how)[torch.arange(len(positions))]
        found = Images(store.load, some.positions, size)
        assert torch.equal(found[torch.arange(len(positions))], expected)
    left = sorted(path.name for path in (tmp_path / "p").iterdir())
    assert left == [".x.lock", "x.bin", "x.json"]


def test_a_run_on_prepared_pictures_is_the_same_run(prepare_job, tmp_path, manifest):
    inputs = prepare_job(label_fraction=0.5)
    protocol = read_json(inputs[0])["protocol"]["resize"]["value"]
    prepare(manifest, (64, 32), protocol, 1, tmp_path / "x.json")
    digests = job.train(*inputs, seeds=[0], threads=1)
    first = {p.name: file_sha256(p) for p in (tmp_path / "v/seed0").glob("*.parquet")}
    shutil.rmtree(tmp_path / "v/seed0")
    assert job.train(*inputs, seeds=[0], threads=1, prepared=tmp_path / "x.json") == digests
    assert {p.name: file_sha256(p) for p in (tmp_path / "v/seed0").glob("*.parquet")} == first


@pytest.fixture
def prepare_job(request):
    return request.getfixturevalue("prepare")


def test_a_killed_preparation_goes_on_to_the_same_bytes(pictures, tmp_path, monkeypatch):
    whole, index = tmp_path / "whole.json", tmp_path / "x.json"
    prepare(pictures, SIZE, "stretch", 1, whole)
    seen: list[int] = []
    decoder = module.decoder

    def killed(stop: int):
        def watched(*arguments):
            load = decoder(*arguments)

            def counted(rows):
                if len(seen) == stop:
                    raise KeyboardInterrupt
                seen.append(int(rows[0]))
                return load(rows)

            return counted

        monkeypatch.setattr(module, "decoder", watched)

    for stop in (1, 2):
        killed(stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(pictures, SIZE, "stretch", 1, index)
        assert not index.exists() and not index.with_suffix(".bin").exists()
        with (tmp_path / ".x.bin.journal").open("a") as journal:
            journal.write("[2, 12")  # the line that was being written
    killed(9)
    prepare(pictures, SIZE, "stretch", 1, index)
    assert seen == [0, 4, 8]
    for ending in (".json", ".bin"):
        assert file_sha256(index.with_suffix(ending)) == file_sha256(whole.with_suffix(ending))
    assert not list(tmp_path.glob(".x.bin.*"))


def test_what_an_earlier_start_left_of_other_pictures_is_not_used(pictures, tmp_path):
    whole, index = tmp_path / "whole.json", tmp_path / "x.json"
    prepare(pictures, SIZE, "stretch", 1, whole)
    header = {k: v for k, v in read_json(whole).items() if k != "crc32"} | {"manifest": "other"}
    (tmp_path / ".x.bin.journal").write_text(json.dumps(header) + "\n[0, 1]\n")
    (tmp_path / ".x.bin.partial").write_bytes(bytes(whole.with_suffix(".bin").stat().st_size))
    prepare(pictures, SIZE, "stretch", 1, index)
    assert index.read_bytes() == whole.read_bytes()


def test_a_truncated_picture_is_named_and_the_rest_is_kept(pictures, tmp_path):
    victim = pictures.root / "06.png"
    good = victim.read_bytes()
    victim.write_bytes(good[:200])
    with pytest.raises(PedbenchError, match=r"06\.png: image is truncated"):
        prepare(pictures, SIZE, "stretch", 2, tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()
    assert len((tmp_path / ".x.bin.journal").read_text().splitlines()) == 2  # the first chunk
    victim.write_bytes(good)
    prepare(pictures, SIZE, "stretch", 2, tmp_path / "x.json")


def test_a_disk_that_is_too_small_is_refused_before_the_start(pictures, tmp_path, monkeypatch):
    free = module.size_in_bytes(11, SIZE) + module.SPARE - 1
    usage = namedtuple("usage", "total used free")(0, 0, free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(module, "decoder", None)
    with pytest.raises(PedbenchError, match=r"preparing noise needs 0.0 GB, and 0.3 GB are free"):
        prepare(pictures, SIZE, "stretch", 1, tmp_path / "x.json")
    assert not list(tmp_path.glob(".x.bin.partial"))


def test_damage_is_noticed_when_it_is_read(pictures, tmp_path):
    index, data = tmp_path / "x.json", tmp_path / "x.bin"
    prepare(pictures, SIZE, "stretch", 1, index)
    content = bytearray(data.read_bytes())
    content[5 * 3 * 32 * 16] ^= 1  # in the second chunk
    data.write_bytes(content)
    store = Prepared(index, pictures, SIZE, "stretch")
    store.load(np.array([3, 8]))
    with pytest.raises(PedbenchError, match=r"x\.bin: damaged; delete .*x\.json and run again"):
        store.load(np.array([6]))
    for cut in (content[:-1], content + b"0"):
        data.write_bytes(cut)
        with pytest.raises(PedbenchError, match=r"x\.bin: missing or cut off; delete .*x\.json"):
            Prepared(index, pictures, SIZE, "stretch")
    data.unlink()
    with pytest.raises(PedbenchError, match="missing or cut off"):
        Prepared(index, pictures, SIZE, "stretch")


def test_pictures_of_another_manifest_size_or_resizing_are_refused(pictures, tmp_path):
    index = tmp_path / "x.json"
    prepare(pictures, SIZE, "stretch", 1, index)
    other = dataclasses.replace(pictures, digest="other")
    for arguments in (
        (other, SIZE, "stretch"), (pictures, (16, 32), "stretch"), (pictures, SIZE, "pad_square"),
    ):  # fmt: skip
        with pytest.raises(PedbenchError, match="holds other pictures than the manifest of noise"):
            Prepared(index, *arguments)
    write_json(index, {"a": 1})
    with pytest.raises(PedbenchError, match="holds other pictures"):
        Prepared(index, pictures, SIZE, "stretch")


def test_the_command(manifest, tmp_path, capsys):
    write_manifest(manifest, tmp_path / "m.parquet")
    size = ("--size", "8", "8", "--resize", "pad_square", "--threads", "2")
    out = tmp_path / "p/x.json"
    assert (
        main(["prepare", "--manifest", str(tmp_path / "m.parquet"), *size, "--out", str(out)]) == 0
    )
    assert out.with_suffix(".bin").stat().st_size == len(manifest.rows) * 3 * 8 * 8
    assert "prepare noise: 100%" in capsys.readouterr().err


def test_image_sizes_are_those_of_the_models(monkeypatch):
    assert load_backbone(TINY).image_size == IMAGE_SIZES[TINY]
    for name, architecture in OPENAI.items():
        config = open_clip.get_model_config(architecture)
        assert config and IMAGE_SIZES[name] == (config["vision_cfg"]["image_size"],) * 2
    monkeypatch.setitem(IMAGE_SIZES, TINY, (1, 2))
    with pytest.raises(PedbenchError, match=r"tiny_clip is listed with \(1, 2\)"):
        _digest_by_torch(TINY, None)
