"""Metrics of person re-identification (ReID).

Each query image asks for the gallery images of the same person that another camera took.

* Features are scaled to unit length and compared by their cosine. A feature of zeros has cosine 0.
* Left out for a query are the gallery images of its own identity and camera, as in Market-1501
  (Zheng et al., ICCV 2015). Distractors, images of nobody who is asked for, stay.
* A query without a correct image left is skipped in every metric, and counted.
* Images at equal distance keep the order of the gallery.

With the correct images of a query at the ranks r_1 < ... < r_k, from 1:

* ``AP`` is the mean of i / r_i, the precision at each hit; **mAP** its mean over the queries. (The
  evaluation that Market-1501 came with averages neighbouring precisions; nobody reports it now.)
* **rank1, rank5, rank10** are the share of queries with r_1 <= 1, 5, 10: points of the cumulative
  matching characteristic (CMC) where all images of the gallery count (multi-shot).
* ``INP`` is k / r_k, what finding the hardest one costs; **mINP** its mean (Ye et al., "Deep
  Learning for Person Re-identification: A Survey and Outlook", 2021).

Cosines are exact for features rounded to multiples of 2^-26, so ranks depend neither on how the
work is cut into parts nor on threads, BLAS library or GPU: products are multiples of 2^-52, any
partial sum of theirs is below 2 (Cauchy-Schwarz), and float64 holds all such numbers. They are then
rounded to float32; what is equal then is a tie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pedbench.contracts import PedbenchError

Floats = NDArray[np.float64]
Integers = NDArray[np.integer]
Row = tuple[NDArray[np.floating], NDArray[np.floating]]  # see `cosines`

LABELS = {  # metric -> its name in tables
    "mAP": "mAP",
    "rank1": "Rank-1",
    "rank5": "Rank-5",
    "rank10": "Rank-10",
    "mINP": "mINP",
}
METRICS = tuple(LABELS)
TOP = 10  # nearest gallery images that are kept of each query
CHUNK = 256  # queries at a time; 170 MB with 80,000 images in the gallery
GRID = 2.0**26


@dataclass(frozen=True)
class Rankings:
    """How each of Q queries ranks the gallery."""

    matches: NDArray[np.int32]  # (Q,) correct gallery images; 0: the query is skipped
    first: NDArray[np.int32]  # (Q,) rank of the first correct one, from 1; 0: skipped
    AP: Floats  # (Q,) average precision; NaN: skipped
    INP: Floats  # (Q,) inverse negative penalty; NaN: skipped
    top: NDArray[np.int32]  # (Q, T) positions in the gallery of the nearest images that are not
    # left out, nearest first; -1: there are fewer

    @property
    def valid(self) -> NDArray[np.bool_]:
        """``(Q,)``: queries that have a correct image."""
        return self.matches > 0

    @property
    def skipped(self) -> int:
        return int((~self.valid).sum())


def rank(
    query: ArrayLike,
    gallery: ArrayLike,
    query_identity: ArrayLike,
    gallery_identity: ArrayLike,
    query_camera: ArrayLike,
    gallery_camera: ArrayLike,
    top: int = TOP,
    chunk: int = CHUNK,
    device: str | None = None,
) -> Rankings:
    """Rank ``gallery (G, D)`` for each of ``query (Q, D)``; identities and cameras are integers.

    ``device`` names the torch device that compares and sorts; None: numpy. The result is the same,
    and the same for any ``chunk`` of queries at a time. Beside the inputs it takes ``8 G D`` bytes
    and ``8 chunk G``. Raises PedbenchError on shapes, NaN and infinity.
    """
    q, g = np.asarray(query), np.asarray(gallery)
    who = Labels.of(query_identity, gallery_identity, query_camera, gallery_camera)
    if q.ndim != 2 or g.ndim != 2 or q.shape[1] != g.shape[1] or who.shape != (len(q), len(g)):
        raise PedbenchError(
            f"features of queries {q.shape} and gallery {g.shape} must be (images, width) for "
            f"{who.shape[0]} queries and {who.shape[1]} gallery images: features and manifest are "
            "not of the same subset"
        )
    return who.rankings(cosines(q, g, chunk, device), top)


def rank_subset(
    features: NDArray,
    asks: NDArray[np.bool_],
    identity: Integers,
    camera: Integers,
    device: str | None = None,
) -> Rankings:
    """As ``rank``, of ``features (N, D)`` of which those that ``asks (N,)`` are the queries and all
    others the gallery. It picks them part by part: no copy stands beside the scaled gallery."""
    q, g = np.flatnonzero(asks), np.flatnonzero(~asks)
    who = Labels.of(identity[q], identity[g], camera[q], camera[g])
    return who.rankings(cosines(features, features, device=device, rows=(q, g)), TOP)


def rank_distances(
    distances: ArrayLike,
    query_identity: ArrayLike,
    gallery_identity: ArrayLike,
    query_camera: ArrayLike,
    gallery_camera: ArrayLike,
    top: int = TOP,
) -> Rankings:
    """As ``rank``, from ``distances (Q, G)``: the smaller, the nearer."""
    given = np.asarray(distances)
    who = Labels.of(query_identity, gallery_identity, query_camera, gallery_camera)
    if given.shape != who.shape or np.isnan(given).any():
        raise PedbenchError(
            f"distances {given.shape} must be {who.shape} (queries, gallery images), without NaN"
        )
    scores = (-row.astype(np.float64) for row in given)
    return who.rankings(((row, np.sort(row)) for row in scores), top)


@dataclass(frozen=True)
class Labels:
    """Who is on the images of Q queries and G gallery images, and which camera took them."""

    query_identity: Integers
    gallery_identity: Integers
    query_camera: Integers
    gallery_camera: Integers

    @classmethod
    def of(cls, *given: ArrayLike) -> Labels:
        """In the order of the fields. Raises PedbenchError where two lengths differ."""
        labels = cls(*map(np.asarray, given))
        cameras = len(labels.query_camera), len(labels.gallery_camera)
        if cameras != labels.shape:
            raise PedbenchError(
                f"{labels.shape} identities and {cameras} cameras of (queries, gallery): every "
                "image has one of each"
            )
        return labels

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.query_identity), len(self.gallery_identity)

    def rankings(self, rows: Iterator[Row], top: int) -> Rankings:
        """Of all queries in turn; ``rows`` as ``cosines`` yields them."""
        by_identity = np.argsort(self.gallery_identity, kind="stable")
        ordered = self.gallery_identity[by_identity]
        start = np.searchsorted(ordered, self.query_identity, side="left")
        end = np.searchsorted(ordered, self.query_identity, side="right")
        queries = len(start)
        found = Rankings(
            matches=np.zeros(queries, np.int32),
            first=np.zeros(queries, np.int32),
            AP=np.full(queries, np.nan),
            INP=np.full(queries, np.nan),
            top=np.full((queries, top), -1, np.int32),
        )
        for q, (scores, ascending) in enumerate(rows):
            own = by_identity[start[q] : end[q]]
            here = self.gallery_camera[own] == self.query_camera[q]
            junk, correct = own[here], own[~here]
            close = nearest(scores, ascending, top + len(junk))
            close = close[~np.isin(close, junk)][:top]
            found.top[q, : len(close)] = close
            if len(correct):
                ranks = _ranks(scores, ascending, correct, junk)
                found.matches[q], found.first[q] = len(ranks), ranks[0]
                found.AP[q] = np.mean(np.arange(1, len(ranks) + 1) / ranks)
                found.INP[q] = len(ranks) / ranks[-1]
        return found


def cosines(
    query: NDArray,
    gallery: NDArray,
    chunk: int = CHUNK,
    device: str | None = None,
    rows: tuple[Integers, Integers] | None = None,
) -> Iterator[Row]:
    """For each of ``query (Q, D)`` its cosines with ``gallery (G, D)``, ``(G,)`` float32, as they
    are and in ascending order; ``chunk`` queries are compared at a time. ``rows``: the positions of
    those that are meant in either; None: all."""
    q, g = rows or (np.arange(len(query)), np.arange(len(gallery)))
    columns = unit(gallery, g).T
    parts = (unit(query, q[i : i + chunk]) for i in range(0, len(q), chunk))
    if device is None:
        room = np.empty((min(chunk, len(q)), len(g)))
        for part in parts:
            for exact in np.matmul(part, columns, out=room[: len(part)]):
                scores = exact.astype(np.float32)
                yield scores, np.sort(scores)
        return
    import torch

    columns = torch.from_numpy(columns).to(device)
    for part in parts:
        scores = (torch.from_numpy(part).to(device) @ columns).float()
        ascending = scores.sort(dim=1).values
        yield from zip(scores.cpu().numpy(), ascending.cpu().numpy(), strict=True)


def unit(features: NDArray, rows: Integers | None = None) -> Floats:
    """``features (N, D)``, those at the positions ``rows``, scaled to unit length and rounded to
    multiples of 1 / GRID."""
    rows = np.arange(len(features)) if rows is None else rows
    scaled = np.empty((len(rows), features.shape[1]))
    for i in range(0, len(rows), CHUNK):  # at once it would copy them in their own type first
        scaled[i : i + CHUNK] = features[rows[i : i + CHUNK]]
    length = np.sqrt(np.einsum("nd,nd->n", scaled, scaled))
    if not np.isfinite(length).all():
        raise PedbenchError(
            f"features of {int((~np.isfinite(length)).sum())} of {len(length)} images are NaN or "
            "infinite: delete the run's folder and train it again"
        )
    scaled *= np.divide(GRID, length, out=np.zeros_like(length), where=length > 0)[:, None]
    np.rint(scaled, out=scaled)
    scaled /= GRID
    return scaled


def nearest(scores: NDArray, ascending: NDArray, most: int) -> Integers:
    """Positions of the ``most`` largest of ``scores (G,)``, the largest first, equal ones in order.

    ``ascending`` holds the scores sorted.
    """
    most = min(most, len(scores))
    close = np.flatnonzero(scores >= ascending[len(scores) - most]) if most else np.empty(0, int)
    return close[np.argsort(-scores[close], kind="stable")[:most]]


def _ranks(scores: NDArray, ascending: NDArray, correct: Integers, junk: Integers) -> Integers:
    """Ranks (from 1, ascending) of the ``correct`` positions when those of ``junk`` are left out.

    Counted in a sorted row, so that no permutation of the gallery is needed.
    """
    values = scores[correct]
    reach = np.searchsorted(ascending, values, side="right")
    ahead = len(scores) - reach
    for i in np.flatnonzero(reach - np.searchsorted(ascending, values, side="left") > 1):
        ahead[i] += np.count_nonzero(scores[: correct[i]] == values[i])
    other = scores[junk]
    tied_before = (other == values[:, None]) & (junk < correct[:, None])
    ahead -= ((other > values[:, None]) | tied_before).sum(axis=1)
    return np.sort(1 + ahead)


def cmc(rankings: Rankings, ranks: Sequence[int]) -> Floats:
    """Share of the valid queries with a correct image among the first r, for each r of ``ranks``.

    NaN if no query is valid.
    """
    first = np.sort(rankings.first[rankings.valid])
    if not len(first):
        return np.full(len(ranks), np.nan)
    return np.searchsorted(first, ranks, side="right").astype(np.float64) / len(first)


def query_terms(rankings: Rankings) -> Floats:
    """What each of the V valid queries adds to the sums of ``of_sums``: shape ``(V, 6)``."""
    valid = rankings.valid
    first = rankings.first[valid]
    hits = [(first <= r).astype(np.float64) for r in (1, 5, 10)]
    return np.column_stack([rankings.AP[valid], *hits, rankings.INP[valid], np.ones(len(first))])


def of_sums(sums: Floats) -> dict[str, Floats]:
    """``METRICS`` of R sets of queries, ``(R,)`` each, from the sums ``(R, 6)`` of their
    ``query_terms``. NaN for an empty set."""
    totals, count = sums[:, :-1], sums[:, -1:]
    means = np.divide(totals, count, out=np.full(totals.shape, np.nan), where=count != 0)
    return dict(zip(METRICS, means.T, strict=True))


def score(rankings: Rankings) -> dict[str, float]:
    """``METRICS`` over the valid queries; larger is better. NaN if there are none."""
    sums = query_terms(rankings).sum(axis=0)
    return {metric: float(value[0]) for metric, value in of_sums(sums[None]).items()}
