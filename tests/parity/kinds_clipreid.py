"""Golden cases of CLIP-ReID's two stages."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from golden import Case, Tolerances, tiny_backbone
from kinds_maple import ALIKE
from torch import Tensor
from torch.nn import functional as F

from pedbench.contracts import Batch, ReidSettings, Task
from pedbench.methods.clip_reid import IMAGE, PROMPTS, Method, Params
from pedbench.nn.blocks import merge_qkv
from pedbench.nn.tokenizer import Tokenizer

STAGE2: Tolerances = ALIKE | {"gradnorm": (2e-4, 0.0), "after_forward": (1e-5, 1e-6)}
TOLERANCES: dict[str, Tolerances] = {"clipreid_stage1": ALIKE, "clipreid_stage2": STAGE2}

# the authors' name -> ours; the rest of the image tower keeps CLIP's
NAMES = {
    "prompt_learner.cls_ctx": "head.context",
    "classifier": "neck.classifier",
    "classifier_proj": "projected_neck.classifier",
    "bottleneck": "neck.norm",
    "bottleneck_proj": "projected_neck.norm",
    "cv_embed": "camera",
    "image_encoder": "backbone.clip.visual",
}


def ours(name: str) -> str:
    for theirs in sorted(NAMES, key=len, reverse=True):
        if name == theirs or name.startswith(f"{theirs}."):
            return NAMES[theirs] + name.removeprefix(theirs)
    raise KeyError(name)


def build(case: Case) -> tuple[Method, Any, Task]:
    """The method, its model with the case's parameters and buffers, and the task."""
    config = case.config
    geometry = {
        "embed_dim": config["embed"], "quick_gelu": True, "patch": 16,
        "image_size": 16 * config["grid0"], "context_length": 77,
        "vision_width": config["vw"], "vision_layers": config["vlayers"],
        "vision_heads": config["vw"] // 16, "text_vocab": len(case.arrays["input/vocab_ids"]),
        "text_width": config["tw"], "text_layers": config["tlayers"],
        "text_heads": config["tw"] // 16,
    }  # fmt: skip
    clip = {name: case.tensor(f"param/clip.{name}") for name in case.names("param/clip.")}
    grid = {"image_size": tuple(config["img"]), "stride": config["stride"]}
    ids = case.tensor("input/tokenized_prompt")
    backbone = tiny_backbone(geometry, clip, ids, **grid, interpolation="bilinear")
    backbone.tokenizer = Tokenizer(case.arrays["input/vocab_ids"].tolist())
    reid = ReidSettings(
        id_loss="cross_entropy", id_loss_weight=config.get("id_loss_weight", 1.0), id_margin=0.0,
        id_scale=1.0, label_smoothing=config.get("label_smoothing", 0.0), pair_loss="triplet",
        pair_loss_weight=config.get("triplet_weight", 1.0), margin=config.get("margin", 0.0),
        feature="before",
    )  # fmt: skip
    identities, cameras = config["n_cls"], config["n_cam"]
    task = Task("reid", (), (), identities=identities, cameras=cameras, reid=reid)
    method = Method(
        Params(
            decay_absent_ids="released",
            freeze_text_stage1=False,
            sie="cls" if config["sie"] else "off",
            sie_coefficient=config["sie_coe"],
            prompt_lr=config.get("lr", 0.0),
            prompt_weight_decay=config["weight_decay"],
            lr=config.get("base_lr", 0.0),
            bias_lr_factor=config.get("bias_lr_factor", 1.0),
            i2t_weight=config.get("i2t_weight", 1.0),
        )
    )
    model: Any = method.build(backbone, task)
    state = model.state_dict(keep_vars=True)
    for role in ("param", "buffer"):
        for name in case.names(f"{role}/"):
            if not name.startswith("clip."):
                with torch.no_grad():
                    state[ours(name)].copy_(case.tensor(f"{role}/{name}"))
    return method, model, task


def start(method: Method, model: Any, name: str) -> None:
    groups = tuple(group["name"] for group in method.param_groups(model))
    (stage,) = (stage for stage in method.stages(groups) if stage.name == name)
    method.start_stage(model, stage)


