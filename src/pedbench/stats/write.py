"""From kept predictions to ``results/stats/``: a CSV file for each question, in percent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, groupby, permutations
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.random import Generator
from statsmodels.stats.multitest import multipletests

from pedbench.collect import check_comparable, read_csv
from pedbench.evaluation import Evaluation, evaluation
from pedbench.files import write_text
from pedbench.manifest import Manifest, read_manifest
from pedbench.results import Run, headline, read_runs
from pedbench.stats import ranks
from pedbench.stats.bootstrap import (
    Floats,
    Row,
    Sample,
    Samples,
    Variant,
    difference,
    draw,
    family,
    intervals,
    stream,
    unit_of,
    units_of,
)
from pedbench.stats.permutation import permutation
from pedbench.tasks import TESTED, tested

INTERVALS, VS_BASELINE, ALL_PAIRS = "intervals.csv", "vs_baseline.csv", "all_pairs.csv"
ATTRIBUTES, WILCOXON, FRIEDMAN = "attributes.csv", "wilcoxon.csv", "friedman.csv"
RANKS, POSTHOC = "ranks.csv", "posthoc.csv"
PAIR = ("metric", "method", "variant", "against_method", "against_variant")
TEST = (
    *("dataset", "split", *PAIR, "difference", "ci_low", "ci_high", "se_images", "se_seeds"),
    *("seeds", "p", "p_holm", "significant", "family", "unit", "resamples"),
)
EFFECTS = ("superiority", "share_above", "hedges_g")
COLUMNS = {
    INTERVALS: (
        *("dataset", "split", "metric", "method", "variant", "value", "ci_low", "ci_high"),
        *("se_images", "se_seeds", "seeds", "unit", "resamples"),
        *("difference", "difference_low", "difference_high"),
    ),
    VS_BASELINE: (*TEST, "p_permutation", *EFFECTS),
    ALL_PAIRS: (*TEST, *EFFECTS),
    ATTRIBUTES: (
        *("dataset", "split", "metric", "method", "variant", "attribute", "train_ratio", "value"),
        *("difference", "ci_low", "ci_high"),
    ),
    WILCOXON: (
        *(*PAIR, "blocks", "median", "statistic", "p", "floor", "p_holm", "family"),
        *("places", "p_places", "floor_places"),
    ),
    FRIEDMAN: ("metric", "statistic", "p", "blocks", "treatments", "places", "p_places"),
    RANKS: ("metric", "method", "variant", "mean_rank", "blocks"),
    POSTHOC: (*PAIR, "p"),
}
Files = Mapping[str, list[Row]]


def write_stats(
    folders: Iterable[Path],
    manifests: Mapping[str, Path],
    out: Path,
    *,
    baseline: str | None,
    metrics: Sequence[str] = ("mA", "F1", "mAP", "rank1"),
    alpha: float = 0.05,
    resamples: int = 2000,
    seed: int = 0,
) -> None:
    """Analyse the runs of ``folders`` on the test subset and write the files of ``COLUMNS``.

    ``baseline`` is "method/variant"; where it was not run nothing is compared with it. Tests are
    of those of ``metrics``, out of ``tasks.TESTED``, that the task of a place has; "F1" is the
    protocol's. Intervals are of all metrics.
    """
    files: Files = {name: [] for name in COLUMNS}
    base: Variant | None = tuple(baseline.split("/")) if baseline else None  # type: ignore
    values: dict[str, dict[str, dict[Variant, Mapping[int, float]]]] = {m: {} for m in metrics}
    for (dataset, split), group in groupby(read_runs(folders), lambda r: (r.dataset, r.split)):
        runs = list(group)
        check_comparable(runs)
        manifest = read_manifest(Path(manifests[dataset]))
        declared = tested(metrics, runs[0].task)
        found = compare_place(runs, manifest, base, declared, alpha, resamples, seed, files)
        for metric in declared:
            by_variant = found[metric].items()
            values[metric][f"{dataset}/{split}"] = {v: s.value for v, s in by_variant}
    for metric in metrics:
        if values[metric]:
            compare_blocks(metric, ranks.blocks(values[metric]), base, files)
    for of_task in TESTED.values():  # a task's tests do not depend on what else a plan runs
        correct([row for row in files[WILCOXON] if row["metric"] in of_task], alpha)
    for name, rows in files.items():
        table = pd.DataFrame(rows, columns=COLUMNS[name])
        write_text(out / name, table.to_csv(index=False, float_format="%.8g"))


def read_stats(path: Path) -> pd.DataFrame:
    """One of the CSV files of ``write_stats``; it may have no rows."""
    rows = read_csv(path)
    return rows.astype({"significant": bool}) if "significant" in rows else rows


def compare_place(
    runs: Sequence[Run],
    manifest: Manifest,
    baseline: Variant | None,
    metrics: Sequence[str],
    alpha: float,
    resamples: int,
    seed: int,
    files: Files,
) -> Samples:
    """Everything within one dataset and split, into ``files``; returns its resampled metrics."""
    dataset, split = runs[0].dataset, runs[0].split
    evaluated = [evaluation(run, manifest, "test") for run in runs]
    named = names_of((*metrics, *evaluated[0].metrics), runs[0])
    entropy, unit = stream(seed, dataset, split), unit_of(manifest, split)
    units, rng = units_of(evaluated[0].identity, unit), np.random.default_rng(entropy)
    every = by_run(evaluated, units, resamples, rng, curves=True)
    samples = samples_of(runs, every, named)
    declared = {metric: samples[metric] for metric in metrics}
    variants = sorted({(run.method, run.variant) for run in runs})
    versus = [(a, b) for b, a in permutations(variants, 2) if b == baseline]
    tests = family(declared, versus, alpha)
    if tests and baseline:
        terms: dict[Variant, dict[int, Floats]] = defaultdict(dict)
        for run, found in zip(runs, evaluated, strict=True):
            terms[run.method, run.variant][run.seed] = found.terms
        rng = np.random.default_rng([*entropy, 1])
        untrained = {(run.method, run.variant) for run in runs if not run.trained}
        of_sums = evaluated[0].of_sums
        p_values = permutation(terms, of_sums, baseline, units, resamples, rng, untrained)
        for row in tests:
            swapped = p_values[row["method"], row["variant"]]
            row["p_permutation"] = swapped[named[row["metric"]]]
    by_attribute = {m: f"{m} by attribute" for m in evaluated[0].by_attribute}
    by_attribute = samples_of(runs, every, by_attribute)
    train = manifest.subset(split, "train")
    ratios = {a.name: r for a, r in zip(train.attributes, train.positive_ratio(), strict=True)}
    place = {"dataset": dataset, "split": split, "unit": unit, "resamples": resamples}
    pairs = list(combinations(variants, 2))
    for name, rows in (
        (INTERVALS, intervals(samples, baseline, alpha)),
        (VS_BASELINE, tests),
        (ALL_PAIRS, family(declared, pairs, alpha)),
        (ATTRIBUTES, attribute_rows(by_attribute, baseline, ratios, alpha)),
    ):
        files[name].extend(place | row for row in rows)
    return samples


def compare_blocks(
    metric: str, table: pd.DataFrame, baseline: Variant | None, files: Files
) -> None:
    """Everything over places and seeds, into ``files``; ``table`` as in ``ranks``."""
    for variant in table if baseline and baseline in table else ():
        if variant != baseline and table[[variant, baseline]].dropna().size:
            assert baseline is not None
            pair = named_pair(metric, variant, baseline)
            files[WILCOXON].append(pair | ranks.wilcoxon(table, variant, baseline))
    table = ranks.complete(table)
    statistic, p = ranks.friedman(table)
    if np.isnan(p):
        return
    places = ranks.by_place(table)
    count = {"metric": metric, "blocks": len(table)}
    test = {"statistic": statistic, "p": p, "treatments": table.shape[1]}
    test |= {"places": len(places), "p_places": ranks.friedman(places)[1]}
    files[FRIEDMAN].append(count | test)
    for (method, variant), rank in ranks.mean_ranks(table).items():  # type: ignore
        files[RANKS].append(count | {"method": method, "variant": variant, "mean_rank": rank})
    p_values = ranks.nemenyi(table)
    for a, b in permutations(table, 2):
        files[POSTHOC].append(named_pair(metric, a, b) | {"p": p_values.loc[[a], [b]].iat[0, 0]})


def correct(rows: list[Row], alpha: float) -> None:
    """Add Holm's correction over all ``rows``."""
    if rows:
        p_holm = np.asarray(multipletests([row["p"] for row in rows], alpha, method="holm")[1])
        for row, p in zip(rows, p_holm, strict=True):
            row |= {"p_holm": p, "family": len(rows)}


