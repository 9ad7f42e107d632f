"""The audit of choosing epochs by test scores: right, checked, and reached by nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_imports import imported, modules

from pedbench import train as job
from pedbench.checkpoint import load_tensors, save_tensors
from pedbench.collect import collect, read_long, select
from pedbench.config import ROOT
from pedbench.contracts import PedbenchError
from pedbench.files import file_sha256, read_json, write_json
from pedbench.score import score_runs
from pedbench.selection import COLUMNS, METRICS, compare_choices, write_selection


@pytest.fixture
def audited(prepare, tmp_path):
    """Train ``method``, score it, and return what `write_selection` wants before its last."""

    def finished(method="linear_probe", keep=True, **values) -> tuple[Any, Path, Path, int]:
        config, manifest, weights = prepare(method, epochs=3, **values)
        job.train(config, manifest, weights, [0, 1], 1, keep)
        folders = [tmp_path / "v" / f"seed{seed}" for seed in (0, 1)]
        score_runs(folders, {"noise": manifest}, tmp_path / "scored.json")
        collect(folders, tmp_path / "long.parquet")
        names = {"dataset": "noise", "split": "standard", "method": method, "variant": "default"}
        own = {"folder": str(tmp_path / "v"), "seeds": [0, 1], "keep_epochs": keep}
        datasets = {"noise": {"manifest": str(manifest)}}
        plan = {"experiments": [{**names, **own}], "datasets": datasets}
        weights.rename(tmp_path / "random.json")  # named after the backbone
        return plan, tmp_path / "long.parquet", tmp_path, 1

    return finished


def test_the_three_choices():
    test = {metric: np.array([0.1, 0.2, 0.3, 0.25]) for metric in METRICS}
    test["precision"] = np.array([0.9, np.nan, 0.3, 0.2])
    scores = {"val": {"mA": np.array([0.5, 0.7, 0.7, 0.6])}, "test": test}
    rows = {row["metric"]: row for row in compare_choices(scores)}
    assert list(rows) == list(METRICS)
    epochs = {"epoch_last": 3, "epoch_validation": 1, "epoch_released": 2}
    values = {"last_epoch": 0.25, "validation": 0.2, "released": 0.3}
    assert rows["mA"] == {"metric": "mA", **values, **epochs}
    assert rows["precision"]["released"] == 0.9 and np.isnan(rows["precision"]["validation"])


@pytest.mark.parametrize(
    ("method", "selection"), [("linear_probe", "last_epoch"), ("full_finetune", "best_val_mA")]
)
def test_a_row_per_seed_and_metric_that_agrees_with_the_long_table(
    audited, tmp_path, method, selection
):
    """The probe's features are computed once, full fine-tuning's for every epoch."""
    arguments = audited(method, selection=selection)
    for name in ("selection.csv", "again.csv"):
        write_selection(*arguments, out=tmp_path / name)
    assert file_sha256(tmp_path / "selection.csv") == file_sha256(tmp_path / "again.csv")
    table = pd.read_csv(tmp_path / "selection.csv")
    assert tuple(table.columns) == COLUMNS
    assert list(table["metric"]) == 2 * list(METRICS)
    assert list(table["seed"]) == [0] * 6 + [1] * 6
    assert set(table["epoch_last"]) == {2}
    assert np.all(table["released"] >= table[["last_epoch", "validation"]].max(axis=1))
    long = select(read_long(arguments[1]), subset="test", attribute="")
    reported = table.merge(long, on=["seed", "metric"])["value"]
    chosen = "last_epoch" if selection == "last_epoch" else "validation"
    assert np.allclose(reported, table[chosen], rtol=0, atol=1e-9)


def test_epochs_of_another_run_are_noticed(audited, tmp_path):
    arguments = audited()
    run = tmp_path / "v/seed1"
    last, first = run / "epochs/2.safetensors", run / "epochs/0.safetensors"
    last.write_bytes(first.read_bytes())
    with pytest.raises(PedbenchError, match=r"epochs/2.safetensors: changed or missing"):
        write_selection(*arguments, out=tmp_path / "selection.csv")
    marker = read_json(run / "train.done.json")
    tensors = {name: 0 * tensor for name, tensor in load_tensors(first)[0].items()}
    save_tensors(last, tensors, {})
    marker["epochs"]["epochs/2.safetensors"] = file_sha256(last)
    write_json(run / "train.done.json", marker)
    with pytest.raises(PedbenchError, match=r"mA of the selected epoch is .* in the long table"):
        write_selection(*arguments, out=tmp_path / "selection.csv")
    assert not (tmp_path / "selection.csv").exists()


def test_a_plan_that_asks_for_nothing_has_an_empty_table(audited, tmp_path):
    plan, *rest = audited(keep=False)
    write_selection(plan, *rest, out=tmp_path / "selection.csv")
    assert (tmp_path / "selection.csv").read_text() == ",".join(COLUMNS) + "\n"
    plan["experiments"][0]["keep_epochs"] = True
    with pytest.raises(PedbenchError, match="not finished with its epochs; run the benchmark"):
        write_selection(plan, *rest, out=tmp_path / "selection.csv")


def test_no_score_statistic_or_comparison_can_read_it():
    """No module imports the audit but the command line, and no rule that the long table or the
    statistics depend on names its file; its own rule needs the long table, so it comes later."""
    importers = {
        name
        for name, path in modules().items()
        if "selection" in {other.partition(".")[0] for other in imported(path)}
    }
    assert importers == {"cli"}
    rules: dict[str, str] = {}
    for file in (ROOT / "workflow/rules").glob("*.smk"):
        parts = re.split(r"^rule (\w+):", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        rules |= dict(zip(parts[1::2], parts[2::2], strict=True))
    readers = {name for name, text in rules.items() if "selection.csv" in text}
    assert readers == {"selection", "figures", "tables"}
    assert "long.parquet" in rules["selection"].partition("output:")[0]
    makers = {"score", "collect", "results", "stats", "train", "tune"}
    for name, path in modules().items():
        if name.partition(".")[0] in makers:
            assert "selection.csv" not in path.read_text(encoding="utf-8"), name
