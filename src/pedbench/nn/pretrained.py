"""Weights other than CLIP's: ImageNet models of timm, and an encoder of sentences.

On the meta device, where only shapes count, none are needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pedbench.contracts import PedbenchError

MPNET = "sentence-transformers/all-mpnet-base-v2"
MPNET_WIDTH = 768


def imagenet_model(name: str, instead: str, **changes: Any) -> Any:
    """timm's model ``name`` with its weights, float32, all trainable; ``changes`` go to timm.

    Raises PedbenchError, with ``instead`` as the way out, when the weights are not at hand.
    """
    import timm

    with _fetching(name, instead):
        return timm.create_model(name, pretrained=not _only_shapes(), **changes)


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
