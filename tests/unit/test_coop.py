"""CoOp and CoCoOp beyond the golden cases: sizes, starts, many images at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import ATTRIBUTES
from torch.nn import functional as F

from pedbench.contracts import PedbenchError, Task
from pedbench.methods import cocoop, coop
from pedbench.nn.backbone import shape_only

TASK = Task("par", ATTRIBUTES, (0.3,) * len(ATTRIBUTES))


def build(module, backbone, **params) -> Any:
    torch.manual_seed(0)
    return module.Method(module.Params(**params)).build(backbone, TASK)


@pytest.mark.parametrize(
    ("module", "name", "params", "count"),
    [
        (coop, "ViT-B-16", {}, 8_192),  # the authors' code: 8,192 and 35,360
        (coop, "ViT-B-16", {"class_specific": True}, 2 * len(ATTRIBUTES) * 8_192),
        (coop, "ViT-L-14", {}, 12_288),
        (cocoop, "ViT-B-16", {}, 35_360),
        (cocoop, "ViT-B-16", {"head": "sigmoid"}, 35_360 + len(ATTRIBUTES)),
        (cocoop, "ViT-L-14", {}, 77_616),
    ],
)
def test_trained_values(module, name, params, count):
    with torch.device("meta"):
        model = build(module, shape_only(name), **params)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_every_class_starts_from_the_words_and_has_its_own(backbone, position):
    words = {"context_init": "a photo of a", "class_position": position}
    one = build(coop, backbone, **words).head.texts
    many = build(coop, backbone, class_specific=True, **words).head.texts
    ids = backbone.tokenizer.encode("a photo of a")
    assert torch.equal(one.context, backbone.clip.token_embedding.weight[ids])
    assert many.context.shape == (2 * len(ATTRIBUTES), *one.context.shape)
    torch.testing.assert_close(many(), one(), rtol=1e-5, atol=1e-6)
    many()[3].sum().backward()
    assert many.context.grad.flatten(1).any(1).nonzero().tolist() == [[3]]


def test_the_words_in_front_make_clips_sentence(backbone):
    """Presence first, then absence; the released template ends in a full stop."""
    texts = build(coop, backbone, context_init="a photo of a").head.texts
    phrases = [a.phrase for a in ATTRIBUTES] + [a.negative for a in ATTRIBUTES]
    plain = backbone.tokenizer([f"a photo of a person {phrase}." for phrase in phrases])
    torch.testing.assert_close(texts(), backbone.encode_text(plain), rtol=1e-5, atol=1e-6)


def test_a_random_context_is_narrow(backbone):
    context = build(coop, backbone, context_length=10, class_specific=True).head.texts.context
    assert context.shape[1] == 10
    assert float(context.detach().std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("head", ["pair", "sigmoid"])
def test_many_images_at_once_equal_one_after_the_other(backbone, head):
    """Values and gradients, against the texts of one image at a time in one shifted context."""
    model = build(cocoop, backbone, head=head).head
    features = torch.randn(6, backbone.embed_dim)
    trained = [p for p in model.parameters() if p.requires_grad]
    together = model(features)
    rows = []
    for feature in features:
        shift = model.meta_net(F.normalize(feature, dim=-1))
        text = model.texts.texts(model.texts.context + shift)
        rows.append(model.similarity(feature[None], text)[0])
    single = torch.stack(rows)
    torch.testing.assert_close(together, single, rtol=1e-5, atol=1e-5)
    cotangent = torch.randn_like(single)
    found = torch.autograd.grad((together * cotangent).sum(), trained)
    wanted = torch.autograd.grad((single * cotangent).sum(), trained)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def test_what_cannot_be_learned_is_refused(backbone):
    for module in (coop, cocoop):
        reason = module.Method(module.Params(head="softmax")).supports(TASK, backbone)
        assert reason and "exactly one" in reason
    with pytest.raises(PedbenchError, match=r"context_length 0.*context_init"):
        build(coop, backbone, context_length=0)
    with pytest.raises(PedbenchError, match="fewer context tokens"):
        build(coop, backbone, context_length=20)
