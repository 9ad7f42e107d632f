"""The synthetic world: same seed, same bytes; labels, splits and captions mean what they say."""

from __future__ import annotations

import csv
import json
import re
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pedbench.contracts import UNKNOWN, PedbenchError
from pedbench.datasets.synthetic_a import Dataset as SyntheticA
from pedbench.datasets.synthetic_b import Dataset as SyntheticB
from pedbench.world.attributes import ATTRIBUTES, COLOURED, INDEX, NAMES, UNNAMED, sample_labels
from pedbench.world.captions import captions, words
from pedbench.world.domains import PRETRAIN, TARGET_A, TARGET_B, Domain
from pedbench.world.render import PARTS, People, render, sample_people

SMALL = {"seed": 3, "identities": 20, "images_per_identity": 6}


@pytest.fixture(scope="module")
def people() -> People:
    return sample_people(60, np.random.default_rng(0))


def shoot(people: People, domain: Domain = TARGET_A, seed: int = 1, **settings):
    who = np.arange(len(people))
    cameras = who % len(domain.cameras)
    return render(people, who, cameras, domain, np.random.default_rng(seed), **settings)


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_pictures_depend_on_the_seed_alone(people):
    images, parts = shoot(people)
    again, parts_again = shoot(people)
    assert images.dtype == np.uint8
    assert images.shape == (60, 64, 32, 3)
    assert np.array_equal(images, again)
    assert np.array_equal(parts, parts_again)
    assert not np.array_equal(images, shoot(people, seed=2)[0])


@pytest.mark.parametrize("chunk", [1, 7, 128])
def test_chunk_size_does_not_change_pictures(people, chunk):
    for whole, chunked in zip(shoot(people), shoot(people, chunk=chunk), strict=True):
        assert np.array_equal(whole, chunked)


def test_size_is_a_parameter(people):
    images, parts = shoot(people, PRETRAIN, size=(128, 64))
    assert images.shape == (60, 128, 64, 3)
    assert parts.shape == (60, len(PARTS), 16, 8)
    halved = images.reshape(60, 64, 2, 32, 2, 3).mean(axis=(2, 4))
    assert np.abs(halved - shoot(people, PRETRAIN)[0]).mean() < 12  # the same scene, larger


@pytest.mark.parametrize("domain", [PRETRAIN, TARGET_A, TARGET_B], ids=lambda d: d.name)
def test_cameras_are_what_they_claim(people, domain):
    images, _ = shoot(people, domain)
    for number, camera in enumerate(domain.cameras):
        seen = images[number :: len(domain.cameras)]
        assert np.array_equal(seen.min(axis=-1), seen.max(axis=-1)) == camera.grey
    assert any(c.inverted for c in domain.cameras) == (domain is TARGET_A)


@pytest.mark.parametrize(
    ("attribute", "part"),
    [
        ("hat", "hat"),
        ("glasses", "glasses"),
        ("skirt", "skirt"),
        ("box", "box"),
        ("phone", "phone"),
    ],
)
def test_parts_show_what_labels_say(attribute, part):
    crowd = sample_people(400, np.random.default_rng(5))
    patches = shoot(crowd, PRETRAIN)[1].sum(axis=(2, 3))
    visible = patches[:, PARTS.index(part)] > 0
    has = crowd.labels[:, INDEX[attribute]] == 1
    assert not visible[~has].any()
    assert visible[has].mean() > 0.8  # the rest is hidden or seen from behind


def test_frequencies_are_long_tailed_and_correlated():
    labels = sample_labels(20_000, np.random.default_rng(0))
    share = labels.mean(axis=0)
    assert labels.shape == (20_000, len(ATTRIBUTES)) == (20_000, 32)
    assert share.min() >= 0.02
    assert share.max() <= 0.60
    assert np.median(share) < 0.2
    women = labels[labels[:, INDEX["female"]] == 1].mean(axis=0)
    assert all(women[i] > 1.4 * share[i] for i in map(INDEX.get, ("skirt", "long hair", "handbag")))


def test_labels_do_not_contradict_each_other():
    columns = sample_labels(5_000, np.random.default_rng(1)).astype(bool).T
    has: dict[str, np.ndarray] = dict(zip(NAMES, columns, strict=True))
    for group in (
        ("trousers", "shorts", "skirt"),
        ("boots", "sneakers", "sandals"),
        ("red shirt", "blue shirt", "white shirt", "black shirt"),
        ("bald", "long hair"),
        ("bald", "black hair"),
        ("jacket", "short sleeves"),
        ("child", "elderly"),
        ("female", "beard"),
    ):
        assert np.sum([has[name] for name in group], axis=0).max() == 1
    assert not (has["blue trousers"] & ~has["trousers"]).any()


@pytest.mark.parametrize("dataset", [SyntheticA(), SyntheticB()], ids=["a", "b"])
def test_splits_and_counts(dataset, tmp_path):
    options = {"seed": 3, "identities": 40, "images_per_identity": 6}
    dataset.generate(tmp_path / "world", options)
    records = list(dataset.records(tmp_path / "world"))
    assert [r.image for r in records] == sorted(r.image for r in records)
    assert {r.camera for r in records} == set(range(len(dataset.DOMAIN.cameras)))
    people = {
        (split, subset): {r.identity for r in records if r.subset[split] == subset}
        for split in dataset.SPEC.splits
        for subset in ("train", "val", "test")
    }
    for split, subsets in dataset.expected(options).items():
        for subset, count in subsets.items():
            assert sum(r.subset[split] == subset for r in records) == count
    assert len(people["standard", "train"] & people["standard", "test"]) > 20
    assert not people["zero_shot", "train"] & people["zero_shot", "test"]
    assert not people["zero_shot", "train"] & people["zero_shot", "val"]
    assert not people["zero_shot", "val"] & people["zero_shot", "test"]


