"""Prompts of CoOp's family in both towers, and the methods made of them: MaPLe, IVLP, VPT."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import ATTRIBUTES

from pedbench.contracts import Attribute, Task
from pedbench.methods import ivlp, maple, vpt
from pedbench.nn.backbone import shape_only
from pedbench.nn.prompts import PromptedTexts, encode_prompted
from pedbench.nn.sentences import attribute_sentences

TASK = Task("par", ATTRIBUTES, (0.3,) * len(ATTRIBUTES))
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 64, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("length", [2, 4])
def test_text_prompts_start_as_the_words_they_stand_for(backbone, length):
    """Words that are not learned stay in the text."""
    texts = PromptedTexts(
        backbone, TASK, "pair", words="a photo of a", class_name="person {}", length=length, depth=1
    )
    plain = backbone.tokenizer(attribute_sentences(ATTRIBUTES, "a photo of a person {}."))
    torch.testing.assert_close(texts(), backbone.encode_text(plain), **CLOSE)


def test_text_prompts_beyond_the_words_are_drawn(backbone):
    words: dict[str, Any] = {"words": "a photo", "class_name": "person {}", "length": 3, "depth": 2}
    prompts = PromptedTexts(backbone, TASK, "sigmoid", **words).prompts
    again = PromptedTexts(backbone, TASK, "sigmoid", **words).prompts
    assert torch.equal(prompts[0, :2], again[0, :2])
    assert (prompts[0, 2] != again[0, 2]).all() and (prompts[1] != again[1]).all()


@pytest.mark.parametrize("depth", [1, 3, 4])
@pytest.mark.parametrize("at", [1, -1], ids=["behind CLS", "last"])
def test_visual_prompts_are_what_every_layer_would_compute(backbone, depth, at):
    """The plain computation: all tokens through all layers, prompts overwritten; their place in
    the sequence is irrelevant."""
    prompts = torch.randn(depth, 2, backbone.visual_width)
    x, visual = backbone.embed_image(images()), backbone.clip.visual
    at = at % (x.shape[1] + 1)
    for layer, block in enumerate(visual.transformer.resblocks):
        if layer < depth:
            own = visual.ln_pre(prompts[0]) if layer == 0 else prompts[layer]
            rest = x if layer == 0 else torch.cat([x[:, :at], x[:, at + 2 :]], dim=1)
            x = torch.cat([rest[:, :at], own.expand(len(x), -1, -1), rest[:, at:]], dim=1)
        x = block(x)
    wanted = backbone.project_image(x[:, 0])
    torch.testing.assert_close(encode_prompted(backbone, images(), prompts), wanted, **CLOSE)


@pytest.mark.parametrize(
    ("method", "name", "count"),
    [
        (maple.Method(maple.Params()), "ViT-B-16", 3_555_072),
        (maple.Method(maple.Params()), "ViT-L-14", 7_100_928),
        (ivlp.Method(ivlp.Params()), "ViT-B-16", 12 * 2 * (512 + 768)),
        (ivlp.Method(ivlp.Params()), "ViT-L-14", 2 * (12 * 768 + 24 * 1024)),
        (vpt.Method(vpt.Params()), "ViT-B-16", 12 * 8 * 768),
        (vpt.Method(vpt.Params()), "ViT-L-14", 24 * 8 * 1024),
        (vpt.Method(vpt.Params(prompt_depth=1, head="linear")), "ViT-B-16", 8 * 768 + 513 * 51),
        (maple.Method(maple.Params(head="sigmoid")), "ViT-B-16", 3_555_072 + 51),
    ],
)
def test_trained_scalars(method, name, count):
    attributes = tuple(Attribute(f"a{i}", "whole", "with a hat", "bald") for i in range(51))
    with torch.device("meta"):
        model = method.build(shape_only(name), Task("par", attributes, (0.5,) * 51))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (
            maple.Method(maple.Params()),
            "prompt_depth 9: the text tower of random has 2 layers; use",
        ),
        (maple.Method(maple.Params(0, 1)), "context_length 0: the text tower needs at least one"),
        (
            ivlp.Method(ivlp.Params(visual_depth=5)),
            "visual_depth 5: the visual tower of random has",
        ),
        (ivlp.Method(ivlp.Params(text_length=0)), "text_length 0: the text tower needs"),
        (vpt.Method(vpt.Params(prompt_depth=-1)), "prompt_depth -1: the visual tower of random"),
        (vpt.Method(vpt.Params(head="softmax")), "head softmax gives every image exactly one"),
    ],
)
def test_what_does_not_fit_is_refused(backbone, method, reason):
    assert (method.supports(TASK, backbone) or "").startswith(reason)


def test_maple_couples_as_many_layers_as_both_towers_have(backbone):
    params = maple.Params(prompt_depth=0)
    assert maple.Method(params).supports(TASK, backbone) is None
    model: Any = maple.Method(params).build(backbone, TASK)
    assert model.visual_prompts().shape == (2, 2, backbone.visual_width)


def test_without_visual_prompts_only_the_head_trains(backbone):
    """So the engine computes the image features once."""
    params = ivlp.Params(visual_length=0)
    assert ivlp.Method(params).supports(TASK, backbone) is None
    model = ivlp.Method(params).build(backbone, TASK)
    [head] = ivlp.Method(params).param_groups(model)
    assert head["name"] == "head" and [p.shape for p in head["params"]] == [(2, 2, 32)]


def test_persons_are_not_told_by_texts_alone(backbone):
    """Retrieval compares image features: without visual prompts they are those of frozen CLIP."""
    persons = Task("reid", (), (), identities=5)
    prompted = ivlp.Params(head="softmax")
    assert ivlp.Method(prompted).supports(persons, backbone) is None
    reason = ivlp.Method(replace(prompted, visual_length=0)).supports(persons, backbone)
    assert (reason or "").startswith("visual_length 0: image features")


def test_a_linear_head_has_its_own_rate(backbone):
    method = vpt.Method(vpt.Params(head="linear", lr=0.1, head_lr=0.2))
    head, body = method.param_groups(method.build(backbone, TASK))
    assert (head["lr"], body["lr"]) == (0.2, 0.1)
    assert [p.shape for p in body["params"]] == [(4, 8, 32)]
