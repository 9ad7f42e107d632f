"""BitFit: only the biases of the image tower.

Paper: Ben Zaken et al., "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based
Masked Language-models", ACL 2022.
Trains: every bias of the image tower, those of its norms included, and a linear head.
Parameters: 129,075 at ViT-B/16, 311,603 at ViT-L/14 (51 attributes;
26,163 and 39,219 of them are the head's).
Published: language tasks only (GLUE with BERT); no pedestrian attributes.
Run: snakemake --cores all results/bitfit/tables --config results=results/bitfit
'methods=[linear_probe,bitfit]'

The biases of the keys shift every attention score of a query alike, so the softmax removes them,
and the last norm's stands before the linear head's batch-norm, which removes it; they are counted
as in the paper, and do nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from pedbench.contracts import BaseMethod, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import ImageClassifier, head_reason, image_head

BIBTEX = """
@inproceedings{benzaken2022bitfit,
  author = {Ben Zaken, Elad and Goldberg, Yoav and Ravfogel, Shauli},
  title = {{BitFit}: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
           Language-models},
  booktitle = {Annual Meeting of the Association for Computational Linguistics (ACL)},
  year = {2022},
}
"""


@dataclass(frozen=True)
class Params:
    head: Literal["linear", "pair", "sigmoid"] = "linear"  # or against fixed texts
    template: str = "a photo of a person {}"  # of the fixed texts
    lr: float = 1e-3  # learning rate of the biases
    head_lr: float = 1e-3  # learning rate of what the head learns


class Method(BaseMethod[Params]):
    tasks = ("par", "reid")
    search = {"lr": (1e-3, 1e-1)}

    def supports(self, task: Task, backbone: Backbone) -> str | None:
        return super().supports(task, backbone) or head_reason(self.params.head, task)

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        for name, parameter in backbone.clip.visual.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
        head = image_head(self.params.head, backbone, task, self.params.template)
        return ImageClassifier(backbone, head)
