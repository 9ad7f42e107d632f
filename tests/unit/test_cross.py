"""Shared attributes: what the terms of a dataset say, and two datasets made one."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import PurePosixPath

import numpy as np
import pytest

from pedbench import estimate, registry
from pedbench.cite import bibliography
from pedbench.contracts import UNKNOWN, Attribute, BaseDataset, DatasetSpec, PedbenchError, Record
from pedbench.formats import cross
from pedbench.formats.cross import CrossDataset, cross_spec, names_in, read_shared, translate
from pedbench.formats.fakes import noise
from pedbench.intake import examine, header
from pedbench.plan import make_plan
from pedbench.results import located

MAPPED = ("peta", "pa100k", "rapv2")


@pytest.mark.parametrize(
    ("terms", "a", "b", "expected"),
    [
        ("a", 1, 0, 1),
        ("a", 0, 1, 0),
        ("a", UNKNOWN, 1, UNKNOWN),
        ("!a", 1, 0, 0),
        ("!a", 0, 0, 1),
        ("!a", UNKNOWN, 0, UNKNOWN),
        ("a|b", 0, 1, 1),
        ("a|b", UNKNOWN, 1, 1),
        ("a|b", UNKNOWN, 0, UNKNOWN),
        ("a|b", 0, 0, 0),
        ("!a|b", 0, 1, 0),
        ("!a|b", 0, 0, 1),
        ("!a|b", UNKNOWN, 0, UNKNOWN),
        ("a; b", 1, 1, 1),
        ("a; b", 0, 1, 0),
        ("a; b", UNKNOWN, 1, 0),
        ("a; b", 0, 0, UNKNOWN),
        ("a; b", 0, UNKNOWN, UNKNOWN),
    ],
)
def test_terms(terms, a, b, expected):
    assert translate(terms, {"a": a, "b": b}) == expected


@pytest.mark.parametrize("name", MAPPED)
def test_terms_name_attributes_of_the_dataset(name):
    known = {a.name for a in registry.load_dataset(name).SPEC.attributes}
    used = {term for (terms,) in read_shared(name).values() for term in names_in(terms)}
    assert used
    assert used <= known


@pytest.mark.parametrize("pair", list(combinations(MAPPED, 2)))
def test_every_pair_shares_attributes(pair):
    shared = read_shared(*pair)
    names = [attribute.name for attribute in shared]
    assert len(names) == len(set(names)) >= 8
    assert {attribute.region for attribute in shared} <= {"head", "upper", "lower", "feet", "whole"}
    assert all(a.phrase and a.negative and a.phrase != a.negative for a in shared)


def test_sunglasses_are_no_glasses():
    assert "Glasses" not in {attribute.name for attribute in read_shared("peta")}


class One(BaseDataset):
    """Four pictures; attributes hat and man."""

    SPEC = DatasetSpec(
        title="One",
        licence="free",
        attributes=(Attribute("hat", "head", "a", "b"), Attribute("man", "whole", "c", "d")),
        splits=("standard", "other"),
        counts={"standard": {"train": 2, "val": 1, "test": 1}},
    )
    LABELS = ((1, 0), (0, 1), (-1, 0), (0, -1))

    def records(self, root):
        if not (root / "pictures").is_dir():
            raise PedbenchError(f"{root}: no folder pictures\n{root}: no labels")
        for i, labels in enumerate(self.LABELS):
            subset = {"standard": ("train", "train", "val", "test")[i], "other": "train"}
            file = f"pictures/{i}.png"
            yield Record(f"{i}.png", labels, subset, identity=i - 1, camera=i, file=file)  # pyright: ignore[reportArgumentType]

    def fake(self, root, rng):
        for i in range(4):
            noise(root / "pictures" / f"{i}.png", rng, 8, 8)


class Two(One):
    """The same pictures, with the attributes cap, woman and boots."""

    SPEC = DatasetSpec(
        title="Two",
        licence="dear",
        attributes=tuple(Attribute(n, "head", "a", "b") for n in ("cap", "woman", "boots")),
        splits=("standard",),
        counts={"standard": {"train": 2, "val": 1, "test": 1}},
    )
    LABELS = ((0, 0, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1))


@pytest.fixture
def both(tmp_path, monkeypatch):
    """The class of One and Two in one, and a root with the fakes of both."""
    file = tmp_path / "shared.csv"
    file.write_text(
        "name,region,phrase,negative,one,two\nHat,head,in a hat,bareheaded,hat,cap\n"
        "Woman,whole,who is a woman,who is a man,!man,woman\nBoots,feet,in boots,barefoot,,boots\n"
    )
    monkeypatch.setattr(cross, "_FILE", file)
    parents = {"one": One, "two": Two}

    class Both(CrossDataset):
        PARENTS = parents
        SPEC = cross_spec(parents)

    Both().fake(tmp_path / "root", np.random.default_rng(0))
    return Both, tmp_path / "root"


def test_two_datasets_in_their_shared_attributes(both):
    dataset, root = both
    assert [a.name for a in dataset.SPEC.attributes] == ["Hat", "Woman"]
    assert dataset.SPEC.licence == "One: free; Two: dear"
    found = examine("both", dataset(), root, {}, header)
    assert not found.problems
    labels = {record.image: record.labels for record in found.records}
    assert labels["one/0.png"] == (1, 1)
    assert labels["one/2.png"] == (UNKNOWN, 1)
    assert labels["one/3.png"] == (0, UNKNOWN)
    assert labels["two/1.png"] == (1, 0)


def test_trained_on_one_and_tested_on_the_other(both):
    dataset, root = both
    records = list(dataset().records(root))
    for split, train, test in (
        ("one_to_two", "one", "two"),
        ("two_to_one", "two", "one"),
        ("one_to_one", "one", "one"),
    ):
        inside = {
            (record.subset[split], record.image.partition("/")[0])
            for record in records
            if split in record.subset
        }
        assert inside == {("train", train), ("val", train), ("test", test)}
    assert dataset.SPEC.counts["one_to_two"] == {"train": 2, "val": 1, "test": 1}


def test_persons_and_cameras_of_two_datasets_are_others(both):
    dataset, root = both
    records = list(dataset().records(root))
    for what in ("identity", "camera"):
        of = {
            name: {getattr(r, what) for r in records if r.image.startswith(name)} - {-1}
            for name in ("one", "two")
        }
        assert of["one"]
        assert not of["one"] & of["two"]
    assert sum(record.identity == -1 for record in records) == 2


def test_folders_of_the_parents_are_linked_and_not_written(both, tmp_path):
    dataset, root = both
    options = {"roots": {"one": str(root / "one"), "two": str(root / "two")}}
    before = sorted(root.rglob("*"))
    linked = tmp_path / "results" / "both"
    for _ in range(2):
        dataset().generate(linked, options)
    assert not examine("both", dataset(), linked, options, header).problems
    assert sorted(root.rglob("*")) == before
    (root / "two").rename(tmp_path / "moved")
    dataset().generate(linked, {"roots": {"one": root / "one", "two": tmp_path / "moved"}})
    assert len(list(dataset().records(linked))) == 8


def test_a_folder_in_the_place_of_a_link_is_left_alone(both, tmp_path):
    dataset, root = both
    with pytest.raises(PedbenchError, match="in the place of a link"):
        dataset().generate(root, {"roots": {"one": tmp_path / "elsewhere"}})


def test_problems_of_both_parents_are_told(both, tmp_path):
    dataset, _ = both
    (tmp_path / "empty").mkdir()
    found = examine("both", dataset(), tmp_path / "empty", {}, header)
    assert [problem.split(":")[1].strip() for problem in found.problems] == ["one"] * 2 + [
        "two"
    ] * 2


def test_what_it_is_made_of_is_cited():
    cited = bibliography([], ["pa100k_rapv2"])
    assert "% pa100k\n@" in cited
    assert "% rapv2\n@" in cited


def test_a_plan_takes_the_folders_of_the_parents(monkeypatch, tmp_path):
    words, data = tmp_path / "words.csv", tmp_path / "data"
    for name in ("PA100K", "RAP2", "both"):
        (data / name).mkdir(parents=True)
    words.write_text("attribute,phrase,negative\nHat,in a cap,with no cap\n")
    config = {
        "protocol": "embedded",
        "backbone": "tiny_clip",
        "datasets": ["pa100k_rapv2/pa100k_to_rapv2"],
        "methods": ["zero_shot"],
        "seeds": [0],
        "roots": {"pa100k": str(data / "PA100K")},
        "dataset_options": {"pa100k_rapv2": {"check_counts": False, "phrases": str(words)}},
    }
    monkeypatch.delenv("PEDBENCH_ROOT_RAPV2", raising=False)
    with pytest.raises(PedbenchError, match=r"rapv2 .* must be obtained first"):
        make_plan(config)
    monkeypatch.setenv("PEDBENCH_ROOT_RAPV2", str(data / "RAP2"))
    plan = make_plan(config)
    source = plan.sources["pa100k_rapv2"]
    roots = {"pa100k": f"{data}/PA100K", "rapv2": f"{data}/RAP2"}
    assert source.given == {"check_counts": False, "phrases": str(words), "roots": roots}
    assert str(words) in source.inputs
    assert {cross.SHARED, "datasets/pa100k.py", "datasets/rapv2.py"} < set(source.inputs)
    assert estimate.images_of(plan, "pa100k_rapv2") == 100_000 + 84_928
    shared = json.dumps(located(plan.as_json(), PurePosixPath("elsewhere")))
    assert str(tmp_path) not in shared
    config["roots"] = {"pa100k_rapv2": str(data / "both")}
    assert "roots" not in make_plan(config).sources["pa100k_rapv2"].given
    with pytest.raises(PedbenchError, match=r"pa100k_rapv2 .*/nowhere is no folder"):
        make_plan({**config, "roots": {"pa100k_rapv2": "/nowhere"}})
    words.write_text("attribute,phrase,negative\nHatt,in a cap,with no cap\n")
    with pytest.raises(PedbenchError, match="'Hatt' is not an attribute; did you mean 'Hat'"):
        make_plan(config)
