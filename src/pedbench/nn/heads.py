"""Multi-label heads shared by methods."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pedbench.contracts import Output
from pedbench.nn.backbone import Backbone


def pair_logits(image: Tensor, positive: Tensor, negative: Tensor, scale: Tensor) -> Tensor:
    """``(B, E), (A, E), (A, E) -> (B, A)``: scale * (cos+ - cos-), whose sigmoid is the softmax
    over the two prompts of an attribute."""
    image = F.normalize(image, dim=-1)
    difference = F.normalize(positive, dim=-1) - F.normalize(negative, dim=-1)
    return scale * image @ difference.T


class ImageClassifier(nn.Module):
    """Image features, standardised, then one linear unit per attribute.

    ``head(stem(images))`` with ``stem`` the image encoder, so a frozen stem is cached. The
    batch-norm without parameters makes the head's learning rate independent of the backbone.
    """

    def __init__(self, backbone: Backbone, attributes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(
            nn.BatchNorm1d(backbone.embed_dim, affine=False),
            nn.Linear(backbone.embed_dim, attributes),
        )

    def stem(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W) -> (B, E)``."""
        return self.backbone.encode_image(images)

    def forward(self, images: Tensor) -> Output:
        return Output(self.head(self.stem(images)))
