"""Which differences between methods are more than chance? Explained in docs/statistics.md.

``bootstrap``, ``permutation`` and ``ranks`` work on arrays, with the generator passed in; only
``write`` touches files.
"""

from pedbench.stats.bootstrap import (
    Sample,
    Samples,
    family,
    pairs_of,
    stream,
    unit_of,
    units_of,
)
from pedbench.stats.write import (
    ALL_PAIRS,
    ATTRIBUTES,
    FRIEDMAN,
    INTERVALS,
    POSTHOC,
    RANKS,
    VS_BASELINE,
    WILCOXON,
    read_stats,
    resample_runs,
    write_stats,
)

__all__ = [
    "ALL_PAIRS",
    "ATTRIBUTES",
    "FRIEDMAN",
    "INTERVALS",
    "POSTHOC",
    "RANKS",
    "Sample",
    "Samples",
    "VS_BASELINE",
    "WILCOXON",
    "family",
    "pairs_of",
    "read_stats",
    "resample_runs",
    "stream",
    "unit_of",
    "units_of",
    "write_stats",
]
