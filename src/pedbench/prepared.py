"""A dataset's pictures, decoded and resized once: one file in place of a hundred thousand.

``{name}.bin`` is uint8 ``(N, 3, H, W)`` in the manifest's order, ``{name}.json`` says of what it
was made and holds a checksum of every chunk of pictures. Jobs map the file into memory and share
its pages. While it is written, a journal of finished chunks lets a killed job go on where it was.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pedbench.contracts import PedbenchError
from pedbench.data import decoder
from pedbench.files import explain_os_error, only_writer, read_json, write_json, write_text
from pedbench.manifest import Manifest

CHUNK = 256  # pictures of one checksum
FORMAT = 1
SPARE = 2**28  # bytes of the disk that stay free


def prepare(manifest: Manifest, size: tuple[int, int], how: str, threads: int, index: Path) -> None:
    """Write ``index``, a JSON file, and the pictures of ``manifest`` beside it (suffix .bin).

    ``size``: height and width in pixels; ``how``: see `resize`. Raises PedbenchError before the
    start when the disk has no room, naming the file when a picture is missing or truncated, and
    when another process prepares the same.
    """
    with only_writer(
        index.with_name(f".{index.stem}.lock"), f"prepares {index.name}", index.parent
    ):
        _prepare(manifest, size, how, threads, index)


def _prepare(
    manifest: Manifest, size: tuple[int, int], how: str, threads: int, index: Path
) -> None:
    data, header = index.with_suffix(".bin"), _header(manifest, size, how)
    partial, journal = (data.with_name(f".{data.name}.{kind}") for kind in ("partial", "journal"))
    try:
        for old in (index, data):
            old.unlink(missing_ok=True)
        done = _finished(journal, partial, header)
        if not done:
            _make_room(partial, header)
        write_text(journal, "".join(f"{json.dumps(e)}\n" for e in (header, *done.items())))
        with partial.open("r+b") as store, journal.open("a", encoding="utf-8") as log:
            for number, chunk in _chunks(manifest, size, how, threads, done):
                store.seek(number * CHUNK * size_in_bytes(1, size))
                store.write(chunk)
                store.flush()
                os.fsync(store.fileno())  # the journal must not know more than the disk
                done[number] = zlib.crc32(chunk)
                log.write(json.dumps([number, done[number]]) + "\n")
                log.flush()
        partial.replace(data)
        write_json(index, {**header, "crc32": [done[number] for number in sorted(done)]})
        journal.unlink()
    except OSError as error:
        raise PedbenchError(explain_os_error(partial, error)) from error


class Prepared:
    """The pictures that `prepare` wrote. Each chunk is checked when it is first read."""

    def __init__(self, index: Path, manifest: Manifest, size: tuple[int, int], how: str) -> None:
        """Raises PedbenchError when ``index`` is missing, of other images or sizes, or its data are
        not as long as they should be."""
        self.index, self.file, found = index, index.with_suffix(".bin"), read_json(index)
        self.crc32 = found.pop("crc32", None)
        images = found.get("images", 0)
        if found != _header(manifest, size, how) | {"images": images}:
            raise PedbenchError(
                f"{index}: holds other pictures than the manifest of {manifest.dataset} lists, or "
                "in another size; delete it and run again"
            )
        if not self.file.is_file() or self.file.stat().st_size != _bytes(found):
            raise PedbenchError(f"{self.file}: missing or cut off; delete {index} and run again")
        self.store = np.memmap(self.file, np.uint8, "r", shape=(images, 3, *size))
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
        if zlib.crc32(chunk.tobytes()) != self.crc32[number]:
            raise PedbenchError(f"{self.file}: damaged; delete {self.index} and run again")
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


def _bytes(header: Mapping[str, Any]) -> int:
    return size_in_bytes(header["images"], tuple(header["size"]))


def _make_room(partial: Path, header: Mapping[str, Any]) -> None:
    """Start with an empty file of the right length. Raises PedbenchError when it does not fit."""
    partial.unlink(missing_ok=True)
    needed, free = _bytes(header), shutil.disk_usage(partial.parent).free
    if needed + SPARE > free:
        raise PedbenchError(
            f"{partial.parent}: preparing {header['dataset']} needs {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free: make room, or set 'results' in the config to another "
            "disk"
        )
    with partial.open("wb") as stream:
        stream.truncate(needed)


def _finished(journal: Path, partial: Path, header: Mapping[str, Any]) -> dict[int, int]:
    """Checksum of each chunk that an earlier start wrote and that is still whole."""
    if not (journal.is_file() and partial.is_file()):
        return {}
    first, *lines = journal.read_text(encoding="utf-8").split("\n")
    if first != json.dumps(header) or partial.stat().st_size != _bytes(header):
        return {}
    size, found = CHUNK * size_in_bytes(1, tuple(header["size"])), {}
    with partial.open("rb") as store:
        for number, crc32 in map(json.loads, lines[:-1]):  # the last one may not be whole
            store.seek(number * size)
            if zlib.crc32(store.read(size)) == crc32:
                found[number] = crc32
    return found


def _chunks(
    manifest: Manifest, size: tuple[int, int], how: str, threads: int, done: Container[int]
) -> Iterator[tuple[int, bytes]]:
    """Number and pictures, ``(n, 3, H, W)``, of each chunk that is not ``done``."""
    count, load = len(manifest.rows), decoder(manifest, size, how, threads)
    with tqdm(total=count, desc=f"prepare {manifest.dataset}", mininterval=5) as bar:
        for number, start in enumerate(range(0, count, CHUNK)):
            rows = np.arange(start, min(start + CHUNK, count))
            if number not in done:
                yield number, load(rows).numpy().tobytes()
            bar.update(len(rows))
