"""Interaction-and-aggregation blocks of a convolutional network (Hou et al., CVPR 2019): every
position, and every channel, is mixed with those it is related to."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Relation = Literal["product", "released"]

# standard deviation of the location relation, as a share of the map's height and width: the
# released code has 20 and 10 positions on maps of 32 x 16, 10 and 5 on 16 x 8
SPREAD = 0.625


class SpatialInteraction(nn.Module):
    """SIA: to each position of ``maps (B, C, H, W)`` the mean of all, weighed by their relation to
    it, is added behind a batch-norm that starts at 0, so that the network starts as it was."""

    def __init__(self, width: int, contexts: tuple[int, ...], relation: Relation) -> None:
        super().__init__()
        self.contexts, self.kind = contexts, relation
        self.norm = silent_norm(width)

    def forward(self, maps: Tensor) -> Tensor:
        mixed = maps.flatten(2) @ self.relation(maps).mT
        return maps + self.norm(mixed.view_as(maps))

    def relation(self, maps: Tensor) -> Tensor:
        """``(B, HW, HW)``, rows sum to 1: how near two positions are, times how alike they look,
        alone and with the neighbours of each larger context.

        ``released`` takes the softmax of that product, which lies between 0 and 1: no weight is
        more than e times another.
        """
        location = nearness(*maps.shape[2:]).to(maps.device)
        looks = [likeness(maps, context) for context in self.contexts]
        if self.kind == "product":  # of softmaxes, renormalised
            return sum(looks, location).softmax(-1)
        product = location.softmax(-1)
        for look in looks:
            product = product * look.softmax(-1)
        return product.softmax(-1)


class ChannelInteraction(nn.Module):
    """CIA: to each channel of ``maps (B, C, H, W)`` the mean of all, weighed by the softmax of
    their inner products with it, is added behind a batch-norm that starts at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = silent_norm(width)

    def forward(self, maps: Tensor) -> Tensor:
        rows = maps.flatten(2)
        relation = (rows @ rows.mT).softmax(-1)
        return maps + self.norm((relation @ rows).view_as(maps))


def nearness(height: int, width: int) -> Tensor:
    """``(HW, HW)``: logarithm of a Gaussian of the distance between positions, row by row."""
    rows, columns = (torch.arange(n) / (SPREAD * n) for n in (height, width))
    places = torch.cartesian_prod(rows, columns)
    return -torch.cdist(places, places).square() / 2


def likeness(maps: Tensor, context: int) -> Tensor:
    """``(B, HW, HW)``: inner products of the positions' channels over their root number; of a
    larger ``context``, an odd number, the mean of those of all positions in a square around."""
    patches = maps.flatten(2)
    if context > 1:
        patches = F.unfold(maps, context, padding=context // 2)
    return patches.mT @ patches / (maps.shape[1] ** 0.5 * context**2)


def silent_norm(width: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width)
    nn.init.zeros_(norm.weight)
    return norm


def insert_blocks(
    resnet: Any, stages: tuple[int, ...], contexts: tuple[int, ...], relation: Relation
) -> None:
    """Let an SIA and a CIA block follow these stages (1 to 4) of timm's ``resnet``."""
    for stage in stages:
        layer = getattr(resnet, f"layer{stage}")
        width = layer[-1].conv3.out_channels
        layer.append(SpatialInteraction(width, contexts, relation))
        layer.append(ChannelInteraction(width))
