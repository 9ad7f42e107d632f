"""SSF: every layer's output in the image tower is scaled and shifted, channel by channel.

Paper: Lian et al., "Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning",
NeurIPS 2022.
Trains: one scale and one shift per channel behind the patch convolution, each norm and each linear
layer of the image tower, and a linear head.
Parameters: 233,523 at ViT-B/16, 586,035 at ViT-L/14 (51 attributes;
26,163 and 39,219 of them are the head's).
Published: CIFAR-100 93.99 with ViT-B/16 (full fine-tuning 93.82); no pedestrian attributes.
Run: snakemake --cores all results/ssf/tables --config results=results/ssf
'methods=[linear_probe,ssf]'

Scales start around 1, shifts around 0, both with deviation 0.02, and neither decays, as in the
authors' code: the start is near CLIP, not CLIP itself. That code evaluates a moving average of the
weights, which is left out here. The shift of the keys is removed by the attention's softmax,
that of the last norm by the batch-norm of the linear head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pedbench.contracts import BaseMethod, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import ImageClassifier, head_reason, image_head

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
    """``scale * layer(x) + shift`` channel by channel: ``shape`` is ``(W,)`` where channels are the
    last axis, ``(W, 1, 1)`` for images."""

    def __init__(self, layer: nn.Module, *shape: int) -> None:
        super().__init__()
        self.layer = layer
        self.scale = nn.Parameter(1 + 0.02 * torch.randn(shape))
        self.shift = nn.Parameter(0.02 * torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, self.scale, self.layer(x))


class Method(BaseMethod[Params]):
    needs_tokens = True
    tasks = ("par", "reid")
    search = {"lr": (1e-3, 1e-1)}

    def supports(self, task: Task, backbone: Backbone) -> str | None:
        return super().supports(task, backbone) or head_reason(self.params.head, task)

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        visual = backbone.clip.visual
        layers = [
            (name, module)
            for name, module in visual.named_modules()
            if isinstance(module, nn.Linear | nn.LayerNorm)
        ]
        for name, module in layers:
            visual.set_submodule(name, ScaleShift(module, len(module.bias)))
        visual.conv1 = ScaleShift(visual.conv1, backbone.visual_width, 1, 1)
        head = image_head(self.params.head, backbone, task, self.params.template)
        return ImageClassifier(backbone, head)

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        decay = {"head": {}, "body": {"weight_decay": 0.0}}
        return [group | decay[group["name"]] for group in super().param_groups(model)]
