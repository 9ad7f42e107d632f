"""How far a plan is: what is counted, from files as trainings leave them."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest

from pedbench import cli
from pedbench.files import write_json
from pedbench.plan import make_plan
from pedbench.runs import RunFolder
from pedbench.status import Run, status

ENDED = 2**22 + 1  # above the largest number of a process


@pytest.fixture
def plan(tmp_path):
    config = {
        **{"protocol": "embedded", "presets": ["tiny_clip"], "backbone": "tiny_clip"},
        **{"datasets": ["synthetic_a/standard", "synthetic_b/standard"], "seeds": [0, 1, 2]},
        **{"methods": ["zero_shot", "linear_probe", "lora"], "results": str(tmp_path / "r")},
    }
    made = make_plan(config)
    write_json(tmp_path / "r/plan.json", made.as_json())
    return made


def folder(plan, method: str, seed: int, dataset: str = "synthetic_a") -> RunFolder:
    one = plan.experiment(dataset, "standard", method, "default")
    return RunFolder(Path(one.folder) / f"seed{seed}")


def begin(run: RunFolder, process: int, host: str = socket.gethostname()) -> None:
    config = {"protocol": {"epochs": {"value": 40, "from": "embedded.yaml"}}}
    write_json(run.config, config)
    run.lock.write_text(f"host {host}, process {process}, job 7, since now\n")


def log_of(plan, run: RunFolder, seeds: str, text: str) -> Path:
    path = Path(plan.results, "logs/train", *run.path.parts[-5:-1], f"{seeds}.log")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def of(plan, run: RunFolder) -> Run:
    key, seed = "/".join(run.path.parts[-5:-1]), int(run.path.name.removeprefix("seed"))
    found = [r for r in status(plan.as_json()).runs if (r.experiment, r.seed) == (key, seed)]
    assert len(found) == 1
    return found[0]


def test_before_the_first_start_all_is_waiting(plan):
    found = status(plan.as_json())
    assert {run.state for run in found.runs} == {"waiting"} and len(found.runs) == 14
    assert found.made == () and found.next[:2] == ("train", "score")


def test_every_state_is_told_from_the_files(plan):
    finished, refused = folder(plan, "lora", 0), folder(plan, "zero_shot", 0)
    write_json(finished.done, {"files": {}})
    write_json(refused.path.parent / "refused.json", {"reason": "needs tokens"})
    running = folder(plan, "linear_probe", 0)
    begin(running, os.getpid())
    killed, failed, left = (folder(plan, "lora", n, "synthetic_b") for n in (0, 1, 2))
    for run in (killed, failed, left):
        begin(run, ENDED)
    for run, line in (
        (failed, "RuntimeError: CUDA out of memory"),
        (left, "pedbench: x: stopped, since it got SIGTERM; go on"),
    ):
        log_of(plan, run, run.path.name[4:], f"epoch 1\r 50%\rTraceback\n{line}\n\n")
    states = [of(plan, run).state for run in (finished, refused, running, killed, failed, left)]
    assert states == ["finished", "refused", "running", "stopped", "failed", "stopped"]
    assert of(plan, refused).detail == "needs tokens"
    assert of(plan, failed).detail.endswith("lora/default/1.log: RuntimeError: CUDA out of memory")
    document = status(plan.as_json()).as_json()
    assert document["states"] == {
        **{"finished": 1, "refused": 1, "running": 1},
        **{"stopped": 2, "failed": 1, "waiting": 8},
    }
    assert document["places"]["synthetic_b/standard"]["stopped"] == 2
    assert document["methods"]["linear_probe"]["running"] == 1


def test_a_failed_job_without_a_folder_is_found_by_the_seeds_of_its_log(plan):
    run = folder(plan, "lora", 1)
    log_of(plan, run, "0-1-2", "pedbench: results/plan.json: no such file\n")
    log_of(plan, run, "10", "pedbench: of another seed\n")
    assert of(plan, run).state == "failed" and "plan.json: no such file" in of(plan, run).detail
    os.utime(log_of(plan, run, "1", "all is well\n"), (time.time() + 9, time.time() + 9))
    assert of(plan, run).state == "waiting"  # the latest log says so


def test_where_a_running_one_is(plan):
    run = folder(plan, "lora", 0)
    begin(run, 1, host="node7")  # nothing is known of its processes here
    assert of(plan, run).detail.startswith("begun, written 0 s ago (host node7, process 1, job 7")
    rows = [{"epoch": n, "step": 10 * n, "loss": 1.0} for n in range(12)]
    run.metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    os.utime(run.metrics, (time.time() - 600, time.time() - 600))
    assert of(plan, run).detail.startswith("epoch 12 of 40, step 110, written 10 min ago")
    write_json(run.checkpoint / "latest.json", {"file": "state-fit-130.safetensors"})
    assert of(plan, run).detail.startswith("step 130, written 0 s ago")


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("RuntimeError: CUDA out of memory", "failed"),
        ("pedbench: x: stopped, since it got SIGTERM; go on", "stopped"),
        ("pedbench: warning: the file system has no locks", "running"),
        ("lora seed0 fit:  50%", "running"),
    ],
)
def test_a_holder_on_another_host_runs_until_its_log_says_otherwise(plan, line, state):
    run = folder(plan, "lora", 0)
    begin(run, 1, host="node7")
    log_of(plan, run, "0", f"{line}\n")
    assert of(plan, run).state == state


def test_who_let_go_of_the_lock_runs_no_longer(plan):
    run = folder(plan, "lora", 0)
    begin(run, ENDED)
    with run.alone():
        assert of(plan, run).state == "running"
    assert run.lock.read_text() == "" and of(plan, run).state == "stopped"


@pytest.mark.parametrize("odd", [None, "", "{}", "[]", '{"file": 3}', '{"file": "state.st"}'])
def test_files_that_vanish_or_say_nothing_do_no_harm(plan, odd, monkeypatch):
    """A training that ends meanwhile drops its checkpoint."""
    run = folder(plan, "lora", 0)
    begin(run, os.getpid())
    for path in (run.metrics, run.checkpoint / "latest.json"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(odd or "")
        os.utime(path, (time.time() + 60, time.time() + 60))
        if odd is None:
            path.unlink()
            monkeypatch.setattr(
                Path,
                "is_file",
                lambda path, is_file=Path.is_file: (
                    path.name in ("metrics.jsonl", "latest.json") or is_file(path)
                ),
            )
    assert of(plan, run).state == "running" and of(plan, run).detail.startswith("begun, written")
    run.config.write_text("half")
    assert of(plan, run).detail.startswith("begun, written")


def test_what_comes_next(plan):
    results = Path(plan.results)
    for experiment in plan.experiments:
        for seed in experiment.seeds:
            write_json(Path(experiment.folder, f"seed{seed}", "train.done.json"), {})
    for name in ("scored.json", "long.parquet"):
        (results / name).touch()
    assert status(plan.as_json()).made == ("score", "collect")
    assert status(plan.as_json()).next == (
        "stats",
        "cost",
        "selection",
        "figures",
        "pictures",
        "track",
        "tables",
    )
    text = status(plan.as_json()).as_text()
    assert text.startswith(f"{results}: 6 experiments, 14 runs\n")
    assert "to come: stats, cost" in text and "waiting" not in text


def test_slurms_queue_is_counted_where_there_is_one(plan, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert status(plan.as_json()).queue is None
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho RUNNING; echo PENDING; echo PENDING\n")
    squeue.chmod(0o755)
    assert status(plan.as_json()).queue == {"PENDING": 2, "RUNNING": 1}
    assert "Slurm's queue: 2 pending, 1 running" in status(plan.as_json()).as_text()
    squeue.write_text("#!/bin/sh\nexit 1\n")
    assert status(plan.as_json()).queue is None


def test_command(plan, tmp_path, capsys):
    assert cli.main(["status", "--results", plan.results]) == 0
    assert "14 runs" in capsys.readouterr().out
    assert cli.main(["status", "--results", plan.results, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["states"]["waiting"] == 14
    assert cli.main(["status", "--configfile", "config/smoke.yaml"]) == 0
    assert capsys.readouterr().out.startswith("results/smoke: ")
    assert cli.main(["status", "--results", str(tmp_path / "none")]) == 1
    assert "plan.json: no such file" in capsys.readouterr().err
