"""Transformer parts: open_clip's attention with separate projections, and one block's step."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """`nn.MultiheadAttention` (batch first) with separate q, k, v, out projections and fused
    attention: the projections can be adapted one by one, and training is faster.

    ``attn_mask`` is additive, float, broadcastable to ``(B, heads, Q, K)``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    @classmethod
    def split(cls, fused: nn.MultiheadAttention) -> Attention:
        """The same attention as ``fused``, with copies of its weights."""
        attention = cls(fused.embed_dim, fused.num_heads)
        attention.load_state_dict(split_qkv(fused.state_dict()))
        return attention

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix projected ``q (B, Q, W)``, ``k``, ``v (B, K, W)`` into ``(B, Q, W)``."""
        q, k, v = self._heads(q), self._heads(k), self._heads(v)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(mixed.transpose(-3, -2).flatten(-2))

    def weights(self, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention weights ``(B, heads, Q, K)`` of unprojected ``query`` and ``key``."""
        q, k = self._heads(self.q_proj(query)), self._heads(self.k_proj(key))
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return (scores if mask is None else scores + mask).softmax(-1)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        weights = self.weights(query, key, attn_mask).mean(1) if need_weights else None
        return self.attend(q, k, v, attn_mask), weights


def split_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict with each ``in_proj_*`` cut into ``{q,k,v}_proj.*``."""
    split = {}
    for name, tensor in state.items():
        prefix, fused, kind = name.rpartition("in_proj_")
        if fused:
            split |= zip((f"{prefix}{p}_proj.{kind}" for p in "qkv"), tensor.chunk(3), strict=True)
        else:
            split[name] = tensor
    return split


def merge_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `split_qkv` for modules named ``attn``; a ResNet's ``attnpool`` stays as it is."""
    merged = {}
    for name, tensor in state.items():
        prefix, separate, kind = name.rpartition("attn.q_proj.")
        if separate:
            parts = [state[f"{prefix}attn.{p}_proj.{kind}"] for p in "qkv"]
            merged[f"{prefix}attn.in_proj_{kind}"] = torch.cat(parts)
        elif "attn.k_proj." not in name and "attn.v_proj." not in name:
            merged[name] = tensor
    return merged


def insert(x: Tensor, tokens: Tensor, at: int) -> Tensor:
    """``x (B, S, W)`` with ``tokens (P, W)`` or ``(B, P, W)`` from index ``at`` on."""
    tokens = tokens.expand(len(x), -1, -1)
    return torch.cat([x[:, :at], tokens, x[:, at:]], dim=1)


def take(x: Tensor, read: Tensor) -> Tensor:
    """Tokens of ``x (B, S, W)`` at positions ``read``, ``(R,)`` or ``(B, R)``: ``(B, R, W)``."""
    return x[torch.arange(len(x), device=x.device)[:, None], read]


def step(
    block: Any,
    x: Tensor,
    mask: Tensor | None = None,
    prompts: Tensor | None = None,
    at: int = 1,
    read: Tensor | None = None,
) -> Tensor:
    """One pre-norm block of open_clip over ``x (B, S, W)``, computing only what is needed.

    ``prompts``, ``(P, W)`` or ``(B, P, W)``, stand at index ``at`` and are only looked at: they
    get keys and values, no query, attention output or MLP. ``read`` (see `take`) names the tokens
    of ``x`` that are wanted, ``(B, R, W)``; default all. ``mask`` has a row per token that comes
    out and a column per token looked at.
    """
    if prompts is None and read is None:
        return block(x, attn_mask=mask)
    attn, y = block.attn, block.ln_1(x)
    k, v = attn.k_proj(y), attn.v_proj(y)
    if prompts is not None:
        p = block.ln_1(prompts)
        k, v = insert(k, attn.k_proj(p), at), insert(v, attn.v_proj(p), at)
    if read is not None:
        x, y = take(x, read), take(y, read)
    x = x + block.ls_1(attn.attend(attn.q_proj(y), k, v, mask))
    return x + block.ls_2(block.mlp(block.ln_2(x)))
