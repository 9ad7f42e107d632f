"""One wrapper over open_clip's CLIP: what prompt methods need, without a copy of its code.

open_clip builds and loads the model and runs every block; here are only the loop over the blocks
(so that prompts, masks and shortened contexts can enter) and the split attention.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedbench.contracts import BACKBONES, OPENAI, TINY, PedbenchError
from pedbench.nn.blocks import Attention, insert, merge_qkv, step
from pedbench.nn.tokenizer import Tokenizer
from pedbench.paths import resource

_RANDOM = "random:"
_STRIDE = 32  # pixels between the last cells of CLIP's ResNets


class Backbone(nn.Module):
    """A CLIP (`open_clip.CLIP` with a vision transformer or a ResNet), float32, all frozen.

    Sizes: ``image_size`` and ``patch`` are (height, width) in pixels, ``grid`` is (rows, columns)
    of patches, ``mean``/``std`` normalise RGB in [0, 1]. In the shapes below N is the number of
    patches, Wv/Wt the tower's width, E ``embed_dim``.

    ``tokens``: the image tower is a sequence of patch tokens that prompts can join. A ResNet's is
    not: it has ``visual_layers`` 0, its ``patch`` is the stride, and ``grid``, ``visual_width``
    and ``visual_heads`` are those of its attention pool.
    """

    clip: Any  # open_clip's model

    def __init__(
        self,
        clip: Any,
        name: str,
        vocabulary: Sequence[int] | None = None,
        image_size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
        from open_clip.modified_resnet import ModifiedResNet

        visual = clip.visual
        self.name = name
        self.tokens = not isinstance(visual, ModifiedResNet)
        if self.tokens:
            if image_size is not None:
                _resize_positions(visual, image_size)
            self.image_size: tuple[int, int] = tuple(visual.image_size)
            self.patch: tuple[int, int] = tuple(visual.patch_size)
            self.grid: tuple[int, int] = tuple(visual.grid_size)
            self.visual_width: int = visual.transformer.width
            self.visual_layers: int = visual.transformer.layers
            self.visual_heads: int = visual.transformer.resblocks[0].attn.num_heads
        else:
            self.image_size = (visual.image_size, visual.image_size)
            if image_size not in (None, visual.image_size, self.image_size):
                raise PedbenchError(
                    f"image_size {image_size}: the attention pool of {name} has positions for "
                    f"{self.image_size} pixels (height, width) only; leave image_size out, or "
                    "choose a vision transformer"
                )
            self.patch = (_STRIDE, _STRIDE)
            self.grid = (visual.image_size // _STRIDE, visual.image_size // _STRIDE)
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
        seed: int = 0,
    ) -> Backbone:
        """A CLIP of open_clip's model ``config`` with the weights ``state`` (names of the official
        CLIP). A tower of which ``state`` holds nothing keeps random weights drawn from ``seed``.

        Raises PedbenchError if ``state`` does not fit.
        """
        from open_clip.model import CLIP

        if vocabulary is not None:
            config = config | {"text_cfg": config["text_cfg"] | {"vocab_size": len(vocabulary)}}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            clip = CLIP(**config)
        if state is not None:
            _load(clip, state, name)
        return cls(clip, name, vocabulary, image_size)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Turns texts into ids of this model's vocabulary."""
        return Tokenizer(self._vocabulary, self.context_length)

    @cached_property
    def weights_sha256(self) -> str:
        """Digest of all weights, taken when first asked: ask before any of them trains."""
        return _sha256(self.clip_state())

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
            other = ", or load it with another image_size" if self.tokens else ""
            raise PedbenchError(
                f"{self.name} reads images of {self.image_size} pixels (height, width), got "
                f"{tuple(images.shape[-2:])}: resize them{other}"
            )

    def _check_tokens(self) -> None:
        if not self.tokens:
            raise PedbenchError(
                f"the image tower of {self.name} is a ResNet without patch tokens: choose a "
                "backbone with a vision transformer, or use encode_image alone"
            )

    def embed_image(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to CLS and patches with positions, normalised: ``(B, 1 + N, Wv)``.

        Like everything on the tokens of the image tower, raises PedbenchError without ``tokens``.
        """
        self._check_tokens()
        self._check_size(images)
        return self.clip.visual._embeds(images)

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
    ) -> Tensor:
        """All blocks of a tower over ``x (B, S, W)``: ``(B, S + P, W)``.

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
        blocks = list(transformer.resblocks)
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


def _resize_positions(visual: Any, image_size: int | tuple[int, int]) -> None:
    """Interpolate (bicubic) the positions of the patches to ``image_size``'s grid.

    open_clip compares only the number of patches, so it would keep the positions of an 8 x 8
    grid on a 16 x 4 one, and takes every old grid for square.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    rows, columns = (height // visual.patch_size[0], width // visual.patch_size[1])
    if (rows * visual.patch_size[0], columns * visual.patch_size[1]) != (height, width):
        raise PedbenchError(
            f"image_size {(height, width)} is no multiple of the patch {visual.patch_size}: "
            "choose a height and width that are"
        )
    old, positions = visual.grid_size, visual.positional_embedding.detach().float()
    visual.image_size, visual.grid_size = (height, width), (rows, columns)
    if (rows, columns) == old:
        return
    grid = positions[1:].T.reshape(1, -1, *old)
    grid = F.interpolate(grid, (rows, columns), mode="bicubic", antialias=True)
    positions = torch.cat([positions[:1], grid.flatten(2)[0].T])
    visual.positional_embedding = nn.Parameter(positions)


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
) -> Backbone:
    """A frozen CLIP: ``tiny_clip``, one of `contracts.OPENAI`, or ``random:`` before such a name.

    ``weights``: a checkpoint file to use instead of the shipped or the downloaded one.
    ``cache_dir``: where open_clip keeps downloads. ``image_size`` in pixels, an edge or
    (height, width): positions are interpolated, those of ``RN50`` cannot be.

    Raises PedbenchError on an unknown name and on missing, corrupt or unfitting weights.
    """
    model = name.removeprefix(_RANDOM)
    if model not in BACKBONES:
        near = difflib.get_close_matches(model, BACKBONES, 1, cutoff=0.3)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        known = ", ".join(BACKBONES)
        raise PedbenchError(f"unknown backbone '{name}' (known: {known}{hint})")
    if weights is not None and not Path(weights).is_file():
        raise PedbenchError(f"weights of {name}: there is no file {weights}; correct the path")
    if model == TINY:
        state = None if name != model else _tiny_state(weights)
        return Backbone.from_config(
            tiny_config(), state, name=name, vocabulary=tiny_vocabulary(), image_size=image_size
        )
    if name != model:
        from open_clip import get_model_config

        config = get_model_config(OPENAI[model])
        assert config is not None, f"open_clip no longer has {model}"
        return Backbone.from_config(config, name=name, image_size=image_size)
    return Backbone(_openai_clip(model, weights, cache_dir), name, image_size=image_size)


def shape_only(name: str) -> Backbone:
    """The backbone ``name`` on the meta device: shapes without values, at once and without memory.

    Methods built on it under ``torch.device("meta")`` can be counted but not run. Raises
    PedbenchError on an unknown name.
    """
    with torch.device("meta"):
        backbone = load_backbone(_RANDOM + name)
    backbone.name = name
    return backbone


def _tiny_state(weights: str | Path | None) -> dict[str, Tensor]:
    """Weights of the tiny CLIP; the shipped file must be the one its checksum was taken of."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(weights) if weights is not None else resource(f"{TINY}/{TINY}.safetensors")
    data = path.read_bytes()
    if weights is None:
        expected = resource(f"{TINY}/{TINY}.sha256").read_text().split()[0]
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise PedbenchError(
                f"the shipped checkpoint {path} is corrupt (sha256 {found[:12]}..., expected "
                f"{expected[:12]}...): restore it with 'git checkout -- {path.name}' in its folder"
            )
    try:
        return load(data)
    except SafetensorError as error:
        raise PedbenchError(f"{path} is no readable safetensors file ({error})") from error


def _openai_clip(name: str, weights: str | Path | None, cache_dir: str | Path | None) -> Any:
    """OpenAI's CLIP by open_clip's own loading: given file, cache, download."""
    import open_clip

    weights = weights or _cached(name, cache_dir)
    if weights is None:
        _require_hub(name, cache_dir)
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


def _cached(name: str, cache_dir: str | Path | None) -> str | None:
    """The file of an earlier download; found without asking the hub, hence offline too."""
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
    from open_clip.pretrained import get_pretrained_cfg

    repository = get_pretrained_cfg(OPENAI[name], "openai")["hf_hub"].rstrip("/")
    for file in (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME):
        found = try_to_load_from_cache(repository, file, cache_dir)
        if isinstance(found, str):
            return found
    return None


def _require_hub(name: str, cache_dir: str | Path | None) -> None:
    """Fail at once, where the hub's client would retry for most of a minute."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE

    try:
        if HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        urllib.request.urlopen(ENDPOINT, timeout=10).close()
    except urllib.error.HTTPError:
        pass  # somebody answers
    except OSError as error:
        raise PedbenchError(
            f"the weights of {name} are not in the cache {cache_dir or HF_HUB_CACHE}, and "
            f"{ENDPOINT} cannot be reached to fetch them ({error}): run once with a connection, "
            "copy the cache of a machine that has them, or name a checkpoint file in the config: "
            f"checkpoints: {{{name}: /path/to/file}}"
        ) from error


def _is_torchscript(path: Path) -> bool:
    """OpenAI's original ``.pt`` files are TorchScript archives, not pickled state dicts."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(Path(entry).name == "constants.pkl" for entry in archive.namelist())
