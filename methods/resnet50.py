"""ResNet-50: no CLIP at all; a convolutional network and one linear unit per attribute.

Paper: Jia et al., "Rethinking of Pedestrian Attribute Recognition: A Reliable Evaluation under
Zero-Shot Pedestrian Identity Setting", arXiv 2021; weighted loss: Li et al., "Multi-attribute
Learning for Pedestrian Attribute Recognition in Surveillance Scenarios" (DeepMAR), ACPR 2015.
Trains: everything.
Parameters: 23,612,531 whatever the backbone (51 attributes).
Published: mA / F1 (harmonic F1, threshold 0.5, best test epoch), authors' repository, 256x192
pixels: PETA 83.96 / 86.35, PA100K 80.21 / 87.40, RAPv1 79.27 / 79.95; PETA-ZS 71.43 / 72.04,
RAP-ZS 71.76 / 77.66 (first version of these splits).
Run: snakemake --cores all results/resnet50/tables --config results=results/resnet50
'methods=[linear_probe,resnet50/from_scratch]'

The reference that owes CLIP nothing: of the backbone it takes the size of the images only. As in
the released code the linear units read the average over the image, without batch-norm, and the
whole network learns at one rate. The presets set the protocol's ``normalisation`` to ``imagenet``
and, in ``reference``, the weighted loss; there the rate falls by a cosine, since the authors lower
it when their test loss stops falling, and AdamW's decay is apart from the gradient, where their
Adam adds it (L2). ``from_scratch`` needs no weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from pedbench.contracts import BaseMethod, Output, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.pretrained import imagenet_model

WEIGHTS = "resnet50.tv_in1k"  # timm's name of torchvision's first weights, which the authors used

BIBTEX = """
@article{jia2021rethinking,
  author = {Jia, Jian and Huang, Houjing and Chen, Xiaotang and Huang, Kaiqi},
  title = {Rethinking of Pedestrian Attribute Recognition: A Reliable Evaluation under Zero-Shot
           Pedestrian Identity Setting},
  journal = {arXiv preprint arXiv:2107.03576},
  year = {2021},
}

@inproceedings{li2015deepmar,
  author = {Li, Dangwei and Chen, Xiaotang and Huang, Kaiqi},
  title = {Multi-attribute Learning for Pedestrian Attribute Recognition in Surveillance
           Scenarios},
  booktitle = {Asian Conference on Pattern Recognition (ACPR)},
  year = {2015},
}
"""


@dataclass(frozen=True)
class Params:
    weights: Literal["imagenet", "random"] = "imagenet"  # where training starts
    lr: float = 1e-4  # learning rate of everything


class ResNet50(nn.Module):
    """``forward(images (B, 3, H, W)) -> Output``; ``network`` gives logits ``(B, A)``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Output:
        return Output(self.network(images))


class Method(BaseMethod[Params]):
    search = {"lr": (1e-4, 1e-2)}

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        attributes = len(task.attributes)
        if self.params.weights == "random":
            import timm

            return ResNet50(timm.create_model("resnet50", num_classes=attributes))
        instead = "set weights to 'random'"
        return ResNet50(imagenet_model(WEIGHTS, instead, num_classes=attributes))
