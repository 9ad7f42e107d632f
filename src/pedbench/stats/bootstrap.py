"""Confidence intervals and tests from a paired bootstrap of the images, with seeds as variance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal
from zlib import crc32

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.optimize.elementwise import find_root
from scipy.stats import chi2, norm
from scipy.stats import t as student
from statsmodels.stats.meta_analysis import effectsize_smd
from statsmodels.stats.multitest import multipletests

from pedbench.contracts import PedbenchError
from pedbench.manifest import Manifest

Floats = NDArray[np.float64]
Unit = Literal["image", "identity"]
Variant = tuple[str, str]  # method, variant
Row = dict[str, Any]

CHUNK = 2_000_000  # weights (resamples x images) held at once


@dataclass(frozen=True)
class Sample:
    """One metric of one variant, by seed: ``value`` on the test subset, ``resampled (R,)``.

    For a metric of each attribute they have the shapes ``(A,)`` and ``(R, A)``. ``trained`` is
    False for the one run of a method that trains nothing.
    """

    value: dict[int, Any]
    resampled: dict[int, Floats]
    trained: bool = True


Samples = Mapping[str, Mapping[Variant, Sample]]  # by metric, then variant


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its confidence interval, and the p-value of "it is zero".

    Numbers, or arrays ``(A,)`` when estimated for each attribute.
    """

    value: Any
    ci_low: Any
    ci_high: Any
    se_images: Any
    se_seeds: Any
    p: Any
    seeds: int


def unit_of(manifest: Manifest, split: str) -> Unit:
    """What is resampled: persons where ``split`` asks about new ones, or for persons, else
    images."""
    new = manifest.is_reid(split) or manifest.new_persons(split)
    return "identity" if new else "image"


def stream(seed: int, dataset: str, split: str) -> list[int]:
    """The entropy of the random numbers of a place. Each has its own: leaving out one place
    changes no p-value of another."""
    return [seed, crc32(f"{dataset}/{split}".encode())]


def units_of(identity: np.ndarray, unit: Unit) -> np.ndarray:
    """Number of the sampling unit of each image, or query, ``(M,)``; an unknown identity (-1) is
    one unit per image."""
    images = np.arange(len(identity))
    if unit == "image":
        return images
    own = np.where(identity < 0, identity.max() + 1 + images, identity)
    _, numbers = np.unique(own, return_inverse=True)
    return numbers


def draw(units: np.ndarray, resamples: int, rng: Generator) -> Iterator[Floats]:
    """How often each resample holds each image: parts ``(r, M)`` of ``(1 + resamples, M)``.

    The first row is all ones, the sample itself. Units are drawn with replacement, all images of
    a unit together.
    """
    yield np.ones((1, len(units)))
    count = units.max() + 1
    for size in chunks(resamples, len(units)):
        yield rng.multinomial(count, np.full(count, 1 / count), size)[:, units].astype(np.float64)


def chunks(resamples: int, images: int) -> Iterator[int]:
    """Numbers of resamples that are worked on at a time."""
    step = max(1, CHUNK // images)
    for done in range(0, resamples, step):
        yield min(step, resamples - done)


def intervals(samples: Samples, baseline: Variant | None, alpha: float) -> list[Row]:
    """One row for each metric and variant: its value, its difference to the baseline, and their
    confidence intervals; no difference where there is no baseline and for the baseline itself."""
    rows = []
    for metric, by_variant in samples.items():
        base = by_variant.get(baseline) if baseline else None
        for (method, variant), s in sorted(by_variant.items()):
            seeds = sorted(s.value)
            of = estimate([s.value[i] for i in seeds], [s.resampled[i] for i in seeds], alpha)
            row = {"metric": metric, "method": method, "variant": variant, **asdict(of)}
            if base and (method, variant) != baseline:
                delta = difference(s, base, alpha)
                row |= {"difference": delta.value, "difference_low": delta.ci_low}
                row |= {"difference_high": delta.ci_high}
            rows.append(row)
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
            **effects(samples[metric][a], samples[metric][b]),
        }
        for i, (metric, a, b, test) in enumerate(tests)
    ]


def difference(a: Sample, b: Sample, alpha: float = 0.05) -> Estimate:
    """The mean over seeds of ``a - b``, seed paired with seed."""
    pairs = pairs_of(a, b)
    values = [a.value[i] - b.value[j] for i, j in pairs]
    return estimate(values, [a.resampled[i] - b.resampled[j] for i, j in pairs], alpha)


