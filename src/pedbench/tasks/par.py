"""Metrics of pedestrian attribute recognition (PAR), in float64 numpy.

``probabilities`` and ``labels`` have shape ``(M, A)``: M images, A attributes. Labels are 1
(present), 0 (absent); every other code means unknown. A probability strictly above the threshold
is a positive prediction. Metrics follow Li et al., "A Richly Annotated Pedestrian Dataset" (2018):

* label-based, per attribute and then averaged: mA = (positive recall + negative recall) / 2;
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

from pedbench.contracts import PedbenchError

Convention = Literal["sound", "released"]
Floats = NDArray[np.float64]

INSTANCE = ("accuracy", "precision", "recall", "F1_instance")
RESAMPLED = ("mA", *INSTANCE, "F1_harmonic")  # what `resampled` can compute
PER_ATTRIBUTE = ("mA", "positive_recall", "negative_recall", "precision", "F1", "AP", "AUC")


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
    """mA, positive and negative recall, precision and F1, each of shape ``(R, A)``."""
    empty = 0.0 if convention == "released" else np.nan
    hit, missed, false = n.true_positive, n.false_negative, n.false_positive
    positive_recall = _ratio(hit, hit + missed, empty)
    negative_recall = _ratio(n.true_negative, n.true_negative + false, empty)
    return {
        "mA": (positive_recall + negative_recall) / 2,
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


def resampled(
    metric: str,
    probabilities: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike,
    threshold: float = 0.5,
    convention: Convention = "sound",
) -> Floats:
    """One of ``RESAMPLED`` for R resamples at once: shape ``(R,)``.

    ``weights (R, M)`` says how often resample r draws image m; a row of ones is the sample
    itself. Costs one matrix product per count, so bootstraps need no loop.
    """
    c = cells(probabilities, labels, threshold)
    w = np.asarray(weights, dtype=np.float64)
    if w.ndim != 2 or w.shape[1] != len(c.positive):
        raise PedbenchError(f"weights {w.shape} must be (resamples, {len(c.positive)} images)")
    if metric == "mA":
        return _mean_defined(label_metrics(label_counts(c, w), convention)["mA"])
    values, counted = instance_metrics(c, convention)
    if metric in INSTANCE:
        return _weighted_mean(values[metric], w, counted)
    if metric == "F1_harmonic":
        precision = _weighted_mean(values["precision"], w, counted)
        recall = _weighted_mean(values["recall"], w, counted)
        return _ratio(2 * precision * recall, precision + recall, 0.0)
    raise PedbenchError(f"{metric!r} cannot be resampled; choose one of {', '.join(RESAMPLED)}")


def score(
    probabilities: ArrayLike,
    labels: ArrayLike,
    threshold: float = 0.5,
    convention: Convention = "sound",
) -> dict[str, float]:
    """The metrics of ``RESAMPLED``, and F1 (as ``F1_label``), AP and AUC averaged over attributes.

    Larger is better for all; NaN where nothing defines one.
    """
    one = np.ones((1, len(np.asarray(labels))))
    overall = {
        metric: float(resampled(metric, probabilities, labels, one, threshold, convention)[0])
        for metric in RESAMPLED
    }
    per_attribute = attribute_metrics(probabilities, labels, threshold, convention)
    means = {f: float(_mean_defined(per_attribute[f][None])[0]) for f in ("F1", "AP", "AUC")}
    return overall | {"F1_label": means["F1"], "AP": means["AP"], "AUC": means["AUC"]}


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
    counts = label_counts(c, np.ones((1, len(c.positive))))
    found = {name: value[0] for name, value in label_metrics(counts, convention).items()}
    p = np.asarray(probabilities, dtype=np.float64)
    curves = [
        _curves(p[known, a], c.positive[known, a]) for a, known in enumerate(c.known.T.astype(bool))
    ]
    found["AP"], found["AUC"] = np.array(curves, dtype=np.float64).reshape(-1, 2).T
    return found


def _curves(scores: Floats, truth: Floats) -> tuple[float, float]:
    """Average precision and area under the ROC curve; equal scores form one operating point."""
    values, group = np.unique(-scores, return_inverse=True)  # descending scores
    hits = np.bincount(group, weights=truth, minlength=len(values))
    false = np.bincount(group, weights=1 - truth, minlength=len(values))
    positives, negatives = hits.sum(), false.sum()
    if positives == 0:
        return np.nan, np.nan
    precision = hits.cumsum() / (hits + false).cumsum()
    ap = float((hits * precision).sum() / positives)
    if negatives == 0:
        return ap, np.nan
    lower = negatives - false.cumsum()  # negatives ranked strictly below each group
    return ap, float((hits * (lower + false / 2)).sum() / (positives * negatives))


def _ratio(a: Floats, b: Floats, empty: float) -> Floats:
    """a / b, and ``empty`` where b is 0; NaN stays NaN."""
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, empty), where=b != 0)


def _weighted_mean(values: Floats, weights: Floats, counted: Floats) -> Floats:
    """Mean over the images that count, per resample: ``(R,)``."""
    return _ratio(weights @ (values * counted), weights @ counted, np.nan)


def _mean_defined(values: Floats) -> Floats:
    """Mean over the last axis, undefined entries left out: ``(R,)``."""
    defined = ~np.isnan(values)
    total = np.where(defined, values, 0.0).sum(axis=-1)
    return _ratio(total, defined.sum(axis=-1).astype(np.float64), np.nan)
