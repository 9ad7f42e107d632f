"""A user's own words for attributes: a CSV file in place of the phrases of the dataset's file."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pedbench.config import ROOT
from pedbench.contracts import Attribute, PedbenchError
from pedbench.registry import suggest

COLUMNS = ("attribute", "phrase", "negative")


def words(attributes: tuple[Attribute, ...], options: Mapping[str, Any]) -> tuple[Attribute, ...]:
    """``attributes`` with the words of the file that the ``dataset_options`` name as ``phrases``,
    if they do; a relative path starts at the repository's root."""
    file = options.get("phrases")
    return read_phrases(ROOT / file, attributes) if file else attributes


def read_phrases(path: Path, attributes: tuple[Attribute, ...]) -> tuple[Attribute, ...]:
    """``attributes`` with the words of a CSV file with the columns ``COLUMNS``, one row for each
    attribute that gets others; both complete "a photo of a person ...".

    Raises PedbenchError when the file is missing or no UTF-8, names an unknown attribute or one
    twice, leaves a phrase empty or gives the same twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:  # Excel begins with a mark
            table = csv.DictReader(stream)
            rows = list(table)
    except OSError as error:
        raise PedbenchError(
            f"{path}: no such file of phrases ({error.strerror}); see docs/datasets.md"
        ) from None
    except UnicodeDecodeError:
        raise PedbenchError(f"{path}: not UTF-8; save it as CSV UTF-8") from None
    absent = [column for column in COLUMNS if column not in (table.fieldnames or ())]
    if absent:
        wanted = ", ".join(COLUMNS)
        raise PedbenchError(f"{path}: column '{absent[0]}' is missing (wanted: {wanted})")
    names = [attribute.name for attribute in attributes]
    own: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, start=2):
        name, where = row["attribute"], f"{path}: line {number}: '{row['attribute']}'"
        if name not in names:
            raise PedbenchError(f"{where} is not an attribute{suggest(name, names)}")
        if name in own:
            raise PedbenchError(f"{where} stands twice; delete one")
        own[name] = {key: (row[key] or "").strip() for key in COLUMNS[1:]}
        if not all(own[name].values()):
            raise PedbenchError(f"{where} needs both a phrase and a negative")
        if own[name]["phrase"] == own[name]["negative"]:
            raise PedbenchError(f"{where}: phrase and negative are the same")
        if None in row:
            raise PedbenchError(
                f"{where}: more fields than columns; put text that has commas in quotes"
            )
    return tuple(replace(a, **own.get(a.name, {})) for a in attributes)
