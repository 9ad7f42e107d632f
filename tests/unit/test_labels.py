"""Tables of labels: columns by name, codes, rows in one subset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pedbench.contracts import Attribute, PedbenchError, Subset
from pedbench.formats.labels import columns, decoded, same_number, subset_of_rows

PATH = Path("a.mat")
ATTRIBUTES = tuple(Attribute(name, "whole", "with", "without") for name in ("5 o'Clock", "Femal"))


def fails(message):
    return pytest.raises(PedbenchError, match=message)


def test_columns_are_matched_by_letters_and_digits():
    names = ["other", " FEMALE", "5_o_clock"]
    assert columns(PATH, names, ATTRIBUTES, {"Femal": ("Female",)}) == [2, 1]


def test_columns_that_are_absent_or_there_twice_are_all_told():
    with fails("'5 o'Clock' is 2 times in .*\n.*'Femal' is not in .*\n.*: 5 O CLOCK, 5oclock, x"):
        columns(PATH, ["5 O CLOCK", "5oclock", "x"], ATTRIBUTES)


def test_codes_become_labels():
    found = decoded(PATH, np.array([[1.0, 0.0], [2.0, 1.0]]), {0: 0, 1: 1, 2: -1}, "ab", ATTRIBUTES)
    assert found.dtype == np.int8 and found.tolist() == [[1, 0], [-1, 1]]


@pytest.mark.parametrize("strange", [7, -1, 255, 0.5, np.nan])
def test_the_first_strange_code_has_its_place(strange):
    values = np.array([[1, 0], [1, strange], [strange, 0]])
    with fails(rf"a.mat: row 2 \(b\), 'Femal': label {strange:g}, .*\(2 such labels in all\)"):
        decoded(PATH, values, {0: 0, 1: 1}, "abc", ATTRIBUTES)


def test_rows_get_their_subset():
    parts: dict[Subset, np.ndarray] = {"train": np.array([2, 0]), "test": np.array([3])}
    assert subset_of_rows(PATH, "part 1", parts, 4) == ["train", None, "train", "test"]
    with fails("part 1: row 3 is listed as train and again as test"):
        subset_of_rows(PATH, "part 1", {**parts, "test": np.array([2])}, 4)


def test_numbers_are_told_when_they_differ():
    same_number(PATH, {"names": 3, "rows": 3})
    with fails("a.mat: 3 names, 4 rows: these numbers must be equal"):
        same_number(PATH, {"names": 3, "rows": 4})
