"""Full fine-tuning: every weight of the image tower and a linear head.

Paper: Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution", ICLR 2022, for the order of the two stages: first the head alone on frozen
features (the protocol's ``head_init``), then everything.
Trains: the image tower and the head (ViT-B/16, 35 attributes: 86.2 M values).
Run: snakemake --cores all results/tables --config 'methods=[full_finetune]'
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pedbench.contracts import BaseMethod, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import ImageClassifier, LinearHead


@dataclass(frozen=True)
class Params:
    lr: float = 1e-5  # learning rate of the image tower
    head_lr: float = 1e-3  # learning rate of the head


class Method(BaseMethod[Params]):
    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        head = LinearHead(backbone.embed_dim, len(task.attributes))
        model = ImageClassifier(backbone, head)
        backbone.clip.visual.requires_grad_(True)
        return model
