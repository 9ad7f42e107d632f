"""The figures: the numbers behind them, what is left out, equal bytes; not their pixels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import SKILL, fake_mixed_results, fake_results
from PIL import Image
from scipy.stats import ttest_1samp

from pedbench import figures
from pedbench.collect import collect, select
from pedbench.figures import (
    agreement,
    attributes,
    cost,
    overview,
    ranks,
    retrieval,
    selection,
    style,
    sweeps,
    training,
)
from pedbench.figures.material import Material, stem, words
from pedbench.files import read_json, write_json
from pedbench.manifest import read_manifest
from pedbench.results import read_predictions
from pedbench.score import score_runs
from pedbench.stats import write_stats

PLACE = ("a", "standard")
SWEPT = {"promptpar/swept1": 0.8, "promptpar/swept5": 1.2}
LINE: Any = {
    **{"method": "promptpar", "base": "default"},
    "points": [
        {"value": 1, "variant": "swept1"},
        {"value": 5, "variant": "swept5"},
        {"value": 25, "variant": "default"},
    ],
}
SWEEP: Any = {
    **{"name": "prompt_length", "dataset": "a", "split": "standard"},
    **{"parameter": "prompt_length", "lines": [LINE]},
}
ROWS = [("zero_shot", "default"), ("linear_probe", "default"), ("full", "default")]
KEY = ["method", "variant"]


def made_up_costs() -> pd.DataFrame:
    table = pd.DataFrame(ROWS, columns=KEY).assign(dataset="a", split="standard", threads=1)
    return table.assign(
        device="cpu",
        parameters_trained=[0, 1e3, 1e5],
        seconds_fit=[np.nan, 2.0, 9.0],
        device_of_runs=[np.nan, "cpu", "cpu"],
    )


def made_up_selection() -> pd.DataFrame:
    table = pd.DataFrame(ROWS[1:] * 2, columns=KEY).assign(dataset="a", split="standard")
    table = table.assign(seed=[0, 0, 1, 1], metric="mA", last_epoch=[0.5, 0.6, 0.7, 0.8])
    table = table.assign(validation=0.6, released=0.9)
    return pd.concat([table, table.assign(metric="accuracy")])  # which no figure shows


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder of results with a sweep, a method that refused, costs and an audited selection."""
    root = tmp_path_factory.mktemp("figures")
    fake = fake_results(root, splits=("standard",), skill=SKILL | SWEPT, images=40)
    refused = {**fake.plan["experiments"][0], "method": "r", "folder": str(root / "refused")}
    write_json(root / "refused/refused.json", {"reason": "no"})
    experiments = [*fake.plan["experiments"], refused]
    plan: dict[str, Any] = {**fake.plan, "experiments": experiments, "sweeps": [SWEEP]}
    write_json(root / "plan.json", plan)
    score_runs(fake.folders, fake.manifests, root / "scored.json")
    collect(fake.folders, root / "long.parquet")
    shown = [f for f in fake.folders if "swept" not in f.parent.name]
    write_stats(shown, fake.manifests, root / "stats", **(plan["comparison"] | {"resamples": 50}))
    made_up_costs().to_csv(root / "cost.csv", index=False)
    made_up_selection().to_csv(root / "selection.csv", index=False)
    return root


