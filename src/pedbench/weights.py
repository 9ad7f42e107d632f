"""The checkpoints of backbones as files: found, downloaded, and their weights' digest, all without
torch, so that a login node can do it."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from pedbench.addresses import shown
from pedbench.contracts import TINY, PedbenchError
from pedbench.files import digest, file_sha256
from pedbench.paths import resource

# Hugging Face's copies of OpenAI's checkpoints, those that open_clip names
REPOSITORIES: Mapping[str, str] = {
    "ViT-B-16": "timm/vit_base_patch16_clip_224.openai",
    "ViT-L-14": "timm/vit_large_patch14_clip_224.openai",
    "RN50": "timm/resnet50_clip.openai",
}
KINDS = {"F64", "F32", "F16", "I64"}  # of tensors, in the words of safetensors
TENSORS, PICKLED = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"  # files in them
LAYOUTS: Mapping[str, str] = {  # digests of name -> shape of every tensor that a model has
    TINY: "099968675308505b49bce7880cff63c9c678523a4182ea90090b11be565b88f7",
    "ViT-B-16": "65be31c0f5b1aad78985ee9d5acad1a36e9d474398e1a83ca2a295d59265bde9",
    "ViT-L-14": "25028e0889e4ffa08ac1f430bc987ee40d675fb8af29a45495dbfbd5d42da562",
    "RN50": "5fcd0f77fe56256c8e5e4284f08457eb6baf8643383b7428353f0b8448a214e7",
}


def checkpoint(name: str, cache_dir: str | Path | None = None) -> Path:
    """The file of backbone ``name``: shipped, of an earlier download, or downloaded now, going on
    where an earlier download was stopped. ``cache_dir``: where downloads are kept, None: Hugging
    Face's own.

    Raises PedbenchError when there is none to be had, or when it is damaged.
    """
    if name == TINY:
        return shipped()
    found = cached(name, cache_dir)
    return found or _downloaded(name, cache_dir)


def shipped() -> Path:
    """The tiny CLIP's. Raises PedbenchError unless it is the file its checksum was taken of."""
    path = resource(f"{TINY}/{TINY}.safetensors")
    expected = resource(f"{TINY}/{TINY}.sha256").read_text().split()[0]
    found = file_sha256(path)
    if found != expected:
        raise PedbenchError(
            f"the shipped checkpoint {path} is corrupt (sha256 {found[:12]}..., expected "
            f"{expected[:12]}...): restore it with 'git checkout -- {path.name}' in its folder"
        )
    return path


def cached(name: str, cache_dir: str | Path | None = None) -> Path | None:
    """The file of an earlier download; found without asking the hub, hence offline too."""
    from huggingface_hub import try_to_load_from_cache

    for file in (TENSORS, PICKLED):
        found = try_to_load_from_cache(REPOSITORIES[name], file, cache_dir)
        if isinstance(found, str):
            return Path(found)
    return None


def require_hub(name: str, cache_dir: str | Path | None = None) -> None:
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
            f"{shown(ENDPOINT)} cannot be reached to fetch them ({error}): run once with a "
            "connection, copy the cache of a machine that has them, or name a checkpoint file in "
            "the config: "
            f"checkpoints: {{{name}: /path/to/file}}"
        ) from error


def _downloaded(name: str, cache_dir: str | Path | None) -> Path:
    """The hub names a large file by its sha256, and so does its client in the cache."""
    from huggingface_hub import hf_hub_download

    require_hub(name, cache_dir)
    repository = REPOSITORIES[name]
    try:
        path = Path(hf_hub_download(repository, TENSORS, cache_dir=cache_dir))
    except Exception as error:  # of the hub's client, of httpx, of the disk
        raise PedbenchError(
            f"{TENSORS} of {repository} could not be downloaded ({type(error).__name__}: {error}): "
            "run the same command again, it goes on where it was stopped; or name a checkpoint "
            f"file in the config: checkpoints: {{{name}: /path/to/file}}"
        ) from error
    expected, found = path.resolve().name, file_sha256(path)
    if found != expected:
        path.resolve().unlink()  # else it would be found again
        path.unlink()
        raise PedbenchError(
            f"{TENSORS} of {repository} was damaged on its way (sha256 {found[:12]}..., expected "
            f"{expected[:12]}...) and deleted: run the same command again"
        )
    return path


def weights_sha256(name: str, path: Path) -> str | None:
    """The digest of all weights in ``path``, that of `nn.backbone.Backbone.weights_sha256`, taken
    tensor by tensor. None for a file that is no safetensors with the tensors of backbone ``name``
    and no others, of kinds that numpy knows."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            kinds = {entry.get_dtype() for entry in slices.values()}
            layout = digest({key: entry.get_shape() for key, entry in slices.items()})
            if layout != LAYOUTS[name] or not kinds <= KINDS:
                return None
            found = hashlib.sha256()
            for key in sorted(slices):
                tensor = file.get_tensor(key)
                floating = tensor.dtype.kind == "f"
                found.update(f"{key} {tensor.shape}".encode())
                found.update((tensor.astype("float32") if floating else tensor).tobytes())
    except (SafetensorError, OSError):
        return None
    return found.hexdigest()
