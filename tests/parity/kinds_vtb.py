"""Golden case of VTB: the whole model in both modes, its gradients, two steps of training."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from golden import Case, Tolerances, plain_task
from torch import Tensor

from pedbench.methods import vtb
from pedbench.nn.blocks import merge_qkv
from pedbench.nn.fusion import TIMM_NAMES
from pedbench.tasks.losses import weighted_bce

# Role "grad0" is of gradients that are mathematically zero and hold rounding noise.
TOLERANCES: dict[str, Tolerances] = {
    "vtb": {
        "output": (1e-5, 1e-6),
        "loss": (1e-5, 1e-6),
        "grad": (2e-4, 0.0),
        "gradnorm": (2e-4, 0.0),
        "grad0": (0.0, 1e-5),
        "after_steps": (1e-3, 0.0),  # of the move; four units in the last place are added
        "after_steps0": (0.0, 1e-6),
        "after_steps_deltanorm": (1e-3, 0.0),
    },
}
INERT = re.compile(r"(weight_layer\.\d+|vit\.norm)\.bias")  # cancelled by a batch-norm


def load_vtb(case: Case) -> vtb.VTB:
    """Our module, built from timm's ViT, with every tensor of the case in it."""
    from timm.models.vision_transformer import VisionTransformer

    config = case.config
    vit: Any = VisionTransformer(
        img_size=tuple(config["img"]),
        patch_size=config["patch"],
        embed_dim=config["dim"],
        depth=config["depth"],
        num_heads=config["heads"],
        num_classes=0,
        global_pool="",
    )
    given = {n: case.tensor(f"param/{n}") for n in case.names("param/")}
    given |= {n: case.tensor(f"buffer/{n}") for n in case.names("buffer/")}
    start = "vit."
    vit.load_state_dict({n.removeprefix(start): t for n, t in given.items() if start in n})
    model = vtb.VTB(*vtb.cut_vit(vit, config["drop_path"]), case.tensor("input/word_vec"))
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, value in given.items():
            if start in name:
                continue
            if match := re.fullmatch(r"weight_layer\.(\d+)\.(weight|bias)", name):
                tensors[f"head.{match[2]}"][int(match[1])] = value[0]
            else:
                ours = tensors[f"head.{name}" if name.startswith("bn.") else name]
                ours.copy_(value.view_as(ours))
    return model


def released(case: Case, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` of our module (values or gradients) under the released names and shapes."""
    last = case.config["depth"] - 1
    found = {}
    for name, tensor in merge_qkv(tensors).items():
        if name in ("head.weight", "head.bias"):
            kind = name.removeprefix("head.")
            found |= {f"weight_layer.{i}.{kind}": row[None] for i, row in enumerate(tensor)}
            continue
        name = name.removeprefix("head.")
        if name.startswith("fusion.blocks.0."):
            for timms, ours in TIMM_NAMES.items():
                name = name.replace(f"fusion.blocks.0.{ours}", f"vit.blocks.{last}.{timms}")
        name = name.replace("fusion.norm", "vit.norm")
        name = re.sub(r"^tower\.", "vit.", name)
        found[name] = tensor[None, None] if name in ("vis_embed", "tex_embed") else tensor
    return found


def check_vtb(case: Case) -> None:
    model = load_vtb(case).eval()
    images, target = case.tensor("input/image_step1"), case.tensor("input/target_step1")
    task = plain_task(case.config["n_attr"], case.tensor("input/pos_ratio"))
    with torch.no_grad():
        case.compare("output/visual_features", model.tower(images))
        logits = model(images).logits
        case.compare("output/logits_eval", logits)
        case.compare("loss/eval", weighted_bce(logits, target, task))

    model.train()
    logits = model(images).logits
    loss = weighted_bce(logits, target, task)
    loss.backward()
    case.compare("output/logits_train", logits)
    case.compare("loss/total", loss)
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    for name, grad in released(case, grads).items():
        role = "grad0" if INERT.fullmatch(name) else ""
        case.compare(f"gradnorm/{name}", grad.norm(), role=role)
        if f"grad/{name}" in case.arrays:
            case.compare(f"grad/{name}", grad, role=role)
    check_steps(case)


def check_steps(case: Case) -> None:
    """The authors' training steps: plain SGD on everything, without clipping."""
    model, config = load_vtb(case).train(), case.config
    task = plain_task(config["n_attr"], case.tensor("input/pos_ratio"))
    method = vtb.Method(vtb.Params(lr=config["lr"]))
    optimiser = torch.optim.SGD(
        method.param_groups(model), momentum=config["momentum"], weight_decay=config["weight_decay"]
    )
    losses = []
    for step in range(1, 1 + len(case.names("input/image_step"))):
        images, target = (case.tensor(f"input/{n}_step{step}") for n in ("image", "target"))
        loss = weighted_bce(model(images).logits, target, task)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    case.compare("after_steps/losses", losses)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    after = released(case, {n: t.detach() for n, t in tensors.items()})
    for name in case.names("after_steps/"):
        if name == "losses":
            continue
        before = case.tensor(f"{'param' if f'param/{name}' in case.arrays else 'buffer'}/{name}")
        move = float(np.abs(case.arrays[f"after_steps/{name}"] - before.numpy()).max())
        units = 4 * torch.finfo(torch.float32).eps * float(before.abs().max())
        role = "after_steps0" if INERT.fullmatch(name) else ""
        case.compare(f"after_steps/{name}", after[name], scale=move, slack=units, role=role)
    for name in case.names("after_steps_deltanorm/"):
        move = (after[name].double() - case.tensor(f"param/{name}")).norm()
        role = "after_steps0" if INERT.fullmatch(name) else ""
        case.compare(f"after_steps_deltanorm/{name}", move, role=role)
