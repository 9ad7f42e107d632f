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
OUT_OF_TIME = "the time limit of its cluster job is near"
GOT = {
    signal.SIGTERM: "it got SIGTERM",
    signal.SIGUSR1: "it got SIGUSR1, by which schedulers announce a time limit",
    signal.SIGUSR2: "it got SIGUSR2, by which schedulers announce a time limit",  # LSF, SGE
}
REASONS = (OUT_OF_TIME, *GOT.values())
MARGIN = 120.0  # seconds before the limit, but no more than a tenth of what was left at the start


class Stopped(PedbenchError):
    """The job was asked to leave. What it did is saved; the same command goes on from there."""

    def __init__(self, where: str, reason: str, got_on: bool = False) -> None:
        """``got_on``: whether this start got further than the one before, so that a chain of
        them comes to an end."""
        super().__init__(f"{where}: stopped, since {reason}; the same command goes on from here")
        self.to_requeue = got_on and reason != GOT[signal.SIGTERM]


class _Watch:
    """Signals belong to the process, and so does what is known of them."""

    signal: signal.Signals | None = None
    end: float | None = None  # by `time.time()`
    deferred = False


_watch = _Watch()


@contextmanager
def watching() -> Iterator[None]:
    """Until its end the signals of `GOT` raise `Stopped`, or inside `deferred` only make `reason`
    say so. To be entered in the main thread.

    Raises PedbenchError where the environment gives a limit that is no number.
    """
    before = {number: signal.signal(number, _note) for number in GOT}
    try:
        _watch.end = time_to_leave()
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _watch.signal = _watch.end = None


@contextmanager
def deferred() -> Iterator[None]:
    """Who enters this asks for `reason` now and then, and leaves by itself; a signal that comes
    after the last time raises `Stopped` at the end."""
    _watch.deferred = True
    try:
        yield
    finally:
        _watch.deferred = False
    if _watch.signal is not None:
        raise Stopped("pedbench", GOT[_watch.signal])


def reason() -> str | None:
    """Why this process has to leave; None: it may go on."""
    if _watch.signal is not None:
        return GOT[_watch.signal]
    if _watch.end is not None and time.time() >= _watch.end:
        return OUT_OF_TIME
    return None


def _note(number: int, frame: FrameType | None) -> None:
    _watch.signal = _watch.signal or signal.Signals(number)  # SIGUSR1 is often followed by SIGTERM
    if not _watch.deferred:
        raise Stopped("pedbench", GOT[_watch.signal])


def time_to_leave() -> float | None:
    """When a job of a cluster has to save itself, as `time.time()` counts; None: no limit is known.

    Slurm tells its end; the submit command of another scheduler sets ``PEDBENCH_JOB_SECONDS``,
    counted from here. Raises PedbenchError when they are no numbers.
    """
    now, end = time.time(), _end()
    return None if end is None else end - min(MARGIN, max(0.0, end - now) / 10)


def _end() -> float | None:
    if job := _slurm_job():
        return _number("SLURM_JOB_END_TIME") or _slurm_end(job)
    seconds = _number("PEDBENCH_JOB_SECONDS")
    return time.time() + seconds if seconds else None


def _number(name: str) -> float | None:
    """Of the environment; 0 and nothing mean that there is none."""
    value = os.environ.get(name)
    try:
        return float(value) if value else None
    except ValueError:
        raise PedbenchError(f"{name}={value}: is not a number of seconds; unset it") from None


def _slurm_job() -> str | None:
    """Its name. The plain number of an array's job may be that of the whole array."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{what}_ID") for what in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def _slurm_end(job: str) -> float | None:
    """Older releases tell it only on request."""
    command = ["squeue", "--noheader", "--jobs", job, "--format", "%e"]
    iso = {**os.environ, "SLURM_TIME_FORMAT": "standard"}
    try:
        found = subprocess.run(
            command, env=iso, capture_output=True, text=True, check=True, timeout=60
        )
        return datetime.fromisoformat(found.stdout.strip()).timestamp()
    except (OSError, subprocess.SubprocessError, ValueError):  # no limit, or no answer
        return None


def requeue() -> bool:
    """Put this job of Slurm back into the queue, where it keeps its number: a training longer than
    the partition allows is a chain of such jobs. False elsewhere, and where Slurm refuses.

    Only a job that the workflow submitted: it sets ``PEDBENCH_REQUEUE`` for them. A job in which
    somebody runs Snakemake is left alone.
    """
    job, first = _slurm_job(), os.environ.get("RANK", "0") == "0"
    if job is None or not first or os.environ.get("PEDBENCH_REQUEUE") != "1":
        return False
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return False
    return True
