"""PETA and PETA-ZS: the annotation, the published division, and what their users get wrong.

The real ``PETA.mat`` is read where ``PEDBENCH_PETA_MAT`` names it.
"""

from __future__ import annotations

import csv
import os
import pickle
import re
import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers import beside_counts
from scipy.io import loadmat, savemat

from pedbench.contracts import SUBSETS, PedbenchError, Remark
from pedbench.datasets import peta, peta_zs
from pedbench.formats.fakes import cell
from pedbench.formats.zero_shot import PICKLE, published, rebuilt
from pedbench.intake import build_manifest, examine, header
from pedbench.paths import resource

UNCHECKED = {"check_counts": False}
NAMES = [a.name for a in peta.ATTRIBUTES]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fake") / "PETA"
    peta_zs.Dataset().fake(folder, np.random.default_rng(0))
    return folder


@pytest.fixture
def root(tmp_path, untouched):
    """A fake tree of PETA with the pickle of PETA-ZS."""
    return Path(shutil.copytree(untouched, tmp_path / "PETA"))


def look(root, options=UNCHECKED):
    return examine("peta", peta.Dataset(), root, options, header)


def look_zs(root, options=UNCHECKED):
    return examine("peta_zs", peta_zs.Dataset(), root, options, header)


def change(root, **fields):
    """The annotation with some fields replaced, or dropped where None."""
    struct = loadmat(root / "PETA.mat")["peta"][0, 0]
    kept = {name: struct[name] for name in struct.dtype.names if name not in fields}
    new = {name: value for name, value in fields.items() if value is not None}
    savemat(root / "PETA.mat", {"peta": {**kept, **new}}, oned_as="column")


def raw(root, field):
    return loadmat(root / "PETA.mat")["peta"][0, 0][field]


def repickle(root, **changes):
    """The pickle with some entries replaced, or dropped where None."""
    content = {**pickle.loads((root / PICKLE).read_bytes()), **changes}
    content = {key: value for key, value in content.items() if value is not None}
    (root / PICKLE).write_bytes(pickle.dumps(content))


# The annotation


def test_fake_trees_have_nothing_to_mend(root):
    found = look(root)
    assert not found.problems and not beside_counts(found.remarks)
    assert len(found.records) == 40
    first = found.records[0]
    assert first.image == "00001.png" and first.file == "images/00001.png"
    assert {split for r in found.records for split in r.subset} == set(peta.Dataset.SPEC.splits)
    assert not look_zs(root).problems


def test_labels_are_those_of_the_named_columns(root):
    found = look(root).records
    names = [str(name[0]) for name in raw(root, "attribute")[:, 0]]
    data = raw(root, "data").astype(int)
    for place, name in enumerate(NAMES):
        assert [r.labels[place] for r in found] == data[:, 4 + names.index(name)].tolist()
    assert names[:35] != NAMES  # the order of the file is not the evaluated one
    assert [r.identity for r in found] == data[:, 1].tolist()


def test_labels_follow_the_names_when_columns_move(root):
    before = [r.labels for r in look(root).records]
    data, names = raw(root, "data"), raw(root, "attribute")
    order = np.random.default_rng(1).permutation(len(names))
    selected = 5 + np.flatnonzero(order < 35)
    data = np.concatenate([data[:, :4], data[:, 4:][:, order]], axis=1)
    change(root, data=data, attribute=names[order], selected_attribute=selected[None])
    assert [r.labels for r in look(root).records] == before


def test_partitions_are_those_of_the_file(root):
    found = look(root).records
    partitions = raw(root, "partion_attribute")
    for k, suffix in enumerate(peta.PARTITIONS):
        for subset in SUBSETS:
            rows = partitions[k, 0][subset][0, 0][:, 0].astype(int) - 1
            assert {found[row].subset[f"standard{suffix}"] for row in rows} == {subset}
            wanted = "train" if subset == "val" else subset
            assert {found[row].subset[f"trainval{suffix}"] for row in rows} == {wanted}


def test_the_field_of_partitions_may_be_spelled_well(root):
    before = look(root).records
    change(root, partion_attribute=None, partition_attribute=raw(root, "partion_attribute"))
    assert look(root).records == before


