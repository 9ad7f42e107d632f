"""A soak: a small benchmark under a random killer, compared byte by byte with an undisturbed one.

Copies the sources into a folder, runs every kind of training of `PLAN` there once in peace, then
again while jobs and Snakemake itself are killed at random moments and Snakemake is started again,
until the kills are used up and the tables are there:

    python benchmarks/chaos.py --folder /scratch/soak [--kills 40] [--seed 0] [--cores 2]

Ends with 1 and the names of the files if one differs. A finished clean run in the folder is used
again. A run that ends before the kills are used up is followed by another one.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from pedbench.config import ROOT
from pedbench.files import file_sha256, read_json

SOURCES = ("Snakefile", "workflow", "profiles", "config", "methods", "datasets", "src", "resources")
RESULTS = "results/chaos"
PLAN = {  # over config/smoke.yaml
    "results": RESULTS,
    "methods": [
        "linear_probe",
        {
            "datasets": ["synthetic_a/standard"],
            "methods": ["zero_shot", "lora", "promptpar/region_deep"],
        },
        "clip_reid",
    ],
    "released_selection": {"dataset": "synthetic_a/standard", "methods": ["linear_probe", "lora"]},
}
PROTOCOLS = {"epochs": 4, "probe_epochs": 4, "checkpoint_steps": 3}  # over config/protocols
# What holds times or speeds, and so differs between two undisturbed runs; locks, and what a killed
# process had begun to write.
LEFT_OUT = re.compile(
    r"logs/.*|(.*/)?\.[^/]*(lock|tmp)|(.*/)?cost\.json|cost\.csv|mlflow(\.db|_artifacts/).*"
    r"|tables/(cost|index).*|figures/cost.*"
)
PATIENCE = 2  # kills between which nothing has to get on; else all would fall on the first steps
JOB, ALONE, ALL = "a job", "Snakemake alone", "Snakemake with its jobs"
KINDS = {  # of a kill: how often it is drawn
    (JOB, signal.SIGKILL): 7,
    (JOB, signal.SIGTERM): 1,
    (ALONE, signal.SIGKILL): 2,
    (ALL, signal.SIGKILL): 3,
    (ALL, signal.SIGINT): 1,  # Ctrl-C
}


@dataclass
class Place:
    """A copy of the sources, in which Snakemake runs."""

    root: Path
    cores: int
    main: subprocess.Popen[bytes] | None = None
    starts: int = 0

    @property
    def results(self) -> Path:
        return self.root / RESULTS

    @classmethod
    def make(cls, root: Path, cores: int) -> Place:
        """Raises FileExistsError when ``root`` is there."""
        root.mkdir(parents=True)
        for name in SOURCES:
            source = ROOT / name
            if source.is_file():
                shutil.copy(source, root / name)
            else:
                ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
                shutil.copytree(source, root / name, symlinks=True, ignore=ignore)
        for protocol in (root / "config/protocols").glob("embedded*.yaml"):
            text = protocol.read_text(encoding="utf-8")
            for key, value in PROTOCOLS.items():
                text = re.sub(rf"(?m)^{key}: \d+", f"{key}: {value}", text)
            protocol.write_text(text, encoding="utf-8")
        smoke = yaml.safe_load((root / "config/smoke.yaml").read_text(encoding="utf-8"))
        plan = yaml.safe_dump({**smoke, **PLAN})
        (root / "config/chaos.yaml").write_text(plan, encoding="utf-8")
        return cls(root, cores)

    def start(self) -> None:
        own = {"PYTHONPATH": str(self.root / "src"), "OMP_NUM_THREADS": "1"}
        tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        command = ["snakemake", "--cores", str(self.cores), f"{RESULTS}/tables"]
        command += ["--configfile", "config/chaos.yaml"]
        with (self.root / "snakemake.log").open("ab") as log:
            self.main = subprocess.Popen(
                command,
                cwd=self.root,
                env={**os.environ, **own, "PATH": tools},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.starts += 1

    def processes(self) -> list[psutil.Process]:
        """Of whatever was started here, orphans too."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.cwd() == str(self.root):
                    found.append(process)
            except psutil.Error:  # ended, or not ours
                continue
        return found

    def jobs(self) -> list[tuple[psutil.Process, str]]:
        """The `pedbench` commands that run, and what each does."""
        found = []
        for process in self.processes():
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            names = [Path(word).name for word in words[:3]]
            if "pedbench" in names[:2]:
                found.append((process, self._doing(words[names.index("pedbench") + 1 :])))
        return found

    def _doing(self, words: list[str]) -> str:
        step = words[0]
        if "--settings" not in words:
            return step
        settings = Path(words[words.index("--settings") + 1])
        seeds = sorted((self.root / settings).parent.glob("seed*/checkpoint/latest.json"))
        try:
            _, stage, steps = read_json(seeds[-1])["file"].split(".")[0].split("-")
            at = f"{seeds[-1].parts[-3]}, stage {stage}, step {steps}"
        except Exception:  # none yet, or gone by now
            at = "no checkpoint"
        return f"{step} {'/'.join(settings.parts[-5:-1])} ({at})"

    def progress(self) -> tuple[int, tuple[int, ...]]:
        """Finished jobs of all starts, and when each checkpoint was written."""
        log = (self.root / "snakemake.log").read_bytes()
        times = []
        for file in sorted(self.results.glob("runs/**/latest.json")):
            try:
                times.append(file.stat().st_mtime_ns)
            except OSError:  # gone by now
                continue
        return log.count(b"Finished jobid"), tuple(times)

    def tail(self) -> str:
        return (self.root / "snakemake.log").read_text(encoding="utf-8")[-4000:]


