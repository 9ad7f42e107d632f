"""Golden cases of CLIP-LoRA."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from golden import Case, Tolerances, tiny_backbone
from torch import Tensor
from torch.nn import functional as F

from pedbench.contracts import Attribute, Task
from pedbench.methods import lora
from pedbench.nn.heads import ImageClassifier
from pedbench.nn.texts import PackedTexts
from pedbench.nn.tokenizer import Tokenizer

TOLERANCES: dict[str, Tolerances] = {
    "cliplora": {
        "output": (1e-5, 1e-6),
        "loss": (1e-5, 1e-6),
        "grad": (2e-4, 0.0),
        "after_steps": (1e-3, 0.0),  # of the move; four units in the last place are added
    }
}
FACTORS = {"w_lora_A": "lora_A.default.weight", "w_lora_B": "lora_B.default.weight"}


def our_name(released: str) -> str:
    layer, _, factor = released.rpartition(".")
    return f"backbone.clip.{layer}.{FACTORS[factor]}"


def load_lora(case: Case) -> tuple[lora.Method, ImageClassifier]:
    """Our module with every tensor of the case in it."""
    config: dict[str, Any] = case.config
    params = lora.Params(
        rank=config["r"],
        alpha=config["alpha"],
        scaling="alpha_over_sqrt_r" if config["scaling"] == "alpha/sqrt(r)" else "alpha_over_r",
        targets=tuple(config["params"]),
        tower=config["encoder"],
        head="softmax",
        template="a photo of a {}.",
    )
    clip = {n: case.tensor(f"param/clip.{n}") for n in case.names("param/clip.")}
    ids, vocabulary = case.tensor("input/token_ids"), case.arrays["input/vocab_ids"].tolist()
    phrases = [name.replace("_", " ") for name in config["classnames"]]
    named = tuple(Attribute(phrase, "whole", phrase, f"no {phrase}") for phrase in phrases)
    task = Task("par", named, (0.5,) * len(named))
    geometry = {
        "embed_dim": config["embed"],
        "quick_gelu": True,
        "image_size": config["img"],
        "vision_layers": config["vl"],
        "text_layers": config["tl"],
        "text_vocab": len(vocabulary),
        "context_length": ids.shape[1],
    }
    backbone, method = tiny_backbone(config | geometry, clip, ids), lora.Method(params)
    backbone.tokenizer = Tokenizer(vocabulary)
    model = method.build(backbone, task)
    assert isinstance(model, ImageClassifier)
    tensors = dict(model.named_parameters())
    factors = [n for n in case.names("param/") if not n.startswith("clip.")]
    assert {our_name(n) for n in factors} == {n for n, p in tensors.items() if p.requires_grad}
    with torch.no_grad():
        for name in factors:
            tensors[our_name(name)].copy_(case.tensor(f"param/{name}"))
    return method, model


def step_loss(model: ImageClassifier, case: Case, step: int) -> tuple[Tensor, Tensor]:
    logits = model(case.tensor(f"input/image_step{step}")).logits
    return logits, F.cross_entropy(logits, case.tensor(f"input/label_step{step}"))


def check_cliplora(case: Case) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    _, model = load_lora(case)
    images = case.tensor("input/image_step1")
    texts: Any = model.head.texts
    assert isinstance(texts, PackedTexts)
    model.train()
    case.compare("output/text_features", texts())
    case.compare("output/image_features", model.stem(images))
    logits, loss = step_loss(model, case, 1)
    loss.backward()
    case.compare("output/logits", logits)
    case.compare("loss/total", loss)
    tensors = dict(model.named_parameters())
    for name in case.names("grad/"):
        case.compare(f"grad/{name}", tensors[our_name(name)].grad)
    trained = [p for p in tensors.values() if p.requires_grad]
    case.compare("output/trainable_count", sum(p.numel() for p in trained))

    adapted = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    for layer in adapted:
        layer.merge()
    with torch.no_grad():
        case.compare("output/logits_eval_merged", model.eval()(images).logits)
    check_steps(case)


def check_steps(case: Case) -> None:
    """The authors' optimiser at a constant rate."""
    config = case.config
    method, model = load_lora(case)
    optimiser = torch.optim.AdamW(
        [p for group in method.param_groups(model) for p in group["params"]],
        lr=config["lr"],
        betas=config["betas"],
        weight_decay=config["weight_decay"],
    )
    model.train()
    losses = []
    for step in range(1, 1 + max(int(n) for n in case.names("input/image_step"))):
        optimiser.zero_grad()
        _, loss = step_loss(model, case, step)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    tensors = dict(model.named_parameters())
    for name in case.names("after_steps/"):
        if name == "losses":
            case.compare("after_steps/losses", losses, role="loss")
            continue
        start = case.arrays[f"param/{name}"]
        move = np.abs(case.arrays[f"after_steps/{name}"] - start).max()
        units = 4 * torch.finfo(torch.float32).eps * float(np.abs(start).max())
        case.compare(f"after_steps/{name}", tensors[our_name(name)], scale=move, slack=units)
