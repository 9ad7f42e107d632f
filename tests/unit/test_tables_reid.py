"""Tables of re-identification beside those of attribute recognition: neither shows the other's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import FakeResults, fake_mixed_results, fake_reid_results, finish

from pedbench.collect import read_long, select
from pedbench.files import read_json
from pedbench.tables.definitions import read_definitions
from pedbench.tables.write import write_tables

SKILL = {"zero_shot": 0.4, "linear_probe": 1.0, "full": 2.5}


def tables_of(results: FakeResults, cost: Path | None = None) -> Path:
    root = finish(results).root
    out = root / "tables"
    write_tables(root / "long.parquet", root / "stats", [], results.plan, out, cost=cost)
    return out


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tables")
    results = fake_mixed_results(root, skill=SKILL, seeds=(0, 1), images=40)
    rows = [("a", "standard", 10), ("r", "reid", 1e7)]
    costs = pd.DataFrame(rows, columns=["dataset", "split", "parameters_trained"])
    costs = costs.assign(method="full", variant="default", device="cpu", threads=1)
    columns = ("parameters_allocated", "parameters_effective", "share_of_full", "adapter_bytes")
    columns += ("gflop_per_image", "train_images_per_s", "latency_ms_1", "images_per_s_1")
    columns += ("images_per_s_8", "images_per_s_32", "train_peak_mb", "predict_peak_mb")
    costs[[*columns, "energy_j_per_image", "seconds_fit", "device_of_runs"]] = None
    costs.to_csv(root / "cost.csv", index=False)
    return tables_of(results, cost=root / "cost.csv")


@pytest.fixture(scope="module")
def market(tmp_path_factory) -> Path:
    """A plan with one dataset of the papers."""
    root = tmp_path_factory.mktemp("market")
    return tables_of(fake_reid_results(root, "market1501", SKILL, (0, 1)))


def read(path: Path) -> Any:
    return pd.read_csv(path, keep_default_na=False)


def test_each_table_has_the_places_of_its_task(mixed):
    for name, place, metrics in (
        ("standard", "a/standard", ["mA", "Acc", "Prec", "Recall", "F1 (instance)"]),
        ("reid", "r/reid", ["mAP", "Rank-1", "Rank-5", "Rank-10", "mINP"]),
        ("parameters", "a/standard", ["mA", "F1 (instance)"]),
    ):
        table = read(mixed / f"{name}.csv")
        assert set(table["dataset"] + "/" + table["split"]) == {place}, name
        assert list(table["metric"].drop_duplicates()) == metrics
    assert not (mixed / "cross_domain.csv").exists() and not (mixed / "other_splits.csv").exists()
    per_attribute = read(mixed / "per_attribute.csv")
    assert set(per_attribute["dataset"]) == {"a"}


def test_cells_are_the_scores_and_marks_the_tests(mixed):
    table = read(mixed / "reid.csv")
    long = select(read_long(mixed.parent / "long.parquet"), dataset="r", subset="test")
    tests = pd.read_csv(mixed / "vs_baseline.csv").query("dataset == 'r'")
    assert set(tests["metric"]) == {"mAP", "rank1"}
    assert True in set(tests["significant"])
    for label, metric in (("mAP", "mAP"), ("Rank-1", "rank1"), ("mINP", "mINP")):
        for method in SKILL:
            cell = select(table, method=method, metric=label)
            values = select(long, method=method, metric=metric)["value"]
            assert float(cell["mean"].item()) == pytest.approx(100 * values.mean(), abs=1e-5)
            test = select(tests, method=method, metric=metric)
            marked = list(test["significant"]) == [True]
            assert bool(cell["mark"].item()) == marked


def test_captions_say_what_the_numbers_are(mixed):
    text, other = ((mixed / f"{name}.md").read_text() for name in ("reid", "standard"))
    for part in (
        "Queries of the test subset against its gallery, in percent",
        "Protocol embedded_reid (version 1), backbone tiny, weights of the last epoch.",
        "mAP: average precision of each query, mean over queries.",
        "in mAP or Rank-1 (paired bootstrap of the test identities",
    ):
        assert part in text, part
    assert "hreshold" not in text and "attribute" not in text
    assert "threshold 0.5" in other and "Protocol embedded (version 1)" in other


def test_notes_count_queries_and_say_which_images_are_left_out(mixed):
    notes = (mixed / "notes.md").read_text()
    assert "- r/reid: 28 queries, 28 images in the gallery; skipped, for want of a right" in notes
    assert "image there: 1\n" in notes
    assert "without the images of its own person by its own camera" in notes
    assert notes.count("All methods in attribute recognition: ") == 1
    for task in ("attribute recognition", "re-identification"):
        assert f"Linear probe in {task}: lr 0.01" in notes


def test_costs_stand_apart_and_are_weighed_by_the_tasks_metric(mixed):
    for name, place, metric in (("cost", "a/standard", "mA"), ("cost_reid", "r/reid", "mAP")):
        table, text = read(mixed / f"{name}.csv"), (mixed / f"{name}.md").read_text()
        assert f"Measured on {place};" in text and f"PPT = {metric} exp(" in text
        assert set(table["method"]) == {"full"} and "ppt" in set(table["metric"])
    long = read_long(mixed.parent / "long.parquet")
    score = select(long, dataset="r", method="full", subset="test", metric="mAP")["value"].mean()
    found = float(select(read(mixed / "cost_reid.csv"), metric="ppt")["mean"].item())
    assert found == pytest.approx(100 * score * 0.7401, rel=1e-3)  # exp(-log10(2))


def test_published_rows_stand_beside_ours_without_a_threshold(market):
    table = read(market / "paper/reid.csv")
    ours, theirs = (select(table, kind=kind) for kind in ("measured", "published"))
    assert set(ours["name"]) == {"Zero-shot CLIP", "Linear probe", "full"}
    row = select(theirs, name="CLIP-ReID+SIE+OLP", dataset="market1501")
    assert list(row["mean"])[:2] == ["90.5", "95.4"] and set(row["Status"]) == {"secondary"}
    untraced = select(theirs, Status="not traced")
    assert set(untraced["name"]) == {"CLIP-ReID baseline", "CLIP-ReID"}
    assert set(untraced["mean"]) == {""}
    assert "Threshold" not in table
    text = (market / "paper/reid.md").read_text()
    assert "| CLIP-ReID baseline | CLIP RN50 | not traced | – |" in text
    assert "hreshold" not in text


def test_the_reports_tables_are_there_whatever_ran(market, mixed):
    for root, number, place, first in (
        (market, 1, "market1501", "86.6"),
        (mixed, 2, "msmt17", "57.0"),
    ):
        table = read(root / f"report/table_2_{number}.csv")
        printed = select(table, Status="as printed", metric="mAP")
        assert list(printed["Pair loss"]) == ["Triplet", "Contrastive", "Cosface"]
        assert printed["mean"].iloc[0] == first and set(printed["dataset"]) == {place}
        assert set(table["kind"]) == {"published"}
        notes = (root / "notes.md").read_text()
        assert "lists IANet as not implemented" in notes


def test_a_plan_of_retrieval_alone_has_no_table_of_attributes(market):
    assert not any((market / f"{name}.csv").exists() for name in ("standard", "parameters", "cost"))
    assert len(read(market / "reid.csv")) == 5 * 3
    index = (market / "index.md").read_text()
    assert "## Re-identification\n" in index
    assert read_json(market.parent / "scored.json").keys() == {
        f"market1501/reid/{method}/default/seed{seed}/{subset}"
        for method in SKILL
        for seed in ((0,) if method == "zero_shot" else (0, 1))
        for subset in ("val", "test")
    }


def test_splits_across_datasets_have_a_table_of_their_own():
    found = {d.name: d for d in read_definitions()}
    for split in ("reid", "reid_val", "detected"):
        assert found["reid"].has_split(split) and not found["cross_domain"].has_split(split)
    assert found["cross_domain"].has_split("market1501_to_msmt17")
    assert not found["reid"].has_split("market1501_to_msmt17")
    assert found["other_splits"].has_split("peta_to_rapv2")
