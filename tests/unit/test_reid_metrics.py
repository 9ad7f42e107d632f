"""Metrics of ReID and re-ranking against plain loops over queries and images."""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pedbench.contracts import PedbenchError
from pedbench.tasks import reid
from pedbench.tasks.rerank import rerank

Labels = dict[str, Any]
TINY_CHUNK = 3


@st.composite
def labelled(draw) -> Labels:
    """Few persons (0 is a distractor, as any that no query shows) and cameras: junk, queries
    without a match and persons of one camera are common."""
    sides = {"query": draw(st.integers(1, 5)), "gallery": draw(st.integers(1, 12))}
    highest = {"identity": draw(st.integers(0, 4)), "camera": draw(st.integers(0, 2))}
    return {
        f"{side}_{what}": draw(hnp.arrays(np.int64, count, elements=st.integers(0, highest[what])))
        for side, count in sides.items()
        for what in highest
    }


def sizes(labels: Labels) -> tuple[int, int]:
    return len(labels["query_identity"]), len(labels["gallery_identity"])


def coordinates(count: int) -> st.SearchStrategy[np.ndarray]:
    """Features of which many are equal, zero, or equally far from others, the latter exactly."""
    return hnp.arrays(np.float32, (count, 3), elements=st.sampled_from([-1.0, 0.0, 0.0, 1.0]))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    dot, scale = math.fsum(map(float, a * b)), math.hypot(*a) * math.hypot(*b)
    return round(dot / scale, 6) if scale else 0.0


def reference(distances: np.ndarray, labels: Labels, top: int) -> list[tuple[Any, ...]]:
    """matches, first, AP, INP and top of each query, image after image."""
    found = []
    for q, (person, camera) in enumerate(
        zip(labels["query_identity"], labels["query_camera"], strict=True)
    ):
        counted = []
        for g in sorted(range(distances.shape[1]), key=lambda g: (distances[q, g], g)):
            same = labels["gallery_identity"][g] == person
            if not (same and labels["gallery_camera"][g] == camera):
                counted.append((g, same))
        hits, precisions, first, last = 0, [], 0, 0
        for position, (_, same) in enumerate(counted, start=1):
            if same:
                hits += 1
                precisions.append(hits / position)
                first, last = first or position, position
        near = [g for g, _ in counted[:top]]
        near += [-1] * (top - len(near))
        mean = sum(precisions) / hits if hits else math.nan
        found.append((hits, first, mean, hits / last if hits else math.nan, near))
    return found


def assert_equal(rankings: reid.Rankings, expected: list[tuple[Any, ...]]) -> None:
    matches, first, ap, inp, top = zip(*expected, strict=True)
    np.testing.assert_array_equal(rankings.matches, matches)
    np.testing.assert_array_equal(rankings.first, first)
    np.testing.assert_array_equal(rankings.top, np.array(top, dtype=int).reshape(len(top), -1))
    np.testing.assert_allclose(rankings.AP, ap, rtol=1e-14)
    np.testing.assert_array_equal(rankings.INP, inp)


def assert_same(a: reid.Rankings, b: reid.Rankings) -> None:
    for name, value in vars(a).items():
        np.testing.assert_array_equal(value, getattr(b, name), err_msg=name)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), labels=labelled(), top=st.integers(0, 13))
def test_distances_rank_as_in_a_plain_loop(data, labels, top):
    distances = data.draw(hnp.arrays(np.int8, sizes(labels), elements=st.integers(-3, 3)))
    ours = reid.rank_distances(distances, **labels, top=top)
    assert_equal(ours, reference(distances, labels, top))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), labels=labelled())
def test_features_rank_as_in_a_plain_loop(data, labels):
    query, gallery = (data.draw(coordinates(count)) for count in sizes(labels))
    distances = np.array([[-cosine(q, g) for g in gallery] for q in query])
    ours = reid.rank(query, gallery, **labels, chunk=TINY_CHUNK)
    assert_equal(ours, reference(distances, labels, reid.TOP))


