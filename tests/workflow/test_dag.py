"""What Snakemake would do: no job is run."""

from __future__ import annotations

import re

import pytest
from checkout import Checkout

from pedbench.config import read_yaml
from pedbench.plan import make_plan


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return Checkout.make(tmp_path_factory.mktemp("dag") / "pedbench")


def jobs(text: str) -> dict[str, int]:
    """Rule -> number of jobs, from the first table of a dry run."""
    table = text.partition("Job stats:")[2].partition("total")[0]
    return {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


def test_default_config_comes_from_the_profile(checkout):
    plan = make_plan(read_yaml("config/config.yaml"))
    found = jobs(checkout.snakemake("-n", "results/tables"))
    assert found["train"] == len(plan.batches)
    for rule in ("plan", "weights", "score", "collect", "stats", "figures", "track", "tables"):
        assert found[rule] == 1, rule
    assert found["pictures"] == 1 and found["manifest"] == 3 and "pretrain" not in found


def test_costs_are_measured_with_nothing_beside_them(checkout):
    text = checkout.snakemake("-n", "results/tables", cores=3)
    job = re.search(r"rule cost:.*?threads: (\d+)", text, re.DOTALL)
    assert job and job[1] == "3"


def test_another_config_replaces_the_default(checkout):
    text = checkout.snakemake("-n", "results/smoke/tables", "--configfile", "config/smoke.yaml")
    assert jobs(text)["train"] == 4  # nothing of the default's datasets, methods and sweeps


def test_full_config(checkout):
    text = checkout.snakemake("-n", "results/full/tables", "--configfile", "config/full.yaml")
    assert jobs(text)["train"] > 100


def test_the_papers_plan_on_real_data(checkout, monkeypatch, tmp_path):
    """Sizes are those that the datasets state; their folders are empty. What the plan takes is said
    once, and at the top of the file."""
    for place in read_yaml("config/paper.yaml")["datasets"]:
        folder = tmp_path / place.partition("/")[0]
        folder.mkdir()
        monkeypatch.setenv(f"PEDBENCH_ROOT_{folder.name.upper()}", str(folder))
    config = "config/paper.yaml"
    text = checkout.snakemake("-n", "results/paper/tables", "--configfile", config)
    found = jobs(text)
    wanted = {"manifest": 8, "prepare": 8, "weights": 2, "train": 317}
    assert {rule: found[rule] for rule in wanted} == wanted
    said = re.findall(r"^pedbench: (.*)", text, re.MULTILINE)
    assert len(said) == 4 and said[0].endswith("111 experiments, 317 runs")
    takes = re.fullmatch(r"317 of 317 training jobs to run, about ([\d,]+) GPU hours", said[1])
    disk = re.findall(r"[\d.]+ GB of [a-z ]+", said[2])
    assert takes and len(disk) == 2 and disk[0] == "54.5 GB of prepared pictures"
    top = " ".join((checkout.root / config).read_text().partition("protocol:")[0].split("\n# "))
    stated = (f"{sum(found.values())} jobs", f"about {takes[1]} GPU hours", *disk)
    assert [part for part in stated if part not in top] == []


def test_command_line_narrows(checkout):
    narrow = ("--config", "methods=[zero_shot,linear_probe]", "seeds=[0]")
    assert jobs(checkout.snakemake("-n", "results/tables", *narrow))["train"] == 8


def test_pretrain_is_a_target_and_upstream_on_request_only(checkout):
    assert jobs(checkout.snakemake("-n", "pretrain")) == {"pretrain": 1}
    asked = checkout.snakemake("-n", "results/tables", "--config", "pretrain=true")
    assert jobs(asked)["pretrain"] == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("methods=[zero_shot,linear_prob]", "unknown method 'linear_prob'; did you mean 'linear_"),
        ("sedes=[0]", "unknown key 'sedes'; did you mean 'seeds'?"),
        ("results=Snakefile", "Snakefile: the results folder cannot be used"),
    ],
)
def test_mistakes_end_in_one_paragraph(checkout, override, message):
    done = checkout.run("snakemake", "-n", "--cores", "2", "results/tables", "--config", override)
    assert done.returncode == 1
    assert message in done.stdout and "Traceback" not in done.stdout
    assert len(done.stdout.splitlines()) <= 5


def test_gpus_are_claimed_one_per_job_where_there_are_any(checkout, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    text = checkout.snakemake("-n", "results/tables")
    assert re.search(r"rule train:.*?gpu=1", text, re.DOTALL)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "gpu=1" not in checkout.snakemake("-n", "results/tables")


def test_a_mistake_in_a_tables_definition_is_known_before_anything_runs(checkout):
    file = checkout.root / "config/tables.yaml"
    text = file.read_text()
    file.write_text(text.replace("metrics: [mA, Acc,", "metrics: [ma, Acc,", 1))
    said = checkout.run("snakemake", "-n", "--cores", "2", "results/tables").stdout
    file.write_text(text)
    assert "config/tables.yaml: standard.metrics: unknown metric 'ma'; did you mean 'mA'?" in said


def test_a_login_node_needs_no_torch(checkout):
    """Planning, the main process of a run and the steps that stay with it on a cluster."""
    hook = checkout.root / "src/sitecustomize.py"
    hook.write_text(
        "import sys\n\n\n"
        "class Forbid:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'torchvision', 'open_clip'):\n"
        "            raise AssertionError(f'{name} was imported')\n\n\n"
        "sys.meta_path.insert(0, Forbid())\n"
    )
    try:
        assert jobs(checkout.snakemake("-n", "results/tables"))["train"]
        checkout.snakemake("results/login/plan.json", "--config", "results=results/login")
        weights = "results/login/weights/tiny_clip.json"
        checkout.snakemake(weights, "--config", "results=results/login")
        assert "was imported" in checkout.run("python", "-c", "import torch").stdout
    finally:
        hook.unlink()