def draw(root, out: str, **changes: Any) -> set[str]:
    """Stems of the figures of ``root`` under a changed plan."""
    long, stats = root / "long.parquet", root / "stats"
    plan = read_json(root / "plan.json") | changes
    figures.write_figures(plan, long, stats, root / "cost.csv", root / "selection.csv", root / out)
    return {path.stem for path in (root / out).glob("*.p*")}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """The same of both tasks, with costs and a sweep of retrieval."""
    root = tmp_path_factory.mktemp("mixed")
    skill = {"zero_shot": 0.4, "linear_probe": 1.0, "full": 1.6, "full/swept": 2.0}
    fake = fake_mixed_results(root, skill=skill, seeds=(0, 1), images=20)
    points = [{"value": 1, "variant": "swept"}, {"value": 2, "variant": "default"}]
    line = {"method": "full", "base": "default", "points": points}
    sweep = SWEEP | {"name": "rate", "dataset": "r", "split": "reid", "parameter": "lr"}
    plan: dict[str, Any] = fake.plan | {"sweeps": [sweep | {"lines": [line]}]}
    write_json(root / "plan.json", plan)
    score_runs(fake.folders, fake.manifests, root / "scored.json")
    collect(fake.folders, root / "long.parquet")
    shown = [f for f in fake.folders if "swept" not in f.parent.name]
    write_stats(shown, fake.manifests, root / "stats", **(plan["comparison"] | {"resamples": 50}))
    costs = made_up_costs()
    both = [costs, costs.assign(dataset="r", split="reid")]
    pd.concat(both).to_csv(root / "cost.csv", index=False)
    made_up_selection().to_csv(root / "selection.csv", index=False)
    return root


def material_of(root) -> Material:
    files = [root / n for n in ("long.parquet", "stats", "cost.csv", "selection.csv")]
    return Material.read(read_json(root / "plan.json"), *files)


@pytest.fixture
def material(results) -> Material:
    return material_of(results)


def test_every_figure_is_there_with_its_caption(results):
    stems = draw(results, "figures")
    per_place = ("methods", "agreement", "attributes", "attribute_gains", "cost", "training")
    expected = {stem(name, PLACE) for name in (*per_place, "selection")}
    expected |= {"gain_by_frequency", "prompt_length"}
    assert expected <= stems
    assert {s for s in stems - expected if not s.startswith("critical_difference_")} == set()
    captions = json.loads((results / "figures/captions.json").read_text())
    assert captions.keys() == stems
    for entry in captions.values():
        assert entry["caption"].endswith(".") and entry["title"] and entry["category"]
    for name in stems:
        for kind in ("pdf", "png"):
            content = (results / "figures" / f"{name}.{kind}").read_bytes()
            assert b"CreationDate" not in content
    assert Image.open(results / "figures/prompt_length.png").width == 1400


