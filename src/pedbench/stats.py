"""Which differences between methods are more than chance? Explained in docs/statistics.md.

The statistics work on arrays of resampled metrics; only ``write_stats`` touches files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, groupby, permutations
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import numpy as np
import pandas as pd
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.stats import t as student
from statsmodels.stats.multitest import multipletests

from pedbench.collect import check_comparable
from pedbench.contracts import PedbenchError
from pedbench.files import write_text
from pedbench.manifest import Manifest, read_manifest
from pedbench.results import Run, headline, read_predictions, read_runs
from pedbench.tasks import par

Floats = NDArray[np.float64]
Unit = Literal["image", "identity"]
Variant = tuple[str, str]  # method, variant
Row = dict[str, Any]

INTERVALS, VS_BASELINE, ALL_PAIRS = "intervals.csv", "vs_baseline.csv", "all_pairs.csv"
INTERVAL_COLUMNS = (
    *("dataset", "split", "metric", "method", "variant", "value", "ci_low", "ci_high"),
    *("se_images", "se_seeds", "df", "seeds", "unit", "resamples"),
)
TEST_COLUMNS = (
    *("dataset", "split", "metric", "method", "variant", "against_method", "against_variant"),
    *("difference", "ci_low", "ci_high", "se_images", "se_seeds", "df", "seeds", "p", "p_holm"),
    *("significant", "family", "unit", "resamples"),
)
CHUNK = 4_000_000  # weights (resamples x images) held at once


@dataclass(frozen=True)
class Sample:
    """One metric of one variant, by seed: ``value`` on the test subset, ``resampled (R,)``."""

    value: dict[int, float]
    resampled: dict[int, Floats]


Samples = Mapping[str, Mapping[Variant, Sample]]  # by metric, then variant


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its confidence interval, and the p-value of "it is zero"."""

    value: float
    ci_low: float
    ci_high: float
    se_images: float
    se_seeds: float
    df: float
    p: float
    seeds: int


def write_stats(
    folders: Iterable[Path],
    manifests: Mapping[str, Path],
    out: Path,
    *,
    baseline: str | None,
    metrics: Sequence[str] = ("mA", "F1"),
    alpha: float = 0.05,
    resamples: int = 2000,
    seed: int = 0,
) -> None:
    """Test the runs of ``folders`` on the test subset and write three CSV files below ``out``.

    ``intervals.csv`` holds every variant's metrics, ``vs_baseline.csv`` the difference of every
    variant to ``baseline`` ("method/variant"; no rows where it was not run), ``all_pairs.csv``
    all differences. In each of the last two, Holm's correction spans all comparisons x
    ``metrics`` of one dataset and split. Metrics are those of ``par.RESAMPLED``, or "F1" for the
    protocol's definition; numbers are in percent.
    """
    files: dict[str, list[Row]] = {INTERVALS: [], VS_BASELINE: [], ALL_PAIRS: []}
    for (dataset, split), group in groupby(read_runs(folders), lambda r: (r.dataset, r.split)):
        runs = list(group)
        check_comparable(runs)
        # A stream of its own for each dataset and split: narrowing the run changes no p-value.
        rng = np.random.default_rng([seed, crc32(f"{dataset}/{split}".encode())])
        manifest = read_manifest(Path(manifests[dataset]))
        unit: Unit = "identity" if split == "zero_shot" else "image"  # about new persons, or not
        samples = resample_runs(runs, manifest, metrics, resamples, unit, rng)
        variants = sorted({(run.method, run.variant) for run in runs})
        pairs = list(combinations(variants, 2))
        versus = [(v, b) for b, v in permutations(variants, 2) if "/".join(b) == baseline]
        place = {"dataset": dataset, "split": split, "unit": unit, "resamples": resamples}
        files[INTERVALS] += [place | row for row in intervals(samples, alpha)]
        files[VS_BASELINE] += [place | row for row in family(samples, versus, alpha)]
        files[ALL_PAIRS] += [place | row for row in family(samples, pairs, alpha)]
    for name, rows in files.items():
        columns = INTERVAL_COLUMNS if name == INTERVALS else TEST_COLUMNS
        text = pd.DataFrame(rows, columns=columns).to_csv(index=False, float_format="%.6g")
        write_text(out / name, text)


