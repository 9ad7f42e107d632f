"""How long a plan will take: printed before the start, from rates measured once."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from pedbench import registry
from pedbench.config import plain, read_yaml
from pedbench.contracts import own_options
from pedbench.plan import Experiment, Plan

TIMINGS = "config/timings.yaml"


def estimate(
    plan: Plan, cores: int, markers: Collection[str], tuned: Collection[Experiment] = ()
) -> float:
    """Minutes that tuning ``tuned``, the jobs writing ``markers``, and all that follows them,
    will take."""
    timings = read_yaml(TIMINGS)
    jobs = [(b.experiment, len(b.seeds)) for b in plan.batches if b.marker in markers]
    jobs += [(experiment, _trainings(plan, experiment)) for experiment in tuned]
    slots = max(1, min(cores // plan.config["threads_per_job"], len(jobs)))
    seconds = sum(_seconds(plan, *job, timings) for job in jobs)
    return (seconds / slots + timings["seconds_of_the_rest"]) / 60


def describe(
    plan: Plan, cores: int, markers: Collection[str], tuned: Collection[Experiment] = ()
) -> str:
    """The announcement before a start: what runs, how long it takes, what was left out.

    ``markers`` are those of the training jobs that must run, ``tuned`` what must be tuned.
    """
    config, runs = plan.config, sum(len(experiment.seeds) for experiment in plan.experiments)
    minutes = math.ceil(estimate(plan, cores, markers, tuned))
    jobs = f"{len(markers)} of {len(plan.batches)} training jobs to run"
    if tuned:
        jobs = f"{len(tuned)} methods to tune, {config['trials']} trials each"
    lines = (
        f"protocol {config['protocol']}, backbone {config['backbone']}, "
        f"{len(plan.experiments)} experiments, {runs} runs",
        f"{jobs}, about {minutes} min on {cores} cores",
        *plan.notes,
    )
    return "\n".join(f"pedbench: {line}" for line in lines)


def _trainings(plan: Plan, experiment: Experiment) -> int:
    return plan.config["trials"] * len(experiment.seeds)


def _seconds(
    plan: Plan, experiment: Experiment, trainings: int, timings: Mapping[str, Any]
) -> float:
    rates = timings["images_per_second"]
    if not registry.trains(experiment.method):
        return timings["seconds_per_job"]
    options = plan.sources[experiment.dataset].options
    counts = registry.load_dataset(experiment.dataset).expected(own_options(options))
    images = counts.get(experiment.split, {}).get("train", 0)
    protocol = plain(experiment.spec["protocol"])
    seen = protocol["epochs"] * protocol["label_fraction"] * images
    rate = rates.get(experiment.method, rates["other"])
    return timings["seconds_per_job"] + trainings * seen / rate
