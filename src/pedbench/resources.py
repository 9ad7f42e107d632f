"""What each job asks a cluster for: minutes, memory, GPU memory. On one machine nothing reads it.
docs/resources.md says what the figures rest on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pedbench import registry
from pedbench.contracts import IMAGE_SIZES
from pedbench.estimate import (
    FEATURES,
    counts_of,
    images_of,
    predicted_of,
    row_of,
    seconds_of_job,
    setting,
    time_limit,
    timings,
)
from pedbench.plan import Experiment, Plan

LARGEST = 3  # attempt: a chain of jobs may be one of retries, which are none for want of memory
MOMENTS: Mapping[str, int] = {"sgd": 1, "adam": 2, "adamw": 2}  # of a trained parameter
# what profiles join into one job, two steps at most: their minutes add up
JOINED = ("manifest", "prepare", "score", "collect", "figures", "tables")


@dataclass(frozen=True)
class Ask:
    """``runtime`` in minutes, memory in MB (10^6 bytes), that of a GPU for each GPU."""

    runtime: int
    mem_mb: int
    gpu_mem_mb: int = 0


def of_training(
    plan: Plan, experiment: Experiment, trainings: int, attempt: int = 1, gpus: int = 1
) -> Ask:
    """Of a job with so many trainings one after the other: its seeds, or the trials of a tuning."""
    step, limit = step_mb(plan, experiment, max(1, gpus)), time_limit()
    seconds = seconds_of_job(plan, experiment, trainings, gpus)
    if not counts_of(plan, experiment):  # nobody knows how many images it has
        seconds = 60 * timings()["asked"]["minutes_unknown"]
    host = max(1, gpus) * host_mb(pictures_mb(plan, experiment), step, gpus)
    return _ask(seconds, host, step if gpus else 0, attempt, limit)


def of_dataset(plan: Plan, step: str, dataset: str, attempt: int = 1) -> Ask:
    """Of the steps ``manifest`` and ``prepare``."""
    row, thousands = timings()["steps"][step], images_of(plan, dataset) / 1000
    seconds = row["start"] + row["thousand"] * thousands
    return _ask(seconds, timings()["memory"]["process"], 0, attempt, _limit(step))


def of_step(plan: Plan, step: str, attempt: int = 1, gpus: int = 0) -> Ask:
    """Of a step over all runs, or over none."""
    row, memory = timings()["steps"][step], timings()["memory"]
    places: dict[tuple[str, str], float] = {}  # thousand predicted images of their runs
    for e in plan.experiments:
        predicted = len(e.seeds) * predicted_of(counts_of(plan, e)) / 1000
        places[e.dataset, e.split] = places.get((e.dataset, e.split), 0) + predicted
    images, audited = sum(places.values()), [e for e in plan.experiments if e.keep_epochs]
    units = {
        "start": 1,
        "run": sum(len(e.seeds) for e in plan.experiments),
        "thousand": images,
        "draw": images * plan.comparison.resamples / 1000,
        "variant": len({(e.method, e.variant) for e in plan.experiments}),
        "epoch": sum(
            len(e.seeds) * setting(e, "epochs") * predicted_of(counts_of(plan, e)) / 1000
            for e in audited
        ),
    }
    seconds = sum(row.get(unit, 0) * count for unit, count in units.items())
    if "runs" not in row:
        host = memory["process"] + memory["thousand_predicted"] * max(places.values())
        return _ask(seconds, host, 0, attempt, _limit(step))
    models = max(step_mb(plan, e, learns=row["runs"] == "training") for e in plan.experiments)
    pictures = max(pictures_mb(plan, e) for e in plan.experiments)
    host = host_mb(pictures, models, gpus)
    return _ask(seconds, host, models if gpus else 0, attempt, time_limit())


def host_mb(pictures: float, step: float, gpus: int) -> float:
    """MB of a process that keeps ``pictures``, and computes a ``step`` where there is no GPU."""
    memory = timings()["memory"]
    if gpus:
        return memory["process_with_gpu"] + pictures
    return memory["process"] + pictures + step - memory["context"]


def step_mb(plan: Plan, experiment: Experiment, gpus: int = 1, learns: bool = True) -> float:
    """MB at the peak of a training step, or of a prediction if that takes more: weights twice (the
    job keeps them for its next seed), moments, gradients, activations, kept features, CUDA itself.
    """
    memory, backbone = timings()["memory"], experiment.backbone
    rows = memory[f"step_{experiment.spec['protocol']['task']}"][backbone]
    fixed, shown, passed = row_of(rows, experiment)
    narrow = memory["bf16"] if setting(experiment, "precision") == "bf16" else 1.0
    peak = narrow * passed * setting(experiment, "eval_batch_size")
    kept = memory["context"] + 2 * 4 * memory["million_parameters"][backbone]
    if not learns or not registry.trains(experiment.method):
        return kept + peak
    trained = 4 * row_of(timings()["million_trained"][backbone], experiment)
    kept += MOMENTS[setting(experiment, "optimiser")] * trained
    if not (setting(experiment, "crop_padding") or setting(experiment, "random_erasing")):
        kept += 2 * 4e-6 * FEATURES * counts_of(plan, experiment).get("train", 0)
    images = math.ceil(setting(experiment, "batch_size") / setting(experiment, "accumulate") / gpus)
    return kept + max(peak, fixed + narrow * shown * images, 2 * trained)


def pictures_mb(plan: Plan, experiment: Experiment) -> float:
    """MB of the prepared pictures that a process keeps: those of each subset that fit."""
    height, width = setting(experiment, "image_size") or IMAGE_SIZES[experiment.backbone]
    subsets = {"train": 0.0, "val": 0.0, "test": 0.0}
    for name, count in counts_of(plan, experiment).items():
        subset = "val" if name.startswith("val") else name if name in subsets else "test"
        subsets[subset] += 3e-6 * height * width * count
    most = timings()["memory"]["pictures"]
    return sum(size for size in subsets.values() if size <= most)


def _limit(step: str) -> float | None:
    limit = time_limit()
    return limit and limit / 2 if step in JOINED else limit


def _ask(seconds: float, host: float, gpu: float, attempt: int, limit: float | None) -> Ask:
    """With the margins of `TIMINGS`, more with each attempt up to `LARGEST`, no more than
    ``limit`` minutes."""
    asked: Any = timings()["asked"]
    grown = asked["growth"] ** (min(attempt, LARGEST) - 1)
    minutes = math.ceil(grown * max(asked["least_minutes"], asked["time_safety"] * seconds / 60))
    if limit is not None:
        minutes = max(1, min(minutes, int(limit)))
    margin = asked["memory_safety"] * grown
    return Ask(minutes, math.ceil(margin * host), math.ceil(margin * gpu))
