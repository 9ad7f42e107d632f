"""The backbone: equal to open_clip's encoders, and prompts, masks and reads as defined."""

import copy
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from pedbench import weights as checkpoints
from pedbench.contracts import BACKBONES, PedbenchError
from pedbench.nn import backbone as module
from pedbench.nn.backbone import Backbone, load_backbone, shape_only
from pedbench.nn.blocks import insert, merge_qkv, split_qkv

CONFIG = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": [32, 16],
        "patch_size": 8,
        "width": 48,
        "layers": 3,
        "head_width": 16,
    },
    "text_cfg": {"context_length": 20, "vocab_size": 40, "width": 32, "heads": 2, "layers": 3},
}
RESNET: dict[str, Any] = CONFIG | {
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}
}
Tower = Literal["visual", "text"]
CLOSE = {"rtol": 0, "atol": 1e-5}  # attention kernels differ by a few float32 roundings


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.from_config(CONFIG, seed=1)


@pytest.fixture(scope="module")
def clip(backbone: Backbone) -> Any:
    return unmodified(backbone, CONFIG)


def unmodified(backbone: Backbone, config: dict[str, Any]) -> Any:
    """open_clip's own model with the same weights."""
    from open_clip.model import CLIP

    model = CLIP(**copy.deepcopy(config))
    model.load_state_dict(backbone.clip_state())
    return model.eval()


@pytest.fixture
def resnet() -> Backbone:
    """Its norms do something: open_clip starts them at the identity, or at zero."""
    backbone = Backbone.from_config(RESNET, name="small ResNet", seed=1)
    generator = torch.Generator().manual_seed(2)
    for norm in norms(backbone):
        for tensor in (norm.weight, norm.running_mean, norm.running_var):
            assert tensor is not None
            tensor.detach().uniform_(0.5, 1.5, generator=generator)
    return backbone


def norms(backbone: Backbone) -> list[nn.BatchNorm2d]:
    return [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]


def statistics(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers() if "running" in name}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids(n: int = 4, length: int = 20) -> Tensor:
    """Random prompts that end (largest id) at different places."""
    generator = torch.Generator().manual_seed(3)
    text = torch.randint(1, 39, (n, length), generator=generator)
    for i in range(n):
        text[i, 5 + i] = 39
        text[i, 6 + i :] = 0
    return text


def naive(
    backbone: Backbone,
    tower: Tower,
    x: Tensor,
    prompts: Tensor,
    at: int,
    mask: Tensor | None = None,
) -> Tensor:
    """Every token through every block, prompts overwritten in front of the layer."""
    length = prompts.shape[-2]
    root = backbone.clip.visual if tower == "visual" else backbone.clip
    for layer, block in enumerate(root.transformer.resblocks):
        if layer < len(prompts):
            if layer:
                x = torch.cat([x[:, :at], x[:, at + length :]], 1)
            x = insert(x, prompts[layer], at)
        x = block(x, attn_mask=mask)
    return x


def causal(n: int) -> Tensor:
    return torch.full((n, n), -torch.inf).triu(1)


@pytest.mark.parametrize("grad", [False, True])
def test_encoders_equal_open_clip(backbone: Backbone, clip: Any, grad: bool) -> None:
    images, text = randn(3, 3, 32, 16), ids()
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(
            backbone.encode_image(images), clip.encode_image(images), **CLOSE
        )
        torch.testing.assert_close(backbone.encode_text(text), clip.encode_text(text), **CLOSE)