def test_figures_repeat_byte_for_byte(results):
    """In processes whose sets are in another order."""
    code = """
import sys
from pathlib import Path
from pedbench import figures
from pedbench.files import read_json
root, out = map(Path, sys.argv[1:])
figures.FAMILIES = (figures.ranks, figures.cost, figures.sweeps)
files = [root / n for n in ("long.parquet", "stats", "cost.csv", "selection.csv")]
figures.write_figures(read_json(root / "plan.json"), *files, out)
"""
    for seed in ("1", "2"):
        command = [sys.executable, "-c", code, str(results), str(results / seed)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    names = sorted(path.name for path in (results / "1").iterdir())
    assert {"critical_difference_mA.pdf", "cost_a_standard.pdf", "prompt_length.pdf"} <= set(names)
    for name in names:
        assert (results / "1" / name).read_bytes() == (results / "2" / name).read_bytes(), name


def test_what_a_plan_has_no_data_for_is_left_out(results):
    plan = read_json(results / "plan.json")
    one = [e | {"seeds": e["seeds"][:1]} for e in plan["experiments"] if e["method"] == "full"]
    comparison = plan["comparison"] | {"baseline": None}
    arguments = plan | {"experiments": one, "comparison": comparison, "sweeps": []}
    out = results / "alone"
    (out / "left_over").mkdir(parents=True)
    long, stats = results / "long.parquet", results / "stats"
    for name, table in (("c.csv", made_up_costs()), ("s.csv", made_up_selection())):
        table[:0].to_csv(results / name, index=False)
    figures.write_figures(arguments, long, stats, results / "c.csv", results / "s.csv", out)
    stems = {path.stem for path in out.glob("*.png")}
    assert {s for s in stems if not s.startswith("critical_")} == {
        "methods_a_standard",
        "training_a_standard",
    }
    assert not (out / "left_over").exists()


def test_a_table_without_rows_draws_nothing(material):
    empty = replace(material, cost=material.cost[:0], selection=material.selection[:0])
    assert list(cost.pictures(empty)) == list(selection.pictures(empty)) == []


def test_a_place_in_words():
    assert words(("x", "zero_shot")) == "x, zero-shot split"


def test_a_curve_holds_means_and_t_intervals_over_the_seeds(material):
    scores = select(material.scores, subset="test", attribute="", metric="mA")
    found = sweeps.curve(LINE, scores, 0.95).set_index("value")
    for point in LINE["points"]:
        seeds = select(scores, method="promptpar", variant=point["variant"])["value"]
        low, high = ttest_1samp(seeds, 0).confidence_interval(0.95)
        row = found.loc[point["value"]]
        assert list(row[["mean", "ci_low", "ci_high"]]) == pytest.approx([seeds.mean(), low, high])
    single = sweeps.curve(LINE, select(scores, seed=0), 0.95)
    assert len(single["mean"].dropna()) == 3 and single["ci_low"].dropna().empty
    missing = sweeps.curve(LINE, scores.query("variant != 'swept1'"), 0.95)
    assert list(missing["value"]) == [5, 25]


def test_a_sweep_draws_its_lines_and_the_baseline(material):
    axes = sweeps.picture(material, SWEEP).figure.axes[0]
    line, dashed = axes.lines
    assert list(np.asarray(line.get_xdata())) == [1, 5, 25]
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "5", "25"]
    scores = select(material.scores, subset="test", attribute="", metric="mA")
    probe = select(scores, method="linear_probe")["value"].mean()
    assert np.asarray(dashed.get_ydata())[0] == pytest.approx(probe)


def test_bands_are_of_one_kind(material):
    picture = sweeps.picture(material, SWEEP)
    assert "over the seeds alone" in picture.caption  # swept variants have no tested interval
    point = [{"value": 25, "variant": "default"}]
    lines = [LINE | {"points": point}, {"method": "full", "base": "default", "points": point}]
    several = SWEEP | {"lines": lines}
    assert sweeps.all_tested(material, several)
    assert "over test images and seeds" in sweeps.picture(material, several).caption
    band = sweeps.of_stats(material, PLACE, lines[1], "F1_instance")
    row = select(material.intervals, method="full", metric="F1_instance")
    assert band["ci_low"] == row["ci_low"].to_numpy()
    only_ma = replace(material, intervals=material.intervals.query("metric != 'F1'"))
    assert sweeps.picture(only_ma, several).figure  # F1 need not be tested to be drawn


def test_values_that_are_no_numbers_stand_evenly_spaced():
    lines = [{"points": [{"value": v} for v in ("last", "all", True)]}]
    assert sweeps.positions(pd.Series(["all", True]), lines) == [1, 2]
    mixed = [{"points": [{"value": 0.5}, {"value": 0.1}]}]
    assert sweeps.values_of(mixed) == sweeps.positions(pd.Series([0.1, 0.5]), mixed) == [0.1, 0.5]


def test_published_points_stand_only_on_the_dataset_of_their_paper(material):
    found = sweeps.published("prompt_depth", ("rapv1", "standard"), "F1_instance")
    assert set(found["metric"]) == {"mA", "F1"}
    last = select(found, metric="mA").set_index("value").loc[24]
    assert last["low"] == last["high"] == 85.45
    stated = sweeps.published("prompt_length", ("rapv1", "standard"), "F1_harmonic")
    assert stated[["low", "high"]].to_numpy().tolist()[-1] == [85, 86]
    assert "F1" not in set(stated["metric"])
    for place in (PLACE, ("rapv1", "zero_shot")):
        assert sweeps.published("prompt_depth", place, "F1_instance").empty
    assert sweeps.published("rank", ("rapv1", "standard"), "F1_instance").empty


