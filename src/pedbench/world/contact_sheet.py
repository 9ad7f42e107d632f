"""``python -m pedbench.world.contact_sheet OUT.png``: one picture that shows all domains."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from pedbench.world.domains import PRETRAIN, TARGET_A, TARGET_B
from pedbench.world.render import render, sample_people


def contact_sheet(people: int = 16, size: tuple[int, int] = (64, 32), zoom: int = 2) -> Image.Image:
    """A row per camera (pre-training, A, B), a column per person; the same people throughout."""
    crowd = sample_people(people, np.random.default_rng(0))
    rows = []
    for number, domain in enumerate((PRETRAIN, TARGET_A, TARGET_B)):
        cameras = np.repeat(np.arange(len(domain.cameras)), people)
        who = np.tile(np.arange(people), len(domain.cameras))
        images, _ = render(crowd, who, cameras, domain, np.random.default_rng([1, number]), size)
        strips = images.reshape(-1, people, *size, 3).transpose(0, 2, 1, 3, 4)
        rows += [strip.reshape(size[0], -1, 3) for strip in strips]
        rows.append(np.full((6, rows[-1].shape[1], 3), 255, dtype=np.uint8))
    sheet = Image.fromarray(np.concatenate(rows[:-1])).quantize(256, dither=Image.Dither.NONE)
    return sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST)


if __name__ == "__main__":
    contact_sheet().save(Path(sys.argv[1]))
