"""Linear probe: one linear unit per attribute on frozen image features.

Paper: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021, section 3.2.
Trains: the head.
Parameters: 26,163 at ViT-B/16, 39,219 at ViT-L/14 (51 attributes).
Published: ImageNet accuracy 80.2 with ViT-B/16, 83.9 with ViT-L/14; no pedestrian attributes.
Run: snakemake --cores all results/linear_probe/tables --config results=results/linear_probe
'methods=[zero_shot,linear_probe]'

The paper fits a multinomial logistic regression by L-BFGS on the features before CLIP's projection
into the joint space. Here one sigmoid per attribute learns by the protocol's optimiser on those
behind it, which all methods share, standardised over the batch. In re-identification a linear map
of these features is learned below the neck, by the protocol's losses.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pedbench.contracts import BaseMethod, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import ImageClassifier, LinearHead
from pedbench.nn.reid import BNNeck

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
    lr: float = 1e-3  # learning rate of the head


class Method(BaseMethod[Params]):
    tasks = ("par", "reid")
    search = {"lr": (1e-3, 3.0)}

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        width = backbone.embed_dim
        if task.kind == "reid":  # a linear map of the features, which is what is compared
            mapped = nn.BatchNorm1d(width, affine=False), nn.Linear(width, width, bias=False)
            return ImageClassifier(backbone, nn.Sequential(*mapped, BNNeck(width, task)))
        return ImageClassifier(backbone, LinearHead(width, len(task.attributes)))
