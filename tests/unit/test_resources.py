"""What jobs ask a cluster for."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from pedbench import registry
from pedbench.config import read_yaml
from pedbench.contracts import PedbenchError
from pedbench.estimate import describe, seconds_of_job, seconds_of_run, timings
from pedbench.plan import make_plan
from pedbench.resources import of_dataset, of_step, of_training, pictures_mb, step_mb

COST = Path(__file__).parent / "cost_of_default.csv"  # seconds of each job of the default run
LARGE = {
    "protocol": "paper",
    "reid_protocol": "paper_reid",
    "presets": [],
    "backbone": "ViT-L-14",
    "datasets": ["synthetic_a/standard"],
    "methods": ["promptpar", "full_finetune", "linear_probe", "zero_shot"],
    "seeds": [0, 1, 2],
    "seeds_per_job": 3,
    "results": "r",
}


def planned(images=20, **changes):
    options = {"identities": images, "images_per_identity": 10}
    config = {**LARGE, **changes}
    names = {place.partition("/")[0] for place in config["datasets"]}
    return make_plan({**config, "dataset_options": dict.fromkeys(names, options)})


def experiment_of(plan, place, method, variant="default"):
    dataset, split = place.split("/")
    return plan.experiment(dataset, split, method, variant)


def swept(parameter, values, method="promptpar"):
    """Experiments that differ in one setting of the protocol."""
    place = LARGE["datasets"][0]
    sweep = {"dataset": place, "method": method, "parameter": parameter, "values": values}
    plan = planned(sweeps={"one": sweep})
    variants = [point.variant for point in plan.sweeps[0].lines[0].points]
    return plan, [experiment_of(plan, place, method, variant) for variant in variants]


@pytest.fixture(autouse=True)
def no_limit(monkeypatch):
    monkeypatch.delenv("PEDBENCH_MAX_MINUTES", raising=False)


@pytest.mark.parametrize("parameter", ["batch_size", "epochs"])
def test_more_images_ask_for_more(parameter):
    plan, (small, large) = swept(parameter, [64, 256])
    less, more = (of_training(plan, e, 3) for e in (small, large))
    if parameter == "batch_size":
        assert less.gpu_mem_mb < more.gpu_mem_mb and less.runtime == more.runtime
    else:
        assert less.runtime < more.runtime and less.gpu_mem_mb == more.gpu_mem_mb


def test_accumulation_spares_memory_and_half_precision_too():
    for parameter, values in (("accumulate", [1, 4]), ("precision", ["fp32", "bf16"])):
        plan, (more, less) = swept(parameter, values, "full_finetune")
        assert of_training(plan, less, 1).gpu_mem_mb < of_training(plan, more, 1).gpu_mem_mb


@pytest.mark.parametrize("place", ["synthetic_a/standard", "synthetic_reid/reid"])
def test_a_larger_dataset_and_more_seeds_take_longer(place):
    few, many = planned(50, datasets=[place]), planned(500, datasets=[place])
    small, large = (experiment_of(plan, place, "full_finetune") for plan in (few, many))
    assert of_training(few, small, 3).runtime < of_training(many, large, 3).runtime
    assert of_training(many, large, 1).runtime < of_training(many, large, 3).runtime
    assert pictures_mb(few, small) < pictures_mb(many, large)


def test_each_attempt_asks_for_more_up_to_the_limit(monkeypatch):
    plan = planned()
    e = plan.experiments[0]
    asks = [of_training(plan, e, 3, attempt) for attempt in (1, 2, 3)]
    growth = timings()["asked"]["growth"]
    for one, next_ in zip(asks, asks[1:], strict=False):
        assert next_.runtime == pytest.approx(growth * one.runtime, abs=2)
        assert next_.mem_mb == pytest.approx(growth * one.mem_mb, rel=0.01)
        assert next_.gpu_mem_mb == pytest.approx(growth * one.gpu_mem_mb, rel=0.01)
    assert of_training(plan, e, 3, 9) == asks[-1]  # a chain of retries does not want more
    monkeypatch.setenv("PEDBENCH_MAX_MINUTES", str(asks[0].runtime + 1))
    assert [of_training(plan, e, 3, n).runtime - asks[0].runtime for n in (1, 2, 3)] == [0, 1, 1]
    assert of_step(plan, "stats", 9).runtime == asks[0].runtime + 1
    assert 2 * of_step(plan, "collect", 9).runtime <= asks[0].runtime + 1


@pytest.mark.parametrize("said", ["a day", "0", "-5", "24:00"])
def test_a_limit_that_is_no_number_of_minutes_is_refused(monkeypatch, said):
    monkeypatch.setenv("PEDBENCH_MAX_MINUTES", said)
    with pytest.raises(PedbenchError, match=f"^PEDBENCH_MAX_MINUTES: '{said}' is no number of"):
        of_step(planned(), "score")


def test_several_gpus_share_images_and_time():
    plan = planned()
    e = plan.experiments[0]
    one, four = (of_training(plan, e, 3, gpus=n) for n in (1, 4))
    assert four.runtime < one.runtime and four.gpu_mem_mb < one.gpu_mem_mb
    assert seconds_of_run(plan, e, 4) == pytest.approx(seconds_of_run(plan, e, 1) / 4)
    assert four.mem_mb > one.mem_mb  # of all processes together
    none = of_training(plan, e, 3, gpus=0)
    assert none.gpu_mem_mb == 0 and none.runtime > 10 * one.runtime


def test_gpu_memory_by_hand():
    """Full fine-tuning of ViT-L/14: 304 of 428 million weights, Adam or momentum."""
    plan = planned()
    e = next(e for e in plan.experiments if e.method == "full_finetune")
    shown = timings()["memory"]["step_par"]["ViT-L-14"]["other"][1]
    batch, moments = 16, 1  # SGD
    wanted = 600 + 2 * 4 * 428 + moments * 4 * 304 + max(16 * shown + 90, 2 * 4 * 304)
    assert batch == e.spec["protocol"]["batch_size"]["value"]
    assert step_mb(plan, e) == pytest.approx(wanted)


def test_validation_and_the_probe_take_time():
    plan, (without, probe) = swept("head_init", ["random", "linear_probe"], "full_finetune")
    assert seconds_of_run(plan, without) < seconds_of_run(plan, probe)
    plan, (last, best) = swept("selection", ["last_epoch", "best_val_mA"])
    assert seconds_of_run(plan, last) < seconds_of_run(plan, best)


def test_a_dataset_of_unknown_size_gets_time(monkeypatch):
    plan = planned()
    known = of_training(plan, plan.experiments[0], 1)
    monkeypatch.setattr(type(registry.load_dataset("synthetic_a")), "expected", lambda *_: {})
    unknown = of_training(plan, plan.experiments[0], 1)
    asked = timings()["asked"]
    assert unknown.runtime == asked["time_safety"] * asked["minutes_unknown"] > known.runtime


@pytest.mark.parametrize("config", ["config", "full", "paper", "paper_reid"])
def test_every_job_of_a_plan_asks_for_something(config, monkeypatch, tmp_path):
    config = {**read_yaml(f"config/{config}.yaml"), "seeds": [0]}
    for place in config["datasets"]:
        monkeypatch.setenv(f"PEDBENCH_ROOT_{place.partition('/')[0].upper()}", str(tmp_path))
    for parent in ("MARKET1501", "MSMT17"):
        monkeypatch.setenv(f"PEDBENCH_ROOT_{parent}", str(tmp_path))
    plan = make_plan(config)
    assert {e.dataset for e in plan.experiments} == {
        d.partition("/")[0] for d in config["datasets"]
    }
    for e in plan.experiments:
        ask = of_training(plan, e, 1)
        assert ask.runtime >= timings()["asked"]["least_minutes"]
        assert 1000 < ask.gpu_mem_mb < 200_000 and 4000 < ask.mem_mb < 40_000
    steps = set(timings()["steps"]) - {"manifest", "prepare"}
    assert all(of_step(plan, step).runtime >= 10 for step in steps)
    for name in plan.sources:
        assert (
            of_dataset(plan, "manifest", name).runtime <= of_dataset(plan, "prepare", name).runtime
        )


def test_no_job_of_the_default_run_took_what_it_would_have_asked_for():
    """Without the least that any job asks for; two cores, shared with others."""
    plan, table = make_plan(read_yaml("config/config.yaml")), pd.read_csv(COST)
    took = dict(zip(table["experiment"], table["seconds"], strict=True))
    assert set(took) == {e.key for e in plan.experiments}
    safety = timings()["asked"]["time_safety"]
    for e in plan.experiments:
        assert took[e.key] < safety * seconds_of_job(plan, e, len(e.seeds)), e.key


def test_the_announcement_names_jobs_beyond_the_limit(monkeypatch):
    plan = planned(1000)
    every = [batch.marker for batch in plan.batches]
    assert "longer than" not in describe(plan, 1, every)
    minutes = [seconds_of_job(plan, b.experiment, 3) / 60 for b in plan.batches]
    limit = math.ceil(max(minutes)) - 1
    monkeypatch.setenv("PEDBENCH_MAX_MINUTES", str(limit))
    said = f"pedbench: 1 job is longer than {limit:,} min: a chain of 2 jobs"
    assert said in describe(plan, 1, every).split("\n")
    monkeypatch.setenv("PEDBENCH_MAX_MINUTES", "10")
    longer = sorted(math.ceil(n / 10) for n in minutes if n > 10)
    said = f"{len(longer)} jobs are longer than 10 min: chains of {longer[0]} to {longer[-1]} jobs"
    assert said in describe(plan, 1, every)


def test_kept_pictures_are_those_that_the_data_keep():
    from pedbench.data import IN_MEMORY_BYTES

    assert timings()["memory"]["pictures"] == pytest.approx(IN_MEMORY_BYTES / 1e6, abs=1)


def test_nothing_of_it_needs_torch():
    code = "import sys, pedbench.resources; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
