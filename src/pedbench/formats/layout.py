"""Finding a release's files: one folder too deep, one too high, or with other file endings."""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from pedbench.contracts import PedbenchError, Remark

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png"}
Wanted = str | tuple[str, ...]  # a relative path, or several any of which will do


def release_folder(root: Path, *wanted: Wanted) -> Path:
    """The folder that holds all of ``wanted``: ``root``, or the only folder in it that does.

    Raises PedbenchError that says what was looked for and where, what is missing of what comes
    nearest, and which neighbour of ``root`` would do. Folders that cannot be read are passed over.
    """
    if not root.exists():
        raise PedbenchError(f"{root}: no such folder; correct the path")
    if not root.is_dir():
        raise PedbenchError(f"{root}: is a file; name the folder that holds it")
    if not _readable(root):
        raise PedbenchError(f"{root}: you may not read this folder; ask its owner for permission")
    inside = folders(root)
    for candidates in ([root], inside):
        fitting = [folder for folder in candidates if not missing(folder, wanted)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise PedbenchError(
                f"{root}: several folders in it are a release ({_names(fitting)}); name one of them"
            )
    best = min((root, *inside), key=lambda folder: len(missing(folder, wanted)))
    lacking = missing(best, wanted)
    looked = [f for f in inside if best == root and set(lacking) <= set(missing(f, wanted))]
    nor = f" (nor in {_names(looked[:3])})" if looked else ""
    hint = _hint(root, inside, wanted)
    raise PedbenchError(f"{best}: {', '.join(lacking)} not found there{nor}{hint}")


def _hint(root: Path, inside: Sequence[Path], wanted: Sequence[Wanted]) -> str:
    """Where else the release is."""
    deeper = [folder for one in inside for folder in folders(one)]
    for folder in (*deeper, root.parent):
        if not missing(folder, wanted):
            return f"; did you mean {folder}?"
    copies = [folder for folder in folders(root.parent) if not missing(folder, wanted)]
    return f"; another copy is at {copies[0]}" if copies else ""


def missing(folder: Path, wanted: Sequence[Wanted]) -> list[str]:
    """Which of ``wanted`` are not in ``folder``, in words."""
    choices = [(one,) if isinstance(one, str) else one for one in wanted]
    return [" or ".join(c) for c in choices if not any(os.path.exists(folder / name) for name in c)]


def first_of(folder: Path, *names: str) -> Path:
    """The first of ``names`` that is in ``folder``; else raises PedbenchError with all of them."""
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise PedbenchError(f"{folder}: none of {', '.join(names)} found there")


class Pictures:
    """The picture files of one folder, found by the names that an annotation gives them.

    A name is matched by its stem where the exact file is absent, since copies circulate with other
    endings; `remark` then tells how many were.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder.relative_to(root).as_posix()
        self.names = {entry.name for entry in os.scandir(folder) if is_picture(entry)}
        self.stems: dict[str, list[str]] = defaultdict(list)
        for name in sorted(self.names):
            self.stems[os.path.splitext(name)[0]].append(name)
        self.converted: list[tuple[str, str]] = []

    def find(self, name: str) -> str:
        """The path of ``name`` relative to the root; a file that is absent keeps its name."""
        same = self.stems.get(os.path.splitext(name)[0], [])
        if name not in self.names and len(same) == 1:
            self.converted.append((name, same[0]))
            name = same[0]
        return name if self.folder == "." else f"{self.folder}/{name}"

    def remark(self) -> None:
        """Tell, if so, that images are not the released files."""
        if self.converted:
            wanted, found = self.converted[0]
            warnings.warn(
                f"{len(self.converted)} images have another ending than in the annotation "
                f"({found} for {wanted}): they were converted, so pixels, and results with them, "
                "may differ from those of the release",
                Remark,
                stacklevel=2,
            )


def clipped(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int] | None:
    """Left, upper, right and lower edge, in whole pixels, of what a box (x, y, width, height) has
    in a picture of this size; None where that is nothing."""
    x, y, wide, high = box
    left, upper = round(max(0, x)), round(max(0, y))
    right, lower = round(min(width, x + wide)), round(min(height, y + high))
    return (left, upper, right, lower) if left < right and upper < lower else None


def is_picture(file: Path | os.DirEntry[str]) -> bool:
    """Whether a file looks like a picture; not the shadows ``._x.jpg`` that macOS leaves."""
    ending = os.path.splitext(file.name)[1].lower()
    return ending in SUFFIXES and not file.name.startswith("._")


def folders(folder: Path) -> list[Path]:
    """The folders in ``folder`` that can be read and are not hidden; none if it cannot be."""
    hidden, inside = (".", "__MACOSX"), folder.iterdir() if _readable(folder) else ()
    return sorted(
        p for p in inside if p.is_dir() and _readable(p) and not p.name.startswith(hidden)
    )


def _readable(folder: Path) -> bool:
    return os.access(folder, os.R_OK | os.X_OK)


def _names(folders: Sequence[Path]) -> str:
    return ", ".join(str(folder) for folder in folders)
