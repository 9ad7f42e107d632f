"""Zero-shot CLIP: each attribute is a pair of prompts, nothing is learned.

Paper: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021, section 3.1.
Trains: nothing; one run, which the tests pair with every seed of the others.
Parameters: 0 whatever the backbone.
Published: ImageNet accuracy 68.6 with ViT-B/16, 75.3 with ViT-L/14, both with an ensemble of 80
templates (ViT-B/16 with a single one 66.7, Zhou et al.); no pedestrian attributes.
Run: snakemake --cores all results/zero_shot/tables --config results=results/zero_shot
'methods=[linear_probe,zero_shot]'

CLIP has no multi-label head, so, as for all prompt learners here, an attribute's logit is
``scale * (cos(image, positive) - cos(image, negative))``: the binary softmax over the pair. One
template, no ensemble.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pedbench.contracts import BaseMethod, Output, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import ImageClassifier, image_head

BIBTEX = """
@inproceedings{radford2021clip,
  author = {Radford, Alec and Kim, Jong Wook and Hallacy, Chris and Ramesh, Aditya and Goh, Gabriel
            and Agarwal, Sandhini and Sastry, Girish and Askell, Amanda and Mishkin, Pamela
            and Clark, Jack and Krueger, Gretchen and Sutskever, Ilya},
  title = {Learning Transferable Visual Models From Natural Language Supervision},
  booktitle = {International Conference on Machine Learning (ICML)},
  year = {2021},
}
"""


@dataclass(frozen=True)
class Params:
    template: str = "a photo of a person {}"  # {} is replaced by the attribute's phrase


class FrozenFeatures(nn.Module):
    """CLIP's image features as they are, for retrieval: ``forward(images) -> Output``."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Output:
        features = self.backbone.encode_image(images)
        return Output(features[:, :0], features=features)


class Method(BaseMethod[Params]):
    trains = False
    tasks = ("par", "reid")

    def open_vocabulary(self) -> bool:
        return True

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        if task.kind == "reid":
            return FrozenFeatures(backbone)
        return ImageClassifier(backbone, image_head("pair", backbone, task, self.params.template))
