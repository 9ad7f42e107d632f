"""Adapters: small bottlenecks inside the blocks of the image tower.

Paper: Chen et al., "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition",
NeurIPS 2022; Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019; Pfeiffer
et al., "AdapterFusion: Non-Destructive Task Composition for Transfer Learning", EACL 2021.
Trains: the bottlenecks and a linear head.
Parameters: 1,215,795 at ViT-B/16, 3,211,059 at ViT-L/14 (64 units, 51 attributes; 26,163 and
39,219 of them are the head's).
Published: CIFAR-100 85.90 with AdaptFormer-64 on ViT-B/16 pre-trained by masked autoencoding;
no pedestrian attributes.
Run: snakemake --cores all results/adapter/tables --config results=results/adapter
'methods=[linear_probe,adapter]'

Forms: ``adaptformer`` beside the MLP, reading what the block's second norm reads, ReLU, scaled,
with the dropout of the authors' code; ``pfeiffer`` behind the MLP; ``houlsby`` behind attention and
MLP. All end in zeros, so that training starts from CLIP itself (Houlsby et al. start near it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from pedbench.contracts import BaseMethod, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import ImageClassifier, head_reason, image_head

BIBTEX = """
@inproceedings{chen2022adaptformer,
  author = {Chen, Shoufa and Ge, Chongjian and Tong, Zhan and Wang, Jiangliu and Song, Yibing
            and Wang, Jue and Luo, Ping},
  title = {{AdaptFormer}: Adapting Vision Transformers for Scalable Visual Recognition},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year = {2022},
}
@inproceedings{houlsby2019adapter,
  author = {Houlsby, Neil and Giurgiu, Andrei and Jastrzebski, Stanislaw and Morrone, Bruna
            and de Laroussilhe, Quentin and Gesmundo, Andrea and Attariyan, Mona
            and Gelly, Sylvain},
  title = {Parameter-Efficient Transfer Learning for {NLP}},
  booktitle = {International Conference on Machine Learning (ICML)},
  year = {2019},
}
@inproceedings{pfeiffer2021adapterfusion,
  author = {Pfeiffer, Jonas and Kamath, Aishwarya and R{\\"u}ckl{\\'e}, Andreas and Cho, Kyunghyun
            and Gurevych, Iryna},
  title = {{AdapterFusion}: Non-Destructive Task Composition for Transfer Learning},
  booktitle = {Conference of the European Chapter of the Association for Computational
               Linguistics (EACL)},
  year = {2021},
}
"""


@dataclass(frozen=True)
class Params:
    form: Literal["adaptformer", "pfeiffer", "houlsby"] = "adaptformer"  # where bottlenecks stand
    bottleneck: int = 64  # units of a bottleneck
    scale: float = 0.1  # factor of AdaptFormer's bottlenecks
    dropout: float = 0.1  # of their units
    head: Literal["linear", "pair", "sigmoid"] = "linear"  # or against fixed texts
    template: str = "a photo of a person {}"  # of the fixed texts
    lr: float = 1e-3  # learning rate of the bottlenecks
    head_lr: float = 1e-3  # learning rate of what the head learns


class Bottleneck(nn.Sequential):
    """Down, between, up: ``(..., W) -> (..., W)``, zero before training; ``between`` acts on the
    units."""

    def __init__(self, width: int, units: int, *between: nn.Module) -> None:
        down, up = nn.Linear(width, units), nn.Linear(units, width)
        for zero in (down.bias, up.weight, up.bias):
            nn.init.zeros_(zero)
        super().__init__(down, *between, up)


class Behind(nn.Module):
    """``y + bottleneck(y)`` of a layer's output ``y``."""

    def __init__(self, layer: nn.Module, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.layer, self.bottleneck = layer, bottleneck

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y + self.bottleneck(y)


class Beside(nn.Module):
    """A norm and MLP with a bottleneck over the same, not yet normalised, input."""

    def __init__(
        self, norm: nn.Module, mlp: nn.Module, bottleneck: Bottleneck, scale: float
    ) -> None:
        super().__init__()
        self.norm, self.mlp, self.bottleneck, self.scale = norm, mlp, bottleneck, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm(x)) + self.scale * self.bottleneck(x)


class Method(BaseMethod[Params]):
    needs_tokens = True
    tasks = ("par", "reid")
    search = {"lr": (3e-4, 1e-1)}

    def supports(self, task: Task, backbone: Backbone) -> str | None:
        return super().supports(task, backbone) or head_reason(self.params.head, task)

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        p, width = self.params, backbone.visual_width
        block: Any
        for block in backbone.clip.visual.transformer.resblocks:
            if p.form == "adaptformer":
                bottleneck = Bottleneck(width, p.bottleneck, nn.ReLU(), nn.Dropout(p.dropout))
                block.mlp = Beside(block.ln_2, block.mlp, bottleneck, p.scale)
                block.ln_2 = nn.Identity()
            else:
                block.mlp = Behind(block.mlp, Bottleneck(width, p.bottleneck, nn.GELU()))
            if p.form == "houlsby":
                block.ls_1 = Behind(block.ls_1, Bottleneck(width, p.bottleneck, nn.GELU()))
        return ImageClassifier(backbone, image_head(p.head, backbone, task, p.template))
