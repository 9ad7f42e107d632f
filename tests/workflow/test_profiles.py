"""What the profiles for clusters ask for, on a login node without GPUs."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections import Counter

import pytest
from checkout import Checkout
from yte import process_yaml

from pedbench.config import ROOT, read_yaml
from pedbench.resources import JOINED

SITE = {"PARTITION": "cpu-long", "ACCOUNT": "1234", "QOS": "normal", "MAX_MINUTES": "30"}
SITE |= {"GPU_PARTITION": "gpu-long"}
GPU = {"train": 1, "cost": 1, "selection": 1, "pictures": 1}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return Checkout.make(tmp_path_factory.mktemp("profiles") / "pedbench")


def asked(checkout: Checkout, profile: str) -> dict[str, dict[str, str]]:
    """Rule -> resources of one of its jobs."""
    smoke = ("results/smoke/tables", "--configfile", "config/smoke.yaml")
    said = checkout.run("snakemake", "--dry-run", "--profile", f"profiles/{profile}", *smoke)
    assert said.returncode == 0, said.stdout
    found = re.findall(r"rule (\w+):\n(?:.*\n)*? +resources: (.*)", said.stdout)
    return {rule: dict(pair.split("=", 1) for pair in text.split(", ")) for rule, text in found}


@pytest.mark.parametrize("profile", ["slurm", "cluster-generic"])
def test_steps_of_one_job_ask_for_a_part_of_its_time(profile):
    groups = read_yaml(f"profiles/{profile}/config.yaml")["groups"]
    assert groups.keys() == set(JOINED) and set(Counter(groups.values()).values()) == {2}


@pytest.mark.parametrize("profile", ["slurm", "cluster-generic"])
def test_jobs_ask_for_what_they_need(checkout, profile, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PEDBENCH_SUBMIT", "bsub")
    for name, value in SITE.items():
        monkeypatch.setenv(f"PEDBENCH_{name}", value)
    rules = asked(checkout, profile)
    assert {rule: int(r["gpu"]) for rule, r in rules.items() if int(r.get("gpu", 0))} == GPU
    assert all(0 < int(r["runtime"]) <= 30 for r in rules.values())
    assert all(int(r["mem_mb"]) > 0 for r in rules.values())
    given = {"slurm_account": "1234", "qos": "normal"}
    for rule, resources in rules.items() if profile == "slurm" else ():
        assert given.items() <= resources.items()
        assert resources["slurm_partition"] == ("gpu-long" if rule in GPU else "cpu-long")
        assert resources.get("nodes") == ("1" if rule in GPU else None)


@pytest.mark.parametrize("profile", ["slurm", "cluster-generic"])
def test_without_a_word_of_the_site_the_scheduler_decides(checkout, profile, monkeypatch):
    monkeypatch.setenv("PEDBENCH_SUBMIT", "bsub")
    for name in SITE:
        monkeypatch.delenv(f"PEDBENCH_{name}", raising=False)
    rules = asked(checkout, profile)
    assert {int(r["gpu"]) for rule, r in rules.items() if rule in GPU} == {1}
    for resources in rules.values():
        assert not {"slurm_partition", "slurm_account", "qos"} & resources.keys()
        assert 0 < int(resources["runtime"]) <= 24 * 60


ENVIRONMENT = "$PEDBENCH_REQUEUE,$PEDBENCH_MAX_MINUTES"


@pytest.mark.parametrize(
    ("where", "expected"), [(("--cores", "1"), ","), (("--profile", "profiles/slurm"), "1,1440")]
)
def test_jobs_of_a_scheduler_alone_may_requeue_themselves(
    checkout, where, expected, tmp_path, monkeypatch
):
    """Whatever the shell had, in which Snakemake was started. Read in a step of the login node,
    since jobs inherit the same environment."""
    (tmp_path / "bash").write_text(f'echo "{ENVIRONMENT}" >> {tmp_path}/seen\n')
    monkeypatch.setenv("BASH_ENV", str(tmp_path / "bash"))
    monkeypatch.setenv("PEDBENCH_POLL_SECONDS", "1")
    monkeypatch.setenv("PEDBENCH_REQUEUE", "" if "--profile" in where else "1")
    monkeypatch.delenv("PEDBENCH_MAX_MINUTES", raising=False)
    plan = ("--force", "results/smoke/plan.json", "--configfile", "config/smoke.yaml")
    said = checkout.run("snakemake", *where, *plan)
    assert said.returncode == 0, said.stdout
    assert set((tmp_path / "seen").read_text().split()) == {expected}


def test_the_start_of_a_job_is_taken_off_its_time(monkeypatch):
    monkeypatch.setenv("PEDBENCH_SUBMIT", "; echo $PEDBENCH_JOB_SECONDS #")
    profile = (ROOT / "profiles/cluster-generic/config.yaml").read_text()
    command = (process_yaml(profile) or {})["cluster-generic-submit-cmd"]
    for minutes, seconds in ((1, 30), (2, 60), (60, 3540)):
        shell = ["sh", "-c", command.replace("{resources.runtime}", str(minutes))]
        assert int(subprocess.check_output(shell)) == seconds


def commands(start: str) -> list[list[str]]:
    """Words of the indented lines on clusters that call the program ``start``."""
    readme = (ROOT / "README.md").read_text().partition("## On a cluster\n")[2]
    text = (ROOT / "docs/cluster.md").read_text() + readme.partition("\n## ")[0]
    return [shlex.split(line) for line in re.findall(rf"^    (?:\S+/)?({start} .*)", text, re.M)]


def test_commands_of_the_documentation_can_be_given(checkout):
    """Those that need no dataset are given."""
    given = set()
    for words in commands("snakemake"):
        config = words[words.index("--configfile") + 1] if "--configfile" in words else None
        results = read_yaml(config or "config/config.yaml").get("results", "results")
        assert f"{results}/tables" in words
        assert (ROOT / words[words.index("--profile") + 1] / "config.yaml").exists()
        if config == "config/smoke.yaml":
            given.add(tuple(words))
    assert len(given) == 1
    for command in given:
        said = checkout.run(*command, "--dry-run")
        assert said.returncode == 0, said.stdout
    for words in commands("pedbench status"):
        assert (ROOT / words[words.index("--configfile") + 1]).exists()
