"""Base and novel attributes: who sees which labels, and which methods may be asked."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from conftest import ATTRIBUTES, NoiseDataset

from pedbench import registry
from pedbench.config import plain, protocol_of, read_protocol, resolve
from pedbench.contracts import UNKNOWN, PedbenchError, Task
from pedbench.files import read_json
from pedbench.formats.novel import NovelDataset, novel_spec
from pedbench.intake import build_manifest
from pedbench.manifest import read_manifest, write_manifest
from pedbench.runs import REFUSED, RunConfig
from pedbench.score import score_runs
from pedbench.train import make_task, train

BASE, NOVEL = ("hat", "trousers", "female"), ("backpack", "boots")


class Noise(NoiseDataset):
    def fake(self, root, rng):
        self.generate(root, {})


class Divided(NovelDataset):
    PARENTS = {"noise": Noise}
    SPEC = novel_spec(PARENTS)


@pytest.fixture(scope="module")
def divided(tmp_path_factory):
    folder = tmp_path_factory.mktemp("novel")
    Divided().fake(folder / "root", np.random.default_rng(0))
    build_manifest("divided", Divided(), folder / "root", {}, folder / "m.parquet")
    return read_manifest(folder / "m.parquet")


def known(manifest, split, subset):
    """Names of the attributes of which the subset's images have labels."""
    labels = manifest.subset(split, subset).labels
    named = (labels != UNKNOWN).all(0)
    assert (named == (labels != UNKNOWN).any(0)).all()
    return tuple(a.name for a, here in zip(manifest.attributes, named, strict=True) if here)


def test_training_knows_base_attributes_and_testing_the_others(divided):
    for split, tested in (("base_to_base", BASE), ("base_to_novel", NOVEL)):
        assert known(divided, split, "train") == known(divided, split, "val") == BASE
        assert known(divided, split, "test") == tested
    assert divided.novel == {"base_to_novel": NOVEL}


def test_both_splits_train_on_the_same_images_and_test_on_the_same_pictures(divided):
    for subset in ("train", "val"):
        images = [divided.subset(s, subset).rows["image"] for s in Divided.SPEC.splits]
        assert images[0].equals(images[1])
    pictures = [divided.subset(s, "test").rows["file"] for s in Divided.SPEC.splits]
    assert pictures[0].tolist() == pictures[1].tolist()
    assert len(set(pictures[0])) == 16


def test_labels_are_those_of_the_parent(divided, manifest):
    at_once = manifest.subset("standard", "test").labels
    base, novel = (divided.subset(split, "test").labels for split in Divided.SPEC.splits)
    assert (np.where(base == UNKNOWN, novel, base) == at_once).all()


TASK = Task("par", ATTRIBUTES, (0.5, 0.0, 0.5, 0.0, 0.5), novel=NOVEL)


def make(method, values):
    return registry.load_method(method)(registry.load_params(method, values))


@pytest.fixture(autouse=True)
def _no_downloads(monkeypatch):
    monkeypatch.setattr("pedbench.nn.pretrained._only_shapes", lambda: True)


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("zero_shot", {}),
        *((name, {}) for name in ("coop", "cocoop", "ivlp", "clip_adapter", "vpt")),
        ("maple", {"prompt_depth": 1}),
        *((name, {"head": "pair"}) for name in ("lora", "adapter", "full_finetune")),
    ],
)
def test_who_reads_texts_learns_nothing_of_a_single_attribute(method, values, backbone):
    assert make(method, values).supports(TASK, backbone) is None
    fewer = Task("par", ATTRIBUTES[:3], (0.5,) * 3)
    shapes = [
        [
            p.shape
            for p in make(method, values).build(copy.deepcopy(backbone), task).parameters()
            if p.requires_grad
        ]
        for task in (TASK, fewer)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("method", "values"),
    [
        *((name, {}) for name in ("linear_probe", "lora", "promptpar", "vtb", "tip_adapter")),
        ("coop", {"class_specific": True}),
        ("maple", {"head": "sigmoid"}),
    ],
)
def test_who_learns_weights_of_attributes_is_refused_novel_ones(method, values, backbone):
    reason = make(method, values).supports(TASK, backbone)
    assert reason is not None
    assert "cannot tell the 2 novel" in reason


def run_config(split, unknown_labels):
    spec = plain(resolve("zero_shot", "default", read_protocol("embedded")))
    protocol = replace(protocol_of(spec), unknown_labels=unknown_labels)
    return RunConfig("divided", split, "zero_shot", "default", "random", protocol, spec["params"])


def test_hidden_labels_are_no_negatives(divided):
    part = divided.subset("base_to_novel", "train")
    config = run_config("base_to_novel", "negative_in_training")
    with pytest.raises(PedbenchError, match="unknown_labels 'negative_in_training' would teach"):
        make_task(config, part)
    assert make_task(run_config("base_to_novel", "ignored"), part).novel == NOVEL
    assert make_task(run_config("base_to_base", "ignored"), part).novel == ()


def test_runs_on_novel_attributes(divided, prepare):
    config, path, weights = prepare("linear_probe", split="base_to_novel")
    write_manifest(divided, path)
    assert train(config, path, weights, [0], 1) == {}
    assert "novel" in read_json(config.with_name(REFUSED))["reason"]
    config, path, weights = prepare("coop", split="base_to_novel", folder="coop", epochs=1)
    write_manifest(divided, path)
    assert train(config, path, weights, [0], 1).keys() == {"0"}
    score_runs([config.parent / "seed0"], {"noise": path}, config.with_name("scored.json"))
    scores = read_json(config.parent / "seed0/scores.test.json")
    measured = {name for name, of in scores["attributes"].items() if of["mA"] is not None}
    assert measured == set(NOVEL)
    assert scores["overall"]["mA"] == pytest.approx(
        np.mean([scores["attributes"][name]["mA"] for name in NOVEL])
    )
