"""Training on some attributes and testing on others, of which no training image has a label.

The attributes of one dataset, in their order, are alternately **base** and **novel**, so that both
have some of every region. ``base_to_base`` and ``base_to_novel`` train and choose on the same
images with the same labels, those of base attributes; one is tested on base attributes, the other
on novel ones. All other labels are unknown, so neither loss nor scores see them. An image of the
test subset is listed twice, for its labels differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pedbench.contracts import UNKNOWN, DatasetSpec, Record, Subset
from pedbench.formats.parents import SPLIT, OfParents, Parents

BASE, NOVEL = "base_to_base", "base_to_novel"


def novel_spec(parents: Parents) -> DatasetSpec:
    """The spec of the only parent, with the two splits in place of its own."""
    (spec,) = (parent.SPEC for parent in parents.values())
    counts = spec.counts.get(SPLIT)
    return DatasetSpec(
        title=f"{spec.title}, base and novel attributes",
        licence=spec.licence,
        attributes=spec.attributes,
        splits=(BASE, NOVEL),
        counts=dict.fromkeys((BASE, NOVEL), counts) if counts else {},
    )


class NovelDataset(OfParents):
    """One dataset, its attributes divided. Its root holds the parent's folder under its name."""

    def records(self, root: Path) -> Iterator[Record]:
        """The images of the parent's split `SPLIT` as ``{parent}/{image}``, and those of its test
        subset once more as ``{parent}/{image}#novel``."""
        found = []
        for name, parent in self.PARENTS.items():
            for record in parent().records(root / name):
                if (subset := record.subset.get(SPLIT)) is not None:
                    file = f"{name}/{record.file or record.image}"
                    named = replace(record, image=f"{name}/{record.image}", file=file)
                    found += _divided(named, subset)
        yield from sorted(found, key=lambda record: record.image)


def _divided(record: Record, subset: Subset) -> list[Record]:
    base, novel = (
        tuple(v if i % 2 == rest else UNKNOWN for i, v in enumerate(record.labels))
        for rest in (0, 1)
    )
    if subset != "test":
        return [replace(record, labels=base, subset={BASE: subset, NOVEL: subset})]
    return [
        replace(record, labels=base, subset={BASE: subset}),
        replace(record, image=f"{record.image}#novel", labels=novel, subset={NOVEL: subset}),
    ]
