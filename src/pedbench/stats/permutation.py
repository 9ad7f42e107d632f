"""A paired permutation test: would it matter if the two methods had swapped their predictions?

scipy's ``permutation_test`` draws anew for every pair and metric; here all methods and metrics of
a place share their swaps, so that a method costs one matrix product (a test compares the two).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.random import Generator

from pedbench.stats.bootstrap import Floats, Variant, chunks, pair_seeds

Terms = Mapping[Variant, Mapping[int, Floats]]  # by variant and seed: `Evaluation.terms` (M, K)
OfSums = Callable[[Floats], Mapping[str, Floats]]  # `Evaluation.of_sums`


def draw_swaps(units: np.ndarray, resamples: int, rng: Generator) -> Iterator[Floats]:
    """Which images are swapped: parts ``(r, M)`` of ``(resamples, M)``, 1 or 0 with equal chance;
    all images of a unit together."""
    for size in chunks(resamples, len(units)):
        yield (rng.random((size, units.max() + 1)) < 0.5)[:, units].astype(np.float64)


def permutation(
    terms: Terms,
    of_sums: OfSums,
    baseline: Variant,
    units: np.ndarray,
    resamples: int,
    rng: Generator,
    untrained: Collection[Variant] = (),
) -> dict[Variant, dict[str, float]]:
    """Two-sided p-value of every variant against ``baseline``, by metric of ``of_sums``.

    For every unit a coin says whether the two exchange their predictions, those of all seeds
    together; the statistic is the difference averaged over the pairs of seeds. The p-value is the
    share of swaps (the one that was observed among them) with at least the observed difference
    in size (Phipson & Smyth, 2010). ``untrained`` names the variants of one run that train nothing.
    """
    others = [variant for variant in terms if variant != baseline]
    if not others:
        return {}
    totals = {v: {s: t.sum(axis=0) for s, t in of.items()} for v, of in terms.items()}
    reached: dict[Variant, dict[str, float]] = {v: defaultdict(lambda: 1.0) for v in others}
    for swaps in draw_swaps(units, resamples, rng):
        moved = {v: {s: swaps @ t for s, t in of.items()} for v, of in terms.items()}
        for variant in others:
            trained = variant not in untrained and baseline not in untrained
            pairs = pair_seeds(sorted(terms[variant]), sorted(terms[baseline]), trained)
            sides = [(totals[variant][i], totals[baseline][j]) for i, j in pairs]
            gain = [moved[baseline][j] - moved[variant][i] for i, j in pairs]
            observed = mean_difference(of_sums, [(a[None], b[None]) for a, b in sides])
            swapped = [(a + g, b - g) for (a, b), g in zip(sides, gain, strict=True)]
            for metric, null in mean_difference(of_sums, swapped).items():
                # A tolerance, since sums in another order differ in their last digits.
                as_large = np.abs(null) >= np.abs(observed[metric]) - 1e-12
                reached[variant][metric] += float(as_large.sum())
    return {v: {m: n / (resamples + 1) for m, n in of.items()} for v, of in reached.items()}


def mean_difference(of_sums: OfSums, pairs: Sequence[tuple[Floats, Floats]]) -> dict[str, Floats]:
    """Every metric of a minus that of b, mean over the pairs of seeds: ``(R,)`` each."""
    scores = [(of_sums(a), of_sums(b)) for a, b in pairs]
    return {m: np.mean([a[m] - b[m] for a, b in scores], axis=0) for m in scores[0][0]}
