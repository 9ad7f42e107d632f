"""Losses of person re-identification: of the training identities' scores, of the features in a
batch, and between images and texts.

Pair losses and `supcon` are pytorch-metric-learning's, set to the field's definitions, from which
its defaults differ: docs/decisions/reid.md. It is imported where it is used: a second per process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import cos, sin
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pedbench.contracts import PedbenchError, ReidSettings, Task

if TYPE_CHECKING:
    from pedbench.contracts import Batch, Output

# factor of the cosines in pair losses, as the authors of the published rows set it (Simple-ReID)
PAIR_SCALE = {"contrastive": 16, "cosface": 16, "circle": 48}
TINY = 1e-12  # below the smallest squared sine that float32 tells from 0


def settings_of(task: Task) -> ReidSettings:
    """The task's settings. Raises PedbenchError if it is no re-identification."""
    if task.reid is None:
        raise PedbenchError(f"a task of kind {task.kind} has no losses of re-identification")
    return task.reid


def reid_terms(output: Output, batch: Batch, task: Task) -> dict[str, Tensor]:
    """The protocol's losses, weighted: ``id`` of ``output.logits (B, C)`` and ``pair`` of
    ``output.extras["before"] (B, D)``. What weighs 0 is left out.

    Computed in float32 also under autocast: cosines are multiplied by up to 100.
    """
    settings, identities = settings_of(task), batch.identities
    if identities is None:
        raise PedbenchError("the batch has no identities, which the losses compare")
    terms = {}
    with torch.autocast(output.logits.device.type, enabled=False):
        if settings.id_loss_weight:
            loss = identity_loss(output.logits.float(), identities, settings)
            terms["id"] = settings.id_loss_weight * loss
        if settings.compares:
            features = output.extras["before"].float()
            loss = pair_loss(settings.pair_loss, features, identities, settings.margin)
            terms["pair"] = settings.pair_loss_weight * loss
    return terms


def identity_loss(logits: Tensor, identities: Tensor, settings: ReidSettings) -> Tensor:
    """Mean cross-entropy of ``logits (B, C)``; a scalar. ``settings.id_loss`` is one of

    * ``cross_entropy``: the share ``label_smoothing`` of the target is spread over all C
      identities, the true one included (Szegedy et al., CVPR 2016, section 7);
    * ``cosface``, ``arcface``, ``circle``: ``logits`` are cosines; see `margin_scores`.
    """
    if settings.id_loss == "cross_entropy":
        return F.cross_entropy(logits, identities, label_smoothing=settings.label_smoothing)
    kind, margin, scale = settings.id_loss, settings.id_margin, settings.id_scale
    return F.cross_entropy(margin_scores(kind, logits, identities, margin, scale), identities)


def margin_scores(
    kind: str, cosines: Tensor, identities: Tensor, margin: float, scale: float
) -> Tensor:
    """``cosines (B, C)`` as logits, the true identity's made harder by ``margin``. ``kind`` is

    * ``cosface``: cos - m of the true one (Wang et al., CVPR 2018, Eq. 4);
    * ``arcface``: cos(angle + m) of it (Deng et al., CVPR 2019, Eq. 3), from pi - m on
      cos - m sin m, which goes on falling, as in their code;
    * ``circle``: (1 + m - cos)(cos - 1 + m) of it, (cos + m)(cos - m) of the others, the first
      factor not below 0 and without gradient (Sun et al., CVPR 2020, Eq. 5 and 6, at class
      level).
    """
    true = F.one_hot(identities, cosines.shape[1]).bool()
    if kind == "cosface":
        return scale * (cosines - margin * true)
    if kind == "arcface":
        sines = (1 - cosines.square()).clamp(min=TINY).sqrt()
        turned = cosines * cos(margin) - sines * sin(margin)
        turned = torch.where(cosines > -cos(margin), turned, cosines - margin * sin(margin))
        return scale * torch.where(true, turned, cosines)
    if kind == "circle":
        fixed = cosines.detach()
        positive = F.relu(1 + margin - fixed) * (cosines - 1 + margin)
        negative = F.relu(fixed + margin) * (cosines - margin)
        return scale * torch.where(true, positive, negative)
    raise PedbenchError(
        f"id_loss {kind!r} is unknown: use cross_entropy, cosface, arcface or circle"
    )


