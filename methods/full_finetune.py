"""Full fine-tuning: every weight of the image tower and a linear head.

Paper: Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution", ICLR 2022, for the order: first the head alone on frozen features (the
protocol's ``head_init``), then everything.
Trains: the image tower and a linear head.
Parameters: 86,218,803 at ViT-B/16, 304,005,427 at ViT-L/14 (51 attributes).
Published: on average 10 % more accurate out-of-distribution, 1 % in-distribution, than fine-tuning
from a random head; no pedestrian attributes.
Run: snakemake --cores all results/full_finetune/tables --config results=results/full_finetune
'methods=[linear_probe,full_finetune]'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from pedbench.contracts import BaseMethod, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import ImageClassifier, head_reason, image_head

BIBTEX = """
@inproceedings{kumar2022finetuning,
  author = {Kumar, Ananya and Raghunathan, Aditi and Jones, Robbie and Ma, Tengyu
            and Liang, Percy},
  title = {Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2022},
}
"""


@dataclass(frozen=True)
class Params:
    head: Literal["linear", "pair", "sigmoid"] = "linear"  # or against fixed texts
    template: str = "a photo of a person {}"  # of the fixed texts
    lr: float = 1e-5  # learning rate of the image tower
    head_lr: float = 1e-3  # learning rate of the head


class Method(BaseMethod[Params]):
    tasks = ("par", "reid")
    search = {"lr": (1e-5, 1e-2), "head_lr": (1e-4, 1e-1)}

    def supports(self, task: Task, backbone: Backbone) -> str | None:
        return super().supports(task, backbone) or head_reason(self.params.head, task)

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        head = image_head(self.params.head, backbone, task, self.params.template)
        model = ImageClassifier(backbone, head)
        backbone.clip.visual.requires_grad_(True)
        return model
