"""Leaving in time: signals and limits, through the command a cluster calls."""

from __future__ import annotations

import os
import signal
import time
from datetime import datetime
from pathlib import Path

import pytest

from pedbench import cli, stopping
from pedbench import train as job
from pedbench.checkpoint import Checkpoints
from pedbench.contracts import PedbenchError
from pedbench.engine import Fit
from pedbench.files import read_json
from pedbench.stopping import CODE, Stopped

CLUSTER = ("PEDBENCH_JOB_SECONDS", "PEDBENCH_REQUEUE", "RANK")


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    """No cluster's variable reaches a test."""
    for name in [*CLUSTER, *(n for n in os.environ if n.startswith("SLURM_"))]:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def start(prepare, tmp_path):
    """Calls `pedbench train` on one seed of 4 epochs of 2 steps; returns its exit code."""
    words = []
    for name, path in zip(
        ("settings", "manifest", "weights"),
        prepare(epochs=4, batch_size=24, selection="best_val_mA"),
        strict=True,
    ):
        words += [f"--{name}", str(path)]

    def command(folder: str = "v") -> int:
        settings = tmp_path / folder / "config.json"
        settings.parent.mkdir(exist_ok=True)
        settings.write_bytes((tmp_path / "v/config.json").read_bytes())
        return cli.main(["train", *words, "--settings", str(settings), "--seeds", "0"])

    return command


def outcome(folder: Path) -> dict:
    """Digests of all that the run left, but of the record of the machine."""
    marker = read_json(folder / "seed0/train.done.json")
    del marker["files"]["environment.json"]
    return marker


