"""Packed texts give what the plain text tower gives, and heads what they state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pedbench.contracts import Attribute, Batch, PedbenchError, Task
from pedbench.nn import texts
from pedbench.nn.heads import ImageClassifier, Similarity, image_head, start_biases
from pedbench.nn.texts import PackedTexts, learned

NAMES = ("wearing a hat", "with a backpack", "female", "wearing long black trousers")
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
TASK = Task("par", tuple(Attribute(n, "whole", n, f"no {n}") for n in NAMES[:2]), (0.3, 0.1))


def sequences(backbone, context):
    t = backbone.tokenizer
    return [[t.sot, *context, *t.encode(f"person {name}."), t.eot] for name in NAMES]


def padded(backbone, rows):
    """Embeddings without positions ``(T, L, W)`` of id sequences, and their ends."""
    length = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    ends = torch.tensor([len(row) - 1 for row in rows])
    return backbone.clip.token_embedding(ids.clamp(min=0)), ends


@pytest.fixture(params=[256, 12], ids=["one pack", "several packs"])
def pack_size(request, monkeypatch):
    monkeypatch.setattr(texts, "_PACK", request.param)


def test_fixed_texts(backbone, pack_size):
    plain = [f"a photo of a person {name}." for name in NAMES]
    t = backbone.tokenizer
    packed = PackedTexts(backbone, [[t.sot, *t.encode(text), t.eot] for text in plain])
    torch.testing.assert_close(packed(), backbone.encode_text(t(plain)), **CLOSE)


@pytest.mark.parametrize("images", [None, 3])
def test_learned_context(backbone, pack_size, images):
    """Also of each image; gradients too."""
    context = torch.randn(*([images] if images else []), 2, backbone.text_width) * 0.02
    one, other = context.clone().requires_grad_(), context.clone().requires_grad_()
    rows = sequences(backbone, [learned(0), learned(1)])
    features = PackedTexts(backbone, rows)(one)

    x, ends = padded(backbone, rows)
    singles = other[None] if images is None else other
    expected = []
    for single in singles:
        filled = torch.cat([x[:, :1], single.expand(len(x), -1, -1), x[:, 3:]], dim=1)
        filled = filled + backbone.clip.positional_embedding[: x.shape[1]]
        expected.append(backbone.encode_text(filled, ends))
    wanted = torch.stack(expected) if images else expected[0]
    torch.testing.assert_close(features, wanted, **CLOSE)
    cotangent = torch.randn_like(features)
    (features * cotangent).sum().backward()
    (wanted * cotangent).sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("depth", [1, 2])
def test_deep_prompts(backbone, pack_size, depth):
    prompts = torch.randn(depth, 2, backbone.text_width) * 0.02
    rows = sequences(backbone, [])
    features = PackedTexts(backbone, rows, prompts=2)(prompts=prompts)
    x, ends = padded(backbone, rows)
    places = torch.tensor([0, *range(3, x.shape[1] + 2)])
    first = prompts[:1] + backbone.clip.positional_embedding[1:3]
    wanted = backbone.encode_text(
        x + backbone.clip.positional_embedding[places],
        ends,
        prompts=torch.cat([first, prompts[1:]]),
    )
    torch.testing.assert_close(features, wanted, **CLOSE)


def test_class_specific_tokens_in_the_middle(backbone, pack_size):
    t = backbone.tokenizer
    names = [t.encode(name) for name in NAMES]
    rows = [[t.sot, learned(2 * i), *n, learned(2 * i + 1), t.eot] for i, n in enumerate(names)]
    context = torch.randn(2 * len(names), backbone.text_width) * 0.02
    x, ends = padded(backbone, rows)
    for i, name in enumerate(names):
        x[i, 1], x[i, 2 + len(name)] = context[2 * i], context[2 * i + 1]
    wanted = backbone.encode_text(x + backbone.clip.positional_embedding[: x.shape[1]], ends)
    torch.testing.assert_close(PackedTexts(backbone, rows)(context), wanted, **CLOSE)


def test_what_texts_begin_with_is_computed_once(backbone):
    rows = sequences(backbone, [learned(0)])
    rows += rows[:1]
    packed = PackedTexts(backbone, rows)
    pack: Any = packed.packs[0]
    assert len(packed.packs) == 1
    assert len(pack.fixed) == len({tuple(row[:n]) for row in rows for n in range(1, 1 + len(row))})
    features = packed(torch.randn(1, backbone.text_width))
    assert torch.equal(features[0], features[-1])


def test_a_text_longer_than_the_context_is_refused(backbone):
    with pytest.raises(PedbenchError, match="fewer context tokens"):
        PackedTexts(backbone, sequences(backbone, [learned(k) for k in range(40)]))


def test_pair_is_the_softmax_over_presence_and_absence(backbone):
    image, text = torch.randn(5, 8), torch.randn(4, 8)
    logits = Similarity("pair", backbone, 2)(image, text)
    cosines = backbone.scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    for a in range(2):
        both = torch.stack([cosines[:, a], cosines[:, 2 + a]], dim=1).softmax(1)[:, 0]
        torch.testing.assert_close(logits[:, a].sigmoid(), both)
    torch.testing.assert_close(Similarity("softmax", backbone, 4)(image, text), cosines)
    of_each_image = text.expand(5, -1, -1)
    torch.testing.assert_close(Similarity("pair", backbone, 2)(image, of_each_image), logits)


def test_sigmoid_biases_start_where_the_mean_logit_is_zero(backbone):
    head = image_head("sigmoid", backbone, TASK, "a photo of a person {}")
    model = ImageClassifier(backbone, head).eval()
    batches = [Batch(torch.randn(4, 3, *backbone.image_size), torch.zeros(4, 2)) for _ in range(2)]
    with torch.no_grad():
        start_biases(model, batches)
        logits = torch.cat([model(batch.images).logits for batch in batches])
    assert logits.std(0).min() > 0
    torch.testing.assert_close(logits.mean(0), torch.zeros(2), rtol=0, atol=1e-4)
