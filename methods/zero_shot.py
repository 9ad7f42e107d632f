"""Zero-shot CLIP: each attribute is a pair of prompts, nothing is learned.

Paper: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021. CLIP has no multi-label head, so, as for all prompt learners here, an attribute's
logit is scale * (cos(image, positive) - cos(image, negative)): the binary softmax over the pair.
Trains: nothing (one run, paired with every seed of the others).
Run: snakemake --cores all results/tables --config 'methods=[zero_shot]'
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pedbench.contracts import BaseMethod, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import ImageClassifier, image_head


@dataclass(frozen=True)
class Params:
    template: str = "a photo of a person {}"  # {} is replaced by the attribute's phrase


class Method(BaseMethod[Params]):
    trains = False

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        return ImageClassifier(backbone, image_head("pair", backbone, task, self.params.template))
