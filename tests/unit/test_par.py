"""Metrics and losses of PAR: hand-checked cases, plain-loop references, and properties."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, roc_auc_score

from pedbench.contracts import Attribute, PedbenchError, Task
from pedbench.schedules import epoch_cosine, learning_rate_factor, warmup_cosine
from pedbench.tasks import par
from pedbench.tasks.losses import label_weights, weighted_bce

PROBABILITY = st.sampled_from([0.0, 0.1, 0.25, 0.45, 0.5, 0.55, 0.75, 1.0])  # ties are common


@st.composite
def judged(draw, codes=(-1, 0, 1), most=12):
    shape = draw(st.tuples(st.integers(1, most), st.integers(1, 5)))
    p = draw(hnp.arrays(np.float64, shape, elements=PROBABILITY))
    y = draw(hnp.arrays(np.int8, shape, elements=st.sampled_from(codes)))
    return p, y


def reference(p, y, threshold):
    """The ``sound`` convention, cell by cell."""
    recalls, right, images = [], [], []
    for a in range(p.shape[1]):
        hits = {1: [], 0: []}
        for i in range(p.shape[0]):
            if y[i, a] in hits:
                hits[y[i, a]].append((p[i, a] > threshold) == y[i, a])
        if hits[0] + hits[1]:
            right.append(np.mean(hits[0] + hits[1]))
        if hits[0] and hits[1]:
            recalls.append((np.mean(hits[1]) + np.mean(hits[0])) / 2)
    for i in range(p.shape[0]):
        known = {a for a in range(p.shape[1]) if y[i, a] >= 0}
        if not known:
            continue
        true = {a for a in known if y[i, a] == 1}
        claimed = {a for a in known if p[i, a] > threshold}
        if not true | claimed:
            images.append((1.0, 1.0, 1.0, 1.0))
            continue
        precision = len(true & claimed) / len(claimed) if claimed else 0.0
        recall = len(true & claimed) / len(true) if true else 0.0
        both = precision + recall
        f1 = 2 * precision * recall / both if both else 0.0
        images.append((len(true & claimed) / len(true | claimed), precision, recall, f1))
    mean = np.mean(images, axis=0) if images else np.full(4, np.nan)
    harmonic = 2 * mean[1] * mean[2] / (mean[1] + mean[2]) if mean[1] + mean[2] > 0 else 0.0
    return {
        "mA": np.mean(recalls) if recalls else np.nan,
        "accuracy_label": np.mean(right) if right else np.nan,
        **dict(zip(par.INSTANCE, mean, strict=True)),
        "F1_harmonic": harmonic if images else np.nan,
    }


@settings(max_examples=200, deadline=None)
@given(judged(), st.sampled_from([0.45, 0.5]))
def test_metrics_equal_a_plain_loop(case, threshold):
    p, y = case
    found = par.score(p, y, threshold)
    for metric, value in reference(p, y, threshold).items():
        assert found[metric] == pytest.approx(value, abs=1e-12, nan_ok=True), metric


@settings(max_examples=100, deadline=None)
@given(judged(), st.data())
def test_weights_mean_repeated_images(case, data):
    p, y = case
    copies = data.draw(hnp.arrays(np.int64, len(p), elements=st.integers(0, 3)))
    assume(copies.sum() > 0)
    rows = np.repeat(np.arange(len(p)), copies)
    weights = np.stack([copies, np.ones(len(p))])
    for metric in par.RESAMPLED:
        drawn, whole = par.resampled(metric, p, y, weights, 0.5)
        assert drawn == pytest.approx(par.score(p[rows], y[rows])[metric], abs=1e-12, nan_ok=True)
        assert whole == pytest.approx(par.score(p, y)[metric], abs=1e-12, nan_ok=True)
    for metric, curves in par.resampled_curves(p, y, weights).items():
        for curve, chosen in zip(curves, (rows, slice(None)), strict=True):
            expected = par.attribute_metrics(p[chosen], y[chosen])[metric]
            np.testing.assert_allclose(curve, expected, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(judged(), st.randoms(use_true_random=False))
def test_order_and_unknown_cells_do_not_matter(case, random):
    p, y = case
    expected = par.score(p, y)
    order = list(range(len(p)))
    random.shuffle(order)
    hidden = np.where(y == -1, 1 - p, p)
    for found in (par.score(p[order], y[order]), par.score(hidden, y)):
        assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert all(math.isnan(v) or 0 <= v <= 1 for v in expected.values())


@settings(max_examples=150, deadline=None)
@given(judged(codes=(0, 1)))
def test_curves_equal_scikit_learn(case):
    p, y = case
    found = par.attribute_metrics(p, y)
    for a in range(p.shape[1]):
        if not y[:, a].any():
            assert np.isnan(found["AP"][a])
            continue
        assert found["AP"][a] == pytest.approx(average_precision_score(y[:, a], p[:, a]))
        if y[:, a].all():
            assert np.isnan(found["AUC"][a])
        else:
            assert found["AUC"][a] == pytest.approx(roc_auc_score(y[:, a], p[:, a]))


def test_hand_checked_example():
    y = np.array([[1, 0, 1], [1, 1, 0], [0, 0, 0], [0, 1, -1]])
    p = np.array([[0.9, 0.6, 0.2], [0.5, 0.8, 0.1], [0.3, 0.1, 0.4], [0.1, 0.7, 0.9]])
    found = par.score(p, y, 0.5)  # 0.5 itself is no positive
    assert found["mA"] == pytest.approx((3 / 4 + 3 / 4 + 1 / 2) / 3)
    assert found["accuracy"] == pytest.approx((1 / 3 + 1 / 2 + 1 + 1) / 4)
    assert found["precision"] == pytest.approx((1 / 2 + 1 + 1 + 1) / 4)
    assert found["recall"] == pytest.approx((1 / 2 + 1 / 2 + 1 + 1) / 4)
    assert found["F1_instance"] == pytest.approx((1 / 2 + 2 / 3 + 1 + 1) / 4)
    assert found["F1_harmonic"] == pytest.approx(2 * (3.5 / 4) * (3 / 4) / (3.5 / 4 + 3 / 4))
    released = par.score(p, y, 0.5, "released")
    assert released["precision"] == pytest.approx((1 / 2 + 1 + 0 + 1 / 2) / 4)
    assert released["mA"] == pytest.approx(found["mA"])


def test_attribute_without_positives():
    y, p = np.array([[0, 1], [0, 0]]), np.array([[0.2, 0.9], [0.8, 0.1]])
    assert par.score(p, y)["mA"] == 1.0  # left out
    assert par.score(p, y, convention="released")["mA"] == pytest.approx((0.25 + 1) / 2)
    first = par.score_attributes(p, y, ["a", "b"])["a"]
    assert first["negative_recall"] == 0.5 and math.isnan(first["mA"]) and math.isnan(first["AP"])


def test_nothing_known_is_undefined():
    found = par.score(np.full((2, 2), 0.9), np.full((2, 2), -1))
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 2)), "same subset"),
        (np.array([[np.nan]]), np.zeros((1, 1)), "NaN"),
    ],
)
def test_bad_predictions_are_refused(p, y, message):
    with pytest.raises(PedbenchError, match=message):
        par.score(p, y)


def test_unknown_metric_and_wrong_weights_are_refused():
    p, y = np.zeros((2, 1)), np.zeros((2, 1))
    with pytest.raises(PedbenchError, match="choose one of mA"):
        par.resampled("AUC", p, y, np.ones((1, 2)))
    with pytest.raises(PedbenchError, match="weights"):
        par.resampled("mA", p, y, np.ones((1, 3)))


def test_metrics_need_no_torch():
    code = "import sys, pedbench.tasks.par, pedbench.schedules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- loss


def task(ratio: list[float], weighting: str) -> Task:
    attributes = tuple(Attribute(str(i), "whole", "", "") for i in range(len(ratio)))
    return Task("par", attributes, tuple(ratio), weighting)


@pytest.mark.parametrize("weighting", ["released", "paper", "balanced", "none"])
def test_loss_ignores_unknown_labels(weighting):
    labels = torch.tensor([[1, 0, -1], [-1, 1, 0]])
    logits = torch.tensor([[0.3, -1.0, 2.0], [0.1, 0.4, 5.0]], requires_grad=True)
    loss = weighted_bce(logits, labels, task([0.2, 0.5, 0.7], weighting))
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[labels == -1] == 0).all() and (logits.grad[labels != -1] != 0).all()
    assert loss.item() > 0


def test_loss_weights_follow_their_formulas():
    ratio, labels = torch.tensor([0.2, 0.02]), torch.tensor([[1, 1], [0, 0], [-1, 2]])
    released = label_weights(labels, ratio, "released")
    expected = torch.stack([torch.exp(1 - ratio), torch.exp(ratio), torch.zeros(2)])
    torch.testing.assert_close(released, expected)
    paper = label_weights(labels, ratio, "paper")
    torch.testing.assert_close(paper[:2], torch.exp(-ratio).expand(2, 2))
    balanced = label_weights(labels, ratio, "balanced")
    torch.testing.assert_close(balanced[0], torch.tensor([2.5, 10.0]))
    torch.testing.assert_close(balanced[1], 0.5 / (1 - ratio))
    torch.testing.assert_close(label_weights(labels, ratio, "none").sum(), torch.tensor(4.0))
    with pytest.raises(PedbenchError, match="released, paper, balanced or none"):
        label_weights(labels, ratio, "focal")


@settings(max_examples=50, deadline=None)
@given(st.floats(0.06, 0.94))
def test_balanced_classes_weigh_the_same(share):
    ratio = torch.tensor([share], dtype=torch.float64)
    weights = label_weights(torch.tensor([[1], [0]]), ratio, "balanced")
    assert (share * weights[0]).item() == pytest.approx(((1 - share) * weights[1]).item())


# ---------------------------------------------------------------- schedules


class Settings:
    schedule, warmup_epochs, warmup_from, final_lr_fraction = "cosine", 2.0, 0.1, 0.01
    milestones: tuple[int, ...] = (3, 5)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), st.integers(3, 30))
def test_warmup_cosine_rises_then_falls(per_epoch, epochs):
    steps = range(per_epoch * epochs)
    rates = [learning_rate_factor(Settings(), {}, s, per_epoch, epochs) for s in steps]
    top = 2 * per_epoch
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[top] == 1.0
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True) and rates[-1] >= 0.01
    own = {"warmup_epochs": 1}
    assert learning_rate_factor(Settings(), own, per_epoch, per_epoch, epochs) == 1.0


def test_end_of_cosine_is_the_final_fraction():
    assert warmup_cosine(100, 100, 5, 0.1, 0.02) == pytest.approx(0.02)


def test_multistep_takes_a_tenth_at_the_milestones_of_the_protocol():
    steps = type("Steps", (Settings,), {"schedule": "multistep"})()
    rates = [learning_rate_factor(steps, {}, s, 2, 6) for s in range(12)]
    expected = [0.55, 0.55, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01]  # two an epoch
    assert rates == pytest.approx(expected)


def test_constant_and_unknown_schedule():
    constant = type("Constant", (Settings,), {"schedule": "constant"})()
    assert [learning_rate_factor(constant, {}, s, 1, 9) for s in (0, 1, 2, 8)] == [0.1, 0.55, 1, 1]
    typo = type("Typo", (Settings,), {"schedule": "cosin"})()
    with pytest.raises(PedbenchError, match="'cosin' is unknown: use cosine"):
        learning_rate_factor(typo, {}, 0, 1, 9)


def test_epoch_cosine_equals_timm():
    from timm.scheduler.cosine_lr import CosineLRScheduler

    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    timm = CosineLRScheduler(optimiser, t_initial=12, lr_min=0.005, warmup_t=3, warmup_lr_init=0.05)
    for epoch in range(1, 13):
        timm.step(epoch)
        rate = 0.5 * epoch_cosine(epoch, 12, 3, 0.1, 0.01)
        assert rate == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-12)
