"""VTB: attributes as sentences and images as patches, fused by the last block of a ViT.

Paper: Cheng et al., "A Simple Visual-Textual Baseline for Pedestrian Attribute Recognition",
IEEE TCSVT 2022.
Trains: the image tower, the fusion, the embeddings of words and modalities, the head; the vectors
of the sentences are fixed.
Parameters: 86,430,105 whatever the backbone (51 attributes).
Published: mA / instance F1 in PromptPAR's tables: PETA 85.31 / 86.71, PA100K 83.72 / 88.21, RAPv1
82.67 / 80.84.
Run: snakemake --cores all results/vtb/tables --config results=results/vtb
'methods=[linear_probe,vtb/clip]'

The default is the released code's model: its own ImageNet tower at the size of the images, whatever
the backbone, and fixed sentence vectors of all-mpnet-base-v2 (the papers say BERT). timm fits its
position embeddings to that size bicubically, the released code bilinearly. At the authors'
256x128 pixels it has 86,377,881 parameters; the 87.15 M that are printed include a classifier of
1000 classes which nothing uses.

The variant ``clip`` is what tables call VTB*, "with the CLIP feature extractor" (ViT-L/14, mA / F1:
PETA 86.34 / 86.97, PA100K 85.30 / 88.86, RAPv1 83.69 / 81.10). No source says how it is put
together. Here the rule stays and the tower changes: all blocks of CLIP's image tower but the last
encode, its own last block and final norm fuse, so that any CLIP will do and no weights but its own
are needed; features of CLIP's text tower, frozen, are the sentence vectors. The row "VTB, CLIP" of
PromptPAR's Table V (RAPv1 85.11 / 82.02) is another model: its 157.54 M and 435.93 M parameters
are those of both CLIP towers, two projections and one more block of an ImageNet ViT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pedbench.contracts import BaseMethod, Output, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.fusion import (
    IMAGENET_VIT,
    AttributeHead,
    MMFormer,
    converted,
    stochastic_depth,
)
from pedbench.nn.pretrained import imagenet_model, mpnet_vectors
from pedbench.nn.sentences import attribute_sentences

BIBTEX = """
@article{cheng2022vtb,
  author = {Cheng, Xinhua and Jia, Mengxi and Wang, Qian and Zhang, Jian},
  title = {A Simple Visual-Textual Baseline for Pedestrian Attribute Recognition},
  journal = {IEEE Transactions on Circuits and Systems for Video Technology},
  year = {2022},
}
"""


@dataclass(frozen=True)
class Params:
    """Hyperparameters; defaults from the released code."""

    tower: Literal["imagenet", "clip"] = "imagenet"  # image encoder: ViT-B/16, or the backbone's
    text_encoder: Literal["mpnet", "clip"] = "mpnet"  # of the sentences: all-mpnet-base-v2, or CLIP
    template: str = "a photo of a person {}"  # sentence; {} is replaced by the attribute's phrase
    drop_path: float = 0.1  # stochastic depth at the last block, rising linearly from the first
    lr: float = 8e-3  # learning rate of tower, embeddings and fusion
    head_lr: float = 8e-3  # learning rate of the head


class VTB(nn.Module):
    """``forward(images (B, 3, H, W)) -> Output``.

    ``tower(images)`` gives CLS and patches after all blocks but the last, ``(B, 1 + N, D)``;
    ``fusion`` is the last block and the final norm; ``vectors (A, T)`` are the sentences'.
    """

    vectors: Tensor

    def __init__(self, tower: nn.Module, fusion: MMFormer, vectors: Tensor) -> None:
        super().__init__()
        attributes, width = len(vectors), fusion.width
        self.tower, self.fusion = tower, fusion
        self.register_buffer("vectors", vectors, persistent=False)
        self.word_embed = nn.Linear(vectors.shape[1], width)
        self.tex_embed = nn.Parameter(torch.zeros(width))
        self.vis_embed = nn.Parameter(torch.zeros(width))
        self.head = AttributeHead(attributes, width)

    def forward(self, images: Tensor) -> Output:
        visual = self.tower(images) + self.vis_embed
        text = (self.word_embed(self.vectors) + self.tex_embed).expand(len(visual), -1, -1)
        return Output(self.head(self.fusion(text, visual)))


class ClipTower(nn.Module):
    """The image tower of ``backbone`` without what follows its blocks."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone.run_blocks("visual", self.backbone.embed_image(images))


def cut_clip(backbone: Backbone, drop_path: float) -> tuple[ClipTower, MMFormer]:
    """CLIP's image tower in two: all blocks but the last, which are left, and the fusion."""
    visual = backbone.clip.visual.requires_grad_(True)
    visual.proj.requires_grad_(False)
    *blocks, last = visual.transformer.resblocks
    for index, block in enumerate(blocks):
        stochastic_depth(block, drop_path * index / len(blocks))
    fusion = MMFormer([last], visual.ln_post, drop_path)
    visual.transformer.resblocks, visual.ln_post = nn.ModuleList(blocks), nn.Identity()
    return ClipTower(backbone), fusion


def cut_vit(vit: Any, drop_path: float) -> tuple[nn.Module, MMFormer]:
    """timm's ViT, without pooling and classifier, in two: see `cut_clip`."""
    fusion = MMFormer([converted(vit.blocks[-1]).requires_grad_(True)], vit.norm, drop_path)
    vit.blocks, vit.norm = vit.blocks[:-1], nn.Identity()
    return vit, fusion


class Method(BaseMethod[Params]):
    search = {"lr": (1e-5, 1e-2), "head_lr": (1e-4, 1e-1)}

    def supports(self, task: Task, backbone: Backbone) -> str | None:
        reason = super().supports(task, backbone)
        if reason is None and self.params.tower == "clip" and not backbone.tokens:
            return f"tower clip needs patch tokens, and {backbone.name} has none: use imagenet"
        return reason

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        vectors = self.sentence_vectors(backbone, task)
        drop_path = self.params.drop_path
        if self.params.tower == "clip":
            return VTB(*cut_clip(backbone, drop_path), vectors)
        vit = imagenet_model(
            IMAGENET_VIT,
            "set tower to 'clip' (the backbone's own, variant vtb/clip)",
            img_size=backbone.image_size,
            num_classes=0,
            global_pool="",
            drop_path_rate=drop_path,
        )
        return VTB(*cut_vit(vit, drop_path), vectors)

    def sentence_vectors(self, backbone: Backbone, task: Task) -> Tensor:
        """``(A, T)``, of unit length, fixed."""
        texts = attribute_sentences(task.attributes, self.params.template, absence=False)
        if self.params.text_encoder == "mpnet":
            return mpnet_vectors(texts, "set text_encoder to 'clip'")
        with torch.no_grad():
            features = backbone.encode_text(backbone.tokenizer(texts))
        return F.normalize(features, dim=-1)
