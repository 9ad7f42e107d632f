"""Golden cases of PromptPAR."""

from __future__ import annotations

import re
from typing import Any
from unittest import mock

import numpy as np
import torch
from golden import Case, Tolerances, plain_task, tiny_backbone
from torch import Tensor

from pedbench.contracts import Batch, Task
from pedbench.methods import promptpar
from pedbench.nn.backbone import Backbone
from pedbench.nn.fusion import load_vit_block
from pedbench.nn.regions import region_mask, region_patches
from pedbench.tasks.losses import weighted_bce

# In the whole models, batch-norm over four images amplifies rounding (measured noise: outputs
# 4e-6, gradients 6.4e-5); there ten times the noise is allowed. Roles "grad0" and "after_steps0"
# are of gradients that are mathematically zero and hold rounding noise.
TOLERANCES: dict[str, Tolerances] = {
    "promptpar_visual": {"output": (1e-5, 1e-6), "loss": (1e-5, 1e-6), "grad": (2e-4, 0.0)},
    "promptpar_text_prompts": {"output": (1e-5, 1e-6), "loss": (1e-5, 1e-6), "grad": (0.0, 0.0)},
    "promptpar_aggregate": {
        "output": (1e-5, 1e-6),
        "loss": (1e-5, 1e-6),
        "grad": (2e-4, 0.0),
        "grad0": (0.0, 1e-3),
        "after_train_forward": (1e-5, 1e-6),
    },
    "promptpar_full": {
        "output": (1e-5, 1e-6),
        "output_train": (5e-5, 1e-6),
        "loss": (1e-5, 1e-6),
        "grad": (6.4e-4, 0.0),
        "grad0": (0.0, 1e-5),
        "after_steps": (1e-3, 0.0),  # of the move; four units in the last place are added
        "after_steps0": (0.0, 1e-6),
    },
    "promptpar_real_size": {"output": (0.0, 0.0), "count": (0.0, 0.0)},
}


def promptpar_params(config: dict[str, Any], **changes: Any) -> promptpar.Params:
    """The variant ``released_code`` at the geometry and with the flags of ``config``."""
    flags = set(config.get("flags", ()))
    known = {f"--use_{f}" for f in ("textprompt", "div", "vismask", "GL", "mm_former")}
    assert flags <= known, f"unknown flags {sorted(flags - known)}"
    values: dict[str, Any] = {
        "prompt_length": config["vis_prompt"],
        "prompt_depth": config.get("vis_depth", 0),
        "regions": config["div_num"] if "--use_div" in flags else 0,
        "region_overlap": config["overlap_row"],
        "region_mask": "released" if "--use_vismask" in flags else "none",
        "text_prompt_length": config["text_prompt"] if "--use_textprompt" in flags else 0,
        "text_prompt_position": "released",
        "fusion": "mm_former" if "--use_mm_former" in flags else "mlp",
        "mm_layers": config.get("mm_layers", 1),
        "mm_init": "random",
        "mm_width": config.get("mm_dim", 16),
        "mm_heads": config.get("mm_heads", 1),
        "mm_drop_path": config.get("drop_path", 0.0),
        "train_mm_norms": True,
        "train_mlp": False,
        "gl_weight": 0.5 if "--use_GL" in flags else 0.0,
        "gl_aggregation": "released",
        "gl_global_token": "released",
        "gl_score": "released",
        "gl_threshold": config.get("ag_threshold", 0.5),
        "visual_ln_post": False,
    }
    return promptpar.Params(**(values | changes))


