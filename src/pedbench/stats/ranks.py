"""Tests over blocks: do methods keep their order over places (datasets and splits) and seeds?

A table has one row per block, indexed by place and seed, and one column per variant (a tuple of
method and variant); higher values are better.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from pedbench.stats.bootstrap import Floats, Row, Variant


def blocks(values: Mapping[str, Mapping[Variant, Mapping[int, float]]]) -> pd.DataFrame:
    """The table from ``values[place][variant][seed]``; a single run stands for every seed, and a
    place of single runs is one block."""
    rows = {}
    for place, by_variant in values.items():
        repeated = [by_seed for by_seed in by_variant.values() if len(by_seed) > 1]
        for seed in sorted({seed for by_seed in repeated for seed in by_seed}) or [0]:
            rows[place, seed] = {
                variant: next(iter(by_seed.values())) if len(by_seed) == 1 else by_seed.get(seed)
                for variant, by_seed in by_variant.items()
            }
    index = pd.MultiIndex.from_tuples(rows, names=["place", "seed"])
    return pd.DataFrame(list(rows.values()), index, dtype=float).sort_index(axis=1)


def complete(table: pd.DataFrame) -> pd.DataFrame:
    """Variants that were run at every place, and of these the blocks that all of them have."""
    everywhere = table.groupby(level="place").count().gt(0).all()
    return pd.DataFrame(table[table.columns[everywhere]]).dropna()


def by_place(table: pd.DataFrame) -> pd.DataFrame:
    """The same with places as blocks: the mean over the seeds."""
    return pd.DataFrame(table.groupby(level="place").mean())


def wilcoxon(table: pd.DataFrame, a: Variant, b: Variant) -> Row:
    """Wilcoxon's signed-rank test (two-sided) of ``a - b`` over the blocks that have both.

    Two variants of single runs have one block per place. ``floor`` is the smallest p-value that
    so many blocks allow. ``p_places`` and ``floor_places`` are those with places as blocks.
    """
    pair = pd.DataFrame(table[[a, b]]).dropna()
    if (pair.groupby(level="place").nunique() == 1).all(axis=None):
        pair = pair.groupby(level="place").head(1)  # the same runs, repeated for every seed
    d, places = (np.subtract(*rows.to_numpy().T) for rows in (pair, by_place(pair)))
    statistic, p = _signed_ranks(d)
    return {
        "blocks": len(d),
        "median": np.median(d),
        "statistic": statistic,
        "p": p,
        "floor": _floor(d),
        "places": len(places),
        "p_places": _signed_ranks(places)[1],
        "floor_places": _floor(places),
    }


def _signed_ranks(d: Floats) -> tuple[float, float]:
    if not d.any():
        return 0.0, 1.0
    found: Any = stats.wilcoxon(d)
    return float(found.statistic), float(found.pvalue)


def _floor(d: Floats) -> float:
    """All of n signs equal, either way: 2 / 2^n. The test drops differences of zero."""
    return min(1.0, 2.0 ** (1 - np.count_nonzero(d)))


def mean_ranks(table: pd.DataFrame) -> pd.Series:
    """Mean rank of each variant over the blocks; 1 is best, ties share their mean."""
    return table.rank(axis=1, ascending=False).mean()


def friedman(table: pd.DataFrame) -> tuple[float, float]:
    """Friedman's test of equal ranks: chi-squared statistic and p-value, NaN with fewer than 3
    variants or 2 blocks."""
    if table.shape[0] < 2 or table.shape[1] < 3:
        return np.nan, np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all equal: 0 / 0
        found = stats.friedmanchisquare(*table.to_numpy().T)
    return float(found.statistic), float(found.pvalue)


def nemenyi(table: pd.DataFrame) -> pd.DataFrame:
    """p-values of Nemenyi's test of all pairs, a symmetric matrix over the variants."""
    from scikit_posthocs import posthoc_nemenyi_friedman  # plots too, so slow to import

    found: Any = posthoc_nemenyi_friedman(table.to_numpy())
    return pd.DataFrame(found.to_numpy(), index=table.columns, columns=table.columns)
