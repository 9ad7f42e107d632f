"""A dataset's pictures, decoded and resized once: one file in place of a hundred thousand.

``{name}.bin`` is uint8 ``(N, 3, H, W)`` in the manifest's order, ``{name}.json`` says of what it
was made and holds a checksum of every chunk of pictures. Jobs map the file into memory and share
its pages. While it is written, a journal of finished chunks lets a killed job go on where it was.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pedbench.contracts import PedbenchError
from pedbench.data import resize
from pedbench.files import explain_os_error, read_json, write_json
from pedbench.manifest import Manifest, decode

CHUNK = 256  # pictures of one checksum
FORMAT = 1
SPARE = 2**28  # bytes of the disk that stay free


def prepare(manifest: Manifest, size: tuple[int, int], how: str, threads: int, index: Path) -> None:
    """Write ``index``, a JSON file, and the pictures of ``manifest`` beside it (suffix .bin).

    ``size``: height and width in pixels; ``how``: see `resize`. Raises PedbenchError before the
    start when the disk has no room, and naming the file when a picture is missing or truncated.
    """
    data, header = index.with_suffix(".bin"), _header(manifest, size, how)
    partial, journal = (data.with_name(f".{data.name}.{kind}") for kind in ("partial", "journal"))
    index.parent.mkdir(parents=True, exist_ok=True)
    index.unlink(missing_ok=True)
    shape = (len(manifest.rows), 3, *size)
    try:
        done = _finished(journal, partial, header, shape)
        if not done:
            _start(partial, journal, header, shape)
        store = np.memmap(partial, np.uint8, "r+", shape=shape)
        with journal.open("a", encoding="utf-8") as log:
            for number, sums in _chunks(manifest, size, how, threads, store, done):
                store.flush()
                done[number] = sums
                log.write(json.dumps([number, sums]) + "\n")
                log.flush()
        del store
        partial.replace(data)
    except OSError as error:
        raise PedbenchError(explain_os_error(partial, error)) from error
    write_json(index, {**header, "crc32": [done[number] for number in sorted(done)]})
    journal.unlink()


class Prepared:
    """The pictures that `prepare` wrote. Each chunk is checked when it is first read."""

    def __init__(self, index: Path, manifest: Manifest, size: tuple[int, int], how: str) -> None:
        """Raises PedbenchError when ``index`` is missing, of other images or sizes, or its data are
        not as long as they should be."""
        self.file, found = index.with_suffix(".bin"), read_json(index)
        self.crc32 = found.pop("crc32")
        self.shape = (found["images"], 3, *size)
        wanted = _header(manifest, size, how) | {"images": found["images"]}
        if found != wanted:
            raise PedbenchError(
                f"{index}: holds other pictures than the manifest of {manifest.dataset} lists, or "
                "in another size; delete it and run again"
            )
        try:
            self.store = np.memmap(self.file, np.uint8, "r", shape=self.shape)
        except (OSError, ValueError) as error:
            raise PedbenchError(f"{self.file}: {error}; delete it and run again") from error
        self.checked: set[int] = set()

    def load(self, positions: np.ndarray) -> Tensor:
        """``(B,)`` rows of the whole manifest -> ``(B, 3, H, W)`` uint8."""
        for number in np.unique(positions // CHUNK):
            self._check(int(number))
        return torch.from_numpy(np.ascontiguousarray(self.store[positions]))

    def _check(self, number: int) -> None:
        if number in self.checked:
            return
        chunk = self.store[number * CHUNK : (number + 1) * CHUNK]
        if zlib.crc32(np.ascontiguousarray(chunk)) != self.crc32[number]:
            raise PedbenchError(f"{self.file}: damaged; delete it and run again")
        self.checked.add(number)


def size_in_bytes(images: int, size: tuple[int, int]) -> int:
    """Of the prepared pictures."""
    return images * 3 * size[0] * size[1]


def _header(manifest: Manifest, size: tuple[int, int], how: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "dataset": manifest.dataset,
        "manifest": manifest.digest,
        "images": len(manifest.rows),
        "size": list(size),
        "resize": how,
    }


def _start(partial: Path, journal: Path, header: dict[str, Any], shape: tuple[int, ...]) -> None:
    for file in (partial, journal):
        file.unlink(missing_ok=True)
    needed, free = size_in_bytes(shape[0], shape[2:]), shutil.disk_usage(partial.parent).free  # type: ignore[arg-type]
    if needed + SPARE > free:
        raise PedbenchError(
            f"{partial.parent}: preparing {header['dataset']} needs {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free: make room, or set 'results' in the config to another "
            "disk"
        )
    with partial.open("wb") as stream:
        stream.truncate(needed)
    journal.write_text(json.dumps(header) + "\n", encoding="utf-8")


def _finished(
    journal: Path, partial: Path, header: dict[str, Any], shape: tuple[int, ...]
) -> dict[int, int]:
    """Checksum of each chunk that an earlier start wrote and that is still whole."""
    if not (journal.is_file() and partial.is_file()):
        return {}
    first, *lines = journal.read_text(encoding="utf-8").split("\n")
    if first != json.dumps(header) or partial.stat().st_size != int(np.prod(shape)):
        return {}
    store = np.memmap(partial, np.uint8, "r", shape=shape)
    found = {}
    for line in lines[:-1]:  # what a killed job left behind the last line end is not whole
        number, crc32 = json.loads(line)
        if zlib.crc32(np.ascontiguousarray(store[number * CHUNK : (number + 1) * CHUNK])) == crc32:
            found[number] = crc32
    return found


def _chunks(
    manifest: Manifest,
    size: tuple[int, int],
    how: str,
    threads: int,
    store: np.ndarray,
    done: dict[int, int],
) -> Iterator[tuple[int, int]]:
    """Fill the chunks that are not ``done``; yields number and checksum of each."""
    pictures = manifest.pictures

    def put(row: int) -> None:
        store[row] = resize(decode(*pictures[row]), size, how).transpose(2, 0, 1)

    numbers = range(-(-len(pictures) // CHUNK))
    bar = tqdm(total=len(pictures), desc=f"prepare {manifest.dataset}", mininterval=5)
    with ThreadPoolExecutor(threads) as pool:
        for number in numbers:
            rows = range(number * CHUNK, min((number + 1) * CHUNK, len(pictures)))
            bar.update(len(rows))
            if number not in done:
                list(pool.map(put, rows))
                yield number, zlib.crc32(np.ascontiguousarray(store[rows.start : rows.stop]))
    bar.close()
