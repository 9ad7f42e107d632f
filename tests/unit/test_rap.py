"""RAPv1, RAPv2 and RAP-ZS: told apart, read by name, and what their users get wrong."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
from helpers import beside_counts

from pedbench import registry
from pedbench.contracts import PedbenchError
from pedbench.formats import rap
from pedbench.formats.fakes import cell, noise, write_mat
from pedbench.formats.matlab import read_mat
from pedbench.intake import examine, header
from pedbench.plan import make_plan

MAT = "RAP_annotation/RAP_annotation.mat"
both = pytest.mark.parametrize("name", ["rapv1", "rapv2"])
LABELS = {"rapv1": "label", "rapv2": "data"}


def fake(name, root):
    registry.load_dataset(name).fake(root, np.random.default_rng(0))
    return root


@pytest.fixture
def root(name, tmp_path):
    return fake(name, tmp_path / "RAP")


@pytest.fixture
def zero_shot(tmp_path):
    return fake("rap_zs", tmp_path / "RAP2")


def look(name, root, options=None):
    options = {"check_counts": False} if options is None else options
    return examine(name, registry.load_dataset(name), root, options, header)


def problem_of(name, root):
    (problem,) = look(name, root).problems
    return problem


def struct_of(root):
    return read_mat(root / MAT)["RAP_annotation"]


def rewrite(root, struct):
    cells = {k: cell(v) if isinstance(v, list) else v for k, v in struct.items()}
    write_mat(root / MAT, {"RAP_annotation": cells})


def labels_of(name, root):
    attributes = [a.name for a in registry.load_dataset(name).SPEC.attributes]
    return {r.image: dict(zip(attributes, r.labels, strict=True)) for r in look(name, root).records}


@pytest.mark.parametrize("name", ["rapv1", "rapv2", "rap_zs"])
def test_fake_tree_has_nothing_to_mend(name, root):
    found = look(name, root)
    assert (
        not found.problems and len(found.records) == {"rapv1": 36, "rapv2": 40, "rap_zs": 30}[name]
    )


@both
def test_records_are_the_rows_of_the_file(name, root):
    struct, records = struct_of(root), {r.image: r for r in look(name, root).records}
    names = struct["imagesname" if name == "rapv1" else "name"]
    identities = struct["identity" if name == "rapv1" else "person_identity"]
    part = struct["partion" if name == "rapv1" else "partition_attribute"][2]
    first = "trainval" if name == "rapv1" else "standard"
    assert names != sorted(names) and set(names) == set(records)
    for row, image in enumerate(names):
        record = records[image]
        subset = next(key for key, indices in part.items() if row + 1 in indices)
        assert f"{record.subset[f'{first}_3']}_index" == subset
        assert record.subset["trainval_3"] == ("test" if subset == "test_index" else "train")
        assert record.identity == identities[row]
        assert record.camera == int(image[3:5])
    assert {r.identity for r in records.values()} >= {-1, 1}


@both
def test_columns_are_found_by_name_wherever_they_are(name, root):
    before, struct = labels_of(name, root), struct_of(root)
    heads = "attribute_eng" if name == "rapv1" else "attribute"
    order = np.random.default_rng(1).permutation(len(struct[heads]))
    struct[heads] = [struct[heads][place] for place in order]
    struct[LABELS[name]] = struct[LABELS[name]][:, order]
    if name == "rapv2":
        place_of = {int(old): new for new, old in enumerate(order, start=1)}
        selected = struct["selected_attribute"]
        struct["selected_attribute"] = np.array([place_of[int(one) - 1] for one in selected])
    rewrite(root, struct)
    assert labels_of(name, root) == before


@both
def test_other_spellings_are_accepted(name, root):
    before, struct = labels_of(name, root), struct_of(root)
    heads = "attribute_eng" if name == "rapv1" else "attribute"
    other = {"action-Pusing": "action-Pushing", "Femal": "Female ", "hs-Hat": "hs-hat"}
    struct[heads] = [other.get(head, head) for head in struct[heads]]
    old, new = (
        ("partion", "partition")
        if name == "rapv1"
        else ("partition_attribute", "partion_attribute")
    )
    struct[new] = struct.pop(old)
    rewrite(root, struct)
    assert labels_of(name, root) == before


def test_a_name_again_beside_the_selected_columns_is_no_matter(tmp_path):
    root = fake("rapv2", tmp_path / "RAP2")
    before, struct = labels_of("rapv2", root), struct_of(root)
    place = struct["attribute"].index("unused-5")
    struct["attribute"][place] = "hs-Hat"
    rewrite(root, struct)
    assert labels_of("rapv2", root) == before


def test_an_attribute_that_is_absent_is_named(tmp_path):
    root = fake("rapv1", tmp_path / "RAP")
    struct = struct_of(root)
    struct["attribute_eng"][12] = "hs-Cap"
    rewrite(root, struct)
    absent, there = look("rapv1", root).problems
    assert "attribute 'hs-Hat' is not in the annotation" in absent and "hs-Cap" in there


@both
def test_a_row_in_two_subsets_is_refused(name, root):
    struct = struct_of(root)
    part = struct["partion" if name == "rapv1" else "partition_attribute"][1]
    part["test_index"][0] = part["train_index"][0]
    rewrite(root, struct)
    assert f"partition 2: row {part['train_index'][0]} is listed as train and again as test" in (
        problem_of(name, root)
    )


@both
def test_a_file_of_another_shape_is_told(name, root):
    whole = struct_of(root)
    version = {"rapv1": rap.V1, "rapv2": rap.V2}[name]
    rewrite(root, {**whole, version.identities: "persons"})
    assert "annotation of an unexpected shape" in problem_of(name, root)
    rewrite(root, {**whole, version.halves: np.ones((3, 3))})
    assert "ndarray in place of a struct with the field 'train_identity'" in problem_of(name, root)
    write_mat(root / MAT, {"RAP_annotation": np.ones((3, 3))})
    assert "ndarray in place of a struct" in problem_of(name, root)


@both
def test_mistake_10_indices_from_0(name, root):
    struct = struct_of(root)
    for part in struct["partion" if name == "rapv1" else "partition_attribute"]:
        for indices in part.values():
            indices -= 1
    rewrite(root, struct)
    assert "indices start at 0" in problem_of(name, root)


def test_sums_and_the_older_release_of_rapv1(tmp_path, monkeypatch):
    root, attributes = (
        fake("rapv1", tmp_path / "RAP"),
        registry.load_dataset("rapv1").SPEC.attributes,
    )
    monkeypatch.setattr(rap, "V1", replace(rap.V1, images=36))
    told = look("rapv1", root).remarks
    assert any("positive labels, but the known release has" in remark for remark in told)
    struct = struct_of(root)
    ones = int((struct["label"][:, : len(attributes)] == 1).sum())
    monkeypatch.setattr("pedbench.datasets.rapv1.ONES", ones)
    assert "persons and images for re-identification" in problem_of("rapv1", root)
    monkeypatch.setattr("pedbench.datasets.rapv1.HALVES", ((8, 16), (7, 14)))
    assert not beside_counts(look("rapv1", root).remarks)
    struct["label"][:, struct["attribute_eng"].index("lb-Skirt")] = 0
    rewrite(root, struct)
    (remark,) = beside_counts(look("rapv1", root).remarks)
    assert "lb-Skirt is positive in 0.00%" in remark and "older release" in remark


def test_shares_of_positives_of_rapv2_are_compared(tmp_path, monkeypatch):
    root = fake("rapv2", tmp_path / "RAP2")
    monkeypatch.setattr(rap, "V2", replace(rap.V2, images=40))
    remark, persons = beside_counts(look("rapv2", root).remarks)
    assert "15 persons are known in 30 images, but 2,589 in 26,638" in persons
    assert "of 54 attributes have another share" in remark and "hs-BaldHead" in remark
    inside = [r.labels for r in look("rapv2", root).records if r.subset["trainval"] == "train"]
    ratios = tuple((np.array(inside) == 1).mean(0) + 0.0019)
    monkeypatch.setattr("pedbench.datasets.rapv2.RATIOS", ratios)
    monkeypatch.setattr("pedbench.datasets.rapv2.PERSONS", 15)
    monkeypatch.setattr("pedbench.datasets.rapv2.IMAGES_OF_THEM", 30)
    assert not beside_counts(look("rapv2", root).remarks)


@both
def test_counts_of_the_release_are_asserted(name, root):
    problems = "\n".join(look(name, root, {}).problems)
    train, test = {"rapv1": (33268, 8317), "rapv2": (67943, 16985)}[name]
    for split in ("trainval", "trainval_5"):
        for subset, count in (("train", train), ("test", test)):
            assert re.search(rf"split '{split}': .*{subset} \d+ of {count} images", problems)
    assert (name == "rapv1") == ("of 1729 identities" in problems)


@both
def test_mistake_01_one_folder_too_deep(name, root, tmp_path):
    assert [r.image for r in look(name, tmp_path).records] == [
        r.image for r in look(name, root).records
    ]


@both
def test_mistake_11_annotation_of_the_other_release(name, root, tmp_path):
    other = {"rapv1": "rapv2", "rapv2": "rapv1"}[name]
    (fake(other, tmp_path / "other") / MAT).replace(root / MAT)
    told = problem_of(name, root)
    assert f"this is the annotation of {registry.load_dataset(other).SPEC.title}" in told
    assert "x 92" in told and "x 152" in told and f"as the root of {other}" in told


@both
def test_mistake_12_other_folder_of_pictures(name, root):
    (root / "RAP_dataset").rename(root / "RAP_datasets")
    found = look(name, root)
    assert not found.problems
    assert {r.file.partition("/")[0] for r in found.records} == {"RAP_datasets"}


@both
def test_mistake_12_pictures_of_the_other_release(name, root, tmp_path):
    other = {"rapv1": "rapv2", "rapv2": "rapv1"}[name]
    (root / "RAP_dataset").rename(root / "own")
    (fake(other, tmp_path / "other") / "RAP_dataset").rename(root / "RAP_dataset")
    assert f"they are those of {registry.load_dataset(other).SPEC.title}" in problem_of(name, root)


@pytest.mark.parametrize("name", ["rapv1", "rapv2", "rap_zs"])
def test_mistake_13_converted_pictures(name, root):
    before = look(name, root).records
    for path in (root / "RAP_dataset").glob("*.png"):
        noise(path.with_suffix(".jpg"), np.random.default_rng(0))
        path.unlink()
    found = look(name, root)
    assert not found.problems
    assert any(f"{len(before)} images have another ending" in r for r in found.remarks)
    assert [(r.image, r.labels) for r in found.records] == [(r.image, r.labels) for r in before]


@both
def test_mistake_14_label_2_is_unknown(name, root):
    struct = struct_of(root)
    image = struct["imagesname" if name == "rapv1" else "name"][3]
    labels = labels_of(name, root)
    unknown = {(i, a) for i, row in labels.items() for a, value in row.items() if value == -1}
    assert unknown == {(image, "Female" if name == "rapv1" else "Femal")}


@both
def test_mistake_14_other_labels_are_named_with_their_place(name, root):
    struct = struct_of(root)
    column = struct["attribute_eng" if name == "rapv1" else "attribute"].index("hs-Hat")
    struct[LABELS[name]][[4, 7], column] = 3
    rewrite(root, struct)
    image = struct["imagesname" if name == "rapv1" else "name"][4]
    told = problem_of(name, root)
    assert f"row 5 ({image}), 'hs-Hat': label 3" in told and "(2 such labels in all)" in told


@both
def test_mistake_28_numbers_that_must_be_equal(name, root):
    struct = struct_of(root)
    struct[LABELS[name]] = struct[LABELS[name]][:-1]
    rewrite(root, struct)
    count = {"rapv1": 36, "rapv2": 40}[name]
    assert f"{count} names, {count - 1} rows of labels" in problem_of(name, root)


@pytest.mark.parametrize("number", ["", "_3"])
def test_mistake_29_rapv1_has_no_validation_images(tmp_path, number):
    config = {
        "protocol": "embedded",
        "presets": ["tiny_clip"],
        "backbone": "tiny_clip",
        "datasets": [f"rapv1/standard{number}"],
        "methods": ["zero_shot"],
        "seeds": [0],
        "roots": {"rapv1": str(tmp_path)},
    }
    reason = f"rapv1 has no split 'standard{number}': .* use 'trainval{number}'"
    with pytest.raises(PedbenchError, match=reason):
        make_plan(config)
    make_plan({**config, "datasets": [f"rapv1/trainval{number}"]})


def test_rap_zs_leaves_out_unknown_persons_and_one_attribute(zero_shot):
    spec = registry.load_dataset("rap_zs").SPEC
    parent = registry.load_dataset("rapv2").SPEC
    assert {a.name for a in parent.attributes} - {a.name for a in spec.attributes} == {"Age46-60"}
    assert len(spec.attributes) == 53
    records = look("rap_zs", zero_shot).records
    assert all(r.identity > 0 for r in records)
    both_ = labels_of("rapv2", zero_shot)
    for image, labels in labels_of("rap_zs", zero_shot).items():
        assert labels == {k: v for k, v in both_[image].items() if k != "Age46-60"}


def division(root):
    return pickle.loads((root / "dataset_zs_run0.pkl").read_bytes())


def redivide(root, content):
    (root / "dataset_zs_run0.pkl").write_bytes(pickle.dumps(content))


def test_rap_zs_follows_the_pickle(zero_shot):
    content, records = division(zero_shot), look("rap_zs", zero_shot).records
    for subset in ("train", "val", "test"):
        images = {content["image_name"][i] for i in content["partition"][subset]}
        assert {r.image for r in records if r.subset["zero_shot"] == subset} == images
    for record in records:
        expected = {"val": "train"}.get(record.subset["zero_shot"], record.subset["zero_shot"])
        assert record.subset["zero_shot_trainval"] == expected


def test_rap_zs_without_its_pickle_has_the_rebuilt_split_only(zero_shot):
    (zero_shot / "dataset_zs_run0.pkl").unlink()
    found = look("rap_zs", zero_shot)
    assert not found.problems
    assert {split for r in found.records for split in r.subset} == {"zero_shot_rebuilt"}
    assert any("dataset_zs_run0.pkl is not there" in remark for remark in found.remarks)
    assert any("it is not the published" in remark for remark in found.remarks)


def test_rap_zs_persons_in_two_subsets_are_named(zero_shot):
    content = division(zero_shot)
    parts = content["partition"]
    parts["train"], moved = parts["train"][1:], parts["train"][:1]
    parts["test"] = np.concatenate([parts["test"], moved])
    redivide(zero_shot, content)
    problems = look("rap_zs", zero_shot).problems
    assert any(
        "split 'zero_shot': 1 identity" in p and "more than one subset" in p for p in problems
    )


def test_rap_zs_division_of_unknown_persons_is_refused(zero_shot):
    content, identities = division(zero_shot), struct_of(zero_shot)["person_identity"]
    content["partition"]["test"] = np.flatnonzero(identities < 0)
    redivide(zero_shot, content)
    assert "divides 10 images whose person is unknown" in problem_of("rap_zs", zero_shot)


def test_mistake_27_pickle_that_runs_something(zero_shot):
    class Hostile:
        def __reduce__(self):
            return (exec, ("raise SystemExit('ran')",))

    redivide(zero_shot, {**division(zero_shot), "description": Hostile()})
    assert "asks for 'builtins.exec'" in problem_of("rap_zs", zero_shot)
