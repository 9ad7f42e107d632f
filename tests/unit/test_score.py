"""Scores and the long table: right numbers, skipped when current, refused when mixed."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import fake_results, write_predictions

from pedbench.collect import collect, read_long, select
from pedbench.contracts import PedbenchError
from pedbench.files import read_json, write_json
from pedbench.manifest import read_manifest, write_manifest
from pedbench.results import read_predictions, read_run, sigmoid
from pedbench.score import score_runs
from pedbench.tasks import par


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
