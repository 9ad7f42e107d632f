"""What is refused before any job starts; every message names what to mend."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pedbench import registry
from pedbench.config import HEADLINE, Protocol
from pedbench.contracts import BACKBONES, PedbenchError
from pedbench.plan.model import TASKS, Experiment, Plan

FOLDERS = (  # of results
    *("data", "figures", "logs", "manifests", "pictures", "prepared", "pretrain", "runs"),
    *("stats", "tables", "weights"),
)


def check_names(config: Mapping[str, Any], source: str) -> None:
    """The backbone, and the keys under which datasets and backbones get something, are known."""
    datasets = registry.datasets()
    for key, names, known in (
        ("backbone", [config["backbone"]], BACKBONES),
        ("checkpoints", config["checkpoints"], BACKBONES),
        ("roots", config["roots"], datasets),
        ("dataset_options", config["dataset_options"], datasets),
    ):
        what = "dataset" if known is datasets else "backbone"
        for name in names:
            if name not in known:
                raise PedbenchError(
                    f"{source}: {key}: unknown {what} '{name}'{registry.suggest(name, known)} "
                    f"(known: {', '.join(known)})"
                )


def check_checkpoints(plan: Plan, source: str) -> None:
    """The files named for the plan's backbones exist; other backbones' need not."""
    for name in plan.backbones:
        file = plan.config["checkpoints"].get(name)
        if file is not None and not Path(file).is_file():
            raise PedbenchError(
                f"{source}: checkpoints.{name}: there is no file {file}; correct the path, or "
                "delete the entry to use the shipped or downloaded weights"
            )


def check_selection(plan: Plan, e: Experiment, source: str) -> None:
    protocol, where = e.protocol, f"{source}: {e.key}: selection {e.protocol.selection}"
    if protocol.selects_by and plan.lacks_validation(e):
        raise PedbenchError(
            f"{where} chooses epochs by validation images, and {e.dataset}/{e.split} has none: use "
            "last_epoch, or a split that has some"
        )
    if protocol.selects_by not in (None, HEADLINE[protocol.task]):
        known = f"best_val_{HEADLINE[protocol.task]}"
        raise PedbenchError(f"{where}: in {TASKS[protocol.task]} it is {known}")


def check_scored_alike(plan: Plan, source: str) -> None:
    """No two experiments of a dataset differ in what their test scores mean: `collect` would
    refuse them, after the training."""
    for dataset in plan.sources:
        seen: dict[str, str] = {}
        for e in plan.experiments:
            if e.dataset == dataset and e.protocol.task == "par":
                seen.setdefault(_scoring(e.protocol), e.key)
        if len(seen) > 1:
            (one, first), (other, second) = list(seen.items())[:2]
            raise PedbenchError(
                f"{source}: {first} and {second} cannot stand in one table: one is scored with "
                f"{one}, the other with {other}; give both the same, or make two plans with "
                "results folders of their own"
            )


def _scoring(protocol: Protocol) -> str:
    unknown = "counted as negative" if protocol.unknown_labels == "negative" else "left out"
    return f"threshold {protocol.threshold}, f1 {protocol.f1}, unknown test labels {unknown}"


def check_results_folder(results: str) -> None:
    """Raises PedbenchError unless ``results`` is, or can be made, a folder to write into, and
    no file is in the place of one of its folders."""
    path = Path(results).absolute()
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        what = "cannot be written" if nearest.is_dir() else "is a file"
        raise PedbenchError(
            f"{results}: the results folder cannot be used: {nearest} {what}. Make it writable, or "
            "name another with 'results' in the config"
        )
    for name in FOLDERS:
        if (path / name).is_file():
            raise PedbenchError(
                f"{results}/{name}: is a file where a folder has to be; move it away, or name "
                "another results folder with 'results' in the config"
            )
