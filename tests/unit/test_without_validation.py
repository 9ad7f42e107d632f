"""Splits whose training images are all there is beside the test images, from run to report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import fake_results, finish

from pedbench import train as job
from pedbench.bundle import export_bundle, import_bundle
from pedbench.collect import collect, rank_by_validation, read_long
from pedbench.contracts import PedbenchError
from pedbench.figures import write_figures
from pedbench.files import read_json
from pedbench.manifest import read_manifest
from pedbench.results import read_run
from pedbench.runs import RunFolder
from pedbench.score import score_runs
from pedbench.selection import METRICS, write_selection
from pedbench.stats import VS_BASELINE, read_stats, write_stats
from pedbench.tables.write import write_tables
from pedbench.tracking import final
from pedbench.tune import tune
from pedbench.versus import versus


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Finished fake runs on ``trainval`` with the audit of their epochs."""
    root = tmp_path_factory.mktemp("trainval") / "results"
    finish(fake_results(root, splits=("trainval",), seeds=(0, 1), images=40))
    table = pd.DataFrame([{"method": "full", "variant": "default", "metric": "mA"}])
    places = {"dataset": "a", "split": "trainval", "seed": 0, "last_epoch": 0.7, "validation": None}
    table.assign(**places, released=0.8).to_csv(root / "selection.csv", index=False)
    pd.DataFrame(columns=["method", "variant"]).to_csv(root / "cost.csv", index=False)
    return root


def test_from_training_to_a_table(prepare, tmp_path):
    runs = []
    for method in ("zero_shot", "linear_probe"):
        inputs = prepare(method, "trainval", f"runs/noise/trainval/{method}/default")
        job.train(*inputs, seeds=[0], threads=1)
        runs.append(inputs[0].parent / "seed0")
        assert RunFolder(runs[-1]).predicted == ("test",)
        assert not (runs[-1] / "predictions.val.parquet").exists()
    assert len(read_manifest(inputs[1]).subset("trainval", "train").rows) == 64
    score_runs(runs, {"noise": inputs[1]}, tmp_path / "scored.json")
    assert set(read_json(tmp_path / "scored.json")) == {f"{read_run(r).key}/test" for r in runs}
    collect(runs, tmp_path / "long.parquet")
    long = read_long(tmp_path / "long.parquet")
    assert set(long["subset"]) == {"test"} and set(long["split"]) == {"trainval"}
    options = {"baseline": "linear_probe/default", "resamples": 20}
    write_stats(runs, {"noise": inputs[1]}, tmp_path / "stats", **options)
    assert len(read_stats(tmp_path / "stats" / VS_BASELINE)) == 2
    assert not any(name.startswith("val/") for name in final(read_run(runs[0])))


def test_epochs_cannot_be_chosen_by_images_that_are_not_there(prepare):
    inputs = prepare(split="trainval", selection="best_val_mA")
    with pytest.raises(PedbenchError, match="^noise/trainval has no validation images, which sel"):
        job.train(*inputs, seeds=[0], threads=1)


def test_nothing_is_tuned(prepare, tmp_path):
    config, manifest, weights = prepare(split="trainval")
    with pytest.raises(PedbenchError, match="^tune: noise/trainval has no validation images"):
        tune(config, manifest, weights, 1, [0], 1, tmp_path / "record.json")


def test_the_audit_of_epochs_leaves_that_choice_empty(prepare, tmp_path):
    config, manifest, weights = prepare(split="trainval")
    job.train(config, manifest, weights, [0], 1, keep_epochs=True)
    folders = [tmp_path / "v/seed0"]
    score_runs(folders, {"noise": manifest}, tmp_path / "scored.json")
    collect(folders, tmp_path / "long.parquet")
    experiment: dict[str, Any] = {"dataset": "noise", "split": "trainval", "method": "linear_probe"}
    experiment |= {"variant": "default", "folder": str(tmp_path / "v"), "seeds": [0]}
    experiment["keep_epochs"] = True
    plan = {"experiments": [experiment], "datasets": {"noise": {"manifest": str(manifest)}}}
    (tmp_path / "random.json").write_bytes(weights.read_bytes())
    write_selection(plan, tmp_path / "long.parquet", tmp_path, 1, tmp_path / "selection.csv")
    table = pd.read_csv(tmp_path / "selection.csv")
    assert len(table) == len(METRICS) and set(table["epoch_last"]) == {1}
    assert table[["validation", "epoch_validation"]].isna().to_numpy().all()
    assert not table[["last_epoch", "released"]].isna().to_numpy().any()


def test_tables_and_figures(results):
    plan = read_json(results / "plan.json")
    long, stats = results / "long.parquet", results / "stats"
    extra: Any = {"cost": results / "cost.csv", "selection": results / "selection.csv"}
    scores = read_long(long)
    ranked = rank_by_validation([("zero_shot", "x"), ("full", "x")], scores, "a", "trainval", "mA")
    assert ranked == [("full", "x"), ("zero_shot", "x")]
    write_figures(plan, long, stats, extra["cost"], extra["selection"], results / "figures")
    names = {path.stem for path in (results / "figures").glob("*.png")}
    assert {"attributes_a_trainval", "selection_a_trainval"} <= names
    definitions = results / "tables.yaml"
    definitions.write_text(
        "main: {title: Main, places: [a/trainval], metrics: [mA, F1]}\n"
        "bias: {title: Bias, kind: selection, metrics: [mA]}\n"
    )
    arguments: Any = (long, stats, [results / "figures"], plan, results / "tables")
    write_tables(*arguments, **extra, definitions=str(definitions))
    rows = pd.read_csv(results / "tables/main.csv")
    assert len(rows) == 8 and rows["mean"].notna().to_numpy().all()
    assert "| – |" in (results / "tables/bias.md").read_text()


def test_a_bundle_and_a_comparison(results, tmp_path):
    export_bundle(results, tmp_path / "all.zip")
    import_bundle(tmp_path / "all.zip", "lab", tmp_path / "imported")
    found = versus("full", "lab:linear_probe", results, tmp_path / "imported")
    assert [row["place"] for row in found.tests] == ["a/trainval"] * 2
