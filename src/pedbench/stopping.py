"""Leaving in time: a signal or the coming end of a cluster job lets training save itself first."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from types import FrameType

from pedbench.contracts import PedbenchError

CODE = 85  # exit status: saved, the same command goes on (HTCondor's self-checkpointing jobs)
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
OUT_OF_TIME = "the time limit of its cluster job is near"
MARGIN = 120.0  # seconds before the limit, but no more than a tenth of what was left at the start


class Stopped(PedbenchError):
    """The job was asked to leave. What it did is saved; the same command goes on from there."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: stopped, since {reason}; the same command goes on from here")
        self.out_of_time = reason == OUT_OF_TIME


class _Watch:
    """Signals belong to the process, and so does what is known of them."""

    signal: int | None = None
    end: float | None = None  # by `time.time()`
    deferred = False


_watch = _Watch()


@contextmanager
def watching() -> Iterator[None]:
    """Until its end SIGTERM and SIGUSR1 raise `Stopped`, or inside `deferred` only make `reason`
    say so. To be entered in the main thread."""
    _watch.signal, _watch.end = None, time_to_leave()
    before = [signal.signal(number, _note) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Who enters this asks for `reason` now and then, and leaves by itself."""
    _watch.deferred = True
    try:
        yield
    finally:
        _watch.deferred = False


def reason() -> str | None:
    """Why this process has to leave; None: it may go on."""
    if _watch.signal is not None:
        return f"it got {signal.Signals(_watch.signal).name}"
    if _watch.end is not None and time.time() >= _watch.end:
        return OUT_OF_TIME
    return None


def _note(number: int, frame: FrameType | None) -> None:
    _watch.signal = number
    if not _watch.deferred:
        raise Stopped("pedbench", str(reason()))


def time_to_leave() -> float | None:
    """When a job of a cluster has to save itself, as `time.time()` counts; None: no limit is known.

    Slurm tells its end; the submit command of another scheduler sets ``PEDBENCH_JOB_SECONDS``.
    """
    now, end = time.time(), _end()
    return None if end is None else end - min(MARGIN, (end - now) / 10)


def _end() -> float | None:
    if end := os.environ.get("SLURM_JOB_END_TIME"):
        return float(end)
    if job := os.environ.get("SLURM_JOB_ID"):
        return _slurm_end(job)
    seconds = os.environ.get("PEDBENCH_JOB_SECONDS")
    return time.time() + float(seconds) if seconds else None


def _slurm_end(job: str) -> float | None:
    """Older releases tell it only on request."""
    command = ["squeue", "--noheader", "--jobs", job, "--format", "%e"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return datetime.fromisoformat(found.stdout.strip()).timestamp()
    except (OSError, subprocess.SubprocessError, ValueError):  # no limit, or no answer
        return None


def requeue() -> bool:
    """Put this job of Slurm back into the queue, where it keeps its number: a training longer than
    the partition allows is a chain of such jobs. False elsewhere, and where Slurm refuses."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("RANK", "0") != "0":
        return False
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return False
    return True