def test_default_sizes_are_the_declared_ones():
    counts = {"train": 2000, "val": 600, "test": 1400}
    assert SyntheticA().expected({}) == {"standard": counts, "zero_shot": counts}


@pytest.mark.parametrize("dataset", [SyntheticA(), SyntheticB()], ids=["a", "b"])
def test_labels_are_mostly_known(dataset, tmp_path):
    dataset.generate(tmp_path / "world", {"seed": 5, "identities": 300, "images_per_identity": 3})
    records = list(dataset.records(tmp_path / "world"))
    labels = np.array([r.labels for r in records])
    assert set(np.unique(labels)) == {0, 1, UNKNOWN}
    assert 0.005 < (labels == UNKNOWN).mean() < 0.03
    for split in dataset.SPEC.splits:
        for subset in ("train", "val", "test"):
            rows = [i for i, r in enumerate(records) if r.subset[split] == subset]
            assert ((labels[rows] == 1).any(axis=0)).all()


def test_generation_repeats_byte_for_byte(tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        SyntheticA().generate(tmp_path / name, SMALL | {"seed": seed})
    one, two, three = (tree(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert one["labels.csv"] != three["labels.csv"]
    assert one["splits.csv"] != three["splits.csv"]
    assert not set(one.values()) & {v for k, v in three.items() if k.startswith("images")}
    assert json.loads(one["world.json"]).items() >= {"domain": "synthetic_a", **SMALL}.items()
    picture = Image.open(tmp_path / "one" / next(k for k in one if k.startswith("images")))
    assert picture.size == (32, 64)


def test_a_new_world_replaces_the_old_one_but_nothing_else(tmp_path):
    dataset, root = SyntheticA(), tmp_path / "world"
    dataset.generate(root, SMALL | {"identities": 30})
    dataset.generate(root, SMALL)
    assert len(list(dataset.records(root))) == 120
    (root / "thesis.tex").write_text("years of work")
    with pytest.raises(PedbenchError, match="not a synthetic world"):
        dataset.generate(root, SMALL | {"seed": 4})
    assert (root / "thesis.tex").exists()


def test_a_world_that_is_there_is_not_made_again(tmp_path):
    dataset, root = SyntheticA(), tmp_path / "world"
    dataset.generate(root, SMALL)
    (root / "splits.csv").write_text("changed")
    dataset.generate(root, SMALL)
    assert (root / "splits.csv").read_text() == "changed"
    (root / "world.json").write_text("{")
    dataset.generate(root, SMALL)
    assert len(list(dataset.records(root))) == 120


def test_an_interrupted_generation_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_args, **_keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(PedbenchError, match="No space left"):
        SyntheticA().generate(tmp_path / "world", SMALL)
    assert not list(tmp_path.iterdir())


def test_bad_input_is_named(tmp_path):
    dataset = SyntheticA()
    with pytest.raises(PedbenchError, match="identites"):
        dataset.expected({"identites": 10})
    with pytest.raises(PedbenchError, match="seed"):
        dataset.generate(tmp_path / "world", {"seed": "one"})
    with pytest.raises(PedbenchError, match=r"labels\.csv"):
        list(dataset.records(tmp_path))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PedbenchError, match="not a synthetic world"):
        dataset.generate(tmp_path / "file", SMALL)
    with pytest.raises(PedbenchError, match="cannot be written"):
        dataset.generate(tmp_path / "file" / "world", SMALL)


def test_foreign_columns_are_refused(tmp_path):
    SyntheticB().generate(tmp_path / "world", SMALL)
    with pytest.raises(PedbenchError, match="columns differ"):
        list(SyntheticA().records(tmp_path / "world"))


def test_fake_is_tiny_and_repeatable(tmp_path):
    for name in ("one", "two"):
        SyntheticB().fake(tmp_path / name, np.random.default_rng(7))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    with (tmp_path / "one" / "labels.csv").open() as stream:
        assert len(list(csv.reader(stream))) == 121


def test_captions_state_only_what_is_true(people):
    rng = np.random.default_rng(2)
    texts = captions(people.labels, rng, count=4, coloured=1)
    spoken = set(re.findall(r"[a-z]+", " ".join(chain.from_iterable(texts))))
    assert spoken <= set(words())
    assert [len(row) for row in texts] == [4] * 60
    for labels, row in zip(people.labels, texts, strict=True):
        for k, text in enumerate(row):
            said = re.sub(r"^.*?(person|pedestrian) (is a person )?", "", text)
            true = {
                a.phrase if value == 1 else a.negative
                for a, value in zip(ATTRIBUTES, labels, strict=True)
                if a.name not in UNNAMED and (k == 3 or a.name not in COLOURED)
            }
            assert set(said.split(" and ")) <= true


def test_words_cover_every_text():
    known = set(words())
    for attribute in ATTRIBUTES:
        for text in (attribute.name, attribute.phrase, attribute.negative):
            assert set(text.split()) <= known
    assert {"a", "photo", "of", "this", "pedestrian", "the", "contains"} <= known
    assert words() == sorted(known)
