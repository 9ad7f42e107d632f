"""Metrics of pedestrian attribute recognition (PAR), in float64 numpy.

``probabilities`` and ``labels`` have shape ``(M, A)``: M images, A attributes. Labels are 1
(present), 0 (absent); every other code means unknown. A probability strictly above the threshold
is a positive prediction. Metrics follow Li et al., "A Richly Annotated Pedestrian Dataset" (2018):

* label-based, per attribute and then averaged: mA = (positive recall + negative recall) / 2, and
  ``accuracy_label``, the share of right predictions, which LFWA is scored by;
* instance-based, per image and then averaged: accuracy (intersection over union of the
  positives), precision, recall.

Both published F1 are given: ``F1_instance`` is the mean of the per-image F1 (PromptPAR, VTB),
``F1_harmonic`` the harmonic mean of mean precision and mean recall (Rethinking of PAR).

Two conventions say what happens to unknown labels and to empty denominators:

* ``sound`` (default): an unknown cell is left out everywhere. A label-based ratio without cases
  is undefined (NaN) and left out of the average over attributes. An image with neither positives
  nor positive predictions is right (1 in every instance metric); any other 0/0 counts 0; an image
  without known labels is left out.
* ``released``: as the authors' code. A positive prediction on an unknown cell still counts as
  predicted in the instance metrics, and every 0/0 counts 0, so an attribute without positives
  contributes (0 + negative recall) / 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from pedbench.contracts import PedbenchError

Convention = Literal["sound", "released"]
Floats = NDArray[np.float64]

INSTANCE = ("accuracy", "precision", "recall", "F1_instance")
RESAMPLED = ("mA", "accuracy_label", *INSTANCE, "F1_harmonic")  # functions of sums over images
OVERALL = (*RESAMPLED, "F1_label", "AP", "AUC")
PER_ATTRIBUTE = (
    *("mA", "accuracy_label", "positive_recall", "negative_recall", "precision", "F1"),
    *("AP", "AUC"),
)


@dataclass(frozen=True)
class Cells:
    """Predictions and truth as 0/1 indicators, each float64 of shape ``(M, A)``."""

    positive: Floats
    negative: Floats
    predicted: Floats  # on known and unknown cells

    @property
    def known(self) -> Floats:
        return self.positive + self.negative


@dataclass(frozen=True)
class Counts:
    """Weighted label-based counts, each of shape ``(R, A)``."""

    true_positive: Floats
    false_positive: Floats
    false_negative: Floats
    true_negative: Floats


def cells(probabilities: ArrayLike, labels: ArrayLike, threshold: float) -> Cells:
    """Indicators of two ``(M, A)`` arrays. Raises PedbenchError on shapes or NaN."""
    p = np.asarray(probabilities, dtype=np.float64)
    y = np.asarray(labels)
    if p.ndim != 2 or p.shape != y.shape:
        raise PedbenchError(
            f"probabilities {p.shape} and labels {y.shape} must both have shape (images, "
            "attributes): predictions and manifest are not of the same subset"
        )
    if not np.isfinite(p).all():
        raise PedbenchError(
            f"{int((~np.isfinite(p)).sum())} of {p.size} probabilities are NaN or infinite: "
            "delete the run's folder and train it again"
        )
    return Cells(
        positive=(y == 1).astype(np.float64),
        negative=(y == 0).astype(np.float64),
        predicted=(p > threshold).astype(np.float64),
    )


def label_counts(c: Cells, weights: Floats) -> Counts:
    """Counts per attribute when image m is taken ``weights[r, m]`` times; ``(R, A)`` each."""
    true_positive = weights @ (c.positive * c.predicted)
    false_positive = weights @ (c.negative * c.predicted)
    return Counts(
        true_positive=true_positive,
        false_positive=false_positive,
        false_negative=weights @ c.positive - true_positive,
        true_negative=weights @ c.negative - false_positive,
    )


def label_metrics(n: Counts, convention: Convention = "sound") -> dict[str, Floats]:
    """mA, accuracy, positive and negative recall, precision and F1, each of shape ``(R, A)``."""
    empty = 0.0 if convention == "released" else np.nan
    hit, missed, false = n.true_positive, n.false_negative, n.false_positive
    positive_recall = _ratio(hit, hit + missed, empty)
    negative_recall = _ratio(n.true_negative, n.true_negative + false, empty)
    return {
        "mA": (positive_recall + negative_recall) / 2,
        "accuracy_label": _ratio(
            hit + n.true_negative, hit + n.true_negative + false + missed, empty
        ),
        "positive_recall": positive_recall,
        "negative_recall": negative_recall,
        "precision": _ratio(hit, hit + false, empty),
        "F1": _ratio(2 * hit, 2 * hit + false + missed, empty),
    }


def instance_metrics(
    c: Cells, convention: Convention = "sound"
) -> tuple[dict[str, Floats], Floats]:
    """Accuracy, precision, recall and F1 of each image, ``(M,)`` each, and which images count."""
    seen = c.predicted if convention == "released" else c.predicted * c.known
    hit = (c.positive * c.predicted).sum(axis=1)
    true, claimed = c.positive.sum(axis=1), seen.sum(axis=1)
    values = {
        "accuracy": _ratio(hit, true + claimed - hit, 0.0),
        "precision": _ratio(hit, claimed, 0.0),
        "recall": _ratio(hit, true, 0.0),
        "F1_instance": _ratio(2 * hit, true + claimed, 0.0),
    }
    if convention == "released":
        return values, np.ones(len(hit))
    right = (true + claimed) == 0
    counted = (c.known.sum(axis=1) > 0).astype(np.float64)
    return {name: np.where(right, 1.0, value) for name, value in values.items()}, counted


def image_terms(
    probabilities: ArrayLike,
    labels: ArrayLike,
    threshold: float = 0.5,
    convention: Convention = "sound",
) -> Floats:
    """What each image adds to the sums of ``of_sums``: shape ``(M, 4 A + 5)``."""
    c = cells(probabilities, labels, threshold)
    values, counted = instance_metrics(c, convention)
    counts = (c.predicted * c.positive, c.predicted * c.negative)
    missed = (c.positive - counts[0], c.negative - counts[1])
    instance = [values[metric] * counted for metric in INSTANCE]
    return np.column_stack([*counts, *missed, *instance, counted])


def of_sums(
    sums: Floats, convention: Convention = "sound"
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """The metrics of R sets of images from the sums ``(R, 4 A + 5)`` of their ``image_terms``.

    First those of ``RESAMPLED`` and ``F1_label``, ``(R,)`` each, then those of ``label_metrics``,
    ``(R, A)`` each. Being functions of sums, they need no loop over resamples.
    """
    width = (sums.shape[1] - len(INSTANCE) - 1) // 4
    *counts, instance = np.split(sums, [width, 2 * width, 3 * width, 4 * width], axis=1)
    by_attribute = label_metrics(Counts(*counts), convention)
    overall = {name: mean_defined(by_attribute[name]) for name in ("mA", "accuracy_label")}
    for column, metric in enumerate(INSTANCE):
        overall[metric] = _ratio(instance[:, column], instance[:, -1], np.nan)
    precision, recall = overall["precision"], overall["recall"]
    overall["F1_harmonic"] = _ratio(2 * precision * recall, precision + recall, 0.0)
    overall["F1_label"] = mean_defined(by_attribute["F1"])
    return overall, by_attribute


def resampled(
    metric: str,
    probabilities: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike,
    threshold: float = 0.5,
    convention: Convention = "sound",
) -> Floats:
    """One of ``RESAMPLED`` for R resamples at once: shape ``(R,)``.

    ``weights (R, M)`` says how often resample r draws image m; a row of ones is the sample itself.
    """
    if metric not in RESAMPLED:
        raise PedbenchError(f"{metric!r} cannot be resampled; choose one of {', '.join(RESAMPLED)}")
    terms = image_terms(probabilities, labels, threshold, convention)
    return of_sums(_checked(weights, len(terms)) @ terms, convention)[0][metric]


def resampled_curves(
    probabilities: ArrayLike, labels: ArrayLike, weights: ArrayLike
) -> dict[str, Floats]:
    """AP and AUC of every attribute for R resamples at once, ``(R, A)`` each; as ``resampled``.

    Equal scores form one operating point. Without positives (AUC: or negatives) they are NaN.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    by_image = np.ascontiguousarray(_checked(weights, len(p)).T)
    curves = [_curves(p[:, a], y[:, a], by_image) for a in range(p.shape[1])]
    ap, auc = np.array(curves, dtype=np.float64).reshape(p.shape[1], 2, -1).transpose(1, 2, 0)
    return {"AP": ap, "AUC": auc}


