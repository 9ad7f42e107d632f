"""Golden cases of MaPLe and of its baselines with independent prompts (IVLP, VPT)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from golden import Case, Tolerances, tiny_backbone
from torch import Tensor
from torch.nn import functional as F

from pedbench.contracts import Attribute, BaseMethod, Task
from pedbench.methods import ivlp, maple, vpt
from pedbench.nn.prompts import encode_prompted
from pedbench.nn.tokenizer import Tokenizer

ALIKE: Tolerances = {
    "output": (1e-5, 1e-6),
    "loss": (1e-5, 1e-6),
    "grad": (2e-4, 0.0),
    "after_steps": (1e-3, 0.0),  # of the move; four units in the last place are added
}
TOLERANCES: dict[str, Tolerances] = {"maple": ALIKE, "ivlp": ALIKE, "vpt": ALIKE}

# the authors' name -> our parameter, and the layer in it
Places = dict[str, tuple[str, int | slice]]
WHOLE = slice(None)


def visual_places(config: dict[str, Any]) -> Places:
    places: Places = {"clip.visual.VPT": ("prompts", 0)}
    for layer in range(1, config["depth_vision"]):
        places[f"clip.visual.transformer.resblocks.{layer}.VPT_shallow"] = ("prompts", layer)
    return places


def check_vpt(case: Case) -> None:
    config = case.config
    params = vpt.Params(
        prompt_length=config["n_ctx_vision"],
        prompt_depth=config["depth_vision"],
        head="softmax",
        template="a photo of a {}.",
    )
    model = check_steps(case, vpt.Method(params), visual_places(config))
    check_features(case, model)


def check_features(case: Case, model: Any) -> None:
    case.compare("output/image_features", model.stem(case.tensor("input/image_step1")))
    case.compare("output/text_features", model.head.texts())


def check_ivlp(case: Case) -> None:
    config = case.config
    params = ivlp.Params(
        visual_length=config["n_ctx_vision"],
        visual_depth=config["depth_vision"],
        text_length=config["n_ctx_text"],
        text_depth=config["depth_text"],
        context_init=config["ctx_init"],
        class_name="{}",
        head="softmax",
    )
    places = visual_places(config) | {"prompt_learner.ctx": ("head.texts.prompts", 0)}
    for layer in range(1, config["depth_text"]):
        name = f"clip.transformer.resblocks.{layer}.VPT_shallow"
        places[name] = ("head.texts.prompts", layer)
    model = check_steps(case, ivlp.Method(params), places)
    check_features(case, model)


def check_maple(case: Case) -> None:
    config = case.config
    params = maple.Params(
        context_length=config["n_ctx"],
        prompt_depth=config["depth"],
        context_init=config["ctx_init"],
        class_name="{}",
        head="softmax",
    )
    places: Places = {"prompt_learner.ctx": ("texts.prompts", 0)}
    for kind in ("weight", "bias"):
        places[f"prompt_learner.proj.{kind}"] = (f"couplings.0.{kind}", WHOLE)
    for i in range(config["depth"] - 1):
        places[f"prompt_learner.compound_prompts_text.{i}"] = ("texts.prompts", i + 1)
        for kind in ("weight", "bias"):
            released = f"prompt_learner.compound_prompt_projections.{i}.{kind}"
            places[released] = (f"couplings.{i + 1}.{kind}", WHOLE)
    model = check_steps(case, maple.Method(params), places)
    first, *deep = model.visual_prompts()
    case.compare("output/shared_ctx", first)
    for i, prompts in enumerate(deep):
        case.compare(f"output/visual_deep_prompts.{i}", prompts)
    images = case.tensor("input/image_step1")
    features = encode_prompted(model.backbone, images, model.visual_prompts())
    case.compare("output/image_features", features)
    case.compare("output/text_features", model.texts())


def load(case: Case, method: BaseMethod, places: Places) -> Any:
    """The method's model with every parameter of the case in it."""
    config = case.config
    geometry = {"quick_gelu": True, "image_size": config["img"], "context_length": 77}
    vocabulary = case.arrays["input/vocab_ids"].tolist()
    given = {n: case.tensor(f"param/{n}") for n in case.names("param/")}
    clip = {n.removeprefix("clip."): v for n, v in given.items() if n not in places}
    ids = case.tensor("input/tokenized_prompts")
    backbone = tiny_backbone(config | geometry | {"text_vocab": len(vocabulary)}, clip, ids)
    backbone.tokenizer = Tokenizer(vocabulary)
    phrases = [name.replace("_", " ") for name in config["classnames"]]
    named = tuple(Attribute(phrase, "whole", phrase, f"no {phrase}") for phrase in phrases)
    model = method.build(backbone, Task("par", named, (0.5,) * len(named)))
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        for released, (name, layer) in places.items():
            view = tensors[name][layer]
            assert view.shape == given[released].shape, f"{released}: ours {view.shape}"
            view.copy_(given[released])
    return model


def check_steps(case: Case, method: BaseMethod, places: Places) -> Any:
    """Logits, loss, gradients and the authors' SGD steps; returns the model before them."""
    config, model = case.config, load(case, method, places)

    def loss(step: int) -> Tensor:
        logits = model(case.tensor(f"input/image_step{step}")).logits
        if step == 1:
            case.compare("output/logits", logits)
        return F.cross_entropy(logits, case.tensor(f"input/label_step{step}"))

    groups = method.param_groups(model)
    count = sum(p.numel() for group in groups for p in group["params"])
    case.compare("output/trainable_count", count)
    optimiser = torch.optim.SGD(
        [{"params": group["params"]} for group in groups],
        lr=config["lr"],
        momentum=config["momentum"],
        weight_decay=config["weight_decay"],
    )
    tensors = dict(model.named_parameters())
    losses = []
    for step in range(1, 1 + len(case.names("input/image_step"))):
        total = loss(step)
        optimiser.zero_grad()
        total.backward()
        if step == 1:
            case.compare("loss/total", total)
            for released in case.names("grad/"):
                name, layer = places[released]
                gradient = tensors[name].grad
                assert gradient is not None
                case.compare(f"grad/{released}", gradient[layer])
        optimiser.step()
        losses.append(total.item())
    case.compare("after_steps/losses", losses)
    for released, (name, layer) in places.items():
        full, start = f"after_steps/{released}", case.arrays[f"param/{released}"]
        move = np.abs(case.arrays[full] - start).max()
        units = 4 * torch.finfo(torch.float32).eps * float(np.abs(start).max())
        case.compare(full, tensors[name][layer], scale=move, slack=units)
    return load(case, method, places).requires_grad_(False)
