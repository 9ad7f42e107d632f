"""The tests between methods: calibrated, powerful, paired, repeatable."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers import fake_manifest, fake_results
from scipy.stats import norm
from scipy.stats import t as student
from statsmodels.stats.multitest import multipletests

from pedbench.contracts import PedbenchError
from pedbench.manifest import read_manifest
from pedbench.results import read_predictions, read_runs
from pedbench.stats import (
    ALL_PAIRS,
    INTERVALS,
    VS_BASELINE,
    Sample,
    bootstrap,
    read_stats,
    write_stats,
)
from pedbench.tasks import par

BASELINE = "linear_probe/default"


def sample(rng, shared, skill, resamples, seeds=3, seed_sd=0.3):
    """One simulated method: logits = skill + image + seed + interaction; metric: accuracy."""
    units, value, resampled = len(shared), {}, {}
    for seed in range(seeds):
        noise = rng.normal(size=units)
        right = (shared + noise + skill + seed_sd * rng.normal() > 0).astype(float)
        values = np.concatenate([part @ right / units for part in resamples])
        value[seed], resampled[seed] = float(values[0]), values[1:]
    return Sample(value, resampled)


def rejections(skill, runs, rng):
    """How often two methods, the second better by ``skill``, are told apart at 5 %."""
    found = 0
    for _ in range(runs):
        shared = rng.normal(size=150)
        parts = list(bootstrap.draw(np.arange(150), 300, rng))
        a, b = (sample(rng, shared, s, parts) for s in (0.0, skill))
        found += bootstrap.difference(a, b).p < 0.05
    return found


def test_equal_methods_are_rarely_told_apart():
    assert 0.005 <= rejections(0.0, 400, np.random.default_rng(1)) / 400 <= 0.07


def test_a_known_difference_is_found():
    assert rejections(2.0, 60, np.random.default_rng(2)) / 60 >= 0.9


def test_ignoring_the_seeds_would_be_anticonservative():
    """Why the variance between seeds is in the standard error."""
    rng, found = np.random.default_rng(3), 0
    for _ in range(200):
        shared = rng.normal(size=150)
        parts = list(bootstrap.draw(np.arange(150), 300, rng))
        a, b = (sample(rng, shared, 0.0, parts, seed_sd=0.5) for _ in range(2))
        test = bootstrap.difference(a, b)
        found += abs(test.value) / test.se_images > 1.96
    assert found / 200 > 0.10


def test_seeds_are_paired_and_a_run_that_trains_nothing_with_every_seed():
    assert bootstrap.pair_seeds([0, 1, 2], [1, 2, 3]) == [(1, 1), (2, 2)]
    assert bootstrap.pair_seeds([0], [0, 1, 2], trained=False) == [(0, 0), (0, 1), (0, 2)]
    assert bootstrap.pair_seeds([0, 1], [5], trained=False) == [(0, 5), (1, 5)]
    assert bootstrap.pair_seeds([0], [0, 1, 2]) == [(0, 0)]
    with pytest.raises(PedbenchError, match="cannot be paired"):
        bootstrap.pair_seeds([0, 1], [2, 3])
    with pytest.raises(PedbenchError, match="cannot be paired"):
        bootstrap.pair_seeds([5], [0, 1, 2])


def test_a_single_trained_run_is_not_taken_for_the_method():
    """Its seed has a variance that one run does not show: three seeds against one are one pair."""
    drawn = {s: np.random.default_rng(s).normal(size=50) for s in range(3)}
    three = Sample({0: 1.0, 1: 2.0, 2: 3.0}, drawn)
    for trained, seeds in ((True, 1), (False, 3)):
        one = Sample({0: 0.0}, {0: np.zeros(50)}, trained)
        assert bootstrap.difference(three, one).seeds == seeds
        assert (bootstrap.difference(three, one).se_seeds == 0) == trained


def test_pairing_removes_what_the_seeds_share():
    rng = np.random.default_rng(0)
    noise = {s: rng.normal(size=500) for s in range(3)}
    a = Sample({0: 1.0, 1: 5.0, 2: 9.0}, {s: noise[s] + v for s, v in enumerate((1, 5, 9))})
    b = Sample({0: 0.5, 1: 4.5, 2: 8.5}, {s: noise[s] + v for s, v in enumerate((0.5, 4.5, 8.5))})
    test = bootstrap.difference(a, b)
    assert test.value == pytest.approx(0.5)
    assert test.se_seeds == pytest.approx(0, abs=1e-12)
    assert test.p < 1e-6


def test_identical_predictions_do_not_differ():
    a = Sample({0: 0.5}, {0: np.full(10, 0.5)})
    assert bootstrap.difference(a, a).p == 1.0


def test_estimate_by_hand():
    values, resampled = [1.0, 2.0, 6.0], [np.array([0.0, 2.0]), np.array([1.0, 3.0]), np.zeros(2)]
    found = bootstrap.estimate(values, resampled, 0.05)
    images, between = np.var([1 / 3, 5 / 3], ddof=1), np.var(values, ddof=1) / 3
    assert found.value == 3.0
    assert found.se_images**2 == pytest.approx(images)
    assert found.se_seeds**2 == pytest.approx(between)
    rng, draws = np.random.default_rng(0), 1_000_000
    t = rng.standard_t(2, draws)
    null = np.abs(np.sqrt(images) * rng.normal(size=draws) + np.sqrt(between) * t)
    assert found.p == pytest.approx((null >= 3.0).mean(), abs=0.002)
    assert (null >= found.ci_high - 3.0).mean() == pytest.approx(0.05, abs=0.001)
    assert found.ci_high - 3.0 == pytest.approx(3.0 - found.ci_low)


def test_without_one_part_the_test_is_the_textbooks():
    x = np.array([0.5, 2.0, 9.0])
    np.testing.assert_allclose(bootstrap.exceeds(x, 1.0, 0.0, 3), 2 * norm.sf(x), rtol=1e-8)
    np.testing.assert_allclose(bootstrap.exceeds(x, 0.0, 1.0, 3), 2 * student.sf(x, 2), atol=1e-5)
    np.testing.assert_allclose(bootstrap.exceeds(x, 1.0, 0.0, 1), 2 * norm.sf(x), rtol=1e-8)
    far = np.array([1e3, 1e4])  # p near 1e-6 and 1e-8
    np.testing.assert_allclose(
        bootstrap.exceeds(far, 1.0, 1.0, 3), 2 * student.sf(far, 2), rtol=1e-2
    )
    assert bootstrap.exceeds(0.0, 0.0, 0.0, 3) == 1.0
    assert bootstrap.exceeds(1.0, 0.0, 0.0, 3) == 0.0


def test_weights_draw_whole_identities():
    identity = np.array([7, 7, 3, 3, 3, -1, -1])
    units = bootstrap.units_of(identity, "identity")
    assert len(set(units)) == 4
    assert units[0] == units[1] and units[2] == units[4] and units[5] != units[6]
    first, rest = bootstrap.draw(units, 50, np.random.default_rng(0))
    assert (first == 1).all() and rest.shape == (50, 7)
    assert (rest[:, 0] == rest[:, 1]).all() and (rest[:, 2] == rest[:, 4]).all()
    assert (rest[:, [0, 2, 5, 6]].sum(1) == 4).all()
    assert (bootstrap.units_of(identity, "image") == np.arange(7)).all()


def test_unknown_persons_are_drawn_one_by_one():
    unknown = np.full(3, -1)
    assert (bootstrap.units_of(unknown, "identity") == bootstrap.units_of(unknown, "image")).all()


def test_the_manifest_says_whether_new_persons_are_asked_about(tmp_path):
    """Whatever the split is called."""
    manifest = fake_manifest(tmp_path / "m.parquet", "a", 10)
    rows, test = manifest.rows, manifest.rows["split:trainval"] == "test"
    assert bootstrap.unit_of(manifest, "zero_shot") == "identity"
    assert bootstrap.unit_of(manifest, "trainval") == "image"  # the last person is the first
    rows.loc[len(rows) - 1, "identity"] = -1
    assert bootstrap.unit_of(manifest, "trainval") == "identity"
    rows.loc[test, "identity"] = -1
    rows.loc[0, "identity"] = -1
    assert bootstrap.unit_of(manifest, "trainval") == "image"  # nobody is known


def test_chunks_hold_the_asked_number_of_resamples(monkeypatch):
    monkeypatch.setattr(bootstrap, "CHUNK", 70)
    parts = list(bootstrap.draw(np.arange(10), 25, np.random.default_rng(0)))
    assert [len(part) for part in parts] == [1, 7, 7, 7, 4]
    assert (np.concatenate(parts).sum(1) == 10).all()


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    root = tmp_path_factory.mktemp("stats")
    results = fake_results(root, images=80)
    write_stats(
        results.folders, results.manifests, root / "stats", baseline=BASELINE, resamples=400
    )
    return results


def test_the_family_is_methods_times_metrics_in_one_dataset_and_split(compared):
    tests = read_stats(compared.root / "stats" / VS_BASELINE)
    assert len(tests) == 2 * 3 * 2
    assert set(tests["family"]) == {6}
    for _, group in tests.groupby(["dataset", "split"]):
        significant, corrected = map(list, multipletests(group["p"], 0.05, method="holm")[:2])
        np.testing.assert_allclose(group["p_holm"], corrected, rtol=1e-4)
        assert list(group["significant"]) == significant
    assert True in set(tests["significant"])
    pairs = read_stats(compared.root / "stats" / ALL_PAIRS)
    assert len(pairs) == 2 * 6 * 2 and set(pairs["family"]) == {12}
    assert set(pairs["significant"]) == {True, False}


def test_differences_are_of_the_scores_themselves(compared):
    tests = read_stats(compared.root / "stats" / VS_BASELINE)
    manifest = read_manifest(compared.manifests["a"])
    scores: dict[str, list[float]] = {"zero_shot": [], "linear_probe": []}
    for run in read_runs(compared.folders):
        if run.split == "standard" and run.method in scores:
            p = read_predictions(run, manifest, "test")
            score = par.score(p.probabilities, p.labels, 0.5)
            scores[run.method].append(100 * score["F1_instance"])
    row = tests.query("split == 'standard' and metric == 'F1' and method == 'zero_shot'")
    expected = np.mean(scores["zero_shot"]) - np.mean(scores["linear_probe"])
    assert row["difference"].item() == pytest.approx(expected, abs=1e-3)
    assert row["seeds"].item() == 3
    assert row["ci_low"].item() < expected < row["ci_high"].item()


def test_results_repeat_and_do_not_depend_on_other_places(compared, tmp_path):
    folders = [f for f in compared.folders if "standard" in f.parts]
    write_stats(folders, compared.manifests, tmp_path, baseline=BASELINE, resamples=400)
    here = pd.read_csv(tmp_path / INTERVALS)
    before = pd.read_csv(compared.root / "stats" / INTERVALS).query("split == 'standard'")
    pd.testing.assert_frame_equal(here, before.reset_index(drop=True))


def test_without_the_baseline_there_are_only_pairs(compared, tmp_path):
    folders = [f for f in compared.folders if "linear_probe" not in f.parts]
    write_stats(folders, compared.manifests, tmp_path, baseline=None, resamples=50)
    assert len(read_stats(tmp_path / VS_BASELINE)) == 0
    assert len(read_stats(tmp_path / ALL_PAIRS)) == 2 * 3 * 2


def test_an_identity_bootstrap_is_wider_when_images_of_one_repeat(tmp_path):
    """Two images of each identity with equal errors carry the information of one."""
    correct = np.repeat(np.random.default_rng(0).random(100) < 0.7, 2).astype(float)
    spread = {}
    for unit in ("image", "identity"):
        units = bootstrap.units_of(np.arange(200) // 2, unit)
        _, *parts = bootstrap.draw(units, 2000, np.random.default_rng(1))
        spread[unit] = np.concatenate([part @ correct / 200 for part in parts]).std()
    assert spread["identity"] / spread["image"] == pytest.approx(np.sqrt(2), rel=0.1)
