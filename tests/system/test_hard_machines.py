"""Hard days on the real thing: Snakemake on a disk that is full or read-only, beside another one,
killed, out of memory, on a file system that is late, and under a random killer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from chaos import differences
from chaos import main as chaos
from checkout import Checkout

pytestmark = pytest.mark.system
RESULTS = Path("results/smoke")
TABLES, SCORES = f"{RESULTS}/tables", f"{RESULTS}/long.parquet"
PLAN = ("--configfile", "config/smoke.yaml", "--config", "datasets=[synthetic_a/standard]")
PLAN = (*PLAN, "seeds=[0]")
MEMORY = Path("/sys/fs/cgroup/memory")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Where an undisturbed run made its scores."""
    checkout = Checkout.make(tmp_path_factory.mktemp("clean") / "pedbench")
    checkout.snakemake(SCORES, *PLAN)
    return checkout


@pytest.fixture
def checkout(tmp_path):
    return Checkout.make(tmp_path / "pedbench")


def same_scores(clean: Checkout, other: Checkout) -> bool:
    """Whether ``other`` made all the files that come before them, to the same bits. The clean one
    may have more by now."""
    here, there = clean.root / RESULTS, other.root / RESULTS
    found = [line for line in differences(here, there) if not line.endswith("in the clean run")]
    return not found and (there / "long.parquet").is_file()


def until(done: Callable[[], bool], job: subprocess.Popen[str]) -> None:
    """Wait; fails when ``job`` ends before."""
    while not done():
        assert job.poll() is None, "it ended before"
        time.sleep(0.02)


@contextmanager
def disk(place: Path, size: str) -> Iterator[None]:
    """A file system of its own."""
    place.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounts are not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def again(place: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(place)], check=True)


def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(clean, checkout):
    """It fills up at another file each time, until there is room for all."""
    place, kilobytes, failures = checkout.root / RESULTS, 64, 0
    module = checkout.root / "src/pedbench/prepared.py"
    text = module.read_text()
    assert "SPARE = 2**28" in text  # which would refuse a disk as small as these
    module.write_text(text.replace("SPARE = 2**28", "SPARE = 0"))
    with disk(place, f"{kilobytes}k"):
        while (done := checkout.run("snakemake", "--cores", "2", TABLES, *PLAN)).returncode:
            said = ("is full", "No space left", "make room")
            assert any(words in done.stdout for words in said), done.stdout
            failures, kilobytes = failures + 1, kilobytes * 2
            assert kilobytes < 100_000
            again(place, f"size={kilobytes}k")
        assert failures >= 5
        clean.snakemake(TABLES, *PLAN)
        assert not list(differences(clean.root / RESULTS, place))
        assert not list(place.rglob("*.tmp"))


def test_a_read_only_results_folder_is_refused(clean, checkout):
    place = checkout.root / RESULTS
    with disk(place, "1g"):  # preparing wants some to spare
        checkout.snakemake(f"{RESULTS}/manifests/synthetic_a.parquet", *PLAN)
        again(place, "ro")
        done = checkout.run("snakemake", "--cores", "2", SCORES, *PLAN)
        assert done.returncode == 1 and "results folder cannot be used" in done.stdout
        assert "Traceback" not in done.stdout
        again(place, "rw")
        checkout.snakemake(SCORES, *PLAN)
        assert same_scores(clean, checkout)


def test_a_second_snakemake_is_told_of_the_first(clean, checkout, tmp_path):
    """From another checkout, whose own lock knows nothing; a dry run may look. The first one is
    killed, and the next call just goes on."""
    other, place = Checkout.make(tmp_path / "other"), checkout.root / RESULTS
    (other.root / "results").symlink_to(checkout.root / "results")
    first = checkout.start(tmp_path / "first.log", "snakemake", "--cores", "2", SCORES, *PLAN)
    until((place / ".lock").is_file, first)
    second = other.run("snakemake", "--cores", "2", SCORES, *PLAN)
    assert second.returncode == 1 and "Traceback" not in second.stdout
    assert f"{RESULTS}: another process runs Snakemake there (host " in second.stdout
    assert f"process {first.pid}, since 20" in second.stdout
    other.snakemake("--dry-run", SCORES, *PLAN)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    said = other.snakemake(SCORES, *PLAN)
    assert "unlock" not in said
    assert same_scores(clean, checkout)


