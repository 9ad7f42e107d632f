"""A miniature benchmark from empty to LaTeX, again, again elsewhere, and with a new method."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from checkout import Checkout

PLAN = {
    "protocol": "embedded",
    "backbone": "tiny_clip",
    "datasets": ["synthetic_a/standard"],
    "methods": ["zero_shot", "linear_probe"],
    "seeds": [0, 1],
    "seeds_per_job": 2,
    "dataset_options": {"synthetic_a": {"seed": 1, "identities": 20, "images_per_identity": 6}},
    "comparison": {"baseline": "linear_probe", "metrics": ["mA", "F1"], "resamples": 100},
}
TABLES = ("results/tables", "--configfile", "mini.yaml")
RUNS = Path("results/runs/synthetic_a/standard")


def start(root: Path, cores: int) -> tuple[Checkout, str]:
    checkout = Checkout.make(root)
    (checkout.root / "mini.yaml").write_text(yaml.safe_dump(PLAN))
    return checkout, checkout.snakemake(*TABLES, cores=cores)


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    return start(tmp_path_factory.mktemp("first") / "pedbench", cores=2)


def trained(text: str) -> list[str]:
    """``method/variant`` of every training job that Snakemake announces."""
    found = re.findall(r"rule train:.*?method=(\w+), variant=([\w.-]+)", text, re.DOTALL)
    return sorted("/".join(pair) for pair in found)


def files(checkout: Checkout, *patterns: str) -> dict[str, Path]:
    """Path below the run folders -> file, for every match."""
    base = checkout.root / RUNS
    return {str(p.relative_to(base)): p for pattern in patterns for p in base.rglob(pattern)}


def times(checkout: Checkout) -> dict[str, int]:
    return {name: path.stat().st_mtime_ns for name, path in files(checkout, "*").items()}


def test_from_empty_to_latex(mini):
    checkout, said = mini
    results = checkout.root / "results"
    assert trained(said) == ["linear_probe/default", "zero_shot/default"]
    assert "2 of 2 training jobs to run, about" in said  # the estimate, before the start
    assert {p.suffix for p in (results / "tables").iterdir()} >= {".csv", ".md", ".tex"}
    latex = "".join(path.read_text() for path in (results / "tables").glob("*.tex"))
    assert r"\toprule" in latex and r"\pm" in latex
    long = pq.read_table(results / "long.parquet").to_pandas()
    assert set(long["method"]) == {"zero_shot", "linear_probe"}
    assert set(long.loc[long["method"] == "linear_probe", "seed"]) == {0, 1}
    assert set(long.loc[long["method"] == "zero_shot", "seed"]) == {0}
    assert set(long["subset"]) == {"val", "test"}
    for output in ("stats", "figures", "mlflow.json"):
        assert (results / output).exists(), output


def test_second_invocation_does_nothing(mini):
    checkout, _ = mini
    before = times(checkout)
    for source in checkout.root.glob("methods/*.py"):
        source.touch()  # as in a fresh clone: time stamps mean nothing
    (checkout.root / "resources/tiny_clip/tiny_clip.safetensors").touch()
    assert "Nothing to be done" in checkout.snakemake(*TABLES)
    assert times(checkout) == before


def test_two_complete_runs_are_byte_identical(mini, tmp_path):
    first, _ = mini
    second, _ = start(tmp_path / "elsewhere", cores=1)
    patterns = ("predictions.*.parquet", "scores.*.json", "adapter.safetensors")
    ours, theirs = files(first, *patterns), files(second, *patterns)
    assert ours.keys() == theirs.keys() and len(ours) >= 3 * 4
    assert [n for n in ours if ours[n].read_bytes() != theirs[n].read_bytes()] == []
    name = "results/long.parquet"
    assert (first.root / name).read_bytes() == (second.root / name).read_bytes()


def test_new_method_runs_only_its_own_jobs(mini):
    checkout, _ = mini
    before = times(checkout)
    assert checkout.run("pedbench", "new-method", "demo").returncode == 0
    wider = {**PLAN, "methods": [*PLAN["methods"], "demo"]}
    (checkout.root / "mini.yaml").write_text(yaml.safe_dump(wider))
    assert trained(checkout.snakemake(*TABLES)) == ["demo/default"]
    after = times(checkout)
    assert all(after[name] == time for name, time in before.items())
    table = "".join(path.read_text() for path in (checkout.root / "results/tables").glob("*.csv"))
    assert "demo" in table
    stats = [path.read_text() for path in (checkout.root / "results/stats").glob("*.csv")]
    assert any("demo" in text for text in stats)


def test_editing_a_method_reruns_only_its_runs(mini):
    checkout, _ = mini
    source = checkout.root / "methods/linear_probe.py"
    source.write_text(source.read_text() + "\n# edited\n")
    assert trained(checkout.snakemake("-n", *TABLES)) == ["linear_probe/default"]
