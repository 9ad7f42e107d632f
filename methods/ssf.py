"""SSF: every layer's output in the image tower is scaled and shifted, channel by channel.

Paper: Lian et al., "Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning",
NeurIPS 2022.
Trains: one scale and one shift per channel behind each norm and each linear layer of the image
tower, and a linear head.
Parameters: 231,987 at ViT-B/16, 583,987 at ViT-L/14 (51 attributes;
26,163 and 39,219 of them are the head's).
Published: CIFAR-100 93.99 with ViT-B/16 (full fine-tuning 93.82); no pedestrian attributes.
Run: snakemake --cores all results/tables --config 'methods=[ssf]'

Scales start around 1, shifts around 0, both with deviation 0.02, as in the authors' code: the
start is near CLIP, not CLIP itself. The shift of the keys is removed by the attention's softmax,
that of the last norm by the batch-norm of the linear head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pedbench.contracts import BaseMethod, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import ImageClassifier, image_head

BIBTEX = """
@inproceedings{lian2022ssf,
  author = {Lian, Dongze and Zhou, Daquan and Feng, Jiashi and Wang, Xinchao},
  title = {Scaling \\& Shifting Your Features: A New Baseline for Efficient Model Tuning},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year = {2022},
}
"""


@dataclass(frozen=True)
class Params:
    head: Literal["linear", "pair", "sigmoid"] = "linear"  # or against fixed texts
    template: str = "a photo of a person {}"  # of the fixed texts
    lr: float = 1e-2  # learning rate of scales and shifts
    head_lr: float = 1e-3  # learning rate of what the head learns


class ScaleShift(nn.Module):
    """``scale * layer(x) + shift`` along the last axis, of size W."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer = layer
        self.scale = nn.Parameter(1 + 0.02 * torch.randn(width))
        self.shift = nn.Parameter(0.02 * torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, self.scale, self.layer(x))


class Method(BaseMethod[Params]):
    needs_tokens = True
    search: ClassVar[Mapping[str, Any]] = {"lr": (1e-3, 1e-1)}

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        visual = backbone.clip.visual
        layers = [
            (name, module)
            for name, module in visual.named_modules()
            if isinstance(module, nn.Linear | nn.LayerNorm)
        ]
        for name, module in layers:
            out = len(module.bias)
            visual.set_submodule(name, ScaleShift(module, out))
        head = image_head(self.params.head, backbone, task, self.params.template)
        return ImageClassifier(backbone, head)
