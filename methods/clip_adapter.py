"""CLIP-Adapter: a bottleneck on the image features, blended with them residually.

Paper: Gao et al., "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", IJCV 2024.
Trains: the bottleneck.
Parameters: 131,072 at ViT-B/16, 294,912 at ViT-L/14.
Published: ImageNet accuracy 63.59 with RN50, 16 shots; no pedestrian attributes.
Run: snakemake --cores all results/clip_adapter/tables --config results=results/clip_adapter
'methods=[linear_probe,clip_adapter]'

The adapter of the text features, which the paper found to add little, is left out as in the
authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from pedbench.contracts import BaseMethod, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import ImageClassifier, image_head

BIBTEX = """
@article{gao2024clipadapter,
  author = {Gao, Peng and Geng, Shijie and Zhang, Renrui and Ma, Teli and Fang, Rongyao
            and Zhang, Yongfeng and Li, Hongsheng and Qiao, Yu},
  title = {{CLIP-Adapter}: Better Vision-Language Models with Feature Adapters},
  journal = {International Journal of Computer Vision},
  year = {2024},
}
"""


@dataclass(frozen=True)
class Params:
    ratio: float = 0.2  # share of the adapted features; CLIP's own have the rest
    reduction: int = 4  # the bottleneck's width is the features' divided by this
    head: Literal["pair", "sigmoid"] = "pair"  # against fixed texts
    template: str = "a photo of a person {}"  # of the fixed texts
    lr: float = 1e-5  # learning rate


class Mixed(nn.Module):
    """``forward(features (B, E)) -> (B, E)``: the paper's Eq. 5."""

    def __init__(self, width: int, units: int, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.bottleneck = nn.Sequential(
            nn.Linear(width, units, bias=False),
            nn.ReLU(),
            nn.Linear(units, width, bias=False),
            nn.ReLU(),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.ratio * self.bottleneck(features) + (1 - self.ratio) * features


class Method(BaseMethod[Params]):
    search = {"lr": (1e-4, 1e-1), "ratio": [0.2, 0.4, 0.6, 0.8]}

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        p, width = self.params, backbone.embed_dim
        mixed = Mixed(width, width // p.reduction, p.ratio)
        texts = image_head(p.head, backbone, task, p.template)
        return ImageClassifier(backbone, nn.Sequential(mixed, texts))
