"""Golden cases of CoOp and CoCoOp."""

from __future__ import annotations

from typing import Any

import torch
from golden import Case, Tolerances
from kinds_maple import ALIKE, WHOLE, Places, check_features, check_steps
from torch import Tensor
from torch.nn import functional as F

from pedbench.methods import cocoop, coop
from pedbench.nn.texts import context_sequences

# At the family's 1e-3 of a move, a missing weight decay would go unseen.
SHARP: Tolerances = ALIKE | {"after_steps": (1e-4, 0.0)}
TOLERANCES: dict[str, Tolerances] = {"coop": SHARP, "cocoop": SHARP}

CONTEXT: Places = {"prompt_learner.ctx": ("head.texts.context", WHOLE)}


def check_coop(case: Case) -> None:
    config = case.config
    params = coop.Params(
        context_length=config.get("n_ctx", 16),
        context_init=config.get("ctx_init", "").replace("_", " "),
        class_specific=config.get("csc", False),
        class_position=config["pos"],
        class_name="{}",
        head="softmax",
    )
    model = check_steps(case, coop.Method(params), CONTEXT)
    check_features(case, model)
    case.compare("output/prompts", padded_prompts(case, model, params))


def padded_prompts(case: Case, model: Any, params: coop.Params) -> Tensor:
    """Our sequences as the authors lay them out: embeddings ``(T, L, Wt)`` without positions."""
    backbone, context = model.backbone, model.head.texts.context
    rows = context_sequences(
        backbone.tokenizer,
        [name.replace("_", " ") for name in case.config["classnames"]],
        context.shape[-2],
        params.class_position,
        params.class_specific,
    )
    ids = torch.zeros(len(rows), backbone.context_length, dtype=torch.long)
    for row, sequence in zip(ids, rows, strict=True):
        row[: len(sequence)] = torch.tensor(sequence)
    # learned(k) = -1 - k counts from the table's end
    return torch.cat([backbone.clip.token_embedding.weight, context.flatten(0, -2).flip(0)])[ids]


def check_cocoop(case: Case) -> None:
    places = dict(CONTEXT)
    for theirs, ours in (("linear1", 0), ("linear2", 2)):
        for kind in ("weight", "bias"):
            released = f"prompt_learner.meta_net.{theirs}.{kind}"
            places[released] = (f"head.meta_net.{ours}.{kind}", WHOLE)
    params = cocoop.Params(context_init=case.config["ctx_init"], class_name="{}", head="softmax")
    model = check_steps(case, cocoop.Method(params), places)
    features = model.stem(case.tensor("input/image_step1"))
    shift = model.head.meta_net(F.normalize(features, dim=-1))
    case.compare("output/image_features", features)
    case.compare("output/meta_net_bias", shift)
    case.compare("output/text_features_image0", model.head.texts(shift)[0])
