"""What the profiles for clusters ask for, on a login node without GPUs."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from checkout import Checkout

from pedbench.config import read_yaml
from pedbench.resources import JOINED

SITE = {"PARTITION": "gpu-long", "ACCOUNT": "1234", "QOS": "normal", "MAX_MINUTES": "30"}
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
    given = {"slurm_partition": "gpu-long", "slurm_account": "1234", "qos": "normal"}
    for resources in rules.values() if profile == "slurm" else ():
        assert given.items() <= resources.items()


def test_without_a_word_of_the_site_slurm_decides(checkout, monkeypatch):
    for name in SITE:
        monkeypatch.delenv(f"PEDBENCH_{name}", raising=False)
    for resources in asked(checkout, "slurm").values():
        assert not {"slurm_partition", "slurm_account", "qos"} & resources.keys()