def test_what_is_off_in_the_annotation_is_told_at_once(root):
    data, partitions = raw(root, "data").copy(), raw(root, "partion_attribute").copy()
    data[[2, 3]] = data[[3, 2]]
    partitions[1, 0]["test"][0, 0] = partitions[1, 0]["test"][0, 0][1:]
    partitions[3, 0]["val"][0, 0] = partitions[3, 0]["train"][0, 0][:2]
    change(root, data=data, partion_attribute=partitions)
    told = "\n".join(look(root).problems)
    assert "row 3 has 4" in told
    assert re.search(r"standard_2: 1 images, first row \d+, in no subset", told)
    assert re.search(r"standard_4: row \d+ is listed as train and again as val", told)
    change(root, partion_attribute=partitions[:4])
    assert "4 partitions, but the release has 5" in "\n".join(look(root).problems)


def test_absent_attributes_are_named(root):
    names = raw(root, "attribute").copy()
    names[10, 0] = names[16, 0] = "else"
    change(root, attribute=names)
    told = "\n".join(look(root).problems)
    assert "'accessoryHat' is not in" in told and "'personalMale' is not in" in told


def test_labels_other_than_0_and_1_are_named(root):
    data = raw(root, "data").copy()
    data[6, 4 + 10] = 2
    change(root, data=data)
    assert "(00007.png), 'accessoryHat': label 2" in look(root).problems[0]


def test_the_file_of_another_dataset_is_recognised(root):
    savemat(root / "PETA.mat", {"RAP_annotation": {"data": np.zeros((2, 2))}})
    assert "no field 'peta' (it has: RAP_annotation)" in look(root).problems[0]
    savemat(root / "PETA.mat", {"peta": np.zeros((2, 2))})
    assert "'peta' is no struct" in look(root).problems[0]


def test_partitions_of_another_shape_are_told(root):
    partitions = raw(root, "partion_attribute").copy()
    for wrong, told in ((partitions[0, 0], "str"), (np.ones((5, 3)), "ndarray")):
        change(root, partion_attribute=wrong)
        said = "\n".join(look(root).problems)
        assert f"{told} in place of a struct with the field 'train'" in said
        assert "obtain it again" in said


def test_counts_of_the_release_are_asked_for(root):
    told = "\n".join(look(root, {}).problems)
    for split, subset, images, persons in (
        ("standard", "val", 1900, 1264),
        ("standard_5", "test", 7600, 4030),
        ("trainval_3", "train", 11_400, 5745),
    ):
        where = rf"split '{split}': .*{subset} \d+ of"
        assert re.search(f"{where} {images} images", told)
        assert re.search(f"{where} {persons} identities", told)
    assert told.count("\n") == 9  # a line for each split


# Mistakes


@pytest.mark.parametrize("nested", [False, True])
def test_mistake_06_the_original_release(tmp_path, nested):
    root = tmp_path / "PETA"
    sources = root / "PETA dataset" if nested else root
    for source in ("3DPeS", "VIPeR"):
        (sources / source / "archive").mkdir(parents=True)
        (sources / source / "archive" / "Label.txt").write_text("1 personalMale\n")
    told = "\n".join(look(root).problems)
    assert "original release of CUHK" in told and "obtain the unified release" in told
    assert "3DPeS, CAVIAR4REID, CUHK" in told


def test_mistake_06_old_names_in_the_folder_of_images(root):
    for picture in (root / "images").glob("0*.png"):
        picture.rename(picture.with_name(f"1_{picture.stem}_FRAME.png"))
    told = "\n".join(look(root).problems)
    assert "no 00001.png nor any other image of the annotation, but 40 others" in told
    assert "original release of CUHK" in told


