"""The manifest: one Parquet row per image, the only way data enter the suite.

Columns: ``image`` (its name), ``sha256`` of the file, ``identity``, ``camera``,
``label:<attribute>`` (int8: 0, 1 or -1) and ``split:<split>`` ("train", "val", "test" or ""); for a
split of re-identification also ``query:<split>`` (bool: in val and test an image that is no query
belongs to the gallery); where images are not files of their names below the root also ``file``, and
where they are parts of pictures ``x``, ``y``, ``width``, ``height``. The file's metadata hold the
dataset's name, root, attributes, remarks and the digest of these and all rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pedbench.contracts import UNKNOWN, Attribute, PedbenchError
from pedbench.files import digest, write_atomic
from pedbench.formats.layout import clipped

if TYPE_CHECKING:
    from PIL import Image

BOX = ("x", "y", "width", "height")
KEY = b"pedbench"
MISSHAPEN = (  # what a file of another shape raises
    *(pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError),
    RecursionError,
)


@dataclass(frozen=True)
class Manifest:
    """``rows`` as described above, in manifest order."""

    dataset: str
    root: Path
    attributes: tuple[Attribute, ...]
    digest: str
    rows: pd.DataFrame
    remarks: tuple[str, ...] = ()  # what its reader noticed
    unseen: tuple[str, ...] | None = None  # splits with `new_persons`, where the training rows that
    # would tell were left out
    novel: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # split -> attributes of
    # which its test images have labels and its training images none
    positions: np.ndarray | None = None  # of the rows in the whole manifest; None: it is whole

    def has(self, split: str, subset: str) -> bool:
        """Whether ``split``, which need not be known, has any images in ``subset``."""
        column = f"split:{split}"
        return column in self.rows and bool((self.rows[column] == subset).any())

    def new_persons(self, split: str) -> bool:
        """Whether the test images of ``split`` show known persons, none of whom is in training."""
        if self.unseen is not None:
            return split in self.unseen
        identity, where = self.rows["identity"], self.rows[f"split:{split}"]
        tested = set(identity[where == "test"]) - {-1}
        return bool(tested) and tested.isdisjoint(identity[where == "train"])

    def is_reid(self, split: str) -> bool:
        """Whether ``split`` is for re-identification."""
        return f"query:{split}" in self.rows

    def is_query(self, split: str) -> np.ndarray:
        """``(N,)`` bool: the queries of ``split``, one for re-identification."""
        return self.rows[f"query:{split}"].to_numpy(bool)

    def subset(self, split: str, *subsets: str) -> Manifest:
        """Only the images of these subsets of ``split``; the rest cannot be reached from it.

        Raises PedbenchError when there are none, with what the dataset's reader said about it.
        """
        column = f"split:{split}"
        if column not in self.rows:
            known = ", ".join(c.removeprefix("split:") for c in self.rows if c.startswith("split:"))
            raise PedbenchError(f"{self.dataset} has no split '{split}'; it has: {known}")
        inside = np.flatnonzero(self.rows[column].isin(subsets))
        if not len(inside):
            said = [r for r in self.remarks if re.search(rf"\b{re.escape(split)}\b", r)]
            nothing = f"{self.dataset}/{split} has no {' or '.join(subsets)} images"
            raise PedbenchError(": ".join([nothing, *said]))
        return self.take(inside)

    def take(self, positions: np.ndarray) -> Manifest:
        """Only the images at ``positions``, in that order."""
        whole = positions if self.positions is None else self.positions[positions]
        rows = self.rows.iloc[positions].reset_index(drop=True)
        return replace(self, rows=rows, positions=whole)

    @property
    def pictures(self) -> list[tuple[Path, tuple[float, ...] | None]]:
        """Of each image its file and, where it is a part of the picture, its box."""
        files = self.rows["file" if "file" in self.rows else "image"]
        paths = [self.root / file for file in files]
        if "width" not in self.rows:
            return [(path, None) for path in paths]
        boxes = self.rows[list(BOX)].itertuples(index=False, name=None)
        return list(zip(paths, boxes, strict=True))

    @property
    def labels(self) -> np.ndarray:
        """``(N, A)`` int8 in {0, 1, -1}."""
        return self.rows[[f"label:{a.name}" for a in self.attributes]].to_numpy(np.int8)

    def settled(self, subset: str, unknown_labels: str) -> Manifest:
        """With its unknown labels as the protocol's ``unknown_labels`` has them in ``subset``: as
        they are, or as negatives."""
        negative = unknown_labels == "negative"
        negative |= unknown_labels == "negative_in_training" and subset == "train"
        if not negative:
            return self
        columns = [f"label:{a.name}" for a in self.attributes]
        rows = self.rows.copy()
        rows[columns] = rows[columns].replace(UNKNOWN, 0)
        return replace(self, rows=rows)

    def positive_ratio(self) -> tuple[float, ...]:
        """Share of positives among the known labels, per attribute."""
        labels = self.labels
        known = np.maximum((labels != UNKNOWN).sum(0), 1)
        return tuple(float(r) for r in (labels == 1).sum(0) / known)


def write_manifest(manifest: Manifest, out: Path) -> None:
    meta = {
        "dataset": manifest.dataset,
        "root": str(manifest.root),
        "attributes": [asdict(a) for a in manifest.attributes],
        "digest": manifest.digest,
        "remarks": manifest.remarks,
        "unseen": manifest.unseen,
        "novel": manifest.novel,
    }
    table = pa.Table.from_pandas(manifest.rows, preserve_index=False)
    table = table.replace_schema_metadata({KEY: json.dumps(meta).encode()})
    write_atomic(out, lambda path: pq.write_table(table, path))


def read_manifest(path: Path) -> Manifest:
    """Raises PedbenchError when the file is missing, damaged or not a manifest."""
    try:
        table = pq.read_table(path)
        meta = json.loads((table.schema.metadata or {})[KEY])
        attributes = tuple(Attribute(**a) for a in meta["attributes"])
        place, remarks = (meta["dataset"], Path(meta["root"])), tuple(meta.get("remarks", ()))
        unseen = None if meta.get("unseen") is None else tuple(meta["unseen"])
        novel = {split: tuple(names) for split, names in meta.get("novel", {}).items()}
        rows = table.replace_schema_metadata(None).to_pandas()
        return Manifest(*place, attributes, meta["digest"], rows, remarks, unseen, novel)
    except FileNotFoundError:
        raise PedbenchError(f"{path}: no such manifest; run 'snakemake {path}'") from None
    except MISSHAPEN as error:
        raise PedbenchError(
            f"{path}: not a readable manifest ({error}); delete it and run again"
        ) from error


def manifest_digest(attributes: tuple[Attribute, ...], rows: pd.DataFrame) -> str:
    """What a run reads of a dataset: images, labels, splits, and the words of its attributes; not
    where the pictures lie."""
    table = rows.drop(columns="file", errors="ignore").to_csv(index=False, lineterminator="\n")
    return digest({"attributes": [asdict(a) for a in attributes], "rows": table})


def decode(path: Path, box: Sequence[float] | None = None) -> Image.Image:
    """The RGB picture in ``path``, fully decoded and as stored (never turned as EXIF says), or the
    part of it in ``box`` (x, y, width, height in pixels; what leaves the picture is cut off).

    Raises PedbenchError naming the file when it is missing, truncated or no image, and when nothing
    of the box is in it.
    """
    from PIL import Image

    try:
        picture = Image.open(path).convert("RGB")
    except FileNotFoundError:
        raise PedbenchError(
            f"{path}: image is missing; restore it, or obtain or make the dataset anew"
        ) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PedbenchError(
            f"{path}: image is truncated or not an image ({error}); restore it, or "
            "obtain or make the dataset anew"
        ) from error
    if box is None:
        return picture
    inside = clipped(box, picture.width, picture.height)
    if inside is None:
        raise PedbenchError(
            f"{path}: nothing of the box {tuple(box)} is in the picture of {picture.width} x "
            f"{picture.height} pixels; the annotation is of another release"
        )
    return picture.crop(inside)
