"""What tokens attend to and what scores depend on, against direct computations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import ATTRIBUTES, MODEL
from torch import Tensor, nn

from pedbench.contracts import Task
from pedbench.maps import AttentionRecorder, relevance, responses
from pedbench.nn.backbone import Backbone
from pedbench.nn.prompts import encode_prompted
from pedbench.registry import load_method, load_params

TASK = Task("par", ATTRIBUTES, (0.5,) * len(ATTRIBUTES))
IMAGES = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
ROWS, COLUMNS = 8, 4


def model_of(backbone: Backbone, method: str, **params: Any) -> nn.Module:
    torch.manual_seed(1)
    model = load_method(method)(load_params(method, params)).build(backbone, TASK)
    return model.eval()


def by_hand(attention: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Weights ``(B, S, S)``, the mean over the heads, of normalised tokens."""
    weights = attention.weights(x, x, mask)
    return weights.mean(1)


def last_input(backbone: Backbone, run) -> Tensor:
    """All tokens in front of the last layer, normalised."""
    seen = []
    block = backbone.clip.visual.transformer.resblocks[-1]
    handle = block.ln_1.register_forward_hook(lambda module, args, out: seen.append(out))
    run()
    handle.remove()
    return torch.cat([tokens.expand(len(IMAGES), -1, -1) for tokens in seen], 1)


@torch.no_grad()
def test_the_class_token(backbone):
    (response,) = responses(backbone, lambda: backbone.encode_image(IMAGES))
    x = last_input(backbone, lambda: backbone.encode_image(IMAGES))
    attention = backbone.clip.visual.transformer.resblocks[-1].attn
    expected = by_hand(attention, x)[:, 0, 1:].view(2, ROWS, COLUMNS)
    assert (response.tokens, response.regional) == (1, False)
    np.testing.assert_allclose(response.maps, expected, atol=1e-6)


@torch.no_grad()
def test_blocks_may_run_in_parts(backbone):
    (whole,) = responses(backbone, lambda: backbone.encode_image(IMAGES))
    (parts,) = responses(backbone, lambda: backbone.image_features(IMAGES))
    np.testing.assert_array_equal(parts.maps, whole.maps)


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 4])
def test_prompts_behind_the_patches(backbone, depth):
    """Of deep prompts that are only looked at there is no attention; shallow ones are not read."""
    prompts = torch.randn(depth, 3, 32, generator=torch.Generator().manual_seed(2))
    run = lambda: encode_prompted(backbone, IMAGES, prompts)  # noqa: E731
    (response,) = responses(backbone, run)
    x = last_input(backbone, run)
    attention = backbone.clip.visual.transformer.resblocks[-1].attn
    expected = by_hand(attention, x)[:, 0, 1 : 1 + ROWS * COLUMNS].view(2, ROWS, COLUMNS)
    assert response.tokens == 1
    np.testing.assert_allclose(response.maps, expected, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 4])
def test_regions_are_told_by_their_masks(backbone, depth):
    model: Any = model_of(
        backbone, "promptpar", prompt_length=10, prompt_depth=depth, mm_init="random", mm_width=32,
        mm_heads=2,
    )  # fmt: skip
    found = responses(model, lambda: model(IMAGES))
    assert [(r.tokens, r.regional) for r in found] == [(3, False)] + [(3, True)] * 4
    x = last_input(model.backbone, lambda: model(IMAGES))
    attention = model.backbone.clip.visual.transformer.resblocks[-1].attn
    weights = by_hand(attention, x, model.mask)[..., 15:]
    for group, response in enumerate(found):
        tokens = [*range(1 + 2 * group, 3 + 2 * group), 10 + group if group else 0]
        expected = weights[:, tokens].mean(1).view(2, ROWS, COLUMNS)
        np.testing.assert_allclose(response.maps, expected, atol=1e-6)
        rows = np.flatnonzero(response.maps.sum((0, 2)) > 0)
        if group:  # two rows each, and one more on both sides
            first, last = 2 * group - 2, 2 * group - 1
            assert list(rows) == list(range(max(first - 1, 0), min(last + 2, ROWS)))


@torch.no_grad()
def test_recording_changes_no_bit_and_leaves_nothing(backbone):
    model = model_of(
        backbone, "promptpar", prompt_length=5, mm_init="random", mm_width=32, mm_heads=2
    )
    before, attributes = model(IMAGES).logits, [set(vars(m)) for m in model.modules()]
    inside = []
    assert responses(model, lambda: inside.append(model(IMAGES).logits))
    assert torch.equal(inside[0], before)
    assert torch.equal(model(IMAGES).logits, before)
    assert [set(vars(m)) for m in model.modules()] == attributes


@torch.no_grad()
def test_batches_are_put_together(backbone):
    with AttentionRecorder(backbone) as recorder:
        backbone.encode_image(IMAGES[:1])
        backbone.encode_image(IMAGES[1:])
    (whole,) = responses(backbone, lambda: backbone.encode_image(IMAGES))
    np.testing.assert_allclose(recorder.responses()[0].maps, whole.maps, atol=1e-6)


@torch.no_grad()
def test_a_tower_without_tokens_or_run_otherwise_gives_nothing(backbone):
    config: Any = MODEL | {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}}
    resnet = Backbone.from_config(config)
    assert responses(resnet, lambda: resnet.encode_image(torch.zeros(1, 3, 64, 64))) == []
    assert responses(nn.Linear(2, 2), lambda: None) == []

    def changed() -> None:  # patches that are not those of embed_image
        backbone.run_blocks("visual", 2 * backbone.embed_image(IMAGES))

    assert responses(backbone, changed) == []


@pytest.mark.parametrize(("size", "patch"), [((64, 32), (8, 8)), ((224, 224), (16, 16))])
def test_relevance_is_where_the_score_comes_from(size, patch):
    """One attribute sums one patch, one has falls and rises, one is constant."""
    row, column = 3, 2
    inside = (slice(row * patch[0], (row + 1) * patch[0]),)
    inside += (slice(column * patch[1], (column + 1) * patch[1]),)
    picture = torch.full((3, *size), 50, dtype=torch.uint8)
    picture[:, *inside] = 200

    def predict(pictures: Tensor) -> np.ndarray:
        patches = pictures[:, :, *inside].float().mean((1, 2, 3))
        constant = torch.zeros(len(pictures))
        return torch.stack([patches, -patches, constant], 1).numpy()

    logits, falls = relevance(predict, picture, patch)
    grid = (size[0] // patch[0], size[1] // patch[1])
    assert falls.shape == (3, *grid) and list(logits) == [200, -200, 0]
    assert np.unravel_index(falls[0].argmax(), grid) == (row, column)
    assert np.array_equal(falls[1], -falls[0]) and not falls[2].any()
    reach = round(grid[0] / 8)  # of the hiding square
    far = np.ones(grid, bool)
    far[max(row - reach + 1, 0) : row + reach, max(column - reach + 1, 0) : column + reach] = False
    assert not falls[0][far].any()
    if reach == 1:
        colour = round(picture.float().mean().item())
        assert falls[0][row, column] == pytest.approx(200 - colour)
