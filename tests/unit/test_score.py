"""Scores and the long table: right numbers, skipped when current, refused when mixed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import fake_mixed_results, fake_reid_results, fake_results, write_predictions

from pedbench.collect import check_comparable, collect, read_long, select
from pedbench.contracts import PedbenchError
from pedbench.files import read_json, write_json
from pedbench.manifest import read_manifest, write_manifest
from pedbench.results import (
    read_features,
    read_predictions,
    read_rankings,
    read_run,
    sigmoid,
)
from pedbench.score import score_runs
from pedbench.tasks import TESTED, par, reid


@pytest.fixture
def results(tmp_path):
    return fake_results(tmp_path, splits=("standard",), images=40)


def scored(results):
    return score_runs(results.folders, results.manifests, results.root / "scored.json")


def test_sigmoid_is_exact_and_does_not_overflow():
    logits = np.array([-1000.0, -1.0, 0.0, 1.0, 1000.0])
    expected = [0.0, 1 / (1 + np.e), 0.5, np.e / (1 + np.e), 1.0]
    np.testing.assert_allclose(sigmoid(logits), expected, rtol=1e-15)


def test_scores_are_the_metrics_of_the_predictions(results):
    scored(results)
    run = read_run(results.folders[1])
    p = read_predictions(run, read_manifest(results.manifests["a"]), "test")
    found = read_json(run.folder / "scores.test.json")
    expected = par.score(p.probabilities, p.labels, 0.5)
    assert {k: v for k, v in expected.items() if not np.isnan(v)} == found["overall"]
    assert set(found["attributes"]) == {"hat", "bag", "a_b"}
    assert found["images"] == 40


def set_protocol(folder, key, value):
    config = read_json(folder / "config.json")
    config["protocol"][key] = {"value": value, "from": "test"}
    write_json(folder / "config.json", config)


def test_the_threshold_is_the_protocols(results):
    folder = results.folders[1]
    set_protocol(folder, "threshold", 0.9)
    scored(results)
    run = read_run(folder)
    p = read_predictions(run, read_manifest(results.manifests["a"]), "test")
    overall = read_json(folder / "scores.test.json")["overall"]
    assert overall["mA"] == par.score(p.probabilities, p.labels, 0.9)["mA"]
    assert overall["mA"] != par.score(p.probabilities, p.labels, 0.5)["mA"]


@pytest.mark.parametrize("setting", ["ignored", "negative_in_training", "negative"])
def test_unknown_labels_are_scored_as_the_protocol_says(results, setting):
    folder, manifest = results.folders[1], read_manifest(results.manifests["a"])
    set_protocol(folder, "unknown_labels", setting)
    scored(results)
    p = read_predictions(read_run(folder), manifest, "test")
    truth = manifest.subset("standard", "test").labels
    assert (truth == -1).any()
    if setting == "negative":
        truth = np.maximum(truth, 0)
    np.testing.assert_array_equal(p.labels, truth)
    overall = read_json(folder / "scores.test.json")["overall"]
    assert overall["accuracy_label"] == par.score(p.probabilities, truth)["accuracy_label"]


def test_runs_that_score_unknown_labels_differently_are_refused(results, tmp_path):
    for folder in results.folders:
        set_protocol(folder, "unknown_labels", "ignored")
    set_protocol(results.folders[-1], "unknown_labels", "negative_in_training")
    scored(results)
    collect(results.folders, tmp_path / "long.parquet")  # scored alike
    set_protocol(results.folders[-1], "unknown_labels", "negative")
    with pytest.raises(PedbenchError, match=r"left out against .*unknown labels negative\)"):
        collect(results.folders, tmp_path / "long.parquet")


def test_only_changed_predictions_are_scored_again(results):
    assert scored(results) == 2 * len(results.folders)
    before = {f: (f / "scores.test.json").read_bytes() for f in results.folders}
    assert scored(results) == 0
    changed = results.folders[2]
    images = read_manifest(results.manifests["a"]).subset("standard", "test")
    write_predictions(changed, "test", images, np.ones(images.labels.shape))
    assert scored(results) == 1
    different = [f for f in results.folders if (f / "scores.test.json").read_bytes() != before[f]]
    assert different == [changed]


def test_predictions_of_other_images_are_refused(results):
    folder = results.folders[0]
    images = read_manifest(results.manifests["a"]).subset("standard", "val")
    write_predictions(folder, "test", images, np.zeros(images.labels.shape))
    with pytest.raises(PedbenchError, match=r"predictions\.test\.parquet.*not those of the manif"):
        scored(results)


def test_nan_logits_are_refused(results):
    images = read_manifest(results.manifests["a"]).subset("standard", "test")
    write_predictions(results.folders[0], "test", images, np.full(images.labels.shape, np.nan))
    with pytest.raises(PedbenchError, match="NaN"):
        scored(results)


def test_a_damaged_predictions_file_is_named(results):
    (results.folders[0] / "predictions.val.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(PedbenchError, match=r"predictions\.val\.parquet: not readable"):
        scored(results)


def test_long_table_is_tidy_complete_and_reproducible(results, tmp_path):
    scored(results)
    collect(results.folders, tmp_path / "one.parquet")
    collect(reversed(results.folders), tmp_path / "two.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    long = read_long(tmp_path / "one.parquet")
    rows_of_a_run = len(par.RESAMPLED) + 3 + 3 * len(par.PER_ATTRIBUTE)
    assert len(long) == len(results.folders) * 2 * rows_of_a_run
    assert len(long.drop_duplicates(list(long.columns[:8]))) == len(long)
    row = select(long, method="full", seed=1, subset="val", attribute="bag", metric="AP")
    folder = next(f for f in results.folders if f.parts[-3:] == ("full", "default", "seed1"))
    assert row["value"].item() == read_json(folder / "scores.val.json")["attributes"]["bag"]["AP"]
    assert row["digest"].item() == read_json(folder / "config.json")["digest"]
    assert row["protocol"].item() == "embedded v1"


def test_an_undefined_metric_is_null_not_a_number(results, tmp_path):
    run = read_run(results.folders[0])
    manifest = read_manifest(results.manifests["a"])
    manifest.rows["label:hat"] = np.int8(0)
    write_manifest(manifest, results.manifests["a"])
    scored(results)
    assert read_json(run.folder / "scores.test.json")["attributes"]["hat"]["AP"] is None
    collect(results.folders, tmp_path / "long.parquet")
    hat = select(read_long(tmp_path / "long.parquet"), attribute="hat", metric="AP")
    assert set(hat["value"].isna()) == {True}
    assert pq.read_table(tmp_path / "long.parquet")["value"].null_count > 0


@pytest.mark.parametrize("what", ["protocols", "manifests"])
def test_mixed_runs_are_refused_by_name(results, tmp_path, what):
    scored(results)
    folder = results.folders[-1]
    config = read_json(folder / "config.json")
    if what == "protocols":
        config["protocol"]["version"]["value"] = "2"
    else:
        config["manifest_digest"] = "other"
    write_json(folder / "config.json", config)
    with pytest.raises(PedbenchError, match=f"a/standard/promptpar/default/seed2.*{what} differ"):
        collect(results.folders, tmp_path / "long.parquet")
    assert not (tmp_path / "long.parquet").exists()


def test_what_a_comparison_may_test_are_the_tasks_own_metrics():
    assert set(TESTED["par"]) == {"F1", *par.RESAMPLED}
    assert TESTED["reid"] == reid.METRICS


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory):
    root = tmp_path_factory.mktemp("retrieval")
    return fake_reid_results(root, skill={"zero_shot": 0.4, "full": 2.0}, seeds=(0,))


def test_scores_of_retrieval_are_the_metrics_of_the_queries_that_count(retrieval):
    scored(retrieval)
    run = read_run(retrieval.folders[1])
    found, marker = read_json(run.folder / "scores.test.json"), retrieval.root / "scored.json"
    assert {"queries", "skipped", "gallery", "overall", "rankings"} <= found.keys()
    assert (found["queries"], found["skipped"], found["gallery"]) == (28, 1, 28)
    assert not {"attributes", "threshold", "images"} & found.keys()
    table = pq.read_table(run.folder / "rankings.test.parquet").to_pandas()
    counted = table[table["matches"] > 0]
    assert found["overall"]["mAP"] == pytest.approx(counted["AP"].mean())
    assert found["overall"]["mINP"] == pytest.approx(counted["INP"].mean())
    for rank in (1, 5, 10):
        share = (counted["first"] <= rank).mean()
        assert found["overall"][f"rank{rank}"] == pytest.approx(share)
    assert read_json(marker)[f"{run.key}/test"] == found["rankings"]
    assert scored(retrieval) == 0


def test_a_long_table_of_both_tasks(tmp_path):
    results = fake_mixed_results(tmp_path, skill={"full": 1.0}, seeds=(0,), images=20)
    scored(results)
    collect(results.folders, tmp_path / "long.parquet")
    long = read_long(tmp_path / "long.parquet")
    metrics = {d: set(rows["metric"]) for d, rows in long.groupby("dataset")}
    assert metrics["r"] == set(reid.METRICS) and "mAP" not in metrics["a"]
    assert set(long.query("dataset == 'r'")["attribute"]) == {""}
    assert set(long.query("dataset == 'r'")["protocol"]) == {"embedded_reid v1"}


def test_the_two_tasks_of_a_dataset_have_protocols_of_their_own(tmp_path):
    results = fake_mixed_results(tmp_path, skill={"full": 1.0}, seeds=(0, 1), images=20)
    for folder in results.folders:
        config = read_json(folder / "config.json")
        write_json(folder / "config.json", config | {"dataset": "one", "manifest_digest": "one"})
    check_comparable([read_run(folder) for folder in results.folders])
    set_protocol(results.folders[-1], "version", "2")
    with pytest.raises(PedbenchError, match="embedded_reid v1 against embedded_reid v2"):
        check_comparable([read_run(folder) for folder in results.folders])


def test_rankings_and_features_are_read_as_they_are(retrieval):
    run, manifest = read_run(retrieval.folders[1]), read_manifest(retrieval.manifests["r"])
    rows = manifest.subset("reid", "test").rows
    found, features = read_rankings(run, manifest, "test"), read_features(run, manifest, "test")
    assert features.shape == (len(rows), 6) and features.dtype == np.float32
    q, g = found.query, found.gallery
    who, where = rows["identity"].to_numpy(), rows["camera"].to_numpy()
    again = reid.rank(features[q], features[g], who[q], who[g], where[q], where[g])
    for name in ("matches", "first", "AP", "INP", "top"):
        np.testing.assert_array_equal(getattr(found.rankings, name), getattr(again, name))
    assert found.rankings.skipped == 1 and list(found.identity) == list(who[q])


DAMAGE: dict[str, tuple[str, Any]] = {
    "first": ("row 0 holds numbers that no ranking has", lambda t: t * 0),
    "AP": ("row 0 holds numbers that no ranking has", lambda t: t + 1),
    "INP": ("row 0 holds numbers that no ranking has", lambda t: t * np.nan),
    "matches": ("its queries are not those of the manifest", lambda t: t + 1),
    "identity": ("its queries are not those of the manifest", lambda t: t + 1),
    "camera": ("its queries are not those of the manifest", lambda t: t[::-1]),
}


@pytest.mark.parametrize("column", DAMAGE)
def test_rankings_that_cannot_be_are_refused(retrieval, tmp_path, column):
    run, manifest = read_run(retrieval.folders[1]), read_manifest(retrieval.manifests["r"])
    message, change = DAMAGE[column]
    table = pq.read_table(run.folder / "rankings.test.parquet")
    values = pa.array(change(table[column].to_numpy()))
    table = table.set_column(table.column_names.index(column), column, values)
    pq.write_table(table, tmp_path / "rankings.test.parquet")
    with pytest.raises(PedbenchError, match=message):
        read_rankings(replace(run, folder=tmp_path), manifest, "test")


def test_a_gallery_without_the_position_and_features_that_are_none_are_refused(retrieval, tmp_path):
    run, manifest = read_run(retrieval.folders[1]), read_manifest(retrieval.manifests["r"])
    here = replace(run, folder=tmp_path)
    table = pq.read_table(run.folder / "rankings.test.parquet")
    top = pa.FixedSizeListArray.from_arrays(pa.array(np.full(280, 28, np.int32)), 10)
    pq.write_table(table.set_column(7, "top", top), tmp_path / "rankings.test.parquet")
    with pytest.raises(PedbenchError, match="row 0 holds numbers"):
        read_rankings(here, manifest, "test")
    uneven = pa.array([[1.0]] * 27 + [[]])
    pq.write_table(table.set_column(7, "top", uneven), tmp_path / "rankings.test.parquet")
    with pytest.raises(PedbenchError, match=r"rankings\.test\.parquet: its lists differ in length"):
        read_rankings(here, manifest, "test")
    table = pq.read_table(run.folder / "predictions.test.parquet")
    nothing = np.full(6 * len(table), np.nan, np.float32)
    values = pa.FixedSizeListArray.from_arrays(pa.array(nothing), 6)
    pq.write_table(table.set_column(1, "feature", values), tmp_path / "predictions.test.parquet")
    with pytest.raises(PedbenchError, match="NaN or infinite features"):
        read_features(here, manifest, "test")
