"""The profile for other schedulers, with a scheduler that is three scripts on this machine."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from checkout import Checkout

pytestmark = pytest.mark.system
RUN = "results/smoke/runs/synthetic_a/standard/linear_probe/default"
TARGET = (f"{RUN}/seeds0-1.done.json", "--configfile", "config/smoke.yaml")
SUBMIT = """\
#!/bin/sh
# threads, gpus, script
job=$(mktemp -d "$JOBS/XXXXXX")
echo "$1 $2 $PEDBENCH_JOB_SECONDS $PEDBENCH_REQUEUE" > "$job/asked"
setsid sh -c 'echo $$ > "$0/pid"; sh "$1"; echo $? > "$0/status"' "$job" "$3" > "$job/log" 2>&1 &
while ! test -s "$job/pid"; do sleep 0.05; done
basename "$job"
"""
STATUS = """\
#!/bin/sh
job=$JOBS/$1
if test -s "$job/status"; then
    test "$(cat "$job/status")" = 0 && echo success || echo failed
elif kill -0 "$(cat "$job/pid")" 2> /dev/null; then echo running
else echo failed
fi
"""
CANCEL = """\
#!/bin/sh
for id in "$@"; do kill -s TERM -- "-$(cat "$JOBS/$id/pid")"; done
"""


@pytest.fixture
def scheduler(tmp_path, monkeypatch):
    """The folder of its jobs."""
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    monkeypatch.setenv("JOBS", str(jobs))
    monkeypatch.setenv("PEDBENCH_POLL_SECONDS", "1")
    for name, script in (("submit", SUBMIT), ("status", STATUS), ("cancel", CANCEL)):
        path = tmp_path / name
        path.write_text(script)
        path.chmod(0o755)
        monkeypatch.setenv(f"PEDBENCH_{name.upper()}", str(path))
    submit = f"{tmp_path}/submit {{threads}} {{resources.gpu}}"
    monkeypatch.setenv("PEDBENCH_SUBMIT", submit)
    return jobs


def wait_for(found, what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)


def test_submits_cancels_goes_on(scheduler, tmp_path):
    checkout, log = Checkout.make(tmp_path / "pedbench"), tmp_path / "log"
    command = ("snakemake", "--profile", "profiles/cluster-generic", *TARGET)
    seeds = checkout.root / RUN

    snakemake = checkout.start(log, *command)
    wait_for(lambda: list(seeds.glob("seed*/config.json")), "a training")
    os.killpg(snakemake.pid, signal.SIGINT)
    assert snakemake.wait(60) != 0
    wait_for(lambda: not alive(scheduler), "the end of the cancelled job")
    assert not (checkout.root / TARGET[0]).exists()

    done = checkout.run(*command)
    assert done.returncode == 0, done.stdout
    assert (checkout.root / TARGET[0]).exists()
    asked = sorted(path.read_text().split() for path in scheduler.glob("*/asked"))
    assert [words[:2] for words in asked] == [["1", "1"], ["1", "1"], ["8", "0"]], log.read_text()
    assert all(int(seconds) >= 30 and own == "1" for _, _, seconds, own in asked)


def alive(jobs: Path) -> list[str]:
    """Processes of jobs, of whatever group they made themselves."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"JOBS={jobs}".encode() in path.read_bytes():
                found.append((path.parent / "cmdline").read_text())
        except OSError:  # it ended
            continue
    return [line for line in found if "pedbench" in line]
