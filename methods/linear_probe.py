"""Linear probe: one linear unit per attribute on frozen image features.

Paper: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021, section 3.2 (there multinomial logistic regression; here one sigmoid per attribute).
Trains: the head, E x A + A values (ViT-B/16, 35 attributes: 17,955).
Run: snakemake --cores all results/tables --config 'methods=[linear_probe]'
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pedbench.contracts import BaseMethod, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import ImageClassifier, LinearHead


@dataclass(frozen=True)
class Params:
    lr: float = 1e-3  # learning rate of the head


class Method(BaseMethod[Params]):
    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        head = LinearHead(backbone.embed_dim, len(task.attributes))
        return ImageClassifier(backbone, head)
