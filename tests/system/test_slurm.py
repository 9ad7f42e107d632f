"""The smoke benchmark through the profile `slurm` on a real Slurm, on a hard day: a training is
killed, cancelled, requeued, loses its node and its time; Snakemake gets Ctrl-C. In the end every
number is that of an undisturbed run without Slurm."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest
from checkout import Checkout
from slurm import GPUS, PARTITION, Slurm, running_slurm
from tools import need, need_root

pytestmark = pytest.mark.system
PLAN = """\
presets: [tiny_clip, tiny_clip_reid, equal_budget, long]
methods: [zero_shot, linear_probe, {datasets: [synthetic_a/standard], methods: [lora]}]
"""
LONG = """\
for: {backbone: tiny_clip, protocol: embedded}
lora: {epochs: 100, checkpoint_steps: 10}
"""
TABLES = ("results/smoke/tables", "--configfile", "config/smoke.yaml", "config/hard_day.yaml")
RUNS = "results/smoke/runs"
LORA = f"{RUNS}/synthetic_a/standard/lora/default"
OWN = {"environment.json", "cost.json", "train.done.json"}  # machine, times, digests of these
ON_GPU = ("train", "cost", "selection", "pictures")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    for tool in ("munged", "slurmctld", "slurmd", "sbatch"):
        need(tool)
    need_root("starting Slurm")
    with running_slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def start():
    """`Checkout.start`; what still runs when the test ends is ended too."""
    started: list[subprocess.Popen[str]] = []

    def begin(checkout: Checkout, log: Path, *command: str) -> subprocess.Popen[str]:
        started.append(checkout.start(log, *command))
        return started[-1]

    yield begin
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def hard_day(root: Path) -> Checkout:
    """The smoke benchmark and a training that does not fit into one of its last jobs."""
    checkout = Checkout.make(root)
    (root / "config/hard_day.yaml").write_text(PLAN)
    (root / "config/presets/long.yaml").write_text(LONG)
    return checkout


@dataclass(frozen=True)
class Training:
    """A process `pedbench train`, seen in /proc."""

    pid: int
    settings: str
    variables: dict[str, str]

    @property
    def job(self) -> str:
        return self.variables["SLURM_JOB_ID"]

    @property
    def device(self) -> str:
        return self.variables["CUDA_VISIBLE_DEVICES"]


def trainings(root: Path) -> list[Training]:
    """Those that run in the checkout ``root``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended
            words = (process / "cmdline").read_text().split("\0")
            if "train" not in words or "--settings" not in words or "-c" in words:
                continue
            if Path(os.readlink(process / "cwd")) != root:
                continue
            pairs = (process / "environ").read_text().split("\0")
            variables = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
            settings = words[words.index("--settings") + 1]
            found.append(Training(int(process.name), settings, variables))
    return found


@dataclass
class Watch:
    """Notes every training of a checkout while it is entered."""

    root: Path
    seen: dict[int, Training] = field(default_factory=dict)
    together: list[list[str]] = field(default_factory=list)  # devices of those that ran at once
    over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _look(self) -> None:
        while not self.over.wait(0.5):
            now = trainings(self.root)
            self.seen |= {training.pid: training for training in now}
            self.together.append([training.device for training in now])


def wait_for(found: Callable[[], object], what: str, seconds: float = 400) -> object:
    """Its first value that is true."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)
    return value


def checkpoint(root: Path) -> float:
    """When the long training last saved itself; 0.0 before."""
    times = [0.0]
    for path in (root / LORA).glob("seed*/checkpoint/latest.json"):
        with suppress(OSError):  # it just ended
            times.append(path.stat().st_mtime)
    return max(times)


def long_training(root: Path, after: float) -> Training:
    """Once it saved itself later than ``after``."""
    wait_for(lambda: checkpoint(root) > after, "a checkpoint of the long training")
    running = (t for t in trainings(root) if t.settings.startswith(LORA))
    found = wait_for(lambda: next(running, None), "the long training")
    assert isinstance(found, Training)
    return found


def gone(training: Training) -> bool:
    return not Path(f"/proc/{training.pid}").exists()


def steps(job: str) -> list[str]:
    """What of a job is left on this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it ended
            found.append(path.read_text())
    return [line for line in found if line.startswith(f"slurmstepd: [{job}.")]


