"""Permutation, effects, ranks and the files of results/stats against plain computations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from helpers import fake_mixed_results, fake_results
from numpy.testing import assert_allclose
from statsmodels.stats.meta_analysis import effectsize_smd

from pedbench import stats
from pedbench.collect import select
from pedbench.evaluation import Recognition
from pedbench.manifest import read_manifest
from pedbench.results import read_predictions, read_runs
from pedbench.stats import Sample, bootstrap, ranks
from pedbench.stats.permutation import permutation
from pedbench.stats.write import COLUMNS
from pedbench.tasks import par, reid

A, B = ("a", "default"), ("b", "default")
BASELINE = "linear_probe/default"


def random_terms(rng, seeds, images=40):
    labels = (rng.random((images, 3)) < 0.4).astype(int)
    shift = {A: 0.0, B: 0.15}
    return {
        variant: {
            seed: par.image_terms(
                rng.random(labels.shape) < 0.35 + shift[variant] + 0.2 * labels, labels
            )
            for seed in range(seeds)
        }
        for variant in (A, B)
    }


def test_permutation_equals_scipy():
    """mA under swaps is a sum over images, for which scipy has the test (sign flips)."""
    rng = np.random.default_rng(0)
    terms = random_terms(rng, seeds=2)
    units = np.arange(40)
    found = permutation(terms, Recognition.of_sums, A, units, 20_000, rng)[B]
    total = {v: np.mean([t.sum(0) for t in of.values()], axis=0) for v, of in terms.items()}
    mean = {v: np.mean(list(of.values()), axis=0) for v, of in terms.items()}
    d = mean[B] - mean[A]
    positives, negatives = (total[A][i : i + 3] + total[A][i + 6 : i + 9] for i in (0, 3))
    parts = {
        "mA": (d[:, :3] / positives + d[:, 9:12] / negatives).sum(1) / 6,
        "accuracy_label": ((d[:, :3] + d[:, 9:12]) / (positives + negatives)).sum(1) / 3,
        "F1_instance": d[:, 15] / 40,
        "accuracy": d[:, 12] / 40,
    }
    for metric, part in parts.items():
        kind = {"permutation_type": "samples", "n_resamples": 20_000, "vectorized": True}
        expected = scipy.stats.permutation_test((part,), np.sum, **kind).pvalue
        assert found[metric] == pytest.approx(expected, abs=0.015), metric
    assert found["mA"] < 0.2 and len(found) == 8


def test_permutation_of_equal_predictions_and_of_whole_units():
    terms = random_terms(np.random.default_rng(1), seeds=1)
    same = {A: terms[A], B: terms[A]}
    units = np.arange(40)
    assert set(
        permutation(same, Recognition.of_sums, A, units, 50, np.random.default_rng(0))[B].values()
    ) == {1.0}
    one = permutation(
        terms, Recognition.of_sums, A, np.zeros(40, int), 50, np.random.default_rng(0)
    )[B]
    assert one["mA"] == 1.0  # a single unit: a swap only turns the sign


def test_effects_by_hand():
    a = Sample({0: 3.0, 1: 5.0}, {0: np.array([1.0, 2, 3, 4]), 1: np.array([1.0, 2, 3, 4])})
    b = Sample({0: 3.0, 1: 1.0}, {0: np.array([2.0, 2, 1, 1]), 1: np.array([2.0, 2, 1, 1])})
    found = bootstrap.effects(a, b)
    assert found["superiority"] == (0.5 + 1 + 1 + 1) / 4
    assert found["share_above"] == (0 + 0.5 + 1 + 1) / 4
    assert found["hedges_g"] == effectsize_smd(4, 2**0.5, 2, 2, 2**0.5, 2)[0]
    single = bootstrap.effects(a, Sample({0: 4.0}, {0: np.zeros(4)}))
    assert single["superiority"] == 0.5 and np.isnan(single["hedges_g"])


def test_estimates_of_attributes_are_those_of_each_alone():
    rng = np.random.default_rng(0)
    values, drawn = rng.normal(size=(3, 2)), rng.normal(size=(3, 50, 2))
    drawn[:, :5, 1] = np.nan  # no positive was drawn
    both = bootstrap.estimate(list(values), list(drawn), 0.05)
    for a, keep in enumerate((slice(None), slice(5, None))):
        alone = bootstrap.estimate(list(values[:, a]), list(drawn[:, keep, a]), 0.05)
        for field in ("value", "ci_low", "ci_high", "se_images", "se_seeds", "p"):
            assert getattr(both, field)[a] == pytest.approx(getattr(alone, field)), field
    undefined = bootstrap.estimate([np.nan, np.nan], [np.full(5, np.nan)] * 2, 0.05)
    assert np.isnan([undefined.value, undefined.p, undefined.ci_low]).all()


def test_blocks_are_complete_and_a_single_run_stands_for_every_seed():
    x, y, z = ("x", "d"), ("y", "d"), ("z", "d")
    values = {
        "a/s": {x: {0: 1.0, 1: 2.0}, y: {0: 5.0}, z: {0: 0.0, 1: 0.0}},
        "b/s": {x: {0: 3.0, 1: 4.0}, y: {0: 2.0}},
    }
    table = ranks.blocks(values)
    assert list(table[y]) == [5, 5, 2, 2] and list(table[z].isna()) == [False, False, True, True]
    assert list(ranks.complete(table)) == [x, y]  # no average over a gap
    assert ranks.mean_ranks(ranks.complete(table)).to_dict() == {x: 1.5, y: 1.5}
    found = ranks.wilcoxon(table, z, x)
    assert (found["blocks"], found["places"], found["floor"]) == (2, 1, 0.5)
    assert ranks.wilcoxon(table, x, x)["p"] == 1.0
    assert np.isnan(ranks.friedman(ranks.complete(table))).all()  # two variants


def test_runs_repeated_for_every_seed_are_one_block_per_place():
    x, y, z = ("x", "d"), ("y", "d"), ("z", "d")
    of_place = {x: {0: 1.0}, y: {0: 2.0}, z: {1: 3.0, 2: 4.0, 3: 5.0}}
    table = ranks.blocks(dict.fromkeys(("a/s", "b/s"), of_place))
    assert len(table) == 6
    assert ranks.wilcoxon(table, z, y)["blocks"] == 6
    found = ranks.wilcoxon(table, x, y)
    assert (found["blocks"], found["places"], found["p"], found["floor"]) == (2, 2, 0.5, 0.5)
    single = ranks.blocks({place: {x: {0: 1.0}, y: {5: 2.0}} for place in ("a/s", "b/s")})
    assert len(single) == 2


@pytest.mark.parametrize(
    ("d", "floor"), [([0, 0, 1, 2, 3, 4, 5], 0.0625), ([1, 2, 3, 4, 5], 0.0625), ([0, 0], 1.0)]
)
def test_the_floor_counts_no_zero_differences(d, floor):
    index = pd.MultiIndex.from_product([["a/s"], range(len(d))], names=["place", "seed"])
    table = pd.DataFrame({A: np.add(d, range(len(d))), B: range(len(d))}, index, dtype=float)
    found = ranks.wilcoxon(table, A, B)
    assert found["floor"] == floor == found["p"]


def test_friedman_and_nemenyi_of_methods_in_a_fixed_order():
    index = pd.MultiIndex.from_product([list("abc"), range(3)], names=["place", "seed"])
    columns = pd.MultiIndex.from_tuples([(name, "") for name in "wxyz"])
    table = pd.DataFrame(np.arange(36.0).reshape(9, 4), index, columns)
    statistic, p = ranks.friedman(table)
    assert statistic == pytest.approx(9 * 3) and p < 1e-4
    pairs: Any = ranks.nemenyi(table)
    assert pairs.iat[0, 3] < 0.001 and pairs.iat[0, 1] > 0.05 and pairs.equals(pairs.T)
    assert list(ranks.mean_ranks(table)) == [4, 3, 2, 1]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    fake = fake_results(root, splits=("standard",), images=60)
    stats.write_stats(
        fake.folders, fake.manifests, root / "stats", baseline=BASELINE, resamples=100
    )
    return fake


def table(results, name) -> Any:
    return stats.read_stats(results.root / "stats" / name)


def test_files_have_their_columns_and_repeat(results, tmp_path):
    stats.write_stats(
        results.folders[::-1], results.manifests, tmp_path, baseline=BASELINE, resamples=100
    )
    for name, columns in COLUMNS.items():
        assert list(table(results, name)) == list(columns)
        assert (tmp_path / name).read_bytes() == (results.root / "stats" / name).read_bytes()


def test_intervals_are_of_every_metric_and_of_the_scores(results):
    rows = table(results, stats.INTERVALS)
    assert set(rows["metric"]) == {"F1", *par.OVERALL}
    manifest, found = read_manifest(results.manifests["a"]), []
    for run in read_runs(results.folders):
        if run.method == "full":
            p = read_predictions(run, manifest, "test")
            found.append(par.score(p.probabilities, p.labels, run.protocol["threshold"]))
    mine = select(rows, method="full").set_index("metric")
    base = select(rows, method="linear_probe").set_index("metric")
    for metric in par.OVERALL:
        value = 100 * np.mean([score[metric] for score in found])
        assert mine.loc[metric, "value"] == pytest.approx(value, abs=1e-5)
        gain = mine.loc[metric, "value"] - base.loc[metric, "value"]
        assert mine.loc[metric, "difference"] == pytest.approx(gain, abs=1e-5)
    assert list(base["difference"].isna()) == [True] * len(base)
    assert np.all(rows["ci_low"] < rows["value"]) and np.all(rows["value"] < rows["ci_high"])
    assert np.all(mine["difference_low"] < mine["difference"])
    declared = table(results, stats.VS_BASELINE).query("method == 'full' and metric == 'mA'")
    assert_allclose(declared["ci_low"].item(), mine.loc["mA", "difference_low"])


def test_attributes_average_to_the_metric(results):
    rows, manifest = table(results, stats.ATTRIBUTES), read_manifest(results.manifests["a"])
    overall = table(results, stats.INTERVALS).set_index(["metric", "method", "variant"])
    for key, group in rows.groupby(["metric", "method", "variant"]):
        assert group["value"].mean() == pytest.approx(overall.loc[key, "value"], abs=1e-4)
    full = select(rows, metric="AP", method="full")
    assert_allclose(full["train_ratio"], manifest.subset("standard", "train").positive_ratio())
    assert np.all(full["ci_low"] < full["difference"]) and len(full) == 3


def test_blocks_of_the_files(results):
    wilcoxon, posthoc = table(results, stats.WILCOXON), table(results, stats.POSTHOC)
    assert set(wilcoxon["blocks"]) == {3} and set(wilcoxon["floor"]) == {0.25}
    assert set(wilcoxon["family"]) == {6} and wilcoxon["p"].min() >= 0.25
    assert len(posthoc) == 2 * 4 * 3 and len(table(results, stats.RANKS)) == 2 * 4
    assert set(table(results, stats.FRIEDMAN)["treatments"]) == {4}


def test_too_few_methods_leave_empty_files(results, tmp_path):
    folders = [f for f in results.folders if {"full", "linear_probe"} & set(f.parts)]
    stats.write_stats(folders, results.manifests, tmp_path, baseline=BASELINE, resamples=20)
    for name in (stats.FRIEDMAN, stats.RANKS, stats.POSTHOC):
        assert stats.read_stats(tmp_path / name).empty
    assert len(stats.read_stats(tmp_path / stats.WILCOXON)) == 2


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixed")
    skill = {"zero_shot": 0.4, "linear_probe": 1.0, "full": 2.5}
    fake = fake_mixed_results(root, skill=skill, seeds=(0, 1), images=40)
    write = {"baseline": BASELINE, "resamples": 100}
    stats.write_stats(fake.folders, fake.manifests, root / "stats", **write)
    alone = [folder for folder in fake.folders if "a" in folder.parts[-5]]
    stats.write_stats(alone, fake.manifests, root / "alone", **write)
    return fake


def test_every_place_is_tested_in_the_metrics_of_its_task(mixed):
    for name, count in ((stats.VS_BASELINE, 2), (stats.ALL_PAIRS, 3)):
        rows = table(mixed, name)
        found = {place: set(group["metric"]) for place, group in rows.groupby("dataset")}
        assert found == {"a": {"mA", "F1"}, "r": {"mAP", "rank1"}}
        assert set(rows["family"]) == {2 * count}
    rows = table(mixed, stats.INTERVALS)
    assert set(select(rows, dataset="r")["metric"]) == set(reid.METRICS)
    assert set(select(rows, dataset="r")["unit"]) == {"identity"}
    assert set(table(mixed, stats.ATTRIBUTES)["dataset"]) == {"a"}
    blocks = table(mixed, stats.WILCOXON).set_index(["metric", "method"])
    assert {metric for metric, _ in blocks.index} == {"mA", "F1", "mAP", "rank1"}
    assert set(blocks.loc["mAP", "places"]) == {1} and set(blocks.loc["mAP", "blocks"]) == {2}
    assert set(table(mixed, stats.RANKS)["metric"]) == {"mA", "F1", "mAP", "rank1"}


def test_attribute_recognition_has_the_same_numbers_beside_retrieval(mixed):
    for name in (stats.INTERVALS, stats.VS_BASELINE, stats.ATTRIBUTES):
        alone = stats.read_stats(mixed.root / "alone" / name)
        beside = select(table(mixed, name), dataset="a")
        pd.testing.assert_frame_equal(alone, beside)


def test_queries_of_one_person_are_drawn_together(mixed):
    """The standard error of a difference in mAP, by hand from the rankings."""
    manifest = read_manifest(mixed.manifests["r"]).subset("reid", "test")
    asked = manifest.rows[manifest.is_query("reid")]
    folder, both = mixed.root / "runs/r/reid", []
    for method in ("full", "linear_probe"):
        files = [folder / method / f"default/seed{n}/rankings.test.parquet" for n in (0, 1)]
        both.append(np.array([pd.read_parquet(file)["AP"] for file in files]))
    counted = ~np.isnan(both[0][0])
    assert counted.sum() == 27 and len(asked) == 28
    _, units = np.unique(asked["identity"][counted], return_inverse=True)
    rng = np.random.default_rng(bootstrap.stream(0, "r", "reid"))
    weights = rng.multinomial(9, np.full(9, 1 / 9), 100)[:, units]
    gain = (both[0] - both[1])[:, counted].mean(axis=0)
    drawn = 100 * (weights @ gain) / weights.sum(axis=1)
    row = table(mixed, stats.VS_BASELINE).query("method == 'full' and metric == 'mAP'")
    assert row["difference"].item() == pytest.approx(100 * gain.mean(), abs=1e-5)
    assert row["se_images"].item() == pytest.approx(drawn.std(ddof=1), rel=1e-5)
    assert row["p_permutation"].item() <= 0.05
