"""From a manifest to batches: pictures are decoded once, augmentation follows from the seed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pedbench.manifest import Manifest, decode

IN_MEMORY_BYTES = 2 * 1024**3  # resized uint8 pictures up to this size are kept


def resize(picture: Image.Image, size: tuple[int, int], how: str) -> np.ndarray:
    """``(H, W, 3)`` uint8. ``stretch`` changes the aspect ratio if it must; ``pad_square`` first
    pads with black to a square (PromptPAR, section IV-B), an odd pixel to the right or bottom;
    ``pad_square_released`` does it as its authors' code: `released_padding`."""
    height, width = size
    filter = Image.Resampling.BICUBIC
    if how == "pad_square" and picture.width != picture.height:
        side = max(picture.size)
        square = Image.new("RGB", (side, side))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        picture = square
    if how == "pad_square_released":
        picture, filter = released_padding(picture, height), Image.Resampling.BILINEAR
    if picture.size != (width, height):
        picture = picture.resize((width, height), filter)
    return np.asarray(picture)


def released_padding(picture: Image.Image, side: int) -> Image.Image:
    """The padding of PromptPAR's released code (a comment in its dataset class): scaled so that
    the height is ``side``, bilinear without antialiasing, then black at the left and right. Sizes
    and margins are truncated, so most results are one or two columns too narrow; a picture that is
    wider than high, or whose scaled height exceeds ``side`` by rounding, stays as it is."""
    factor = picture.height / side
    height, width = picture.height / factor, picture.width / factor
    if height > side or width > side:
        return picture
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    scaled = F.interpolate(pixels, (int(height), int(width)), mode="bilinear", align_corners=False)
    top, left = int((side - height) / 2), int((side - width) / 2)
    margins = (left, left, top, top + (side - 1 == int(height)))
    padded = F.pad(scaled, margins)[0].round().clamp(0, 255).byte()
    return Image.fromarray(padded.permute(1, 2, 0).numpy())


Load = Callable[[np.ndarray], Tensor]  # positions in a manifest -> (B, 3, H, W) uint8


class Images:
    """The pictures of a manifest, resized; index with positions.

    They come from ``load``, whose positions are those of the whole manifest, and are kept in memory
    if they fit, else loaded at each use.
    """

    def __init__(self, load: Load, positions: np.ndarray, size: tuple[int, int]) -> None:
        self.load, self.positions = load, positions
        fits = len(positions) * size[0] * size[1] * 3 <= IN_MEMORY_BYTES
        self.kept = load(positions) if fits else None

    @classmethod
    def decoded(
        cls, manifest: Manifest, size: tuple[int, int], how: str, threads: int = 1
    ) -> Images:
        """From the picture files."""
        return cls(decoder(manifest, size, how, threads), np.arange(len(manifest.rows)), size)

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, positions: Tensor) -> Images:
        """Only the pictures at ``positions``, in that order."""
        taken = copy.copy(self)
        taken.positions = self.positions[positions.numpy()]
        taken.kept = None if self.kept is None else self.kept[positions]
        return taken

    def __getitem__(self, positions: Tensor) -> Tensor:
        """``(B,)`` positions -> ``(B, 3, H, W)`` uint8."""
        if self.kept is not None:
            return self.kept[positions]
        return self.load(self.positions[positions.numpy()])


def decoder(manifest: Manifest, size: tuple[int, int], how: str, threads: int) -> Load:
    """Decodes the pictures of ``manifest`` (at positions in it) with ``threads``."""
    pictures, pool = manifest.pictures, ThreadPoolExecutor(threads)

    def load(positions: np.ndarray) -> Tensor:
        found = list(pool.map(lambda i: resize(decode(*pictures[i]), size, how), positions))
        return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()

    return load


