"""What networks of person re-identification add: the neck, the blocks of IANet, the ResNets."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pedbench.contracts import Batch, Output, ReidSettings, Task
from pedbench.methods import clip_reid, ianet, ivlp, lora, maple, promptpar, resnet50, vpt
from pedbench.nn import interaction
from pedbench.nn.heads import ImageClassifier, LinearHead, head_reason, image_head
from pedbench.nn.interaction import ChannelInteraction, SpatialInteraction
from pedbench.nn.reid import BNNeck

LOSSES = ReidSettings("cross_entropy", 1.0, 0.35, 30.0, 0.1, "triplet", 1.0, 0.3, "before")
TASK = Task("reid", (), (), identities=5, cameras=2, reid=LOSSES)
IDENTITIES = torch.tensor([0, 0, 3, 3])


def neck_of(width=6, **changes):
    torch.manual_seed(0)
    return BNNeck(width, replace(TASK, reid=replace(LOSSES, **changes)))


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_neck_gives_scores_from_behind_the_norm_and_features_from_before():
    neck, features = neck_of(), torch.randn(4, 6)
    out = neck(features)
    normed = (features - features.mean(0)) / (features.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(out.logits, normed @ neck.classifier.weight.T)
    assert out.extras["before"] is features and out.features is features
    torch.testing.assert_close(neck_of(feature="after")(features).features, normed)


def test_the_necks_norm_keeps_the_origin():
    neck = neck_of()
    assert trained(neck) == {"norm.weight", "classifier.weight"}
    assert not neck.norm.bias.any() and neck.classifier.bias is None
    assert neck_of(200).classifier.weight.std().item() == pytest.approx(0.001, rel=0.2)


@pytest.mark.parametrize("kind", ["cosface", "arcface", "circle"])
def test_scores_of_margin_losses_are_cosines(kind):
    neck, features = neck_of(id_loss=kind).eval(), 100 * torch.randn(4, 6)
    cosines = F.cosine_similarity(features[:, None], neck.classifier.weight[None], dim=2)
    torch.testing.assert_close(neck(features).logits, cosines)


NAMED: dict[str, Any] = {"head": "softmax"}
HEADS = [
    lora.Method(lora.Params()),
    vpt.Method(vpt.Params(head="linear")),
    promptpar.Method(promptpar.Params(prompt_length=10)),
    maple.Method(maple.Params(**NAMED, prompt_depth=2)),
    ivlp.Method(ivlp.Params(**NAMED)),
    clip_reid.Method(clip_reid.Params()),
]


@pytest.mark.parametrize("method", HEADS, ids=lambda method: type(method).__module__)
def test_margin_losses_read_cosines_from_every_head(method, backbone):
    """Necks, texts that are learned, and both of CLIP-ReID's necks; the scale is the loss's."""
    task = replace(TASK, reid=replace(LOSSES, id_loss="cosface"))
    backbone = copy.deepcopy(backbone)
    backbone.clip.logit_scale.data.fill_(9)
    assert method.supports(task, backbone) is None
    model = method.build(backbone, task)
    images = torch.randn(4, 3, *backbone.image_size)
    known = {"identities": IDENTITIES} if "identities" in getattr(model, "reads", ()) else {}
    out = model(images, **known)
    found = {name: s for name, s in out.extras.items() if name == "projected_logits"}
    assert len(found) == (type(method) is clip_reid.Method)
    for scores in (out.logits, *found.values()):
        assert scores.shape == (4, 5) and 0 < scores.abs().max() < 1 + 1e-5
    batch = Batch(images, torch.empty(4, 0), IDENTITIES)
    assert method.loss(out, batch, task)["id"].isfinite()


@pytest.mark.parametrize("method", [HEADS[3], HEADS[4]], ids=["maple", "ivlp"])
def test_there_is_nothing_behind_a_neck_that_is_not_there(method, backbone):
    assert method.supports(TASK, backbone) is None
    after = replace(TASK, reid=replace(LOSSES, feature="after"))
    assert (method.supports(after, backbone) or "").startswith("feature after: there is no neck")


def test_linear_heads_are_the_neck_and_classifiers_let_it_through(backbone):
    head = image_head("linear", backbone, TASK, "")
    assert isinstance(head, BNNeck)
    model = ImageClassifier(backbone, head).eval()
    images = torch.randn(3, 3, *backbone.image_size)
    found = model(images)
    assert found.logits.shape == (3, 5)
    torch.testing.assert_close(found.features, backbone.encode_image(images))
    plain = ImageClassifier(backbone, LinearHead(backbone.embed_dim, 2)).eval()(images)
    assert isinstance(plain, Output) and plain.logits.shape == (3, 2) and plain.features is None


@pytest.mark.parametrize("kind", ["pair", "sigmoid", "softmax"])
def test_heads_against_attributes_are_refused_for_persons(kind, backbone):
    assert head_reason("linear", TASK) is None
    reason = head_reason(kind, TASK)
    assert reason and f"head {kind}" in reason and "use linear" in reason
    refused = lora.Method(lora.Params(head=kind)).supports(TASK, backbone)
    assert refused and "use linear" in refused
    par = replace(TASK, kind="par")
    assert (head_reason(kind, par) is None) == (kind != "softmax")


def test_positions_are_related_by_nearness_and_likeness():
    """Three positions in a row of width 3: the first two look alike, the last is orthogonal."""
    maps = torch.tensor([[[2.0, 2.0, 0.0]], [[0.0, 0.0, 2.0]]])[None]  # (1, 2, 1, 3)
    found = SpatialInteraction(2, (1,), "product").relation(maps)[0]
    apart = [[math.exp(-(((i - j) / 1.875) ** 2) / 2) for j in range(3)] for i in range(3)]
    alike = [[1 if (i < 2) == (j < 2) else 0 for j in range(3)] for i in range(3)]
    same = math.exp(4 / math.sqrt(2))
    product = torch.tensor(
        [[apart[i][j] * (same if alike[i][j] else 1) for j in range(3)] for i in range(3)]
    )
    torch.testing.assert_close(found, product / product.sum(1, keepdim=True))
    released = SpatialInteraction(2, (1,), "released").relation(maps)[0]
    near = torch.tensor(apart)
    look = torch.tensor(alike) * (same - 1) + 1
    halves = near / near.sum(1, keepdim=True) * look / look.sum(1, keepdim=True)
    torch.testing.assert_close(released, halves.softmax(1))


def test_the_released_relation_is_nearly_uniform():
    maps = 3 * torch.randn(1, 16, 4, 2)
    released = SpatialInteraction(16, (1,), "released").relation(maps)[0]
    sound = SpatialInteraction(16, (1,), "product").relation(maps)[0]
    assert (released.amax(1) / released.amin(1)).max() <= math.e
    assert (sound.amax(1) / sound.amin(1)).max() > math.e**2


def test_a_larger_context_compares_neighbourhoods():
    """Away from the border: the mean over a square of inner products of what stands there."""
    maps = torch.randn(2, 4, 5, 5)
    found = interaction.likeness(maps, 3)
    at = {(y, x): maps[:, :, y, x] for y in range(5) for x in range(5)}
    total = sum(
        (at[1 + dy, 1 + dx] * at[3 + dy, 2 + dx]).sum(1) for dy in (-1, 0, 1) for dx in (-1, 0, 1)
    )
    torch.testing.assert_close(found[:, 1 * 5 + 1, 3 * 5 + 2], total / (9 * 2.0))
    alone = (at[1, 1] * at[3, 2]).sum(1) / 2.0
    torch.testing.assert_close(interaction.likeness(maps, 1)[:, 6, 17], alone)


def test_channels_gather_from_channels_like_them():
    maps = torch.randn(2, 3, 4, 2)
    block = ChannelInteraction(3).eval()
    with torch.no_grad():
        block.norm.weight.fill_(1.0)
    rows = maps.flatten(2)
    weights = torch.einsum("bcn,bdn->bcd", rows, rows).softmax(2)
    mixed = torch.einsum("bcd,bdn->bcn", weights, rows).view_as(maps) / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(block(maps), maps + mixed)


def test_spatial_blocks_add_what_positions_gather():
    maps = torch.randn(2, 3, 4, 2)
    block = SpatialInteraction(3, (1, 3), "product").eval()
    with torch.no_grad():
        block.norm.weight.fill_(1.0)
    weights = block.relation(maps)
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 8))
    mixed = torch.einsum("bij,bcj->bci", weights, maps.flatten(2)).view_as(maps)
    torch.testing.assert_close(block(maps), maps + mixed / math.sqrt(1 + 1e-5))


@pytest.fixture(scope="module")
def networks():
    """IANet, and ResNet-50 with its weights, from one random start."""

    def built(method):  # of a backbone neither reads anything
        torch.manual_seed(0)
        return method.Method(method.Params(weights="random")).build(nn.Identity(), TASK)

    plain, related = built(resnet50), built(ianet)
    missing, unexpected = related.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert {name.rsplit(".", 3)[0] for name in missing} == {"0.layer2", "0.layer3"}
    return plain, related


def test_the_networks_keep_the_last_resolution(networks):
    for network in networks:
        layer = network[0].layer4[0]
        assert layer.conv2.stride == layer.downsample[0].stride == (1, 1)
    attributes = resnet50.Method(resnet50.Params(weights="random"))
    par: Any = attributes.build(nn.Identity(), replace(TASK, kind="par"))  # type: ignore
    assert par.network.layer4[0].conv2.stride == (2, 2)


def test_blocks_change_nothing_at_first_and_learn(networks):
    plain, related = (copy.deepcopy(network).train() for network in networks)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = plain(images)
    found = related(images)
    torch.testing.assert_close(found.features, wanted.features, rtol=1e-4, atol=1e-4)
    assert found.features.shape == (4, 2048) and found.logits.shape == (4, 5)
    method = ianet.Method(ianet.Params(weights="random"))
    batch = Batch(images, torch.empty(4, 0), IDENTITIES, torch.zeros(4).long())
    terms = method.loss(found, batch, TASK)
    assert set(terms) == {"id", "pair"}
    torch.stack(list(terms.values())).sum().backward()
    gradients = dict(related.named_parameters())
    for stage, block in ((2, 4), (2, 5), (3, 6), (3, 7)):
        gradient = gradients[f"0.layer{stage}.{block}.norm.weight"].grad
        assert gradient is not None and gradient.any() and torch.isfinite(gradient).all()


def test_what_has_no_meaning_for_persons_is_refused(backbone):
    reason = ianet.Method(ianet.Params()).supports(replace(TASK, kind="par"), backbone)
    assert reason and "not for par" in reason
    assert ianet.Method(ianet.Params()).supports(TASK, backbone) is None
    assert resnet50.Method(resnet50.Params()).supports(TASK, backbone) is None
