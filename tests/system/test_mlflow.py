"""The MLflow mirror against a real server that is killed in the middle, and seen in a browser."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from helpers import fake_results
from mlflow import MlflowClient
from tools import need

from pedbench.files import read_json, write_json
from pedbench.score import score_runs

pytestmark = pytest.mark.system
SKILL = {"zero_shot": 0.2, "linear_probe": 1.0, "lora": 1.4, "promptpar/region_deep": 1.5}
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
QUIET |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


class Server:
    """``mlflow server`` with a SQLite store, on a free port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/store.db"]
        command += ["--artifacts-destination", f"{self.folder}/artifacts"]
        log = (self.folder / "server.log").open("a")
        self.process = subprocess.Popen(
            command, env=os.environ | QUIET, stdout=log, stderr=log, start_new_session=True
        )
        while True:
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            try:
                with urlopen(f"{self.url}/health", timeout=5):
                    return
            except (URLError, OSError):
                time.sleep(0.2)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def runs(self) -> list[str]:
        """Status of every run in the store."""
        with closing(sqlite3.connect(self.folder / "store.db", timeout=60)) as store:
            return [status for (status,) in store.execute("select status from runs")]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    found = fake_results(root, skill=SKILL, images=10)
    score_runs(found.folders, found.manifests, root / "scored.json")
    write_json(root / "plan.json", found.plan)
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    one = Server(tmp_path_factory.mktemp("server"))
    one.start()
    yield one
    if one.process.poll() is None:
        one.kill()


