"""Memory and seconds of ranking a gallery as large as that of MSMT17, against a plain loop.

Random features and labels in the numbers of MSMT17: 11,659 queries, 82,161 gallery images of 3,060
persons, 15 cameras, features of 1,280 numbers. The plain loop takes one query after the other: its
cosines with the gallery in float32, a stable argsort, precision at each hit; it runs on a sample of
the queries and is scaled to all of them. On the sample both must agree, digit for digit where the
loop is given the same cosines. What is called is what a run calls, `reid.rank_subset`, on the one
matrix of features that a model leaves:

    python benchmarks/reid.py [--queries 11659] [--sample 50] [--torch] [--device cuda]
"""

from __future__ import annotations

import argparse
import os
import resource
import time

import numpy as np

from pedbench.tasks import reid

QUERIES, GALLERY, WIDTH, PERSONS, CAMERAS = 11_659, 82_161, 1_280, 3_060, 15


def gigabytes() -> float:
    """The most memory that this process has had so far; includes the libraries it has loaded."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def plain(
    scores: np.ndarray, person: int, camera: int, persons: np.ndarray, cameras: np.ndarray
) -> tuple[float, float]:
    """AP and INP of a query from its ``scores (G,)`` and who is in the gallery ``(G,)``, where."""
    order = np.argsort(-scores, kind="stable")
    same = persons[order] == person
    junk = same & (cameras[order] == camera)
    hits = np.flatnonzero(same[~junk]) + 1
    return float(np.mean(np.arange(1, len(hits) + 1) / hits)), len(hits) / hits[-1]


def clocks() -> np.ndarray:
    """Seconds that passed, and that processors worked for this process."""
    return np.array([time.perf_counter(), time.process_time()])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore
    options.add_argument("--queries", type=int, default=QUERIES)
    options.add_argument("--sample", type=int, default=50, help="queries of the plain loop")
    options.add_argument("--torch", action="store_true", help="load it first, as a run does")
    options.add_argument("--device", help="of torch; default: numpy")
    given = options.parse_args()
    if given.torch:
        import torch  # noqa: F401
    rng, images = np.random.default_rng(0), given.queries + GALLERY
    features = rng.standard_normal((images, WIDTH), dtype=np.float32)
    person, camera = rng.integers(0, PERSONS, images), rng.integers(0, CAMERAS, images)
    asks = rng.permutation(images) < given.queries
    inputs, started = gigabytes(), clocks()
    ours = reid.rank_subset(features, asks, person, camera, given.device)
    taken, peak = clocks() - started, gigabytes()

    some, gallery = np.flatnonzero(asks)[: given.sample], features[~asks]
    others = person[~asks], camera[~asks]
    found = np.column_stack([ours.AP, ours.INP])[: given.sample]
    rows = zip(some, reid.cosines(features[some], gallery), strict=True)
    again = [plain(row, person[q], camera[q], *others) for q, (row, _) in rows]
    np.testing.assert_array_equal(found, again)

    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    query = features[some] / np.linalg.norm(features[some], axis=1, keepdims=True)
    started = clocks()
    asked = zip(query, person[some], camera[some], strict=True)
    loop = [plain(gallery @ feature, who, where, *others) for feature, who, where in asked]
    needed = (clocks() - started) / len(some) * given.queries
    # Sums in float32 swap neighbours among the 82,161, so these are not the same digits.
    np.testing.assert_allclose(found, loop, rtol=1e-3)

    print(f"{given.queries} x {GALLERY}, {WIDTH} wide, load {os.getloadavg()[0]:.1f}")
    print(f"peak {peak:.2f} GB, of which {inputs:.2f} GB before ranking (features, libraries)")
    print(f"rank: {taken[0]:.0f} s, processors {taken[1]:.0f} s")
    print(f"loop: {needed[0]:.0f} s, processors {needed[1]:.0f} s ({given.sample} queries, scaled)")
    print(f"ratio {needed[0] / taken[0]:.1f}, processors {needed[1] / taken[1]:.1f}")


if __name__ == "__main__":
    main()
