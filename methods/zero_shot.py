"""Zero-shot CLIP: each attribute is a pair of prompts, nothing is learned.

Paper: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021. CLIP has no multi-label head, so, as for all prompt learners here, an attribute's
logit is scale * (cos(image, positive) - cos(image, negative)): the binary softmax over the pair.
Trains: nothing (one run, paired with every seed of the others).
Run: snakemake --cores all results/tables --config 'methods=[zero_shot]'
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pedbench.contracts import BaseMethod, Output, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import pair_logits
from pedbench.nn.sentences import attribute_pairs


@dataclass(frozen=True)
class Params:
    template: str = "a photo of a person {}"  # {} is replaced by the attribute's phrase


class Model(nn.Module):
    """``forward(images (B, 3, H, W)) -> Output`` with logits ``(B, A)``."""

    def __init__(self, backbone: Backbone, task: Task, template: str) -> None:
        super().__init__()
        self.backbone = backbone
        positive, negative = attribute_pairs(task.attributes, template)
        with torch.no_grad():
            self.register_buffer("positive", backbone.encode_text(backbone.tokenizer(positive)))
            self.register_buffer("negative", backbone.encode_text(backbone.tokenizer(negative)))

    def forward(self, images: Tensor) -> Output:
        features = self.backbone.encode_image(images)
        scale = self.backbone.scale
        return Output(pair_logits(features, self.positive, self.negative, scale))


class Method(BaseMethod[Params]):
    trains = False

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        return Model(backbone, task, self.params.template)
