"""Tip-Adapter(-F): CLIP helped by a cache of training images and their labels.

Paper: Zhang et al., "Tip-Adapter: Training-Free Adaption of CLIP for Few-Shot Classification",
ECCV 2022.
Trains: the cache's keys (Tip-Adapter-F); nothing with ``finetune: false``.
Parameters: 835,584 at ViT-B/16, 1,253,376 at ViT-L/14 (51 attributes, 16 shots).
Published: ImageNet accuracy 65.51 (training-free 62.03) with RN50, 16 shots, the first by the
released code's best epoch on test images; no pedestrian attributes.
Run: snakemake --cores all results/tip_adapter/tables --config results=results/tip_adapter
'methods=[linear_probe,tip_adapter]'

The paper classifies among classes with ``shots`` cached images each. Here each attribute is such a
problem of two classes, presence and absence, with a cache of its own, and its logit is the
difference of the two classes' scores. Values are the labels and stay fixed, as in the paper. The
paper searches its two constants on validation images; here they are tuned like any others. The
released code's keys are means over augmented views (ten passes); here each is one view. Without
training the method sees ``shots`` images of an attribute's presence and as many of its absence,
while the others see every training image, as do the keys where they train.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pedbench.contracts import BaseMethod, Batch, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import ImageClassifier, image_head

BIBTEX = """
@inproceedings{zhang2022tipadapter,
  author = {Zhang, Renrui and Zhang, Wei and Fang, Rongyao and Gao, Peng and Li, Kunchang
            and Dai, Jifeng and Qiao, Yu and Li, Hongsheng},
  title = {{Tip-Adapter}: Training-Free Adaption of {CLIP} for Few-Shot Classification},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year = {2022},
}
"""


@dataclass(frozen=True)
class Params:
    shots: int = 16  # cached images of each attribute's presence, and as many of its absence
    alpha: float = 1.0  # weight of the cache against CLIP
    beta: float = 5.5  # sharpness of the affinity
    finetune: bool = True  # the keys train (Tip-Adapter-F)
    template: str = "a photo of a person {}"  # of the fixed texts
    lr: float = 1e-3  # learning rate of the keys


class CachedHead(nn.Module):
    """CLIP's logits plus the cache's: ``forward(features (B, E)) -> (B, A)``, Eq. 3 to 5.

    ``keys (A, 2 * shots, E)`` are normalised features, ``signs (A, 2 * shots)`` +1 for presence,
    -1 for absence, 0 where the training images hold no example.
    """

    signs: Tensor

    def __init__(self, clip_head: nn.Module, shape: tuple[int, int, int], params: Params) -> None:
        super().__init__()
        self.clip_head, self.alpha, self.beta = clip_head, params.alpha, params.beta
        keys = torch.zeros(shape)
        if params.finetune:
            self.keys = nn.Parameter(keys)
        else:
            self.register_buffer("keys", keys)
        self.register_buffer("signs", torch.zeros(shape[:2]))

    def forward(self, features: Tensor) -> Tensor:
        cosine = torch.einsum("be,ake->bak", F.normalize(features, dim=-1), self.keys)
        affinity = torch.exp(self.beta * (cosine - 1))
        return self.clip_head(features) + self.alpha * (affinity * self.signs).sum(-1)

    def fill(self, features: Tensor, labels: Tensor) -> None:
        """Draw the cached images among ``features (N, E)`` with ``labels (N, A)``."""
        features, shots = F.normalize(features, dim=-1), self.signs.shape[1] // 2
        for attribute, known in enumerate(labels.T.cpu()):
            for value, start, sign in ((1, 0, 1.0), (0, shots, -1.0)):
                found = (known == value).nonzero()[:, 0]
                drawn = found[torch.randperm(len(found))[:shots]]
                place = slice(start, start + len(drawn))
                self.keys[attribute, place] = features[drawn]
                self.signs[attribute, place] = sign


class Method(BaseMethod[Params]):
    search = {
        "lr": (1e-4, 1e-1),
        "alpha": (0.1, 10.0),
        "beta": (1.0, 20.0),
    }

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        shape = (len(task.attributes), 2 * self.params.shots, backbone.embed_dim)
        texts = image_head("pair", backbone, task, self.params.template)
        return ImageClassifier(backbone, CachedHead(texts, shape, self.params))

    def prepare(self, model: Any, batches: Iterator[Batch]) -> None:
        seen = [(model.stem(batch.images), batch.labels) for batch in batches]
        features, labels = (torch.cat(part) for part in zip(*seen, strict=True))
        model.head.fill(features, labels)