def track(results, server) -> subprocess.CompletedProcess[str]:
    """The job, as its rule runs it; the store's URI holds a password."""
    uri = server.url.replace("//", "//me:s3cret@")
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    marker = results.root / "mlflow.json"
    return subprocess.run(
        [sys.executable, "-m", "pedbench.cli", "track", "--plan", results.root / "plan.json"]
        + ["--out", marker],
        cwd=results.root,
        env=environment,
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_a_server_killed_in_the_middle_loses_and_doubles_nothing(results, server):
    stopper = threading.Thread(target=kill_at, args=(server, 9))
    stopper.start()
    done = track(results, server)
    stopper.join()
    at_the_kill = Counter(server.runs())
    assert 0 < at_the_kill["FINISHED"] < len(results.folders) and at_the_kill["RUNNING"] > 0
    assert done.returncode == 1 and "Traceback" not in done.stdout
    message = f"pedbench: MLflow's store {server.url} cannot be used (MlflowException: "
    assert done.stdout.splitlines()[-1].startswith(message)
    assert "start the server" in done.stdout and "s3cret" not in done.stdout
    assert not (results.root / "mlflow.json").exists()

    server.start()
    done = track(results, server)
    assert done.returncode == 0, done.stdout
    first = compare(results, server)
    assert set(read_json(results.root / "mlflow.json")) == {key(f) for f in results.folders}

    done = track(results, server)
    assert f"0 created, 0 replaced, {len(results.folders)} skipped" in done.stdout
    assert compare(results, server) == first


def kill_at(server: Server, count: int) -> None:
    """Kill the server as soon as its store holds this many runs."""
    while len(server.runs()) < count:
        time.sleep(0.01)
    server.kill()


def compare(results, server) -> dict[str, str]:
    """Every parameter, metric, tag, link and file in MLflow against the run folders; returns the
    MLflow ids of the runs."""
    client = MlflowClient(server.url)
    experiments = {e.name: e for e in client.search_experiments() if e.name != "Default"}
    assert set(experiments) == {"a standard", "a zero_shot"}
    runs = client.search_runs([e.experiment_id for e in experiments.values()])
    ids = {run.data.tags["pedbench.run"]: run.info.run_id for run in runs}
    variants = {key(folder.parent): folder.parent for folder in results.folders}
    assert len(runs) == len(ids) and set(ids) == variants.keys() | map(key, results.folders)
    assert {run.info.status for run in runs} == {"FINISHED"}
    found = {run.data.tags["pedbench.run"]: run for run in runs}
    for folder in results.folders:
        run, config = found[key(folder)], read_json(folder / "config.json")
        assert experiments[" ".join(key(folder).split("/")[:2])].experiment_id == (
            run.info.experiment_id
        )
        assert run.data.params == params(config)
        assert {name: points(client, run, name) for name in run.data.metrics} == metrics(folder)
        tags = {k: str(config[k]) for k in ("dataset", "split", "method", "variant", "seed")}
        tags |= {k: config[k] for k in ("digest", "manifest_digest")}
        tags |= {"backbone": "tiny", "protocol": "embedded v1"}
        tags |= {"commit": "c0ffee", "dirty": "False", "device": "cpu"}
        assert tags.items() <= run.data.tags.items()
        assert run.data.tags["mlflow.parentRunId"] == ids[key(folder.parent)]
        files = {file.path: file.file_size for file in client.list_artifacts(run.info.run_id)}
        names = ("config.json", "cost.json", "environment.json", "metrics.jsonl")
        names += ("scores.test.json", "scores.val.json")
        assert files == {name: (folder / name).stat().st_size for name in names}
        assert run.inputs is not None
        (data,) = (entry.dataset for entry in run.inputs.dataset_inputs)
        assert data.name == "a" and config["manifest_digest"].startswith(data.digest)
    for name, variant in variants.items():
        check_parent(found[name], [f for f in results.folders if f.parent == variant])
    return ids


def check_parent(parent, seeds) -> None:
    assert "mlflow.parentRunId" not in parent.data.tags
    assert parent.data.params == params(read_json(seeds[0] / "config.json"))
    last = [{name: values[-1] for name, values in metrics(seed).items()} for seed in seeds]
    final = {n for n in last[0] if n.startswith(("test/", "val/", "cost/"))}
    expected = {name: statistics.fmean(one[name][1] for one in last) for name in final}
    if len(seeds) > 1:
        expected |= {
            name.replace("/", "_sd/"): statistics.stdev(one[name][1] for one in last)
            for name in final
        }
    assert parent.data.metrics == pytest.approx(expected)


def key(folder: Path) -> str:
    """``dataset/split/method/variant`` and, of a run's folder, ``/seed0``."""
    return str(folder).rpartition("/runs/")[2]


def params(config) -> dict[str, str]:
    shared = {f"protocol.{name}": entry for name, entry in config["protocol"].items()}
    return {name: str(entry["value"]) for name, entry in {**config["params"], **shared}.items()}


def points(client, run, name) -> list[tuple[int, float]]:
    return [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, name)]


def metrics(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> step and value of every number in the run's files."""
    found: dict[str, list[tuple[int, float]]] = {}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        name = f"{line['stage']}/loss/bce"
        found.setdefault(name, []).append((line["step"], line["loss/bce"]))
    last = lines[-1]["step"]
    for subset in ("val", "test"):
        overall = read_json(folder / f"scores.{subset}.json")["overall"]
        found |= {f"{subset}/{n}": [(last, v)] for n, v in overall.items() if v is not None}
    cost = read_json(folder / "cost.json")
    return found | {f"cost/{name}": [(last, value)] for name, value in cost.items()}


def test_a_browser_shows_experiments_and_variants(results, server):
    browser = need("chromium")
    assert track(results, server).returncode == 0
    found = MlflowClient(server.url).get_experiment_by_name("a standard")
    assert found is not None
    assert "a standard" in page(
        browser, f"{server.url}/#/experiments?workflowType=machine_learning"
    )
    shown = page(browser, f"{server.url}/#/experiments/{found.experiment_id}/runs")
    for name in ("Linear probe", "LoRA", "PromptPAR (region deep)"):
        assert name in shown


def page(browser: str, url: str) -> str:
    """The document as the browser has it when its scripts have run."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1600,900"]
    command += ["--virtual-time-budget=60000", "--dump-dom", url]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
