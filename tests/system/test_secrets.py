"""Passwords of a tracking server stay in the environment, and our own server speaks to this
machine only."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import closing

import psutil
import pytest
from checkout import Checkout
from helpers import fake_results, finish

from pedbench.tracking import serve, sqlite_store

pytestmark = pytest.mark.system
SECRETS = ("s3cret", "t0ken", "hf_t0k3n")
ADDRESSES = (
    "http://me:s3cret@127.0.0.1:9/?key=s3cret",
    "http://me:pa/ss#s3cret@127.0.0.1:9",
    "http://me:s3cret@[127.0.0.1:9",
    "postgresql://me:s3cret@127.0.0.1:9/db?password=s3cret",
    "mysql+pymysql://me:s3cret@127.0.0.1:9/db",
    "nothing://me:s3cret@host",
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """With runs to be mirrored, and everything before that step."""
    made = Checkout.make(tmp_path_factory.mktemp("secrets") / "pedbench")
    finish(fake_results(made.root / "results", skill={"linear_probe": 1.0}, images=10))
    return made


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    monkeypatch.setenv("HF_TOKEN", "hf_t0k3n")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


def told(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_store_that_fails_tells_no_secret(checkout, monkeypatch, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    command = (sys.executable, "-m", "pedbench.cli", "track", "--plan", "results/plan.json")
    done = checkout.run(*command, "--out", "results/mlflow.json")
    assert done.returncode == 1 and told(done.stdout) == [], done.stdout
    assert "Traceback" not in done.stdout and "pedbench: MLflow's store" in done.stdout


def test_snakemake_keeps_and_prints_no_secret(checkout, monkeypatch):
    """Neither of a dry run nor of a step that fails, with its log shown."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ADDRESSES[0])
    for options in (("-n", "-p"), ("-p", "--show-failed-logs", "--verbose")):
        target = ("results/mlflow.json", "--allowed-rules", "track", "--cores", "1")
        done = checkout.run("snakemake", *options, *target)
        assert told(done.stdout) == [], done.stdout
    assert done.returncode and "MLflow's store http://127.0.0.1:9/ cannot be used" in done.stdout
    assert (checkout.root / ".snakemake/log").is_dir()
    files = [path for path in checkout.root.rglob("*") if path.is_file()]
    assert (checkout.root / "results/logs/track.log") in files
    assert [str(p) for p in files if told(p.read_bytes().decode("latin-1"))] == []


def test_our_server_listens_to_this_machine_only(tmp_path):
    store = sqlite_store(tmp_path / "mlflow.db")
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = serve(store, tmp_path / "artifacts", port)
    try:
        family = [psutil.Process(server.pid)]
        family += family[0].children(recursive=True)
        open_ports = [c for one in family for c in one.net_connections() if c.status == "LISTEN"]
        assert {c.laddr.port for c in open_ports} >= {port}
        assert {c.laddr.ip for c in open_ports} == {"127.0.0.1"}
        for one in family:
            assert store not in " ".join(one.cmdline()), "all users of the machine see it"
    finally:
        for one in reversed(family):
            one.terminate()
        server.wait()
    assert os.environ.get("MLFLOW_BACKEND_STORE_URI") is None
