"""What a plan of thousands of runs costs the machine that plans it, without training one of them.

Makes a plan on the embedded datasets in a scratch folder and measures Snakemake's dry run before
the first start, then writes the files of all runs as finished trainings leave them (predictions are
noise) and measures what reads them. Every measurement has a process of its own:

    python benchmarks/scale.py [--experiments 1000] [--seeds 5] [--images 600] [--folder DIR]

Seconds that passed, seconds of the processor and the most memory of each process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pedbench import registry
from pedbench.config import ROOT, protocol_of
from pedbench.files import canonical_json, digest, file_sha256, read_json, write_json
from pedbench.manifest import Manifest, write_manifest
from pedbench.plan import Experiment, Plan, make_plan
from pedbench.runs import PREDICTED, RunFolder

SOURCES = ("Snakefile", "workflow", "profiles", "config", "methods", "datasets", "src", "resources")
PLACES = ("synthetic_a/standard", "synthetic_a/zero_shot")
PLACES += ("synthetic_b/standard", "synthetic_b/zero_shot")
METHODS = ("linear_probe", "full_finetune", "lora", "coop", "cocoop", "maple", "vtb/clip")
METHODS += ("promptpar/global_deep",)
SWEPT = ("linear_probe", "full_finetune", "lora", "coop", "maple")
SUBSETS = ("train", "val", "test")
CONFIG, RESULTS = "scale.yaml", "results"


@dataclass(frozen=True)
class Figures:
    """Of one process."""

    what: str
    seconds: float
    processor: float
    megabytes: float

    def __str__(self) -> str:
        numbers = f"{self.seconds:.1f} | {self.processor:.1f} | {self.megabytes:.0f}"
        return f"| {self.what} | {numbers} |"


def config(experiments: int, seeds: int) -> dict[str, Any]:
    """A plan of about as many experiments: methods everywhere, and curves over learning rates."""
    values = -(-(experiments - len(PLACES) * len(METHODS)) // (len(PLACES) * len(SWEPT)))
    curve = {"parameter": "lr", "values": [n / 10_000 for n in range(11, 11 + values)]}
    curves = {
        f"lr_{number}": {"dataset": place, "methods": list(SWEPT), **curve}
        for number, place in enumerate(PLACES)
    }
    return {
        **{"protocol": "embedded", "presets": ["tiny_clip"], "backbone": "tiny_clip"},
        **{"datasets": list(PLACES), "methods": list(METHODS), "sweeps": curves},
        **{"seeds": list(range(seeds)), "seeds_per_job": 1, "results": RESULTS},
    }


def checkout(folder: Path) -> None:
    """Links to the sources, so that Snakemake's records stay in ``folder``."""
    for name in SOURCES:
        (folder / name).symlink_to(ROOT / name)


def finish(plan: Plan, images: int) -> int:
    """Write what the jobs of ``plan`` write before the scores; returns how many files. ``images``:
    of the test subset."""
    manifests = {name: write_dataset(plan, name, images) for name in plan.sources}
    for name in {*plan.weights.values(), *(plan.prepared(e) for e in plan.experiments)}:
        write_json(Path(name), {"sha256": "0" * 64, "file": None})
    for name in {plan.store(e) for e in plan.experiments}:
        write_json(Path(name), {})
        Path(name).with_suffix(".bin").touch()
    with patch("os.fsync"):  # noise need not outlive a power cut
        for batch in plan.batches:
            manifest = manifests[batch.experiment.dataset]
            digests = {str(n): write_run(batch.experiment, n, manifest) for n in batch.seeds}
            write_json(Path(batch.marker), digests)
    return sum(len(files) for _, _, files in os.walk(RESULTS))


