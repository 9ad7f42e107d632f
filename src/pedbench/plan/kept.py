"""The runs of a plan on the disk, and what was deleted of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pedbench.plan.model import PER_SUBSET, Plan
from pedbench.runs import RunFolder, refusal


def lost(plan: Plan) -> set[str]:
    """Outputs of the DAG that were deleted after they were made, or whose content was.

    Snakemake does not ask for an output whose successors exist, and knows nothing of what a marker
    or a manifest stands for: seed folders with their scores, the pictures of a generated dataset.
    """
    outputs = plan.outputs
    gone = {output for output in outputs if not Path(output).exists()}
    if gone == outputs:  # a first run
        return set()
    sources = plan.sources.values()
    pending = [batch for batch in plan.batches if not batch.is_finished()]
    unfinished = {batch.marker for batch in pending}
    wanted = [batch.experiment for batch in pending]
    unprepared = {plan.prepared(e) for e in wanted if not Path(plan.store(e)).exists()}
    generated = {s.manifest for s in sources if s.generated and not Path(s.root).is_dir()}
    unscored = {f"{plan.results}/scored.json"} if _unscored(plan) else set()
    return gone | unfinished | unprepared | generated | unscored


def _unscored(plan: Plan) -> bool:
    """Whether a run lacks a file that comes before the tables."""
    runs = [RunFolder(folder) for _, _, folder in runs_of(plan.as_json())]
    return any(not run.done.is_file() or not _scored(run) for run in runs)


def _scored(run: RunFolder) -> bool:
    names = [f"{n}.{s}.{end}" for n, end in PER_SUBSET for s in run.predicted]
    return all((run.path / name).is_file() for name in names)


def runs_of(document: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], int, Path]]:
    """Experiment, seed and folder of every run in the contents of a ``plan.json``, but of those
    that the method refused."""
    for experiment in document["experiments"]:
        if refusal(Path(experiment["folder"])) is not None:
            continue
        for seed in experiment["seeds"]:
            yield experiment, seed, Path(experiment["folder"]) / f"seed{seed}"
