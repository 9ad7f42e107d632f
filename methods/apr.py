"""APR: persons and their attributes learned together by one image tower.

Paper: Lin et al., "Improving Person Re-identification by Attribute and Identity Learning", Pattern
Recognition 2019.
Trains: the image tower, the neck and one linear unit per attribute.
Parameters: 86,593,054 at ViT-B/16, 304,566,814 at ViT-L/14 (30 attributes, 751 persons).
Published: mAP 66.89, rank-1 87.04 on Market-1501 with a ResNet-50 (not read at the source).
Run: snakemake --cores all results/apr/tables --config results=results/apr
'datasets=[synthetic_reid/reid]' 'methods=[full_finetune,apr]'

Where re-identification meets attribute recognition: full fine-tuning by the protocol's losses of
persons, plus attributes as a second task on the same features. The paper's network is a ResNet-50,
re-weights features by the attributes it predicts and has no pair loss; here attributes are an
auxiliary loss alone, so that the row beside `full_finetune` shows what they add.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pedbench.contracts import BaseMethod, Batch, Output, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.reid import BNNeck

BIBTEX = """
@article{lin2019improving,
  author = {Lin, Yutian and Zheng, Liang and Zheng, Zhedong and Wu, Yu and Hu, Zhilan and
    Yan, Chenggang and Yang, Yi},
  title = {Improving Person Re-identification by Attribute and Identity Learning},
  journal = {Pattern Recognition},
  year = {2019}
}
"""


@dataclass(frozen=True)
class Params:
    attribute_weight: float = 0.1  # of the attributes' loss; the paper's balance of 0.9 to 0.1
    lr: float = 1e-5  # learning rate of the image tower
    head_lr: float = 1e-3  # learning rate of neck and linear units


class PersonWithAttributes(nn.Module):
    """``forward(images (B, 3, H, W)) -> Output``; in ``extras`` the attributes' logits (B, A)."""

    def __init__(self, backbone: Backbone, task: Task) -> None:
        super().__init__()
        self.backbone = backbone
        width = backbone.embed_dim
        self.head = nn.ModuleDict(
            {"neck": BNNeck(width, task), "attributes": nn.Linear(width, len(task.attributes))}
        )

    def forward(self, images: Tensor) -> Output:
        features = self.backbone.encode_image(images)
        output: Output = self.head["neck"](features)
        own = {"attributes": self.head["attributes"](features)}
        return Output(output.logits, {**output.extras, **own}, output.features)


class Method(BaseMethod[Params]):
    tasks = ("reid",)
    search = {"lr": (1e-5, 1e-2), "head_lr": (1e-4, 1e-1)}

    def supports(self, task: Task, backbone: Backbone) -> str | None:
        if reason := super().supports(task, backbone):
            return reason
        known = "learns attributes, of which this dataset's annotation has none"
        return None if task.attributes else known

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        model = PersonWithAttributes(backbone, task)
        backbone.clip.visual.requires_grad_(True)
        return model

    def loss(self, output: Output, batch: Batch, task: Task) -> dict[str, Tensor]:
        from pedbench.tasks.losses import weighted_bce

        attributes = weighted_bce(output.extras["attributes"], batch.labels, task)
        weighted = self.params.attribute_weight * attributes
        return super().loss(output, batch, task) | {"attributes": weighted}
