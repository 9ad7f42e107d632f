"""LFWA: HDF5 files and their copies, names with a backslash, and files that look alike."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import beside_counts
from scipy.io import loadmat

from pedbench.formats.fakes import cell, write_hdf5, write_mat
from pedbench.formats.matlab import read_hdf5
from pedbench.intake import examine, header
from pedbench.registry import load_dataset

LABELS, INDICES = "lfw_att_40.mat", "indices_train_test.mat"


@pytest.fixture
def root(tmp_path):
    load_dataset("lfwa").fake(tmp_path / "LFWA", np.random.default_rng(0))
    return tmp_path / "LFWA"


def look(root):
    return examine("lfwa", load_dataset("lfwa"), root, {"check_counts": False}, header)


def rows(root):
    found = look(root)
    assert not found.problems
    return {r.image: (r.labels, r.subset, r.identity) for r in found.records}


def written(root):
    """What the fake files hold, arrays as MATLAB shows them."""
    return read_hdf5(root / LABELS), read_hdf5(root / INDICES)


def test_labels_and_subsets_are_those_of_the_files(root):
    table, indices = written(root)
    train = {int(i) - 1 for i in indices["indices_img_train"]}
    found = rows(root)
    assert len(found) == len(table["name"]) == 30
    for i, name in enumerate(table["name"]):
        labels, subset, _ = found[name.replace("\\", "/")]
        assert labels == tuple(table["label"][i])
        assert subset == {"trainval": "train" if i in train else "test"}


def test_numbers_of_an_hdf5_file_are_no_text(tmp_path):
    """Whole numbers of two bytes look like letters; MATLAB says which is which."""
    numbers = np.arange(65, 71, dtype=np.uint16).reshape(3, 2)
    write_hdf5(tmp_path / "x.mat", {"numbers": numbers, "name": ["ab", "c"]})
    found = read_hdf5(tmp_path / "x.mat")
    np.testing.assert_array_equal(found["numbers"], numbers)
    assert found["name"] == ["ab", "c"] and found["numbers"].dtype == np.int64


def test_identity_is_the_folder(root):
    persons = {image.partition("/")[0]: row[2] for image, row in rows(root).items()}
    assert sorted(persons.values()) == list(range(15))
    assert [persons[p] for p in sorted(persons)] == sorted(persons.values())


def test_a_copy_saved_as_v5_reads_alike(root):
    before, (table, indices) = rows(root), written(root)
    cells = {key: cell(value) for key, value in table.items() if key != "label"}
    write_mat(root / LABELS, {**cells, "label": table["label"]})
    write_mat(root / INDICES, indices)
    assert rows(root) == before


def test_attributes_are_found_by_name_however_spelled(root):
    before, (table, _) = rows(root), written(root)
    table["AttrName"] = [n.replace("_", " ").lower() for n in reversed(table["AttrName"])]
    table["label"] = table["label"][:, ::-1]
    write_hdf5(root / LABELS, table)
    assert rows(root) == before


def test_nested_and_aligned_pictures(root):
    (root / "lfw").rename(root / "aside")
    (root / "lfw").mkdir()
    (root / "aside").rename(root / "lfw/lfw")
    found = look(root)
    assert not found.problems and not beside_counts(found.remarks)
    assert found.records[0].file.startswith("lfw/lfw/")
    (root / "lfw/lfw").rename(root / "lfw-deepfunneled")
    found = look(root)
    assert not found.problems and "pictures are those of lfw-deepfunneled" in found.remarks[0]
    shutil.rmtree(root / "lfw-deepfunneled")
    (root / "lfw").rmdir()
    assert "no pictures in it" in look(root).problems[0]


def test_labels_of_minus_one_are_refused(root):
    table, _ = written(root)
    table["label"] = 2 * table["label"] - 1
    write_hdf5(root / LABELS, table)
    assert "label -1, but the release knows 1, 0 only" in look(root).problems[0]


def test_a_truncated_file_is_named(root):
    data = (root / LABELS).read_bytes()
    (root / LABELS).write_bytes(data[: len(data) // 2])
    (problem,) = look(root).problems
    assert LABELS in problem and "truncated" in problem


def test_only_trainval():
    spec = load_dataset("lfwa").SPEC
    assert spec.splits == ("trainval",) and "train and test only" in spec.without["standard"]


def test_mistake_19_hdf5_is_what_scipy_cannot_read(root):
    with pytest.raises(NotImplementedError, match="HDF reader"):
        loadmat(root / LABELS)
    assert not look(root).problems


def test_mistake_19_backslash(root):
    table, _ = written(root)
    assert all("\\" in name for name in table["name"])
    assert all((root / record.file).is_file() for record in look(root).records)


def test_mistake_19_the_file_of_73_attributes(root):
    table, _ = written(root)
    table["AttrName"] += [f"further {i}" for i in range(33)]
    table["label"] = np.hstack([table["label"], np.zeros((30, 33))])
    write_hdf5(root / LABELS, table)
    assert "73 attributes of LFWA+, in another order" in look(root).problems[0]
    (root / LABELS).rename(root / "lfw_att_73.mat")
    missing, what = look(root).problems
    assert LABELS in missing and "lfw_att_73.mat is the 73 attributes of LFWA+" in what


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("lfw_attributes.txt", "73 real-valued scores of LFW itself"),
        ("lfwa.pickle", "is no file of the release and is not opened"),
    ],
)
def test_mistake_19_other_files(root, file, told):
    (root / LABELS).unlink()
    Path(root / file).write_text("x")
    assert told in look(root).problems[1]
