"""IANet: ResNet-50 whose positions and channels gather from those they are related to.

Paper: Hou et al., "Interaction-and-Aggregation Network for Person Re-identification", CVPR 2019.
Trains: everything.
Parameters: 25,054,272 whatever the backbone (751 identities; 6,144 of them are the blocks').
Published: mAP / rank-1, the paper as others quote it: Market-1501 83.1 / 94.4, MSMT17 46.8 / 75.5.
Run: snakemake --cores all results/ianet/tables --config results=results/ianet
'datasets=[synthetic_reid/reid]' 'methods=[resnet50/from_scratch,ianet/from_scratch]'

Behind stages 2 and 3 stand a spatial (SIA) and a channel block (CIA). Each adds to its input what
its relations aggregate, behind a batch-norm that starts at 0. The losses are the protocol's, by
default cross-entropy and triplets; neck and last stride are those of ``resnet50``, so that the two
differ in the blocks alone.

Places, relations and the width of the location relation are read off the authors' repository
(blue-blue272/ImgReID-IAnet, commit c66c417), not off the paper. ``relation: released`` is its
formula: a softmax of the product of two softmaxes, so that no position weighs more than e times
another. The default normalises the product itself. That the paper compares surroundings of several
sizes is from memory, and their sizes here are ours: ``contexts``, one position by default, as in
the repository.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from pedbench.contracts import BaseMethod, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.interaction import insert_blocks
from pedbench.nn.pretrained import resnet50
from pedbench.nn.reid import BNNeck

BIBTEX = """
@inproceedings{hou2019ianet,
  author = {Hou, Ruibing and Ma, Bingpeng and Chang, Hong and Gu, Xinqian and Shan, Shiguang
            and Chen, Xilin},
  title = {Interaction-and-Aggregation Network for Person Re-identification},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2019},
}
"""


@dataclass(frozen=True)
class Params:
    weights: Literal["imagenet", "random"] = "imagenet"  # where training starts
    stages: tuple[Literal[1, 2, 3, 4], ...] = (2, 3)  # of ResNet-50 that blocks follow
    contexts: tuple[Literal[1, 3, 5], ...] = (1,)  # positions to a side, compared by appearance
    relation: Literal["product", "released"] = "product"  # of location and appearance
    last_stride: Literal[1, 2] = 1  # of the last stage
    lr: float = 3.5e-4  # learning rate of everything


class Method(BaseMethod[Params]):
    tasks = ("reid",)
    search = {"lr": (1e-4, 1e-2)}

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        p = self.params
        network = resnet50(p.weights, num_classes=0, last_stride=p.last_stride)
        insert_blocks(network, p.stages, p.contexts, p.relation)
        return nn.Sequential(network, BNNeck(network.num_features, task))