def read_stats(path: Path) -> pd.DataFrame:
    """One of the CSV files of ``write_stats``; it may have no rows."""
    try:
        rows = pd.read_csv(path, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise PedbenchError(f"{path}: not readable ({error}); delete it and run again") from error
    return rows.astype({"significant": bool}) if "significant" in rows else rows


def resample_runs(
    runs: Sequence[Run],
    manifest: Manifest,
    metrics: Sequence[str],
    resamples: int,
    unit: Unit,
    rng: Generator,
) -> Samples:
    """Every metric of every run on the same resamples of the test images, in percent."""
    predictions = [read_predictions(run, manifest, "test") for run in runs]
    parts: dict[tuple[str, Run], list[Floats]] = defaultdict(list)
    for weights in draw(units_of(predictions[0].identity, unit), resamples, rng):
        for run, p in zip(runs, predictions, strict=True):
            for metric in metrics:
                name = headline(run.protocol) if metric == "F1" else metric
                args = name, p.probabilities, p.labels, weights, run.protocol["threshold"]
                parts[metric, run].append(100 * par.resampled(*args))
    samples: Samples = {metric: defaultdict(lambda: Sample({}, {})) for metric in metrics}
    for (metric, run), arrays in parts.items():
        sample = samples[metric][run.method, run.variant]
        (sample.value[run.seed],), *rest = arrays
        sample.resampled[run.seed] = np.concatenate(rest)
    return samples


def units_of(identity: np.ndarray, unit: Unit) -> np.ndarray:
    """Number of the sampling unit of each image ``(M,)``; an unknown identity (-1) is one unit
    per image."""
    images = np.arange(len(identity))
    if unit == "image":
        return images
    own = np.where(identity < 0, -1 - images, identity)
    _, numbers = np.unique(own, return_inverse=True)
    return numbers


def draw(units: np.ndarray, resamples: int, rng: Generator) -> Iterator[Floats]:
    """How often each resample holds each image: parts ``(r, M)`` of ``(1 + resamples, M)``.

    The first row is all ones, the sample itself. Units are drawn with replacement, all images of
    a unit together.
    """
    yield np.ones((1, len(units)))
    count = units.max() + 1
    for done in range(0, resamples, step := max(1, CHUNK // len(units))):
        size = min(step, resamples - done)
        yield rng.multinomial(count, np.full(count, 1 / count), size)[:, units].astype(np.float64)


def intervals(samples: Samples, alpha: float) -> list[Row]:
    """One row for each metric and variant: its value and confidence interval."""
    rows = []
    for metric, by_variant in samples.items():
        for (method, variant), s in sorted(by_variant.items()):
            seeds = sorted(s.value)
            of = estimate([s.value[i] for i in seeds], [s.resampled[i] for i in seeds], alpha)
            rows.append({"metric": metric, "method": method, "variant": variant, **asdict(of)})
    return rows


def family(samples: Samples, pairs: Sequence[tuple[Variant, Variant]], alpha: float) -> list[Row]:
    """One row for each metric and pair: their difference; Holm's correction over all of them."""
    tests = [(m, a, b, difference(s[a], s[b], alpha)) for m, s in samples.items() for a, b in pairs]
    if not tests:
        return []
    p = [test.p for *_, test in tests]
    significant, p_holm = map(np.asarray, multipletests(p, alpha, method="holm")[:2])
    return [
        {
            "metric": metric,
            "method": a[0],
            "variant": a[1],
            "against_method": b[0],
            "against_variant": b[1],
            **asdict(test),
            "difference": test.value,
            "p_holm": float(p_holm[i]),
            "significant": bool(significant[i]),
            "family": len(tests),
        }
        for i, (metric, a, b, test) in enumerate(tests)
    ]


def difference(a: Sample, b: Sample, alpha: float = 0.05) -> Estimate:
    """The mean over seeds of ``a - b``, seed paired with seed."""
    pairs = pair_seeds(sorted(a.value), sorted(b.value))
    values = [a.value[i] - b.value[j] for i, j in pairs]
    return estimate(values, [a.resampled[i] - b.resampled[j] for i, j in pairs], alpha)


def estimate(values: Sequence[float], resampled: Sequence[Floats], alpha: float) -> Estimate:
    """The mean of S ``values``, one per seed, each with its R resamples over the images.

    The squared standard error is the variance of the mean over the resampled images plus the
    variance between seeds divided by S; the reference is the t distribution with Satterthwaite's
    degrees of freedom. With one seed only the images vary.
    """
    seeds = len(values)
    images = np.mean(resampled, axis=0).var(ddof=1)
    between = np.var(values, ddof=1) / seeds if seeds > 1 else 0.0
    df = (images + between) ** 2 / between**2 * (seeds - 1) if between > 0 else np.inf
    mean, se = np.mean(values), np.sqrt(images + between)
    half = student.ppf(1 - alpha / 2, df) * se
    return Estimate(
        value=float(mean),
        ci_low=float(mean - half),
        ci_high=float(mean + half),
        se_images=float(np.sqrt(images)),
        se_seeds=float(np.sqrt(between)),
        df=float(df),
        p=float(2 * student.sf(abs(mean) / se, df)) if se > 0 else float(mean == 0),
        seeds=seeds,
    )


def pair_seeds(a: Sequence[int], b: Sequence[int]) -> list[tuple[int, int]]:
    """Equal seeds in pairs; a method of one run is paired with every seed of the other.

    Raises PedbenchError when no seed is common.
    """
    if len(a) == 1 or len(b) == 1:
        return [(i, j) for i in a for j in b]
    common = sorted(set(a) & set(b))
    if not common:
        raise PedbenchError(
            f"methods with the seeds {list(a)} and {list(b)} cannot be paired: run both with the "
            "same 'seeds' in the config"
        )
    return [(seed, seed) for seed in common]
