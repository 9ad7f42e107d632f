"""What a plan will take: printed before the start, and asked for by jobs (`pedbench.resources`).
Rates were measured once for the tiny CLIP; for larger backbones operations were counted."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pedbench import registry
from pedbench.config import plain, read_yaml
from pedbench.contracts import IMAGE_SIZES, PedbenchError, TaskKind, own_options
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


@cache
def timings() -> Mapping[str, Any]:
    """The contents of `TIMINGS`."""
    return read_yaml(TIMINGS)


def minutes(plan: Plan, cores: int, work: Work) -> float:
    """Of the jobs on a backbone whose rates were measured, and of all that follows any job."""
    jobs = [job for job in work if not is_counted(job[0])]
    slots = max(1, min(cores // plan.config["threads_per_job"], len(jobs)))
    seconds = sum(seconds_of_job(plan, *job) for job in jobs)
    return (seconds / slots + timings()["seconds_of_the_rest"]) / 60


def gpu_hours(plan: Plan, work: Work) -> float:
    """Of the jobs on the other backbones: counted operations over an assumed speed."""
    counted = [(e, trainings) for e, trainings in work if is_counted(e)]
    return sum(trainings * seconds_of_run(plan, e) for e, trainings in counted) / 3600


def seconds_of_job(plan: Plan, experiment: Experiment, trainings: int, gpus: int = 1) -> float:
    """Of a job with so many trainings one after the other, from its start on; with none of
    ``gpus``, the processor computes."""
    kind = "gpu_job" if is_counted(experiment) else "job"
    seconds = trainings * seconds_of_run(plan, experiment, gpus)
    return timings()[f"seconds_per_{kind}"] + seconds


def seconds_of_run(plan: Plan, experiment: Experiment, gpus: int = 1) -> float:
    """Of one training with its predictions, which GPUs share."""
    seen, passed = images_seen(plan, experiment), images_passed(plan, experiment)
    if is_counted(experiment):
        counted = timings()[COUNTED[experiment.spec["protocol"]["task"]]][experiment.backbone]
        speed = timings()["tflops"][setting(experiment, "precision")]
        if not gpus:
            speed = plan.config["threads_per_job"] * timings()["tflops"]["thread"]
        gflop = seen * row_of(counted, experiment) + passed * counted["predict"]
        return gflop / (1000 * speed * max(1, gpus))
    rates = timings()["images_per_second"]
    rate = rates.get(experiment.method, rates["other"])
    return (seen / rate + passed / rates["predict"]) / max(1, gpus)


def time_limit() -> float | None:
    """Minutes that a job of the cluster may take at most, from ``PEDBENCH_MAX_MINUTES``.

    Raises PedbenchError when that is no number of minutes.
    """
    said = os.environ.get("PEDBENCH_MAX_MINUTES")
    if not said:
        return None
    if not said.isdecimal() or not int(said):
        raise PedbenchError(
            f"PEDBENCH_MAX_MINUTES: '{said}' is no number of minutes; set it to the partition's "
            "time limit, e.g. 1440 for a day, or unset it"
        )
    return int(said)


def images_seen(plan: Plan, experiment: Experiment) -> float:
    """Training images of one run, each as often as it is shown."""
    if not registry.trains(experiment.method):
        return 0.0
    images = counts_of(plan, experiment).get("train", 0)
    return setting(experiment, "epochs") * setting(experiment, "label_fraction") * images


def images_passed(plan: Plan, experiment: Experiment) -> float:
    """Images of one run that only pass forward: predicted at its end and, for a selection by
    validation, after each epoch; and those that a linear head's probe is trained on."""
    counts = counts_of(plan, experiment)
    passed = predicted_of(counts)
    if not registry.trains(experiment.method):
        return passed
    if setting(experiment, "selection") != "last_epoch":
        validated = sum(n for subset, n in counts.items() if subset.startswith("val"))
        passed += setting(experiment, "epochs") * validated
    head = plain(experiment.spec["params"].get("head"))
    if setting(experiment, "head_init") == "linear_probe" and head == "linear":
        varied = setting(experiment, "crop_padding") or setting(experiment, "random_erasing")
        shown = setting(experiment, "probe_epochs") if varied else 2  # else kept, in both views
        passed += shown * setting(experiment, "label_fraction") * counts.get("train", 0)
    return passed


