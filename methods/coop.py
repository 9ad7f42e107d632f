"""CoOp: learned context vectors replace the words around a class name.

Paper: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022.
Trains: the context vectors.
Parameters: 8,192 at ViT-B/16, 12,288 at ViT-L/14.
Published: ImageNet accuracy 71.51 with ViT-B/16, 16 shots, 4 vectors (Zhou et al., CVPR 2022,
Table 2); no pedestrian attributes.
Run: snakemake --cores all results/coop/tables --config results=results/coop
'methods=[linear_probe,coop]'

CoOp chooses one class of many by a softmax; for attributes, which are many yes/no questions, it
gets the head that all methods share, a class name being "person wearing a hat". The authors' code
ignores class_specific where words start the context; here every class then learns its own copy of
them, and class_specific = false is what that code computes. Under the head ``pair`` presence and
absence are two classes, so that class_specific learns 2A contexts for A attributes. The authors'
code also keeps the vectors in half precision, where small steps are lost; here they are float32
under every precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from pedbench.contracts import BaseMethod, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import ImageClassifier, Similarity, TextHead, head_reason
from pedbench.nn.sentences import attribute_sentences
from pedbench.nn.texts import ContextTexts

BIBTEX = """
@article{zhou2022coop,
  author = {Zhou, Kaiyang and Yang, Jingkang and Loy, Chen Change and Liu, Ziwei},
  title = {Learning to Prompt for Vision-Language Models},
  journal = {International Journal of Computer Vision},
  year = {2022},
}
"""


@dataclass(frozen=True)
class Params:
    context_length: int = 16  # context vectors, if they start at random
    context_init: str = ""  # words to start from, which set their number; empty: random
    class_specific: bool = False  # a context for each class instead of one for all
    class_position: Literal["end", "middle", "front"] = "end"  # of the name in the context
    class_name: str = "person {}"  # {} is replaced by the attribute's phrase
    head: Literal["pair", "sigmoid", "softmax"] = "pair"  # from similarities to logits
    lr: float = 2e-3  # learning rate


class Method(BaseMethod[Params]):
    search = {"lr": (1e-3, 1e-1), "context_length": [4, 8, 16]}

    def supports(self, task: Task, backbone: Backbone) -> str | None:
        return super().supports(task, backbone) or head_reason(self.params.head, task)

    def open_vocabulary(self) -> bool:
        return super().open_vocabulary() and not self.params.class_specific

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        p = self.params
        names = attribute_sentences(task.attributes, p.class_name, absence=p.head == "pair")
        texts = ContextTexts(
            backbone, names, p.context_length, p.context_init, p.class_position, p.class_specific
        )
        similarity = Similarity(p.head, backbone, len(task.attributes))
        return ImageClassifier(backbone, TextHead(texts, similarity))