def check_clipreid_stage1(case: Case) -> None:
    method, model, task = build(case)
    backbone, labels = model.backbone, case.tensor("input/label")
    groups = [g for g in method.param_groups(model) if g["name"] == PROMPTS]
    start(method, model, PROMPTS)
    with torch.no_grad():
        features = model.stem(case.tensor("input/image"))
    visual = backbone.clip.visual
    case.compare("output/image_features", features)
    case.compare("output/position_embedding_resized", visual.positional_embedding)
    case.compare("output/text_features", model.head.texts(labels))
    rows = model.head.embed(labels)
    padding = backbone.clip.token_embedding.weight[0].expand(len(rows), 77 - rows.shape[1], -1)
    case.compare("output/prompts", torch.cat([rows, padding], dim=1))

    def terms(chosen: Tensor) -> dict[str, Tensor]:
        batch = Batch(features[chosen], torch.empty(0), labels[chosen])
        return method.loss(model.head(batch.images, identities=labels[chosen]), batch, task)

    (group,) = groups
    optimiser = torch.optim.Adam(
        group["params"], lr=group["lr"], weight_decay=group["weight_decay"]
    )
    found = terms(torch.arange(len(labels)))
    for name in ("i2t", "t2i"):
        case.compare(f"loss/{name}", found[name])
    total = sum(found.values(), torch.zeros(()))
    case.compare("loss/total", total)
    total.backward()
    case.compare("grad/prompt_learner.cls_ctx", model.head.context.grad)
    clip = backbone.clip
    text = {n: p for n, p in clip.named_parameters() if not n.startswith("visual.")}
    case.compare(
        "output/text_encoder_tensors_with_grad",
        len(merge_qkv({n: p.grad for n, p in text.items() if p.grad is not None})),
    )
    losses = []
    for step in range(1, 1 + len(case.names("input/step"))):
        optimiser.zero_grad()
        total = sum(terms(case.tensor(f"input/step{step}_indices")).values(), torch.zeros(()))
        total.backward()
        optimiser.step()
        losses.append(total.item())
    case.compare("after_steps/losses", losses)
    name = "after_steps/prompt_learner.cls_ctx"
    start_values = case.arrays["param/prompt_learner.cls_ctx"]
    move = np.abs(case.arrays[name] - start_values).max()
    units = 4 * torch.finfo(torch.float32).eps * float(np.abs(start_values).max())
    case.compare(name, model.head.context, scale=move, slack=units)


def check_clipreid_stage2(case: Case) -> None:
    method, model, task = build(case)
    images, cameras = case.tensor("input/image"), case.tensor("input/camera")
    labels = case.tensor("input/label")
    groups = [g for g in method.param_groups(model) if g["name"] != PROMPTS]
    start(method, model, IMAGE)
    case.compare("output/text_features_all", model.text_features)
    check_tokens(case, model.eval(), images, cameras)
    with torch.no_grad():
        case.compare("output/eval_feature_before", model(images, cameras=cameras).features)
        if case.config["sie"]:
            case.compare("output/eval_feature_before_no_camera", model(images).features)
        model.neck.after = model.projected_neck.after = True
        case.compare("output/eval_feature_after", model(images, cameras=cameras).features)

    output = model.train()(images, labels, cameras)
    for name, key in {
        "feat_last": "last", "feat_img": "before", "feat_proj": "projected",
        "cls_score_proj": "projected_logits", "i2t_logits": "i2t",
    }.items():  # fmt: skip
        case.compare(f"output/{name}", output.extras[key])
    case.compare("output/cls_score", output.logits)
    for name in case.names("after_forward/"):
        case.compare(f"after_forward/{name}", model.get_buffer(ours(name)))

    terms = method.loss(output, Batch(images, torch.empty(0), labels, cameras), task)
    config = case.config
    for name, key, weight in (
        ("id", "id", config["id_loss_weight"]),
        ("id_proj", "id_projected", config["id_loss_weight"]),
        ("triplet_last", "pair_last", config["triplet_weight"]),
        ("triplet_img", "pair_before", config["triplet_weight"]),
        ("triplet_proj", "pair_projected", config["triplet_weight"]),
        ("i2t", "i2t", config["i2t_weight"]),
    ):
        case.compare(f"loss/{name}", terms[key] / weight)
    total = sum(terms.values(), torch.zeros(()))
    case.compare("loss/total", total)
    total.backward()
    named = dict(model.named_parameters())
    gradients = merge_qkv({n: p.grad for n, p in named.items() if p.grad is not None})
    for name in case.names("grad/"):
        case.compare(f"grad/{name}", gradients[ours(name)])
    for name in case.names("gradnorm/"):
        case.compare(f"gradnorm/{name}", gradients[ours(name)].norm())

    tuned = {id(tensor) for group in groups for tensor in group["params"]}
    count = len(merge_qkv({n: p for n, p in named.items() if id(p) in tuned}))
    case.compare("output/n_optimizer_tensors", count)
    case.compare("output/optimizer_lr_values", sorted({group["lr"] for group in groups}))


def check_tokens(case: Case, model: Any, images: Tensor, cameras: Tensor) -> None:
    """Of all tokens what the model reads of the first."""
    backbone, visual = model.backbone, model.backbone.clip.visual
    shift = None if model.camera is None else model.sie_coefficient * model.camera[cameras][:, None]
    with torch.no_grad():
        tokens = backbone.run_blocks(
            "visual", backbone.embed_image(images, shift), layers=slice(-1)
        )
        last = backbone.run_blocks("visual", tokens, layers=slice(-1, None))
        normed = F.layer_norm(last, last.shape[-1:], visual.ln_post.weight, visual.ln_post.bias)
    case.compare("output/tokens_before_last_block", tokens)
    case.compare("output/tokens_ln_post", normed)
    case.compare("output/tokens_proj", backbone.project_image(last))