def interrupt(monkeypatch, place: object, name: str, number: int, call: int = 1) -> None:
    """Send this process the signal ``number`` when ``name`` of ``place`` is called for the
    ``call``-th time."""
    original, calls = getattr(place, name), []

    def interrupted(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    monkeypatch.setattr(place, name, interrupted)


def reached(folder: Path) -> str:
    return read_json(folder / "seed0/checkpoint/latest.json")["file"]


MOMENTS = {  # where the signal comes, and the checkpoint that is left then
    "start": (job, "load_backbone", 1, None),
    "step": (Fit, "_step", 5, "state-0-5.safetensors"),
    "validation": (job.par, "score", 1, "state-0-2.safetensors"),
    "prediction": (job, "write_predictions", 1, "state-0-8.safetensors"),
}


def test_a_signal_costs_no_bit(start, tmp_path, monkeypatch, capsys):
    assert start("undisturbed") == 0
    for moment, (place, name, call, left) in MOMENTS.items():
        number = signal.SIGUSR1 if moment == "step" else signal.SIGTERM
        before = signal.getsignal(number)
        with monkeypatch.context() as patch:
            interrupt(patch, place, name, number, call)
            assert start(moment) == CODE
        assert "the same command goes on from here" in capsys.readouterr().err
        assert signal.getsignal(number) == before
        if left is None:
            assert not (tmp_path / moment / "seed0/checkpoint").exists()
        else:
            assert reached(tmp_path / moment) == left
        assert not list(tmp_path.rglob("*.tmp"))
        assert start(moment) == 0
        assert outcome(tmp_path / moment) == outcome(tmp_path / "undisturbed")


def test_a_signal_after_the_last_step_is_not_lost(start, tmp_path, monkeypatch):
    """It comes when the loop no longer asks, and before the prediction."""
    with monkeypatch.context() as patch:
        save, saves = Checkpoints.save, []

        def last(self, tensors, meta):
            save(self, tensors, meta)
            saves.append(meta["step"])
            if meta["step"] == 8:
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(Checkpoints, "save", last)
        assert start() == CODE
    assert saves[-1] == 8 and not (tmp_path / "v/seed0/adapter.safetensors").exists()
    assert start() == 0


def test_a_time_limit_is_a_chain_of_jobs(start, tmp_path, monkeypatch):
    """Each job leaves after one step at least, so that the chain ends."""
    assert start("undisturbed") == 0
    monkeypatch.setenv("PEDBENCH_JOB_SECONDS", "0.000001")
    starts = 0
    while (code := start()) != 0:
        assert code == CODE
        starts += 1
    assert starts == 4 * 2
    assert outcome(tmp_path / "v") == outcome(tmp_path / "undisturbed")


def script(folder: Path, name: str, text: str) -> None:
    """A command of this name, first on PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_the_end_of_a_slurm_job_is_read(tools, monkeypatch):
    now = time.time()
    assert stopping.time_to_leave() is None
    monkeypatch.setenv("PEDBENCH_JOB_SECONDS", "3600")
    assert stopping.time_to_leave() == pytest.approx(now + 3600 - 120, abs=5)
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # which knows better
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(now) + 300))
    assert stopping.time_to_leave() == pytest.approx(now + 300 - 30, abs=5)
    for unknown in ("", "0"):
        monkeypatch.setenv("SLURM_JOB_END_TIME", unknown)
        end = datetime.fromtimestamp(int(now) + 7200).isoformat()
        script(tools, "squeue", f'[ "$3" = 7 ] && [ $SLURM_TIME_FORMAT = standard ] && echo {end}')
        assert stopping.time_to_leave() == pytest.approx(int(now) + 7200 - 120)
    for answer in ("echo N/A", "echo Invalid job id >&2; exit 1"):
        script(tools, "squeue", answer)
        assert stopping.time_to_leave() is None


def test_a_limit_that_is_no_number_is_named(start, monkeypatch, capsys):
    monkeypatch.setenv("PEDBENCH_JOB_SECONDS", "1h")
    assert start() == 1
    assert "PEDBENCH_JOB_SECONDS=1h: is not a number of seconds" in capsys.readouterr().err


@pytest.mark.parametrize("cause", ["limit", "USR1", "USR2", "TERM"])
def test_only_a_job_that_ran_out_of_time_goes_back_into_the_queue(
    cause, start, tools, tmp_path, monkeypatch
):
    """An element of an array by its own name: the number may be that of the whole array."""
    script(tools, "scontrol", f'echo "$@" >> {tmp_path}/asked')
    monkeypatch.setenv("PEDBENCH_REQUEUE", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "8")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + (0.001 if cause == "limit" else 99)))
    if cause != "limit":
        interrupt(monkeypatch, Fit, "_step", getattr(signal, f"SIG{cause}"))
    assert start() == CODE
    asked = tmp_path / "asked"
    assert (asked.read_text() if asked.exists() else "") == (
        "" if cause == "TERM" else "requeue 8_3\n"
    )


def test_where_requeueing_is_refused_the_job_just_leaves(start, tools, tmp_path, monkeypatch):
    assert not stopping.requeue()
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 0.001))
    monkeypatch.setenv("PEDBENCH_REQUEUE", "1")
    script(tools, "scontrol", f'echo "$@" >> {tmp_path}/asked; exit 1')
    assert not stopping.requeue() and start() == CODE
    assert (tmp_path / "asked").read_text() == "requeue 9\n" * 2
    monkeypatch.setenv("RANK", "1")  # the first process asks for all
    assert not stopping.requeue()
    assert (tmp_path / "asked").read_text() == "requeue 9\n" * 2


def test_a_job_that_the_workflow_did_not_submit_is_left_alone(tools, tmp_path, monkeypatch):
    """As a session of Slurm in which somebody runs Snakemake."""
    script(tools, "scontrol", f"touch {tmp_path}/asked")
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    assert not stopping.requeue() and not (tmp_path / "asked").exists()
    monkeypatch.setenv("PEDBENCH_REQUEUE", "1")
    assert stopping.requeue() and (tmp_path / "asked").exists()


def test_the_first_signal_is_the_reason():
    """A scheduler warns by SIGUSR1 and sends SIGTERM when its patience ends."""
    with stopping.watching(), pytest.raises(Stopped, match="SIGUSR1") as left:  # noqa: SIM117
        with stopping.deferred():
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert "SIGUSR1" in str(stopping.reason())
    assert not left.value.to_requeue and isinstance(left.value, PedbenchError)
