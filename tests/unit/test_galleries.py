"""Ranked galleries: queries chosen by rule, the images found for them, right ones told apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import fake_reid_results
from matplotlib.patches import Rectangle
from PIL import Image

from pedbench.collect import collect, read_long
from pedbench.galleries import LOOKS, QUERIES, SIGNS, queries_of
from pedbench.manifest import read_manifest, write_manifest
from pedbench.pictures import Scene, galleries, write_pictures
from pedbench.results import read_rankings, read_run
from pedbench.score import score_runs


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Three variants with pictures of one colour for each test image."""
    root = tmp_path_factory.mktemp("galleries")
    skill = {"zero_shot": 0.3, "linear_probe": 0.6, "full_finetune": 1.2}
    results = fake_reid_results(root, skill=skill, seeds=(0,))
    manifest = replace(read_manifest(results.manifests["r"]), root=root / "data")
    write_manifest(manifest, results.manifests["r"])
    (root / "data").mkdir()
    for number, name in enumerate(manifest.rows["image"]):
        Image.new("RGB", (4, 8), (number % 256, number // 256, 0)).save(root / "data" / name)
    score_runs(results.folders, results.manifests, root / "scored.json")
    collect(results.folders, root / "long.parquet")
    return results


@pytest.fixture(scope="module")
def scene(results) -> Scene:
    long = read_long(results.root / "long.parquet")
    manifest = read_manifest(results.manifests["r"])
    return Scene(results.plan["experiments"], manifest, long, results.plan)


def of_best(results) -> Any:
    run = read_run(results.root / "runs/r/reid/full_finetune/default/seed0")
    return read_rankings(run, read_manifest(results.manifests["r"]), "test")


def test_queries_are_drawn_among_those_that_count_and_the_hardest_follow(results):
    found = of_best(results)
    aps = found.rankings.AP
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(56)
        drawn, hard = queries_of(found, order)
        assert len(drawn) == len(hard) == QUERIES and not set(drawn) & set(hard)
        counted = [p for p in order if p in found.query[found.rankings.valid]]
        assert list(found.query[drawn]) == counted[:QUERIES]
        others = np.setdiff1d(np.flatnonzero(found.rankings.valid), drawn)
        assert sorted(aps[hard]) == sorted(aps[others])[:QUERIES]


def test_every_image_has_the_frame_and_the_sign_of_what_it_is(results, scene):
    picture = galleries(scene)
    assert scene.task == "reid" and picture.stem == "galleries_r_reid"
    signs = [text.get_text() for text in picture.figure.texts]
    frames = [p for ax in picture.figure.axes for p in ax.patches if isinstance(p, Rectangle)]
    assert len(frames) == 3 * 2 * QUERIES * 10 == sum(sign in SIGNS.values() for sign in signs)
    right = [frame.get_linestyle() == LOOKS[True]["linestyle"] for frame in frames]
    assert 0 < sum(right) < len(right)
    assert sum(right) == signs.count(SIGNS[True])
    table = pd.read_parquet(
        results.root / "runs/r/reid/full_finetune/default/seed0/rankings.test.parquet"
    )
    manifest = read_manifest(results.manifests["r"]).subset("reid", "test")
    gallery = manifest.rows[~manifest.is_query("reid")].reset_index(drop=True)
    drawn, _ = queries_of(of_best(results), scene.shuffled())
    asked = table.iloc[drawn[0]]
    expected = list(gallery["identity"][asked["top"]] == asked["identity"])
    assert right[:10] == expected
    images = [ax.images[0] for ax in picture.figure.axes[:11]]  # the query, what is found for it
    shown = [int(np.asarray(image.get_array())[0, 0, 0]) for image in images]
    wanted = [asked["image"], *gallery["image"][asked["top"]]]
    assert shown == [int(name.removesuffix(".png")) % 256 for name in wanted]
    assert "Full fine-tuning" in picture.caption and "the baseline aside" in picture.caption


def test_without_validation_images_the_last_of_the_plan_stands_for_the_others(results):
    """As on the splits of papers; nothing there is called the best."""
    long = read_long(results.root / "long.parquet").query("subset == 'test'")
    plan = results.plan
    plan["experiments"] = [plan["experiments"][i] for i in (0, 2, 1)]
    plan["comparison"]["baseline"] = "zero_shot/default"
    scene = Scene(plan["experiments"], read_manifest(results.manifests["r"]), long, plan)
    picture = galleries(scene)
    assert [e["method"] for e in scene.compared] == ["linear_probe", "zero_shot"]
    assert "lowest AP of Linear probe, the last in the plan (there are no" in picture.caption
    assert "best" not in picture.caption


def test_a_plan_of_retrieval_alone_has_galleries_and_nothing_else(results, tmp_path, monkeypatch):
    monkeypatch.setattr("pedbench.galleries.QUERIES", 1)
    plan = results.plan | {"experiments": results.plan["experiments"][:2]}
    write_pictures(plan, results.root / "long.parquet", tmp_path, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"galleries_r_reid.pdf", "galleries_r_reid.png", "captions.json"}
