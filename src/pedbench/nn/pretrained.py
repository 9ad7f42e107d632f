"""Weights other than CLIP's: ImageNet models of timm, and an encoder of sentences.

On the meta device, where only shapes count, none are needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pedbench.contracts import PedbenchError

RESNET50 = "resnet50.tv_in1k"  # timm's name of torchvision's first weights
MPNET = "sentence-transformers/all-mpnet-base-v2"
MPNET_WIDTH = 768


def imagenet_model(name: str, instead: str, **changes: Any) -> Any:
    """timm's model ``name`` with its weights, float32, all trainable; ``changes`` go to timm.

    Raises PedbenchError, with ``instead`` as the way out, when the weights are not at hand.
    """
    import timm

    with _fetching(name, instead):
        return timm.create_model(name, pretrained=not _only_shapes(), **changes)


def resnet50(weights: Literal["imagenet", "random"], num_classes: int, last_stride: int = 2) -> Any:
    """timm's ResNet-50, all trainable: ``(B, 3, H, W)`` to ``num_classes`` scores, or, if that is
    0, to the mean of the last stage's 2048 channels. ``last_stride`` 1 keeps that stage as fine as
    the one before. Raises PedbenchError like `imagenet_model`."""
    if weights == "random":
        import timm

        network: Any = timm.create_model("resnet50", num_classes=num_classes)
    else:
        network = imagenet_model(RESNET50, "set weights to 'random'", num_classes=num_classes)
    first = network.layer4[0]
    first.conv2.stride = first.downsample[0].stride = (last_stride, last_stride)
    return network


def mpnet_vectors(sentences: list[str], instead: str) -> Tensor:
    """Vectors of ``sentences`` by all-mpnet-base-v2: the mean of each sentence's tokens, of unit
    length, ``(N, 768)``. Raises PedbenchError like `imagenet_model`."""
    if _only_shapes():
        return torch.empty(len(sentences), MPNET_WIDTH)
    from transformers import AutoModel, AutoTokenizer

    with _fetching(MPNET, instead):
        tokenizer = AutoTokenizer.from_pretrained(MPNET)
        model = AutoModel.from_pretrained(MPNET, dtype=torch.float32).eval()
    tokens = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**tokens).last_hidden_state
    real = tokens["attention_mask"][..., None]
    return F.normalize((states * real).sum(1) / real.sum(1), dim=-1)


def _only_shapes() -> bool:
    return torch.get_default_device().type == "meta"


@contextmanager
def _fetching(name: str, instead: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # hub, timm and transformers: not in the cache, no connection
        raise PedbenchError(
            f"the weights {name} are neither in Hugging Face's cache nor could they be downloaded "
            f"({error}): connect once, copy the cache of a machine that has them, or {instead}"
        ) from error
