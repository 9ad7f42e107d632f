"""Training jobs that are really killed, in every stage, end with the bits of undisturbed ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pedbench.config import read_protocol, resolve
from pedbench.files import read_json, write_json
from pedbench.intake import build_manifest
from pedbench.nn.backbone import load_backbone
from pedbench.registry import load_dataset
from pedbench.stopping import CODE


@dataclass(frozen=True)
class Case:
    method: str
    variant: str
    dataset: str
    split: str
    options: dict[str, int]
    protocol: str
    values: dict[str, Any]
    kills: list[tuple[int, int, int, signal.Signals]]  # stage; so many (at least, below) steps on
    kept: set[str]  # files beside those of every run


CASES = {
    "promptpar": Case(
        "promptpar", "region_deep",
        "synthetic_b", "standard", {"seed": 3, "identities": 24, "images_per_identity": 10},
        "embedded", {"epochs": 40, "checkpoint_steps": 3, "batch_size": 16},
        [(0, 3, 60, s) for s in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)], set(),
    ),
    "clip_reid": Case(
        "clip_reid", "default",
        "synthetic_reid", "reid", {"seed": 3, "identities": 16, "images_per_identity": 4},
        "embedded_reid",
        {
            "epochs": 10, "prompt_epochs": 10, "checkpoint_steps": 3, "batch_size": 8,
            "random_erasing": 0.5, "sie": "cls", "lr": 1e-3, "prompt_lr": 1e-2,
        },
        [(0, 3, 15, signal.SIGKILL), (1, 3, 9, signal.SIGTERM), (1, 3, 9, signal.SIGKILL)],
        {"rankings.val.parquet", "rankings.test.parquet"},
    ),
}  # fmt: skip
KEPT = {
    *("config.json", "adapter.safetensors", "metrics.jsonl"),
    *("predictions.val.parquet", "predictions.test.parquet"),
}


def prepare(case: Case, root: Path) -> None:
    dataset = load_dataset(case.dataset)
    dataset.generate(root / "world", case.options)
    build_manifest(case.dataset, dataset, root / "world", case.options, root / "world.parquet")
    weights = {"sha256": load_backbone("tiny_clip").weights_sha256, "file": None}
    write_json(root / "weights.json", weights)


def start(case: Case, root: Path, name: str) -> subprocess.Popen:
    spec = resolve(
        case.method, case.variant, read_protocol(case.protocol, ("tiny_clip",)), case.values, "test"
    )
    place = {"dataset": case.dataset, "split": case.split, "backbone": "tiny_clip"}
    settings = root / name / "config.json"
    write_json(settings, {**place, "method": case.method, "variant": "x", **spec})
    words = ["train", "--settings", settings, "--manifest", root / "world.parquet"]
    words += ["--weights", root / "weights.json", "--seeds", "0", "--keep-epochs"]
    return subprocess.Popen(
        [sys.executable, "-m", "pedbench.cli", *map(str, words)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=root,
    )  # fmt: skip


def progress(folder: Path) -> tuple[int, int]:
    """Stage, and steps done in it, of the last checkpoint."""
    try:
        name = read_json(folder / "seed0/checkpoint/latest.json")["file"]
    except Exception:  # not yet there
        return 0, 0
    stage, step = name.removesuffix(".safetensors").split("-")[1:]
    return int(stage), int(step)


def outcome(folder: Path) -> dict[str, Any]:
    """Digests of all that the run left, but of the record of the machine."""
    marker = read_json(folder / "seed0/train.done.json")
    del marker["files"]["environment.json"]
    return marker


@pytest.mark.parametrize("name", [pytest.param("promptpar", marks=pytest.mark.system), "clip_reid"])
def test_kills_change_no_bit(name, tmp_path):
    case = CASES[name]
    prepare(case, tmp_path)
    assert start(case, tmp_path, "undisturbed").wait() == 0
    rng = np.random.default_rng(int.from_bytes(os.urandom(4), "big"))
    killed, reached = tmp_path / "killed", (0, 0)
    for stage, least, below, number in case.kills:
        job = start(case, tmp_path, "killed")
        done = reached[1] if reached[0] == stage else 0
        target = stage, done + int(rng.integers(least, below))
        while progress(killed) < target:
            assert job.poll() is None, "the job ended before it could be killed"
            time.sleep(0.01)
        job.send_signal(number)
        assert job.wait() == (CODE if number == signal.SIGTERM else -number)
        reached = progress(killed)
        assert reached[0] == stage, "the stage ended before the job could be killed"
        assert not (killed / "seed0/train.done.json").exists()
    assert start(case, tmp_path, "killed").wait() == 0
    assert outcome(killed) == outcome(tmp_path / "undisturbed")
    assert outcome(killed)["files"].keys() == KEPT | case.kept
    epochs = case.values["epochs"] + case.values.get("prompt_epochs", 0)
    assert len(outcome(killed)["epochs"]) == epochs
