"""Learned prompt tokens, and how they enter the towers in CoOp's family."""

from __future__ import annotations

from math import sqrt
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pedbench.contracts import Output, ReidSettings, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import ImageClassifier, Similarity, TextHead, TextHeadKind, head_reason
from pedbench.nn.sentences import attribute_sentences
from pedbench.nn.texts import PackedTexts, learned


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


def learned_text_reason(kind: str, task: Task) -> str | None:
    """Why texts that are learned cannot be compared by a head of ``kind``, or None: for
    `BaseMethod.supports`. Persons, unlike attributes, have texts only if these are learned."""
    if task.kind == "par":
        return head_reason(kind, task)
    if kind != "softmax":
        return f"head {kind} asks for attributes: use softmax, over the training images' persons"
    if task.reid and task.reid.feature == "after":
        return "feature after: there is no neck that it could be behind; use before"
    return None


class PromptedTexts(nn.Module):
    """Texts of the classes behind learned tokens: ``forward() -> (T, E)``, T as the `Similarity`
    of ``kind`` wants.

    A text is ``words``, then ``class_name`` with the attribute's phrase. Its first ``length``
    tokens after the start are learned, in the input and in front of each further of ``depth``
    layers: ``prompts (depth, length, Wt)``. Those of the input begin as the words; words beyond
    ``length`` stay fixed text, tokens beyond the words begin at random.

    A person of the training images has no phrase: ``NAME`` learned tokens of their own stand in
    front of "person", ``names (C, NAME, Wt)``, as in CLIP-ReID (Li et al., AAAI 2023, section 3.2).
    """

    NAME = 4
    names: nn.Parameter | None

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
        names: nn.Parameter | None = None
        if task.kind == "reid":
            names = normal_prompts(task.identities, self.NAME, backbone.text_width)
            numbers = torch.arange(task.identities * self.NAME).view(-1, self.NAME).tolist()
            person = tokenizer.encode("person.")
            rests = [[*map(learned, of_person), *person] for of_person in numbers]
        else:
            said = attribute_sentences(task.attributes, f"{class_name}.", absence=kind == "pair")
            rests = [tokenizer.encode(rest) for rest in said]
        self.register_parameter("names", names)
        head = [tokenizer.sot, *ids[length:]]
        rows = [[*head, *rest, tokenizer.eot] for rest in rests]
        self.packed = PackedTexts(backbone, rows, prompts=length)

    def forward(self) -> Tensor:
        tokens = None if self.names is None else self.names.flatten(0, 1)
        return self.packed(tokens, prompts=self.prompts)


def answer(
    features: Tensor, texts: nn.Module, similarity: Similarity, settings: ReidSettings | None
) -> Output:
    """Image features ``(B, E)`` against what ``texts() -> (T, E)`` gives. With the ``settings`` of
    re-identification the features are what is compared, and persons of the training images are told
    by their texts in training alone: by plain cosines where the loss has a scale of its own."""
    if settings is None:
        return Output(similarity(features, texts()))
    if not similarity.training:
        logits = features[:, :0]
    elif settings.id_loss == "cross_entropy":
        logits = similarity(features, texts())
    else:
        logits = F.normalize(features, dim=1) @ F.normalize(texts(), dim=1).T
    return Output(logits, {"before": features}, features)


class LearnedTexts(TextHead):
    """`TextHead` of texts that are learned; see `answer`."""

    def __init__(
        self, texts: nn.Module, similarity: Similarity, settings: ReidSettings | None
    ) -> None:
        super().__init__(texts, similarity)
        self.settings = settings

    def forward(self, features: Tensor) -> Output:
        return answer(features, self.texts, self.similarity, self.settings)


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