RELEASED_NAMES = (
    (r"clip\.visual\.transformer\.prompt_deep", "prompts"),
    (r"clip\.transformer\.prompt_text_deep", "text_prompts"),
    (r"clip\.visual\.part_class_embedding", "region_cls"),
    (r"clip\.softmax_model\.temperature", "similarity.temperature"),
    (r"clip\.agg_bn\.(\w+)", r"similarity.bn.\1"),
    (r"model\.(word_embed|visual_embed)\.(\w+)", r"\1.\2"),
    (r"model\.norm\.(\w+)", r"fusion.norm.\1"),
    (r"model\.linear_layer\.(\w+)", r"fusion.linear.\1"),
    (r"model\.blocks\.(\d+)\.norm(\d)\.(\w+)", r"fusion.blocks.\1.ln_\2.\3"),
    (r"model\.weight_layer\.\d+\.(\w+)", r"head.\1"),
    (r"model\.bn\.(\w+)", r"head.bn.\1"),
)

INERT = re.compile(r"model\.(weight_layer\.\d+|norm)\.bias")  # cancelled by a batch-norm


def our_name(released: str) -> str | None:
    """The name of a tensor in our module, None if it belongs to CLIP or to a frozen block."""
    for pattern, ours in RELEASED_NAMES:
        if match := re.fullmatch(pattern, released):
            return match.expand(ours)
    return None


def released_view(tensors: dict[str, Tensor], released: str) -> Tensor:
    """Our tensor as a view in the layout of the released name."""
    ours = our_name(released)
    assert ours is not None, f"{released}: unknown tensor"
    tensor = tensors[ours]
    if ours == "prompts":
        return tensor.unsqueeze(2)
    if ours == "text_prompts":
        return tensor.transpose(1, 2)
    if index := re.search(r"weight_layer\.(\d+)", released):
        return tensor[int(index[1]) : int(index[1]) + 1]
    return tensor


def load_promptpar(case: Case, prefix: str = "", **changes: Any) -> promptpar.PromptPAR:
    """Our module with every tensor of the case in it; ``prefix`` completes released names."""
    config = case.config
    given = {prefix + n: case.tensor(f"param/{n}") for n in case.names("param/")}
    given |= {n: case.tensor(f"buffer/{n}") for n in case.names("buffer/")}
    clip = {
        name.removeprefix("clip."): value
        for name, value in given.items()
        if name.startswith("clip.") and our_name(name) is None
    }
    attributes, length = config["n_attr"], config["context_length"]
    ids = torch.zeros(attributes, length, dtype=torch.long)
    if "input/token_ids" in case.arrays:
        ids = case.tensor("input/token_ids").long()
    ratio = case.tensor("input/pos_ratio") if "input/pos_ratio" in case.arrays else None
    task = plain_task(attributes, ratio)
    method = promptpar.Method(promptpar_params(config, **changes))
    model = method.build(tiny_backbone(config, clip, ids), task)
    assert isinstance(model, promptpar.PromptPAR)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, value in given.items():
            if our_name(name):
                view = released_view(tensors, name)
                assert view.shape == value.shape, f"{name}: {value.shape}, ours {view.shape}"
                view.copy_(value)
    blocks = getattr(model.fusion, "blocks", ())
    for i, block in enumerate(blocks):
        start = f"model.blocks.{i}."
        state = {n.removeprefix(start): v for n, v in given.items() if n.startswith(start)}
        load_vit_block(block, state)
    return model


def released_order(params: promptpar.Params, tokens: int) -> list[int]:
    """Our positions in the order CLS, global prompts, K (region CLS, prompts), patches."""
    groups, p = 1 + params.regions, params.prompt_length // (1 + params.regions)
    prompts = [list(range(1 + g * p, 1 + (g + 1) * p)) for g in range(groups)]
    first_region = 1 + params.prompt_length
    order = [0, *prompts[0]]
    for k in range(params.regions):
        order += [first_region + k, *prompts[1 + k]]
    return order + list(range(len(order), tokens))