def gigabytes(plan: Plan, work: Work) -> tuple[float, float]:
    """Still to be written: prepared pictures; and predictions, adapters and kept epochs."""
    sizes, millions = {}, timings()["million_trained"]
    written = 0.0
    for experiment, trainings in work:
        store = plan.store(experiment)
        if not Path(store).is_file():
            size = setting(experiment, "image_size")
            height, width = size or IMAGE_SIZES[experiment.backbone]
            sizes[store] = 3 * height * width * images_of(plan, experiment.dataset)
        row = 4 * _columns(experiment) + NAME
        written += trainings * predicted_of(counts_of(plan, experiment)) * row
        if registry.trains(experiment.method):
            epochs = setting(experiment, "epochs") if experiment.keep_epochs else 0
            adapter = 4e6 * row_of(millions[experiment.backbone], experiment)
            written += trainings * adapter * (1 + epochs)
    return sum(sizes.values()) / 1e9, written / 1e9


def describe(
    plan: Plan,
    cores: int,
    markers: Collection[str],
    tuned: Collection[Experiment] = (),
    gpus: int = 1,
) -> str:
    """The announcement before a start: what runs, what it takes, what was left out.

    ``markers`` are those of the training jobs that must run, ``tuned`` what must be tuned; each has
    ``gpus``.
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
        *_chains(plan, work, gpus),
        *plan.notes,
    )
    return "\n".join(f"pedbench: {line}" for line in lines)


def _chains(plan: Plan, work: Work, gpus: int) -> list[str]:
    """Of the jobs that are longer than the cluster's limit."""
    limit = time_limit()
    if limit is None:
        return []
    lengths = (seconds_of_job(plan, e, trainings, gpus) / 60 / limit for e, trainings in work)
    chains = [math.ceil(length) for length in lengths if length > 1]
    if not chains:
        return []
    sizes = " to ".join(str(n) for n in sorted({min(chains), max(chains)}))
    jobs = _many(len(chains), "job")
    if len(chains) == 1:
        return [f"{jobs} is longer than {limit:,} min: a chain of {sizes} jobs"]
    return [f"{jobs} are longer than {limit:,} min: chains of {sizes} jobs each"]


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _size(in_gigabytes: float) -> str:
    if in_gigabytes >= 0.1:
        return f"{in_gigabytes:,.1f} GB"
    return f"{math.ceil(1000 * in_gigabytes)} MB"


def is_counted(experiment: Experiment) -> bool:
    """Whether its backbone's rates were not measured."""
    return experiment.backbone in timings()["gflop_per_image"]


def setting(experiment: Experiment, name: str) -> Any:
    """Of its protocol."""
    return plain(experiment.spec["protocol"][name])


def row_of(rows: Mapping[str, Any], experiment: Experiment) -> Any:
    """Of the variant, else of its method, else of any other."""
    method, variant = experiment.method, experiment.variant
    return rows.get(f"{method}/{variant}", rows.get(method, rows["other"]))


def counts_of(plan: Plan, experiment: Experiment) -> Mapping[str, int]:
    """Images of each subset; empty where the dataset does not state them."""
    return _expected(plan, experiment.dataset).get(experiment.split, {})


def predicted_of(counts: Mapping[str, int]) -> int:
    """Images of validation and test, in re-identification their queries and galleries."""
    return sum(count for subset, count in counts.items() if subset != "train")


def images_of(plan: Plan, dataset: str) -> int:
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