def score(
    probabilities: ArrayLike,
    labels: ArrayLike,
    threshold: float = 0.5,
    convention: Convention = "sound",
) -> dict[str, float]:
    """``OVERALL``: those of ``RESAMPLED``, then F1, AP and AUC averaged over attributes.

    Larger is better for all; NaN where nothing defines one.
    """
    sums = image_terms(probabilities, labels, threshold, convention).sum(axis=0)
    overall = {
        metric: float(value[0]) for metric, value in of_sums(sums[None], convention)[0].items()
    }
    curves = resampled_curves(probabilities, labels, np.ones((1, len(np.asarray(labels)))))
    return overall | {metric: float(mean_defined(value)[0]) for metric, value in curves.items()}


def score_attributes(
    probabilities: ArrayLike,
    labels: ArrayLike,
    names: Sequence[str],
    threshold: float = 0.5,
    convention: Convention = "sound",
) -> dict[str, dict[str, float]]:
    """``{attribute: {metric: value}}`` with the metrics of ``PER_ATTRIBUTE``."""
    columns = attribute_metrics(probabilities, labels, threshold, convention)
    return {
        name: {metric: float(columns[metric][a]) for metric in PER_ATTRIBUTE}
        for a, name in enumerate(names)
    }


def attribute_metrics(
    probabilities: ArrayLike,
    labels: ArrayLike,
    threshold: float = 0.5,
    convention: Convention = "sound",
) -> dict[str, Floats]:
    """The metrics of ``PER_ATTRIBUTE``, each of shape ``(A,)``.

    AP and AUC need no threshold; without positives (AUC: or negatives) they are NaN.
    """
    c = cells(probabilities, labels, threshold)
    one = np.ones((1, len(c.positive)))
    found = label_metrics(label_counts(c, one), convention)
    found |= resampled_curves(probabilities, labels, one)
    return {name: value[0] for name, value in found.items()}


