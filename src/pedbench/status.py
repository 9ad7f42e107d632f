"""``pedbench status``: how far a plan is, from its files alone; starts nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pedbench.config import plain
from pedbench.contracts import PedbenchError
from pedbench.files import HOLDER, holder_of, read_json
from pedbench.runs import RunFolder, refusal

STATES = ("finished", "refused", "running", "stopped", "failed", "waiting")
AFTER = {  # file or folder of results -> the step that makes it, in the order of the workflow
    "scored.json": "score",
    "long.parquet": "collect",
    "stats": "stats",
    "cost.csv": "cost",
    "selection.csv": "selection",
    "figures": "figures",
    "pictures": "pictures",
    "mlflow.json": "track",
    "tables": "tables",
}
TAIL = 4000  # bytes of a log that are read
SHOWN = 20  # runs that are listed of each state
STOPPED = re.compile(r"stopped, since|interrupted;")  # of a training that left in time
FAILED = re.compile(r"^(pedbench: (?!warning)|\w*(Error|Exception)\b|Killed|slurmstepd: error)")


@dataclass(frozen=True)
class Run:
    """One seed. ``detail``: where it is, or why it is not further."""

    experiment: str
    seed: int
    state: str
    detail: str = ""


@dataclass(frozen=True)
class Status:
    """``queue``: state -> number of own jobs of Slurm; None: there is no squeue, or no answer."""

    results: str
    runs: tuple[Run, ...]
    made: tuple[str, ...]  # of `AFTER`
    next: tuple[str, ...]
    free_gigabytes: float | None  # None: the folder is not there yet
    queue: Mapping[str, int] | None

    def as_json(self) -> dict[str, Any]:
        """For other programs: counts by state, place and method, and every run."""
        return {
            **asdict(self),
            "states": _counts(self.runs),
            "places": {name: _counts(runs) for name, runs in _grouped(self.runs, _place)},
            "methods": {name: _counts(runs) for name, runs in _grouped(self.runs, _method)},
        }

    def as_text(self) -> str:
        """For a terminal: tables of counts, what runs, what failed, what comes next."""
        experiments = len({run.experiment for run in self.runs})
        states = [state for state in STATES if _counts(self.runs)[state]]
        lines = [f"{self.results}: {experiments:,} experiments, {len(self.runs):,} runs", ""]
        named = [("all", list(self.runs))]
        named += [*_grouped(self.runs, _place), *_grouped(self.runs, _method)]
        width = max(len(name) for name, _ in named)
        lines.append(" ".join([" " * width, *(f"{state:>9}" for state in states)]))
        for name, runs in named:
            counts = _counts(runs)
            lines.append(" ".join([f"{name:{width}}", *(f"{counts[s]:9,}" for s in states)]))
        for state in ("running", "stopped", "failed"):
            lines += _listed(state, [run for run in self.runs if run.state == state])
        lines.append("")
        if self.queue is not None:
            jobs = ", ".join(f"{number} {state.lower()}" for state, number in self.queue.items())
            lines.append(f"your jobs in Slurm's queue: {jobs or 'none'}")
        lines.append(f"made: {', '.join(self.made) or 'nothing yet'}")
        lines.append(f"to come: {', '.join(self.next) or 'nothing'}")
        if self.free_gigabytes is not None:
            lines.append(f"free on the disk: {self.free_gigabytes:,.0f} GB")
        return "\n".join(lines)


def status(document: Mapping[str, Any]) -> Status:
    """Of the plan whose plan.json has this content."""
    results = Path(document["results"])
    runs = tuple(run for e in document["experiments"] for run in _runs(results, e))
    made = tuple(step for name, step in AFTER.items() if (results / name).exists())
    todo = any(run.state not in ("finished", "refused") for run in runs)
    coming = [step for step in AFTER.values() if todo or step not in made]
    free = shutil.disk_usage(results).free / 1e9 if results.is_dir() else None
    coming = ["train", *coming] if todo else coming
    return Status(str(results), runs, made, tuple(coming), free, _queue())


def _runs(results: Path, experiment: Mapping[str, Any]) -> Iterator[Run]:
    names = [experiment[key] for key in ("dataset", "split", "method", "variant")]
    key, variant = "/".join(names), Path(experiment["folder"])
    reason = refusal(variant)
    for seed in experiment["seeds"]:
        folder = RunFolder(variant / f"seed{seed}")
        if reason is not None:
            yield Run(key, seed, "refused", reason)
        elif folder.done.is_file():
            yield Run(key, seed, "finished")
        else:
            log = _log(results.joinpath("logs", "train", *names), seed)
            yield Run(key, seed, *_unfinished(folder, log))


def _unfinished(folder: RunFolder, log: Path | None) -> tuple[str, str]:
    """State and detail of a seed without results. Each start empties the log; of a killed process
    of another host the lock's file alone would say that it runs."""
    said, begun, holder = _last_line(log), folder.config.is_file(), holder_of(folder.lock)
    ended = FAILED.search(said)
    if ended and not STOPPED.search(said):
        return "failed", f"{log}: {said}"
    if not begun:
        return "waiting", ""
    if not ended and _may_live(holder):
        return "running", f"{_progress(folder)} ({holder})"
    return "stopped", _progress(folder)


