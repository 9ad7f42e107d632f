"""From a dataset's folder to its manifest: everything that can be off is told, all at once.

``examine`` finds, `build_manifest` refuses or writes, ``pedbench doctor --dataset`` prints.
"""

from __future__ import annotations

import os
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from pedbench.contracts import (
    SUBSETS,
    UNKNOWN,
    BaseDataset,
    PedbenchError,
    Record,
    Remark,
    own_options,
)
from pedbench.files import file_sha256, printable
from pedbench.formats.layout import is_picture
from pedbench.manifest import BOX, Manifest, decode, manifest_digest, write_manifest
from pedbench.phrases import words
from pedbench.registry import is_made

NAMED = 5  # of many files in one message
NOT_THE_RELEASE = "not the release, accepted by 'check_counts: false'"


@dataclass(frozen=True)
class Findings:
    """What a look at a dataset's folder brought: with ``problems`` it cannot be used."""

    records: tuple[Record, ...]
    problems: tuple[str, ...]
    remarks: tuple[str, ...]


def build_manifest(
    name: str, dataset: BaseDataset, root: Path, options: Mapping[str, Any], out: Path
) -> Manifest:
    """Read ``dataset`` below ``root``, check everything, decode every image, and write ``out``.

    ``options`` are those of the config's ``dataset_options``: ``check_counts: false`` accepts a
    folder whose numbers of images or identities are not the published ones, with a remark;
    ``phrases`` names a file of words for the attributes. Raises PedbenchError with all problems
    that were found.
    """
    found = examine(name, dataset, root, options, look=decoded)
    if found.problems:
        raise PedbenchError("\n".join(found.problems))
    attributes = words(dataset.SPEC.attributes, options)
    rows = _rows(dataset, root, found.records)
    digest = manifest_digest(attributes, rows)
    manifest = Manifest(name, root, attributes, digest, rows, found.remarks)
    manifest = replace(manifest, novel=_novel(manifest, dataset.SPEC.splits))
    write_manifest(manifest, out)
    return manifest


def examine(
    name: str,
    dataset: BaseDataset,
    root: Path,
    options: Mapping[str, Any],
    look: Callable[[Path], object],
) -> Findings:
    """Look at annotation, counts, labels, identities and, with ``look``, at every picture, which
    has to lie below ``root``: see `leaves`. What is told of the files of others is printable."""
    remarks: list[str] = []
    records: tuple[Record, ...] = ()
    lines: list[str] = []
    with _listening(remarks):
        try:
            records = tuple(dataset.records(root))
        except PedbenchError as error:
            lines = str(error).splitlines()
        except OSError as error:
            lines = [f"{error.filename}: cannot be read ({error.strerror or error})"]
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            lines = [
                f"annotation of an unexpected shape ({error!r} in {Path(place.filename).name}, "
                f"line {place.lineno}); the file was changed: obtain the released one"
            ]
    if lines:
        return Findings((), *_told(name, lines, remarks))
    if not records:
        nothing = f"no images found below {root}; check the path"
        return Findings((), *_told(name, [nothing], remarks))
    problems = [
        *_wrong_records(dataset, records),
        *_shared_identities(dataset, records),
        *_wrong_reid(dataset, records),
        *_wrong_pictures(dataset, root, records, look),
    ]
    wrong = _wrong_counts(dataset, options, records)
    if options.get("check_counts", True):
        problems += _refused(dataset, wrong)
    elif wrong:
        told = "; ".join(wrong)
        remarks.append(f"{NOT_THE_RELEASE}: {told}")
    remarks += _lonely_queries(dataset, records)
    remarks += _surplus(root, records)
    return Findings(records, *_told(name, problems, remarks))


