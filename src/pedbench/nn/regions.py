"""Regions of a patch grid: horizontal stripes, and the attention masks that confine tokens to
them (PromptPAR, Section III-B)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pedbench.contracts import PedbenchError

RELEASED_OFFSETS = (0, 48, 112, 176)  # first patch of each region on the 16 x 16 grid


def region_patches(
    grid: tuple[int, int],
    regions: int,
    overlap: int,
    layout: Literal["grid", "released"] = "grid",
) -> Tensor:
    """Which of the N patches each region holds: bool ``(regions, N)``.

    ``grid`` is (rows, columns). The rows are shared out evenly and every stripe is widened by
    ``overlap // 2`` rows on both sides. ``released`` puts the stripes where the authors' code
    does: first patches are constants that fit the 16 x 16 grid alone, elsewhere stripes break
    rows, leave patches out or end early. Raises PedbenchError when the grid cannot be divided
    or, with ``grid``, when ``overlap`` is odd.
    """
    rows, columns = grid
    if not 1 <= regions <= rows:
        raise PedbenchError(
            f"regions = {regions}, but the backbone sees {rows} rows of patches: use 1 to {rows}"
        )
    if layout == "released" and regions > len(RELEASED_OFFSETS):
        raise PedbenchError(
            f"region_mask 'released' knows {len(RELEASED_OFFSETS)} regions, not {regions}: "
            "set region_mask to 'grid'"
        )
    if layout == "grid" and overlap % 2:
        raise PedbenchError(
            f"region_overlap = {overlap}: each of two neighbouring regions is widened by half of "
            f"it, so it must be even: use {overlap - 1} or {overlap + 1}"
        )
    margin = overlap // 2
    patches = torch.zeros(regions, rows * columns, dtype=torch.bool)
    for k in range(regions):
        if layout == "grid":
            first = max(k * rows // regions - margin, 0) * columns
            end = min((k + 1) * rows // regions + margin, rows) * columns
        else:
            inner = 0 < k < regions - 1
            first = RELEASED_OFFSETS[k]
            end = first + (rows // regions + margin * (1 + inner)) * columns
        patches[k, first:end] = True
    return patches


def region_mask(patches: Tensor, prompts: int) -> Tensor:
    """Additive mask ``(S, S)``, 0 or -inf: row looks at column.

    Tokens stand in the order CLS, ``prompts`` prompts of each of the 1 + K groups (the first
    group is global), K region CLS tokens, N patches. A region's CLS and prompts see only their
    own group and the patches of their region ``patches (K, N)``; every other token sees all.
    """
    regions, count = patches.shape
    groups = torch.arange(1 + regions).repeat_interleave(prompts)
    owner = torch.cat([torch.zeros(1), groups, torch.arange(1, 1 + regions)]).long()  # 0: global
    prefix = (owner[:, None] == owner) | (owner[:, None] == 0)
    inside = torch.cat([torch.ones(1, count, dtype=torch.bool), patches])[owner]
    rows = torch.cat([prefix, inside], dim=1)
    rows = torch.cat([rows, torch.ones(count, rows.shape[1], dtype=torch.bool)])
    return torch.zeros(rows.shape).masked_fill(~rows, -torch.inf)
