"""Golden metrics of person re-identification: rankings, CMC curves, re-ranking.

Tolerances are those of the files' makers: 1e-5 for distances, 1e-6 for CMC curves, which the
authors add up in float32, 1e-9 for the rest. CLIP-ReID's re-ranking computes in half precision; its
distances, up to 1, are off by as much as some roundings to eleven bits, and no rank differs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from golden import Case, Tolerances

from pedbench.tasks import reid
from pedbench.tasks.rerank import rerank

TOLERANCES: dict[str, Tolerances] = {
    "reid_metrics": {
        "output": (0.0, 1e-5),
        "half": (0.0, 1.5e-3),
        "cmc": (0.0, 1e-6),
        "exact64": (0.0, 1e-9),
    }
}


def check_reid_metrics(case: Case) -> None:
    query, gallery = (case.arrays[f"input/{side}_features"] for side in ("query", "gallery"))
    labels: dict[str, Any] = {
        f"{side}_{ours}": case.arrays[f"input/{side}_{theirs}"]
        for side in ("query", "gallery")
        for ours, theirs in (("identity", "pids"), ("camera", "camids"))
    }

    def curve_and_mean(name: str, rankings: reid.Rankings) -> None:
        curve = reid.cmc(rankings, range(1, case.config["max_rank"] + 1))
        case.compare(f"exact64/{name}_cmc", curve, role="cmc")
        case.compare(f"exact64/{name}_mAP", reid.score(rankings)["mAP"])

    ours = reid.rank(query, gallery, **labels)
    for name in ("clipreid", "torchreid", "fastreid"):
        curve_and_mean(name, ours)
    case.compare("exact64/fastreid_all_AP", ours.AP[ours.valid])
    case.compare("exact64/fastreid_all_INP", ours.INP[ours.valid])
    case.compare("exact64/fastreid_mINP", reid.score(ours)["mINP"])
    case.compare("output/n_valid_queries", len(query) - ours.skipped)

    cosine = np.array([row for row, _ in reid.cosines(query, gallery)])
    case.compare("output/torchreid_cosine_distmat", 1 - cosine)
    case.compare("output/clipreid_distmat", 2 - 2 * cosine)
    raw = ((query[:, None].astype(np.float64) - gallery) ** 2).sum(axis=2)
    case.compare("output/torchreid_euclidean_distmat", raw)
    curve_and_mean("clipreid_nonorm", reid.rank_distances(raw, **labels))

    k1, k2, weight = case.config["rerank"]
    again = rerank(query, gallery, k1, k2, weight)
    case.compare("output/clipreid_rerank_distmat", again, role="half")
    curve_and_mean("clipreid_rerank", reid.rank_distances(again, **labels))
    twice = rerank(query, gallery, k1, k2, weight, power=4)
    case.compare("output/torchreid_rerank_distmat", twice)

    # The flag says that the authors' function fails on a curve over the whole gallery.
    case.open.discard("output/max_rank_equal_gallery_fails")
    whole = reid.cmc(ours, range(1, len(gallery) + 1))
    assert whole.shape == (len(gallery),) and whole[-1] == 1 and (np.diff(whole) >= 0).all()
