"""Memory and seconds of ranking a gallery as large as that of MSMT17, against a plain loop.

Random features and labels in the numbers of MSMT17: 11,659 queries, 82,161 gallery images of 3,060
persons, 15 cameras, features of 1,280 numbers. The plain loop takes one query after the other: its
cosines with the gallery in float32, a stable argsort, precision at each hit; it runs on a sample of
the queries and is scaled to all of them. On the sample both must agree, digit for digit where the
loop is given the same cosines:

    python benchmarks/reid.py [--queries 11659] [--sample 50] [--device cuda]
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from typing import Any

import numpy as np

from pedbench.tasks import reid

QUERIES, GALLERY, WIDTH, PERSONS, CAMERAS = 11_659, 82_161, 1_280, 3_060, 15


def gigabytes() -> float:
    """The most memory that this process has had so far; includes the libraries it has loaded."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def features(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.standard_normal((count, WIDTH), dtype=np.float32)


def plain(scores: np.ndarray, q: int, labels: dict[str, Any]) -> tuple[float, float]:
    """AP and INP of query ``q`` from its ``scores (G,)``."""
    order = np.argsort(-scores, kind="stable")
    same = labels["gallery_identity"][order] == labels["query_identity"][q]
    junk = same & (labels["gallery_camera"][order] == labels["query_camera"][q])
    hits = np.flatnonzero(same[~junk]) + 1
    return float(np.mean(np.arange(1, len(hits) + 1) / hits)), len(hits) / hits[-1]


def clocks() -> np.ndarray:
    """Seconds that passed, and that processors worked for this process."""
    return np.array([time.perf_counter(), time.process_time()])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore
    options.add_argument("--queries", type=int, default=QUERIES)
    options.add_argument("--sample", type=int, default=50, help="queries of the plain loop")
    options.add_argument("--device", help="of torch; default: numpy")
    given = options.parse_args()
    rng = np.random.default_rng(0)
    query, gallery = features(rng, given.queries), features(rng, GALLERY)
    counts, highest = {"query": given.queries, "gallery": GALLERY}, {"camera": CAMERAS}
    highest["identity"] = PERSONS
    labels: dict[str, Any] = {
        f"{side}_{what}": rng.integers(0, most, count)
        for side, count in counts.items()
        for what, most in highest.items()
    }
    inputs, started = gigabytes(), clocks()
    ours = reid.rank(query, gallery, **labels, device=given.device)
    taken, peak = clocks() - started, gigabytes()

    found = np.column_stack([ours.AP, ours.INP])[: given.sample]
    rows = enumerate(reid.cosines(query[: given.sample], gallery))
    np.testing.assert_array_equal(found, [plain(row, q, labels) for q, (row, _) in rows])

    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    started = clocks()
    loop = [plain(gallery @ query[q], q, labels) for q in range(given.sample)]
    needed = (clocks() - started) / given.sample * given.queries
    # Sums in float32 swap neighbours among the 82,161, so these are not the same digits.
    np.testing.assert_allclose(found, loop, rtol=1e-3)

    print(f"{given.queries} x {GALLERY}, {WIDTH} wide, load {os.getloadavg()[0]:.1f}")
    print(f"peak {peak:.2f} GB, of which {inputs:.2f} GB before ranking (features, libraries)")
    print(f"rank: {taken[0]:.0f} s, processors {taken[1]:.0f} s")
    print(f"loop: {needed[0]:.0f} s, processors {needed[1]:.0f} s ({given.sample} queries, scaled)")
    print(f"ratio {needed[0] / taken[0]:.1f}, processors {needed[1] / taken[1]:.1f}")


if __name__ == "__main__":
    main()