def _told(
    name: str, problems: Sequence[str], remarks: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    named = (printable(f"{name}: {problem}") for problem in problems)
    return tuple(named), tuple(map(printable, remarks))


def header(path: Path) -> None:
    """Whether a picture can be opened; fast. Raises PedbenchError naming the file."""
    try:
        Image.open(path).close()
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PedbenchError(f"{path}: not an image ({error})") from error


def decoded(path: Path) -> None:
    """Whether a picture can be decoded to its last pixel. Raises PedbenchError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(path)
    decode(path).close()


@contextmanager
def _listening(remarks: list[str]) -> Iterator[None]:
    """Collect the remarks of a dataset's reader; other warnings go their way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Remark)
        yield
    for warning in caught:
        if issubclass(warning.category, Remark):
            remarks.append(str(warning.message))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


def _wrong_records(dataset: BaseDataset, records: Sequence[Record]) -> Iterator[str]:
    width = len(dataset.SPEC.attributes)
    twice = [image for image, count in Counter(r.image for r in records).items() if count > 1]
    if twice:
        yield f"{_some(twice, 'image')} listed twice; remove the second row of each"
    places = Counter((r.file or r.image, r.box, split) for r in records for split in r.subset)
    shared = sorted({file for (file, _, _), count in places.items() if count > 1})
    if shared and not twice:
        yield (
            f"{_some(shared, 'file')} read by several images: names became equal when folders or "
            "endings were dropped; restore the released files"
        )
    known = {0, 1, UNKNOWN}
    for record in records:
        if len(record.labels) != width or not set(record.labels) <= known:
            yield (
                f"{record.image}: labels must be {width} values in 0, 1, -1 (unknown), got "
                f"{list(record.labels)}"
            )
            break
    wrong = {str(s) for r in records for s in r.subset.values()} - set(SUBSETS)
    if wrong:
        yield f"subset '{min(wrong)}' is none of {', '.join(SUBSETS)}"


def _wrong_counts(
    dataset: BaseDataset, options: Mapping[str, Any], records: Sequence[Record]
) -> list[str]:
    """A line for each split that has other numbers of images or identities than the release."""
    there = {split for record in records for split in record.subset}
    wrong: dict[str, list[str]] = {}
    for what, counts in (
        ("images", dataset.expected(own_options(options))),
        ("identities", dataset.SPEC.identities),
    ):
        for split in counts.keys() & there:  # the reader remarks on those it cannot make
            for subset, count in counts[split].items():
                inside = [r for r in records if subset in _parts(dataset, r, split)]
                found = len(inside if what == "images" else {r.identity for r in inside} - {-1})
                if found != count:
                    told = f"{subset} {found} of {count} {what}"
                    wrong.setdefault(split, []).append(told)
    return [f"split '{split}': {', '.join(wrong[split])}" for split in sorted(wrong)]


def _parts(dataset: BaseDataset, record: Record, split: str) -> set[str]:
    """Names under which an image is counted: its subset and, in a split for re-identification,
    "query" or "gallery" (of test) or "val_query" or "val_gallery"."""
    subset = record.subset.get(split)
    if subset is None:
        return set()
    if split not in dataset.SPEC.reid or subset == "train":
        return {subset}
    role = "query" if split in record.queries else "gallery"
    return {subset, role if subset == "test" else f"{subset}_{role}"}


def _refused(dataset: BaseDataset, wrong: Sequence[str]) -> list[str]:
    """`_wrong_counts` as problems; what to do is said once."""
    if not wrong:
        return []
    return [
        *wrong[:-1],
        f"{wrong[-1]}. The folder is incomplete or of another release: {_anew(dataset)}; or accept "
        "it with 'check_counts: false' under dataset_options: then no result compares with a "
        "published one",
    ]


def _anew(dataset: BaseDataset) -> str:
    if is_made(type(dataset)) and not dataset.PARENTS:
        return "delete the folder, and it will be made anew"
    return "restore it from your copy of the dataset or obtain it again"


def _shared_identities(dataset: BaseDataset, records: Sequence[Record]) -> Iterator[str]:
    for split in dict.fromkeys([*dataset.SPEC.disjoint, *dataset.SPEC.reid]):
        where: dict[int, set[str]] = {}
        for record in records:
            if record.identity >= 0 and split in record.subset:
                where.setdefault(record.identity, set()).add(record.subset[split])
        shared = sorted(identity for identity, subsets in where.items() if len(subsets) > 1)
        if shared:
            yield (
                f"split '{split}': {_some([str(i) for i in shared], 'identity', 'identities')} in "
                "more than one subset, but this split is of unseen persons; the file of the split "
                "belongs to another release"
            )


def _wrong_reid(dataset: BaseDataset, records: Sequence[Record]) -> Iterator[str]:
    """What makes a split useless for re-identification."""
    for split in dataset.SPEC.reid:
        inside = [record for record in records if split in record.subset]
        nobody = [r.image for r in inside if r.identity < 0]
        if nobody:
            yield (
                f"split '{split}': {_some(nobody, 'image')} without an identity; the dataset's "
                "file must leave such images out of the split"
            )
        nowhere = [r.image for r in inside if r.camera < 0]
        if nowhere:
            yield (
                f"split '{split}': {_some(nowhere, 'image')} without a camera, which scoring needs "
                "to pass over pictures that the query's own camera took"
            )
        for subset in sorted({r.subset[split] for r in inside} - {"train"}):
            roles = {split in r.queries for r in inside if r.subset[split] == subset}
            for role in {True, False} - roles:
                what = "is a query" if role else "belongs to the gallery"
                yield f"split '{split}': no image of {subset} {what}; the folder is incomplete"


def _lonely_queries(dataset: BaseDataset, records: Sequence[Record]) -> Iterator[str]:
    """A remark on queries that scoring will skip: no other camera saw the person."""
    for split in dataset.SPEC.reid:
        cameras: dict[int, set[int]] = {}
        inside = [r for r in records if split in r.subset and r.subset[split] != "train"]
        for record in inside:
            if split not in record.queries:
                cameras.setdefault(record.identity, set()).add(record.camera)
        queries = [r for r in inside if split in r.queries]
        lonely = [r.image for r in queries if not cameras.get(r.identity, set()) - {r.camera}]
        if lonely:
            yield (
                f"split '{split}': no other camera's picture of the person is in the gallery for "
                f"{_some(lonely, 'query', 'queries')}: skipped in scoring"
            )


def _wrong_pictures(
    dataset: BaseDataset, root: Path, records: Sequence[Record], look: Callable[[Path], object]
) -> Iterator[str]:
    files = sorted({record.file or record.image for record in records})
    missing, broken, outside = [], [], []

    def problem(file: str) -> tuple[list[str], str] | None:
        if leaves(root, file):
            return outside, file
        try:
            look(root / file)
        except FileNotFoundError:
            return missing, file
        except PedbenchError as error:
            return broken, str(error)
        return None

    with ThreadPoolExecutor() as pool:
        bar = tqdm(pool.map(problem, files), total=len(files), desc="images", mininterval=5)
        for found in bar:
            if found is not None:
                found[0].append(found[1])
    if missing:
        yield (
            f"{_some(missing, 'image')} missing of {len(files)} below {root}: the folder is "
            f"incomplete; {_anew(dataset)}"
        )
    if outside:
        yield (
            f"{_some(outside, 'image')} not below {root}: a path of the annotation, or a link in "
            "place of a picture, leads out of the dataset's folder, which a released dataset never "
            "does; obtain it again (a link in place of a whole folder is fine)"
        )
    yield from broken[:NAMED]
    if len(broken) > NAMED:
        yield f"and {len(broken) - NAMED} more images that cannot be read"


def leaves(root: Path, file: str) -> bool:
    """Whether ``file``, which others wrote, is not a picture below ``root``: an absolute path, one
    with "..", or a link to outside. Folders that are links are followed: whoever keeps pictures on
    another disk has put them there."""
    path = Path(file)
    if path.is_absolute() or ".." in path.parts:
        return True
    if not (root / path).is_symlink():
        return False
    target = (root / path).resolve()
    return not any(target.is_relative_to(f.resolve()) for f in (root, (root / path).parent))


def _surplus(root: Path, records: Sequence[Record]) -> Iterator[str]:
    """A remark on pictures beside the listed ones, which are not used."""
    files = {record.file or record.image for record in records}
    used = {os.path.normpath(root / file) for file in files if not leaves(root, file)}
    extra = [
        path
        for folder in sorted({os.path.dirname(path) for path in used})
        for path in sorted(_pictures_in(folder))
        if path not in used
    ]
    if extra:
        names = [os.path.relpath(path, root) for path in extra]
        yield f"{_some(names, 'image')} in the folder but not among the dataset's: not used"


def _pictures_in(folder: str) -> Iterator[str]:
    if os.path.isdir(folder):
        yield from (entry.path for entry in os.scandir(folder) if is_picture(entry))


def _some(names: Sequence[str], one: str, several: str = "") -> str:
    """``3 images (a.png, b.png, c.png)``, of many the first five."""
    what = one if len(names) == 1 else several or f"{one}s"
    more = ", ..." if len(names) > NAMED else ""
    return f"{len(names)} {what} ({', '.join(names[:NAMED])}{more})"


def _rows(dataset: BaseDataset, root: Path, records: Sequence[Record]) -> pd.DataFrame:
    files = [record.file or record.image for record in records]
    sha256 = _hashes(root, files)
    rows = pd.DataFrame({"image": [r.image for r in records], "sha256": [sha256[f] for f in files]})
    if any(record.file for record in records):
        rows["file"] = files
    if any(record.box for record in records):
        boxes = [record.box or (0.0, 0.0, np.inf, np.inf) for record in records]
        rows[list(BOX)] = np.array(boxes, np.float64)
    rows["identity"] = np.array([r.identity for r in records], np.int32)
    rows["camera"] = np.array([r.camera for r in records], np.int16)
    labels = np.array([r.labels for r in records], np.int8)
    columns = {f"label:{a.name}": labels[:, i] for i, a in enumerate(dataset.SPEC.attributes)}
    for split in dataset.SPEC.splits:
        columns[f"split:{split}"] = np.array([r.subset.get(split, "") for r in records], object)
    for split in dataset.SPEC.reid:
        columns[f"query:{split}"] = np.array([split in r.queries for r in records], bool)
    return pd.concat([rows, pd.DataFrame(columns)], axis=1)


def _novel(manifest: Manifest, splits: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`Manifest.novel`, without the splits that have no such attribute."""
    known, found = manifest.labels != UNKNOWN, {}
    for split in splits:
        where = manifest.rows[f"split:{split}"].to_numpy()
        hidden = known[where == "test"].any(0) & ~known[where == "train"].any(0)
        if hidden.any() and (where == "train").any():
            pairs = zip(manifest.attributes, hidden, strict=True)
            found[split] = tuple(attribute.name for attribute, novel in pairs if novel)
    return found


def _hashes(root: Path, files: Iterable[str]) -> dict[str, str]:
    each = sorted(set(files))
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda file: file_sha256(root / file), each)
        return dict(zip(each, found, strict=True))