def estimate(values: Sequence[Any], resampled: Sequence[Floats], alpha: float) -> Estimate:
    """The mean of S ``values``, one per seed, each with its R resamples over the images.

    ``se_images`` is the standard deviation of the mean over the resampled images, ``se_seeds``
    that between seeds divided by the root of S; with one seed only the images vary. Test and
    interval are those of ``exceeds``. Resamples in which the metric is undefined (no positive was
    drawn) are left out.
    """
    seeds = len(values)
    mean = np.asarray(np.mean(values, axis=0))
    with np.errstate(invalid="ignore"):
        images = np.sqrt(_variance(np.mean(resampled, axis=0)))
        between = np.std(values, axis=0, ddof=1) / np.sqrt(seeds) if seeds > 1 else 0 * mean
    p = exceeds(np.abs(mean), images, between, seeds)
    widest = norm.isf(alpha / 4) * images + student.isf(alpha / 4, max(seeds - 1, 1)) * between
    half = find_root(
        lambda x, of_images, of_seeds: exceeds(x, of_images, of_seeds, seeds) - alpha,
        (0 * widest, widest),
        args=(images, between),
    ).x
    half = np.where(widest == 0, 0.0, half)
    undefined = np.isnan(mean + widest)
    found = (mean, mean - half, mean + half, images, between, p)
    return Estimate(*(np.where(undefined, np.nan, x)[()] for x in found), seeds=seeds)


def exceeds(size: Any, se_images: Any, se_seeds: Any, seeds: int) -> Any:
    """P(abs(``se_images`` Z + ``se_seeds`` T) >= ``size``), Z normal and T of Student's t with
    ``seeds`` - 1 degrees of freedom: Behrens and Fisher's distribution (R. A. Fisher, The fiducial
    argument in statistical inference, 1935), one of whose variances is known.

    T is a normal variable with a random variance, over whose quantiles the normal tail is averaged.
    """
    size, images, between = (np.asarray(x)[..., None] for x in (size, se_images, se_seeds))
    scale = np.hypot(images, between * np.sqrt(_variance_ratios(seeds)))
    with np.errstate(divide="ignore", invalid="ignore"):
        tail = np.where(np.isnan(scale), np.nan, 2 * norm.sf(size / scale)) @ _WEIGHTS
    return np.where(size[..., 0] == 0, 1.0, tail)


# Gauss-Legendre nodes of (0, 1), crowded where the variance is largest: p to 5 digits above 1e-5,
# to 3 above 1e-8
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(100)
_NODES, _WEIGHTS = ((1 + _NODES) / 2) ** 4, 2 * _WEIGHTS * ((1 + _NODES) / 2) ** 3


@cache
def _variance_ratios(seeds: int) -> Floats:
    """Quantiles at ``_NODES`` of the true variance over the one estimated from ``seeds``."""
    df = max(seeds - 1, 1)
    return df / chi2.ppf(_NODES, df)


def effects(a: Sample, b: Sample) -> Row:
    """How large ``a - b`` is beside its difference in points.

    ``superiority``: the probability that a run of ``a`` scores above a run of ``b``, over all
    pairs of their seeds, ties half. ``share_above``: the share of resamples in which ``a`` is
    above ``b`` on average over the seeds, ties half. ``hedges_g``: the difference in pooled
    standard deviations between seeds, bias-corrected (Hedges, 1981); NaN unless both have several
    seeds that differ.
    """
    x, y = (np.array([s.value[i] for i in sorted(s.value)]) for s in (a, b))
    pairs = pairs_of(a, b)
    drawn = np.mean([a.resampled[i] - b.resampled[j] for i, j in pairs], axis=0)
    g = np.nan
    if min(len(x), len(y)) > 1 and x.std() + y.std() > 0:
        sizes = (x.mean(), x.std(ddof=1), len(x), y.mean(), y.std(ddof=1), len(y))
        g = effectsize_smd(*sizes)[0]
    return {
        "superiority": float((np.sign(x[:, None] - y) + 1).mean() / 2),
        "share_above": float((np.sign(drawn) + 1).mean() / 2),
        "hedges_g": float(g),
    }


def pairs_of(a: Sample, b: Sample) -> list[tuple[int, int]]:
    """The seeds that are compared; see ``pair_seeds``."""
    return pair_seeds(sorted(a.value), sorted(b.value), trained=a.trained and b.trained)


def pair_seeds(a: Sequence[int], b: Sequence[int], trained: bool = True) -> list[tuple[int, int]]:
    """Equal seeds in pairs. Where not both sides are ``trained``, the one run that trains nothing
    is paired with every seed of the other; a single trained run is not, since its seed has a
    variance that nobody knows.

    Raises PedbenchError when no seed is common.
    """
    if not trained and 1 in (len(a), len(b)):
        return [(i, j) for i in a for j in b]
    common = sorted(set(a) & set(b))
    if not common:
        raise PedbenchError(
            f"methods with the seeds {list(a)} and {list(b)} cannot be paired: run both with the "
            "same 'seeds' in the config"
        )
    return [(seed, seed) for seed in common]


def _variance(drawn: Floats) -> Any:
    """Over the first axis, NaN left out; NaN with fewer than two numbers."""
    defined = ~np.isnan(drawn)
    if defined.all():
        return drawn.var(axis=0, ddof=1)
    count = defined.sum(axis=0)
    centred = np.where(defined, drawn - np.nansum(drawn, axis=0) / count, 0.0)
    return (centred**2).sum(axis=0) / np.where(count > 1, count - 1, np.nan)
