"""Methods that adapt CLIP by small modules: where they start, what they compute."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pedbench.contracts import Batch, Task
from pedbench.registry import load_method, load_params


def build(name, backbone, task, **params) -> tuple[Any, Any]:
    method = load_method(name)(load_params(name, params))
    torch.manual_seed(0)
    return method, method.build(copy.deepcopy(backbone), task)


@pytest.fixture
def task(manifest):
    return Task("par", manifest.attributes, (0.5,) * len(manifest.attributes))


@pytest.fixture
def images(backbone):
    return torch.randn(6, 3, *backbone.image_size)


@pytest.mark.parametrize("form", ["adaptformer", "pfeiffer", "houlsby"])
def test_adapters_start_from_clip(backbone, task, images, form):
    _, model = build("adapter", backbone, task, form=form, head="pair")
    _, plain = build("zero_shot", backbone, task)
    assert torch.equal(model(images).logits, plain(images).logits)
    bottlenecks = [m for m in model.modules() if type(m).__name__ == "Bottleneck"]
    assert len(bottlenecks) == backbone.visual_layers * (1 + (form == "houlsby"))


def test_adaptformer_reads_the_stream_before_the_norm(backbone, task):
    _, model = build("adapter", backbone, task, scale=0.5, dropout=0.0)
    block = model.backbone.clip.visual.transformer.resblocks[0]
    torch.nn.init.normal_(block.mlp.bottleneck[-1].weight)
    x = torch.randn(2, 5, backbone.visual_width)
    plain = backbone.clip.visual.transformer.resblocks[0]
    attended = x + plain.attention(q_x=plain.ln_1(x))
    own = 0.5 * block.mlp.bottleneck(attended)
    torch.testing.assert_close(block(x), attended + plain.mlp(plain.ln_2(attended)) + own)


def test_ssf_can_be_folded_into_the_weights(backbone, task, images):
    """Scale and shift of a linear layer are another linear layer (Section 3.3 of the paper)."""
    _, model = build("ssf", backbone, task)
    folded = copy.deepcopy(model)
    visual = folded.backbone.clip.visual
    for name, module in list(visual.named_modules()):
        if type(module).__name__ == "ScaleShift":
            layer, scale, shift = module.layer, module.scale.flatten(), module.shift.flatten()
            bias = 0 if layer.bias is None else layer.bias.data
            layer.weight.data.mul_(scale.data.view(-1, *[1] * (layer.weight.ndim - 1)))
            layer.bias = torch.nn.Parameter(bias * scale + shift)
            visual.set_submodule(name, layer)
    torch.testing.assert_close(folded(images).logits, model(images).logits, rtol=1e-4, atol=1e-4)


def test_only_the_head_of_ssf_decays(backbone, task):
    method, model = build("ssf", backbone, task)
    decays = {g["name"]: g.get("weight_decay", "protocol") for g in method.param_groups(model)}
    assert decays == {"head": "protocol", "body": 0.0}


@pytest.mark.parametrize(("form", "rate"), [("adaptformer", 0.1), ("houlsby", 0.0)])
def test_adaptformer_alone_drops_units(backbone, task, form, rate):
    _, model = build("adapter", backbone, task, form=form)
    x = torch.randn(64, backbone.visual_width)
    block = model.backbone.clip.visual.transformer.resblocks[0]
    torch.nn.init.normal_(block.mlp.bottleneck[-1].weight)
    assert torch.equal(block.mlp(x), block.mlp(x)) == (rate == 0.0)
    block.eval()
    assert torch.equal(block.mlp(x), block.mlp(x))


def test_clip_adapter_without_its_share_is_clip(backbone, task, images):
    _, model = build("clip_adapter", backbone, task, ratio=0.0)
    _, plain = build("zero_shot", backbone, task)
    torch.testing.assert_close(model(images).logits, plain(images).logits)


def test_tip_adapter_adds_the_affinity_to_cached_images(backbone, task, images):
    method, model = build("tip_adapter", backbone, task, shots=2, alpha=0.7, beta=3.0)
    labels = torch.zeros(6, len(task.attributes))
    labels[:3, 0], labels[5, 0] = 1, -1  # three with the attribute, two without, one unknown
    with torch.no_grad():
        parts = [Batch(images[:4], labels[:4]), Batch(images[4:], labels[4:])]
        method.prepare(model.eval(), iter(parts))
        features = F.normalize(model.stem(images), dim=-1)
        plain = model.head.clip_head(model.stem(images))
        added = (model(images).logits - plain) / 0.7
        keys, signs = model.head.keys, model.head.signs
        chosen = [int((features @ key).argmax()) for key in keys[0]]
        assert signs[0].tolist() == [1, 1, -1, -1]
        assert set(chosen[:2]) <= {0, 1, 2} and set(chosen[2:]) == {3, 4}
        cosines = features @ features[chosen].T
        expected = torch.exp(-3.0 * (1 - cosines)) @ signs[0]
        torch.testing.assert_close(added[:, 0], expected, rtol=1e-4, atol=1e-4)
        assert signs[1].tolist() == [0, 0, -1, -1]  # nobody has it
