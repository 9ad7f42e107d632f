"""`pedbench train --processes 2` as a user calls it: against one process, told to leave, killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pedbench.config import read_protocol, resolve
from pedbench.files import file_sha256, read_json
from pedbench.stopping import CODE

pytestmark = pytest.mark.system
OPTIONS = {"seed": 1, "identities": 16, "images_per_identity": 8}  # 64 images to train
CLOSE = 1e-4  # of logits, after 12 steps of AdamW; measured: 2e-6
CHANGES = {"epochs": 3, "batch_size": 15, "crop_padding": 2, "head_init": "random"}
CHANGES |= {"selection": "best_val_mA", "checkpoint_steps": 1}


class Job:
    """Runs `pedbench train` on the inputs in ``folder``; each name has a run folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.finish("manifest", "synthetic_a", "--root", "data", "--options", json.dumps(OPTIONS),
                    "--out", "manifest.parquet")  # fmt: skip
        self.finish("weights", "tiny_clip", "--out", "weights.json")
        spec = resolve(
            "lora", "default", read_protocol("embedded", ("tiny_clip",)), CHANGES, "test"
        )
        names = {"dataset": "synthetic_a", "split": "standard", "method": "lora"}
        self.spec = {**names, "variant": "default", "backbone": "tiny_clip", **spec}

    def start(self, *words: str) -> subprocess.Popen[str]:
        environment = {n: v for n, v in os.environ.items() if n not in ("RANK", "WORLD_SIZE")}
        environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.Popen(
            [sys.executable, "-m", "pedbench.cli", *words],
            cwd=self.folder, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def finish(self, *words: str, code: int = 0) -> str:
        process = self.start(*words)
        said, _ = process.communicate(timeout=600)
        assert process.returncode == code, said
        return said

    def train(self, name: str, processes: int, *more: str) -> tuple[str, ...]:
        """The words of the command."""
        return (
            "train", "--settings", f"{name}/config.json", "--spec", json.dumps(self.spec),
            "--manifest", "manifest.parquet", "--weights", "weights.json", "--seeds", "0",
            "--processes", str(processes), "--out", f"{name}/done.json", *more,
        )  # fmt: skip

    def begun(self, name: str) -> subprocess.Popen[str]:
        """Two processes that have a checkpoint."""
        process = self.start(*self.train(name, 2))
        pointer = self.folder / name / "seed0/checkpoint/latest.json"
        deadline = time.monotonic() + 300
        while not pointer.exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert process.poll() is None
        return process

    def seed(self, name: str) -> Path:
        return self.folder / name / "seed0"

    def logits(self, name: str) -> np.ndarray:
        table = pq.read_table(self.seed(name) / "predictions.test.parquet").to_pandas()
        return table.drop(columns="image").to_numpy()

    def bits(self, name: str) -> dict[str, str]:
        files = ("adapter.safetensors", "metrics.jsonl", "predictions.test.parquet", "config.json")
        return {file: file_sha256(self.seed(name) / file) for file in files}


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    job = Job(tmp_path_factory.mktemp("processes"))
    job.finish(*job.train("two", 2))
    return job


def members(parent: int) -> list[int]:
    """The processes that train for ``parent``."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status, words = (path / "status").read_text(), (path / "cmdline").read_text()
        except OSError:  # it ended
            continue
        if f"\nPPid:\t{parent}\n" in status and "spawn_main" in words:
            found.append(int(path.name))
    return found


def gone(process: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True


def test_two_processes_predict_what_one_does(job):
    job.finish(*job.train("one", 1))
    one, two = job.logits("one"), job.logits("two")
    assert np.abs(one - two).max() < CLOSE < one.std()
    environments = [read_json(job.seed(name) / "environment.json") for name in ("one", "two")]
    assert [found["processes"] for found in environments] == [1, 2]
    digests = [read_json(job.folder / name / "done.json")["0"] for name in ("one", "two")]
    assert digests[0] != digests[1]  # rounding differs, so it is another run


def test_finished_seeds_are_kept(job):
    before = (job.seed("two") / "adapter.safetensors").stat().st_mtime_ns
    assert job.finish(*job.train("two", 2)).count("finished before, kept") == 1
    assert (job.seed("two") / "adapter.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_told_to_leave_they_save_and_go_on_to_the_same_bits(number, job):
    name = f"told{int(number)}"
    process = job.begun(name)
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == CODE, said
    assert said.count("the same command goes on from here") == 1
    assert "Traceback" not in said
    assert "resumed at stage" in job.finish(*job.train(name, 2))
    assert job.bits(name) == job.bits("two")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("who", ["parent", "first", "second"])
def test_killed_they_leave_nobody_and_go_on_to_the_same_bits(who, job):
    process = job.begun(who)
    children = sorted(members(process.pid))
    assert len(children) == 2
    os.kill({"parent": process.pid, "first": children[0], "second": children[1]}[who],
            signal.SIGKILL)  # fmt: skip
    said, _ = process.communicate(timeout=120)
    if who != "parent":
        assert process.returncode == 137 and "was ended by SIGKILL" in said
    deadline = time.monotonic() + 60
    while not all(gone(child) for child in children):
        assert time.monotonic() < deadline, "a process goes on alone"
        time.sleep(0.1)
    job.finish(*job.train(who, 2))
    assert job.bits(who) == job.bits("two")


def test_a_mistake_is_said_once(job):
    job.spec["protocol"]["batch_size"]["value"], before = 1, job.spec["protocol"]["batch_size"]
    try:
        said = job.finish(*job.train("mistaken", 2), code=1)
    finally:
        job.spec["protocol"]["batch_size"] = before
    assert said.count("lower accumulate or raise batch_size") == 1 and "Traceback" not in said
