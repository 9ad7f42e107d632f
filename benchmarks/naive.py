"""What each trick of the suite spares, computed plainly: the yardstick of `steps.py` and of
tests/unit/test_tricks.py. The suite itself has no switch for any of this."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pedbench.nn import backbone as backbone_module
from pedbench.nn import fusion
from pedbench.nn.backbone import Backbone
from pedbench.nn.blocks import Attention, insert, merge_qkv, take
from pedbench.nn.heads import FixedTexts
from pedbench.nn.texts import PackedTexts

TRICKS = {
    "cached_images": "features of an image tower in which nothing trains: computed once",
    "fixed_texts": "features of texts that nothing changes: computed once",
    "short_texts": "texts as long as the longest one, rounded up to 8, instead of CLIP's 77 tokens",
    "packed_texts": "what texts share computed once, no padding, instead of one row per text",
    "batched_images": "texts that depend on the image: all images at once, not one after the other",
    "kv_prompts": "prompts that the next layer replaces: keys and values only",
    "read": "the last layer computes the tokens that are read and no others",
    "split_attention": "separate projections and fused attention instead of nn.MultiheadAttention",
    "late_backward": "no gradients of what lies before the first trained value",
}
# released code freezes CLIP as well, so the plain form of a method has this one
PLAIN = tuple(trick for trick in TRICKS if trick != "late_backward")
# these adapt queries, keys or values by themselves, which nn.MultiheadAttention cannot
NEED_SPLIT = ("lora", "peft_tuner", "ssf")
_ROUND = 8  # of the tokenizer


@contextmanager
def without(backbone: Backbone, *tricks: str) -> Iterator[Counter[str]]:
    """Models built on ``backbone`` and run inside compute plainly what ``tricks`` spare.

    Yields how often each trick was done without, so far: 0 means that the model has no use for it.
    ``split_attention`` changes the backbone for good. ``cached_images`` is a matter of what the
    caller runs, the model or its head. Without ``short_texts`` there are no ``packed_texts``
    either: a pack has no padding.
    """
    used: Counter[str] = Counter()
    chosen = {*tricks, "packed_texts"} if "short_texts" in tricks else {*tricks}
    with ExitStack() as stack:
        for trick, patches in _PATCHES.items():
            if trick in chosen:
                for target, name, value in patches(used):
                    stack.enter_context(mock.patch.object(target, name, value))
        if "split_attention" in chosen:
            for tower in (backbone.clip.visual, backbone.clip):
                for block in tower.transformer.resblocks if hasattr(tower, "transformer") else ():
                    block.attn = fused(block.attn)
        yield used


def fused(attention: Attention) -> nn.MultiheadAttention:
    """The same attention as `nn.MultiheadAttention`; a copy of the weights, frozen."""
    state = merge_qkv({f"attn.{name}": value for name, value in attention.state_dict().items()})
    weight = state["attn.in_proj_weight"]
    made: Any = torch.nn.utils.skip_init(
        nn.MultiheadAttention,
        weight.shape[1],
        attention.heads,
        batch_first=True,
        device=weight.device,
        dtype=weight.dtype,
    )
    made.load_state_dict({name.removeprefix("attn."): value for name, value in state.items()})
    return made.requires_grad_(False)


Patches = list[tuple[Any, str, Any]]  # object, attribute, stand-in


def _fixed_texts(used: Counter[str]) -> Patches:
    def init(self: Any, backbone: Backbone, texts: list[str]) -> None:
        nn.Module.__init__(self)
        self.texts = (backbone, backbone.tokenizer(texts))  # a tuple: not the head's own module

    def forward(self: Any) -> Tensor:
        used["fixed_texts"] += 1
        backbone, ids = self.texts
        return backbone.encode_text(ids)

    return [(FixedTexts, "__init__", init), (FixedTexts, "forward", forward)]


def _short_texts(used: Counter[str]) -> Patches:
    short = Backbone.embed_text

    def embed_text(self: Backbone, ids: Tensor) -> Tensor:
        used["short_texts"] += 1
        return short(self, F.pad(ids, (0, self.context_length - ids.shape[1])))

    return [(Backbone, "embed_text", embed_text)]


def _packed_texts(used: Counter[str]) -> Patches:
    def init(self: Any, backbone: Backbone, sequences: Any, prompts: int = 0) -> None:
        nn.Module.__init__(self)
        self.backbone, self.prompts = backbone, prompts
        rows = [[row[0], *[0] * prompts, *row[1:]] for row in sequences]  # room for prompts
        length = -(-max(map(len, rows)) // _ROUND) * _ROUND
        length = min(length, backbone.context_length)
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        learnt = [(i, j) for i, row in enumerate(rows) for j, token in enumerate(row) if token < 0]
        at = torch.tensor(learnt, dtype=torch.long).reshape(-1, 2).T
        ends = torch.tensor([len(row) - 1 - prompts for row in rows])
        for name, value in {
            "ids": ids.clamp(min=0), "ends": ends,
            "rows": at[0], "columns": at[1], "slots": -1 - ids[at[0], at[1]],
        }.items():  # fmt: skip
            self.register_buffer(name, value, persistent=False)

    def forward(self: Any, tokens: Tensor | None = None, prompts: Tensor | None = None) -> Tensor:
        used["packed_texts"] += 1
        places = self.backbone.clip.positional_embedding
        images = 1 if tokens is None or tokens.ndim == 2 else len(tokens)
        x = self.backbone.embed_text(self.ids).repeat(images, 1, 1, 1)
        if tokens is not None:
            x[:, self.rows, self.columns] = tokens[..., self.slots, :] + places[self.columns]
        if prompts is not None:
            x = torch.cat([x[:, :, :1], x[:, :, 1 + self.prompts :]], dim=2)
            first = prompts[:1] + places[1 : 1 + self.prompts]
            prompts = torch.cat([first, prompts[1:]])
        features = self.backbone.encode_text(x.flatten(0, 1), self.ends.repeat(images), prompts)
        features = features.unflatten(0, (images, -1))
        return features if tokens is not None and tokens.ndim == 3 else features[0]

    return [(PackedTexts, "__init__", init), (PackedTexts, "forward", forward)]


def _batched_images(used: Counter[str]) -> Patches:
    together = PackedTexts.forward

    def forward(self: Any, tokens: Tensor | None = None, prompts: Tensor | None = None) -> Tensor:
        if tokens is None or tokens.ndim == 2:
            return together(self, tokens, prompts)
        used["batched_images"] += 1
        return torch.stack([together(self, of_image, prompts) for of_image in tokens])

    return [(PackedTexts, "forward", forward)]


def _kv_prompts(used: Counter[str]) -> Patches:
    spared = Backbone.run_blocks

    def run_blocks(
        self: Any,
        tower: str,
        x: Tensor,
        prompts: Tensor | None = None,
        at: int = 1,
        mask: Tensor | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        if prompts is None:
            return spared(self, tower, x, None, at, mask, read)  # type: ignore[arg-type]
        used["kv_prompts"] += 1
        length = prompts.shape[-2]
        own = torch.tensor([*range(at), *range(at + length, x.shape[1] + length)])
        transformer = self.clip.visual.transformer if tower == "visual" else self.clip.transformer
        mask = backbone_module._mask(mask, x.shape[1] + length, x, causal=tower == "text")
        for layer, block in enumerate(transformer.resblocks):
            if layer < len(prompts):
                x = insert(x if layer == 0 else x[:, own], prompts[layer], at)
            if read is not None and layer == len(transformer.resblocks) - 1:
                mask, read = backbone_module._rows(mask, None, own, read), own[read]
                x = backbone_module.step(block, x, mask, read=read)
            else:
                x = backbone_module.step(block, x, mask)
        return x

    return [(Backbone, "run_blocks", run_blocks)]


def _read(used: Counter[str]) -> Patches:
    spared, step = Backbone.run_blocks, fusion.step

    def run_blocks(
        self: Any,
        tower: Any,
        x: Tensor,
        prompts: Tensor | None = None,
        at: int = 1,
        mask: Tensor | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        everything = spared(self, tower, x, prompts, at, mask)
        if read is None:
            return everything
        used["read"] += 1
        if prompts is not None:
            after = at + prompts.shape[-2]
            everything = torch.cat([everything[:, :at], everything[:, after:]], dim=1)
        return take(everything, read)

    def fuse(block: Any, x: Tensor, read: Tensor | None = None) -> Tensor:
        if read is None:
            return step(block, x)
        used["read"] += 1
        return take(step(block, x), read)

    return [(Backbone, "run_blocks", run_blocks), (fusion, "step", fuse)]


def _split_attention(used: Counter[str]) -> Patches:
    def step(
        block: Any,
        x: Tensor,
        mask: Tensor | None = None,
        prompts: Tensor | None = None,
        at: int = 1,
        read: Tensor | None = None,
    ) -> Tensor:
        used["split_attention"] += 1
        y = block.ln_1(x)
        seen = y if prompts is None else insert(y, block.ln_1(prompts), at)
        if read is not None:
            x, y = take(x, read), take(y, read)
        if mask is not None and mask.ndim == 4:
            mask = mask.expand(-1, block.attn.num_heads, -1, -1).flatten(0, 1)
        mixed, _ = block.attn(y, seen, seen, need_weights=False, attn_mask=mask)
        x = x + block.ls_1(mixed)
        return x + block.ls_2(block.mlp(block.ln_2(x)))

    split = mock.Mock(side_effect=lambda attention: attention)
    return [(backbone_module, "step", step), (fusion, "step", step), (Attention, "split", split)]


def _late_backward(used: Counter[str]) -> Patches:
    frozen = Backbone.embed_image

    def embed_image(self: Backbone, images: Tensor) -> Tensor:
        x = frozen(self, images)
        if x.requires_grad:
            return x
        used["late_backward"] += 1
        return x.requires_grad_()

    return [(Backbone, "embed_image", embed_image)]


# In this order: stand-ins wrap those before them.
_PATCHES = {
    "fixed_texts": _fixed_texts,
    "short_texts": _short_texts,
    "packed_texts": _packed_texts,
    "batched_images": _batched_images,
    "split_attention": _split_attention,
    "kv_prompts": _kv_prompts,
    "read": _read,
    "late_backward": _late_backward,
}