@pytest.fixture
def group():
    """A control group of processes, whose memory can be limited."""
    folder = MEMORY / f"pedbench-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group of memory can be made here: {error}")
    yield folder
    for pid in (folder / "cgroup.procs").read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    while (folder / "cgroup.procs").read_text():
        time.sleep(0.1)
    folder.rmdir()


def trains(process: psutil.Process) -> bool:
    """Whether it is the training itself, not a shell around it."""
    words = process.cmdline()
    return "train" in words and "--seeds" in words


def test_a_job_that_the_kernel_kills_for_its_memory(clean, checkout, group, tmp_path):
    """While it trains, something else takes the memory of its group; the largest process dies."""
    place, log = checkout.root / RESULTS, tmp_path / "log"
    seed = place / "runs/synthetic_a/standard/linear_probe/default/seed0"
    job = checkout.start(log, "snakemake", "--cores", "1", SCORES, *PLAN)
    until((seed / "config.json").is_file, job)
    (training,) = (p for p in psutil.Process(job.pid).children(recursive=True) if trains(p))
    (group / "memory.limit_in_bytes").write_text(str(2**24))
    (group / "cgroup.procs").write_text(str(training.pid))
    hog = [sys.executable, "-c", "x = b'1' * 2**27; input()"]
    join = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
    with subprocess.Popen([*join, *hog], stdin=subprocess.PIPE) as other:
        assert job.wait(300) == 1
        other.kill()
    assert "Killed" in log.read_text()
    assert not (seed / "train.done.json").exists()
    checkout.snakemake(SCORES, *PLAN)
    assert same_scores(clean, checkout)


LATE = """\
#!/bin/sh
# As a network file system: what was renamed here is seen elsewhere SECONDS later.
{pedbench} "$@" || exit
while [ $# -gt 1 ]; do [ "$1" = --out ] && out=$2; shift; done
mv "$out" "$out.unseen"
(sleep {seconds}; mv "$out.unseen" "$out") > /dev/null 2>&1 &
"""


def test_files_that_are_seen_late_are_waited_for(checkout, tmp_path):
    """As long as --latency-wait says; after it the next call finds them or makes them again."""
    tools, plan = tmp_path / "bin", f"{RESULTS}/plan.json"
    tools.mkdir()

    def late(seconds: int) -> None:
        pedbench = Path(sys.executable).with_name("pedbench")
        (tools / "pedbench").write_text(LATE.format(pedbench=pedbench, seconds=seconds))
        (tools / "pedbench").chmod(0o755)

    def call(wait: int) -> subprocess.CompletedProcess[str]:
        path = f'PATH={tools}:$PATH exec "$@"'
        words = ["snakemake", "--cores", "1", plan, *PLAN, "--latency-wait", str(wait)]
        return checkout.run("sh", "-c", path, "sh", *words)

    late(3)
    done = call(30)
    assert done.returncode == 0, done.stdout
    whole = (checkout.root / plan).read_bytes()
    (checkout.root / plan).unlink()
    late(20)
    done = call(1)
    assert done.returncode == 1 and "latency-wait" in done.stdout
    late(0)
    done = call(30)
    assert done.returncode == 0, done.stdout
    assert (checkout.root / plan).read_bytes() == whole


def test_a_random_killer_changes_no_file(tmp_path):
    """The short form of the soak in docs/reliability.md."""
    seed = int.from_bytes(os.urandom(2), "big")
    words = ["--folder", str(tmp_path), "--kills", "6", "--pause", "6", "--seed", str(seed)]
    assert chaos(words) == 0, f"seed {seed}"
