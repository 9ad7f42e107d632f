"""IVLP: prompts of their own in every layer of both towers, independent of each other.

Paper: Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, as a baseline.
Trains: text prompts and visual prompts.
Parameters: 30,720 at ViT-B/16, 67,584 at ViT-L/14.
Published: ViT-B/16, 16 images per class, mean accuracy of 11 datasets on base classes, novel ones
and their harmonic mean: 82.15, 74.07, 77.90; ``language_only`` 81.72, 73.81, 77.56 (authors'
repository); no pedestrian attributes.
Run: snakemake --cores all results/ivlp/tables --config results=results/ivlp
'methods=[linear_probe,ivlp]'

The paper classifies by a softmax; docs/decisions/prompt_learners.md says what replaces it and how
the released code differs. ``language_only`` prompts the text tower alone; then the image features
are computed once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from pedbench.contracts import BaseMethod, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import ImageClassifier, Similarity
from pedbench.nn.prompts import (
    LearnedTexts,
    PromptedClassifier,
    PromptedTexts,
    learned_text_reason,
    normal_prompts,
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

    visual_length: int = 2  # prompts per layer of the image tower; 0: none
    visual_depth: int = 0  # first layers of the image tower with prompts of their own; 0: all
    text_length: int = 2  # prompts per layer of the text tower
    text_depth: int = 0  # first layers of the text tower with prompts of their own; 0: all
    context_init: str = "a photo of a"  # words the text prompts of the input start from
    class_name: str = "person {}"  # behind them; {} is replaced by the attribute's phrase
    head: Literal["pair", "sigmoid", "softmax"] = "pair"  # texts of presence and absence;
    # softmax: of persons, in re-identification
    lr: float = 3.5e-3  # rate of everything


class Method(BaseMethod[Params]):
    tasks = ("par", "reid")
    needs_tokens = True
    search = {"lr": (1e-3, 3e-1), "visual_length": [2, 4, 8]}

    def supports(self, task: Task, backbone: Backbone) -> str | None:
        p = self.params
        reason = (
            super().supports(task, backbone)
            or learned_text_reason(p.head, task)
            or prompt_reason(backbone, "text", text_length=p.text_length, text_depth=p.text_depth)
        )
        if reason is None and task.kind == "reid" and not p.visual_length:
            return "visual_length 0: image features, which retrieval compares, stay frozen CLIP's"
        if reason or not p.visual_length:
            return reason
        sizes = {"visual_length": p.visual_length, "visual_depth": p.visual_depth}
        return prompt_reason(backbone, "visual", **sizes)

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        p = self.params
        texts = PromptedTexts(
            backbone, task, p.head, words=p.context_init, class_name=p.class_name,
            length=p.text_length, depth=p.text_depth or backbone.text_layers,
        )  # fmt: skip
        similarity = Similarity(p.head, backbone, len(task.attributes))
        head = LearnedTexts(texts, similarity, task.reid)
        if not p.visual_length:
            return ImageClassifier(backbone, head)
        depth = p.visual_depth or backbone.visual_layers
        prompts = normal_prompts(depth, p.visual_length, backbone.visual_width)
        return PromptedClassifier(backbone, head, prompts)
