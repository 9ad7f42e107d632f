"""Pictures: chosen by rule, of the runs themselves, the same each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pedbench import train as job
from pedbench.collect import collect, read_long
from pedbench.config import read_protocol, resolve
from pedbench.contracts import Attribute
from pedbench.files import read_json, write_json
from pedbench.manifest import read_manifest, write_manifest
from pedbench.pictures import (
    Scene,
    examples,
    extremes,
    look,
    mark_of,
    overlay,
    rows_of_responses,
    some_attributes,
    write_pictures,
)
from pedbench.results import read_predictions, read_run
from pedbench.score import score_runs

VARIANTS = {
    "zero_shot/default": {},
    "linear_probe/default": {},
    "promptpar/global_shallow": {"prompt_length": 4},
    "promptpar/region_deep": {"prompt_length": 5},
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory, manifest, backbone) -> dict[str, Any]:
    """Four finished variants and one that was refused, in a plan; `long.parquet` beside them."""
    root = tmp_path_factory.mktemp("pictures")
    write_manifest(manifest, root / "noise.parquet")
    write_json(root / "random.json", {"sha256": backbone.weights_sha256, "file": None})
    experiments = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pedbench.train.load_backbone", lambda *_, **__: backbone)
        for name, values in VARIANTS.items():
            method, variant = name.split("/")
            swept = {"epochs": 1, "probe_epochs": 2, **values}
            protocol = read_protocol("embedded", ("tiny_clip",))
            spec = resolve(method, variant, protocol, swept, "test")
            key = {"dataset": "noise", "split": "standard", "method": method, "variant": variant}
            folder = root / "runs" / name
            write_json(folder / "config.json", {**key, "backbone": "random", **spec})
            inputs = (folder / "config.json", root / "noise.parquet", root / "random.json")
            job.train(*inputs, seeds=[0], threads=1)
            experiments.append({**key, "folder": str(folder), "seeds": [0], "in_tables": True})
    score_runs(folders(experiments), {"noise": root / "noise.parquet"}, root / "scored.json")
    collect(folders(experiments), root / "long.parquet")
    write_json(root / "runs/refused/refused.json", {"reason": "no"})
    refused = {**experiments[0], "method": "refused", "folder": str(root / "runs/refused")}
    return {
        "backbone": "random",
        "datasets": {"noise": {"manifest": str(root / "noise.parquet")}},
        "experiments": [*experiments, refused],
        "comparison": {"baseline": "linear_probe/default", "seed": 0},
        "root": root,
    }


def folders(experiments: list[dict[str, Any]]) -> list[Path]:
    return [Path(e["folder"]) / "seed0" for e in experiments]


def scene_of(plan: dict[str, Any]) -> Scene:
    long = read_long(plan["root"] / "long.parquet")
    return Scene(
        plan["experiments"][:-1], read_manifest(plan["root"] / "noise.parquet"), long, plan
    )


def test_every_picture_is_there_twice_equal_and_dateless(plan, backbone, monkeypatch, tmp_path):
    monkeypatch.setattr("pedbench.pictures.load_backbone", lambda name, file: backbone)
    (tmp_path / "second/left_over").mkdir(parents=True)
    for name in ("first", "second"):
        write_pictures(plan, plan["root"] / "long.parquet", plan["root"], tmp_path / name)
    stems = {"examples_noise_standard", "relevance", "responses"}
    names = {f"{stem}.{kind}" for stem in stems for kind in ("pdf", "png")} | {"captions.json"}
    assert {path.name for path in (tmp_path / "first").iterdir()} == names
    assert {path.name for path in (tmp_path / "second").iterdir()} == names
    for name in names:
        content = (tmp_path / "first" / name).read_bytes()
        assert content == (tmp_path / "second" / name).read_bytes(), name
        assert b"CreationDate" not in content
    captions = read_json(tmp_path / "first/captions.json")
    assert captions.keys() == stems
    assert all(entry.keys() == {"title", "caption", "category"} for entry in captions.values())
    assert Image.open(tmp_path / "first/responses.png").width == 1400


def test_the_runs_themselves_look_at_the_pictures(plan, backbone):
    """Probabilities are those kept when the run was made; every kind of method has maps."""
    scene = scene_of(plan)
    seen = [look(e, scene.test, backbone, True) for e in scene.experiments]
    for one in seen:
        run = read_run(Path(one.experiment["folder"]) / "seed0")
        kept = read_predictions(run, scene.manifest, "test").probabilities
        np.testing.assert_allclose(one.probabilities, kept, atol=1e-5)
        assert np.shape(one.falls) == (16, 5, 8, 4) and np.ptp(one.falls) > 0
    assert [one.has_tokens for one in seen] == [False, False, True, True]
    assert [one.regional for one in seen] == [False, False, False, True]
    rows = rows_of_responses(scene, seen)
    assert [one.experiment["method"] for one in rows] == ["linear_probe", "promptpar", "promptpar"]
    scene.baseline = None
    assert len(rows_of_responses(scene, seen)) == 2


def test_examples_show_the_best_the_baseline_and_the_untrained(plan):
    scene = scene_of(plan)
    scene.ranking = [scene.experiments[3], *scene.experiments[:3]]
    figure = examples(scene).figure
    words = {text.get_text() for text in figure.texts}
    assert any(
        "1  PromptPAR (region deep)     2  Linear probe     3  Zero-shot" in w for w in words
    )
    scene.ranking = scene.experiments[1:] + scene.experiments[:1]  # the baseline before all
    picture = examples(scene)
    words = {text.get_text() for text in picture.figure.texts}
    assert any(w.startswith("1  PromptPAR (global shallow)     2  Linear probe") for w in words)
    assert "the baseline aside" in picture.caption
    assert scene.baseline is not None
    scene.experiments = scene.ranking = [scene.baseline]
    words = {text.get_text() for text in examples(scene).figure.texts}
    assert any(w.strip() == "1  Linear probe" for w in words)


def test_extremes_break_ties_in_the_given_order():
    errors = np.array([2, 0, 5, 0, 2, 0, 0, 9])
    few, many = extremes(errors, np.array([7, 6, 5, 4, 3, 2, 1, 0]))
    assert (list(few), list(many)) == ([6, 5, 3], [0, 2, 7])
    few, many = extremes(errors[:2], np.array([0, 1]))
    assert (list(few), list(many)) == ([1], [0])


def test_the_pictures_follow_from_the_seed_alone(plan):
    first, again = scene_of(plan), scene_of(plan)
    assert np.array_equal(first.shuffled(), again.shuffled())
    other = scene_of({**plan, "comparison": {**plan["comparison"], "seed": 1}})
    assert not np.array_equal(first.shuffled(), other.shuffled())


def test_attributes_are_present_and_of_different_regions():
    regions: Any = ("head", "head", "upper", "lower", "feet", "whole")
    attributes = [Attribute(str(i), region, "", "") for i, region in enumerate(regions)]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found = some_attributes(attributes, np.array([1, 1, 1, 0, -1, 1]), rng)
        assert found == sorted(found) and len(found) == 3
        assert found[1:] == [2, 5] and found[0] in (0, 1)
    assert some_attributes(attributes, np.zeros(6), np.random.default_rng(0)) == []


def test_marks():
    marks = [mark_of(true, found) for true in (True, False) for found in (True, False)]
    assert marks == ["found", "missed", "false alarm", None]


def test_an_overlay_is_lightest_at_the_peak_and_survives_an_empty_map():
    picture = torch.full((3, 64, 32), 128, dtype=torch.uint8)
    values = -np.ones((8, 4))
    values[5, 1] = 3
    grey = overlay(picture, values).mean(2)
    assert np.unravel_index(grey.argmax(), grey.shape)[0] // 8 == 5
    assert np.unravel_index(grey.argmax(), grey.shape)[1] // 8 == 1
    assert np.ptp(overlay(picture, -np.ones((8, 4))).mean(2)) == 0
    assert np.array_equal(overlay(picture, None), picture.permute(1, 2, 0).numpy())
