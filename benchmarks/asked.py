"""What jobs ask for, beside what was measured: a finished results folder, or steps.json."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from pedbench import registry
from pedbench.config import read_protocol, read_yaml, resolve
from pedbench.estimate import row_of, seconds_of_run, setting, timings
from pedbench.files import read_json
from pedbench.plan import Experiment, Plan, make_plan
from pedbench.resources import MOMENTS, of_training

HERE = Path(__file__).parent


def runs(plan: Plan) -> Iterator[str]:
    """A row per experiment: estimated and longest measured seconds of a training, their ratio; MB
    asked for and measured."""
    yield "| run | estimated s | measured s | measured / estimated | asked MB | measured MB |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for e in plan.experiments:
        files = (Path(e.folder, f"seed{seed}", "cost.json") for seed in e.seeds)
        costs = [read_json(file) for file in files if file.is_file()]
        if costs:
            took = max(cost["seconds_fit"] + cost["seconds_predict"] for cost in costs)
            estimated = seconds_of_run(plan, e, gpus=0)
            asked = of_training(plan, e, len(e.seeds), gpus=0).mem_mb
            peak = max(cost.get("peak_memory_mb", 0) for cost in costs) or ""
            ratio = took / estimated
            yield f"| {e.key} | {estimated:.1f} | {took:.1f} | {ratio:.2f} | {asked} | {peak} |"


def steps() -> Iterator[str]:
    """A row per training step of steps.json: its process's peak, computed and measured. What a
    process has before any model is read off zero-shot, which trains nothing."""
    rows = json.loads((HERE / "steps.json").read_text())["measurements"]
    found = {row["case"]: row for row in rows if row["form"] == "suite"}
    memory, mb = timings()["memory"], 2**30 / 1e6
    level = found["zero_shot"]["peak_gb"] * mb
    yield "| method | images | computed MB | measured MB | computed / measured |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for case, row in found.items():
        e = as_experiment(case.partition(",")[0])
        fixed, shown, _ = row_of(memory["step_par"]["ViT-B-16"], e)
        trained = 4 * row_of(timings()["million_trained"]["ViT-B-16"], e)
        own = trained if case == "resnet50" else 0  # a network beside the backbone
        if not registry.trains(e.method):
            continue
        step = max(fixed + shown * row["batch"], 2 * trained)
        computed = level + own + MOMENTS[setting(e, "optimiser")] * trained + step
        measured = row["peak_gb"] * mb
        ratio = computed / measured
        yield f"| {case} | {row['batch']} | {computed:.0f} | {measured:.0f} | {ratio:.2f} |"


def as_experiment(method: str) -> Experiment:
    """Its default under the paper's protocol."""
    spec = resolve(method, "default", read_protocol("paper", ("reference",)))
    return Experiment("", "", method, "default", (0,), "", spec)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="config/config.yaml", help="of the finished run")
    parser.add_argument("--results", help="its folder, if it is not the config's")
    parser.add_argument("--steps", action="store_true", help="compare steps.json")
    options = parser.parse_args()
    if options.steps:
        print("\n".join(steps()))
        return
    results = {"results": options.results} if options.results else {}
    print("\n".join(runs(make_plan({**read_yaml(options.config), **results}))))


if __name__ == "__main__":
    main()
