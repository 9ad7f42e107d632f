"""Fusion of attribute and image tokens, and the head that reads one logit per attribute."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pedbench.contracts import PedbenchError
from pedbench.nn.backbone import Backbone
from pedbench.nn.blocks import Attention, split_qkv, step
from pedbench.nn.pretrained import imagenet_model

IMAGENET_VIT = "vit_base_patch16_224.orig_in21k_ft_in1k"  # timm's name of the authors' weights
MMInit = Literal["imagenet", "clip_last_block", "random"]


class MMFormer(nn.Module):
    """Transformer blocks over attribute and image tokens; the attribute tokens come out.

    ``forward(text (B, A, D), visual (B, S, D)) -> (B, A, D)``. Of the last block only the
    attribute tokens are computed. ``norm`` is the normalisation that follows.
    """

    def __init__(self, blocks: list[Any], norm: nn.LayerNorm, drop_path: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.width = norm.normalized_shape[0]
        for block in blocks:
            stochastic_depth(block, drop_path)

    def forward(self, text: Tensor, visual: Tensor) -> Tensor:
        x = torch.cat([text, visual], dim=1)
        for block in self.blocks[:-1]:
            x = step(block, x)
        attributes = torch.arange(text.shape[1], device=x.device)
        return self.norm(step(self.blocks[-1], x, read=attributes))


def stochastic_depth(block: Any, rate: float) -> None:
    """In training, leave each branch of open_clip's ``block`` out with probability ``rate``."""
    from timm.layers.drop import DropPath

    block.ls_1, block.ls_2 = DropPath(rate), DropPath(rate)


class TokenMLP(nn.Module):
    """One linear map along the token axis, the alternative to the MM-former (Table VI).

    ``forward(text (B, A, D), visual (B, S, D)) -> (B, A, D)``.
    """

    def __init__(self, tokens: int, attributes: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(tokens, attributes)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.width = width

    def forward(self, text: Tensor, visual: Tensor) -> Tensor:
        x = torch.cat([text, visual], dim=1).transpose(1, 2)
        return self.norm(self.linear(x).transpose(1, 2))


class AttributeHead(nn.Module):
    """One linear unit per attribute on its own token, then batch-norm: ``(B, A, D) -> (B, A)``."""

    def __init__(self, attributes: int, width: int) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(attributes, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(attributes).uniform_(-bound, bound))
        self.bn = nn.BatchNorm1d(attributes)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn((x * self.weight).sum(-1) + self.bias)


def mm_former(
    init: MMInit,
    layers: int,
    backbone: Backbone,
    width: int,
    heads: int,
    drop_path: float = 0.0,
) -> MMFormer:
    """An MM-former of ``layers`` frozen blocks whose norms may be unfrozen by the caller.

    ``imagenet``: the last blocks and the final norm of an ImageNet ViT-B/16, fetched by timm;
    ``clip_last_block``: copies of the backbone's last visual blocks (their width and heads);
    ``random``: untrained ViT blocks of ``width`` and ``heads``.
    Raises PedbenchError when the weights are not at hand or too few blocks exist.
    """
    if init == "clip_last_block":
        _check_layers(layers, backbone.visual_layers, backbone.name)
        blocks = [*backbone.clip.visual.transformer.resblocks][-layers:]
        norm = nn.LayerNorm(backbone.visual_width, eps=1e-6)
        return MMFormer(copy.deepcopy(blocks), norm, drop_path)
    if init == "random":
        blocks = [_vit_block(width, heads) for _ in range(layers)]
        return MMFormer(blocks, nn.LayerNorm(width, eps=1e-6), drop_path)
    vit = imagenet_model(
        IMAGENET_VIT,
        "set mm_init to 'clip_last_block' (blocks of the backbone itself) or 'random'",
    )
    _check_layers(layers, len(vit.blocks), IMAGENET_VIT)
    blocks = [converted(block) for block in vit.blocks[-layers:]]
    return MMFormer(blocks, vit.norm.requires_grad_(True), drop_path)


def converted(block: Any) -> nn.Module:
    """A block of timm's ViT as one of an `MMFormer`, frozen."""
    own = _vit_block(block.norm1.normalized_shape[0], block.attn.num_heads)
    load_vit_block(own, block.state_dict())
    return own


TIMM_NAMES = {
    "norm1.": "ln_1.",
    "norm2.": "ln_2.",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj.": "attn.out_proj.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}


def load_vit_block(block: nn.Module, state: dict[str, Tensor]) -> None:
    """Load the weights of one ViT block, named as in timm, into a block of an `MMFormer`."""
    renamed = {}
    for name, tensor in state.items():
        prefix = next(p for p in TIMM_NAMES if name.startswith(p))
        renamed[TIMM_NAMES[prefix] + name.removeprefix(prefix)] = tensor
    block.load_state_dict(split_qkv(renamed))


def _vit_block(width: int, heads: int) -> nn.Module:
    """A frozen pre-norm block as in ImageNet ViTs: exact GELU, LayerNorm eps 1e-6."""
    from open_clip.transformer import ResidualAttentionBlock

    norm = partial(nn.LayerNorm, eps=1e-6)
    block = ResidualAttentionBlock(width, heads, act_layer=nn.GELU, norm_layer=norm)
    block.attn = Attention.split(block.attn)  # type: ignore[assignment]
    return block.requires_grad_(False)


def _check_layers(wanted: int, there: int, source: str) -> None:
    if not 1 <= wanted <= there:
        raise PedbenchError(
            f"mm_layers = {wanted}, but {source} has {there} blocks: use 1 to {there}"
        )
