"""Re-ranking by k-reciprocal neighbours (Zhong et al., "Re-ranking Person Re-identification with
k-reciprocal Encoding", CVPR 2017; sections below are the paper's).

Neighbour sets are sparse matrices, so memory grows with the number of images, not its square; only
the distances that are asked for are ``(Q, G)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array, diags_array

from pedbench.contracts import PedbenchError
from pedbench.tasks.reid import CHUNK, Floats, Integers, cosines, nearest, unit

PAIRS = 8192  # whose features are multiplied at a time


def rerank(
    query: ArrayLike,
    gallery: ArrayLike,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    power: float = 2.0,
    chunk: int = CHUNK,
    device: str | None = None,
) -> NDArray[np.float32]:
    """Distances ``(Q, G)`` of ``query (Q, D)`` and ``gallery (G, D)``, for ``reid.rank_distances``:
    ``weight`` times the original distance plus ``1 - weight`` times the Jaccard distance (3.5).

    The original distance is a power of the Euclidean distance of the features at unit length,
    divided by the largest that the query has to any image, a query or of the gallery. ``power`` is
    2 in the authors' code and in CLIP-ReID's; torchreid squares distances that are squared: 4.
    ``chunk`` and ``device`` as in ``reid.rank``. Raises PedbenchError on shapes, NaN, settings.
    """
    q, g = np.asarray(query), np.asarray(gallery)
    if q.ndim != 2 or g.ndim != 2 or q.shape[1] != g.shape[1]:
        raise PedbenchError(f"queries {q.shape} and gallery {g.shape} must be (images, width)")
    if min(k1, k2) < 1 or not 0 <= weight <= 1:
        raise PedbenchError(
            f"re-ranking with k1 = {k1}, k2 = {k2}, weight = {weight}: k1 and k2 must be at least "
            "1, the weight from 0 to 1"
        )
    every = np.concatenate([q, g])
    close, largest = neighbours(every, max(k1 + 1, k2), power, chunk, device)
    members = encode(every, close, k1, largest, power)
    if k2 > 1:  # local query expansion (3.4)
        members = adjacency(close[:, :k2], values=1 / min(k2, len(every))) @ members
    found = np.empty((len(q), len(g)), np.float32)
    overlaps = shared(members[: len(q)], members[len(q) :])
    rows = cosines(q, g, chunk, device)
    for i, ((row, _), overlap) in enumerate(zip(rows, overlaps, strict=True)):
        original = distance(row, power) / largest[i]
        found[i] = weight * original + (1 - weight) * (1 - overlap / (2 - overlap))
    return found


def distance(cosine: NDArray, power: float) -> Floats:
    """The Euclidean distance of vectors of unit length to the ``power``, from their cosine."""
    return np.maximum(2 - 2 * cosine.astype(np.float64), 0) ** (power / 2)


def neighbours(
    features: NDArray, count: int, power: float, chunk: int, device: str | None
) -> tuple[Integers, Floats]:
    """For each of ``features (N, D)`` the positions ``(N, count)`` of the nearest, itself among
    them and the nearest first (fewer if N is smaller), and its largest distance ``(N,)``."""
    close, farthest = [], []
    for row, ascending in cosines(features, features, chunk, device):
        close.append(nearest(row, ascending, count))
        farthest.append(ascending[0])
    largest = distance(np.array(farthest), power)
    return np.array(close), np.where(largest > 0, largest, 1.0)


def encode(features: NDArray, close: Integers, k1: int, largest: Floats, power: float) -> csr_array:
    """The weight with which each image (row) has each image in its extended set of k-reciprocal
    neighbours: ``(N, N)``, rows summing to 1 (3.2, 3.3)."""
    wide = reciprocal(close[:, : k1 + 1])
    narrow = reciprocal(close[:, : int(np.around(k1 / 2)) + 1])
    # A neighbour's own narrow set joins when more than two thirds of it are there already.
    joins = csr_array(wide.multiply(wide @ narrow))
    joins.data = np.where(3 * joins.data > 2 * narrow.sum(axis=1)[joins.indices], 1.0, 0.0)
    members = csr_array((wide + joins @ narrow) > 0).tocoo()
    rows, columns = members.coords
    vectors = unit(features)
    pairs = range(0, len(rows), PAIRS)
    cosine = [
        np.einsum("pd,pd->p", vectors[rows[i : i + PAIRS]], vectors[columns[i : i + PAIRS]])
        for i in pairs
    ]
    weights = np.exp(-distance(np.concatenate(cosine), power) / largest[rows])
    total = np.bincount(rows, weights, minlength=len(features))
    return csr_array((weights / total[rows], (rows, columns)), shape=members.shape)


def reciprocal(close: Integers) -> csr_array:
    """1 where two images are among each other's ``close (N, k)``, ``(N, N)``; an image always is
    among its own, also where more than k images equal it."""
    one_way = adjacency(close, values=1.0)
    both = one_way.multiply(one_way.T)
    return csr_array((both + diags_array(np.ones(len(close)))) > 0, dtype=np.float64)


def adjacency(close: Integers, values: float) -> csr_array:
    """``values`` at the positions ``close (N, k)`` of every row, ``(N, N)``."""
    count, width = close.shape
    starts = np.arange(0, count * width + 1, width)
    return csr_array((np.full(close.size, values), close.ravel(), starts), shape=(count, count))


def shared(rows: Any, others: Any) -> Iterator[Floats]:
    """For each of the sparse ``rows (Q, N)`` the sum of the elementwise minimum with each of
    ``others (G, N)``: ``(G,)``. Only columns that are not 0 in the row are looked at."""
    columns = others.tocsc()
    for start, end in pairwise(rows.indptr):
        part = columns[:, rows.indices[start:end]]
        limit = np.repeat(rows.data[start:end], np.diff(part.indptr))
        least = np.minimum(part.data, limit)
        yield np.bincount(part.indices, least, minlength=others.shape[0]).astype(np.float64)
