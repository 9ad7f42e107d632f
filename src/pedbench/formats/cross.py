"""Training on one dataset and testing on another, in the attributes that both can tell.

``resources/datasets/shared_attributes.csv`` says which those are: a row per attribute, with its
region and words, and a column per dataset that puts it in terms of the dataset's own attributes

- ``a|b``: present where a or b is, absent where neither is;
- ``!a|b``: the opposite;
- ``a|b; c|d``: present where a or b is, else absent where c or d is, else unknown;
- nothing: the dataset cannot tell.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from pedbench.contracts import (
    UNKNOWN,
    Attribute,
    DatasetSpec,
    PedbenchError,
    Record,
    Region,
    Subset,
)
from pedbench.formats.parents import SPLIT, OfParents, Parents

SHARED = "resources/datasets/shared_attributes.csv"

_FILE = Path(__file__).parents[3] / SHARED


def read_shared(*datasets: str) -> dict[Attribute, tuple[str, ...]]:
    """The attributes that all of ``datasets`` can tell, each with what it is in their terms."""
    with _FILE.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return {
        Attribute(row["name"], cast(Region, row["region"]), row["phrase"], row["negative"]): terms
        for row in rows
        if all(terms := tuple(row[name] for name in datasets))
    }


def names_in(terms: str) -> list[str]:
    """The attributes of which ``terms`` speak."""
    return [name.strip() for name in re.split(r"[|;]", terms.removeprefix("!"))]


def translate(terms: str, labels: Mapping[str, int]) -> int:
    """The label that ``terms`` (see the module) give an image with these ``labels``."""
    present, otherwise, absent = terms.partition(";")
    if otherwise:
        found = [_any(part, labels) == 1 for part in (present, absent)]
        return 1 if found[0] else 0 if found[1] else UNKNOWN
    label = _any(present.removeprefix("!"), labels)
    return 1 - label if terms.startswith("!") and label != UNKNOWN else label


def _any(names: str, labels: Mapping[str, int]) -> int:
    found = {labels[name] for name in names_in(names)}
    return 1 if 1 in found else UNKNOWN if UNKNOWN in found else 0


def cross_spec(parents: Parents) -> DatasetSpec:
    """Splits ``{a}_to_{b}``: training and validation images of a, test images of b; and, to compare
    with, ``{a}_to_{a}``: the parent's own split in the shared attributes."""
    specs = {name: parent.SPEC for name, parent in parents.items()}
    counts = {name: spec.counts.get(SPLIT, {}) for name, spec in specs.items()}
    return DatasetSpec(
        title=" and ".join(spec.title for spec in specs.values()),
        licence="; ".join(f"{spec.title}: {spec.licence}" for spec in specs.values()),
        attributes=tuple(read_shared(*parents)),
        splits=tuple(f"{a}_to_{b}" for a in parents for b in parents),
        counts={
            f"{a}_to_{b}": {**counts[a], "test": counts[b]["test"]}
            for a in parents
            for b in parents
            if counts[a] and counts[b]
        },
    )


class CrossDataset(OfParents):
    """Two datasets in one."""

    inputs = (SHARED,)

    def records(self, root: Path) -> Iterator[Record]:
        """Every image of the parents' split `SPLIT` as ``{parent}/{image}``. Persons and cameras
        are numbered so that no two parents share one."""
        shared, several, problems = read_shared(*self.PARENTS), len(self.PARENTS), []
        found: list[Record] = []
        for position, (name, parent) in enumerate(self.PARENTS.items()):
            columns = [attribute.name for attribute in parent.SPEC.attributes]
            terms = [each[position] for each in shared.values()]
            try:
                for record in parent().records(root / name):
                    labels = dict(zip(columns, record.labels, strict=True))
                    found.append(
                        Record(
                            image=f"{name}/{record.image}",
                            labels=tuple(translate(term, labels) for term in terms),
                            subset=self._subsets(name, record.subset.get(SPLIT)),
                            identity=apart(record.identity, position, several),
                            camera=apart(record.camera, position, several),
                            file=f"{name}/{record.file or record.image}",
                            box=record.box,
                        )
                    )
            except PedbenchError as error:
                problems += [f"{name}: {line}" for line in str(error).splitlines()]
        if problems:
            raise PedbenchError("\n".join(problems))
        yield from sorted(found, key=lambda record: record.image)

    def _subsets(self, name: str, subset: Subset | None) -> dict[str, Subset]:
        if subset is None:
            return {}
        others = [f"{other}_to_{name}" for other in self.PARENTS]
        return dict.fromkeys(
            others if subset == "test" else [f"{name}_to_{other}" for other in self.PARENTS],
            subset,
        )


def apart(number: int, position: int, several: int) -> int:
    """``number`` of one of ``several`` parents, unlike any number of another; -1 stays."""
    return number if number < 0 else number * several + position
