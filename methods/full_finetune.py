"""Full fine-tuning: every weight of the image tower and a linear head.

Paper: Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution", ICLR 2022, for the order of the two stages: first the head alone on frozen
features, then everything (``probe_epochs`` 0 gives plain fine-tuning).
Trains: the image tower and the head (ViT-B/16, 35 attributes: 86.2 M values).
Run: snakemake --cores all results/tables --config 'methods=[full_finetune]'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from pedbench.contracts import BaseMethod, Stage, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import ImageClassifier


@dataclass(frozen=True)
class Params:
    lr: float = 1e-5  # learning rate of the image tower
    head_lr: float = 1e-3  # learning rate of the head
    probe_epochs: int = 10  # epochs in which only the head trains


class Method(BaseMethod[Params]):
    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        model = ImageClassifier(backbone, len(task.attributes))
        backbone.clip.visual.requires_grad_(True)
        return model

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        tower = [p for p in model.backbone.parameters() if p.requires_grad]
        return [
            {"name": "head", "params": list(model.head.parameters()), "lr": self.params.head_lr},
            {"name": "tower", "params": tower, "lr": self.params.lr},
        ]

    def stages(self, groups: tuple[str, ...]) -> tuple[Stage, ...]:
        probe = (Stage("probe", ("head",), self.params.probe_epochs),)
        return (*(probe if self.params.probe_epochs else ()), Stage("tune", groups))
