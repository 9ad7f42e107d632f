"""Re-identification across datasets: trained on the persons of one, asked for those of another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from pedbench.contracts import DatasetSpec, PedbenchError, Record, Subset
from pedbench.formats.cross import apart
from pedbench.formats.parents import OfParents, Parents


def cross_reid_spec(parents: Parents) -> DatasetSpec:
    """Splits ``{a}_to_{b}``, a and b two of ``parents``: training and validation images of a,
    queries and gallery of b, each of the parent's first split for re-identification."""
    specs = {name: parent.SPEC for name, parent in parents.items()}
    pairs = [(a, b) for a in specs for b in specs if a != b]
    splits = tuple(f"{a}_to_{b}" for a, b in pairs)

    def both(values: Mapping[str, Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
        first = {name: values[name].get(spec.reid[0], {}) for name, spec in specs.items()}
        return {
            f"{a}_to_{b}": {
                **{key: n for key, n in first[a].items() if key.startswith(("train", "val"))},
                **{key: n for key, n in first[b].items() if not key.startswith(("train", "val"))},
            }
            for a, b in pairs
            if first[a] and first[b]
        }

    return DatasetSpec(
        title=" and ".join(spec.title for spec in specs.values()),
        licence="; ".join(f"{spec.title}: {spec.licence}" for spec in specs.values()),
        attributes=(),
        splits=splits,
        reid=splits,
        counts=both({name: spec.counts for name, spec in specs.items()}),
        identities=both({name: spec.identities for name, spec in specs.items()}),
    )


class CrossReidDataset(OfParents):
    """Two datasets in one."""

    def records(self, root: Path) -> Iterator[Record]:
        """Every image of the parents' first splits as ``{parent}/{image}``. Persons and cameras are
        numbered so that no two parents share one."""
        found: list[Record] = []
        problems: list[str] = []
        for position, (name, parent) in enumerate(self.PARENTS.items()):
            try:
                found += [
                    replace(
                        record,
                        image=f"{name}/{record.image}",
                        labels=(),
                        identity=apart(record.identity, position, len(self.PARENTS)),
                        camera=apart(record.camera, position, len(self.PARENTS)),
                        file=f"{name}/{record.file or record.image}",
                        **self._places(name, record, parent.SPEC.reid[0]),
                    )
                    for record in parent().records(root / name)
                    if parent.SPEC.reid[0] in record.subset
                ]
            except PedbenchError as error:
                problems += [f"{name}: {line}" for line in str(error).splitlines()]
        if problems:
            raise PedbenchError("\n".join(problems))
        yield from sorted(found, key=lambda record: record.image)

    def _places(self, name: str, record: Record, split: str) -> dict[str, object]:
        subset: Subset = record.subset[split]
        others = [other for other in self.PARENTS if other != name]
        splits = [f"{o}_to_{name}" if subset == "test" else f"{name}_to_{o}" for o in others]
        asked = tuple(splits) if split in record.queries else ()
        return {"subset": dict.fromkeys(splits, subset), "queries": asked}