def pair_loss(kind: str, features: Tensor, identities: Tensor, margin: float) -> Tensor:
    """The loss of ``features (B, D)`` of persons ``identities (B,)``; a scalar. ``kind`` is

    * ``triplet``: of each image's hardest positive and negative in the batch by raw Euclidean
      distance, mean of max(0, d+ - d- + margin) (Hermans et al., arXiv 1703.07737, Eq. 5);
    * ``triplet_soft``: mean of log(1 + exp(d+ - d-)), without margin (there, section 2);
    * ``contrastive``: of each positive pair, cross-entropy of it against all negatives of its
      first image, at cosines times 16; without margin;
    * ``cosface``: mean of log(1 + sum exp(s (cos- + m)) sum exp(-s cos+)), s = 16, over an
      image's negatives and positives (Sun et al., CVPR 2020, Eq. 1);
    * ``circle``: the same with the weights of their Eq. 6, s = 48.

    An image without a positive or without a negative in the batch contributes nothing; if there
    is no other, the loss is 0 and its gradient too.
    """
    if kind == "cosface":
        return pairwise_cosface(features, identities, margin, PAIR_SCALE[kind])
    return _library_loss(kind, margin)(features, identities)


def pairwise_cosface(features: Tensor, identities: Tensor, margin: float, scale: float) -> Tensor:
    """``cosface`` of `pair_loss`, which the library does not have."""
    unit = F.normalize(features, dim=1)
    same = identities[:, None] == identities[None, :]
    positive = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    rows = positive.any(1) & ~same.all(1)
    cosines, positive, same = (unit @ unit.T)[rows], positive[rows], same[rows]
    hard_positive = (-scale * cosines).masked_fill(~positive, -torch.inf).logsumexp(1)
    hard_negative = (scale * (cosines + margin)).masked_fill(same, -torch.inf).logsumexp(1)
    return F.softplus(hard_negative + hard_positive).sum() / max(1, len(cosines))


def hard_triplets(features: Tensor, identities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of anchors, their farthest positives and nearest negatives in the batch, each
    ``(T,)``. Images without a positive or without a negative are no anchors."""
    from pytorch_metric_learning.miners import BatchHardMiner

    return BatchHardMiner(distance=_euclidean())(features, identities)


def supcon(
    anchors: Tensor, anchor_ids: Tensor, others: Tensor, other_ids: Tensor, temperature: float = 1.0
) -> Tensor:
    """Supervised contrastive loss (Khosla et al., NeurIPS 2020, Eq. 2) between two kinds of
    features, say images ``anchors (B, D)`` and texts ``others (N, D)``; a scalar.

    Inner products, not normalised, as CLIP-ReID takes them: mean over anchors of the mean
    -log softmax over ``others`` of those with the anchor's identity. 0 if all share one identity.
    """
    from pytorch_metric_learning import distances, losses, reducers

    inner = distances.DotProductSimilarity(normalize_embeddings=False)
    loss = losses.SupConLoss(temperature, distance=inner, reducer=reducers.MeanReducer())
    if other_ids is anchor_ids:  # by this the library would tell a comparison with oneself
        other_ids = other_ids.clone()
    return loss(anchors, anchor_ids, ref_emb=others, ref_labels=other_ids)


def _euclidean() -> Any:
    """Raw distances; the library's own normalise the features first."""
    from pytorch_metric_learning.distances import LpDistance

    return LpDistance(normalize_embeddings=False)


@cache
def _library_loss(kind: str, margin: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss of `pair_loss`. Means are over all, where the library would leave zeros out."""
    from pytorch_metric_learning import losses, reducers

    mean = reducers.MeanReducer()
    if kind in ("triplet", "triplet_soft"):
        soft = kind == "triplet_soft"
        triplet = losses.TripletMarginLoss(
            0.0 if soft else margin, smooth_loss=soft, distance=_euclidean(), reducer=mean
        )
        return lambda features, ids: triplet(features, ids, hard_triplets(features, ids))
    if kind == "contrastive":
        return losses.NTXentLoss(1 / PAIR_SCALE[kind], reducer=mean)
    if kind == "circle":  # its own reducer leaves out just the images without a pair
        return losses.CircleLoss(margin, PAIR_SCALE[kind])
    raise PedbenchError(
        f"pair_loss {kind!r} is unknown: use none, triplet, triplet_soft, contrastive, cosface or "
        "circle"
    )
