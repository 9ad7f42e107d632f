"""The backbone: equal to open_clip's encoders, and prompts, masks and reads as defined."""

import copy
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from pedbench.contracts import PedbenchError
from pedbench.nn import backbone as module
from pedbench.nn.backbone import Backbone, load_backbone
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
Tower = Literal["visual", "text"]
CLOSE = {"rtol": 0, "atol": 1e-5}  # attention kernels differ by a few float32 roundings


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.from_config(CONFIG, seed=1)


@pytest.fixture(scope="module")
def clip(backbone: Backbone) -> Any:
    """The unmodified open_clip model with the same weights."""
    from open_clip.model import CLIP

    model = CLIP(**copy.deepcopy(CONFIG))
    model.load_state_dict(backbone.clip_state())
    return model.eval()


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
def test_openai_weights_come_from_file_or_cache(tmp_path, monkeypatch, given: bool) -> None:
    """Both without a connection; the hub's own cache layout is read."""
    from open_clip.model import CLIP

    repository = tmp_path / "models--timm--vit_base_patch16_clip_224.openai"
    cached = repository / "snapshots" / "abc" / "open_clip_model.safetensors"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    own = tmp_path / "own.pt"
    own.write_bytes(b"")
    asked = []

    def create_model(name: str, **options: Any) -> CLIP:
        asked.append((name, options["pretrained"], options["weights_only"]))
        return CLIP(**copy.deepcopy(CONFIG))

    monkeypatch.setattr("open_clip.create_model", create_model)
    name = "ViT-B-16"
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
    monkeypatch.setattr(module, "resource", lambda name: tmp_path / name)
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