def test_published_points_are_drawn(material):
    rapv1 = [e | {"dataset": "rapv1"} for e in material.plan["experiments"]]
    there = replace(
        material,
        plan=material.plan | {"experiments": rapv1},
        scores=material.scores.assign(dataset="rapv1"),
    )
    for parameter in ("prompt_depth", "prompt_length"):
        picture = sweeps.picture(there, SWEEP | {"dataset": "rapv1", "parameter": parameter})
        legend = picture.figure.legends[0]
        assert "published" in [text.get_text() for text in legend.get_texts()]
        assert "as published" in picture.caption


def test_the_best_variant_is_chosen_on_validation_images(material):
    scores = material.scores.copy()
    better = (scores["subset"] == "val") & (scores["method"] == "zero_shot")
    scores.loc[better, "value"] = 100.0
    assert replace(material, scores=scores).best(PLACE) == ("zero_shot", "default")
    scores.loc[better, "value"] = 0.0
    scores.loc[(scores["subset"] == "test") & (scores["method"] == "zero_shot"), "value"] = 100.0
    assert replace(material, scores=scores).best(PLACE) != ("zero_shot", "default")
    scores.loc[(scores["subset"] == "val") & (scores["method"] == "linear_probe"), "value"] = 100.0
    assert replace(material, scores=scores).best(PLACE) != material.baseline


def by_attribute(material: Material, metric: str) -> pd.DataFrame:
    return select(pd.read_csv(material.stats / "attributes.csv"), metric=metric)


def test_attributes_stand_beside_the_baseline_by_their_difference(material):
    found = attributes.against_baseline(material, by_attribute(material, "AP"), ROWS[2])
    scores = select(material.scores, subset="test", metric="AP", attribute="hat")
    mean: Any = scores.groupby(KEY)["value"].mean()
    ours, base = mean["full", "default"], mean["linear_probe", "default"]
    row = found.loc["hat", ["ours", "base", "difference"]].tolist()
    assert row == pytest.approx([ours, base, ours - base])
    assert list(found["difference"]) == sorted(found["difference"])


def test_gains_leave_out_what_is_undefined_somewhere(material):
    table = by_attribute(material, "AP")
    found = attributes.gains(material, table, PLACE)
    assert list(found.index) == [row for row in material.rows(PLACE) if row != ROWS[1]]
    assert list(found.mean()) == sorted(found.mean(), reverse=True)
    table.loc[(table["attribute"] == "hat") & (table["method"] == "full"), "value"] = np.nan
    assert set(attributes.gains(material, table, PLACE)) == {"bag", "a_b"}


def test_gain_stands_against_the_share_of_positive_training_labels(material):
    table = by_attribute(material, "mA")
    found = attributes.by_frequency(material, table, ROWS[2])
    rows = material.manifest("a").rows
    labels = rows.loc[rows["split:standard"] == "train", "label:hat"]
    share = (labels == 1).sum() / (labels >= 0).sum()
    assert found.loc["hat", "ratio"] == pytest.approx(100 * share)
    table.loc[table["attribute"] == "hat", "train_ratio"] = 0.0  # has no place on a logarithm
    assert set(attributes.by_frequency(material, table, ROWS[2]).index) == {"bag", "a_b"}


def test_the_pareto_front_is_what_no_other_point_beats():
    costs = np.array([1.0, 2.0, 2.0, 3.0, np.nan, 3.0])
    scores = np.array([50.0, 60.0, 55.0, 60.0, 99.0, 70.0])
    assert cost.pareto(costs, scores).tolist() == [True, True, False, False, False, True]


def test_costs_meet_the_score_of_their_place(material):
    table = cost.with_score(material, PLACE, material.cost)
    assert list(table.index) == ROWS
    scores = select(material.scores, subset="test", attribute="", metric="mA", method="full")
    assert table.loc[("full", "default"), "score"] == pytest.approx(scores["value"].mean())
    slower = material.cost.assign(device=["gpu", "cpu", "cpu"])
    (picture,) = cost.pictures(replace(material, cost=slower))  # one point makes no figure
    assert len(picture.figure.axes[0].texts) == 2


