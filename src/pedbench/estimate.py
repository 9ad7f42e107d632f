"""What a plan will take: printed before the start. Rates were measured once for the tiny CLIP; for
larger backbones operations were counted."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pedbench import registry
from pedbench.config import plain, read_yaml
from pedbench.contracts import IMAGE_SIZES, TaskKind, own_options
from pedbench.plan import Experiment, Plan

TIMINGS = "config/timings.yaml"
COUNTED: Mapping[TaskKind, str] = {"par": "gflop_per_image", "reid": "gflop_per_image_reid"}
FEATURES = 1280  # width of the features that retrieval compares: CLIP-ReID's at ViT-B/16
NAME = 20  # bytes of an image's name in a table of predictions, about
Work = list[tuple[Experiment, int]]  # how often each is trained


def work_of(plan: Plan, markers: Collection[str], tuned: Collection[Experiment] = ()) -> Work:
    """Tuning ``tuned`` and the jobs writing ``markers``."""
    jobs = [(b.experiment, len(b.seeds)) for b in plan.batches if b.marker in markers]
    return jobs + [(e, plan.config["trials"] * len(e.seeds)) for e in tuned]


def minutes(plan: Plan, cores: int, work: Work) -> float:
    """Of the jobs on a backbone whose rates were measured, and of all that follows any job."""
    timings = read_yaml(TIMINGS)
    jobs = [job for job in work if not _is_counted(job[0], timings)]
    slots = max(1, min(cores // plan.config["threads_per_job"], len(jobs)))
    seconds = sum(_seconds(plan, *job, timings) for job in jobs)
    return (seconds / slots + timings["seconds_of_the_rest"]) / 60


def gpu_hours(plan: Plan, work: Work) -> float:
    """Of the jobs on the other backbones: counted operations over an assumed speed."""
    timings, seconds = read_yaml(TIMINGS), 0.0
    for experiment, trainings in work:
        if _is_counted(experiment, timings):
            counted = timings[COUNTED[experiment.spec["protocol"]["task"]]][experiment.backbone]
            trained = images_seen(plan, experiment) * _row(counted, experiment)
            predicted = _predicted(plan, experiment)
            speed = timings["tflops"][plain(experiment.spec["protocol"])["precision"]]
            gflop = trainings * (trained + predicted * counted["predict"])
            seconds += gflop / (1000 * speed)
    return seconds / 3600


def images_seen(plan: Plan, experiment: Experiment) -> float:
    """Training images of one run, each as often as it is shown."""
    if not registry.trains(experiment.method):
        return 0.0
    protocol = plain(experiment.spec["protocol"])
    images = _counts(plan, experiment).get("train", 0)
    return protocol["epochs"] * protocol["label_fraction"] * images


def gigabytes(plan: Plan, work: Work) -> tuple[float, float]:
    """Still to be written: prepared pictures; and predictions, adapters and kept epochs."""
    sizes, millions = {}, read_yaml(TIMINGS)["million_trained"]
    written = 0.0
    for experiment, trainings in work:
        store = plan.store(experiment)
        if not Path(store).is_file():
            size = plain(experiment.spec["protocol"])["image_size"]
            height, width = size or IMAGE_SIZES[experiment.backbone]
            sizes[store] = 3 * height * width * _images(plan, experiment.dataset)
        row = 4 * _columns(experiment) + NAME
        written += trainings * _predicted(plan, experiment) * row
        if registry.trains(experiment.method):
            epochs = plain(experiment.spec["protocol"])["epochs"] if experiment.keep_epochs else 0
            adapter = 4e6 * _row(millions[experiment.backbone], experiment)
            written += trainings * adapter * (1 + epochs)
    return sum(sizes.values()) / 1e9, written / 1e9


def describe(
    plan: Plan, cores: int, markers: Collection[str], tuned: Collection[Experiment] = ()
) -> str:
    """The announcement before a start: what runs, what it takes, what was left out.

    ``markers`` are those of the training jobs that must run, ``tuned`` what must be tuned.
    """
    config, runs = plan.config, sum(len(experiment.seeds) for experiment in plan.experiments)
    experiments = f"{_many(len(plan.experiments), 'experiment')}, {_many(runs, 'run')}"
    work = work_of(plan, markers, tuned)
    hours, images = gpu_hours(plan, work), sum(n * images_seen(plan, e) for e, n in work)
    takes = f"about {math.ceil(minutes(plan, cores, work))} min on {_many(cores, 'core')}"
    if hours:
        takes = f"about {hours:,.1f} GPU hours" if hours < 10 else f"about {hours:,.0f} GPU hours"
    jobs = f"{len(markers)} of {_many(len(plan.batches), 'training job')} to run"
    if tuned:
        trials = _many(config["trials"], "trial")
        jobs = f"{_many(len(tuned), 'method')} to tune, {trials}{' each' * (len(tuned) > 1)}"
    pictures, written = gigabytes(plan, work)
    protocols = dict.fromkeys(e.spec["protocol"]["name"] for e in plan.experiments)
    lines = (
        f"protocol {' and '.join(protocols)}, backbone {', '.join(plan.backbones)}, {experiments}",
        f"{jobs}, {takes}",
        f"{images / 1e6:,.1f} million training images; to be written: {_size(pictures)} of "
        f"prepared pictures, {_size(written)} of predictions and weights",
        *([f"GPU hours are an estimate from counted operations, see {TIMINGS}"] if hours else []),
        *plan.notes,
    )
    return "\n".join(f"pedbench: {line}" for line in lines)


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _size(in_gigabytes: float) -> str:
    if in_gigabytes >= 0.1:
        return f"{in_gigabytes:,.1f} GB"
    return f"{math.ceil(1000 * in_gigabytes)} MB"


def _is_counted(experiment: Experiment, timings: Mapping[str, Any]) -> bool:
    return experiment.backbone in timings["gflop_per_image"]


def _row(rows: Mapping[str, float], experiment: Experiment) -> float:
    """Of the variant, else of its method, else of any other."""
    method, variant = experiment.method, experiment.variant
    return rows.get(f"{method}/{variant}", rows.get(method, rows["other"]))


def _counts(plan: Plan, experiment: Experiment) -> Mapping[str, int]:
    return _expected(plan, experiment.dataset).get(experiment.split, {})


def _predicted(plan: Plan, experiment: Experiment) -> int:
    """Images of validation and test, in re-identification their queries and galleries."""
    counts = _counts(plan, experiment)
    return sum(count for subset, count in counts.items() if subset != "train")


def _images(plan: Plan, dataset: str) -> int:
    """Of all splits together; each has nearly all, but of a dataset that is made of others."""
    parents = registry.load_dataset(dataset).PARENTS.values()
    every = [p().expected({}) for p in parents] or [_expected(plan, dataset)]
    return sum(max((sum(c.values()) for c in counts.values()), default=0) for counts in every)


def _expected(plan: Plan, dataset: str) -> Mapping[str, Mapping[str, int]]:
    options = own_options(plan.sources[dataset].options)
    return registry.load_dataset(dataset).expected(options)


def _columns(experiment: Experiment) -> int:
    """Numbers that are kept of each image."""
    if experiment.spec["protocol"]["task"] == "reid":
        return FEATURES
    return len(registry.load_dataset(experiment.dataset).SPEC.attributes)


def _seconds(
    plan: Plan, experiment: Experiment, trainings: int, timings: Mapping[str, Any]
) -> float:
    rates = timings["images_per_second"]
    if not registry.trains(experiment.method):
        return timings["seconds_per_job"]
    rate = rates.get(experiment.method, rates["other"])
    return timings["seconds_per_job"] + trainings * images_seen(plan, experiment) / rate
