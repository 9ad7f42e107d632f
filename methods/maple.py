"""MaPLe: prompts in both towers, those of the image tower computed from those of the text tower.

Paper: Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023.
Trains: text prompts and, per prompted layer, the linear coupling that makes the visual ones.
Parameters: 3,555,072 at ViT-B/16, 7,100,928 at ViT-L/14.
Published: accuracy after 16 images per class of ImageNet, ViT-B/16, depth 3: ImageNet 70.72, mean
of ten other datasets 66.30; no pedestrian attributes.
Run: snakemake --cores all results/maple/tables --config results=results/maple
'methods=[linear_probe,maple]'

The paper classifies by a softmax; docs/decisions/prompt_learners.md says what replaces it and how
the released code differs. A prompted layer of the image tower is coupled to the same layer of the
text tower, so the shallower tower limits the depth. In re-identification the softmax is over the
persons of the training images, each with learned tokens of its own for a name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pedbench.contracts import BaseMethod, Output, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import Similarity
from pedbench.nn.prompts import (
    PromptedTexts,
    answer,
    encode_prompted,
    learned_text_reason,
    prompt_reason,
)

BIBTEX = """
@inproceedings{khattak2023maple,
  author = {Khattak, Muhammad Uzair and Rasheed, Hanoona and Maaz, Muhammad and Khan, Salman
            and Khan, Fahad Shahbaz},
  title = {{MaPLe}: Multi-modal Prompt Learning},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2023},
  eprint = {2210.03117},
  archiveprefix = {arXiv},
}
"""


@dataclass(frozen=True)
class Params:
    """Hyperparameters; defaults from the released settings."""

    context_length: int = 2  # P, prompts per layer of each tower
    prompt_depth: int = 9  # J, first layers with prompts of their own; 0: all that both towers have
    context_init: str = "a photo of a"  # words the text prompts of the input start from
    class_name: str = "person {}"  # behind them; {} is replaced by the attribute's phrase
    head: Literal["pair", "sigmoid", "softmax"] = "pair"  # texts of presence and absence;
    # softmax: of persons, in re-identification
    lr: float = 3.5e-3  # rate of everything


class MaPLe(nn.Module):
    """``forward(images (B, 3, H, W)) -> Output``; J layers, P prompts."""

    def __init__(self, backbone: Backbone, task: Task, params: Params) -> None:
        super().__init__()
        self.backbone, p = backbone, params
        depth = p.prompt_depth or min(backbone.text_layers, backbone.visual_layers)
        self.texts = PromptedTexts(
            backbone, task, p.head, words=p.context_init, class_name=p.class_name,
            length=p.context_length, depth=depth,
        )  # fmt: skip
        widths = backbone.text_width, backbone.visual_width
        self.couplings = nn.ModuleList(nn.Linear(*widths) for _ in range(depth))
        self.similarity = Similarity(p.head, backbone, len(task.attributes))
        self.settings = task.reid

    def visual_prompts(self) -> Tensor:
        """``(J, P, Wt) -> (J, P, Wv)``."""
        pairs = zip(self.couplings, self.texts.prompts, strict=True)
        return torch.stack([couple(prompts) for couple, prompts in pairs])

    def forward(self, images: Tensor) -> Output:
        features = encode_prompted(self.backbone, images, self.visual_prompts())
        return answer(features, self.texts, self.similarity, self.settings)


class Method(BaseMethod[Params]):
    tasks = ("par", "reid")
    needs_tokens = True
    search = {"lr": (1e-3, 3e-1), "context_length": [2, 4, 8]}

    def supports(self, task: Task, backbone: Backbone) -> str | None:
        p = self.params
        sizes = {"context_length": p.context_length, "prompt_depth": p.prompt_depth}
        return (
            super().supports(task, backbone)
            or learned_text_reason(p.head, task)
            or prompt_reason(backbone, "text", **sizes)
            or prompt_reason(backbone, "visual", **sizes)
        )

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        return MaPLe(backbone, task, self.params)