def check_promptpar_visual(case: Case) -> None:
    model = load_promptpar(case, prefix="clip.")
    captured: dict[str, Tensor] = {}

    def last_attention(attention: Any, args: Any, kwargs: dict[str, Any]) -> None:
        q, k = (*args, *(kwargs[n] for n in ("query", "key") if n in kwargs))[:2]
        captured["map"] = attention.weights(q, k, kwargs.get("attn_mask")).mean(1)

    last = model.backbone.clip.visual.transformer.resblocks[-1].attn
    last.register_forward_pre_hook(last_attention, with_kwargs=True)
    tokens = model.visual_tokens(case.tensor("input/image"))
    order = released_order(model.params, tokens.shape[1])
    prefix = 1 + model.params.prompt_length + model.params.regions
    case.compare("output/tokens", tokens[:, order])
    attention = captured["map"][:, order][..., order]
    case.compare("output/last_attention_mean_heads", attention[:, :prefix])
    if model.mask is not None:
        allowed = (model.mask == 0)[order][:, order]
        case.compare("output/region_mask_allowed", allowed)

    terms = tokens[:, order] * case.tensor("input/cotangent_tokens")
    loss, size = terms.sum(), terms.abs().sum()
    if "output/region_cls" in case.arrays:
        matched = model.matched_tokens(tokens)
        case.compare("output/region_cls", matched)
        terms = matched * case.tensor("input/cotangent_region_cls")
        loss, size = loss + terms.sum(), size + terms.abs().sum()
    loss.backward()
    case.compare("loss/total", loss, scale=0.1 * size.item())  # a sum whose terms cancel
    compare_gradients(case, model, "clip.")


def check_promptpar_text_prompts(case: Case) -> None:
    model = load_promptpar(case, prefix="clip.")
    text = model.text_features()
    case.compare("output/text_features", text)
    loss = (text * case.tensor("input/cotangent")).sum()
    loss.backward()
    case.compare("loss/total", loss)
    compare_gradients(case, model, "clip.")
    backbone, length = model.backbone, model.ids.shape[1]
    with torch.no_grad():
        assert model.text_prompts is not None
        x = backbone.embed_text(model.ids)
        tail = backbone.run_blocks("text", x, model.text_prompts, at=length)[:, length:]
        case.compare("output/hidden_tail", tail)
        model.text_prompts.add_(1)
        moved = model.text_features()
    case.compare("output/text_features_after_adding_1_to_all_text_prompts", moved)


def check_promptpar_aggregate(case: Case) -> None:
    attributes = case.arrays["param/agg_bn.weight"].shape[0]

    def similarity(**changes: Any) -> promptpar.GlobalLocal:
        module = promptpar.GlobalLocal(attributes, promptpar_params(case.config, **changes))
        state = {"temperature": case.tensor("param/softmax_model.temperature")}
        for role in ("param", "buffer"):
            names = case.names(f"{role}/agg_bn.")
            state |= {f"bn.{n}": case.tensor(f"{role}/agg_bn.{n}") for n in names}
        module.load_state_dict(state, strict=False)
        return module

    tokens = case.tensor("input/region_cls").requires_grad_()
    text = case.tensor("input/text_features").requires_grad_()
    logit_scale = case.tensor("param/logit_scale").requires_grad_()
    scale = logit_scale.exp()
    released = similarity().eval()
    with torch.no_grad():
        case.compare("output/final_similarity_eval", released(tokens, text, scale))
        case.compare("output/softmax", released.scores(tokens, text, scale))
        cosines = similarity(gl_score="sigmoid_cosine").scores(tokens, text, scale)
        case.compare("output/logits_per_image", cosines)
        per_image = similarity(gl_aggregation="per_image").eval()
        case.compare("output/final_similarity_eval_per_image", per_image(tokens, text, scale))

    final = released.train()(tokens, text, scale)
    case.compare("output/final_similarity_train", final)
    for name in ("running_mean", "running_var"):
        case.compare(f"after_train_forward/agg_bn.{name}", getattr(released.bn, name))
    loss = (final * case.tensor("input/cotangent")).sum()
    loss.backward()
    case.compare("loss/total", loss)
    gradients = {
        "text_features": text,
        "logit_scale": logit_scale,
        "softmax_model.temperature": released.temperature,
        "agg_bn.weight": released.bn.weight,
        "agg_bn.bias": released.bn.bias,
    }
    for name, tensor in gradients.items():
        case.compare(f"grad/{name}", tensor.grad)
    assert tokens.grad is not None
    globals_, regions = slice(0, 1), slice(1, None)  # batch-norm removes the regions' share
    case.compare("grad/region_cls", tokens.grad[:, globals_], rows=globals_)
    case.compare("grad/region_cls", tokens.grad[:, regions], rows=regions, role="grad0")


