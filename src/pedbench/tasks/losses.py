"""Losses of pedestrian attribute recognition."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pedbench.contracts import PedbenchError, Task

BALANCED_LIMIT = 10.0  # a share of positives below 5 % gains no further weight


def label_weights(labels: Tensor, ratio: Tensor, weighting: str) -> Tensor:
    """Weight of every label, ``(B, A)``; 0 where the label is neither 0 nor 1.

    ``ratio (A,)`` is the share r of positives per attribute. ``weighting`` is one of

    * ``released``: e^(1-r) on positives, e^r on negatives (code of PromptPAR and VTB);
    * ``paper``: e^(-r) on both (PromptPAR, Eq. 9);
    * ``balanced``: 1/(2r) and 1/(2(1-r)), so that both classes weigh the same, at most 10;
    * ``none``: 1.
    """
    if weighting == "released":
        positive, negative = torch.exp(1 - ratio), torch.exp(ratio)
    elif weighting == "paper":
        positive = negative = torch.exp(-ratio)
    elif weighting == "balanced":
        positive = (0.5 / ratio).clamp(max=BALANCED_LIMIT)
        negative = (0.5 / (1 - ratio)).clamp(max=BALANCED_LIMIT)
    elif weighting == "none":
        positive = negative = torch.ones_like(ratio)
    else:
        raise PedbenchError(
            f"loss_weighting {weighting!r} is unknown: use released, paper, balanced or none"
        )
    return positive * (labels == 1) + negative * (labels == 0)


def weighted_bce(logits: Tensor, labels: Tensor, task: Task) -> Tensor:
    """Binary cross-entropy, weighted as ``task.loss_weighting`` says; a scalar.

    ``logits`` and ``labels`` have shape ``(B, A)``. Unknown labels are left out. The sum over
    attributes is divided by the batch size.
    """
    ratio = logits.new_tensor(task.positive_ratio)
    weights = label_weights(labels, ratio, task.loss_weighting)
    target = (labels == 1).to(logits.dtype)
    total = F.binary_cross_entropy_with_logits(logits, target, weights, reduction="sum")
    return total / len(logits)
