"""The head that methods share in person re-identification."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pedbench.contracts import Output, Task
from pedbench.tasks.reid_losses import settings_of


class BNNeck(nn.Module):
    """A batch-norm between the features of the pair loss and the scores of the identity loss
    (Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person Re-identification", CVPR
    Workshops 2019, section 2.2).

    ``forward(features (B, D)) -> Output``: ``extras["before"]`` are the features given,
    ``features`` these or the normalised ones, as ``task.reid.feature`` says, and ``logits (B, C)``
    a linear map of the normalised ones without bias; under a loss with a margin, their cosines
    with the identities' weights. The norm's bias stays 0, so that both losses share one origin.

    The logits are computed in evaluation too, a small part of any forward pass; retrieval does not
    read them. Raises PedbenchError for another task.
    """

    def __init__(self, width: int, task: Task) -> None:
        super().__init__()
        settings = settings_of(task)
        self.norm = nn.BatchNorm1d(width)
        self.norm.bias.requires_grad_(False)
        self.classifier = nn.Linear(width, task.identities, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)
        self.cosines = settings.id_loss != "cross_entropy"
        self.after = settings.feature == "after"

    def forward(self, features: Tensor) -> Output:
        normed = self.norm(features)
        if self.cosines:
            weight = F.normalize(self.classifier.weight, dim=1)
            logits = F.normalize(normed, dim=1) @ weight.T
        else:
            logits = self.classifier(normed)
        shown = normed if self.after else features
        return Output(logits, {"before": features}, shown)