def _may_live(holder: str) -> bool:
    """Whether the process that the lock's file names may go on: on this host we look, of others we
    know only what they wrote."""
    named = HOLDER.match(holder)
    if named is None or named[1] != socket.gethostname():
        return named is not None
    try:
        os.kill(int(named[2]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives and is another user's
        pass
    return True


def _progress(folder: RunFolder) -> str:
    """Epoch and step of the last entry in its log of metrics or of its checkpoint, whichever is
    later, and how long ago that was written."""
    begun, _ = _seen(folder.config, lambda path: {})
    _, protocol = _seen(folder.config, lambda path: plain(read_json(path))["protocol"])
    known = (
        _seen(folder.metrics, lambda path: _numbers(json.loads(_last_line(path)))),
        _seen(folder.checkpoint / "latest.json", _of_checkpoint),
    )
    written, at = max(known, key=lambda one: one[0])
    where = [f"epoch {at['epoch'] + 1} of {protocol.get('epochs', '?')}"] if "epoch" in at else []
    where += [f"step {at['step']:,}"] if "step" in at else []
    ago = _ago(time.time() - (written or begun or time.time()))
    return f"{', '.join(where) or 'begun'}, written {ago} ago"


def _seen(path: Path, read: Callable[[Path], dict[str, Any]]) -> tuple[float, dict[str, Any]]:
    """When ``path`` was written, and what it says; (0, {}) when it is not there, or no longer, or
    is not what it should be: the training goes on meanwhile."""
    try:
        return _time(path), read(path)
    except (OSError, PedbenchError, ValueError, LookupError, TypeError, AttributeError):
        return 0.0, {}


def _numbers(entry: dict[str, Any]) -> dict[str, int]:
    return {name: int(entry[name]) for name in ("epoch", "step") if name in entry}


def _of_checkpoint(pointer: Path) -> dict[str, int]:
    return {"step": int(re.findall(r"state-\w+-(\d+)", read_json(pointer)["file"])[0])}


def _time(path: Path) -> float:
    return path.stat().st_mtime


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _log(folder: Path, seed: int) -> Path | None:
    """The latest log of a training job that had this seed."""
    logs = [path for path in folder.glob("*.log") if str(seed) in path.stem.split("-")]
    return max(logs, key=_time, default=None)


def _last_line(path: Path | None) -> str:
    """The last that is not empty, or the end of it; what a progress bar overwrote is left out."""
    if path is None:
        return ""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - TAIL))
        text = stream.read().decode(errors="replace")
    lines = [line.rpartition("\r")[2].strip() for line in text.split("\n")]
    return next((line for line in reversed(lines) if line), "")


def _queue() -> dict[str, int] | None:
    command = ["squeue", "--me", "--noheader", "--format", "%T"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(sorted(Counter(found.stdout.split()).items()))


def _place(run: Run) -> str:
    return "/".join(run.experiment.split("/")[:2])


def _method(run: Run) -> str:
    return run.experiment.split("/")[2]


def _grouped(runs: tuple[Run, ...], name: Any) -> list[tuple[str, list[Run]]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(name(run), []).append(run)
    return list(groups.items())


def _counts(runs: tuple[Run, ...] | list[Run]) -> dict[str, int]:
    counted = Counter(run.state for run in runs)
    return {state: counted[state] for state in STATES}


def _listed(state: str, runs: list[Run]) -> list[str]:
    lines = [f"  {run.experiment}/seed{run.seed}: {run.detail}" for run in runs[:SHOWN]]
    more = [f"  and {len(runs) - SHOWN:,} more: --json lists all"] if len(runs) > SHOWN else []
    return ["", f"{state}:", *lines, *more] if runs else []