def _curves(scores: Floats, labels: ArrayLike, weights: Floats) -> tuple[Floats, Floats]:
    """AP and AUC of one attribute, ``(R,)`` each, from ``weights (M, R)``.

    Only scores of positives move the sums, so these are the operating points; a product with a
    sparse matrix adds up the images between two of them.
    """
    positive, negative = np.asarray(labels) == 1, np.asarray(labels) == 0
    points = np.unique(scores[positive])[::-1]  # descending

    def added(which: NDArray[np.bool_]) -> Floats:
        """Weights of these images from each point up to the one before: ``(points, R)``."""
        images = np.flatnonzero(which & (scores >= points[-1]))
        point = np.searchsorted(-points, -scores[images])
        if weights.shape[1] == 1:  # the same sums, without a matrix
            return np.bincount(point, weights[images, 0], len(points)).astype(float)[:, None]
        shape = len(points), len(scores)
        return csr_array((np.ones(len(images)), (point, images)), shape) @ weights

    if not len(points):
        undefined = np.full(weights.shape[1], np.nan)
        return undefined, undefined
    hits, false = added(positive), added(negative)
    true_positives, false_positives = hits.cumsum(axis=0), false.cumsum(axis=0)
    precision = _ratio(true_positives, true_positives + false_positives, 0.0)
    positives, negatives = true_positives[-1], negative @ weights
    lower = negatives - false_positives
    if (ties := negative & np.isin(scores, points)).any():
        lower += added(ties) / 2
    ap = _ratio((hits * precision).sum(axis=0), positives, np.nan)
    return ap, _ratio((hits * lower).sum(axis=0), positives * negatives, np.nan)


def _ratio(a: Floats, b: Floats, empty: float) -> Floats:
    """a / b, and ``empty`` where b is 0; NaN stays NaN."""
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, empty), where=b != 0)


def _checked(weights: ArrayLike, images: int) -> Floats:
    w = np.asarray(weights, dtype=np.float64)
    if w.ndim != 2 or w.shape[1] != images:
        raise PedbenchError(f"weights {w.shape} must be (resamples, {images} images)")
    return w


def mean_defined(values: Floats) -> Floats:
    """Mean over the last axis, undefined entries left out: ``(R,)``."""
    defined = ~np.isnan(values)
    total = np.where(defined, values, 0.0).sum(axis=-1)
    return _ratio(total, defined.sum(axis=-1).astype(np.float64), np.nan)