@dataclass
class Soak:
    """Kills until ``kills`` are used up, over one run of the plan or more."""

    kills: int
    chance: random.Random
    pause: float  # mean seconds between two kills; longer when nothing got on since `PATIENCE`
    since: float = field(default_factory=time.monotonic)
    done: list[tuple[str, str]] = field(default_factory=list)  # kind, what the victim did
    seen: list[Any] = field(default_factory=list)  # progress at each

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.since:7.1f} s  {text}", flush=True)

    def run(self, place: Place) -> None:
        """Until the tables are there. Raises RuntimeError when Snakemake fails three times in a
        row though nobody was killed."""
        failed, before = 0, -1
        place.start()
        while True:
            left = len(self.done) < self.kills
            code = self._wait(place, self.chance.uniform(0.1, 2 * self.pause) if left else None)
            if code is None:
                self._kill(place)
                if place.main is not None and place.main.poll() is None:
                    continue
            elif code == 0:
                self._let_orphans_end(place)
                return
            else:
                failed = failed + 1 if before == len(self.done) else 1
                before = len(self.done)
                if failed >= 3 and not place.jobs():
                    raise RuntimeError(f"Snakemake fails of itself:\n{place.tail()}")
                self.say(f"          Snakemake ended with {code}; started again")
            place.start()

    def _wait(self, place: Place, seconds: float | None) -> int | None:
        """Snakemake's exit status; None when it still runs after ``seconds``."""
        assert place.main is not None
        try:
            return place.main.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def _kill(self, place: Place) -> None:
        """Unless nothing got on since the last ones; seldom while nothing but Snakemake runs."""
        assert place.main is not None
        now, jobs = place.progress(), place.jobs()
        who, number = self.chance.choices(list(KINDS), list(KINDS.values()))[0]
        waits = self.seen[-PATIENCE:] == [now] * PATIENCE
        if waits or (not jobs and (who == JOB or self.chance.random() < 0.8)):
            return
        doing = "; ".join(does for _, does in jobs) or "no job"
        if who == JOB:
            victim, doing = self.chance.choice(jobs)
            victims = [victim]
        else:
            victims = place.processes() if who == ALL else [psutil.Process(place.main.pid)]
        if not [victim for victim in victims if _sent(victim, number)]:
            return  # it ended of itself
        self.done.append((f"{who}, {number.name}", doing))
        self.seen.append(now)
        self.say(f"{len(self.done):3d} of {self.kills}: {who}, {number.name}: {doing}")
        if who != JOB:
            place.main.wait()

    def _let_orphans_end(self, place: Place) -> None:
        while place.processes():
            time.sleep(0.2)


def _sent(victim: psutil.Process, number: signal.Signals) -> bool:
    """Whether there was one to get the signal."""
    try:
        victim.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


def files(results: Path) -> dict[str, Path]:
    """Path below ``results`` -> file, of all that has to be equal."""
    found = {str(p.relative_to(results)): p for p in results.rglob("*") if p.is_file()}
    return {name: path for name, path in found.items() if not LEFT_OUT.fullmatch(name)}


def differences(clean: Path, other: Path) -> Iterator[str]:
    ours, theirs = files(clean), files(other)
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in theirs or name not in ours:
            yield f"{name}: only in the {'clean' if name in ours else 'disturbed'} run"
        elif file_sha256(ours[name]) != file_sha256(theirs[name]):
            yield f"{name}: differs"


def summary(soak: Soak, places: list[Place], compared: int, found: list[str]) -> str:
    kinds = Counter(kind for kind, _ in soak.done)
    steps = Counter(re.split(r"[ ;]", doing)[0] for _, doing in soak.done)
    lines = [f"kills survived: {len(soak.done)} in {sum(p.starts for p in places)} starts"]
    lines += [f"  {number:3d}  {kind}" for kind, number in kinds.most_common()]
    lines += ["what ran then (the first job of several):"]
    lines += [f"  {number:3d}  {step}" for step, number in steps.most_common()]
    lines += [f"runs of the plan: {len(places)}, files compared in each: {compared}"]
    lines += [f"temporary files left: {sum(1 for p in places for _ in p.results.rglob('*.tmp'))}"]
    lines += [f"differences: {len(found)}", *found]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--folder", required=True, type=Path, help="where it all happens")
    options.add_argument("--kills", type=int, default=40, help="default: %(default)s")
    options.add_argument("--seed", type=int, default=0, help="of the killer")
    options.add_argument("--cores", type=int, default=2, help="default: %(default)s")
    options.add_argument(
        "--pause", type=float, default=12, help="mean seconds between kills (default: %(default)s)"
    )
    given = options.parse_args(arguments)
    folder = given.folder.resolve()
    clean = Place(folder / "clean", given.cores)
    if not (clean.root / "finished").is_file():
        shutil.rmtree(clean.root, ignore_errors=True)
        clean = Place.make(clean.root, given.cores)
        peace = Soak(0, random.Random(0), 1)
        peace.run(clean)
        peace.say("the clean run is done")
        (clean.root / "finished").touch()
    soak, places, found = Soak(given.kills, random.Random(given.seed), given.pause), [], []
    while len(soak.done) < given.kills:
        root = folder / f"disturbed{len(places)}"
        shutil.rmtree(root, ignore_errors=True)
        places.append(Place.make(root, given.cores))
        soak.run(places[-1])
        soak.say(f"run {len(places)} of the plan is done")
        found += differences(clean.results, places[-1].results)
    print(summary(soak, places, len(files(clean.results)), found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
