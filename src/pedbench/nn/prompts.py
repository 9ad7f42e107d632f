"""Learned prompt tokens, and how they enter the towers in CoOp's family."""

from __future__ import annotations

from math import sqrt
from typing import Literal

import torch
from torch import Tensor, nn

from pedbench.contracts import Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import ImageClassifier, TextHeadKind
from pedbench.nn.sentences import attribute_sentences
from pedbench.nn.texts import PackedTexts


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


def normal_prompts(*shape: int) -> nn.Parameter:
    """Prompt tokens of the given shape from N(0, 0.02^2), as in CoOp and what builds on it."""
    return nn.Parameter(torch.empty(shape).normal_(std=0.02))


def prompt_reason(backbone: Backbone, tower: Literal["visual", "text"], **sizes: int) -> str | None:
    """Why a tower cannot take such prompts, or None: for `BaseMethod.supports`.

    ``sizes``: the hyperparameters, by name, that hold the prompts' number and how many layers
    they enter (0: all).
    """
    (length_key, length), (depth_key, depth) = sizes.items()
    layers = backbone.visual_layers if tower == "visual" else backbone.text_layers
    if length < 1:
        return f"{length_key} {length}: the {tower} tower needs at least one prompt"
    if not 0 <= depth <= layers:
        return (
            f"{depth_key} {depth}: the {tower} tower of {backbone.name} has {layers} layers; "
            f"use 1 to {layers}, or 0 for all"
        )
    return None


class PromptedTexts(nn.Module):
    """The attributes' texts behind learned tokens: ``forward() -> (T, E)``, T as the `Similarity`
    of ``kind`` wants.

    A text is ``words``, then ``class_name`` with the attribute's phrase. Its first ``length``
    tokens after the start are learned, in the input and in front of each further of ``depth``
    layers: ``prompts (depth, length, Wt)``. Those of the input begin as the words; words beyond
    ``length`` stay fixed text, tokens beyond the words begin at random.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        kind: TextHeadKind,
        *,
        words: str,
        class_name: str,
        length: int,
        depth: int,
    ) -> None:
        super().__init__()
        tokenizer = backbone.tokenizer
        ids = tokenizer.encode(words)
        self.prompts = normal_prompts(depth, length, backbone.text_width)
        with torch.no_grad():
            start = backbone.clip.token_embedding.weight[ids[:length]]
            self.prompts[0, : len(start)] = start
        rests = attribute_sentences(task.attributes, f"{class_name}.", absence=kind == "pair")
        head = [tokenizer.sot, *ids[length:]]
        rows = [[*head, *tokenizer.encode(rest), tokenizer.eot] for rest in rests]
        self.packed = PackedTexts(backbone, rows, prompts=length)

    def forward(self) -> Tensor:
        return self.packed(prompts=self.prompts)


def encode_prompted(backbone: Backbone, images: Tensor, prompts: Tensor) -> Tensor:
    """CLIP's image features ``(B, E)`` with ``prompts (D, P, Wv)`` in the first D layers.

    The first ones enter before the input's LayerNorm, without positions; deeper ones take their
    place behind it. They stand last, which attention, without positions, cannot tell.
    """
    x = backbone.embed_image(images)
    prompts = torch.cat([backbone.clip.visual.ln_pre(prompts[:1]), prompts[1:]])
    cls = torch.zeros(1, dtype=torch.long, device=x.device)
    x = backbone.run_blocks("visual", x, prompts, at=x.shape[1], read=cls)
    return backbone.project_image(x[:, 0])


class PromptedClassifier(ImageClassifier):
    """`ImageClassifier` whose stem has ``prompts (D, P, Wv)``, see `encode_prompted`."""

    def __init__(self, backbone: Backbone, head: nn.Module, prompts: nn.Parameter) -> None:
        super().__init__(backbone, head)
        self.prompts = prompts

    def stem(self, images: Tensor) -> Tensor:
        return encode_prompted(self.backbone, images, self.prompts)