def test_agreement_is_the_correlation_of_errors(material, results):
    phi = agreement.agreement(material, PLACE)
    errors = {}
    manifest = read_manifest(results / "manifests/a.parquet")
    for row in (ROWS[0], ROWS[1]):
        for run in material.runs(PLACE, row):
            p = read_predictions(run, manifest, "test")
            wrong = (p.probabilities > 0.5) != (p.labels == 1)
            errors[*row, run.seed] = wrong[p.labels >= 0]
    zero = errors["zero_shot", "default", 0]
    probes = [errors["linear_probe", "default", seed] for seed in (0, 1, 2)]
    expected = np.mean([np.corrcoef(zero, probe)[0, 1] for probe in probes])
    assert [phi[0, 1], phi[1, 0]] == pytest.approx([expected, expected])
    assert np.isnan(phi[0, 0])
    own = [np.corrcoef(probes[i], probes[j])[0, 1] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert phi[1, 1] == pytest.approx(np.mean(own))


def test_similar_methods_stand_side_by_side():
    phi = np.array([[1, 0.1, 0.9, 0], [0.1, 1, 0, 0.8], [0.9, 0, 1, 0.1], [0, 0.8, 0.1, np.nan]])
    chosen = agreement.order(phi).tolist()
    assert {frozenset(chosen[:2]), frozenset(chosen[2:])} == {frozenset({0, 2}), frozenset({1, 3})}


def test_logs_become_curves_over_all_stages(tmp_path):
    lines = [
        {"stage": "probe", "epoch": 0, "step": 2, "loss/a": 2.0, "loss/b": 1.0},
        {"stage": "probe", "epoch": 1, "step": 4, "loss/a": 1.0, "loss/b": 1.0},
        {"stage": "fit", "epoch": 0, "step": 2, "loss/a": 1.0, "loss/b": 0.5, "val/mA": 0.7},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    curve = training.read_log(path)
    assert list(curve["epoch"]) == [1, 2, 3] and list(curve["loss"]) == [3.0, 2.0, 1.5]
    assert curve["val/mA"].iloc[-1] == 70
    assert training.stages(curve) == [("probe", 2), ("fit", 3)]
    assert training.read_log(tmp_path / "none.jsonl").empty


def test_p_values_become_a_symmetric_matrix():
    table = pd.DataFrame(ROWS, columns=KEY).assign(mean_rank=[3.0, 2.0, 1.0])
    pairs = [(0, 1, 0.2), (2, 0, 0.01), (1, 2, 0.5)]
    tests = pd.DataFrame(
        [(*ROWS[i], *ROWS[j], p) for i, j, p in pairs],
        columns=[*KEY, "against_method", "against_variant", "p"],
    )
    mean, p = ranks.matrix(table, tests)
    assert mean.to_dict()["full", "default"] == 1
    assert p.to_numpy().tolist() == [[1, 0.2, 0.01], [0.2, 1, 0.5], [0.01, 0.5, 1]]


def test_selection_shows_points_above_the_last_epoch(material):
    found = selection.differences(material.selection).loc["mA", "full", "default"]
    assert found.tolist() == pytest.approx([-10, 20])
    (picture,) = selection.pictures(material)
    (axes,) = picture.figure.axes
    assert axes.get_xlabel().startswith("mA ")


def test_numbers_on_axes():
    assert [style.short(v) for v in (0.5, 200, 3000, 10_000, 2e6)] == [
        *("0.5", "200", "3000", "10k", "2M"),
    ]
    assert [style.signed(v) for v in (0.4, -0.4, 1.6, -2)] == ["0", "0", "+2", "−2"]
    assert style.wide([0, 1, 10]) and not style.wide([5, 10]) and not style.wide([0.0])
    assert len({tuple(look.items()) for look in style.looks(20)}) == 20


RETRIEVAL = ("r", "reid")


def test_retrieval_has_its_own_figures_and_none_of_attributes(mixed):
    m = material_of(mixed)
    found = {picture.stem: picture for family in figures.FAMILIES for picture in family.pictures(m)}
    names = {name for name in found if "r_reid" in name}
    assert names == {stem(name, RETRIEVAL) for name in ("methods", "cmc", "cost", "training")}
    of_par = ("methods", "agreement", "attributes", "attribute_gains", "cost", "training")
    others = {stem(name, PLACE) for name in (*of_par, "selection")}
    others |= {f"critical_difference_{name}" for name in ("mA", "F1", "mAP", "rank1")}
    assert {"gain_by_frequency", "rate"} <= found.keys() - names
    assert found.keys() - names - {"gain_by_frequency", "rate"} <= others
    labels = [axes.get_xlabel() for axes in found["methods_r_reid"].figure.axes]
    assert labels == ["mAP (%)", "Rank-1 (%)"]
    labels = [axes.get_xlabel() for axes in found["methods_a_standard"].figure.axes]
    assert labels == ["mA (%)", "F1 (%)"]
    assert found["cost_r_reid"].figure.axes[0].get_ylabel() == "mAP (%)"
    assert "Test mAP" in found["cost_r_reid"].caption
    assert [axes.get_ylabel() for axes in found["rate"].figure.axes] == ["mAP (%)", "Rank-1 (%)"]
    assert found["rate"].caption.startswith("mAP and Rank-1 on the test images of r, reid split")
    assert found["critical_difference_rank1"].title == "Mean ranks in Rank-1"


def test_a_cmc_curve_is_the_share_of_queries_that_found_someone(mixed):
    m = material_of(mixed)
    files = sorted(mixed.glob("runs/r/reid/full/default/*/rankings.test.parquet"))
    tables = [pd.read_parquet(file).query("matches > 0") for file in files]
    shares = retrieval.curve(m, RETRIEVAL, ("full", "default"))
    assert len(files) == 2 and len(shares) == 28  # of the gallery
    for rank in (1, 3, 28):
        assert shares[rank - 1] == pytest.approx(
            100 * np.mean([(table["first"] <= rank).mean() for table in tables])
        )
    assert shares[-1] == 100
    scores = select(m.scores, dataset="r", method="full", variant="default", subset="test")
    assert shares[4] == pytest.approx(select(scores, metric="rank5")["value"].mean())


def test_too_many_curves_leave_the_best_and_the_baseline(mixed, monkeypatch):
    monkeypatch.setattr(retrieval, "SHOWN", 2)
    m = material_of(mixed)
    assert m.best(RETRIEVAL) == ("full", "default")
    (picture,) = retrieval.pictures(m)
    assert retrieval.chosen(m, RETRIEVAL) == [("linear_probe", "default"), ("full", "default")]
    assert "the best 1 of the other methods by validation mAP" in picture.caption
    m = replace(m, scores=m.scores.query("subset == 'test'"))
    (picture,) = retrieval.pictures(m)
    *_, last = (row for row in m.rows(RETRIEVAL) if row != m.baseline)
    assert retrieval.chosen(m, RETRIEVAL) == [("linear_probe", "default"), last]
    assert "the last 1 of the other methods in the plan" in picture.caption
    assert "best" not in picture.caption and m.best(RETRIEVAL) == last


def test_a_plan_that_tests_nothing_of_a_task_still_shows_it(mixed):
    m = material_of(mixed)
    comparison = m.plan["comparison"] | {"metrics": ["mA"]}
    m = replace(m, plan={**m.plan, "comparison": comparison})
    labels = [axes.get_xlabel() for axes in overview.draw(m, RETRIEVAL).axes]
    assert labels == ["mAP (%)", "Rank-1 (%)"]
