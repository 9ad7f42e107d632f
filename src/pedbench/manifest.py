"""The manifest: one Parquet row per image, the only way data enter the suite.

Columns: ``image`` (path relative to the root), ``sha256`` of the file, ``identity``, ``camera``,
``label:<attribute>`` (int8: 0, 1 or -1) and ``split:<split>`` ("train", "val", "test" or "").
The file's metadata hold the dataset's name, root, attributes and the digest of these and all rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pedbench.contracts import UNKNOWN, Attribute, BaseDataset, PedbenchError, Record
from pedbench.files import digest, file_sha256, write_atomic

SUBSETS = ("train", "val", "test")
KEY = b"pedbench"


@dataclass(frozen=True)
class Manifest:
    """``rows`` as described above, in manifest order."""

    dataset: str
    root: Path
    attributes: tuple[Attribute, ...]
    digest: str
    rows: pd.DataFrame

    def subset(self, split: str, *subsets: str) -> Manifest:
        """Only the images of these subsets of ``split``; the rest cannot be reached from it."""
        column = f"split:{split}"
        if column not in self.rows:
            known = ", ".join(c.removeprefix("split:") for c in self.rows if c.startswith("split:"))
            raise PedbenchError(f"{self.dataset} has no split '{split}'; it has: {known}")
        rows = self.rows.loc[self.rows[column].isin(subsets)].reset_index(drop=True)
        if rows.empty:
            raise PedbenchError(f"{self.dataset}/{split} has no {' or '.join(subsets)} images")
        return Manifest(self.dataset, self.root, self.attributes, self.digest, rows)

    def take(self, positions: np.ndarray) -> Manifest:
        """Only the images at ``positions``, in that order."""
        return replace(self, rows=self.rows.iloc[positions].reset_index(drop=True))

    @property
    def labels(self) -> np.ndarray:
        """``(N, A)`` int8 in {0, 1, -1}."""
        return self.rows[[f"label:{a.name}" for a in self.attributes]].to_numpy(np.int8)

    def positive_ratio(self) -> tuple[float, ...]:
        """Share of positives among the known labels, per attribute."""
        labels = self.labels
        known = np.maximum((labels != UNKNOWN).sum(0), 1)
        return tuple(float(r) for r in (labels == 1).sum(0) / known)


def build_manifest(
    name: str, dataset: BaseDataset, root: Path, options: Mapping[str, Any], out: Path
) -> Manifest:
    """Read ``dataset`` below ``root``, check every image and count, and write ``out``.

    Raises PedbenchError when an image is missing or truncated, a label is not 0, 1 or -1, an
    image is listed twice, or a subset does not have the expected number of images.
    """
    records = list(dataset.records(root))
    _check_records(name, dataset, records)
    _check_counts(name, dataset.expected(options), records)
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(lambda record: _checked_sha256(root / record.image), records))
    rows = pd.DataFrame({"image": [r.image for r in records], "sha256": hashes})
    rows["identity"] = np.array([r.identity for r in records], np.int32)
    rows["camera"] = np.array([r.camera for r in records], np.int16)
    labels = np.array([r.labels for r in records], np.int8)
    for column, attribute in enumerate(dataset.SPEC.attributes):
        rows[f"label:{attribute.name}"] = labels[:, column]
    for split in dataset.SPEC.splits:
        rows[f"split:{split}"] = [r.subset.get(split, "") for r in records]
    attributes = dataset.SPEC.attributes
    manifest = Manifest(name, root, attributes, _digest(attributes, rows), rows)
    write_manifest(manifest, out)
    return manifest


def write_manifest(manifest: Manifest, out: Path) -> None:
    meta = {
        "dataset": manifest.dataset,
        "root": str(manifest.root),
        "attributes": [asdict(a) for a in manifest.attributes],
        "digest": manifest.digest,
    }
    table = pa.Table.from_pandas(manifest.rows, preserve_index=False)
    table = table.replace_schema_metadata({KEY: json.dumps(meta).encode()})
    write_atomic(out, lambda path: pq.write_table(table, path))


def read_manifest(path: Path) -> Manifest:
    """Raises PedbenchError when the file is missing, damaged or not a manifest."""
    try:
        table = pq.read_table(path)
        meta = json.loads((table.schema.metadata or {})[KEY])
    except FileNotFoundError:
        raise PedbenchError(f"{path}: no such manifest; run 'snakemake {path}'") from None
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise PedbenchError(
            f"{path}: not a readable manifest ({error}); delete it and run again"
        ) from error
    attributes = tuple(Attribute(**a) for a in meta["attributes"])
    rows = table.replace_schema_metadata(None).to_pandas()
    return Manifest(meta["dataset"], Path(meta["root"]), attributes, meta["digest"], rows)


def _digest(attributes: tuple[Attribute, ...], rows: pd.DataFrame) -> str:
    """What a run reads of a dataset: images, labels, splits, and the words of its attributes."""
    table = rows.to_csv(index=False, lineterminator="\n")
    return digest({"attributes": [asdict(a) for a in attributes], "rows": table})


def _check_records(name: str, dataset: BaseDataset, records: list[Record]) -> None:
    if not records:
        raise PedbenchError(f"{name}: no images found; check the folder named under 'roots'")
    width = len(dataset.SPEC.attributes)
    seen: set[str] = set()
    for record in records:
        if record.image in seen:
            raise PedbenchError(f"{name}: {record.image} is listed twice; remove one of the rows")
        seen.add(record.image)
        if len(record.labels) != width or not set(record.labels) <= {0, 1, UNKNOWN}:
            raise PedbenchError(
                f"{name}: {record.image}: labels must be {width} values in 0, 1, -1 (unknown), "
                f"got {list(record.labels)}"
            )
        wrong = set(record.subset.values()) - set(SUBSETS)
        if wrong:
            raise PedbenchError(
                f"{name}: {record.image}: subset '{wrong.pop()}' is none of {', '.join(SUBSETS)}"
            )


def _check_counts(
    name: str, expected: Mapping[str, Mapping[str, int]], records: list[Record]
) -> None:
    for split, subsets in expected.items():
        for subset, count in subsets.items():
            found = sum(record.subset.get(split) == subset for record in records)
            if found != count:
                raise PedbenchError(
                    f"{name}: split '{split}', subset '{subset}': {found} images found, {count} "
                    "expected. The folder is incomplete or another release; obtain it again, or "
                    "delete it if it is the synthetic world."
                )


def _checked_sha256(path: Path) -> str:
    decode(path).close()
    return file_sha256(path)


def decode(path: Path):
    """The RGB picture in ``path``, fully decoded. Raises PedbenchError naming the file."""
    from PIL import Image

    try:
        return Image.open(path).convert("RGB")
    except FileNotFoundError:
        raise PedbenchError(
            f"{path}: image is missing; restore it from your copy of the dataset (or delete the "
            "folder if it is the synthetic world: it will be made anew)"
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise PedbenchError(
            f"{path}: image is truncated or not an image ({error}); restore it from your copy of "
            "the dataset (or delete the folder if it is the synthetic world)"
        ) from error
