"""The MLflow mirror: everything once, nothing twice, whatever happened in between."""

from __future__ import annotations

import os
import re
import sqlite3

import pytest
from helpers import fake_results
from mlflow import MlflowClient
from sqlalchemy.exc import OperationalError

from pedbench import tracking
from pedbench.contracts import PedbenchError
from pedbench.files import read_json, write_json
from pedbench.results import read_run
from pedbench.score import score_runs
from pedbench.tracking import CONTENT, KEY, sqlite_store, track


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
    """Run key -> MLflow run, over all experiments; fails when a key is there twice."""
    client = MlflowClient(f"sqlite:///{results.root / 'mlflow.db'}")
    ids = [e.experiment_id for e in client.search_experiments() if e.name != "Default"]
    runs = client.search_runs(ids) if ids else []
    found = {run.data.tags[KEY]: run for run in runs}
    assert len(found) == len(runs)
    return client, found


def test_runs_are_mirrored_whole_and_only_once(results):
    marker = results.root / "mlflow.json"
    assert track(results.folders, marker) == {"created": 6, "replaced": 0, "skipped": 0}
    assert track(results.folders, marker) == {"created": 0, "replaced": 0, "skipped": 6}
    client, found = mirrored(results)
    assert set(found) == {read_run(folder).key for folder in results.folders}
    assert set(read_json(marker)) == set(found)
    run = found["a/standard/linear_probe/default/seed1"]
    assert run.info.status == "FINISHED" and run.info.run_name == "linear_probe/default/seed1"
    assert run.data.params["protocol.threshold"] == "0.5" and run.data.params["params.lr"] == "0.01"
    losses = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in losses] == [(s, 1 / (s + 1)) for s in range(4)]
    folder = next(f for f in results.folders if read_run(f).key == run.data.tags[KEY])
    scores = read_json(folder / "scores.test.json")["overall"]
    assert run.data.metrics["test/mA"] == scores["mA"]
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true" and os.environ["DO_NOT_TRACK"] == "true"
    assert not (results.root / "mlruns").exists()


def test_a_changed_run_replaces_its_mirror(results):
    marker = results.root / "mlflow.json"
    track(results.folders, marker)
    path = results.folders[0] / "scores.test.json"
    scores = read_json(path)
    scores["overall"]["mA"] = 0.125
    write_json(path, scores)
    assert track(results.folders, marker) == {"created": 0, "replaced": 1, "skipped": 5}
    _, found = mirrored(results)
    assert found[read_run(results.folders[0]).key].data.metrics["test/mA"] == 0.125


def test_a_half_written_run_is_made_anew(results, monkeypatch):
    marker = results.root / "mlflow.json"
    calls = []

    def killed(run):
        calls.append(run)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(run)

    real = tracking.steps
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tracking, "steps", killed)
        track(results.folders, marker)
    assert not marker.exists()
    assert track(results.folders, marker) == {"created": 3, "replaced": 1, "skipped": 2}
    _, found = mirrored(results)
    assert len(found) == 6 and all(CONTENT in run.data.tags for run in found.values())


def test_an_interrupted_migration_leaves_no_store(tmp_path, monkeypatch):
    def killed(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(MlflowClient, "search_experiments", killed)
    with pytest.raises(KeyboardInterrupt):
        sqlite_store(tmp_path / "mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()


def test_another_store_is_taken_from_the_environment(results, tmp_path, store, monkeypatch):
    other = tmp_path / "other.db"
    other.write_bytes(store.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    track(results.folders, results.root / "mlflow.json")
    count = "select count(*) from runs"
    assert sqlite3.connect(other).execute(count).fetchone() == (6,)
    assert sqlite3.connect(results.root / "mlflow.db").execute(count).fetchone() == (0,)


def test_a_server_out_of_reach_is_named_without_its_password(results, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    start = "MLflow's store http://127.0.0.1:9 cannot be used (MlflowException: "
    with pytest.raises(PedbenchError, match=f"^{re.escape(start)}") as caught:
        track(results.folders, results.root / "mlflow.json")
    assert "secret" not in str(caught.value)
    assert not (results.root / "mlflow.json").exists()


def test_a_full_disk_is_one_line(results, monkeypatch):
    def full(*_, **__):
        raise OperationalError("INSERT", {}, Exception("database or disk is full"))

    monkeypatch.setattr(MlflowClient, "create_run", full)
    start = f"MLflow's store {results.root}/mlflow.db cannot be used (OperationalError: "
    with pytest.raises(PedbenchError, match=f"^{re.escape(start)}.*disk is full.*run the same"):
        track(results.folders, results.root / "mlflow.json")
