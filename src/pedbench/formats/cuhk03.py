"""``python -m pedbench.formats.cuhk03 cuhk-03.mat OUT``: the pictures inside CUHK03's MATLAB file.

They become ``OUT/images_detected/`` and ``OUT/images_labeled/``, as ``1_001_1_01.png``: pair of
cameras, row, camera of the pair, number. Of the ten pictures of a row the first five are of camera
1. These are the names that the files of the new protocol list.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from pedbench.contracts import PedbenchError

FORMS = ("detected", "labeled")
PER_CAMERA = 5


def extract(mat: Path, out: Path) -> int:
    """Write the pictures; returns how many. Raises PedbenchError when ``mat`` is not that file."""
    import h5py

    count = 0
    try:
        with h5py.File(mat) as file:
            for form in FORMS:
                folder = out / f"images_{form}"
                folder.mkdir(parents=True, exist_ok=True)
                pairs = np.asarray(file[form]).ravel()
                for pair, reference in enumerate(tqdm(pairs, desc=form), start=1):
                    # A file of MATLAB's holds every array transposed.
                    rows = np.asarray(file[reference]).T
                    for (row, number), entry in np.ndenumerate(rows):
                        pixels = np.asarray(file[entry])
                        if pixels.ndim == 3:  # else there are fewer than five
                            view = 1 + number // PER_CAMERA
                            name = f"{pair}_{row + 1:03d}_{view}_{number + 1:02d}.png"
                            Image.fromarray(pixels.T).save(folder / name)
                            count += 1
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise PedbenchError(
            f"{mat}: not CUHK03's cuhk-03.mat ({error}); it is truncated or another file: obtain "
            "it again"
        ) from error
    return count


if __name__ == "__main__":
    try:
        print(extract(Path(sys.argv[1]), Path(sys.argv[2])), "pictures")
    except PedbenchError as error:
        sys.exit(f"ERROR {error}")