def write_dataset(plan: Plan, name: str, images: int) -> Manifest:
    """As many images for test, half as many for validation, four times as many for training."""
    source, spec = plan.sources[name], registry.load_dataset(name).SPEC
    rng = np.random.default_rng(0)
    where = np.repeat(SUBSETS, [4 * images, images // 2, images])
    rows = pd.DataFrame({"image": [f"{n:06d}.png" for n in range(len(where))], "sha256": "0" * 64})
    rows["identity"] = np.arange(len(where), dtype=np.int32) // 10
    rows["camera"] = np.int16(0)
    for attribute in spec.attributes:
        rows[f"label:{attribute.name}"] = (rng.random(len(where)) < 0.3).astype(np.int8)
    for split in spec.splits:
        rows[f"split:{split}"] = where
    manifest = Manifest(name, Path(source.root), spec.attributes, digest(name), rows)
    write_manifest(manifest, Path(source.manifest))
    Path(source.root).mkdir(parents=True)
    return manifest


def write_run(experiment: Experiment, seed: int, manifest: Manifest) -> str:
    """A finished run with noise for predictions; returns its digest."""
    folder = RunFolder(Path(experiment.folder) / f"seed{seed}")
    write_json(folder.path.parent / "config.json", experiment.spec)
    own = {"seed": seed, "manifest_digest": manifest.digest}
    run = digest([experiment.key, seed])
    write_json(folder.config, {**experiment.spec, **own, "digest": run})
    rng = np.random.default_rng(int(run[:8], 16))
    for subset in PREDICTED:
        images = manifest.subset(experiment.split, subset)
        logits = rng.normal(2.0 * images.labels - 1.0, 1.5).astype(np.float32)
        columns: dict[str, Any] = {"image": list(images.rows["image"])}
        columns |= {a.name: column for a, column in zip(images.attributes, logits.T, strict=True)}
        pq.write_table(pa.table(columns), folder.predictions(subset))
    steps = protocol_of(experiment.spec).epochs * 10
    lines = [json.dumps({"epoch": n // 10, "step": n, "loss/bce": 0.5}) for n in range(steps)]
    folder.metrics.write_text("\n".join(lines) + "\n")
    folder.adapter.write_bytes(b"tensors" * 1000)
    packages = {f"package{n}": "1.0" for n in range(12)}
    write_json(folder.path / "environment.json", {"commit": "0" * 40, "packages": packages})
    write_json(folder.path / "cost.json", {"seconds_fit": 1.0, "parameters_trained": 1})
    folder.finish(run)
    return run


def fill_scores(plan: Plan) -> None:
    """Give every run without scores those of another at its place, as if they were its own."""
    templates: dict[tuple[str, str, str], Any] = {}
    with patch("os.fsync"):
        for experiment in plan.experiments:
            for seed in experiment.seeds:
                run = RunFolder(Path(experiment.folder) / f"seed{seed}")
                for subset in PREDICTED:
                    path, place = run.path / f"scores.{subset}.json", experiment.key.split("/")[:2]
                    if path.is_file():
                        templates[place[0], place[1], subset] = read_json(path)
                        continue
                    own = {"digest": read_json(run.done)["digest"]}
                    own["predictions"] = file_sha256(run.predictions(subset))
                    write_json(path, {**templates[place[0], place[1], subset], **own})


def measured(what: str, *command: str) -> Figures:
    """Run ``command`` to its end. Raises CalledProcessError, with what it said, when it fails."""
    with tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        if process.returncode:
            print(said.read()[-3000:], file=sys.stderr)
            raise subprocess.CalledProcessError(process.returncode, command)
    found = Figures(what, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
    print(found, flush=True)
    return found


def snakemake(*options: str) -> tuple[str, ...]:
    return ("snakemake", "--configfile", CONFIG, "--cores", "2", *options, f"{RESULTS}/tables")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore
    options.add_argument("--experiments", type=int, default=1000, help="default: %(default)s")
    options.add_argument("--seeds", type=int, default=5, help="of each (default: %(default)s)")
    options.add_argument(
        "--images", type=int, default=600, help="of each test subset (default: 600)"
    )
    options.add_argument("--folder", type=Path, help="to be kept (default: a temporary one)")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        measure(given.experiments, given.seeds, given.images)


def measure(experiments: int, seeds: int, images: int) -> None:
    checkout(Path.cwd())
    values = config(experiments, seeds)
    Path(CONFIG).write_text(yaml.safe_dump(values))
    plan = make_plan(values)
    print(f"{len(plan.experiments)} experiments, {len(plan.batches)} training jobs", flush=True)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores", flush=True)
    print("\n| | Seconds | Processor seconds | Memory, MB |\n| --- | ---: | ---: | ---: |")
    document = f"{RESULTS}/plan.json"
    read = ("--plan", document, "--out")
    as_text = canonical_json(values)
    measured("`snakemake -n`, before the first start", *snakemake("-n"))
    measured("`pedbench plan`", "pedbench", "plan", "--json", as_text, "--out", document)
    files = finish(plan, images)
    scored = [e for e in plan.experiments if e.in_tables]
    part, runs = "part.json", sum(len(e.seeds) for e in scored)
    kept = [e for e in plan.as_json()["experiments"] if e["in_tables"]]
    write_json(Path(part), {**plan.as_json(), "experiments": kept})
    what = f"`pedbench score`, {runs} runs"
    measured(what, "pedbench", "score", "--plan", part, "--out", "part_scored.json")
    fill_scores(plan)
    measured("`pedbench score`, all known", "pedbench", "score", *read, f"{RESULTS}/scored.json")
    measured("`pedbench collect`", "pedbench", "collect", *read, f"{RESULTS}/long.parquet")
    measured("`pedbench stats`", "pedbench", "stats", *read, f"{RESULTS}/stats")
    measured("`pedbench status`", "pedbench", "status", "--results", RESULTS)
    measured("`snakemake -n`, all trained", *snakemake("-n"))
    print(f"\n{files} files of runs")


if __name__ == "__main__":
    main()
