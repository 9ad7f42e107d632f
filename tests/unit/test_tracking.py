"""The MLflow mirror: everything once, nothing twice, whatever happened in between."""

from __future__ import annotations

import os
import re
import sqlite3
import statistics
from pathlib import Path

import pytest
from helpers import fake_mixed_results, fake_results
from mlflow import MlflowClient
from sqlalchemy.exc import OperationalError

from pedbench.contracts import PedbenchError
from pedbench.files import read_json, write_json
from pedbench.results import read_run
from pedbench.score import score_runs
from pedbench.tracking import FILES, KEY, ExperimentMirror, sqlite_store, track, ui


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A migrated empty store: migration takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    sqlite_store(path)
    return path


@pytest.fixture
def results(tmp_path, store, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(store.read_bytes())
    skill = {"zero_shot": 0.2, "linear_probe": 1.0}
    found = fake_results(tmp_path, skill=skill, seeds=(0, 1), images=10)
    score_runs(found.folders, found.manifests, tmp_path / "scored.json")
    return found


def mirrored(results):
    """Key -> MLflow run, over all experiments; fails when a key is there twice."""
    client = MlflowClient(f"sqlite:///{results.root / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    found = {run.data.tags[KEY]: run for run in runs}
    assert len(found) == len(runs)
    return client, found


def test_runs_are_mirrored_whole_and_only_once(results):
    marker = results.root / "mlflow.json"
    assert track(results.folders, marker) == {"created": 6, "replaced": 0, "skipped": 0}
    assert track(results.folders, marker) == {"created": 0, "replaced": 0, "skipped": 6}
    client, found = mirrored(results)
    keys = {read_run(folder).key for folder in results.folders}
    assert set(read_json(marker)) == keys
    assert set(found) == keys | {key.rpartition("/")[0] for key in keys}
    run = found["a/standard/linear_probe/default/seed1"]
    folder = results.root / "runs/a/standard/linear_probe/default/seed1"
    assert run.info.status == "FINISHED" and run.info.run_name == "Linear probe, seed 1"
    assert run.data.params["protocol.threshold"] == "0.5" and run.data.params["lr"] == "0.01"
    losses = client.get_metric_history(run.info.run_id, "fit/loss/bce")
    assert [(m.step, m.value) for m in losses] == [(2, 0.4), (4, 0.3)]
    scores = read_json(folder / "scores.test.json")["overall"]
    assert run.data.metrics["test/mA"] == scores["mA"]
    assert run.data.metrics["cost/seconds_fit"] == 2.5
    tags = {"seed": "1", "commit": "c0ffee", "dirty": "False", "device": "cpu"}
    tags |= {
        "protocol": "embedded v1",
        "backbone": "tiny",
        "digest": read_run(folder).config["digest"],
    }
    assert tags.items() <= run.data.tags.items()
    assert run.inputs is not None
    data = run.inputs.dataset_inputs[0].dataset
    assert data.name == "a" and run.data.tags["manifest_digest"].startswith(data.digest)
    files = {f.path: f for f in client.list_artifacts(run.info.run_id)}
    assert set(files) == set(FILES)
    kept = client.download_artifacts(run.info.run_id, "cost.json")
    assert read_json(Path(kept)) == read_json(folder / "cost.json")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true" and os.environ["DO_NOT_TRACK"] == "true"
    assert not (results.root / "mlruns").exists()


def test_a_variant_is_the_parent_of_its_seeds(results):
    track(results.folders, results.root / "mlflow.json")
    _, found = mirrored(results)
    key = "a/standard/linear_probe/default"
    parent, seeds = found[key], [found[f"{key}/seed{seed}"] for seed in (0, 1)]
    assert parent.info.run_name == "Linear probe" and parent.data.tags["seed"] == "0, 1"
    assert [s.data.tags["mlflow.parentRunId"] for s in seeds] == [parent.info.run_id] * 2
    values = [seed.data.metrics["test/mA"] for seed in seeds]
    assert parent.data.metrics["test/mA"] == pytest.approx(statistics.fmean(values))
    assert parent.data.metrics["test_sd/mA"] == pytest.approx(statistics.stdev(values))
    assert parent.data.params == seeds[0].data.params
    alone = found["a/standard/zero_shot/default"]
    assert not [name for name in alone.data.metrics if name.startswith("test_sd/")]


def test_no_mean_over_a_gap(results):
    folder = results.root / "runs/a/standard/linear_probe/default/seed1"
    change(folder, "AP", None)
    track(results.folders, results.root / "mlflow.json")
    _, found = mirrored(results)
    parent = found["a/standard/linear_probe/default"].data.metrics
    assert "test/AP" not in parent and "test_sd/AP" not in parent and "test/AUC" in parent


def change(folder, metric, value):
    scores = read_json(folder / "scores.test.json")
    scores["overall"][metric] = value
    write_json(folder / "scores.test.json", scores)


def test_a_changed_run_replaces_its_mirror_and_the_mean(results):
    marker = results.root / "mlflow.json"
    track(results.folders, marker)
    _, before = mirrored(results)
    key = "a/standard/linear_probe/default"
    change(results.root / "runs" / key / "seed0", "mA", 0.125)
    assert track(results.folders, marker) == {"created": 0, "replaced": 1, "skipped": 5}
    _, found = mirrored(results)
    assert found[f"{key}/seed0"].data.metrics["test/mA"] == 0.125
    other = found[f"{key}/seed1"]
    assert other.info.run_id == before[f"{key}/seed1"].info.run_id
    assert found[key].data.metrics["test/mA"] == (0.125 + other.data.metrics["test/mA"]) / 2
    assert other.data.tags["mlflow.parentRunId"] == found[key].info.run_id


def test_a_seed_that_left_the_plan_leaves_the_mirror(results):
    track(results.folders, results.root / "mlflow.json")
    fewer = [folder for folder in results.folders if folder.name == "seed0"]
    assert track(fewer, results.root / "mlflow.json") == {"created": 0, "replaced": 0, "skipped": 4}
    _, found = mirrored(results)
    assert not [key for key in found if key.endswith("seed1")]
    assert found["a/standard/linear_probe/default"].data.tags["seed"] == "0"


@pytest.mark.parametrize(("step", "stop"), [("fill", 3), ("end", 2), ("end", 3), ("start", 5)])
def test_a_half_written_run_is_made_anew(results, monkeypatch, step, stop):
    marker, calls = results.root / "mlflow.json", []
    real = getattr(ExperimentMirror, step)

    def killed(self, *words):
        calls.append(words)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return real(self, *words)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ExperimentMirror, step, killed)
        track(results.folders, marker)
    assert not marker.exists()
    counts = track(results.folders, marker)
    assert sum(counts.values()) == 6 and counts["created"] >= 3
    _, found = mirrored(results)
    assert len(found) == 6 + 4 and all(r.info.status == "FINISHED" for r in found.values())
    parents = {key: run.info.run_id for key, run in found.items()}
    for key, run in found.items():
        above = run.data.tags.get("mlflow.parentRunId")
        assert above == (parents[key.rpartition("/")[0]] if "/seed" in key else None)
    assert track(results.folders, marker) == {"created": 0, "replaced": 0, "skipped": 6}


def test_an_interrupted_migration_leaves_no_store(tmp_path, monkeypatch):
    def killed(self, number):
        raise KeyboardInterrupt

    monkeypatch.setattr(MlflowClient, "delete_experiment", killed)
    with pytest.raises(KeyboardInterrupt):
        sqlite_store(tmp_path / "mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()


def test_another_store_is_taken_from_the_environment(results, tmp_path, store, monkeypatch):
    other = tmp_path / "other.db"
    other.write_bytes(store.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    track(results.folders, results.root / "mlflow.json")
    count = "select count(*) from runs"
    assert sqlite3.connect(other).execute(count).fetchone() == (10,)
    assert sqlite3.connect(results.root / "mlflow.db").execute(count).fetchone() == (0,)


def test_a_server_out_of_reach_is_named_without_its_password(results, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s%40cret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    start = "MLflow's store http://127.0.0.1:9 cannot be used (MlflowException: "
    with pytest.raises(PedbenchError, match=f"^{re.escape(start)}") as caught:
        track(results.folders, results.root / "mlflow.json")
    assert not re.search("s(%40|@)cret", str(caught.value))
    assert not (results.root / "mlflow.json").exists()


def test_a_full_disk_is_one_line(results, monkeypatch):
    def full(*_, **__):
        raise OperationalError("INSERT", {}, Exception("database or disk is full"))

    monkeypatch.setattr(MlflowClient, "create_run", full)
    start = f"MLflow's store {results.root}/mlflow.db cannot be used (OperationalError: "
    with pytest.raises(PedbenchError, match=f"^{re.escape(start)}.*disk is full.*run the same"):
        track(results.folders, results.root / "mlflow.json")


def test_the_ui_needs_a_mirror(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(PedbenchError, match="mlflow.db: no such file; 'snakemake --cores all "):
        ui(tmp_path, 5050)


def test_both_tasks_have_experiments_that_say_what_they_are(tmp_path, store, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(store.read_bytes())
    found = fake_mixed_results(tmp_path, skill={"full": 1.0}, seeds=(0,), images=10)
    score_runs(found.folders, found.manifests, tmp_path / "scored.json")
    assert track(found.folders, tmp_path / "mlflow.json")["created"] == 2
    client, runs = mirrored(found)
    notes = {e.name: e.tags["mlflow.note.content"] for e in client.search_experiments()}
    assert "Pedestrian re-identification on **r**" in notes["r reid"]
    assert "(`test/mAP`)" in notes["r reid"] and "(`test/mA`)" in notes["a standard"]
    scores = read_json(tmp_path / "runs/r/reid/full/default/seed0/scores.test.json")
    metrics = runs["r/reid/full/default/seed0"].data.metrics
    assert metrics["test/mAP"] == pytest.approx(scores["overall"]["mAP"])
    assert not {"test/mA", "test/queries"} & metrics.keys()