def world(
    seed: int, queries: int = 23, gallery: int = 400, width: int = 33
) -> tuple[np.ndarray, np.ndarray, Labels]:
    """Features around a centre for each person, half of the gallery twice, and their labels."""
    rng = np.random.default_rng(seed)
    persons = {"query": rng.integers(1, 20, queries), "gallery": rng.integers(0, 22, gallery)}
    centres = rng.normal(size=(22, width))
    features = {
        side: (centres[who] + 1.2 * rng.normal(size=(len(who), width))).astype(np.float32)
        for side, who in persons.items()
    }
    features["gallery"][gallery // 2 :] = features["gallery"][: gallery - gallery // 2]
    labels: Labels = {f"{side}_identity": who for side, who in persons.items()}
    labels |= {f"{side}_camera": rng.integers(0, 4, len(who)) for side, who in persons.items()}
    return features["query"], features["gallery"], labels


def test_neither_parts_nor_device_nor_scale_change_a_bit():
    query, gallery, labels = world(0)
    whole = reid.rank(query, gallery, **labels, chunk=1000)
    assert whole.valid.all() and 0.2 < reid.score(whole)["mAP"] < 0.9
    for chunk in (1, 2, 7, 22):
        assert_same(reid.rank(query, gallery, **labels, chunk=chunk), whole)
    assert_same(reid.rank(query, gallery, **labels, device="cpu", chunk=5), whole)
    assert_same(reid.rank(4 * query, gallery / 8, **labels), whole)
    together = np.array([row for row, _ in reid.cosines(query, gallery)])
    alone = [row for q in query for row, _ in reid.cosines(q[None], gallery)]
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_allclose(together, reference_cosines(query, gallery), atol=1e-7)
    assert_equal(whole, reference(-together, labels, reid.TOP))


def test_memory_does_not_grow_with_queries_times_gallery():
    query, gallery, labels = world(6, queries=300, gallery=1500, width=4)
    tracemalloc.start()
    reid.rank(query, gallery, **labels, chunk=8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * len(query) * len(gallery) / 4  # a quarter of the matrix in float32


def test_a_subset_ranks_like_its_sides_without_a_copy_of_them():
    query, gallery, labels = world(7, queries=8, gallery=3000, width=256)
    mixed = np.random.default_rng(8).permutation(3008)
    features = np.concatenate([query, gallery])[mixed]
    asks = mixed < 8
    who, camera = (
        np.concatenate([labels[f"query_{what}"], labels[f"gallery_{what}"]])[mixed]
        for what in ("identity", "camera")
    )
    apart = reid.rank(
        features[asks], features[~asks], who[asks], who[~asks], camera[asks], camera[~asks]
    )
    tracemalloc.start()
    together = reid.rank_subset(features, asks, who, camera)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert_same(together, apart)
    assert peak < 1.25 * 8 * gallery.size  # the gallery in float64; a float32 copy would be 1.5


def reference_cosines(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    q, g = (x.astype(np.float64) for x in (query, gallery))
    return q @ g.T / np.outer(np.linalg.norm(q, axis=1), np.linalg.norm(g, axis=1))


def test_sums_of_cosines_are_exact():
    """The grid keeps any order of summation exact, also where float32 or float64 would not be."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(2, 5000)) * 10 ** rng.uniform(-6, 0, size=5000)
    a, b = reid.unit(vectors)
    exact = math.fsum(a * b)
    assert abs(exact) > 1e-6
    for order in (slice(None), slice(None, None, -1), rng.permutation(5000)):
        terms = (a * b)[order]
        assert terms.cumsum()[-1] == np.dot(a[order], b[order]) == exact


def test_by_hand():
    """Two queries; the first sees one image of its own camera, which is left out."""
    labels: Labels = {
        "query_identity": np.array([7, 8, 9]),
        "query_camera": np.array([0, 0, 0]),
        "gallery_identity": np.array([7, 0, 7, 8, 7, 9]),
        "gallery_camera": np.array([0, 1, 1, 1, 2, 0]),
    }
    distances = np.array([[0, 1, 2, 3, 4, 5], [1, 1, 1, 1, 1, 1], [5, 4, 3, 2, 1, 0]])
    ours = reid.rank_distances(distances, **labels, top=4)
    assert ours.matches.tolist() == [2, 1, 0] and ours.first.tolist() == [2, 4, 0]
    np.testing.assert_allclose(ours.AP, [(1 / 2 + 2 / 4) / 2, 1 / 4, math.nan])
    np.testing.assert_allclose(ours.INP, [2 / 4, 1 / 4, math.nan])
    assert ours.top.tolist() == [[1, 2, 3, 4], [0, 1, 2, 3], [4, 3, 2, 1]]
    assert ours.skipped == 1 and ours.valid.tolist() == [True, True, False]
    expected = {"mAP": 0.375, "rank1": 0.0, "rank5": 1.0, "rank10": 1.0, "mINP": 0.375}
    assert reid.score(ours) == expected
    np.testing.assert_array_equal(reid.cmc(ours, [1, 2, 3, 4, 99]), [0, 0.5, 0.5, 1, 1])


def test_nobody_to_find():
    labels: Labels = {f"{side}_identity": np.array([1, 2]) for side in ("query", "gallery")}
    labels |= {f"{side}_camera": np.array([0, 0]) for side in ("query", "gallery")}
    ours = reid.rank(np.eye(2), np.eye(2), **labels, top=2)
    assert ours.skipped == 2 and ours.top.tolist() == [[1, -1], [0, -1]]
    assert all(math.isnan(value) for value in reid.score(ours).values())
    assert np.isnan(reid.cmc(ours, [1, 5])).all()
    assert reid.query_terms(ours).shape == (0, 6)


def test_weighted_sums_are_metrics_of_repeated_queries():
    query, gallery, labels = world(2, queries=15, gallery=60)
    labels["query_identity"][3] = 99  # shown nowhere else
    ours = reid.rank(query, gallery, **labels)
    assert 1 <= ours.skipped < 5
    terms = reid.query_terms(ours)
    drawn = np.random.default_rng(3).integers(0, 3, (4, len(terms)))
    found = reid.of_sums(drawn @ terms)
    assert tuple(found) == reid.METRICS
    valid = np.flatnonzero(ours.valid)
    for r, weights in enumerate(drawn):
        again = valid.repeat(weights)
        expected: dict[str, Any] = {
            "mAP": ours.AP[again].mean(),
            **{f"rank{k}": (ours.first[again] <= k).mean() for k in (1, 5, 10)},
            "mINP": ours.INP[again].mean(),
        }
        for metric, value in expected.items():
            assert found[metric][r] == pytest.approx(value, abs=1e-12), metric
    assert np.isnan(reid.of_sums(np.zeros((1, 6)))["mAP"]).all()


def test_mistakes_are_named():
    query, gallery, labels = world(4, queries=3, gallery=5)
    with pytest.raises(PedbenchError, match="not of the same subset"):
        reid.rank(query, gallery[:4], **labels)
    with pytest.raises(PedbenchError, match="not of the same subset"):
        reid.rank(query[:, :5], gallery, **labels)
    with pytest.raises(PedbenchError, match="every image has one of each"):
        reid.rank(query, gallery, **{**labels, "query_camera": np.zeros(2)})
    broken = gallery.copy()
    broken[2, 1] = np.nan
    with pytest.raises(PedbenchError, match="features of 1 of 5 images are NaN"):
        reid.rank(query, broken, **labels)
    with pytest.raises(PedbenchError, match=r"\(5, 3\) must be \(3, 5\)"):
        reid.rank_distances(np.zeros((5, 3)), **labels)
    with pytest.raises(PedbenchError, match="without NaN"):
        reid.rank_distances(np.full((3, 5), np.nan), **labels)
    with pytest.raises(PedbenchError, match="k1 = 0"):
        rerank(query, gallery, k1=0)
    with pytest.raises(PedbenchError, match="must be"):
        rerank(query, gallery[:, 1:])


def test_metrics_need_no_torch():
    code = (
        "import sys, numpy as np; from pedbench.tasks import reid, rerank\n"
        "a = np.eye(3); reid.rank(a, a, [1, 2, 3], [1, 2, 3], [0, 0, 0], [1, 1, 1])\n"
        "rerank.rerank(a, a); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def plain_rerank(query, gallery, k1, k2, weight, power) -> np.ndarray:
    """The paper's steps, set by set, on dense matrices."""
    every = np.concatenate([query, gallery]).astype(np.float64)
    count = len(every)
    distances = np.array([[max(0.0, 2 - 2 * plain_cosine(a, b)) for b in every] for a in every])
    distances **= power / 2
    distances /= distances.max(axis=1, keepdims=True)
    order = np.argsort(distances, axis=1, kind="stable")

    def mutual(i: int, k: int) -> set[int]:
        return {j for j in order[i, : k + 1] if i in order[j, : k + 1]} | {i}

    encoded = np.zeros((count, count))
    for i in range(count):
        wide = mutual(i, k1)
        extended = set(wide)
        for j in wide:
            narrow = mutual(j, round(k1 / 2))
            if 3 * len(narrow & wide) > 2 * len(narrow):
                extended |= narrow
        for j in extended:
            encoded[i, j] = math.exp(-distances[i, j])
    encoded /= encoded.sum(axis=1, keepdims=True)
    if k2 > 1:
        encoded = np.array([encoded[order[i, :k2]].mean(axis=0) for i in range(count)])
    found = np.zeros((len(query), len(gallery)))
    for i in range(len(query)):
        for j in range(len(gallery)):
            mine, theirs = encoded[i], encoded[len(query) + j]
            jaccard = 1 - np.minimum(mine, theirs).sum() / np.maximum(mine, theirs).sum()
            found[i, j] = (1 - weight) * jaccard + weight * distances[i, len(query) + j]
    return found


def plain_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return math.fsum(a * b) / (math.hypot(*a) * math.hypot(*b))


@pytest.mark.parametrize(
    ("k1", "k2", "weight", "power"),
    [
        (20, 6, 0.3, 2),
        (5, 1, 0.3, 2),
        (7, 3, 0.0, 4),
        (3, 2, 1.0, 1),
        (1, 1, 0.5, 2),
        (50, 15, 0.3, 2),
    ],
)
def test_rerank_as_in_plain_loops(k1, k2, weight, power):
    rng = np.random.default_rng(k1)
    centres = rng.normal(size=(6, 8))
    query, gallery = (
        centres[rng.integers(0, 6, n)] + 0.6 * rng.normal(size=(n, 8)) for n in (9, 40)
    )
    ours = rerank(query, gallery, k1, k2, weight, power, chunk=7)
    assert ours.shape == (9, 40) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, plain_rerank(query, gallery, k1, k2, weight, power), atol=2e-6)


def test_rerank_of_equal_and_few_images():
    """Fewer images than neighbours, all of them equal: no distance is undefined."""
    ours = rerank(np.ones((2, 4)), np.ones((3, 4)))
    np.testing.assert_allclose(ours, 0, atol=1e-6)
    alone = rerank(np.eye(2)[:1], np.eye(2)[1:], k1=1, k2=1)
    assert np.isfinite(alone).all() and alone.shape == (1, 1)


def test_rerank_helps_where_neighbours_agree():
    query, gallery, labels = world(5, queries=40, gallery=200, width=24)
    plain = reid.score(reid.rank(query, gallery, **labels))["mAP"]
    again = reid.score(reid.rank_distances(rerank(query, gallery), **labels))["mAP"]
    assert again > 1.1 * plain
