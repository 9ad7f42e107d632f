"""Losses of person re-identification: by hand, against plain loops, and where pairs are missing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from pedbench.contracts import Batch, Output, PedbenchError, ReidSettings, Task
from pedbench.tasks.reid_losses import (
    PAIR_SCALE,
    hard_triplets,
    identity_loss,
    margin_scores,
    pair_loss,
    reid_terms,
    supcon,
)

SETTINGS = ReidSettings(
    id_loss="cross_entropy",
    id_loss_weight=1.0,
    id_margin=0.35,
    id_scale=30.0,
    label_smoothing=0.1,
    pair_loss="triplet",
    pair_loss_weight=1.0,
    margin=0.3,
    feature="before",
)
PAIR_LOSSES = ("triplet", "triplet_soft", "contrastive", "cosface", "circle")
# persons with two images, with three, and alone in the batch
IDENTITIES = torch.tensor([0, 4, 1, 0, 1, 2, 1])


@pytest.fixture
def features():
    return torch.randn(7, 6, generator=torch.Generator().manual_seed(0))


def by_definition(kind, features, identities, margin):
    """Every pair loss of `pair_loss` as its equation says, one image after the other."""
    unit, ids = F.normalize(features), identities.tolist()
    s, values = PAIR_SCALE.get(kind, 1.0), []
    for i, own in enumerate(ids):
        positives = [j for j, other in enumerate(ids) if other == own and j != i]
        negatives = [j for j, other in enumerate(ids) if other != own]
        if not positives or not negatives:
            continue
        near = min(math.dist(features[i], features[j]) for j in negatives)
        far = max(math.dist(features[i], features[j]) for j in positives)
        p = [float(unit[i] @ unit[j]) for j in positives]
        n = [float(unit[i] @ unit[j]) for j in negatives]
        if kind == "triplet":
            values.append(max(0.0, far - near + margin))
        elif kind == "triplet_soft":
            values.append(math.log1p(math.exp(far - near)))
        elif kind == "contrastive":
            others = sum(math.exp(s * c) for c in n)
            values += [-math.log(math.exp(s * c) / (math.exp(s * c) + others)) for c in p]
        elif kind == "cosface":
            pulls = sum(math.exp(-s * c) for c in p)
            values.append(math.log1p(pulls * sum(math.exp(s * (c + margin)) for c in n)))
        else:
            weighed = [s * max(0.0, c + margin) * (c - margin) for c in n]
            wanted = [-s * max(0.0, 1 + margin - c) * (c - 1 + margin) for c in p]
            values.append(math.log1p(sum(map(math.exp, weighed)) * sum(map(math.exp, wanted))))
    return sum(values) / len(values)


@pytest.mark.parametrize("kind", PAIR_LOSSES)
@pytest.mark.parametrize("margin", [0.1, 0.35])
def test_pair_losses_are_their_equations(kind, margin, features):
    """Also where persons have one, two or three images in the batch."""
    found = pair_loss(kind, features, IDENTITIES, margin)
    wanted = by_definition(kind, features, IDENTITIES, margin)
    assert found.item() == pytest.approx(wanted, rel=1e-4)


def test_triplets_by_hand():
    """Persons at 0 and 3, and at 1 and 10, on a line; somebody alone at 4."""
    features = torch.tensor([[0.0], [3.0], [1.0], [10.0], [4.0]])
    identities = torch.tensor([0, 0, 1, 1, 2])
    triplets = [found.tolist() for found in hard_triplets(features, identities)]
    assert triplets == [[0, 1, 2, 3], [1, 0, 3, 2], [2, 4, 0, 4]]
    # (3 - 1), (3 - 1), (9 - 1), (9 - 6), each + 0.3; the images that violate nothing count as well
    assert pair_loss("triplet", features, identities, 0.3).item() == pytest.approx(15 / 4 + 0.3)
    easy = torch.tensor([[0.0], [1.0], [9.0], [10.0], [10.5]])
    # anchors 0, 1, 2 violate nothing, 3 does: its positive is 1 away, its negative 0.5
    assert pair_loss("triplet", easy, identities, 0.3).item() == pytest.approx(0.8 / 4)
    shifts = (2, 2, 8, 3)
    soft = sum(math.log1p(math.exp(x)) for x in shifts) / 4
    assert pair_loss("triplet_soft", features, identities, 0.3).item() == pytest.approx(soft)


@pytest.mark.parametrize("kind", PAIR_LOSSES)
@pytest.mark.parametrize(
    "identities",
    [[0, 1, 2, 3, 4, 5, 6], [2] * 7, [0, 0, 0, 0, 0, 0, 6]],
    ids=["everybody alone", "one person", "one person and a stranger"],
)
def test_without_pairs_the_loss_is_0_and_finite(kind, identities, features):
    features.requires_grad_()
    loss = pair_loss(kind, features, torch.tensor(identities), 0.3)
    loss.backward()
    assert loss.ndim == 0 and torch.isfinite(loss)
    assert features.grad is not None and torch.isfinite(features.grad).all()
    pairs = len(set(identities)) == 2
    assert bool(loss > 0) == bool(features.grad.any()) == pairs


def test_who_is_alone_is_no_anchor(features):
    assert hard_triplets(features, IDENTITIES)[0].tolist() == [0, 2, 3, 4, 6]


@pytest.mark.parametrize("kind", PAIR_LOSSES)
@pytest.mark.parametrize("size", [8, 64])
def test_gradients_are_finite_where_features_coincide(kind, size):
    """The identity sampler repeats images of persons with few of them; 64 is the size from which
    torch computes distances by products."""
    features = torch.ones(size, 4).requires_grad_()
    pair_loss(kind, features, torch.arange(size) // 4, 0.3).backward()
    assert features.grad is not None and torch.isfinite(features.grad).all()


def test_cross_entropy_smooths_over_all_identities():
    logits, true = torch.tensor([[2.0, 0.0, -1.0, 0.5]]), torch.tensor([0])
    log = F.log_softmax(logits, 1)[0].tolist()
    wanted = -(0.9 * log[0] + 0.1 * sum(log) / 4)
    assert identity_loss(logits, true, SETTINGS).item() == pytest.approx(wanted)


def test_margins_by_hand():
    cosines, true = torch.tensor([[0.6, -0.2], [-0.95, 0.9]]), torch.tensor([0, 0])
    m, s = 0.35, 10.0
    turned = math.cos(math.acos(0.6) + m), -0.95 - m * math.sin(m)
    wanted = {
        "cosface": [[s * (0.6 - m), s * -0.2], [s * (-0.95 - m), s * 0.9]],
        "arcface": [[s * turned[0], s * -0.2], [s * turned[1], s * 0.9]],
        "circle": [
            [s * (1 + m - 0.6) * (0.6 - 1 + m), s * (-0.2 + m) * (-0.2 - m)],
            [s * (1 + m + 0.95) * (-0.95 - 1 + m), s * (0.9 + m) * (0.9 - m)],
        ],
    }
    for kind, scores in wanted.items():
        found = margin_scores(kind, cosines, true, m, s)
        torch.testing.assert_close(found, torch.tensor(scores), rtol=1e-5, atol=1e-5)
    assert math.acos(-0.95) > math.pi - m, "the second row tests where ArcFace is continued"


@pytest.mark.parametrize("kind", ["cosface", "arcface", "circle"])
def test_without_margin_the_true_identity_is_not_made_harder(kind):
    cosines = torch.linspace(-1, 1, 12).view(3, 4)
    true = torch.tensor([0, 3, 1])
    found = margin_scores(kind, cosines, true, 0.0, 1.0)
    wanted = cosines.clone()
    if kind == "circle":  # its weights stay
        wanted = F.relu(cosines) * cosines
        rows = torch.arange(3)
        wanted[rows, true] = (1 - cosines[rows, true]) * (cosines[rows, true] - 1)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", ["cosface", "arcface", "circle"])
def test_margin_losses_fall_with_the_true_cosine_and_have_finite_gradients(kind):
    true = torch.zeros(41, dtype=torch.long)
    cosines = torch.zeros(41, 3)
    cosines[:, 0] = torch.linspace(-1, 1, 41)
    cosines.requires_grad_()
    settings = replace(SETTINGS, id_loss=kind)
    losses = [identity_loss(row[None], true[:1], settings) for row in cosines]
    torch.stack(losses).sum().backward()
    assert cosines.grad is not None and torch.isfinite(cosines.grad).all()
    values = torch.stack(losses).detach()
    assert (values.diff() <= 1e-6).all() and values[0] > values[-1] + 1


def test_contrast_between_images_and_texts_by_hand(features):
    """Inner products are not normalised, an image's own text counts although it is one tensor."""
    texts = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))
    log = F.log_softmax(features @ texts.T, dim=1)
    own = [log[i][(IDENTITIES[i] == IDENTITIES)].mean() for i in range(7)]
    found = supcon(features, IDENTITIES, texts, IDENTITIES)
    assert found.item() == pytest.approx(-torch.stack(own).mean().item(), rel=1e-5)
    few = supcon(features[:3], IDENTITIES[:3], texts, IDENTITIES)
    assert few.item() == pytest.approx(-torch.stack(own[:3]).mean().item(), rel=1e-5)
    assert supcon(features, torch.zeros(7).long(), texts, torch.zeros(7).long()) == 0