@pytest.mark.parametrize("name", ["dataset.pkl", "dataset_all.pkl"])
@pytest.mark.parametrize("nested", [False, True])
def test_mistake_07_pickle_in_place_of_the_mat(root, name, nested):
    (root / "PETA.mat").unlink()
    (root / PICKLE).unlink()
    (root / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    told = "\n".join(look(root.parent if nested else root).problems)
    assert "PETA.mat" in told and "put the released PETA.mat beside images" in told
    assert f"{root / name}: made from PETA.mat" in told and "is not read" in told


def test_mistake_08_six_digits(root):
    before = look(root).records
    for picture in (root / "images").glob("0*.png"):
        picture.rename(picture.with_name(f"0{picture.name}"))
    found = look(root)
    assert not found.problems
    assert "six digits" in found.remarks[0]
    assert [(r.image, r.labels) for r in found.records] == [(r.image, r.labels) for r in before]
    assert found.records[0].file == "images/000001.png"


def test_mistake_08_jpg_in_place_of_png(root):
    for picture in (root / "images").glob("0*.png"):
        picture.rename(picture.with_suffix(".jpg"))
    found = look(root)
    assert not found.problems
    assert "40 images have another ending" in found.remarks[0]
    assert found.records[0].image == "00001.png"
    assert found.records[0].file == "images/00001.jpg"


def test_mistake_09_columns_in_front_of_the_labels_are_gone(root):
    change(root, data=raw(root, "data")[:, 4:])
    assert "labels would be shifted" in look(root).problems[0]


def test_mistake_09_selected_columns_shifted_by_four(root):
    change(root, selected_attribute=raw(root, "selected_attribute") - 4)
    assert "'selected_attribute' is shifted by 4" in look(root).problems[0]


def test_mistake_09_labels_shifted_in_a_file_of_full_size(tmp_path):
    """Names and shapes are right then: only the sums over the labels tell."""
    peta.fake_annotation(tmp_path / "PETA.mat", np.random.default_rng(0), 19_000, 8699)
    with pytest.raises(PedbenchError) as told:
        peta.read_annotation(tmp_path / "PETA.mat")
    assert "995 in train, 210 in val, 725 in test expected" in str(told.value)
    assert "and 32 other attributes; columns are shifted" in str(told.value)
    assert "(198, 18798, 4) expected" in str(told.value)
    assert "images without any attribute, only 09933.png expected" in str(told.value)


def test_mistake_09_exchanged_columns_have_other_positives():
    """As where two names changed places: totals and ages are right then."""
    with resource("datasets/positives_peta.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    standard = np.repeat(SUBSETS, [9500, 1900, 7600])
    labels = np.zeros((19_000, len(NAMES)), np.int8)
    for subset in SUBSETS:
        first = np.argmax(standard == subset)
        for column, row in enumerate(rows):
            labels[first : first + int(row[subset]), column] = 1
    male, jeans = NAMES.index("personalMale"), NAMES.index("lowerBodyJeans")
    images = [f"{number:05d}.png" for number in range(1, 19_001)]
    told = peta._wrong_sums(images, labels, standard.tolist())
    assert not [problem for problem in told if "positive labels" in problem]
    labels[:, [male, jeans]] = labels[:, [jeans, male]]
    told = list(peta._wrong_sums(images, labels, standard.tolist()))
    assert "'personalMale' has" in told[0] and "'lowerBodyJeans' has" in told[0]
    assert "other attributes" not in told[0]


def test_mistake_10_indices_that_start_at_0(root):
    partitions = raw(root, "partion_attribute").copy()
    for subset in SUBSETS:
        partitions[0, 0][subset][0, 0] = partitions[0, 0][subset][0, 0] - 1
    change(root, partion_attribute=partitions)
    assert "standard: indices start at 0" in look(root).problems[0]


def test_mistake_10_indices_beyond_the_rows(root):
    change(root, data=raw(root, "data")[:30])
    assert "but there are 30 rows" in look(root).problems[0]


def test_mistake_27_a_malicious_pickle_of_the_division(root):
    trap = root.parent / "trap"
    (root / PICKLE).write_bytes(f"cos\nsystem\n(S'touch {trap}'\ntR.".encode())
    told = look_zs(root).problems
    assert len(told) == 1 and "asks for 'os.system'" in told[0] and "nothing" in told[0]
    assert not trap.exists()


# The division by person


def test_zero_shot_is_that_of_the_pickle(root):
    content = pickle.loads((root / PICKLE).read_bytes())
    found = {r.image: r for r in look_zs(root).records}
    for subset in SUBSETS:
        rows = content["partition"][subset]
        assert len(rows)
        assert {found[content["image_name"][row]].subset["zero_shot"] for row in rows} == {subset}
    merged = {(r.subset["zero_shot"], r.subset["zero_shot_trainval"]) for r in found.values()}
    assert merged == {("train", "train"), ("val", "train"), ("test", "test")}
    assert [r.labels for r in found.values()] == [r.labels for r in look(root).records]


@pytest.mark.parametrize("place", ["..", "PETA", "zero_shot"])
def test_the_pickle_is_found_nearby(root, place):
    before = look_zs(root).records
    folder = root / place
    folder.mkdir(exist_ok=True)
    (root / PICKLE).rename(folder / PICKLE)
    outside = place == ".."  # of the release, but in the folder that the user named
    found = look_zs(root.parent if outside else root).records
    assert [r.subset for r in found] == [r.subset for r in before]


def test_pictures_are_matched_by_name_not_by_position(root):
    before = look_zs(root).records
    content = pickle.loads((root / PICKLE).read_bytes())
    order = np.random.default_rng(1).permutation(40)
    partition = {key: np.argsort(order)[rows] for key, rows in content["partition"].items()}
    names = np.array(content["image_name"])[order]
    for folder in ("", "images/", "/home/somebody/PETA/images/"):
        repickle(root, image_name=[f"{folder}{name}" for name in names], partition=partition)
        assert look_zs(root).records == before
    repickle(root, image_name=[f"CAM01-{name}" for name in names], partition=partition)
    assert "are not in the annotation (first: CAM01-" in look_zs(root).problems[0]


def test_other_keys_of_the_partition_are_known(root):
    before = look_zs(root).records
    partition = pickle.loads((root / PICKLE).read_bytes())["partition"]
    repickle(root, partition={f"{key}_idx": rows.tolist() for key, rows in partition.items()})
    assert look_zs(root).records == before


@pytest.mark.parametrize(
    ("partition", "told"),
    [
        ({"train": [np.arange(5)] * 5}, "holds 5 divisions: this is the pickle of the ordinary"),
        ({"test": np.array([1, 40])}, "indices from 1 to 40, but the released ones count 40"),
        ({"test": np.array([-1, 3])}, "indices from -1 to 3"),
        ({"test": np.array([0.5])}, "'test' is no list of whole numbers"),
        ({"val": None}, "neither val nor val_idx (it has: train, trainval, test)"),
        ({"val": np.arange(40)}, "again as"),
    ],
)
def test_wrong_partitions_are_explained(root, partition, told):
    given = pickle.loads((root / PICKLE).read_bytes())["partition"] | partition
    repickle(root, partition={key: rows for key, rows in given.items() if rows is not None})
    problems = look_zs(root).problems
    assert len(problems) == 1 and told in problems[0] and PICKLE in problems[0]


def test_another_pickle_is_recognised(root):
    repickle(root, image_name=None)
    assert "this is not the pickle of a zero-shot split" in look_zs(root).problems[0]


def test_persons_in_two_subsets_are_told(root):
    partition = pickle.loads((root / PICKLE).read_bytes())["partition"]
    train, test = partition["train"], partition["test"]
    twice = np.concatenate([train, test[:1]])
    identities = peta.read_annotation(root / "PETA.mat").identities
    shared = int(identities[test[0]])
    if (identities[test] == shared).sum() == 1:  # then one of its images is left to test
        twice, test = np.concatenate([train[1:], test[:1]]), np.concatenate([test, train[:1]])
    repickle(root, partition={**partition, "train": twice, "test": test[1:]})
    assert any("in more than one subset" in problem for problem in look_zs(root).problems)


def test_counts_of_the_division_are_asked_for(root):
    told = "\n".join(look_zs(root, {}).problems)
    assert re.search(r"'zero_shot': train \d+ of 11241 images", told)
    assert re.search(r"'zero_shot': .*val \d+ of 1703 identities", told)
    assert re.search(r"'zero_shot_trainval': train \d+ of 15067 images", told)


def test_another_division_of_full_size_is_remarked(tmp_path):
    """As the version of 2020, whose file may have been given the released name."""
    names = [f"{number:05d}.png" for number in range(1, 19_001)]
    parts = dict(zip(SUBSETS, np.split(np.arange(19_000), [11_051, 14_949]), strict=True))
    content = {"image_name": names, "partition": parts}
    (tmp_path / PICKLE).write_bytes(pickle.dumps(content))
    with pytest.warns(Remark, match=r"train 11,051, val 3,898, test 4,051, .*peta_new\.pkl"):
        published(tmp_path / PICKLE, names, peta_zs.COUNTS)
    parts = np.split(np.arange(19_000), [11_241, 15_067])
    content["partition"] = dict(zip(SUBSETS, parts, strict=True))
    (tmp_path / PICKLE).write_bytes(pickle.dumps(content))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        published(tmp_path / PICKLE, names, peta_zs.COUNTS)


@pytest.mark.parametrize("other", ["", "peta_new.pkl"])
def test_without_the_pickle_only_the_published_splits_are_empty(root, tmp_path, other):
    (root / PICKLE).unlink()
    if other:
        (root / other).write_bytes(b"")
    found = look_zs(root, {})
    assert any(PICKLE in r and "obtain it from" in r and other in r for r in found.remarks)
    assert {split for r in found.records for split in r.subset} == {"zero_shot_rebuilt"}
    assert not any("'zero_shot'" in problem for problem in found.problems)
    made = build_manifest("peta_zs", peta_zs.Dataset(), root, UNCHECKED, tmp_path / "m.parquet")
    assert len(made.subset("zero_shot_rebuilt", "train").rows)
    for split in ("zero_shot", "zero_shot_trainval"):
        with pytest.raises(PedbenchError, match=f"{split} has no train images: .*{PICKLE} is not"):
            made.subset(split, "train")


def test_rebuilt_division_is_by_person_and_repeatable():
    identities = [*range(1, 1001), 5, 5, -1]
    with pytest.warns(Remark, match="not the published zero-shot split"):
        persons = rebuilt("peta_zs", identities)
    assert Counter(persons.values()) == {"train": 600, "val": 200, "test": 200}
    with pytest.warns(Remark):
        assert rebuilt("peta_zs", identities[::-1]) == persons
        assert rebuilt("rap_zs", identities) != persons


# The real file


@pytest.fixture(scope="module")
def real() -> peta.Annotation:
    file = os.environ.get("PEDBENCH_PETA_MAT")
    if not file:
        pytest.skip("PEDBENCH_PETA_MAT does not name the real PETA.mat")
    return peta.read_annotation(Path(file))


@pytest.fixture(scope="module")
def real_records(real):
    return list(peta.listed(real, real.splits, real.images))


def subsets_of(real, split):
    return np.array(real.splits[split])


def test_real_file_has_19000_rows_and_35_attributes(real, real_records):
    assert len(real.images) == len(real_records) == 19_000
    assert real.labels.shape == (19_000, 35) and set(np.unique(real.labels)) == {0, 1}
    assert len(set(real.identities.tolist())) == 8699
    assert real_records[9932].image == "09933.png" and not any(real_records[9932].labels)
    assert list(real_records[0].subset) == list(peta.Dataset.SPEC.splits)


def test_real_partitions_have_the_counts_of_the_spec(real):
    spec = peta.Dataset.SPEC
    assert len(real.splits) == 10
    for split in spec.splits:
        subsets = subsets_of(real, split)
        assert Counter(subsets.tolist()) == spec.counts[split]
        persons = {s: len(set(real.identities[subsets == s])) for s in spec.counts[split]}
        assert persons == spec.identities[split]
    assert len({tuple(real.splits[f"standard{n}"]) for n in peta.PARTITIONS}) == 5


def test_real_positives_are_those_published(real):
    """Positives per attribute, counted from the file without this reader."""
    with resource("datasets/positives_peta.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["attribute"] for row in rows] == NAMES
    standard = subsets_of(real, "standard")
    inside = {name: standard == name for name in SUBSETS}
    inside |= {"all": standard != "", "trainval": standard != "test"}
    for name, mask in inside.items():
        assert real.labels[mask].sum(0).tolist() == [int(row[name]) for row in rows]


def test_real_rebuilt_division_is_disjoint(real):
    with pytest.warns(Remark):
        persons = rebuilt("peta_zs", real.identities.tolist())
    subsets = [persons[person] for person in real.identities.tolist()]
    spec = peta_zs.Dataset.SPEC
    assert Counter(persons.values()) == spec.identities["zero_shot_rebuilt"]
    assert Counter(subsets) == spec.counts["zero_shot_rebuilt"]
    parts = [set(real.identities[np.array(subsets) == s].tolist()) for s in SUBSETS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 8699


def test_real_columns_shifted_by_four_are_noticed(real, tmp_path):
    struct = loadmat(os.environ["PEDBENCH_PETA_MAT"])["peta"][0, 0]
    names = [str(name[0]) for name in struct["attribute"][:, 0]]
    fields = {name: struct[name] for name in struct.dtype.names}
    fields["attribute"] = cell([*names[4:], *names[:4]])
    fields["selected_attribute"] = np.array([*range(5, 36), *range(106, 110)])[None]
    savemat(tmp_path / "PETA.mat", {"peta": fields}, oned_as="column")
    with pytest.raises(PedbenchError, match="other attributes; columns are shifted"):
        peta.read_annotation(tmp_path / "PETA.mat")


def test_real_columns_with_exchanged_names_are_noticed(real, tmp_path):
    struct = loadmat(os.environ["PEDBENCH_PETA_MAT"])["peta"][0, 0]
    names = [str(name[0]) for name in struct["attribute"][:, 0]]
    male, jeans = names.index("personalMale"), names.index("lowerBodyJeans")
    names[male], names[jeans] = names[jeans], names[male]
    fields = {name: struct[name] for name in struct.dtype.names} | {"attribute": cell(names)}
    savemat(tmp_path / "PETA.mat", {"peta": fields}, oned_as="column")
    with pytest.raises(PedbenchError) as told:
        peta.read_annotation(tmp_path / "PETA.mat")
    (line,) = str(told.value).splitlines()
    assert "'lowerBodyJeans' has" in line and "'personalMale' has" in line
