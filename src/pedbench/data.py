"""From a manifest to batches: pictures are decoded once, augmentation follows from the seed."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pedbench.manifest import Manifest, decode

IN_MEMORY_BYTES = 2 * 1024**3  # resized uint8 pictures up to this size are kept


def resize(picture: Image.Image, size: tuple[int, int], how: str) -> np.ndarray:
    """``(H, W, 3)`` uint8. ``pad_square`` first pads with black to a square (PromptPAR, section
    IV-B); ``stretch`` changes the aspect ratio if it must."""
    height, width = size
    if how == "pad_square" and picture.width != picture.height:
        side = max(picture.size)
        square = Image.new("RGB", (side, side))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        picture = square
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture)


class Images:
    """The pictures of a manifest, decoded and resized; index with positions.

    Kept in memory as uint8 when they fit, else decoded at each use.
    """

    def __init__(self, manifest: Manifest, size: tuple[int, int], how: str, threads: int = 1):
        self.paths = [Path(manifest.root) / image for image in manifest.rows["image"]]
        self.size, self.how = size, how
        self.pool = ThreadPoolExecutor(threads)
        fits = len(self.paths) * size[0] * size[1] * 3 <= IN_MEMORY_BYTES
        self.kept = self._decode(range(len(self.paths))) if fits else None

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, positions: Tensor) -> Images:
        """Only the pictures at ``positions``, in that order."""
        taken = copy.copy(self)
        taken.paths = [self.paths[i] for i in positions.tolist()]
        taken.kept = None if self.kept is None else self.kept[positions]
        return taken

    def __getitem__(self, positions: Tensor) -> Tensor:
        """``(B,)`` positions -> ``(B, 3, H, W)`` uint8."""
        if self.kept is not None:
            return self.kept[positions]
        return self._decode(positions.tolist())

    def _decode(self, positions) -> Tensor:
        load = lambda i: resize(decode(self.paths[i]), self.size, self.how)  # noqa: E731
        pictures = np.stack(list(self.pool.map(load, positions)))
        return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def normalise(pictures: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 ``(B, 3, H, W)`` -> float32, ``(x / 255 - mean) / std`` per channel."""
    shape = (1, 3, 1, 1)
    scale = torch.tensor(std, device=pictures.device).view(shape) * 255
    shift = torch.tensor(mean, device=pictures.device).view(shape) * 255
    return (pictures.float() - shift) / scale


def augment(pictures: Tensor, flip: bool, crop_padding: int, generator: torch.Generator) -> Tensor:
    """Random horizontal flip, and a random crop after padding with black, per image."""
    count, _, height, width = pictures.shape
    if flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
        pictures = torch.where(mirrored.view(-1, 1, 1, 1), pictures.flip(3), pictures)
    if crop_padding:
        padded = F.pad(pictures, (crop_padding,) * 4)
        offsets = torch.randint(0, 2 * crop_padding + 1, (count, 2), generator=generator).tolist()
        crops = [
            p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, offsets, strict=True)
        ]
        pictures = torch.stack(crops)
    return pictures


def labelled(count: int, fraction: float, seed: int) -> Tensor:
    """Positions, ascending, of the share ``fraction`` of ``count`` images whose labels are used:
    at least one. With one ``seed``, a smaller share is part of every larger one."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    order = torch.randperm(count, generator=generator)
    return order[: max(1, round(fraction * count))].sort().values


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of ``count`` images in ``epoch``: a function of seed and epoch alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(count, generator=generator)