def normalise(pictures: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 ``(B, 3, H, W)`` -> float32, ``(x / 255 - mean) / std`` per channel."""
    shape = (1, 3, 1, 1)
    scale = torch.tensor(std, device=pictures.device).view(shape) * 255
    shift = torch.tensor(mean, device=pictures.device).view(shape) * 255
    return (pictures.float() - shift) / scale


def augment(
    pictures: Tensor,
    flip: bool,
    crop_padding: int,
    generator: torch.Generator,
    shown: Tensor | None = None,
) -> Tensor:
    """Random horizontal flip, and a random crop after padding with black, per image.

    ``pictures`` are those of a batch that are ``shown (B,)``, bool; it is drawn for the others too,
    so that a picture looks the same whoever shows it. None: all of the batch.
    """
    shown = torch.ones(len(pictures), dtype=torch.bool) if shown is None else shown
    count, (height, width) = len(shown), pictures.shape[2:]
    if flip:
        mirrored = (torch.rand(count, generator=generator) < 0.5)[shown]
        pictures = torch.where(mirrored.view(-1, 1, 1, 1), pictures.flip(3), pictures)
    if crop_padding:
        padded = F.pad(pictures, (crop_padding,) * 4)
        offsets = torch.randint(0, 2 * crop_padding + 1, (count, 2), generator=generator)[shown]
        crops = [
            p[:, y : y + height, x : x + width]
            for p, (y, x) in zip(padded, offsets.tolist(), strict=True)
        ]
        pictures = torch.stack(crops)
    return pictures


def erase(
    images: Tensor,
    probability: float,
    fill: Literal["mean", "pixel"],
    shown: Tensor | None = None,
) -> Tensor:
    """Random erasing (Zhong et al., AAAI 2020) of normalised ``images (B, 3, H, W)``, a box each
    with this probability. Its colour is the mean, as in the strong baseline of Luo et al. (CVPR
    Workshops 2019), or of each ``pixel`` and channel a draw from N(0, 1). Draws from torch's global
    generator, as `augment` does for images that are not ``shown`` as well."""
    from torchvision.transforms.v2 import RandomErasing

    value: Any = "random" if fill == "pixel" else 0
    hide = RandomErasing(probability, scale=(0.02, 0.4), value=value)
    if shown is None:
        return torch.stack([hide(image) for image in images])
    own, blank = iter(images), torch.empty(images.shape[1:])
    every = [hide(next(own) if mine else blank) for mine in shown.tolist()]
    return torch.stack([every[i] for i in shown.nonzero()[:, 0].tolist()])


def labelled(count: int, fraction: float, seed: int) -> Tensor:
    """Positions, ascending, of the share ``fraction`` of ``count`` images whose labels are used:
    at least one. With one ``seed``, a smaller share is part of every larger one."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    order = torch.randperm(count, generator=generator)
    return order[: max(1, round(fraction * count))].sort().values


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of ``count`` images in ``epoch``: a function of seed and epoch alone."""
    return torch.randperm(count, generator=_of_epoch(seed, epoch))


def identity_batches(
    identities: Tensor, persons: int, images: int, seed: int, epoch: int
) -> Tensor:
    """Positions of ``persons`` P times ``images`` K images of each batch of an epoch, ``(steps,
    P * K)``: PK sampling (Hermans et al., "In Defense of the Triplet Loss", section 2), a function
    of seed and epoch alone.

    The images of a person, ``identities (N,)``, are dealt into groups of K; who has fewer than K is
    one group with repetitions. No person is twice in a batch, and the number of steps is that of
    full batches when persons with most groups left go first, the same in every epoch.
    """
    generator = _of_epoch(seed, epoch)
    shuffled = torch.randperm(len(identities), generator=generator)
    left: list[list[Tensor]] = []
    for person in identities.unique():
        own = shuffled[identities[shuffled] == person]
        if len(own) < images:
            more = torch.randint(len(own), (images - len(own),), generator=generator)
            own = torch.cat([own, own[more]])
        left.append(list(own[: len(own) // images * images].split(images)))
    counts = torch.tensor([len(groups) for groups in left])
    batches = []
    while (counts > 0).sum() >= persons:
        chance = torch.rand(len(counts), generator=generator)
        chosen = (counts + chance).topk(persons).indices
        counts[chosen] -= 1
        batches.append(torch.cat([left[i].pop() for i in chosen.tolist()]))
    stacked = torch.stack(batches) if batches else torch.empty(0, persons * images).long()
    return stacked[torch.randperm(len(stacked), generator=generator)]


def _of_epoch(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
