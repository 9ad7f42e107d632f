"""VTB and ResNet-50: what a tower is cut into, sentence vectors, counts, weights not at hand."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from pedbench.contracts import Attribute, PedbenchError, Task
from pedbench.methods import resnet50, vtb
from pedbench.nn.backbone import load_backbone, shape_only
from pedbench.nn.pretrained import mpnet_vectors

CLIP = vtb.Params(tower="clip", text_encoder="clip", drop_path=0.1)


def task_of(attributes: int) -> Task:
    named = (Attribute(f"a{i}", "whole", f"with {i}", f"without {i}") for i in range(attributes))
    return Task("par", tuple(named), (0.5,) * attributes)


def trained(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_halves_of_clips_tower_make_the_tower(backbone):
    images = torch.randn(2, 3, 64, 32)
    whole = backbone.clip.visual.ln_post(
        backbone.run_blocks("visual", backbone.embed_image(images))
    )
    tower, fusion = vtb.cut_clip(copy.deepcopy(backbone), drop_path=0.0)
    tokens = tower(images)
    torch.testing.assert_close(fusion(tokens[:, :3], tokens[:, 3:]), whole[:, :3])
    tower, fusion = vtb.cut_clip(copy.deepcopy(backbone), drop_path=0.3)
    blocks: list[Any] = [*tower.backbone.clip.visual.transformer.resblocks, *fusion.blocks]
    rates = [block.ls_2.drop_prob for block in blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_the_sentence_vectors_are_fixed_and_of_unit_length(backbone):
    model = vtb.Method(CLIP).build(copy.deepcopy(backbone), task_of(5))
    assert isinstance(model, vtb.VTB)
    torch.testing.assert_close(model.vectors.norm(dim=1), torch.ones(5))
    assert not any("clip.transformer" in n for n, p in model.named_parameters() if p.requires_grad)
    assert "vectors" not in model.state_dict()


def test_mpnets_mean_leaves_the_padding_out():
    states = torch.tensor([[[3.0, 0.0], [3.0, 8.0], [90.0, 90.0]]])
    tokens = {"attention_mask": torch.tensor([[1, 1, 0]])}
    model: Any = mock.Mock(return_value=mock.Mock(last_hidden_state=states))
    model.eval.return_value = model
    with (
        mock.patch(
            "transformers.AutoTokenizer.from_pretrained", return_value=lambda *a, **k: tokens
        ),
        mock.patch("transformers.AutoModel.from_pretrained", return_value=model),
    ):
        vectors = mpnet_vectors(["a hat"], "")
    torch.testing.assert_close(vectors, F.normalize(torch.tensor([[3.0, 4.0]])))


def test_the_papers_model_has_its_parameters():
    """87.15 M printed, of which 769,000 are a classifier that nothing uses."""
    with torch.device("meta"):
        backbone = load_backbone("random:ViT-B-16", image_size=(256, 128))
        model = vtb.Method(vtb.Params()).build(backbone, task_of(51))
    assert trained(model) == sum(p.numel() for p in model.parameters()) == 86_377_881


@pytest.mark.parametrize(
    ("name", "expected"), [("ViT-B-16", 86_234_265), ("ViT-L-14", 304_021_657)]
)
def test_parameters_with_clips_tower(name, expected):
    with torch.device("meta"):
        model = vtb.Method(CLIP).build(shape_only(name), task_of(51))
    assert trained(model) == expected


def test_the_resnet_holds_no_clip():
    with torch.device("meta"):
        model = resnet50.Method(resnet50.Params()).build(shape_only("ViT-B-16"), task_of(51))
    assert trained(model) == sum(p.numel() for p in model.parameters()) == 23_612_531


@pytest.mark.parametrize(
    ("method", "params", "loader", "fix"),
    [
        (vtb, {"text_encoder": "clip"}, "timm.create_model", "variant vtb/clip"),
        (vtb, {"tower": "clip"}, "transformers.AutoTokenizer.from_pretrained", "text_encoder"),
        (resnet50, {}, "timm.create_model", "set weights to 'random'"),
    ],
)
def test_absent_weights_are_named_with_the_fix(backbone, method, params, loader, fix):
    build = method.Method(method.Params(**params)).build
    with (
        mock.patch(loader, side_effect=OSError("no route to host")),
        pytest.raises(PedbenchError, match=f"no route to host.*{fix}"),
    ):
        build(copy.deepcopy(backbone), task_of(2))


def test_only_the_tower_of_clip_needs_tokens():
    resnet = shape_only("RN50")
    assert vtb.Method(vtb.Params()).supports(task_of(2), resnet) is None
    reason = vtb.Method(CLIP).supports(task_of(2), resnet)
    assert reason and "RN50 has none" in reason
