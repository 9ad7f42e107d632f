"""A training job that is really killed, three times, ends with the bits of an undisturbed one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pedbench.config import read_protocol, resolve
from pedbench.files import file_sha256, read_json, write_json
from pedbench.intake import build_manifest
from pedbench.nn.backbone import load_backbone
from pedbench.registry import load_dataset

OPTIONS = {"seed": 3, "identities": 24, "images_per_identity": 10}
VALUES = {"epochs": 40, "checkpoint_steps": 3, "batch_size": 16}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("kill")
    dataset = load_dataset("synthetic_b")
    dataset.generate(root / "world", OPTIONS)
    build_manifest("synthetic_b", dataset, root / "world", OPTIONS, root / "b.parquet")
    weights = {"sha256": load_backbone("tiny_clip").weights_sha256, "file": None}
    write_json(root / "weights.json", weights)
    return root


def start(inputs: Path, name: str) -> subprocess.Popen:
    protocol = read_protocol("embedded", ("tiny_clip",))
    spec = resolve("promptpar", "region_deep", protocol, VALUES, "test")
    names = {"dataset": "synthetic_b", "split": "standard", "method": "promptpar", "variant": "x"}
    folder = inputs / name
    write_json(folder / "config.json", {**names, "backbone": "tiny_clip", **spec})
    words = ["train", "--settings", folder / "config.json", "--manifest", inputs / "b.parquet"]
    words += ["--weights", inputs / "weights.json", "--seeds", "0", "--keep-epochs"]
    return subprocess.Popen(
        [sys.executable, "-m", "pedbench.cli", *map(str, words)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=inputs,
    )  # fmt: skip


def steps_done(folder: Path) -> int:
    try:
        name = read_json(folder / "seed0/checkpoint/latest.json")["file"]
    except Exception:  # not yet there
        return 0
    return int(name.removesuffix(".safetensors").rsplit("-", 1)[1])


def test_three_kills_change_no_bit(inputs):
    assert start(inputs, "undisturbed").wait() == 0
    rng = np.random.default_rng(int.from_bytes(os.urandom(4), "big"))
    reached, killed = 0, inputs / "killed"
    for _ in range(3):
        job = start(inputs, "killed")
        target = reached + int(rng.integers(3, 60))
        while steps_done(killed) < target:
            assert job.poll() is None, "the job ended before it could be killed"
            time.sleep(0.01)
        job.send_signal(signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL
        reached = steps_done(killed)
        assert not (killed / "seed0/train.done.json").exists()
    assert start(inputs, "killed").wait() == 0
    epochs = [f"epochs/{number}.safetensors" for number in range(VALUES["epochs"])]
    for name in ("adapter.safetensors", "predictions.test.parquet", "metrics.jsonl", *epochs):
        undisturbed = inputs / "undisturbed/seed0" / name
        assert file_sha256(undisturbed) == file_sha256(killed / "seed0" / name), name