def named_pair(metric: str, a: Variant, b: Variant) -> Row:
    return dict(zip(PAIR, (metric, *a, *b), strict=True))


def resample_runs(
    runs: Sequence[Run],
    evaluated: Sequence[Evaluation],
    metrics: Sequence[str],
    resamples: int,
    units: np.ndarray,
    rng: Generator,
) -> Samples:
    """``metrics`` of every run, or "F1", on the same resamples of the ``units`` of its images or
    queries, in percent."""
    named = names_of(metrics, runs[0])
    curves = bool({"AP", "AUC"} & set(named.values()))
    return samples_of(runs, by_run(evaluated, units, resamples, rng, curves), named)


def names_of(metrics: Sequence[str], run: Run) -> dict[str, str]:
    """Metric -> its name in the scores of ``run``."""
    return {metric: headline(run.protocol) if metric == "F1" else metric for metric in metrics}


def by_run(
    evaluated: Sequence[Evaluation],
    units: np.ndarray,
    resamples: int,
    rng: Generator,
    curves: bool,
) -> list[dict[str, Floats]]:
    """Every metric of each run in percent, ``(1 + R,)`` and by attribute ``(1 + R, A)``; the
    first row is the sample itself. AP and AUC, which cost most, only with ``curves``."""
    parts: list[dict[str, list[Floats]]] = [defaultdict(list) for _ in evaluated]
    for weights in draw(units, resamples, rng):
        for part, of in zip(parts, evaluated, strict=True):
            for name, values in of.resampled(weights, curves).items():
                part[name].append(100 * values)
    return [{name: np.concatenate(v) for name, v in part.items()} for part in parts]


