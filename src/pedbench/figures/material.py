"""What figures are drawn from: the plan and the tables that the other steps wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from pedbench.collect import rank_by_validation, read_csv, read_long
from pedbench.config import HEADLINE
from pedbench.contracts import TaskKind
from pedbench.manifest import Manifest, read_manifest
from pedbench.results import Run, display_name, headline, read_run, read_variant
from pedbench.runs import refusal
from pedbench.stats import INTERVALS, VS_BASELINE, read_stats
from pedbench.tasks.reid import LABELS

Place = tuple[str, str]  # dataset, split
Row = tuple[str, str]  # method, variant


@dataclass(frozen=True)
class Material:
    """``scores`` is the long table in percent; ``intervals`` and ``tests`` are in percent too.

    ``cost`` and ``selection`` may have no rows; ``stats`` is the folder of the statistics.
    """

    plan: Mapping[str, Any]
    scores: pd.DataFrame
    stats: Path
    intervals: pd.DataFrame
    tests: pd.DataFrame
    cost: pd.DataFrame
    selection: pd.DataFrame

    @classmethod
    def read(
        cls,
        plan: Mapping[str, Any],
        long: Path,
        stats: Path,
        cost: Path,
        selection: Path,
    ) -> Material:
        scores = read_long(long)
        return cls(
            plan,
            scores.assign(value=100 * scores["value"]),
            stats,
            read_stats(stats / INTERVALS),
            read_stats(stats / VS_BASELINE),
            read_csv(cost),
            read_csv(selection),
        )

    @cached_property
    def shown(self) -> list[Mapping[str, Any]]:
        """The experiments of the tables, in their order, but those that the method refused."""
        wanted = [e for e in self.plan["experiments"] if e["in_tables"]]
        return [e for e in wanted if refusal(Path(e["folder"])) is None]

    @property
    def places(self) -> list[Place]:
        return list(dict.fromkeys((e["dataset"], e["split"]) for e in self.shown))

    def rows(self, place: Place) -> list[Row]:
        """What was run there, in the order of the tables."""
        here = [e for e in self.shown if (e["dataset"], e["split"]) == place]
        return [(e["method"], e["variant"]) for e in here]

    @property
    def baseline(self) -> Row | None:
        method, _, variant = (self.plan["comparison"]["baseline"] or "").partition("/")
        return (method, variant) if method else None

    @cached_property
    def tasks(self) -> Mapping[Place, TaskKind]:
        """Place -> its task."""
        return {
            (e["dataset"], e["split"]): self.protocol(e).get("task", "par")
            for e in self.shown[::-1]
        }

    def of_task(self, task: TaskKind) -> list[Place]:
        return [place for place in self.places if self.tasks[place] == task]

    def metrics(self, place: Place) -> dict[str, str]:
        """Label and name of the two metrics of most figures: mA and the protocol's F1, or mAP and
        Rank-1. The first is the one that chooses."""
        if self.tasks[place] == "reid":
            return {LABELS[name]: name for name in ("mAP", "rank1")}
        first = next(e for e in self.shown if (e["dataset"], e["split"]) == place)
        return {"mA": "mA", "F1": headline(self.protocol(first))}

    def protocol(self, experiment: Mapping[str, Any]) -> Mapping[str, Any]:
        return read_variant(Path(experiment["folder"]))["protocol"]

    @property
    def level(self) -> str:
        """``95 %``: of all confidence intervals."""
        return f"{100 * (1 - self.plan['comparison']['alpha']):g} %"

    def name(self, row: Row) -> str:
        return display_name(*row)

    def manifest(self, dataset: str) -> Manifest:
        return read_manifest(Path(self.plan["datasets"][dataset]["manifest"]))

    def runs(self, place: Place, row: Row) -> list[Run]:
        """The seeds of one variant."""
        key = dict(zip(("dataset", "split", "method", "variant"), (*place, *row), strict=True))
        (experiment,) = (e for e in self.shown if key.items() <= e.items())
        folder = Path(experiment["folder"])
        return [read_run(folder / f"seed{seed}") for seed in experiment["seeds"]]

    def best(self, place: Place) -> Row | None:
        """The variant with the highest mA, or mAP, on validation images, the baseline aside; where
        the split has none, the last of the plan."""
        rows = [row for row in self.rows(place) if row != self.baseline]
        metric = HEADLINE[self.tasks[place]]
        return next(iter(rank_by_validation(rows, self.scores, *place, metric)), None)


def words(place: Place) -> str:
    """``synthetic_a, zero-shot split``."""
    dataset, split = place
    return f"{dataset}, {split.replace('_', '-')} split"


def label(metric: str) -> str:
    """As axes are named: Rank-1 for rank1."""
    return LABELS.get(metric, metric)


def stem(name: str, place: Place) -> str:
    return "_".join((name, *place))
