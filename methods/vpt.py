"""VPT: learned prompt tokens in every layer of the image tower, texts as they are.

Paper: Jia et al., "Visual Prompt Tuning", ECCV 2022; against CLIP's texts: the released code of
Khattak et al., CVPR 2023.
Trains: visual prompts; the head if it is linear.
Parameters: 73,728 at ViT-B/16, 196,608 at ViT-L/14.
Published: against CLIP's texts, ViT-B/16, 16 images per class, mean accuracy of 11 datasets on
base classes, novel ones and their harmonic mean: 80.24, 73.43, 76.68 (repository of Khattak et
al.); no pedestrian attributes.
Run: snakemake --cores all results/vpt/tables --config results=results/vpt
'methods=[linear_probe,vpt]'

The paper trains a linear head on the prompted features of a ViT without text tower
(``linear_head``); here the default compares them with texts, as the prompt learners do. CLIP has
a LayerNorm between embedding and layers, which the paper's ViT has not: the prompts of the input
enter before it. docs/decisions/prompt_learners.md has the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from pedbench.contracts import BaseMethod, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import head_reason, image_head
from pedbench.nn.prompts import PromptedClassifier, prompt_parameter, prompt_reason

BIBTEX = """
@inproceedings{jia2022vpt,
  author = {Jia, Menglin and Tang, Luming and Chen, Bor-Chun and Cardie, Claire
            and Belongie, Serge and Hariharan, Bharath and Lim, Ser-Nam},
  title = {Visual Prompt Tuning},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year = {2022},
  eprint = {2203.12119},
  archiveprefix = {arXiv},
}
"""


@dataclass(frozen=True)
class Params:
    """Hyperparameters; defaults from Khattak et al.'s settings for CLIP."""

    prompt_length: int = 8  # prompts per layer
    prompt_depth: int = 0  # first layers that get prompts of their own: 1 shallow, 0 all of them
    head: Literal["linear", "pair", "sigmoid", "softmax"] = "pair"  # linear, or against fixed texts
    template: str = "a photo of a person {}"  # {} is replaced by the attribute's phrase
    lr: float = 2.5e-3  # rate of the prompts
    head_lr: float = 1e-3  # rate of a linear head or of the biases


class Method(BaseMethod[Params]):
    needs_tokens = True
    tasks = ("par", "reid")
    search = {"lr": (1e-3, 3e-1), "prompt_length": [4, 8, 16]}

    def supports(self, task: Task, backbone: Backbone) -> str | None:
        p = self.params
        return (
            super().supports(task, backbone)
            or head_reason(p.head, task)
            or prompt_reason(
                backbone, "visual", prompt_length=p.prompt_length, prompt_depth=p.prompt_depth
            )
        )

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        p, patch = self.params, backbone.patch
        shape = (p.prompt_depth or backbone.visual_layers, p.prompt_length, backbone.visual_width)
        head = image_head(p.head, backbone, task, p.template)
        return PromptedClassifier(backbone, head, prompt_parameter(*shape, patch=patch))
