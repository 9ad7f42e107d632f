"""What the tables are made of: a plan's experiments, their scores and tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from pedbench.config import plain
from pedbench.contracts import UNKNOWN, TaskKind
from pedbench.files import read_json
from pedbench.manifest import Manifest
from pedbench.tables.definitions import Definition, Variant

Experiment = Mapping[str, Any]  # dataset, split, method, variant, seeds, folder
Place = tuple[str, str]  # dataset, split


@dataclass(frozen=True)
class Results:
    """What a plan has run. ``scores``: the long table's test rows of ``experiments``, in percent;
    ``manifests``: of their datasets; ``versus`` and ``pairs``: the tests against the plan's
    ``baseline`` and of all pairs; ``cost`` and ``selection``: the CSV files of these names, None
    where there is none."""

    experiments: Sequence[Experiment]
    scores: pd.DataFrame
    manifests: Mapping[str, Manifest]
    versus: pd.DataFrame
    pairs: pd.DataFrame
    alpha: float
    baseline: str | None
    cost: pd.DataFrame | None = None
    selection: pd.DataFrame | None = None

    @cached_property
    def specs(self) -> Mapping[str, Mapping[str, Any]]:
        """Folder of an experiment -> its config.json."""
        return {e["folder"]: read_json(Path(e["folder"]) / "config.json") for e in self.experiments}

    @cached_property
    def with_unknown(self) -> frozenset[Place]:
        """Where labels of test images are asked for and unknown."""
        every = {place for place, task in self.tasks.items() if task == "par"}
        tested = {(d, s): self.manifests[d].subset(s, "test").labels for d, s in every}
        return frozenset(place for place, labels in tested.items() if (labels == UNKNOWN).any())

    @cached_property
    def tasks(self) -> Mapping[Place, TaskKind]:
        """Place -> its task."""
        return {place_of(e): task_of(self.specs[e["folder"]]) for e in self.experiments}

    def protocol(self, task: TaskKind) -> Mapping[str, Any]:
        """What all runs of ``task`` share, but for what presets and variants set."""
        return plain(next(s["protocol"] for s in self.specs.values() if task_of(s) == task))

    def shown(self, definition: Definition) -> list[Experiment]:
        """The experiments that a table is about, by row and place in the table's order."""
        at = set(self.places(definition))
        rows = definition.rows or tuple(variants(self.experiments))
        found = [e for e in self.experiments if place_of(e) in at and row_of(e) in rows]
        ran_at = {row: {place_of(e) for e in found if row_of(e) == row} for row in rows}
        wanted = {place_of(e) for e in found} if definition.complete else set()
        found = [e for e in found if ran_at[row_of(e)] >= wanted]
        return sorted(found, key=lambda e: rows.index(row_of(e)))

    def places(self, definition: Definition) -> list[Place]:
        """In the definition's order, or the plan's; published ones whether run or not."""
        run = [place for place, task in self.tasks.items() if task == definition.task]
        if definition.places is not None:
            named = [(d, s) for d, _, s in (place.partition("/") for place in definition.places)]
            return [p for p in named if p in run or "/".join(p) in definition.labels]
        return [place for place in run if definition.has_split(place[1])]


def task_of(spec: Mapping[str, Any]) -> TaskKind:
    """Of a config.json; runs from before there were two tasks do not say."""
    return plain(spec["protocol"]).get("task", "par")


def place_of(experiment: Experiment) -> Place:
    return experiment["dataset"], experiment["split"]


def row_of(experiment: Experiment) -> Variant:
    return experiment["method"], experiment["variant"]


def variants(experiments: Iterable[Experiment]) -> list[Variant]:
    """Every row once, in order."""
    return list(dict.fromkeys(row_of(e) for e in experiments))
