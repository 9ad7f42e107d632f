"""ResNet-50: no CLIP at all; a convolutional network, all of whose weights train.

Paper: Jia et al., "Rethinking of Pedestrian Attribute Recognition: A Reliable Evaluation under
Zero-Shot Pedestrian Identity Setting", arXiv 2021; weighted loss: Li et al., "Multi-attribute
Learning for Pedestrian Attribute Recognition in Surveillance Scenarios" (DeepMAR), ACPR 2015;
re-identification: Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person
Re-identification", CVPR Workshops 2019.
Trains: everything.
Parameters: 23,612,531 whatever the backbone (51 attributes); in re-identification 25,048,128
(751 identities).
Published: mA / F1 (harmonic F1, threshold 0.5, best test epoch), authors' repository, 256x192
pixels: PETA 83.96 / 86.35, PA100K 80.21 / 87.40, RAPv1 79.27 / 79.95; PETA-ZS 71.43 / 72.04,
RAP-ZS 71.76 / 77.66 (first version of these splits). mAP / rank-1, Simple-ReID (commit 14a48b4),
cross-entropy and triplet: Market-1501 86.6 / 94.5, MSMT17 57.0 / 78.9.
Run: snakemake --cores all results/resnet50/tables --config results=results/resnet50
'methods=[linear_probe,resnet50/from_scratch]'

The reference that owes CLIP nothing: of the backbone it takes the size of the images only. For
attributes, linear units read the average over the image, without batch-norm, as in the released
code, and the whole network learns at one rate. The presets set the protocol's ``normalisation`` to
``imagenet`` and, in ``reference``, the weighted loss; there the rate falls by a cosine, since the
authors lower it when their test loss stops falling, and AdamW's decay is apart from the gradient,
where their Adam adds it (L2). ``from_scratch`` needs no weights.

In re-identification the last stage keeps the resolution and the average goes through the BNNeck.
``reid_triplet``, ``reid_contrastive`` and ``reid_cosface`` are Simple-ReID's rows of plain
cross-entropy with one pair loss each. There both losses read the features behind a batch-norm
whose bias trains, the triplets are mined by cosine, the features of an image and of its mirror are
added, and the epoch is chosen by test rank-1; here none of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from pedbench.contracts import BaseMethod, Output, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.pretrained import resnet50
from pedbench.nn.reid import BNNeck

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

@inproceedings{luo2019bag,
  author = {Luo, Hao and Gu, Youzhi and Liao, Xingyu and Lai, Shenqi and Jiang, Wei},
  title = {Bag of Tricks and a Strong Baseline for Deep Person Re-identification},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition Workshops},
  year = {2019},
}
"""


@dataclass(frozen=True)
class Params:
    weights: Literal["imagenet", "random"] = "imagenet"  # where training starts
    last_stride: Literal[1, 2] | None = None  # of the last stage; None: 1 in re-identification
    lr: float = 1e-4  # learning rate of everything


class ResNet50(nn.Module):
    """``forward(images (B, 3, H, W)) -> Output``; ``network`` gives logits ``(B, A)``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Output:
        return Output(self.network(images))


class Method(BaseMethod[Params]):
    tasks = ("par", "reid")
    search = {"lr": (1e-4, 1e-2)}

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        p = self.params
        if task.kind == "reid":
            network = resnet50(p.weights, num_classes=0, last_stride=p.last_stride or 1)
            return nn.Sequential(network, BNNeck(network.num_features, task))
        return ResNet50(resnet50(p.weights, len(task.attributes), p.last_stride or 2))
