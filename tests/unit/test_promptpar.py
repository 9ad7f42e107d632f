"""PromptPAR's forms beyond the golden cases, and its regions and fusion on their own."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import ATTRIBUTES, MODEL
from hypothesis import given, settings
from hypothesis import strategies as st

from pedbench.config import read_variants
from pedbench.contracts import Batch, PedbenchError, Task
from pedbench.methods.promptpar import GlobalLocal, Method, Params, PromptPAR
from pedbench.nn.backbone import Backbone
from pedbench.nn.blocks import step
from pedbench.nn.fusion import mm_former
from pedbench.nn.regions import region_mask, region_patches

TASK = Task("par", ATTRIBUTES, (0.3,) * len(ATTRIBUTES))
PERSONS = Task("reid", (), (), identities=5)
EVERY_FORM = [
    {},
    {"regions": 0},
    {"prompt_depth": 1},
    {"prompt_depth": 2, "region_mask": "none"},
    {"regions": 3, "prompt_length": 4, "region_overlap": 0},
    {"fusion": "mlp", "mm_width": 24},
    {"mm_layers": 2},
    {"mm_init": "random", "mm_layers": 4, "mm_width": 24, "mm_heads": 2},
    {"text_prompt_length": 0, "expanded_sentences": False},
    {"gl_score": "released", "gl_global_token": "released", "gl_aggregation": "released"},
    {"gl_weight": 0.0, "visual_ln_post": False, "train_mm_norms": True},
]


def build(backbone: Backbone, **changes: Any) -> PromptPAR:
    torch.manual_seed(0)
    params = Params(**({"prompt_length": 10, "mm_init": "clip_last_block"} | changes))
    model = Method(params).build(backbone, TASK)
    assert isinstance(model, PromptPAR)
    return model


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 64, 32, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------- the whole model


@pytest.mark.parametrize("form", EVERY_FORM, ids=lambda form: "-".join(form) or "default")
def test_every_form_trains_what_it_should(backbone, form):
    model = build(backbone, **form)
    method = Method(model.params)
    labels = torch.tensor([[1, 0, 1, 0, -1]] * 2 + [[0, 1, 1, 0, 1]] * 2)
    output = model(images())
    assert output.logits.shape == labels.shape
    terms = method.loss(output, Batch(images(), labels), TASK)
    assert set(terms) == ({"bce"} if form.get("gl_weight") == 0 else {"bce", "gl"})
    torch.stack([*terms.values()]).sum().backward()
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    grouped = [id(p) for group in method.param_groups(model) for p in group["params"]]
    assert len(grouped) == len(trained) and set(grouped) == trained
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert any(n.startswith("backbone.") for n in frozen)
    assert all(n.startswith(("backbone.", "fusion.blocks.")) for n in frozen)


def test_groups_have_their_rates(backbone):
    params = Params(mm_init="clip_last_block", prompt_warmup_epochs=3)
    model = Method(params).build(backbone, TASK)
    head, prompts = Method(params).param_groups(model)
    assert (head["name"], head["lr"]) == ("head", 8e-3) and "warmup_epochs" not in head
    assert (prompts["name"], prompts["lr"]) == ("prompts", 4e-3) and prompts["warmup_epochs"] == 3
    names = {id(p): n for n, p in model.named_parameters()}
    slow = {names[id(p)].split(".")[0] for p in prompts["params"]}
    assert slow == {"prompts", "region_cls", "text_prompts", "similarity"}


def test_length_is_the_total_over_the_groups(backbone):
    layers, width = backbone.visual_layers, backbone.visual_width
    assert build(backbone, prompt_length=20).prompts.shape == (layers, 20, width)
    assert build(backbone, prompt_length=7, regions=0, prompt_depth=1).prompts.shape == (
        1,
        7,
        width,
    )
    with pytest.raises(PedbenchError, match="prompt_length = 12 .* multiple of 5: use 10 or 15"):
        build(backbone, prompt_length=12)
    with pytest.raises(PedbenchError, match="prompt_length = 1 .* use 5"):
        build(backbone, prompt_length=1)


def test_depth_beyond_the_encoder_is_refused_with_a_reason(backbone):
    layers = backbone.visual_layers
    reason = Method(Params(prompt_depth=layers + 1)).supports(TASK, backbone)
    assert reason is not None and f"exceeds the {layers} layers" in reason
    assert Method(Params(prompt_depth=layers)).supports(TASK, backbone) is None


@pytest.mark.parametrize("label", ["mlp", "mm2", "no_text_prompts", "bare_names", "released_code"])
def test_forms_that_differ_in_texts_alone_are_refused_for_persons(backbone, label):
    """They would train as copies of the default."""
    changes = read_variants()["promptpar"][label]
    names = {field.name for field in dataclasses.fields(Params)}
    own = {key: value for key, value in changes.items() if key in names}
    method = Method(Params(**own))
    assert method.supports(TASK, backbone) is None
    reason = method.supports(PERSONS, backbone) or ""
    assert reason.partition(" ")[0] in own and "attributes' texts" in reason


@pytest.mark.parametrize(
    "changes", [{}, {"regions": 0, "gl_weight": 0.0}, {"prompt_init": "zero", "lr": 0.1}]
)
def test_forms_that_differ_in_the_image_tower_are_for_persons_too(backbone, changes):
    assert Method(Params(**changes)).supports(PERSONS, backbone) is None


def test_zero_and_random_start(backbone):
    zero = build(backbone, prompt_init="zero")
    assert zero.text_prompts is not None
    assert not zero.prompts.any() and not zero.text_prompts.any()
    bound = (6 / (3 * 8 * 8 + 32)) ** 0.5
    drawn = build(backbone).prompts.abs()
    assert 0.9 * bound < drawn.max() <= bound


def test_text_prompts_reach_end_of_text_only_where_the_paper_puts_them(backbone):
    bare = build(backbone, text_prompt_length=0).text_features()
    for position, moves in (("paper", True), ("released", False)):
        model = build(backbone, text_prompt_position=position)
        text = model.text_features()
        text.square().sum().backward()
        assert model.text_prompts is not None and model.text_prompts.grad is not None
        assert bool(model.text_prompts.grad.any()) is moves
        assert torch.allclose(text, bare, atol=1e-5) is not moves


def test_text_is_encoded_once_without_text_prompts(backbone):
    model = build(backbone, text_prompt_length=0)
    with mock.patch.object(Backbone, "encode_text", side_effect=AssertionError("encoded again")):
        model(images())
    assert "fixed_text" not in model.state_dict()


def test_sentences_are_expanded_or_bare(backbone):
    with mock.patch.object(backbone, "tokenizer", wraps=backbone.tokenizer) as seen:
        build(backbone)
        build(backbone, expanded_sentences=False)
    expanded, bare = (call.args[0] for call in seen.call_args_list)
    assert expanded[0] == "a photo of a person wearing a hat" and bare[0] == "hat"


def test_last_layer_norm_is_a_choice(backbone):
    tokens = build(backbone).visual_tokens(images(1))
    raw = build(backbone, visual_ln_post=False).visual_tokens(images(1))
    assert tokens.shape == raw.shape == (1, 1 + 10 + 4 + 32, 32)
    assert not torch.allclose(tokens, raw)


def test_region_tokens_see_their_region_only():
    """In one layer nothing can travel through the patches."""
    config = MODEL | {"vision_cfg": MODEL["vision_cfg"] | {"layers": 1}}
    model = build(Backbone.from_config(config, seed=2), region_overlap=0, gl_weight=0.0)
    first = images(1)
    second = first.clone()
    second[:, :, :16] += 1  # rows of region 1 of 4
    moved = (model.visual_tokens(first) - model.visual_tokens(second)).abs().amax(-1)[0] > 1e-5
    assert moved[[0, 11]].all() and not moved[12:15].any()  # CLS, region 1; regions 2 to 4


# ---------------------------------------------------------------- global-local similarity


def scores_module(**changes: Any) -> GlobalLocal:
    return GlobalLocal(2, Params(**changes))


def test_best_region_counts_above_the_threshold_else_the_worst():
    scores = torch.tensor([[[0.2, 0.4], [0.9, 0.1], [0.3, 0.3]]])
    found = scores_module(gl_score="released").aggregate(scores)
    torch.testing.assert_close(found, torch.tensor([[(0.2 + 0.9) / 2, (0.4 + 0.1) / 2]]))
    alone = scores_module().aggregate(scores[:, :1])
    torch.testing.assert_close(alone, scores[:, 0])


def test_threshold_is_a_probability():
    """Logits of 0.1 and -0.1 lie on either side of one half."""
    scores = torch.tensor([[[0.0, 0.0], [0.1, -0.1], [-0.2, -0.2]]])
    found = scores_module().aggregate(scores)
    torch.testing.assert_close(found, torch.tensor([[0.05, -0.1]]))


def test_per_image_aggregation_does_not_look_at_the_batch(backbone):
    for aggregation, alone in (("per_image", True), ("released", False)):
        model = build(backbone, gl_aggregation=aggregation, gl_score="released").eval()
        assert model.similarity is not None
        model.similarity.threshold = 0.2  # of five attributes in a softmax
        with torch.no_grad():
            whole = model(images()).extras["gl"]
            single = torch.cat([model(image[None]).extras["gl"] for image in images()])
        assert torch.allclose(whole, single, atol=1e-6) is alone


# ---------------------------------------------------------------- regions


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 24), st.integers(1, 12), st.integers(1, 6), st.integers(0, 6))
def test_stripes_cover_the_grid(rows, columns, regions, overlap):
    if regions > rows:
        with pytest.raises(PedbenchError, match=f"use 1 to {rows}"):
            region_patches((rows, columns), regions, overlap)
        return
    if overlap % 2:
        with pytest.raises(PedbenchError, match=f"use {overlap - 1} or {overlap + 1}"):
            region_patches((rows, columns), regions, overlap)
        return
    stripes = region_patches((rows, columns), regions, overlap).view(regions, rows, columns)
    held = stripes.any(2)
    assert (stripes == held[:, :, None]).all()  # whole rows
    assert held.any(0).all() and held.any(1).all()
    for k, stripe in enumerate(held):
        used = stripe.nonzero()[:, 0].tolist()
        assert used == list(range(used[0], used[-1] + 1))
        assert used[0] == max(k * rows // regions - overlap // 2, 0)


@settings(max_examples=50, deadline=None)
@given(st.integers(4, 16), st.integers(1, 4), st.integers(1, 3))
def test_mask_confines_region_tokens(rows, regions, prompts):
    stripes = region_patches((rows, 2), regions, 2)
    allowed = region_mask(stripes, prompts) == 0
    first_region, first_patch = 1 + prompts * (1 + regions), 1 + prompts * (1 + regions) + regions
    assert allowed.shape == (first_patch + 2 * rows,) * 2
    assert allowed[: 1 + prompts].all() and allowed[first_patch:].all()
    for k in range(regions):
        group = [first_region + k, *range(1 + prompts * (1 + k), 1 + prompts * (2 + k))]
        row = torch.zeros(len(allowed), dtype=torch.bool)
        row[group] = True
        row[first_patch:] = stripes[k]
        assert (allowed[group] == row).all()


def test_released_stripes_fit_the_square_grid_alone():
    on_16 = region_patches((16, 16), 4, 2, "released")
    assert torch.equal(on_16, region_patches((16, 16), 4, 2))
    assert region_patches((14, 14), 4, 2, "released").sum(1).tolist() == [56, 70, 70, 20]
    with pytest.raises(PedbenchError, match="set region_mask to 'grid'"):
        region_patches((16, 16), 5, 2, "released")


# ---------------------------------------------------------------- fusion


def test_only_attribute_tokens_of_the_last_block_are_computed(backbone):
    former = mm_former("random", 2, backbone, 24, 2)
    text, visual = torch.randn(2, 3, 24), torch.randn(2, 7, 24)
    x = torch.cat([text, visual], dim=1)
    for block in former.blocks:
        x = step(block, x)
    torch.testing.assert_close(former(text, visual), former.norm(x)[:, :3])


def test_last_blocks_of_the_backbone_are_copied(backbone):
    former = mm_former("clip_last_block", 2, backbone, 768, 12)
    originals = backbone.clip.visual.transformer.resblocks[-2:]
    copied: Any
    for copied, original in zip(former.blocks, originals, strict=True):
        assert copied.mlp.c_fc.weight is not original.mlp.c_fc.weight
        assert torch.equal(copied.mlp.c_fc.weight, original.mlp.c_fc.weight)
    assert former.width == backbone.visual_width
    with pytest.raises(PedbenchError, match="mm_layers = 9, but random has"):
        mm_former("clip_last_block", 9, backbone, 768, 12)


def test_imagenet_blocks_are_timms(backbone):
    import timm

    vit: Any = timm.create_model("vit_tiny_patch16_224", depth=3, pretrained=False)
    with mock.patch("timm.create_model", return_value=vit) as created:
        former = mm_former("imagenet", 2, backbone, 0, 0)
    assert created.call_args.kwargs == {"pretrained": True}
    x = torch.randn(2, 9, vit.embed_dim)
    expected = vit.norm(vit.blocks[2](vit.blocks[1](x)))[:, :4]
    torch.testing.assert_close(former(x[:, :4], x[:, 4:]), expected, rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in former.blocks.parameters())


def test_absent_imagenet_weights_are_named(backbone):
    with (
        mock.patch("timm.create_model", side_effect=OSError("no route to host")),
        pytest.raises(PedbenchError, match="no route to host.*set mm_init to 'clip_last_block'"),
    ):
        mm_former("imagenet", 1, backbone, 768, 12)
