"""Adapters of the peft library inside CLIP's blocks: which layers, which tower, which head."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from pedbench.contracts import PedbenchError, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import (
    HeadKind,
    ImageClassifier,
    Similarity,
    TextHead,
    head_reason,
    image_head,
)
from pedbench.nn.sentences import attribute_sentences
from pedbench.nn.texts import PackedTexts
from pedbench.registry import suggest

if TYPE_CHECKING:
    from peft import PeftConfig
    from peft.tuners.tuners_utils import BaseTuner

Tower = Literal["visual", "text", "both"]

ADAPTER = "default"  # peft's name of a model's only adapter
LAYERS = {
    "q": r"attn\.q_proj",
    "k": r"attn\.k_proj",
    "v": r"attn\.v_proj",
    "out": r"attn\.out_proj",
    "fc": r"mlp\.c_fc",
    "proj": r"mlp\.c_proj",
    "ln": "ln_1|ln_2",
}
TOWERS = {"visual": r"visual\.transformer", "text": "transformer"}
OUTER_NORMS = {"visual": r"visual\.(ln_pre|ln_post)", "text": "ln_final"}
# what `adapt` sets itself, and what means nothing without peft's own model wrapper
RESERVED = ("target_modules", "feedforward_modules", "peft_type", "task_type", "inference_mode")
# tuners that need token embeddings, a task number per call or a transformers model
NOT_LAYERS = ("Poly", "Shadow", "TrainableTokens", "XLora")
# LoRA's starts that are not offered, and why
REFUSED_STARTS = {
    **dict.fromkeys(
        ("eva", "corda", "lora_ga"),
        "is computed from data in a call of its own, without which it is plain LoRA",
    ),
    "loftq": "quantises the weights below it, which is another model than the other methods adapt",
}


def peft_config(tuner: str, options: dict[str, Any]) -> PeftConfig:
    """The configuration ``{tuner}Config`` of peft with keyword arguments ``options``.

    Raises PedbenchError, with a close name, for an unknown tuner or option, and with peft's
    reason for a value that it refuses.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner

    known = {
        config.__name__.removesuffix("Config"): config
        for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if issubclass(PEFT_TYPE_TO_TUNER_MAPPING.get(kind, object), BaseTuner)
    }
    known = {name: config for name, config in known.items() if name not in NOT_LAYERS}
    if tuner not in known:
        raise PedbenchError(
            f"tuner: peft has no '{tuner}Config' that adapts layers{suggest(tuner, known)} "
            f"(it has: {', '.join(sorted(known))})"
        )
    allowed = [f.name for f in fields(known[tuner]) if f.init and f.name not in RESERVED]
    for key in options:
        if key in RESERVED:
            raise PedbenchError(f"options: '{key}' is set by targets and tower; delete it")
        if key not in allowed:
            raise PedbenchError(
                f"options: {tuner}Config has no '{key}'{suggest(key, allowed)} "
                f"(it has: {', '.join(allowed)})"
            )
    start = options.get("init_lora_weights")
    if reason := REFUSED_STARTS.get(str(start)):
        raise PedbenchError(f"options: init_lora_weights '{start}' {reason}: choose another")
    try:
        return known[tuner](**options)
    except (ValueError, TypeError) as error:
        raise PedbenchError(f"options: {tuner}Config refuses them: {error}") from error


def adapt(
    backbone: Backbone, config: PeftConfig, tower: Tower, targets: Sequence[str]
) -> BaseTuner:
    """Put the adapters of ``config`` into ``backbone``, in place; they are all that trains in it.

    ``targets``: keys of `LAYERS`, in every block of the tower; ``ln`` are also the norms around
    the blocks. Raises PedbenchError with peft's reason when it cannot adapt these layers.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    if not targets:
        raise PedbenchError(f"targets is empty: name layers to adapt ({', '.join(LAYERS)})")
    chosen: Any = config
    chosen.target_modules = layer_pattern(tower, targets)
    if hasattr(config, "feedforward_modules"):  # IA3 rescales what enters these, not what leaves
        chosen.feedforward_modules = layer_pattern(tower, [t for t in targets if t == "proj"])
    try:
        # peft looks at the values it makes, which a model that is only counted does not have
        with torch.device("cpu"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unsupported layer type|Failed to load|Setting boft")
            warnings.filterwarnings("error", "Invalid .* Adjusted")  # to another value than asked
            return PEFT_TYPE_TO_TUNER_MAPPING[chosen.peft_type](backbone.clip, config, ADAPTER)
    except (ValueError, TypeError, RuntimeError, AssertionError, UserWarning) as error:
        name = type(config).__name__.removesuffix("Config")
        raise PedbenchError(
            f"{name} cannot adapt {', '.join(targets)} of {backbone.name}: {error}"
        ) from error


def layer_pattern(tower: Tower, targets: Sequence[str]) -> str:
    """A regular expression of the full names of these layers in a CLIP; none: of nothing."""
    towers = ("visual", "text") if tower == "both" else (tower,)
    inner = "|".join(LAYERS[target] for target in targets)
    names = [rf"{TOWERS[t]}\.resblocks\.\d+\.({inner})" for t in towers if targets]
    names += [OUTER_NORMS[t] for t in towers if "ln" in targets]
    return "|".join(names) or "(?!)"


def unsupported(backbone: Backbone, task: Task, tower: Tower, head: HeadKind) -> str | None:
    """Why this tower and head cannot be tuned, or None: for `BaseMethod.supports`."""
    if tower != "text" and not backbone.tokens:
        return (
            f"adapts the blocks of a vision transformer; {backbone.name}'s image tower has none: "
            "tower must be text"
        )
    if tower != "visual" and head == "linear":
        return "head linear compares with no text, so that tower must be visual"
    return head_reason(head, task)


def classifier(
    backbone: Backbone, task: Task, tower: Tower, head: HeadKind, template: str
) -> ImageClassifier:
    """Image features against a head. Texts of an adapted tower are computed at every step, others
    once; with an image tower that does not train, the engine caches the image features."""
    if tower == "visual" or head == "linear":
        return ImageClassifier(backbone, image_head(head, backbone, task, template))
    texts = attribute_sentences(task.attributes, template, absence=head == "pair")
    tokenizer = backbone.tokenizer
    ids = [[tokenizer.sot, *tokenizer.encode(text), tokenizer.eot] for text in texts]
    similarity = Similarity(head, backbone, len(task.attributes))
    return ImageClassifier(backbone, TextHead(PackedTexts(backbone, ids), similarity))


def adapter_groups(model: nn.Module, lr: float, head_lr: float) -> list[dict[str, Any]]:
    """Optimiser groups: ``adapters``, what trains in ``model.backbone``, and ``head``, the rest."""
    backbone: Any = model.backbone
    adapters = [p for p in backbone.parameters() if p.requires_grad]
    inside = {id(p) for p in adapters}
    head = [p for p in model.parameters() if p.requires_grad and id(p) not in inside]
    groups = [
        {"name": "adapters", "params": adapters, "lr": lr},
        {"name": "head", "params": head, "lr": head_lr},
    ]
    return [group for group in groups if group["params"]]


def require_gradients(model: nn.Module) -> None:
    """Raises PedbenchError naming the adapters that the loss does not reach: peft attaches them
    without a word where a module reads a layer's weight instead of calling the layer."""
    named = model.named_parameters()
    without = [name for name, p in named if p.requires_grad and p.grad is None]
    if without:
        raise PedbenchError(
            f"{len(without)} trained tensors have no gradient after the first step, "
            f"{without[0]} among them: leave their layers out of targets"
        )
