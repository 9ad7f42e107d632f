"""``pedbench compare A B``: the suite's own numbers, between results that may be compared."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import fake_mixed_results, fake_results, finish

from pedbench.bundle import export_bundle, import_bundle
from pedbench.cli import main
from pedbench.collect import read_long, select
from pedbench.contracts import PedbenchError
from pedbench.files import read_json, write_json
from pedbench.manifest import Manifest, read_manifest, write_manifest
from pedbench.stats import VS_BASELINE, read_stats
from pedbench.versus import as_text, versus

SKILL = {"zero_shot": 0.2, "linear_probe": 1.0, "promptpar/deep": 1.5, "lora": 1.02}
SHARED = ["difference", "ci_low", "ci_high", "se_images", "se_seeds", "p", "p_holm", "seeds"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    """Our results, and the same imported as ``lab``."""
    root = tmp_path_factory.mktemp("lab")
    finish(fake_results(root / "results", skill=SKILL, seeds=range(5), images=60))
    export_bundle(root / "results", root / "all.zip")
    import_bundle(root / "all.zip", "lab", root / "imported")
    return root


def compare(lab: Path, a: str, b: str, *more: Any):
    return versus(a, b, lab / "results", lab / "imported", *more)


@pytest.mark.parametrize("method", ["zero_shot", "promptpar/deep"])
@pytest.mark.parametrize("prefixes", [("", ""), ("lab:", ""), ("", "lab:"), ("lab:", "lab:")])
def test_the_numbers_are_those_of_the_tables(lab, method, prefixes):
    name, label = f"{method}/default".split("/")[:2]
    tests = read_stats(lab / "results/stats" / VS_BASELINE)
    expected = select(tests, method=name, variant=label).set_index(["dataset", "split", "metric"])
    found = compare(lab, prefixes[0] + method, prefixes[1] + "linear_probe").tests
    assert len(found) == len(expected) == 4
    long = select(read_long(lab / "results/long.parquet"), subset="test", attribute="")
    for row in found:
        dataset, split = row["place"].split("/")
        same = expected.loc[(dataset, split, row["metric"])]
        # the family there is larger, so that Holm's correction is not the same
        for column in (c for c in SHARED if c != "p_holm"):
            np.testing.assert_allclose(row[column], same[column], rtol=1e-5)
        metric = "F1_instance" if row["metric"] == "F1" else row["metric"]
        there = select(long, split=split, metric=metric)
        for side, by, label_ in (("a", name, label), ("b", "linear_probe", "default")):
            mean = 100 * select(there, method=by, variant=label_)["value"].mean()
            assert row[side] == pytest.approx(mean)
        assert row["unit"] == same["unit"] and row["n"] == (30 if split == "zero_shot" else 60)


def test_a_variant_is_the_same_as_its_copy(lab, capsys):
    text = as_text(compare(lab, "lora", "lab:lora"))
    assert "lora and lab:lora are the same in mA and F1 on a/standard, a/zero_shot." in text


def test_the_verdict_in_words_and_the_seeds(lab):
    found = compare(lab, "promptpar/deep", "linear_probe", ["a/standard"], ["mA", "recall"])
    assert [test["metric"] for test in found.tests] == ["mA", "recall"]
    text = as_text(found, by_seed=True)
    assert "promptpar/deep is above linear_probe in mA and recall on a/standard." in text
    seeds = [s["difference"] for s in found.seeds]
    means = [np.mean(seeds[:5]), np.mean(seeds[5:])]
    np.testing.assert_allclose(means, [test["difference"] for test in found.tests])
    assert "seed A" in text and "a/zero_shot" not in text and "One seed" not in text
    text = as_text(compare(lab, "lora", "linear_probe", ["a/standard"]))
    assert "No significant difference in mA and F1 on a/standard." in text
    backwards = as_text(compare(lab, "zero_shot", "promptpar/deep"))
    assert "zero_shot is below promptpar/deep in mA and F1 on a/standard, a/zero_shot" in backwards


@pytest.mark.parametrize(
    ("a", "b", "more", "message"),
    [
        ("linear_prob", "lora", (), "linear_prob: not in .*did you mean 'linear_probe'"),
        ("promptpar", "lora", (), r"promptpar: not in .*it has: promptpar/deep\)"),
        ("promptpar/dep", "lora", (), "did you mean 'promptpar/deep'"),
        ("lab:lorra", "lora", (), "lab:lorra: not in .*lab; did you mean 'lora'"),
        ("labs:lora", "lora", (), "nothing was imported as 'labs'; did you mean 'lab'"),
        ("lora", "lora/default", (), "both sides are lora"),
        (
            "lora",
            "zero_shot",
            (["a/standart"],),
            "--place a/standart: lora and zero_shot was not",
        ),
        ("lora", "zero_shot", ((), ["ma"]), "unknown metric 'ma'; did you mean 'mA'"),
        ("lora", "zero_shot", ((), ["loss"]), "unknown metric 'loss' .known: F1, mA"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(lab, a, b, more, message):
    with pytest.raises(PedbenchError, match=message):
        compare(lab, a, b, *more)


Change = Callable[[dict[str, Any]], object]


def changed(lab: Path, tmp_path: Path, edit: Change) -> Path:
    """A copy of ``lab`` whose import was made with other settings."""
    shutil.copytree(lab, tmp_path / "lab")
    for path in (tmp_path / "lab/imported").rglob("config.json"):
        config = read_json(path)
        edit(config)
        write_json(path, config)
    return tmp_path / "lab"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", "2", "different protocols .*v1, .* against embedded v2"),
        ("name", "paper", "different protocols .*embedded v1, .* against paper v1"),
        ("threshold", 0.4, "threshold 0.5, F1 instance, .* against .*threshold 0.4"),
        ("f1", "harmonic", "F1 instance, .* against .*F1 harmonic"),
        ("unknown_labels", "negative", "unknown labels left out .*unknown labels negative"),
    ],
)
def test_protocols_are_not_mixed(lab, tmp_path, key, value, message):
    other = changed(
        lab, tmp_path, lambda c: c["protocol"].update({key: {"value": value, "from": "x"}})
    )
    with pytest.raises(PedbenchError, match=f"cannot be compared: .*{message}.*Run both"):
        compare(other, "lora", "lab:zero_shot")


def relabel(rows: pd.DataFrame) -> None:
    rows["label:hat"] = 1 - rows["label:hat"].abs()


def redraw(rows: pd.DataFrame) -> None:
    rows["sha256"] = "f" * 64


def rename(rows: pd.DataFrame) -> None:
    rows["image"] = "b" + rows["image"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (redraw, "the files of 180 of 180 images differ"),
        (relabel, r"'label:hat' of \d+ of 180 images differ"),
        (rename, "they have no image in common"),
        (lambda rows: None, "their digests differ"),
    ],
)
def test_manifests_are_not_mixed_and_the_difference_is_said(lab, tmp_path, edit, message):
    other = changed(lab, tmp_path, lambda config: config.update(manifest_digest="f" * 64))
    path = other / "imported/lab/manifests/a.parquet"
    m = read_manifest(path)
    edit(m.rows)
    write_manifest(Manifest(m.dataset, m.root, m.attributes, "f" * 64, m.rows), path)
    with pytest.raises(PedbenchError, match=f"a was not the same for both: {message}.*release"):
        compare(other, "lora", "lab:zero_shot")


def test_other_settings_and_places_are_told(lab, tmp_path):
    other = changed(lab, tmp_path, lambda c: c.update(backbone={"value": "ViT-B-16", "from": "x"}))
    plan = read_json(other / "imported/lab/plan.json")
    plan["experiments"] = [e for e in plan["experiments"] if e["split"] == "standard"]
    write_json(other / "imported/lab/plan.json", plan)
    found = compare(other, "lora", "lab:lora")
    assert {test["place"] for test in found.tests} == {"a/standard"}
    assert "a/zero_shot: left out, lab:lora was not run there" in found.notes
    assert "a/standard: backbone tiny against ViT-B-16" in found.notes
    with pytest.raises(PedbenchError, match="a/zero_shot: lab:lora was not run there"):
        compare(other, "lora", "lab:lora", ["a/zero_shot"])
    plan["experiments"] = [e for e in plan["experiments"] if e["method"] == "zero_shot"]
    write_json(other / "imported/lab/plan.json", plan)
    shutil.rmtree(other / "results/runs/a/standard/lora/default/seed0")
    with pytest.raises(PedbenchError, match="seed0: not finished; run 'snakemake"):
        compare(other, "lora", "lab:zero_shot")
    ours = read_json(other / "results/plan.json")
    ours["experiments"] = [e for e in ours["experiments"] if e["split"] == "zero_shot"]
    write_json(other / "results/plan.json", ours)
    with pytest.raises(PedbenchError, match="no dataset and split in common"):
        compare(other, "lora", "lab:zero_shot")


def test_seeds_of_one_side_alone_are_left_out_and_named(lab, tmp_path):
    """Seed 7 is in the plan of the import, not in ours."""
    finish(fake_results(tmp_path / "results", skill=SKILL, seeds=(1, 7), images=60))
    export_bundle(tmp_path / "results", tmp_path / "b.zip", ["lora"])
    import_bundle(tmp_path / "b.zip", "more", tmp_path)
    found = versus("lora", "more:lora", lab / "results", tmp_path, ["a/standard"])
    assert found.notes == [
        "a/standard: seeds 0, 2, 3, 4 of lora left out",
        "a/standard: seeds 7 of more:lora left out",
    ]
    assert {(s["seed_a"], s["seed_b"]) for s in found.seeds} == {(1, 1)}
    assert "One seed: the test is about these trained weights" in as_text(found)
    assert versus("zero_shot", "more:lora", lab / "results", tmp_path).notes == []


def test_one_trained_seed_is_one_pair_and_the_warning_says_so(lab, tmp_path):
    """Paired with every seed of the other side, its own luck would be taken for its method."""
    ours, imported = lab / "results", tmp_path / "imported"
    for seed, name in ((0, "one"), (7, "other")):
        root = tmp_path / name / "results"
        finish(fake_results(root, skill=SKILL, seeds=(seed,), images=60))
        export_bundle(root, tmp_path / f"{name}.zip")
        import_bundle(tmp_path / f"{name}.zip", name, imported)

    found = versus("linear_probe", "one:promptpar/deep", ours, imported, ["a/standard"])
    assert [test["seeds"] for test in found.tests] == [1, 1]
    assert {(s["seed_a"], s["seed_b"]) for s in found.seeds} == {(0, 0)}
    assert found.notes == ["a/standard: seeds 1, 2, 3, 4 of linear_probe left out"]
    assert "One seed: the test is about these trained weights" in as_text(found)
    with pytest.raises(PedbenchError, match="cannot be paired"):
        versus("linear_probe", "other:promptpar/deep", ours, imported)
    untrained = versus("linear_probe", "one:zero_shot", ours, imported)
    assert {test["seeds"] for test in untrained.tests} == {5} and untrained.notes == []


def test_other_weights_are_another_backbone(lab, tmp_path):
    shutil.copytree(lab, tmp_path / "lab")
    for path in (tmp_path / "lab/imported").rglob("environment.json"):
        write_json(path, {**read_json(path), "weights_sha256": "f" * 64})
    with pytest.raises(PedbenchError, match="weights of tiny .*00000 against ffff.*another backb"):
        compare(tmp_path / "lab", "lora", "lab:zero_shot")


def test_text_of_an_import_cannot_command_the_terminal(lab, tmp_path, monkeypatch, capsys):
    odd = {"value": "\x1b[2J\nlora is above", "from": "x"}

    def edit(config):
        config["protocol"] |= {"optimiser": odd, "secret\x1b[1m": odd}

    other = changed(lab, tmp_path, edit)
    found = compare(other, "lora", "lab:zero_shot", ["a/standard"])
    text = as_text(found)
    assert "optimiser not known against \\x1b[2J lora is above" in text
    assert "\x1b" not in text and "secret" not in text
    changed_name = changed(other, tmp_path / "name", lambda c: c["protocol"].update(name=odd))
    monkeypatch.chdir(changed_name)
    assert main(["compare", "lora", "lab:zero_shot"]) == 1
    said = capsys.readouterr().err
    assert "different protocols" in said and "\x1b" not in said and "\\x1b[2J" in said


def test_two_imports_need_no_results(lab, tmp_path, monkeypatch, capsys):
    shutil.copytree(lab / "imported", tmp_path / "imported")
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "lab:zero_shot", "lab:lora", "--metrics", "mA"]) == 0
    assert "lab:zero_shot is below lab:lora in mA on a/standard, a/zero_shot." in (
        capsys.readouterr().out
    )
    assert main(["compare", "zero_shot", "lab:lora"]) == 1
    assert "no results are here" in capsys.readouterr().err


def test_both_tasks_are_compared_each_in_its_metrics(tmp_path):
    skill = {"zero_shot": 0.4, "linear_probe": 1.0, "lora": 2.0}
    finish(fake_mixed_results(tmp_path / "results", skill=skill, seeds=(0, 1), images=20))
    found = compare(tmp_path, "lora", "linear_probe")
    assert [(t["place"], t["metric"]) for t in found.tests] == [
        *(("a/standard", metric) for metric in ("mA", "F1")),
        *(("r/reid", metric) for metric in ("mAP", "rank1")),
    ]
    expected = read_stats(tmp_path / "results/stats" / VS_BASELINE)
    expected = select(expected, dataset="r", method="lora", metric="mAP")
    (row,) = (t for t in found.tests if t["metric"] == "mAP")
    for column in ("difference", "ci_low", "se_images", "p"):
        np.testing.assert_allclose(row[column], expected[column].item(), rtol=1e-5)
    assert (row["n"], row["unit"]) == (9, "identity")
    text = as_text(found)
    assert "Protocol embedded_reid v1: queries against the gallery." in text
    assert "F1 is F1_instance." in text and "9 persons" in text
    assert "In percent, on test images and queries, mean" in text
    found = compare(tmp_path, "lora", "linear_probe", (), ["mINP"])
    assert [t["place"] for t in found.tests] == ["r/reid"]
    assert "a/standard: left out, it has none of the metrics mINP" in found.notes
    assert "In percent, on test queries, mean" in as_text(found)
    with pytest.raises(PedbenchError, match="compared nowhere: a/standard: left out"):
        compare(tmp_path, "lora", "linear_probe", ["a/standard"], ["mINP"])
