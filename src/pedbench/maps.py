"""Where a model looks: what tokens attend to, and which patches the scores depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pedbench.nn.backbone import Backbone

WINDOWS = 8  # hiding squares that fill the picture's height


@dataclass(frozen=True)
class Response:
    """What a group of tokens attends to: ``maps (B, rows, columns)``, the mean over ``tokens``
    tokens and the heads of the last layer. ``regional``: a mask hides patches from them."""

    tokens: int
    regional: bool
    maps: np.ndarray


class AttentionRecorder:
    """Within ``with AttentionRecorder(backbone) as recorder:``, what the tokens that are no patches
    attend to in the last layer of the image tower.

    Works for whatever encodes by `Backbone.run_blocks`; else, and with a ResNet, nothing is
    recorded. What is computed stays the same bit for bit, and nothing is left behind.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone: Any = backbone
        self.weights: list[Tensor] = []  # of each batch (B, R, N), of R tokens
        self.visible: Tensor | None = None  # (R, N): what the mask lets them see

    def __enter__(self) -> AttentionRecorder:
        if self.backbone.tokens:
            backbone, self.patches = self.backbone, None
            self.attention = backbone.clip.visual.transformer.resblocks[-1].attn
            self.embed, self.run = backbone.embed_image, backbone.run_blocks
            self.attend = self.attention.attend
            backbone.embed_image, backbone.run_blocks = self._embed_image, self._run_blocks
            self.attention.attend = self._attend
        return self

    def __exit__(self, *raised: object) -> None:
        if self.backbone.tokens:
            del self.backbone.embed_image, self.backbone.run_blocks, self.attention.attend

    def responses(self) -> list[Response]:
        """One per group of tokens that see the same patches, in the order of the tokens."""
        if self.visible is None:
            return []
        groups: dict[tuple[bool, ...], list[int]] = {}
        for token, seen in enumerate(self.visible.tolist()):
            groups.setdefault(tuple(seen), []).append(token)
        weights = torch.cat(self.weights)
        return [
            Response(len(tokens), not all(seen), self._map(weights[:, tokens]))
            for seen, tokens in groups.items()
        ]

    def _map(self, weights: Tensor) -> np.ndarray:
        return weights.mean(1).unflatten(1, self.backbone.grid).numpy()

    def _embed_image(self, images: Tensor, shift: Tensor | None = None) -> Tensor:
        self.embedded = self.embed(images, shift)
        return self.embedded

    def _run_blocks(
        self,
        tower: str,
        x: Tensor,
        prompts: Tensor | None = None,
        at: int = 1,
        mask: Tensor | None = None,
        read: Tensor | None = None,
        layers: slice = slice(None),
    ) -> Tensor:
        """Note which of all tokens are patches, and which come out if not all do."""
        if tower != "visual":
            return self.run(tower, x, prompts, at, mask, read, layers)
        own = torch.arange(x.shape[1], device=x.device)
        own[at:] += 0 if prompts is None else prompts.shape[-2]
        first = _find(self.embedded[:, 1:], x)
        count = self.embedded.shape[1] - 1
        self.patches = None
        if first is not None and (read is None or read.ndim == 1):
            self.patches = own[first : first + count]
        self.read = own if read is None else own[read]
        out = self.run(tower, x, prompts, at, mask, read, layers)
        if layers.stop is not None and self.patches is not None:
            # where the layers that follow find them
            self.embedded = torch.cat([out[:, :1], out[:, self.patches]], dim=1)
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.patches is not None:
            everything = torch.arange(k.shape[1], device=k.device)
            queries = everything if q.shape[1] == k.shape[1] else self.read
            rows = ~torch.isin(queries, self.patches)
            weights = self._softmax(q.detach(), k.detach(), mask)[:, rows][..., self.patches]
            seen = torch.zeros(q.shape[1], k.shape[1], device=k.device) if mask is None else mask
            self.weights.append(weights.float().cpu())
            self.visible = (seen[rows][:, self.patches] == 0).cpu()
        return self.attend(q, k, v, mask)

    def _softmax(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        """Attention weights ``(B, Q, K)``, the mean over the heads."""
        q, k = (t.unflatten(-1, (self.attention.heads, -1)).transpose(1, 2) for t in (q, k))
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return (scores if mask is None else scores + mask).softmax(-1).mean(1)


def _find(patches: Tensor, x: Tensor) -> int | None:
    """The index from which on ``patches (B, N, W)`` stand in ``x (B, S, W)``."""
    count = patches.shape[1]
    starts = range(x.shape[1] - count + 1)
    return next((i for i in starts if torch.equal(x[:, i : i + count], patches)), None)


def responses(model: nn.Module, predict: Callable[[], object]) -> list[Response]:
    """What the tokens in the image tower of ``model`` attend to while ``predict`` runs it, see
    `AttentionRecorder`; empty where it has no tower of tokens."""
    backbones = [m for m in model.modules() if isinstance(m, Backbone)]
    if not backbones:
        return []
    with AttentionRecorder(backbones[0]) as recorder:
        predict()
    return recorder.responses()


def relevance(
    predict: Callable[[Tensor], np.ndarray], picture: Tensor, patch: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """How much every score falls when a part of the picture is hidden: occlusion sensitivity
    (Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, 4.2).

    A square of patches, an eighth of the picture high, moves over the grid in steps of one patch
    and shows the picture's mean colour. ``predict`` maps pictures ``(B, 3, H, W)`` uint8 to logits
    ``(B, A)``; ``picture (3, H, W)``; ``patch`` is (height, width) in pixels. Returns the logits
    ``(A,)`` of the whole picture and the falls ``(A, rows, columns)``: of a patch, the mean over
    the squares that hide it.
    """
    rows, columns = picture.shape[1] // patch[0], picture.shape[2] // patch[1]
    side = max(1, round(rows / WINDOWS))
    high, wide = min(side, rows), min(side, columns)
    windows = [
        (slice(y, y + high), slice(x, x + wide))
        for y, x in product(range(rows - high + 1), range(columns - wide + 1))
    ]
    colour = picture.float().mean((1, 2), keepdim=True).round().to(picture.dtype)
    pictures = picture.repeat(1 + len(windows), 1, 1, 1)
    for hidden, (y, x) in zip(pictures[1:], windows, strict=True):
        hidden[:, _pixels(y, patch[0]), _pixels(x, patch[1])] = colour
    logits = predict(pictures)
    falls = np.zeros((logits.shape[1], rows, columns))
    times = np.zeros((rows, columns))
    for (y, x), fall in zip(windows, logits[0] - logits[1:], strict=True):
        falls[:, y, x] += fall[:, None, None]
        times[y, x] += 1
    return logits[0], falls / times


def _pixels(patches: slice, size: int) -> slice:
    return slice(patches.start * size, patches.stop * size)
