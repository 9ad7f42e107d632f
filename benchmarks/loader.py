"""Images per second of the prepared store against decoding the original files.

Writes pictures of typical sizes (JPEG and PNG) with the texture of noise over a gradient, prepares
them as the paper does (padded to a square, 224 x 224), and reads random batches both ways in one
run, alternating, so that the ratio does not depend on what else the machine does:

    python benchmarks/loader.py [--images 512] [--threads 2]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from torch import Tensor

from pedbench.data import Load, decoder
from pedbench.manifest import Manifest
from pedbench.prepared import Prepared, prepare

SIZE, HOW, BATCH, ROUNDS = (224, 224), "pad_square", 32, 3
KINDS = {  # of which height and width, in pixels
    "JPEG 256 x 128": ("jpg", 256, 128),
    "PNG 256 x 128": ("png", 256, 128),
    "JPEG 1024 x 683 (a scene)": ("jpg", 683, 1024),
}


def write_pictures(folder: Path, images: int, ending: str, height: int, width: int) -> Manifest:
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 200, height)[:, None, None]
    names = [f"{number:05d}.{ending}" for number in range(images)]
    for name in names:
        picture = slope + rng.normal(0, 12, (height, width, 3))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / name)
    return Manifest("benchmark", folder, (), "benchmark", pd.DataFrame({"image": names}))


def rate(load: Load, order: np.ndarray) -> float:
    """Images per second over one epoch in ``order``."""
    started = time.perf_counter()
    seen: list[Tensor] = [load(order[i : i + BATCH]) for i in range(0, len(order), BATCH)]
    return sum(map(len, seen)) / (time.perf_counter() - started)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore
    options.add_argument("--images", type=int, default=512)
    options.add_argument("--threads", type=int, default=2, help="that decode")
    given = options.parse_args()
    print(f"{given.images} images, {given.threads} threads, images per second, median")
    for kind, (ending, height, width) in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            manifest = write_pictures(Path(folder), given.images, ending, height, width)
            index = Path(folder) / "x.json"
            prepare(manifest, SIZE, HOW, given.threads, index)
            files = decoder(manifest, SIZE, HOW, given.threads)
            store = Prepared(index, manifest, SIZE, HOW)
            order = np.random.default_rng(1).permutation(given.images)
            rates = np.array([(rate(files, order), rate(store.load, order)) for _ in range(ROUNDS)])
        decoded, prepared = np.median(rates, axis=0)
        ratio = np.median(rates[:, 1] / rates[:, 0])
        print(f"{kind:28} files {decoded:8.0f}   prepared {prepared:8.0f}   ratio {ratio:6.1f}")


if __name__ == "__main__":
    main()