def terms_of(features, **changes):
    task = Task("reid", (), (), identities=5, reid=replace(SETTINGS, **changes))
    logits = features[:, :5] / 10
    batch = Batch(torch.empty(7, 0), torch.empty(7, 0), IDENTITIES)
    return reid_terms(Output(logits, {"before": features}), batch, task)


def test_terms_are_weighted_and_left_out(features):
    plain = terms_of(features)
    half = terms_of(features, id_loss_weight=0.25, pair_loss_weight=0.5)
    assert list(plain) == list(half) == ["id", "pair"]
    torch.testing.assert_close(half["id"], 0.25 * plain["id"])
    torch.testing.assert_close(half["pair"], 0.5 * plain["pair"])
    assert list(terms_of(features, pair_loss="none")) == ["id"]
    assert list(terms_of(features, pair_loss_weight=0.0)) == ["id"]
    assert list(terms_of(features, id_loss_weight=0.0)) == ["pair"]


def test_terms_are_computed_in_float32_under_autocast(features):
    wanted = terms_of(features, pair_loss="circle", id_loss="cosface")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = terms_of(features, pair_loss="circle", id_loss="cosface")
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_what_cannot_be_computed_is_named(features):
    batch = Batch(features, features)
    with pytest.raises(PedbenchError, match="kind par has no losses of re-identification"):
        reid_terms(Output(features), batch, Task("par", (), ()))
    with pytest.raises(PedbenchError, match="no identities"):
        reid_terms(Output(features), batch, Task("reid", (), (), reid=SETTINGS))
    with pytest.raises(PedbenchError, match="pair_loss 'tripel' is unknown: use none, triplet"):
        pair_loss("tripel", features, IDENTITIES, 0.3)
    with pytest.raises(PedbenchError, match="id_loss 'cosine' is unknown: use cross_entropy"):
        margin_scores("cosine", features, IDENTITIES, 0.3, 1.0)