def outcome(root: Path) -> dict[str, bytes]:
    """Predictions, scores and all else that is a run's own, and the metrics of all runs."""
    files = [p for p in (root / RUNS).rglob("seed*/*") if p.is_file() and p.name not in OWN]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def restarts(slurm: Slurm) -> dict[str, int]:
    """Job -> how often Slurm began it anew."""
    shown = slurm.run("scontrol", "--oneliner", "show", "jobs")
    return {job: int(count) for job, count in re.findall(r"JobId=(\d+) .*? Restarts=(\d+)", shown)}


def test_a_hard_day_on_slurm_changes_no_bit(slurm, start, tmp_path, monkeypatch):
    local, cluster = hard_day(tmp_path / "local"), hard_day(tmp_path / "cluster")
    undisturbed = start(local, tmp_path / "local.log", "snakemake", "--cores", "1", *TABLES)
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PEDBENCH_POLL_SECONDS", "3")
    monkeypatch.setenv("PEDBENCH_PARTITION", PARTITION)
    monkeypatch.setenv("PEDBENCH_JOBS", "20")
    root, log = cluster.root, tmp_path / "cluster.log"
    command = ("snakemake", "--profile", "profiles/slurm", *TABLES)
    with Watch(root) as watch:
        snakemake = start(cluster, log, *command)

        victim = long_training(root, 0)
        os.kill(victim.pid, signal.SIGKILL)
        first = victim.job
        wait_for(lambda: gone(victim), "the end of the killed training")

        victim = long_training(root, checkpoint(root))
        assert victim.job != first  # a retry of Snakemake's
        slurm.run("scancel", victim.job)
        wait_for(lambda: gone(victim), "the end of the cancelled training")
        said = root / LORA.replace("/runs/", "/logs/train/") / "0-1.log"
        assert "stopped, since it got SIGTERM" in said.read_text()

        victim = long_training(root, checkpoint(root))
        assert victim.job != first
        slurm.run("scontrol", "requeue", victim.job)
        wait_for(lambda: gone(victim), "the end of the requeued training")

        again = long_training(root, checkpoint(root))
        assert again.job == victim.job and restarts(slurm)[again.job] == 1
        slurm.run("scontrol", "update", f"nodename={slurm.node}", "state=down", "reason=test")
        wait_for(lambda: not steps(again.job), "the end of the training whose node is down")
        slurm.run("scontrol", "update", f"nodename={slurm.node}", "state=resume")

        again = long_training(root, checkpoint(root))
        assert again.job == victim.job and restarts(slurm)[again.job] == 2
        began = slurm.run("squeue", "--noheader", "--format=%S", f"--jobs={again.job}")
        start_up = (datetime.now() - datetime.fromisoformat(began)).total_seconds()
        os.killpg(snakemake.pid, signal.SIGINT)
        assert snakemake.wait(300) != 0
        wait_for(lambda: not slurm.queue(), "an empty queue after Ctrl-C")
        assert not (root / "results/smoke/scored.json").exists()

        before = restarts(slurm)
        limit = math.ceil((start_up + 30) / 60)  # minutes, about half of them of training
        asked = (f"train:runtime={limit}", *(f"{rule}:gpu=1" for rule in ON_GPU))
        done = cluster.run(*command, "--set-resources", *asked)
        assert done.returncode == 0, done.stdout
    assert not slurm.queue()
    requeued = {job: n for job, n in restarts(slurm).items() if n and job not in before}
    assert requeued, f"the time limit of {limit} min ended no job"
    assert "Trying to restart" not in done.stdout  # requeueing costs no retry
    assert {training.device for training in watch.seen.values()} <= set(map(str, range(GPUS)))
    assert max(map(len, watch.together)) > 1
    assert all(len(devices) == len(set(devices)) for devices in watch.together)

    assert undisturbed.wait(600) == 0, (tmp_path / "local.log").read_text()
    expected = outcome(local.root)
    assert len([name for name in expected if "predictions." in name]) > 10
    assert outcome(root) == expected
