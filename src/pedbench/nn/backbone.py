"""One wrapper over open_clip's CLIP: what prompt methods need, without a copy of its code.

open_clip builds and loads the model and runs every block; here are only the loop over the blocks
(so that prompts, masks and shortened contexts can enter) and the split attention.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import zipfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedbench.contracts import BACKBONES, OPENAI, TINY, PedbenchError
from pedbench.files import file_sha256
from pedbench.nn.blocks import Attention, insert, merge_qkv, step
from pedbench.nn.tokenizer import Tokenizer
from pedbench.paths import resource
from pedbench.weights import cached, require_hub, shipped

_RANDOM = "random:"
_STRIDES = (32, 16)  # pixels between a ResNet's last cells: as built, last stage not strided

Interpolation = Literal["bicubic", "bilinear"]


class Backbone(nn.Module):
    """A CLIP (`open_clip.CLIP` with a vision transformer or a ResNet), float32, all frozen.

    Sizes: ``image_size`` and ``patch`` are (height, width) in pixels, ``grid`` is (rows, columns)
    of patches, ``mean``/``std`` normalise RGB in [0, 1]. In the shapes below N is the number of
    patches, Wv/Wt the tower's width, E ``embed_dim``.

    ``image_size`` (an edge, or height and width) and ``stride``, pixels from patch to patch, may be
    others than those of the pretraining: positions are then interpolated, ``bicubic`` with
    antialiasing as open_clip does, or ``bilinear`` without as CLIP-ReID's code does. Below the
    patch's size, the stride makes patches overlap; what is left at the right and lower edges for
    no whole patch goes unseen. A ResNet knows the strides 32 and 16, the latter by leaving the last
    stage at the resolution of the one before (Luo et al., "Bag of Tricks and A Strong Baseline for
    Deep Person Re-identification", CVPRW 2019, section 3.4).

    ``tokens``: the image tower is a sequence of patch tokens that prompts can join. A ResNet's is
    not: it has ``visual_layers`` 0, its ``patch`` is the stride, and ``grid``, ``visual_width``
    and ``visual_heads`` are those of its attention pool.

    Raises PedbenchError for a size or stride that the image tower cannot have.
    """

    clip: Any  # open_clip's model

    def __init__(
        self,
        clip: Any,
        name: str,
        vocabulary: Sequence[int] | None = None,
        image_size: int | tuple[int, int] | None = None,
        stride: int | None = None,
        interpolation: Interpolation = "bicubic",
    ) -> None:
        super().__init__()
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
        from open_clip.modified_resnet import ModifiedResNet

        visual = clip.visual
        self.name = name
        self.tokens = not isinstance(visual, ModifiedResNet)
        if isinstance(image_size, int):
            image_size = (image_size, image_size)
        place = "visual" if self.tokens else "visual.attnpool"
        positions = clip.get_submodule(place).positional_embedding
        self._pretrained = {f"{place}.positional_embedding": positions.detach().float()}
        if self.tokens:
            self.image_size = image_size or tuple(visual.image_size)
            self.patch: tuple[int, int] = tuple(visual.patch_size)
            self.grid = _refit(visual, self.image_size, stride, interpolation)
            self.visual_width: int = visual.transformer.width
            self.visual_layers: int = visual.transformer.layers
            self.visual_heads: int = visual.transformer.resblocks[0].attn.num_heads
        else:
            self.image_size = image_size or (visual.image_size, visual.image_size)
            stride = _STRIDES[0] if stride is None else stride
            self.patch = (stride, stride)
            self.grid = _refit_resnet(visual, self.image_size, stride, interpolation)
            self.visual_width = visual.attnpool.k_proj.in_features
            self.visual_layers = 0
            self.visual_heads = visual.attnpool.num_heads
        self.mean: tuple[float, ...] = OPENAI_DATASET_MEAN
        self.std: tuple[float, ...] = OPENAI_DATASET_STD
        self.text_width = clip.transformer.width
        self.text_layers = clip.transformer.layers
        self.text_heads = clip.transformer.resblocks[0].attn.num_heads
        self.embed_dim = visual.output_dim
        self.context_length = clip.context_length
        self._vocabulary = vocabulary
        for tower in (visual, clip) if self.tokens else (clip,):
            for block in tower.transformer.resblocks:
                block.attn = Attention.split(block.attn)
        self.clip = clip.float().requires_grad_(False)
        self.train()

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        state: dict[str, Tensor] | None = None,
        *,
        name: str = "custom",
        vocabulary: Sequence[int] | None = None,
        image_size: int | tuple[int, int] | None = None,
        stride: int | None = None,
        interpolation: Interpolation = "bicubic",
        seed: int = 0,
    ) -> Backbone:
        """A CLIP of open_clip's model ``config`` with the weights ``state`` (names of the official
        CLIP). A tower of which ``state`` holds nothing keeps random weights drawn from ``seed``.

        Raises PedbenchError if ``state``, the size or the stride does not fit.
        """
        from open_clip.model import CLIP

        if vocabulary is not None:
            config = config | {"text_cfg": config["text_cfg"] | {"vocab_size": len(vocabulary)}}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            clip = CLIP(**config)
        if state is not None:
            _load(clip, state, name)
        return cls(clip, name, vocabulary, image_size, stride, interpolation)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Turns texts into ids of this model's vocabulary."""
        return Tokenizer(self._vocabulary, self.context_length)

    @cached_property
    def weights_sha256(self) -> str:
        """Digest of all weights, with the positions of the pretraining: the same on every grid.
        Taken when first asked: ask before any of them trains."""
        return _sha256(self.clip_state() | self._pretrained)

    @property
    def scale(self) -> Tensor:
        """Factor of the cosines, ``exp(logit_scale)``; a scalar."""
        return self.clip.logit_scale.exp()

    def clip_state(self) -> dict[str, Tensor]:
        """All weights under the official CLIP's names, so that open_clip can load them."""
        return merge_qkv(self.clip.state_dict())

    def train(self, mode: bool = True) -> Backbone:
        """As in torch, but frozen means frozen: a batch-norm whose weight does not train keeps
        its running statistics, and normalises with them, in training too."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                module.train(mode and module.weight.requires_grad)
        return self

    def _check_size(self, images: Tensor) -> None:
        if images.shape[-2:] != self.image_size:
            raise PedbenchError(
                f"{self.name} reads images of {self.image_size} pixels (height, width), got "
                f"{tuple(images.shape[-2:])}: resize them, or load it with another image_size"
            )

    def _check_tokens(self) -> None:
        if not self.tokens:
            raise PedbenchError(
                f"the image tower of {self.name} is a ResNet without patch tokens: choose a "
                "backbone with a vision transformer, or use encode_image alone"
            )

    def embed_image(self, images: Tensor, shift: Tensor | None = None) -> Tensor:
        """``(B, 3, H, W)`` to CLS and patches with positions, normalised: ``(B, 1 + N, Wv)``.

        ``shift (B, S, Wv)`` is added to the first S tokens in front of the norm. Like everything on
        the tokens of the image tower, raises PedbenchError without ``tokens``.
        """
        self._check_tokens()
        self._check_size(images)
        visual = self.clip.visual
        patches = visual.conv1(images).flatten(2).mT
        x = torch.cat([visual.class_embedding.expand(len(images), 1, -1), patches], dim=1)
        x = x + visual.positional_embedding
        if shift is not None:
            x = torch.cat([x[:, : shift.shape[1]] + shift, x[:, shift.shape[1] :]], dim=1)
        return visual.ln_pre(x)

    def embed_text(self, ids: Tensor) -> Tensor:
        """Token ids ``(N, L)``, L up to the context length, to ``(N, L, Wt)`` with positions."""
        ids = ids.to(self.clip.token_embedding.weight.device)
        return self.clip.token_embedding(ids) + self.clip.positional_embedding[: ids.shape[1]]

    def run_blocks(
        self,
        tower: Literal["visual", "text"],
        x: Tensor,
        prompts: Tensor | None = None,
        at: int = 1,
        mask: Tensor | None = None,
        read: Tensor | None = None,
        layers: slice = slice(None),
    ) -> Tensor:
        """All blocks of a tower, or only ``layers``, over ``x (B, S, W)``: ``(B, S + P, W)``.

        ``prompts (D, P, W)`` or ``(D, B, P, W)``: in front of layer l < D the P tokens at index
        ``at`` are set to ``prompts[l]`` (inserted at layer 0, replaced below); after layer D - 1
        they go on as ordinary tokens. What a replaced prompt would have become is not computed.

        ``mask``: additive, float, 0 or -inf, broadcastable to ``(S + P, S + P)``; row looks at
        column. The text tower adds its causal mask.

        ``read``: positions in ``x``, ``(R,)`` or ``(B, R)``, whose outputs are wanted; the result
        is then ``(B, R, W)`` and the last layer computes nothing else.
        """
        if tower == "visual":
            self._check_tokens()
        depth, length = (0, 0) if prompts is None else (len(prompts), prompts.shape[-2])
        transformer = self.clip.visual.transformer if tower == "visual" else self.clip.transformer
        blocks = list(transformer.resblocks)[layers]
        if depth > len(blocks):
            raise PedbenchError(
                f"prompts for {depth} layers, but the {tower} tower of {self.name} has "
                f"{len(blocks)}: choose a depth of at most {len(blocks)}"
            )
        total = x.shape[1] + length
        mask = _mask(mask, total, x, causal=tower == "text")
        own = torch.arange(total, device=x.device)  # rows of x among all tokens
        own = torch.cat([own[:at], own[at + length :]])
        for layer, block in enumerate(blocks):
            last = layer == len(blocks) - 1
            here = prompts[layer] if prompts is not None and layer < depth else None
            if here is not None and layer == depth - 1 and not (last and read is not None):
                x, here = insert(x, here, at), None
            wanted = read if last else None
            if wanted is not None and x.shape[1] == total:
                wanted = own[wanted]
            x = step(block, x, _rows(mask, here, own, read if last else None), here, at, wanted)
        return x

    def project_image(self, tokens: Tensor, ln_post: bool = True) -> Tensor:
        """``(..., Wv)`` to the joint space, ``(..., E)``."""
        self._check_tokens()
        return (self.clip.visual.ln_post(tokens) if ln_post else tokens) @ self.clip.visual.proj

    def project_text(self, tokens: Tensor) -> Tensor:
        """``(..., Wt)`` to the joint space, ``(..., E)``."""
        return self.clip.ln_final(tokens) @ self.clip.text_projection

    def encode_image(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to features of the CLS token or the attention pool, ``(B, E)``, not
        normalised."""
        if not self.tokens:
            self._check_size(images)
            return self.clip.visual(images)
        x = self.embed_image(images)
        cls = self.run_blocks("visual", x, read=torch.zeros(1, dtype=torch.long, device=x.device))
        return self.project_image(cls[:, 0])

    def image_features(
        self, images: Tensor, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features at three depths, as CLIP-ReID reads them: the CLS token before the last block
        ``(B, Wv)``, behind it and the last norm ``(B, Wv)``, and projected ``(B, E)``.

        Of a ResNet: the means of the last two stages' maps, ``(B, Wv / 2)`` and ``(B, Wv)``, and
        the attention pool's feature. ``shift``: see `embed_image`; a ResNet has none.
        """
        if self.tokens:
            x = self.embed_image(images, shift)
            x = self.run_blocks("visual", x, layers=slice(-1))
            cls = torch.zeros(1, dtype=torch.long, device=x.device)
            out = self.run_blocks("visual", x, read=cls, layers=slice(-1, None))[:, 0]
            normed = self.clip.visual.ln_post(out)
            return x[:, 0], normed, self.project_image(normed, ln_post=False)
        self._check_size(images)
        visual = self.clip.visual
        early = visual.layer3(visual.layer2(visual.layer1(visual.stem(images))))
        late = visual.layer4(early)
        return early.mean((2, 3)), late.mean((2, 3)), visual.attnpool(late)

    def encode_text(
        self,
        text: Tensor,
        eot: Tensor | None = None,
        prompts: Tensor | None = None,
        at: int = 1,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Features of the end-of-text token, ``(N, E)``, not normalised.

        ``text``: token ids ``(N, L)``, or embeddings with positions ``(N, L, Wt)`` together with
        ``eot (N,)``, the index of end-of-text. ``prompts``, ``at``, ``mask``: see `run_blocks`.
        """
        if eot is None:
            eot = text.argmax(-1)
        x = self.embed_text(text) if not text.is_floating_point() else text
        tokens = self.run_blocks("text", x, prompts, at, mask, read=eot.to(x.device)[:, None])
        return self.project_text(tokens[:, 0])


def _mask(mask: Tensor | None, total: int, x: Tensor, causal: bool) -> Tensor | None:
    """The caller's mask as ``(total, total)``, with the causal one added on demand."""
    if mask is not None:
        if not mask.is_floating_point():
            raise TypeError(f"masks are additive floats (0 or -inf), got {mask.dtype}")
        mask = mask.to(x).expand(total, total)
    if causal:
        future = torch.full((total, total), -torch.inf, dtype=x.dtype, device=x.device).triu(1)
        mask = future if mask is None else mask + future
    return mask


def _rows(
    mask: Tensor | None, prompts: Tensor | None, own: Tensor, read: Tensor | None
) -> Tensor | None:
    """The rows of ``mask`` that belong to the tokens which come out of a layer."""
    if mask is None or (prompts is None and read is None):
        return mask
    if read is None or read.ndim == 1:
        return mask[own if read is None else own[read]]
    return mask[own[read]].unsqueeze(1)  # of all heads


def _refit(
    visual: Any, size: tuple[int, int], stride: int | None, interpolation: Interpolation
) -> tuple[int, int]:
    """Give a vision transformer another image size and stride; returns its grid.

    open_clip compares only the number of patches, so it would keep the positions of an 8 x 8
    grid on a 16 x 4 one, and takes every old grid for square.
    """
    patch = tuple(visual.patch_size)
    steps = patch if stride is None else (stride, stride)
    if not all(1 <= step <= edge for step, edge in zip(steps, patch, strict=True)):
        raise PedbenchError(
            f"patch_stride {stride}: pixels between patches of {patch} would go unseen; choose 1 "
            f"to {min(patch)}"
        )
    spare = [s - p for s, p in zip(size, patch, strict=True)]
    if min(spare) < 0 or (steps == patch and any(s % p for s, p in zip(size, patch, strict=True))):
        raise PedbenchError(
            f"image_size {size} is no multiple of the patch {patch}: choose a height and width "
            "that are"
        )
    grid = (spare[0] // steps[0] + 1, spare[1] // steps[1] + 1)
    _interpolate(visual, tuple(visual.grid_size), grid, interpolation)
    visual.conv1.stride, visual.image_size, visual.grid_size = steps, size, grid
    return grid


def _refit_resnet(
    visual: Any, size: tuple[int, int], stride: int, interpolation: Interpolation
) -> tuple[int, int]:
    """Give a ResNet another image size and last stride; returns its attention pool's grid."""
    if stride not in _STRIDES:
        raise PedbenchError(
            f"patch_stride {stride}: the last cells of a ResNet lie 32 pixels apart, or 16 if its "
            "last stage does not stride; choose one of these"
        )
    if min(size) < stride or size[0] % stride or size[1] % stride:
        raise PedbenchError(
            f"image_size {size} is no multiple of the ResNet's stride {stride}: choose a height "
            "and width that are"
        )
    edge = visual.image_size // _STRIDES[0]
    grid = (size[0] // stride, size[1] // stride)
    _interpolate(visual.attnpool, (edge, edge), grid, interpolation)
    if stride != _STRIDES[0]:  # the stage strides by its first block's average pools
        visual.layer4[0].avgpool = visual.layer4[0].downsample[0] = nn.Identity()
    return grid


def _interpolate(
    module: Any, old: tuple[int, int], new: tuple[int, int], interpolation: Interpolation
) -> None:
    """The positions of ``module``, one and then those of the grid ``old``, for the grid ``new``."""
    if new == old:
        return
    positions = module.positional_embedding.detach().float()
    grid = positions[1:].T.reshape(1, -1, *old)
    grid = F.interpolate(grid, new, mode=interpolation, antialias=interpolation == "bicubic")
    module.positional_embedding = nn.Parameter(torch.cat([positions[:1], grid.flatten(2)[0].T]))


def _load(clip: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state of both towers, or of one of them. Raises PedbenchError if it does not fit."""
    given = {name.startswith("visual.") for name in state if name != "logit_scale"}
    try:
        missing, unexpected = clip.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise PedbenchError(f"the weights {source} do not fit the model: {error}") from error
    missing = [m for m in missing if m != "logit_scale" and m.startswith("visual.") in given]
    if missing or unexpected:
        raise PedbenchError(
            f"the weights {source} do not fit the model: missing {missing[:5]}, "
            f"unexpected {unexpected[:5]}; give a checkpoint of this very model"
        )


def _sha256(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {tuple(state[name].shape)}".encode())
        digest.update(state[name].detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def tiny_config() -> dict[str, Any]:
    """open_clip's model config of the tiny CLIP."""
    return json.loads(resource(f"{TINY}/model.json").read_text())


def tiny_vocabulary() -> list[int]:
    """Original BPE ids the tiny CLIP knows, ascending."""
    return json.loads(resource(f"{TINY}/vocabulary.json").read_text())


def load_backbone(
    name: str,
    weights: str | Path | None = None,
    cache_dir: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    stride: int | None = None,
    interpolation: Interpolation = "bicubic",
) -> Backbone:
    """A frozen CLIP: ``tiny_clip``, one of `contracts.OPENAI`, or ``random:`` before such a name.

    ``weights``: a checkpoint file to use instead of the shipped or the downloaded one.
    ``cache_dir``: where open_clip keeps downloads. ``image_size``, ``stride`` and
    ``interpolation``: see `Backbone`; None is the pretraining's.

    Raises PedbenchError on an unknown name, on missing, corrupt or unfitting weights, and for a
    size or stride that the image tower cannot have.
    """
    model = name.removeprefix(_RANDOM)
    if model not in BACKBONES:
        near = difflib.get_close_matches(model, BACKBONES, 1, cutoff=0.3)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        known = ", ".join(BACKBONES)
        raise PedbenchError(f"unknown backbone '{name}' (known: {known}{hint})")
    if weights is not None and not Path(weights).is_file():
        raise PedbenchError(f"weights of {name}: there is no file {weights}; correct the path")
    grid: Any = {"image_size": image_size, "stride": stride, "interpolation": interpolation}
    if model == TINY:
        state = None if name != model else _tiny_state(weights)
        return Backbone.from_config(
            tiny_config(), state, name=name, vocabulary=tiny_vocabulary(), **grid
        )
    if name != model:
        from open_clip import get_model_config

        config = get_model_config(OPENAI[model])
        assert config is not None, f"open_clip no longer has {model}"
        return Backbone.from_config(config, name=name, **grid)
    return Backbone(_openai_clip(model, weights, cache_dir), name, **grid)


def shape_only(name: str, image_size: tuple[int, int] | None = None) -> Backbone:
    """The backbone ``name`` on the meta device: shapes without values, at once and without memory.
    ``image_size``: see `Backbone`.

    Methods built on it under ``torch.device("meta")`` can be counted but not run. Raises
    PedbenchError on an unknown name.
    """
    with torch.device("meta"):
        backbone = load_backbone(_RANDOM + name, image_size=image_size)
    backbone.name = name
    return backbone


def _tiny_state(weights: str | Path | None) -> dict[str, Tensor]:
    """Weights of the tiny CLIP, the shipped ones if ``weights`` names no others."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(weights) if weights is not None else shipped()
    try:
        return load(path.read_bytes())
    except SafetensorError as error:
        raise PedbenchError(f"{path} is no readable safetensors file ({error})") from error


def _openai_clip(name: str, weights: str | Path | None, cache_dir: str | Path | None) -> Any:
    """OpenAI's CLIP by open_clip's own loading: given file, cache, download. Nothing of a file is
    run, but of OpenAI's own archive, which is known by its checksum."""
    import open_clip

    weights = weights or cached(name, cache_dir)
    if weights is None:
        require_hub(name, cache_dir)
    else:
        _refuse_programs(name, Path(weights))
    try:
        return open_clip.create_model(
            OPENAI[name],
            pretrained="openai" if weights is None else str(weights),
            cache_dir=None if cache_dir is None else str(cache_dir),
            weights_only=weights is None or not _is_torchscript(Path(weights)),
        )
    except Exception as error:  # open_clip, hub, torch and safetensors each raise their own
        source = weights or "what was downloaded"
        raise PedbenchError(
            f"{source} holds no readable weights of {name} ({type(error).__name__}: {error}): "
            "remove the file and fetch it again, or give a checkpoint of this very model"
        ) from error


def _is_torchscript(path: Path) -> bool:
    """OpenAI's original ``.pt`` files are TorchScript archives, not pickled state dicts."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(Path(entry).name == "constants.pkl" for entry in archive.namelist())


def _refuse_programs(name: str, path: Path) -> None:
    """Raises PedbenchError for a TorchScript archive, whose programs run when it is loaded, unless
    it is the one that OpenAI released; the address of that holds its sha256."""
    from open_clip.pretrained import get_pretrained_cfg

    if _is_torchscript(path):
        released = get_pretrained_cfg(OPENAI[name], "openai")["url"].split("/")[-2]
        found = file_sha256(path)
        if found != released:
            raise PedbenchError(
                f"{path}: holds programs (TorchScript) and is not the file that OpenAI released as "
                f"{name} (sha256 {found[:12]}..., wanted {released[:12]}...), so it was not "
                "loaded: give the released file, or tensors alone, as safetensors"
            )
