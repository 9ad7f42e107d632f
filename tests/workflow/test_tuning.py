"""The target ``tune``: what it would run, what it leaves, and what a kill changes (nothing)."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from checkout import Checkout

from pedbench.files import read_json

PLAN = ("--configfile", "config/tune.yaml", "--config")
SMALL = (
    "methods=[zero_shot,linear_probe]", "trials=3", "results=results/small",
    "dataset_options={synthetic_a: {seed: 1, identities: 24, images_per_identity: 10}}",
)  # fmt: skip


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return Checkout.make(tmp_path_factory.mktemp("tune") / "pedbench")


@pytest.fixture(scope="module")
def tuned(checkout):
    return checkout.snakemake("tune", *PLAN, *SMALL)


def test_every_method_of_the_plan_gets_a_job_and_nothing_is_tested(checkout):
    text = checkout.snakemake("-n", "tune", "--configfile", "config/tune.yaml")
    methods = yaml.safe_load((checkout.root / "config/tune.yaml").read_text())["methods"]
    assert text.count("wildcards: section=") == len(methods)
    assert "wildcards: section=lora\n" in text and "wildcards: section=lora/text\n" in text
    assert "rule train:" not in text and "rule score:" not in text


def test_a_plan_without_trials_is_refused(checkout):
    done = checkout.run("snakemake", "-n", "--cores", "2", "tune")
    assert done.returncode == 1
    assert "the config does not say how many 'trials' a method gets; use --configf" in done.stdout


def test_tuning_leaves_a_preset_that_a_plan_can_use(checkout, tuned):
    assert "1 method to tune, 3 trials, about " in tuned
    made = checkout.root / "results/small/tuned"
    record = read_json(made / "equal_budget.json")["methods"]["linear_probe"]
    assert len(record["trials"]) == 3
    for kind in ("json", "yaml"):
        text = (made / f"equal_budget.{kind}").read_text()
        (checkout.root / f"config/presets/equal_budget.{kind}").write_text(text)
    assert "Nothing to be done" in checkout.snakemake("tune", *PLAN, *SMALL)
    checkout.snakemake("-n", "results/tables")


@pytest.mark.system
def test_what_is_deleted_of_a_tuning_comes_back(checkout, tuned):
    assert "the tables are in" not in tuned
    made = checkout.root / "results/small/tuned"
    for name, rules in (
        ("equal_budget.yaml", {"preset", "tune"}),
        ("linear_probe.json", {"trials", "preset", "tune"}),
    ):
        before = (made / name).read_bytes()
        (made / name).unlink()
        said = checkout.snakemake("tune", *PLAN, *SMALL)
        assert set(re.findall(r"^\w*rule (\w+):", said, re.MULTILINE)) == rules
        assert (made / name).read_bytes() == before


def trial_command(root: Path, folder: Path) -> list[str]:
    """The trials of the small plan's linear probe, kept in ``folder``."""
    results = root / "results/small"
    spec = results / "runs/synthetic_a/standard/linear_probe/default/config.json"
    folder.mkdir()
    (folder / "config.json").write_text(spec.read_text())
    words = ["tune", "--settings", folder / "config.json", "--trials", "3", "--seeds", "0", "--out"]
    words += [folder / "record.json", "--manifest", results / "manifests/synthetic_a.parquet"]
    words += ["--weights", results / "weights/tiny_clip.json"]
    return [sys.executable, "-m", "pedbench.cli", *map(str, words)]


@pytest.mark.system
def test_a_kill_changes_no_bit(checkout, tuned, tmp_path):
    command = trial_command(checkout.root, tmp_path / "killed")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": checkout.root}
    job = subprocess.Popen(command, **quiet)
    finished = tmp_path / "killed/trials/finished.json"
    while not finished.exists():
        assert job.poll() is None, "the job ended before it could be killed"
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL and len(read_json(finished)["trials"]) < 3
    assert subprocess.run(command, **quiet).returncode == 0
    made = checkout.root / "results/small/tuned/linear_probe.json"
    assert (tmp_path / "killed/record.json").read_bytes() == made.read_bytes()
