"""CoCoOp: a learned context that a small network shifts for each image.

Paper: Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022.
Trains: the context vectors and the meta-net.
Parameters: 35,360 at ViT-B/16, 77,616 at ViT-L/14.
Published: ImageNet accuracy 71.02 with ViT-B/16, 16 shots (Table 2); no pedestrian attributes.
Run: snakemake --cores all results/cocoop/tables --config results=results/cocoop
'methods=[linear_probe,cocoop]'

CoCoOp chooses one class of many by a softmax; for attributes, which are many yes/no questions, it
gets the head that all methods share, a class name being "person wearing a hat". The authors' code
encodes the texts of one image after the other, here those of a batch go through together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from pedbench.contracts import BaseMethod, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import ImageClassifier, Similarity, head_reason
from pedbench.nn.sentences import attribute_sentences
from pedbench.nn.texts import ContextTexts

BIBTEX = """
@inproceedings{zhou2022cocoop,
  author = {Zhou, Kaiyang and Yang, Jingkang and Loy, Chen Change and Liu, Ziwei},
  title = {Conditional Prompt Learning for Vision-Language Models},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2022},
}
"""


@dataclass(frozen=True)
class Params:
    context_length: int = 4  # context vectors, if they start at random
    context_init: str = "a photo of a"  # words to start from, which set their number; empty: random
    reduction: int = 16  # the meta-net's hidden width is the features' divided by this
    class_name: str = "person {}"  # {} is replaced by the attribute's phrase
    head: Literal["pair", "sigmoid", "softmax"] = "pair"  # from similarities to logits
    lr: float = 2e-3  # learning rate


class ConditionalHead(nn.Module):
    """Image features against texts of their own: ``forward(features (B, E)) -> logits (B, A)``."""

    def __init__(self, texts: ContextTexts, meta_net: nn.Module, similarity: Similarity) -> None:
        super().__init__()
        self.texts, self.meta_net, self.similarity = texts, meta_net, similarity

    def forward(self, features: Tensor) -> Tensor:
        shift = self.meta_net(F.normalize(features, dim=-1))
        return self.similarity(features, self.texts(shift))


class Method(BaseMethod[Params]):
    search = {"lr": (1e-3, 1e-1), "reduction": [2, 4, 8, 16]}

    def supports(self, task: Task, backbone: Backbone) -> str | None:
        return super().supports(task, backbone) or head_reason(self.params.head, task)

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        p, width = self.params, backbone.embed_dim
        names = attribute_sentences(task.attributes, p.class_name, absence=p.head == "pair")
        texts = ContextTexts(backbone, names, p.context_length, p.context_init)
        units = width // p.reduction
        meta_net = nn.Sequential(
            nn.Linear(width, units), nn.ReLU(), nn.Linear(units, backbone.text_width)
        )
        similarity = Similarity(p.head, backbone, len(task.attributes))
        return ImageClassifier(backbone, ConditionalHead(texts, meta_net, similarity))