def check_promptpar_full(case: Case) -> None:
    model = load_promptpar(case)
    method = promptpar.Method(model.params)
    images, target = case.tensor("input/image_step1"), case.tensor("input/target_step1")
    task = plain_task(case.config["n_attr"], case.tensor("input/pos_ratio"))
    aggregates = model.similarity is not None and bool(model.params.regions)

    model.eval()
    with torch.no_grad():
        tokens, output = model.visual_tokens(images), model(images)
        order = released_order(model.params, tokens.shape[1])
        prefix = 1 + model.params.prompt_length + model.params.regions
        case.compare("output/visual_prefix_tokens", tokens[:, order][:, :prefix])
        case.compare("output/visual_patch_token_sum", tokens[:, prefix:].sum(1))
        case.compare("output/text_features", model.text_features())
        case.compare("output/logits_eval", output.logits)
        case.compare("loss/cls_eval", weighted_bce(output.logits, target, task))
        if aggregates:
            case.compare("output/region_cls", model.matched_tokens(tokens))
            case.compare("output/final_similarity_eval", output.extras["gl"])
            per_image = load_promptpar(case, gl_aggregation="per_image").eval()(images)
            case.compare("output/final_similarity_eval_per_image", per_image.extras["gl"])

    model.train()
    output = model(images)
    terms = method.loss(output, Batch(images, target), task)
    total = torch.stack([*terms.values()]).sum()
    total.backward()
    case.compare("output/logits_train", output.logits, role="output_train")
    case.compare("loss/cls", terms["bce"])
    case.compare("loss/total", total)
    if aggregates:
        case.compare("output/final_similarity_train", output.extras["gl"], role="output_train")
        case.compare("loss/gl", terms["gl"] / model.params.gl_weight)
    compare_gradients(case, model, "")
    groups = method.param_groups(model)
    count = [sum(p.numel() for p in group["params"]) for group in groups]
    case.compare("output/trainable_count", count)
    check_steps(case, task)


def check_steps(case: Case, task: Task) -> None:
    """The authors' training steps: SGD, each group clipped by itself."""
    config, model = case.config, load_promptpar(case).train()
    method = promptpar.Method(model.params)
    groups = method.param_groups(model)
    rates = {"head": config["lr"], "prompts": config["clip_lr"]}
    optimiser = torch.optim.SGD(
        [{"params": g["params"], "lr": rates[g["name"]]} for g in groups],
        momentum=config["momentum"],
        weight_decay=config["weight_decay"],
    )
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    losses = []
    steps = 1 + max(int(n) for n in case.names("input/image_step"))
    for step in range(1, steps):
        images, target = (case.tensor(f"input/{n}_step{step}") for n in ("image", "target"))
        terms = method.loss(model(images), Batch(images, target), task)
        losses += [terms["bce"].item()]
        losses += [terms["gl"].item() / model.params.gl_weight] if "gl" in terms else []
        optimiser.zero_grad()
        torch.stack([*terms.values()]).sum().backward()
        for group in groups:
            torch.nn.utils.clip_grad_norm_(group["params"], config["grad_clip"])
        optimiser.step()
    for name in case.names("after_steps/"):
        full = f"after_steps/{name}"
        if name == "losses":
            case.compare(full, losses)
            continue
        start = released_view(before, name)
        move = np.abs(case.arrays[full] - start.numpy()).max()
        units = 4 * torch.finfo(torch.float32).eps * float(start.abs().max())
        role = "after_steps0" if INERT.fullmatch(name) else ""
        case.compare(full, released_view(tensors, name), scale=move, slack=units, role=role)


