"""PromptPAR: region-aware prompt tuning of CLIP, fused with the attributes' sentences.

Paper: Wang et al., "Pedestrian Attribute Recognition via CLIP based Prompt Vision-Language
Fusion", IEEE TCSVT 2024.
Trains: visual and text prompts, region CLS tokens, the linear maps into the fusion, the head; CLIP
and the fusion's blocks are frozen.
Parameters: 2,232,831 at ViT-B/16, 3,865,087 at ViT-L/14 (51 attributes).
Published: mA / instance F1, ViT-L/14: PETA 88.76 / 89.18, PA100K 87.47 / 90.15,
RAPv1 85.45 / 82.38.
Run: snakemake --cores all results/promptpar/tables --config results=results/promptpar
'methods=[linear_probe,promptpar/region_deep]'

The defaults are the paper's, read soundly where its text and its code disagree; the variant
``released_code`` computes what the authors' code computes. docs/decisions/promptpar.md lists
every difference. The paper counts 2.30 M (ViT-B/16) and 3.27 M (ViT-L/14) trained parameters.
In re-identification, which the paper does not treat, the prompts of the image tower are learned
alone, below a neck; forms that differ in texts, fusion or similarity are then refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pedbench.contracts import BaseMethod, Batch, Output, PedbenchError, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.fusion import AttributeHead, MMFormer, TokenMLP, mm_former
from pedbench.nn.prompts import prompt_parameter
from pedbench.nn.regions import region_mask, region_patches
from pedbench.nn.reid import BNNeck
from pedbench.nn.sentences import attribute_sentences

BIBTEX = """
@article{wang2024promptpar,
  author = {Wang, Xiao and Jin, Jiandong and Li, Chenglong and Tang, Jin and Zhang, Cheng
            and Wang, Wei},
  title = {Pedestrian Attribute Recognition via {CLIP} based Prompt Vision-Language Fusion},
  journal = {IEEE Transactions on Circuits and Systems for Video Technology},
  year = {2024},
  eprint = {2312.10692},
  archiveprefix = {arXiv},
}
"""


@dataclass(frozen=True)
class Params:
    """Hyperparameters; defaults from Section IV-B of the paper."""

    prompt_length: int = 50  # visual prompts per layer, total over the 1 + regions groups
    prompt_depth: int = 0  # first layers that get prompts of their own: 1 shallow, 0 all of them
    prompt_init: Literal["random", "zero"] = "random"  # start of visual and text prompts
    regions: int = 4  # horizontal regions with a CLS token and prompts each; 0: global prompts only
    region_overlap: int = 2  # rows of patches that neighbouring regions share
    region_mask: Literal["grid", "released", "none"] = "grid"  # what region tokens may look at
    text_prompt_length: int = 3  # text prompts per layer and attribute; 0: none
    text_prompt_position: Literal["paper", "released"] = "paper"  # read by end-of-text, or inert
    expanded_sentences: bool = True  # "a photo of a person wearing a hat" instead of "hat"
    fusion: Literal["mm_former", "mlp"] = "mm_former"  # how attribute and image tokens meet
    mm_layers: int = 1  # blocks of the MM-former
    mm_init: Literal["imagenet", "clip_last_block", "random"] = "imagenet"  # their weights
    mm_width: int = 768  # width of the fusion, where mm_init or the MLP leave it open
    mm_heads: int = 12  # heads of a random MM-former
    mm_drop_path: float = 0.0  # stochastic depth in the MM-former
    train_mm_norms: bool = False  # also train the norms inside the MM-former
    train_mlp: bool = True  # train the map of the MLP fusion
    gl_weight: float = 0.5  # alpha, weight of the global-local similarity loss; 0: off
    gl_aggregation: Literal["per_image", "released"] = "per_image"  # or last image's, for all
    gl_global_token: Literal["cls", "released"] = "cls"  # or the first global prompt
    gl_score: Literal["sigmoid_cosine", "released"] = "sigmoid_cosine"  # or softmax over attributes
    gl_threshold: float = 0.5  # a region scoring above it shows the attribute
    visual_ln_post: bool = True  # CLIP's final visual LayerNorm before the projection
    lr: float = 8e-3  # rate of fusion and head
    prompt_lr: float = 4e-3  # rate of prompts, region CLS tokens and similarity
    prompt_warmup_epochs: int | None = None  # of the prompts; None: the protocol's


# read where attributes have texts: hyperparameters of texts, fusion and similarity
OF_ATTRIBUTES = (
    *("text_prompt_length", "text_prompt_position", "expanded_sentences", "fusion", "mm_layers"),
    *("mm_init", "mm_width", "mm_heads", "mm_drop_path", "train_mm_norms", "train_mlp"),
    *("gl_weight", "gl_aggregation", "gl_global_token", "gl_score", "gl_threshold"),
)


class PromptedTower(nn.Module):
    """The image tower with prompts, global ones and of regions (Section III-B).

    Visual tokens stand in the order CLS, P prompts (global group first), K region CLS tokens,
    N patches: S = 1 + P + K + N.
    """

    region_cls: nn.Parameter | None
    mask: Tensor | None

    def __init__(self, backbone: Backbone, params: Params) -> None:
        super().__init__()
        self.backbone, self.params = backbone, params
        regions, length = params.regions, params.prompt_length
        groups = 1 + regions
        if length < groups or length % groups:
            below = length // groups * groups
            near = " or ".join(str(n) for n in (below, below + groups) if n)
            raise PedbenchError(
                f"promptpar: prompt_length = {length} is the total over {groups} groups (global "
                f"and regions = {regions}) and must be a multiple of {groups}: use {near}"
            )

        width, init = backbone.visual_width, params.prompt_init
        depth = params.prompt_depth or backbone.visual_layers
        self.prompts = prompt_parameter(depth, length, width, patch=backbone.patch, init=init)
        region_cls, mask = None, None
        if regions:
            region_cls = nn.Parameter(torch.randn(regions, width) * width**-0.5)
        if regions and params.region_mask != "none":
            overlap, layout = params.region_overlap, params.region_mask
            stripes = region_patches(backbone.grid, regions, overlap, layout)
            mask = region_mask(stripes, length // groups)
        self.register_parameter("region_cls", region_cls)
        self.register_buffer("mask", mask, persistent=False)

    def visual_tokens(self, images: Tensor, read: Tensor | None = None) -> Tensor:
        """All tokens of the image encoder in the joint space, ``(B, S, E)``, or those that stand
        at ``read (R,)`` before the prompts enter, ``(B, R, E)``."""
        backbone = self.backbone
        x = backbone.embed_image(images)
        if self.region_cls is not None:
            region_cls = backbone.clip.visual.ln_pre(self.region_cls).expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], region_cls, x[:, 1:]], dim=1)
        prompts = self.prompts[: backbone.visual_layers]
        x = backbone.run_blocks("visual", x, prompts, mask=self.mask, read=read)
        return backbone.project_image(x, ln_post=self.params.visual_ln_post)


class PromptedPerson(PromptedTower):
    """For re-identification, where no attribute has a text: ``forward(images) -> Output``. Compared
    are the CLS token and the K region CLS tokens, each of length one, side by side: (B, (1 + K) E).
    """

    def __init__(self, backbone: Backbone, task: Task, params: Params) -> None:
        super().__init__(backbone, params)
        self.head = BNNeck((1 + params.regions) * backbone.embed_dim, task)

    def forward(self, images: Tensor) -> Output:
        read = torch.arange(1 + self.params.regions, device=images.device)
        parts = F.normalize(self.visual_tokens(images, read), dim=-1)
        return self.head(parts.flatten(1))


class PromptPAR(PromptedTower):
    """``forward(images (B, 3, H, W)) -> Output`` with logits (B, A) and, in ``extras``, the
    global-local logits ``gl`` (B, A) unless their weight is 0."""

    text_prompts: nn.Parameter | None
    ids: Tensor
    fixed_text: Tensor

    def __init__(self, backbone: Backbone, task: Task, params: Params) -> None:
        super().__init__(backbone, params)
        attributes, init = len(task.attributes), params.prompt_init

        # Section III-C: prompts of the text encoder, per attribute
        ids = backbone.tokenizer(sentences(task, params.expanded_sentences))
        self.register_buffer("ids", ids, persistent=False)
        text_prompts, features = None, None
        if params.text_prompt_length:
            shape = (backbone.text_layers, attributes, params.text_prompt_length)
            wide = (*shape, backbone.text_width)
            text_prompts = prompt_parameter(*wide, patch=backbone.patch, init=init)
        else:
            with torch.no_grad():
                features = backbone.encode_text(ids)
        self.register_parameter("text_prompts", text_prompts)
        self.register_buffer("fixed_text", features, persistent=False)

        # Section III-D: fusion and head
        self.fusion = self._fusion(attributes)
        self.word_embed = nn.Linear(backbone.embed_dim, self.fusion.width)
        self.visual_embed = nn.Linear(backbone.embed_dim, self.fusion.width)
        self.head = AttributeHead(attributes, self.fusion.width)
        self.similarity = GlobalLocal(attributes, params) if params.gl_weight else None

    def _fusion(self, attributes: int) -> MMFormer | TokenMLP:
        p, (rows, columns) = self.params, self.backbone.grid
        if p.fusion == "mlp":
            tokens = attributes + 1 + p.prompt_length + p.regions + rows * columns
            mlp = TokenMLP(tokens, attributes, p.mm_width)
            mlp.linear.requires_grad_(p.train_mlp)
            return mlp
        former = mm_former(
            p.mm_init, p.mm_layers, self.backbone, p.mm_width, p.mm_heads, p.mm_drop_path
        )
        for block in former.blocks:
            block.ln_1.requires_grad_(p.train_mm_norms)
            block.ln_2.requires_grad_(p.train_mm_norms)
        return former

    def text_features(self) -> Tensor:
        """Features of the attributes' sentences, ``(A, E)``."""
        if self.text_prompts is None:
            return self.fixed_text
        released = self.params.text_prompt_position == "released"
        at = self.ids.shape[1] if released else 1  # behind the padding, or right after the start
        return self.backbone.encode_text(self.ids, prompts=self.text_prompts, at=at)

    def matched_tokens(self, tokens: Tensor) -> Tensor:
        """The global token and the region CLS tokens out of ``(B, S, E)``: ``(B, 1 + K, E)``."""
        first_region = 1 + self.params.prompt_length
        chosen = tokens[:, first_region : first_region + self.params.regions]
        at = 1 if self.params.gl_global_token == "released" else 0
        return torch.cat([tokens[:, at : at + 1], chosen], dim=1)

    def forward(self, images: Tensor) -> Output:
        tokens, text = self.visual_tokens(images), self.text_features()
        words = self.word_embed(text).expand(len(tokens), -1, -1)
        logits = self.head(self.fusion(words, self.visual_embed(tokens)))
        if self.similarity is None:
            return Output(logits)
        matched = self.matched_tokens(tokens)
        return Output(logits, {"gl": self.similarity(matched, text, self.backbone.scale)})


