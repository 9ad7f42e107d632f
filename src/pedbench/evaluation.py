"""What the predictions of a finished run are worth: the one place that picks the metrics of its
task, for scores, statistics and comparisons alike."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pedbench.contracts import TaskKind
from pedbench.manifest import Manifest
from pedbench.results import Predictions, Retrieved, Run, read_predictions, read_rankings
from pedbench.tasks import par, reid

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evaluation(ABC):
    """The M images of a subset that count, or its queries: ``identity (M,)``, -1 where unknown, and
    ``terms (M, K)``, what each adds to the sums that metrics are functions of."""

    file: ClassVar[str]  # of the run, without its ending: what all of this is made from
    settings: ClassVar[tuple[str, ...]] = ()  # of the protocol that move the scores
    metrics: ClassVar[tuple[str, ...]]  # over all images or queries
    by_attribute: ClassVar[tuple[str, ...]] = ()  # metrics that `resampled` has of each attribute

    identity: np.ndarray
    terms: Floats

    @staticmethod
    @abstractmethod
    def of_sums(sums: Floats) -> dict[str, Floats]:
        """Metrics, ``(R,)`` each, of R sets of images from the sums ``(R, K)`` of their terms."""

    def resampled(self, weights: Floats, curves: bool = True) -> dict[str, Floats]:
        """Every metric, ``(R,)`` each, where draw r holds image m ``weights[r, m]`` times; those of
        ``by_attribute`` as "AP by attribute" ``(R, A)``. AP and AUC, which cost most, only with
        ``curves``."""
        return self.of_sums(weights @ self.terms)

    @abstractmethod
    def scores(self) -> dict[str, Any]:
        """What ``scores.{subset}.json`` says of them."""


@dataclass(frozen=True, eq=False)
class Recognition(Evaluation):
    """Attribute recognition."""

    file, settings = "predictions", ("threshold",)
    metrics = par.OVERALL
    by_attribute = ("AP", "mA")

    predictions: Predictions
    threshold: float

    @classmethod
    def read(cls, run: Run, manifest: Manifest, subset: str) -> Recognition:
        p, threshold = read_predictions(run, manifest, subset), run.protocol["threshold"]
        terms = par.image_terms(p.probabilities, p.labels, threshold)
        return cls(p.identity, terms, p, threshold)

    @staticmethod
    def of_sums(sums: Floats) -> dict[str, Floats]:
        return par.of_sums(sums)[0]

    def resampled(self, weights: Floats, curves: bool = True) -> dict[str, Floats]:
        overall, by_attribute = par.of_sums(weights @ self.terms)
        found = overall | {"mA by attribute": by_attribute["mA"]}
        if curves:
            p = self.predictions
            curve = par.resampled_curves(p.probabilities, p.labels, weights)
            found |= {name: par.mean_defined(values) for name, values in curve.items()}
            found["AP by attribute"] = curve["AP"]
        return found

    def scores(self) -> dict[str, Any]:
        p, threshold = self.predictions, self.threshold
        attributes = par.score_attributes(p.probabilities, p.labels, p.attributes, threshold)
        return {
            "images": len(p.labels),
            "overall": defined(par.score(p.probabilities, p.labels, threshold)),
            "attributes": {name: defined(metrics) for name, metrics in attributes.items()},
        }


@dataclass(frozen=True, eq=False)
class Retrieval(Evaluation):
    """Re-identification: the queries with a right image in the gallery; others are skipped."""

    file = "rankings"
    metrics = reid.METRICS

    retrieved: Retrieved

    @classmethod
    def read(cls, run: Run, manifest: Manifest, subset: str) -> Retrieval:
        found = read_rankings(run, manifest, subset)
        identity = found.identity[found.rankings.valid]
        return cls(identity, reid.query_terms(found.rankings), found)

    @staticmethod
    def of_sums(sums: Floats) -> dict[str, Floats]:
        return reid.of_sums(sums)

    def scores(self) -> dict[str, Any]:
        rankings = self.retrieved.rankings
        return {
            "queries": len(rankings.first),
            "skipped": rankings.skipped,
            "gallery": len(self.retrieved.gallery),
            "overall": defined(reid.score(rankings)),
        }


KINDS: Mapping[TaskKind, type[Recognition] | type[Retrieval]] = {
    "par": Recognition,
    "reid": Retrieval,
}


def evaluation(run: Run, manifest: Manifest, subset: str) -> Evaluation:
    """Of one run. Raises PedbenchError as `read_predictions` and `read_rankings` do."""
    return KINDS[run.task].read(run, manifest, subset)


def defined(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}
