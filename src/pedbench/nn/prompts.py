"""Learned prompt tokens."""

from __future__ import annotations

from math import sqrt
from typing import Literal

import torch
from torch import nn


def prompt_parameter(
    *shape: int, patch: tuple[int, int], init: Literal["random", "zero"] = "random"
) -> nn.Parameter:
    """Prompt tokens of the given shape, the last axis being the tower's width W.

    ``random`` draws from U(-v, v) with v = sqrt(6 / (3 * patch area + W)), the scale of a
    Xavier-initialised patch embedding (Jia et al., "Visual Prompt Tuning", 2022).
    """
    if init == "zero":
        return nn.Parameter(torch.zeros(shape))
    bound = sqrt(6 / (3 * patch[0] * patch[1] + shape[-1]))
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