def test_all_tokens_equal_open_clip(backbone: Backbone, clip: Any) -> None:
    images = randn(2, 3, 32, 16)
    x = backbone.embed_image(images)
    with torch.no_grad():
        expected = clip.visual.ln_post(clip.visual.transformer(clip.visual._embeds(images)))
        expected = expected @ clip.visual.proj
        found = backbone.project_image(backbone.run_blocks("visual", x))
    assert found.shape == (2, 9, 24)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_image_gradient_equals_open_clip(backbone: Backbone, clip: Any) -> None:
    gradients = []
    for model in (backbone, clip):
        images = randn(2, 3, 32, 16).requires_grad_()
        model.encode_image(images).square().sum().backward()
        gradients.append(images.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_truncated_text_is_exact(backbone: Backbone) -> None:
    text = ids()
    torch.testing.assert_close(
        backbone.encode_text(text[:, :9]), backbone.encode_text(text), **CLOSE
    )


def test_text_embeddings_enter_as_ids_do(backbone: Backbone) -> None:
    text = ids()
    embedded = backbone.embed_text(text)
    found = backbone.encode_text(embedded, eot=text.argmax(-1))
    assert torch.equal(found, backbone.encode_text(text))


@pytest.mark.parametrize("tower", ["visual", "text"])
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_prompts_equal_a_loop_over_all_tokens(
    backbone: Backbone, tower: Tower, depth: int, batched: bool, masked: bool
) -> None:
    width = {"visual": 48, "text": 32}[tower]
    at, size, length = 2, 9, 4 if depth else 0
    mask = torch.zeros(size + length, size + length)
    if masked:
        mask[3, 5:8] = mask[7:, 1] = mask[at, -2:] = -torch.inf
    full = mask + causal(size + length) if tower == "text" else mask
    results = []
    for method in ("wrapper", "naive"):
        x = randn(2, size, width).requires_grad_()
        shape = (depth, 2, length, width) if batched else (depth, length, width)
        prompts = randn(*shape, seed=1).requires_grad_()
        if method == "wrapper":
            out = backbone.run_blocks(tower, x, prompts, at, mask if masked else None)
        else:
            out = naive(backbone, tower, x, prompts, at, full)
        (out * randn(*out.shape, seed=2)).sum().backward()
        results.append((out, x.grad, prompts.grad if depth else None))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("tower", ["visual", "text"])
@pytest.mark.parametrize("read", [torch.tensor([0, 5]), torch.tensor([[0], [6]])])
def test_read_selects_from_all_outputs(
    backbone: Backbone, depth: int, tower: Tower, read: Tensor
) -> None:
    width = {"visual": 48, "text": 32}[tower]
    x, at, length = randn(2, 9, width), 2, 3
    prompts = randn(depth, length, width, seed=1) if depth else None
    mask = torch.zeros(9 + length * (depth > 0), 9 + length * (depth > 0))
    mask[4:, 1] = -torch.inf
    out = backbone.run_blocks(tower, x, prompts, at, mask)
    if depth:
        out = torch.cat([out[:, :at], out[:, at + length :]], 1)
    expected = out[torch.arange(2)[:, None], read]
    found = backbone.run_blocks(tower, x, prompts, at, mask, read)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_text_prompts_reach_the_end_of_text(backbone: Backbone) -> None:
    text, prompts = ids(), randn(2, 3, 32, seed=1)
    x = naive(backbone, "text", backbone.embed_text(text), prompts, 1, causal(23))
    expected = backbone.project_text(x)[torch.arange(4), text.argmax(-1) + 3]
    torch.testing.assert_close(backbone.encode_text(text, prompts=prompts), expected, **CLOSE)
    behind = backbone.encode_text(text, prompts=prompts, at=20)
    torch.testing.assert_close(behind, backbone.encode_text(text), **CLOSE)  # nobody sees them


def test_bool_masks_are_refused(backbone: Backbone) -> None:
    with pytest.raises(TypeError, match="additive floats"):
        backbone.run_blocks("visual", randn(1, 9, 48), mask=torch.ones(9, 9, dtype=torch.bool))


def test_too_many_prompt_layers_are_refused(backbone: Backbone) -> None:
    with pytest.raises(PedbenchError, match="at most 3"):
        backbone.run_blocks("visual", randn(1, 9, 48), prompts=randn(4, 2, 48))


def test_wrong_image_size_is_refused(backbone: Backbone) -> None:
    with pytest.raises(PedbenchError, match=r"\(32, 16\)"):
        backbone.embed_image(randn(1, 3, 16, 32))


def test_everything_is_frozen_and_nothing_upstream_is_tracked(backbone: Backbone) -> None:
    assert not any(p.requires_grad for p in backbone.parameters())
    x = backbone.embed_image(randn(1, 3, 32, 16))
    assert not backbone.run_blocks("visual", x).requires_grad


def test_attention_weights_equal_multihead_attention(backbone: Backbone, clip: Any) -> None:
    x, mask = randn(2, 9, 48), causal(9)
    fused, split = (m.visual.transformer.resblocks[1].attn for m in (clip, backbone.clip))
    for need_weights in (True, False):
        expected = fused(x, x, x, need_weights=need_weights, attn_mask=mask)
        found = split(x, x, x, need_weights=need_weights, attn_mask=mask)
        torch.testing.assert_close(found[0], expected[0], **CLOSE)
        if need_weights:
            torch.testing.assert_close(found[1], expected[1], **CLOSE)


def test_state_goes_round(backbone: Backbone) -> None:
    state = backbone.clip_state()
    again = merge_qkv(split_qkv(state))
    assert state.keys() == again.keys()
    assert all(torch.equal(state[k], again[k]) for k in state)
    assert "visual.transformer.resblocks.0.attn.in_proj_weight" in state
    copied = Backbone.from_config(CONFIG, state, seed=7)
    assert copied.weights_sha256 == backbone.weights_sha256
    assert Backbone.from_config(CONFIG, seed=7).weights_sha256 != backbone.weights_sha256


def test_one_tower_may_be_given_alone_but_not_half_of_it(backbone: Backbone) -> None:
    visual = {k: v for k, v in backbone.clip_state().items() if k.startswith("visual.")}
    images = randn(1, 3, 32, 16)
    found = Backbone.from_config(CONFIG, visual, seed=5).encode_image(images)
    assert torch.equal(found, backbone.encode_image(images))
    half = {k: v for k, v in visual.items() if k != "visual.proj"}
    with pytest.raises(PedbenchError, match=r"visual\.proj"):
        Backbone.from_config(CONFIG, half)
    with pytest.raises(PedbenchError, match="prompt_deep"):
        Backbone.from_config(CONFIG, visual | {"visual.prompt_deep": randn(2)})
    with pytest.raises(PedbenchError, match="do not fit"):
        Backbone.from_config(CONFIG, visual | {"visual.proj": randn(2)})


def test_positions_follow_the_image_size(backbone: Backbone) -> None:
    """Same number of patches on another grid is interpolated too; the class position stays."""
    state = backbone.clip_state()
    old = state["visual.positional_embedding"]
    turned = Backbone.from_config(CONFIG, state, image_size=(16, 32))
    assert (turned.grid, turned.image_size) == ((2, 4), (16, 32))
    new = turned.clip.visual.positional_embedding
    assert new.shape == old.shape
    assert torch.equal(new[0], old[0])
    assert not torch.allclose(new[1:], old[1:])
    assert turned.weights_sha256 == backbone.weights_sha256  # of what was loaded
    assert turned.encode_image(randn(1, 3, 16, 32)).shape == (1, 24)
    assert torch.equal(
        Backbone.from_config(CONFIG, state, image_size=(32, 16)).clip.visual.positional_embedding,
        old,
    )
    with pytest.raises(PedbenchError, match="no multiple"):
        Backbone.from_config(CONFIG, state, image_size=(30, 16))


def test_positions_are_resized_as_open_clip_does_from_a_square() -> None:
    from open_clip.model import CLIP, resize_pos_embed

    square = copy.deepcopy(CONFIG)
    square["vision_cfg"]["image_size"] = 32
    state = Backbone.from_config(square, seed=1).clip_state()
    found = Backbone.from_config(square, state, image_size=(64, 32)).clip.visual
    square["vision_cfg"]["image_size"] = [64, 32]
    resized = dict(state)
    resize_pos_embed(resized, CLIP(**square))
    expected = resized["visual.positional_embedding"]
    torch.testing.assert_close(found.positional_embedding.detach(), expected, **CLOSE)


def test_patches_may_overlap(backbone: Backbone) -> None:
    """With every second patch of stride 4 at the places of stride 8; a rest goes unseen."""
    state = backbone.clip_state()
    dense = Backbone.from_config(CONFIG, state, stride=4)
    assert (dense.grid, dense.patch, dense.image_size) == ((7, 3), (8, 8), (32, 16))
    visual = dense.clip.visual
    assert visual.positional_embedding.shape == (22, 48)
    images = randn(2, 3, 32, 16)
    patches = visual.conv1(images)
    assert torch.equal(patches[..., ::2, ::2], backbone.clip.visual.conv1(images))
    assert dense.encode_image(images).shape == (2, 24)
    uneven = Backbone.from_config(CONFIG, state, image_size=(31, 15), stride=6)
    assert uneven.grid == (4, 2)
    inner = randn(1, 3, 31, 15)
    outer = inner.clone()
    outer[..., 26:, :] = outer[..., 14:] = 9.0
    assert torch.equal(uneven.encode_image(inner), uneven.encode_image(outer))
    assert Backbone.from_config(CONFIG, state, stride=8).weights_sha256 == backbone.weights_sha256


def test_impossible_grids_are_refused(backbone: Backbone) -> None:
    for grid, reason in (
        ({"stride": 9}, "patch_stride 9: .* choose 1 to 8"),
        ({"stride": 0}, "choose 1 to 8"),
        ({"image_size": (4, 16), "stride": 4}, "no multiple"),
    ):
        with pytest.raises(PedbenchError, match=reason):
            Backbone.from_config(CONFIG, backbone.clip_state(), **grid)  # type: ignore[arg-type]


def test_a_shift_enters_in_front_of_the_norm(backbone: Backbone) -> None:
    images, visual = randn(2, 3, 32, 16), backbone.clip.visual
    plain, before = backbone.embed_image(images), []
    handle = visual.ln_pre.register_forward_pre_hook(lambda module, args: before.append(args[0]))
    backbone.embed_image(images)
    for tokens in (1, 9):
        shift = randn(2, tokens, 48)
        shifted = backbone.embed_image(images, shift)
        moved = before[-1] - before[0]
        torch.testing.assert_close(moved[:, :tokens], shift, **CLOSE)
        assert torch.equal(shifted[:, tokens:], plain[:, tokens:])
        assert not torch.allclose(shifted[:, :tokens], plain[:, :tokens])
    handle.remove()


def test_features_at_three_depths(backbone: Backbone) -> None:
    images, visual = randn(2, 3, 32, 16), backbone.clip.visual
    last, normed, projected = backbone.image_features(images)
    x = backbone.embed_image(images)
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    torch.testing.assert_close(last, x[:, 0], **CLOSE)
    expected = visual.ln_post(visual.transformer.resblocks[-1](x)[:, 0])
    torch.testing.assert_close(normed, expected, **CLOSE)
    torch.testing.assert_close(projected, expected @ visual.proj, **CLOSE)


def test_features_of_a_resnet_at_three_depths(resnet: Backbone) -> None:
    images, maps = randn(2, 3, 64, 64), {}
    for name in ("layer3", "layer4"):
        stage = getattr(resnet.clip.visual, name)
        stage.register_forward_hook(lambda m, a, out, name=name: maps.update({name: out}))
    early, late, pooled = resnet.image_features(images)
    assert torch.equal(pooled, resnet.encode_image(images))
    assert torch.equal(early, maps["layer3"].flatten(2).mean(2))
    assert torch.equal(late, maps["layer4"].flatten(2).mean(2))
    assert (early.shape, late.shape) == ((2, 256), (2, 512))


@pytest.mark.parametrize("mode", [False, True])
def test_resnet_encoders_equal_open_clip(resnet: Backbone, mode: bool) -> None:
    """In training mode too, because its norms are frozen."""
    clip = unmodified(resnet, RESNET)
    images, text = randn(3, 3, 64, 64).requires_grad_(), ids()
    found, expected = resnet.train(mode).encode_image(images), clip.encode_image(images)
    torch.testing.assert_close(found, expected, **CLOSE)
    gradients = [torch.autograd.grad(f.square().sum(), images)[0] for f in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(resnet.encode_text(text), clip.encode_text(text), **CLOSE)


def test_frozen_norms_keep_their_statistics(resnet: Backbone) -> None:
    images, before = randn(4, 3, 64, 64), statistics(resnet)
    resnet.encode_image(images)  # in the mode it is built in
    resnet.eval().train().encode_image(images)
    assert before and all(torch.equal(before[k], v) for k, v in statistics(resnet).items())


def test_only_unfrozen_norms_move_and_only_in_training(resnet: Backbone) -> None:
    images, visual = randn(4, 3, 64, 64), resnet.clip.visual
    visual.layer4.requires_grad_(True)
    before = statistics(visual)
    resnet.eval().encode_image(images)
    assert all(torch.equal(before[k], v) for k, v in statistics(visual).items())
    resnet.train().encode_image(images)
    moved = {k for k, v in statistics(visual).items() if not torch.equal(before[k], v)}
    assert moved == {k for k in before if k.startswith("layer4.")}


def test_a_resnet_has_no_patch_tokens(resnet: Backbone, backbone: Backbone) -> None:
    assert backbone.tokens and not resnet.tokens
    for use in (
        lambda: resnet.embed_image(randn(1, 3, 64, 64)),
        lambda: resnet.run_blocks("visual", randn(1, 5, 512)),
        lambda: resnet.project_image(randn(1, 512)),
    ):
        with pytest.raises(PedbenchError, match="small ResNet is a ResNet without patch tokens"):
            use()
    embedded = resnet.embed_text(ids())
    assert resnet.run_blocks("text", embedded).shape == embedded.shape


def test_a_resnet_reads_the_size_it_is_loaded_with(resnet: Backbone) -> None:
    sizes = (resnet.image_size, resnet.patch, resnet.grid)
    assert sizes == ((64, 64), (32, 32), (2, 2))
    assert (resnet.visual_width, resnet.visual_layers, resnet.visual_heads) == (512, 0, 8)
    state = resnet.clip_state()
    for size in (64, (64, 64)):
        same = Backbone.from_config(RESNET, state, image_size=size)
        assert same.image_size == (64, 64) and same.weights_sha256 == resnet.weights_sha256
    tall = Backbone.from_config(RESNET, state, image_size=(96, 32))
    assert (tall.image_size, tall.grid) == ((96, 32), (3, 1))
    assert tall.clip.visual.attnpool.positional_embedding.shape == (4, 512)
    assert tall.weights_sha256 == resnet.weights_sha256
    assert tall.encode_image(randn(2, 3, 96, 32)).shape == (2, 24)
    with pytest.raises(PedbenchError, match="no multiple of the ResNet's stride 32"):
        Backbone.from_config(RESNET, image_size=(64, 40))
    with pytest.raises(PedbenchError, match=r"got \(64, 32\): resize them"):
        resnet.encode_image(randn(1, 3, 64, 32))


def test_the_last_stage_of_a_resnet_need_not_stride(resnet: Backbone) -> None:
    """It then sees the same, at four times as many places."""
    state, images = resnet.clip_state(), randn(2, 3, 64, 32)
    fine = Backbone.from_config(RESNET, state, image_size=(64, 32), stride=16)
    assert (fine.patch, fine.grid) == ((16, 16), (4, 2))
    maps = []
    fine.clip.visual.layer4.register_forward_hook(lambda m, a, out: maps.append(out))
    assert fine.encode_image(images).shape == (2, 24)
    assert maps[0].shape == (2, 512, 4, 2)
    assert fine.clip_state().keys() == state.keys()
    with pytest.raises(PedbenchError, match="patch_stride 12: .* 32 pixels apart, or 16"):
        Backbone.from_config(RESNET, stride=12)


def test_a_resnet_refuses_the_weights_of_a_transformer(backbone: Backbone) -> None:
    with pytest.raises(PedbenchError, match=r"(?s)do not fit the model: .*visual\.conv1"):
        Backbone.from_config(RESNET, backbone.clip_state())


PARAMETERS = {"ViT-B-16": 149_620_737, "ViT-L-14": 427_616_513, "RN50": 102_007_137}


@pytest.mark.parametrize("name", BACKBONES)
def test_shapes_need_no_weights(name: str) -> None:
    backbone = shape_only(name)
    assert backbone.name == name
    count = sum(p.numel() for p in backbone.parameters())
    assert count == PARAMETERS.get(name, count)
    with torch.device("meta"):
        image = backbone.encode_image(torch.empty(2, 3, *backbone.image_size))
        text = backbone.encode_text(backbone.tokenizer(["a photo of a person"] * 3))
    assert image.is_meta and image.shape == (2, backbone.embed_dim)
    assert text.is_meta and text.shape == (3, backbone.embed_dim)


def test_unknown_backbone_names_the_nearest() -> None:
    with pytest.raises(PedbenchError, match="did you mean 'ViT-B-16'"):
        load_backbone("ViT-B16")


def test_missing_weights_file_is_named(tmp_path) -> None:
    with pytest.raises(PedbenchError, match="no file .*absent"):
        load_backbone("ViT-B-16", weights=tmp_path / "absent.pt")


def test_no_weights_offline_says_where_it_looked(tmp_path, monkeypatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("socket.create_connection", unreachable)
    with pytest.raises(PedbenchError) as error:
        load_backbone("ViT-B-16", cache_dir=tmp_path)
    message = str(error.value)
    assert "ViT-B-16" in message
    assert str(tmp_path) in message
    assert "checkpoint file" in message


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("ViT-B-16", "models--timm--vit_base_patch16_clip_224.openai"),
        ("RN50", "models--timm--resnet50_clip.openai"),
    ],
)
def test_openai_weights_come_from_file_or_cache(
    tmp_path, monkeypatch, given: bool, name: str, repository: str
) -> None:
    """Both without a connection; the hub's own cache layout is read."""
    from open_clip.model import CLIP

    folder = tmp_path / repository
    cached = folder / "snapshots" / "abc" / "open_clip_model.safetensors"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    own = tmp_path / "own.pt"
    own.write_bytes(b"")
    asked = []

    def create_model(name: str, **options: Any) -> CLIP:
        asked.append((name, options["pretrained"], options["weights_only"]))
        return CLIP(**copy.deepcopy(CONFIG))

    monkeypatch.setattr("open_clip.create_model", create_model)
    backbone = load_backbone(name, weights=own if given else None, cache_dir=tmp_path)
    assert asked == [(f"{name}-quickgelu", str(own if given else cached), True)]
    assert backbone.name == name


def test_unreadable_openai_weights_are_named(tmp_path) -> None:
    file = tmp_path / "ViT-B-16.pt"
    file.write_bytes(b"junk" * 100)
    with pytest.raises(PedbenchError, match="no readable weights of ViT-B-16"):
        load_backbone("ViT-B-16", weights=file)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A resources folder with a small model in the place of the tiny CLIP."""
    import hashlib
    import json

    from safetensors.torch import save_file

    vocabulary = [0, 320, *range(1000, 1010), 49406, 49407]
    model = Backbone.from_config(CONFIG, seed=4, vocabulary=vocabulary)
    folder = tmp_path / "tiny_clip"
    folder.mkdir()
    checkpoint = folder / "tiny_clip.safetensors"
    save_file(model.clip_state(), checkpoint)
    (folder / "model.json").write_text(json.dumps(CONFIG))
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary))
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    (folder / "tiny_clip.sha256").write_text(f"{digest}  tiny_clip.safetensors\n")
    for reader in (module, checkpoints):
        monkeypatch.setattr(reader, "resource", lambda name: tmp_path / name)
    return model, checkpoint


def test_shipped_checkpoint_loads(shipped) -> None:
    model, checkpoint = shipped
    for weights in (None, checkpoint):
        loaded = load_backbone("tiny_clip", weights=weights)
        assert loaded.weights_sha256 == model.weights_sha256
        assert loaded.tokenizer("a")[0].tolist() == [12, 1, 13, 0, 0, 0, 0, 0]
    random = load_backbone("random:tiny_clip")
    assert random.weights_sha256 != model.weights_sha256
    assert random.weights_sha256 == load_backbone("random:tiny_clip").weights_sha256


def test_corrupt_checkpoint_is_refused(shipped) -> None:
    _, checkpoint = shipped
    data = bytearray(checkpoint.read_bytes())
    data[-1] ^= 1
    checkpoint.write_bytes(data)
    with pytest.raises(PedbenchError, match=r"tiny_clip\.safetensors is corrupt"):
        load_backbone("tiny_clip")
    checkpoint.write_bytes(data[:100])
    with pytest.raises(PedbenchError, match="no readable safetensors"):
        load_backbone("tiny_clip", weights=checkpoint)
