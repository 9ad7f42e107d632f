"""Heads shared by methods: from image features to one logit per attribute, or to the neck of
re-identification."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pedbench.contracts import Batch, Output, Task, as_output
from pedbench.nn.backbone import Backbone
from pedbench.nn.reid import BNNeck
from pedbench.nn.sentences import attribute_sentences

TextHeadKind = Literal["pair", "sigmoid", "softmax"]
HeadKind = Literal["linear", "pair", "sigmoid", "softmax"]


class Similarity(nn.Module):
    """The one way in which all methods compare images with texts, zero-shot CLIP included.

    CLIP and the prompt learners choose one class of many; pedestrian attributes are many yes/no
    questions, which their papers leave open. ``forward(image (B, E), text)`` with ``text``
    ``(T, E)``, or of each image ``(B, T, E)``, gives logits ``(B, A)``:

    * ``pair``: texts of the A attributes' presence, then of their absence (T = 2A);
      scale * (cos+ - cos-), whose sigmoid is CLIP's softmax over the two;
    * ``sigmoid``: texts of presence (T = A); scale * cos + a learned bias per attribute, which
      `start_biases` sets;
    * ``softmax``: one text per class (T = A); scale * cos, the papers' own form, for
      cross-entropy over classes of which exactly one is true.
    """

    scale: Tensor

    def __init__(self, kind: TextHeadKind, backbone: Backbone, attributes: int) -> None:
        super().__init__()
        self.kind, self.attributes = kind, attributes
        self.register_buffer("scale", backbone.scale.detach().clone(), persistent=False)
        self.bias = nn.Parameter(torch.zeros(attributes)) if kind == "sigmoid" else None

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        if self.kind == "pair":
            text = text[..., : self.attributes, :] - text[..., self.attributes :, :]
        cosine = image @ text.T if text.ndim == 2 else (text @ image[..., None])[..., 0]
        logits = self.scale * cosine
        return logits if self.bias is None else logits + self.bias


def head_reason(kind: str, task: Task) -> str | None:
    """Why a head of ``kind`` cannot solve ``task``, or None: for `BaseMethod.supports`."""
    if task.kind == "reid" and kind != "linear":
        return f"head {kind} compares with the attributes' texts; persons have none: use linear"
    if task.kind == "par" and kind == "softmax":
        return "head softmax gives every image exactly one attribute: use pair or sigmoid"
    return None


def start_biases(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Set the learned bias of every `Similarity` in ``model`` so that the mean logit of each
    attribute over ``batches`` is 0. Without it, CLIP's cosines (0.2 to 0.3, times 100) saturate.

    0 is where the biases belong under the loss weighting ``balanced``. Under the others it is the
    weighted log-odds of the attribute, which training must still reach.
    """
    biases = [m.bias for m in model.modules() if isinstance(m, Similarity) and m.bias is not None]
    if biases:
        logits = torch.cat([model(batch.images).logits for batch in batches])
        for bias in biases:
            bias.sub_(logits.mean(0))


class FixedTexts(nn.Module):
    """Features of texts that nothing changes, computed once: ``forward() -> (T, E)``."""

    features: Tensor

    def __init__(self, backbone: Backbone, texts: list[str]) -> None:
        super().__init__()
        with torch.no_grad():
            features = backbone.encode_text(backbone.tokenizer(texts))
        self.register_buffer("features", features, persistent=False)

    def forward(self) -> Tensor:
        return self.features


class TextHead(nn.Module):
    """Image features against texts: ``forward(features (B, E)) -> logits (B, A)``.

    ``texts() -> (T, E)`` is what the method learns, or `FixedTexts`.
    """

    def __init__(self, texts: nn.Module, similarity: Similarity) -> None:
        super().__init__()
        self.texts, self.similarity = texts, similarity

    def forward(self, features: Tensor) -> Tensor:
        return self.similarity(features, self.texts())


class LinearHead(nn.Sequential):
    """Image features, standardised, then one linear unit per attribute.

    The batch-norm without parameters makes the learning rate independent of the backbone.
    """

    def __init__(self, width: int, attributes: int) -> None:
        super().__init__(nn.BatchNorm1d(width, affine=False), nn.Linear(width, attributes))


def image_head(kind: HeadKind, backbone: Backbone, task: Task, template: str) -> nn.Module:
    """The head of a method that adapts the image tower: linear, or against the fixed texts of
    ``template`` (see `attribute_sentences`). In re-identification linear is the `BNNeck`."""
    if kind == "linear" and task.kind == "reid":
        return BNNeck(backbone.embed_dim, task)
    if kind == "linear":
        return LinearHead(backbone.embed_dim, len(task.attributes))
    texts = attribute_sentences(task.attributes, template, absence=kind == "pair")
    similarity = Similarity(kind, backbone, len(task.attributes))
    return TextHead(FixedTexts(backbone, texts), similarity)


class ImageClassifier(nn.Module):
    """``head(stem(images))`` with ``stem`` CLIP's image encoder: while only the head trains, the
    engine caches the stem. ``forward(images (B, 3, H, W)) -> Output``; the head may give logits
    alone."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def stem(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W) -> (B, E)``."""
        return self.backbone.encode_image(images)

    def forward(self, images: Tensor) -> Output:
        return as_output(self.head(self.stem(images)))