class GlobalLocal(nn.Module):
    """Global-local similarity of an image with the attributes (Section III-D), as logits.

    ``forward(tokens (B, 1 + K, E), text (A, E), scale) -> (B, A)``. Each token is scored against
    each attribute; an attribute's local score is the best region's if that exceeds the threshold,
    else the worst one's; the result is the mean of global and local score.

    ``sigmoid_cosine`` scores independently per attribute: the sigmoid of the batch-normed cosine.
    ``released`` takes a softmax over the attributes and batch-norms the mean.
    """

    def __init__(self, attributes: int, params: Params) -> None:
        super().__init__()
        self.released_score = params.gl_score == "released"
        self.last_for_all = params.gl_aggregation == "released"
        if self.released_score:
            self.temperature = nn.Parameter(torch.tensor(1.0))
        self.threshold = params.gl_threshold
        if not self.released_score:  # scores are logits there
            self.threshold = log(self.threshold / (1 - self.threshold))
        self.bn = nn.BatchNorm1d(attributes)

    def forward(self, tokens: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        scores = self.scores(tokens, text, scale)
        if self.released_score:
            return self.bn(self.aggregate(scores))
        return self.aggregate(self.bn(scores.flatten(0, 1)).view_as(scores))

    def scores(self, tokens: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        """Of each token against each attribute, ``(B, 1 + K, A)``, before any batch-norm."""
        scores = scale * F.normalize(tokens, dim=-1) @ F.normalize(text, dim=-1).T
        return (scores / self.temperature).softmax(-1) if self.released_score else scores

    def aggregate(self, scores: Tensor) -> Tensor:
        """``(B, 1 + K, A) -> (B, A)``; without regions the global score alone."""
        if scores.shape[1] == 1:
            return scores[:, 0]
        best, worst = scores[:, 1:].amax(1), scores[:, 1:].amin(1)
        local = torch.where(best > self.threshold, best, worst)
        if self.last_for_all:
            local = local[-1:]
        return (scores[:, 0] + local) / 2


def sentences(task: Task, expanded: bool) -> list[str]:
    """The text of each attribute: its sentence, or its bare name."""
    template = "a photo of a person {}" if expanded else "{name}"
    return attribute_sentences(task.attributes, template, absence=False)


class Method(BaseMethod[Params]):
    tasks = ("par", "reid")
    needs_tokens = True
    search = {"lr": (1e-4, 1e-1), "prompt_lr": (1e-3, 3e-1)}

    def supports(self, task: Task, backbone: Backbone) -> str | None:
        reason = super().supports(task, backbone)
        if reason is None and task.kind == "reid":
            reason = self._unread()
        if reason is None and self.params.prompt_depth > backbone.visual_layers:
            return (
                f"prompt_depth {self.params.prompt_depth} exceeds the {backbone.visual_layers} "
                f"layers of {backbone.name}"
            )
        return reason

    def _unread(self) -> str | None:
        """Why these hyperparameters are none of re-identification's. Without global-local
        similarity, as forms without regions are, there is nothing to refuse."""
        default = Params()
        given = replace(self.params, gl_weight=self.params.gl_weight or default.gl_weight)
        for key in OF_ATTRIBUTES:
            if getattr(given, key) != getattr(default, key):
                return (
                    f"{key} is of attributes' texts, of which persons have none: leave it at "
                    f"{getattr(default, key)}"
                )
        return None

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        model = PromptedPerson if task.kind == "reid" else PromptPAR
        return model(backbone, task, self.params)

    def loss(self, output: Output, batch: Batch, task: Task) -> dict[str, Tensor]:
        from pedbench.tasks.losses import weighted_bce

        terms = super().loss(output, batch, task)
        if "gl" in output.extras:
            gl = weighted_bce(output.extras["gl"], batch.labels, task)
            terms["gl"] = self.params.gl_weight * gl
        return terms

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """``prompts``: what enters the encoders and the similarity; ``head``: fusion and head."""
        inside = ("prompts", "region_cls", "text_prompts", "similarity.")
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        head = [p for n, p in trained if not n.startswith(inside)]
        prompts = [p for n, p in trained if n.startswith(inside)]
        slow: dict[str, Any] = {"name": "prompts", "params": prompts, "lr": self.params.prompt_lr}
        if self.params.prompt_warmup_epochs is not None:
            slow["warmup_epochs"] = self.params.prompt_warmup_epochs
        return [{"name": "head", "params": head, "lr": self.params.lr}, slow]
