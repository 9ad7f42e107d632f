"""Full disks, damaged files, vanished datasets, second starts: what happens, and that the same
command then ends with the same bits."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pedbench import cli, files, prepared
from pedbench import train as job
from pedbench.collect import collect
from pedbench.contracts import PedbenchError
from pedbench.engine import Fit
from pedbench.files import file_sha256, only_writer, read_json
from pedbench.manifest import Manifest, write_manifest
from pedbench.score import score_runs

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Disk:
    """Is full from the ``full``-th file on that `write_atomic` writes, from 0, in the middle of it;
    or where ``late`` from that flush on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_freed()
        original, fsync = files.write_atomic, os.fsync

        def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
            def partly(temporary: Path) -> None:
                write(temporary)
                if len(self.names) > self.full and not self.late:
                    os.truncate(temporary, temporary.stat().st_size // 2)
                    raise FULL

            self.names.append(path.name)
            original(path, partly)

        def flush(descriptor: int) -> None:
            self.flushes += 1
            if self.flushes > self.full and self.late:
                raise FULL
            fsync(descriptor)

        for name, module in list(sys.modules.items()):
            if name.startswith("pedbench") and hasattr(module, "write_atomic"):
                monkeypatch.setattr(module, "write_atomic", write_atomic)
        monkeypatch.setattr(os, "fsync", flush)

    def fills(self, full: int, late: bool) -> None:
        self.names: list[str] = []
        self.flushes, self.full, self.late = 0, full, late

    def is_freed(self) -> None:
        self.fills(sys.maxsize, False)


@pytest.fixture
def start(prepare, tmp_path):
    """Calls `pedbench train` as a rule does, on one seed of re-identification; returns its exit
    code."""
    inputs = prepare(split="reid", epochs=1, batch_size=24, images_per_identity=2)
    spec = inputs[0].read_text()
    words = ["--spec", spec, "--keep-epochs", "--seeds", "0"]
    for name, path in zip(("settings", "manifest", "weights"), inputs, strict=True):
        words += [f"--{name}", str(path)]

    def command(folder: str = "v", *more: str) -> int:
        out = tmp_path / folder
        places = ["--settings", str(out / "config.json"), "--out", str(out / "seeds0.done.json")]
        return cli.main(["train", *words, *places, *more])

    return command


def outcome(folder: Path) -> dict[str, Any]:
    """Digests of all that the run left, but of the record of the machine."""
    marker = read_json(folder / "seed0/train.done.json")
    del marker["files"]["environment.json"]
    return marker


# Every kind of file that a training writes. In `state-{stage}-{step}` are the tensors.
KINDS = {
    *("config.json", "environment.json", "state.safetensors", "latest.json", "metrics.jsonl"),
    *("0.safetensors", "adapter.safetensors", "predictions.parquet", "rankings.parquet"),
    *("cost.json", "train.done.json", "seeds0.done.json"),
}


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.system)])
def test_a_disk_that_fills_up_at_a_file_costs_no_bit(every, start, tmp_path, monkeypatch, capsys):
    disk = Disk(monkeypatch)
    assert start("undisturbed") == 0
    count = len(disk.names)
    kinds = {re.sub(r"-\d+-\d+|\.(val|test)", "", name) for name in disk.names}
    assert kinds == KINDS
    for number in range(every - 1, count, every):
        for late in (False, True) if every == 1 else (number // every % 2 == 0,):
            disk.fills(number, late)
            assert start() == 1
            said = capsys.readouterr().err
            assert f"{disk.names[number]}: the disk (or your quota) is full" in said
            assert not list((tmp_path / "v").rglob("*.tmp"))
            disk.is_freed()
            assert start() == 0
            assert outcome(tmp_path / "v") == outcome(tmp_path / "undisturbed")
            assert not (tmp_path / "v/seed0/checkpoint").exists()
            shutil.rmtree(tmp_path / "v")


@dataclass(frozen=True)
class Step:
    call: Callable[[], object]
    made: tuple[str, ...]  # patterns of its files
    writes: int  # files by `write_atomic`
    flushes: int

    def files(self, root: Path) -> list[Path]:
        return [path for pattern in self.made for path in root.glob(pattern)]


def steps(root: Path, manifest: Manifest) -> dict[str, Step]:
    """The steps around the finished run ``v/seed0`` in ``root``."""
    listed, run = root / "manifest.parquet", root / "v/seed0"

    def prepare() -> None:
        prepared.prepare(manifest, (64, 32), "stretch", 1, root / "store.json")

    def score() -> None:
        score_runs([run], {"noise": listed}, root / "scored.json")

    def long() -> None:
        collect([run], root / "long.parquet")

    return {
        "manifest": Step(lambda: write_manifest(manifest, listed), ("manifest.parquet",), 1, 1),
        "store": Step(prepare, ("store.json", "store.bin"), 2, 2 + 5),  # of its 5 chunks each
        "scores": Step(score, ("scored.json", "v/seed0/scores.*.json"), 3, 3),
        "long": Step(long, ("long.parquet",), 1, 1),
    }


def test_nor_does_it_in_the_other_steps(start, tmp_path, manifest, monkeypatch):
    disk = Disk(monkeypatch)
    monkeypatch.setattr(prepared, "CHUNK", 16)
    assert start() == 0
    for name, step in steps(tmp_path, manifest).items():
        disk.is_freed()
        step.call()
        assert (len(disk.names), disk.flushes) == (step.writes, step.flushes), name
        clean = {path: file_sha256(path) for path in step.files(tmp_path)}
        for number in range(step.flushes):
            for late in (True, False) if number < step.writes else (True,):
                for path in step.files(tmp_path):
                    path.unlink()
                disk.fills(number, late)
                with pytest.raises(PedbenchError, match="disk .* is full"):
                    step.call()
                disk.is_freed()
                step.call()
                assert {path: file_sha256(path) for path in step.files(tmp_path)} == clean
        assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.glob(".store.bin.*"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_cut_file_is_named_with_the_way_out(start, tmp_path, manifest, monkeypatch, capsys):
    """Whose way is then gone."""
    assert start("undisturbed") == 0
    prepared.prepare(manifest, (64, 32), "stretch", 1, tmp_path / "store.json")
    store = ("--prepared", str(tmp_path / "store.json"))

    def refused(file: Path, way_out: str, call: Callable[[], int]) -> None:
        cut(file)
        assert call() == 1
        said = capsys.readouterr().err
        assert str(file) in said and way_out in said

    listed = tmp_path / "noise.parquet"
    refused(listed, "delete it and run again", start)
    write_manifest(manifest, listed)
    refused(tmp_path / "store.bin", "store.json and run again", lambda: start("v", *store))
    (tmp_path / "store.json").unlink()
    prepared.prepare(manifest, (64, 32), "stretch", 1, tmp_path / "store.json")
    with monkeypatch.context() as patch:
        patch.setattr(job, "write_features", None)  # ends after the last checkpoint
        with pytest.raises(TypeError):
            start("v", *store)
    checkpoint = tmp_path / "v/seed0/checkpoint"
    (state,) = checkpoint.glob("state-*")
    refused(state, f"delete the folder {checkpoint}", lambda: start("v", *store))
    shutil.rmtree(checkpoint)
    assert start("v", *store) == 0
    assert outcome(tmp_path / "v") == outcome(tmp_path / "undisturbed")
    run = tmp_path / "v/seed0"
    for name in ("rankings.val.parquet", "adapter.safetensors", "predictions.test.parquet"):
        whole = (run / name).read_bytes()
        refused(run / name, f"delete the folder {run}", start)
        (run / name).write_bytes(whole)
    every = steps(tmp_path, manifest)
    for name in ("manifest", "scores"):
        every[name].call()
    scores = run / "scores.val.json"
    whole = scores.read_bytes()
    cut(scores)
    with pytest.raises(PedbenchError, match="scores.val.json: not valid JSON .* delete it and run"):
        every["long"].call()
    scores.unlink()
    every["scores"].call()
    every["long"].call()
    assert scores.read_bytes() == whole


def test_a_dataset_that_vanishes(start, tmp_path, manifest, monkeypatch, capsys):
    """Before the start it is missed, unless its pictures are prepared. Later nobody looks."""
    assert start("undisturbed") == 0
    root = tmp_path / "there"
    shutil.copytree(manifest.root, root)
    write_manifest(replace(manifest, root=root), tmp_path / "noise.parquet")
    prepared.prepare(manifest, (64, 32), "stretch", 1, tmp_path / "store.json")

    def gone(*_: Any) -> Any:
        shutil.rmtree(root)
        return step(*_)

    step = Fit._step
    with monkeypatch.context() as patch:
        patch.setattr(Fit, "_step", lambda *a: gone(*a) if root.exists() else step(*a))
        assert start("during") == 0
    assert not root.exists()
    assert start("before") == 1
    assert re.search(r"/there/\d+\.png: image is missing; restore it", capsys.readouterr().err)
    assert start("before", "--prepared", str(tmp_path / "store.json")) == 0
    for folder in ("during", "before"):
        assert outcome(tmp_path / folder) == outcome(tmp_path / "undisturbed")


def test_a_second_process_is_told_who_trains(start, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    lines = "\n".join(
        (
            "import pathlib, sys",
            "from pedbench.runs import RunFolder",
            "with RunFolder(pathlib.Path(sys.argv[1])).alone():",
            "    print(flush=True)",
            "    input()",
        )
    )
    words = [sys.executable, "-c", lines, str(tmp_path / "v/seed0")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert start() == 1
        said = capsys.readouterr().err
        assert f"{tmp_path}/v/seed0: another process trains there (host " in said
        assert (
            f"process {other.pid}, job 4711, since 20" in said and "wait for it or end it" in said
        )
        assert not (tmp_path / "v/seed0").exists()
        other.kill()  # the lock ends with it, and the file stays
    assert start() == 0


@pytest.mark.parametrize("freed", [True, False])
def test_the_lock_of_a_dead_node_is_waited_for(freed, tmp_path, monkeypatch, capsys):
    """As NFS keeps it until a lease ends."""
    lock, slept = tmp_path / ".x.lock", []
    with lock.open("w") as other:
        assert files.take(other)
        other.write("host dead, process 3, since then\n")
        other.flush()

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            if freed and len(slept) == 3:
                fcntl.flock(other, fcntl.LOCK_UN)

        monkeypatch.setattr(files.time, "sleep", sleep)
        if freed:
            with only_writer(lock, "trains", tmp_path / "x"):
                assert f"process {os.getpid()}," in files.holder_of(lock)
        else:
            with pytest.raises(PedbenchError, match="another process trains there .host dead"):  # noqa: SIM117
                with only_writer(lock, "trains", tmp_path / "x"):
                    raise AssertionError
        assert sum(slept) == (3 if freed else 120)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "a process of dead trains in" in said


def test_the_lock_of_a_job_names_it_on_every_cluster(tmp_path, monkeypatch):
    for name in files.JOBS:
        monkeypatch.delenv(name, raising=False)
    for name in (None, *files.JOBS):
        with monkeypatch.context() as patch:
            if name:
                patch.setenv(name, f"7.{name}")
            with only_writer(tmp_path / ".x.lock", "trains", tmp_path / "x"):
                said = files.holder_of(tmp_path / ".x.lock")
            assert (f", job 7.{name}, since" if name else f"{os.getpid()}, since") in said


def test_settings_that_stand_already_are_left_alone(start, tmp_path):
    """Jobs of other seeds share the file."""
    path = tmp_path / "v/config.json"
    path.write_text("{}\n")
    assert start() == 0
    written = path.stat()
    assert written.st_size > 3
    assert start() == 0
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_what_a_killed_training_left_of_a_file_is_dropped(start, tmp_path):
    assert start() == 0
    (tmp_path / "v/seed0/train.done.json").unlink()
    left = tmp_path / "v/seed0/.adapter.safetensors.0a1b2c3d.tmp"
    left.write_bytes(b"half")
    assert start() == 0 and not left.exists()


@pytest.mark.parametrize("error", files.UNLOCKABLE)
def test_without_locks_it_goes_on_with_a_warning(error, tmp_path, monkeypatch, capsys):
    def flock(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with only_writer(tmp_path / ".x.lock", "trains", tmp_path / "x"):
        said = capsys.readouterr().err
    assert "has no locks; see to it that no second process trains in" in said


def test_other_errors_of_a_lock_are_explained(tmp_path, monkeypatch):
    def flock(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with pytest.raises(PedbenchError, match=".x.lock: cannot be written"):  # noqa: SIM117
        with only_writer(tmp_path / ".x.lock", "trains", tmp_path / "x"):
            raise AssertionError