def samples_of(
    runs: Sequence[Run], found: Sequence[Mapping[str, Floats]], named: Mapping[str, str]
) -> Samples:
    """The results of ``by_run`` by metric and variant; ``named``: metric -> its name there."""
    samples: dict[str, dict[Variant, Sample]] = {metric: {} for metric in named}
    trained = [run.trained for run in runs]
    for metric, name in named.items():
        for run, of, values in zip(runs, trained, found, strict=True):
            variant = (run.method, run.variant)
            sample = samples[metric].setdefault(variant, Sample({}, {}, of))
            sample.value[run.seed], sample.resampled[run.seed] = values[name][0], values[name][1:]
    return samples


def attribute_rows(
    samples: Samples, baseline: Variant | None, ratios: Mapping[str, float], alpha: float
) -> list[Row]:
    """One row for each metric, variant and attribute: the mean over the seeds and, with its
    interval, the difference to the baseline."""
    rows = []
    for metric, by_variant in samples.items():
        base = by_variant.get(baseline) if baseline else None
        for (method, variant), sample in sorted(by_variant.items()):
            columns = {"value": np.mean(list(sample.value.values()), axis=0)}
            if base and (method, variant) != baseline:
                of = difference(sample, base, alpha)
                columns |= {"difference": of.value, "ci_low": of.ci_low, "ci_high": of.ci_high}
            for a, (attribute, ratio) in enumerate(ratios.items()):
                row = {"metric": metric, "method": method, "variant": variant}
                row |= {"attribute": attribute, "train_ratio": ratio}
                rows.append(row | {name: values[a] for name, values in columns.items()})
    return rows
