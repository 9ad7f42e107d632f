"""A finished run of re-identification with and without re-ranking: numbers for a person to read,
which no table, figure or test contains."""

from __future__ import annotations

from pathlib import Path

from pedbench.contracts import PedbenchError
from pedbench.files import printable
from pedbench.manifest import read_manifest
from pedbench.results import Run, read_features, read_rankings, read_run
from pedbench.tasks import reid
from pedbench.tasks.rerank import rerank
from pedbench.versus.text import aligned, number

Scores = dict[str, float]


def reranked(folder: Path, subset: str, k1: int, k2: int, weight: float) -> str:
    """For a terminal: the metrics of the run in ``folder`` as it ranked its ``subset``, and after
    `rerank`, whose settings the others are.

    Raises PedbenchError for a run of attribute recognition, for files that are missing or not those
    of the run's manifest, and for settings that cannot be.
    """
    run = read_run(folder)
    if run.task != "reid":
        raise PedbenchError(
            f"{folder}: a run of attribute recognition, which ranks nothing; name a seed folder of "
            "re-identification, such as results/runs/synthetic_reid/reid/lora/default/seed0"
        )
    before, after, counted = both(run, subset, k1, k2, weight)
    rows = [["", *reid.LABELS.values()]]
    for name, scores in (("as ranked", before), ("re-ranked", after)):
        rows.append([name, *(number(100 * scores[metric]) for metric in reid.METRICS)])
    return printable(
        f"{run.key}, {subset}: {counted}\n\n{aligned(rows, left=1)}\n\n"
        f"In percent. Re-ranked by k-reciprocal neighbours, k1 = {k1}, k2 = {k2}, weight "
        f"{weight:g}.\nThe tables of the suite never contain re-ranked numbers.\n"
    )


def both(run: Run, subset: str, k1: int, k2: int, weight: float) -> tuple[Scores, Scores, str]:
    """Metrics (fractions) as ranked and re-ranked, and how many images they are of, in words."""
    place = run.folder.absolute()
    if place.parts[-6:] != ("runs", *run.key.split("/")):
        raise PedbenchError(
            f"{run.folder}: not below a folder of results, whose manifest is needed; name it where "
            f"it was made, as results/runs/{run.key}"
        )
    manifest = read_manifest(place.parents[5] / "manifests" / f"{run.dataset}.parquet")
    found = read_rankings(run, manifest, subset)
    features = read_features(run, manifest, subset)
    rows = manifest.subset(run.split, subset).rows
    query, gallery = rows.iloc[found.query], rows.iloc[found.gallery]
    distances = rerank(features[found.query], features[found.gallery], k1, k2, weight)
    who = (query["identity"], gallery["identity"], query["camera"], gallery["camera"])
    counted = f"{len(query)} queries, {found.rankings.skipped} of them skipped, "
    counted += f"{len(gallery)} gallery images"
    return reid.score(found.rankings), reid.score(reid.rank_distances(distances, *who)), counted