def compare_gradients(case: Case, model: torch.nn.Module, prefix: str) -> None:
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    for name in case.names("grad/"):
        role = "grad0" if INERT.fullmatch(prefix + name) else ""
        case.compare(f"grad/{name}", released_view(gradients, prefix + name), role=role)


def check_promptpar_real_size(case: Case) -> None:
    config = case.config
    for name in case.names("output/"):
        match = re.fullmatch(r"mask_allowed_[A-Z](\d+)_(\d+)", name)
        assert match, f"{name}: unknown array"
        side = int(match[2]) // int(match[1])
        stripes = region_patches((side, side), config["div_num"], config["overlap_row"], "released")
        mask = region_mask(stripes, config["vis_prompt"] // (1 + config["div_num"]))
        params = promptpar.Params(prompt_length=config["vis_prompt"], regions=config["div_num"])
        order = released_order(params, len(mask))
        case.compare(f"output/{name}", (mask == 0)[order][:, order])
    pattern = re.compile(r"count/([A-Z])(\d+)_visdepth(\d+)_(full|mlp)_N(\d+)/trainable")
    for name in sorted(case.open):
        if match := pattern.fullmatch(name):
            counts = real_size_counts(config, *match.groups())
            for group in case.names(name.removesuffix("trainable")):
                case.compare(name.removesuffix("trainable") + group, counts[group])


def real_size_counts(
    config: dict[str, Any], letter: str, patch: str, depth: str, form: str, attributes: str
) -> dict[str, int]:
    """Scalars of PromptPAR on a real CLIP, by the authors' names; nothing is allocated."""
    from open_clip import get_model_config

    n = int(attributes)
    flags = ["textprompt", *(("div", "vismask", "GL", "mm_former") if form == "full" else ())]
    geometry = {
        "flags": [f"--use_{f}" for f in flags],
        "vis_depth": int(depth),
        "text_prompt": config.get("text_prompt", 3),
        "mm_dim": 768,
        "mm_heads": 12,
    }
    params = promptpar_params(config | geometry)
    hashed = mock.patch("pedbench.nn.backbone._sha256", return_value="")  # no weights to hash
    with hashed, torch.device("meta"):
        model_config = get_model_config(f"ViT-{letter}-{patch}-quickgelu")
        assert model_config is not None
        backbone = Backbone.from_config(model_config)
        backbone.tokenizer = lambda texts: torch.zeros(n, 77, dtype=torch.long)  # type: ignore[assignment]
        model = promptpar.Method(params).build(backbone, plain_task(n))
    groups = {
        "word_embed": "word_embed.",
        "visual_embed": "visual_embed.",
        "norm": "fusion.norm.",
        "weight_layer": ("head.weight", "head.bias"),
        "bn": "head.bn.",
        "blocks": "fusion.blocks.",
        "softmax_model": "similarity.temperature",
        "agg_bn": "similarity.bn.",
        "part_class_embedding": "region_cls",
        "prompt_deep": "prompts",
        "prompt_text_deep": "text_prompts",
    }
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    counts = {
        group: sum(size for name, size in trained.items() if name.startswith(start))
        for group, start in groups.items()
    }
    counts["trainable"] = sum(trained.values())
    prompts = ("softmax_model", "agg_bn", "part_class_embedding", "prompt_deep", "prompt_text_deep")
    everything = sum(p.numel() for p in model.parameters())
    counts["full_finetune_total"] = everything - sum(counts[group] for group in prompts)
    return counts
