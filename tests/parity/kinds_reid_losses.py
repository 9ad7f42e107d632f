"""Golden losses of person re-identification."""

from __future__ import annotations

from collections.abc import Callable

import torch
from golden import Case, Tolerances
from torch import Tensor
from torch.nn import functional as F

from pedbench.contracts import ReidSettings
from pedbench.tasks.reid_losses import hard_triplets, identity_loss, pair_loss, supcon

TOLERANCES: dict[str, Tolerances] = {
    "reid_losses": {"loss": (1e-6, 0.0), "grad": (1e-5, 1e-7), "output": (1e-6, 0.0)}
}
SMOOTHED = ReidSettings("cross_entropy", 1.0, 0.0, 1.0, 0.1, "none", 0.0, 0.3, "before")
SHRINK = 0.2  # of the images' features in the contrastive cases


def check_reid_losses(case: Case) -> None:
    names = ("features", "labels", "scores", "text_features")
    features, labels, scores, texts = (case.tensor(f"input/{name}") for name in names)
    texts = texts[labels]
    losses: dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]] = {
        "ce_label_smooth": (scores, lambda x: identity_loss(x, labels, SMOOTHED)),
        "triplet_margin": (features, lambda x: pair_loss("triplet", x, labels, 0.3)),
        "triplet_torchreid": (features, lambda x: pair_loss("triplet", x, labels, 0.3)),
        "triplet_margin_normalised": (
            features,
            lambda x: pair_loss("triplet", F.normalize(x), labels, 0.3),
        ),
        "triplet_soft": (features, lambda x: pair_loss("triplet_soft", x, labels, 0.3)),
        "supcon_image_text": (
            features,
            lambda x: supcon(SHRINK * x, labels, texts, labels),
        ),
        "supcon_text_image": (
            features,
            lambda x: supcon(texts, labels, SHRINK * x, labels),
        ),
    }
    for name, (given, loss) in losses.items():
        given = given.clone().requires_grad_()
        value = loss(given)
        case.compare(f"loss/{name}", value)
        case.compare(f"grad/{name}", torch.autograd.grad(value, given)[0])
    anchors, positives, negatives = hard_triplets(features, labels)
    assert anchors.tolist() == list(range(len(labels)))
    case.compare("output/hard_positive_index", positives)
    case.compare("output/hard_negative_index", negatives)
    for name, found in (("dist_ap", positives), ("dist_an", negatives)):
        case.compare(f"output/{name}", torch.linalg.vector_norm(features - features[found], dim=1))
