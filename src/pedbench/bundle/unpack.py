"""What somebody else's file has to pass before it is unpacked; nothing in it is trusted."""

from __future__ import annotations

import json
import re
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
from jsonschema import Draft202012Validator
from safetensors import SafetensorError, safe_open

from pedbench import __version__
from pedbench.bundle.index import FORMAT, INDEX, LONG, SCHEMA
from pedbench.collect import read_long
from pedbench.contracts import PedbenchError
from pedbench.files import file_sha256, read_json
from pedbench.manifest import read_manifest
from pedbench.plan import Comparison, runs_of
from pedbench.results import (
    PLAN,
    Document,
    read_features,
    read_plan,
    read_predictions,
    read_rankings,
    read_run,
)
from pedbench.runs import PREDICTED

ENDINGS = (".json", ".jsonl", ".csv", ".parquet", ".safetensors")
NAME = re.compile(r"[a-zA-Z0-9][\w-]*", re.ASCII)
RATIO = 100  # an honest bundle unpacks to about five times its size
MEMBERS = 1_000_000  # files; a run has about ten
TEXT = (
    1 << 26
)  # bytes of a file that is read as a whole: JSON, CSV; the index has 150 for each file
VALUES = 20_000_000  # of one Parquet file, beside features
BYTES = 1 << 30  # of the values of one Parquet file
READ = {"par": (read_predictions,), "reid": (read_features, read_rankings)}  # by task
CODECS = {"SNAPPY", "UNCOMPRESSED"}  # what results are written with; unpacks to 20 times at most
STEP = 1 << 20  # bytes copied at once
UNFIT = (  # what reading contents raises that are of another kind than they should be
    *(LookupError, TypeError, ArithmeticError, ValueError, AttributeError, AssertionError),
    *(RecursionError, OSError, pa.ArrowException),
)


def import_bundle(file: Path, name: str, imported: Path = Path("imported")) -> bool:
    """Check the bundle ``file`` and unpack it into ``imported/name``, whole or not at all.

    False: exactly this bundle is there already. Raises PedbenchError when the file is not a whole
    bundle of this format, holds anything that its index does not, a file that is not what the
    index says, or runs that do not fit its manifests; or when ``name`` stands for another bundle.
    """
    if not NAME.fullmatch(name):
        raise PedbenchError(
            f"--as {name}: not a name; use letters, digits, '_' and '-', e.g. their_lab"
        )
    target = imported / name
    with readable(file) as archive:
        index = read_index(file, archive)
        if target.exists():
            check_identical(target, index)
            return False
        check_entries(file, archive, index)
        imported.mkdir(parents=True, exist_ok=True)
        check_space(file, archive, imported)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=imported) as folder:
            new = Path(folder) / name
            for entry in archive.infolist():
                unpack(file, archive, entry, index, new)
            check_contents(file, new, index)
            new.rename(target)
    return True


@contextmanager
def readable(file: Path) -> Iterator[zipfile.ZipFile]:
    """The open zip; whatever is wrong with it while it is read becomes a PedbenchError."""
    if not file.is_file():
        raise PedbenchError(f"{file}: no such file")
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError) as error:
        raise PedbenchError(
            f"{file}: not a readable zip ({error}), perhaps cut off or damaged on its way; get it "
            "again and compare its sha256 with the published one"
        ) from error


def read_index(file: Path, archive: zipfile.ZipFile) -> Document:
    """``bundle.json``, checked."""
    check_size(file, archive)
    try:
        index = json.loads(archive.read(INDEX))
        found = index["format"]
    except (KeyError, TypeError, ValueError, RuntimeError):  # RuntimeError: encrypted
        raise PedbenchError(
            f"{file}: no bundle of pedbench: it has no readable {INDEX}. Make one with "
            "'pedbench export'"
        ) from None
    if found != FORMAT:
        raise PedbenchError(
            f"{file}: a bundle of format {found!r}, made with pedbench {index.get('pedbench')!r}; "
            f"this is pedbench {__version__}, which reads format {FORMAT}. Import it with the "
            "version that made it, or export it again with this one"
        )
    error = next(Draft202012Validator(SCHEMA).iter_errors(index), None)
    if error is not None:
        where = "/".join(str(part) for part in error.absolute_path)
        refuse(file, f"{INDEX}: {where}: {error.message[:200]}")
    return index


def refuse(file: Path, reason: str) -> NoReturn:
    raise PedbenchError(f"{file}: refused, nothing was unpacked: {reason}")


def check_size(file: Path, archive: zipfile.ZipFile) -> None:
    """Refuses what would unpack to far more than results do. Entries are read no further than
    the size they state, so a false size cannot help them."""
    entries = archive.infolist()
    packed, unpacked = file.stat().st_size, sum(e.file_size for e in entries)
    if unpacked > RATIO * packed:
        refuse(
            file,
            f"its {packed:,} bytes unpack to {unpacked:,}, more than {RATIO} times as many, which "
            "results never do (a zip bomb)",
        )
    if len(entries) > MEMBERS:
        refuse(file, f"it holds {len(entries):,} files, more than {MEMBERS:,}")
    for entry in entries:
        if entry.file_size > TEXT and not entry.filename.endswith((".parquet", ".safetensors")):
            refuse(file, f"{entry.filename!r} has more than {TEXT:,} bytes of text")


def check_space(file: Path, archive: zipfile.ZipFile, folder: Path) -> None:
    needed, free = sum(e.file_size for e in archive.infolist()), shutil.disk_usage(folder).free
    if needed > free:
        refuse(file, f"{folder} needs {needed / 1e6:,.0f} MB and has {free / 1e6:,.0f} MB free")


def check_entries(file: Path, archive: zipfile.ZipFile, index: Document) -> None:
    """Every entry is a plain file of the results folder, once, and in the index."""
    for entry in archive.infolist():
        if reason := objection(entry):
            refuse(file, f"{entry.orig_filename!r} {reason}")
    names = Counter(entry.filename for entry in archive.infolist())
    listed = {INDEX, *index["files"]}
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    cases = Counter(map(str.casefold, names))
    for wrong, reason in (
        ({name for name, count in names.items() if count > 1}, "is in it twice"),
        ({n for n in names if cases[n.casefold()] > 1}, "differs from another in its case only"),
        (folders & names.keys(), "is a file and a folder"),
        (names.keys() - listed, f"is not in its {INDEX}"),
        (listed - names.keys(), f"is in its {INDEX} but not in the zip"),
    ):
        if wrong:
            refuse(file, f"{min(wrong)!r} {reason}")


def objection(entry: zipfile.ZipInfo) -> str | None:
    """Why ``entry`` must not be unpacked, if so."""
    name, mode = entry.orig_filename, entry.external_attr >> 16
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or ":" in name:
        return "has a name with odd characters"
    if entry.filename != name:  # a second one, in an extra field, which Python from 3.13 on takes
        return "has two names"
    if name.startswith("/"):
        return "is an absolute path"
    if {"", ".", ".."} & set(parts):
        return "leads out of its folder"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "is a link or another special file"
    if parts[0] not in ("runs", "manifests", "stats") and len(parts) > 1:
        return "is in a folder that results do not have"
    if PurePosixPath(name).suffix not in ENDINGS:
        return f"is none of {', '.join(ENDINGS)}"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is packed in an unusual way"
    if entry.flag_bits & 1:
        return "is encrypted"
    return None


def unpack(
    file: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, index: Document, folder: Path
) -> None:
    """Write one entry below ``folder``; it must be what the index says."""
    path = folder / entry.filename
    path.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as source, path.open("wb") as sink:
        shutil.copyfileobj(source, sink, STEP)
    known = index["files"].get(entry.filename)  # the index does not list itself
    if known and (path.stat().st_size, file_sha256(path)) != (known["bytes"], known["sha256"]):
        refuse(file, f"{entry.filename} is not what {INDEX} says: changed after the export")


def check_identical(target: Path, index: Document) -> None:
    """Raises PedbenchError unless ``target`` holds the bundle of ``index``, unchanged."""
    here = target / INDEX
    if not here.is_file() or read_json(here) != index:
        raise PedbenchError(
            f"{target}: holds another bundle; import under another name, or delete that folder"
        )
    for name, known in index["files"].items():
        path = target / name
        if not path.is_file() or file_sha256(path) != known["sha256"]:
            raise PedbenchError(
                f"{path}: changed or missing since it was imported; delete {target} and import "
                "again"
            )


def check_contents(file: Path, folder: Path, index: Document) -> None:
    """The runs are those of the plan, and their predictions are of the bundle's manifests."""
    try:
        reason = next(misfits(folder, index), None)
    except PedbenchError as error:
        reason = str(error).replace(f"{folder}/", "")
    except UNFIT as error:
        reason = f"its contents do not fit together ({type(error).__name__}: {error})"
    if reason:
        refuse(file, reason)


def too_large(path: Path) -> str | None:
    """Why the Parquet file ``path`` could exhaust the memory, if so: equal values take no room in
    it, and a long text repeated in every row hardly any."""
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    features = sum(c.num_values for c in columns if is_feature(c))
    values = sum(column.num_values for column in columns) - features
    if max(values, metadata.num_rows * metadata.num_columns) > VALUES:
        return f"has more than {VALUES:,} values"
    if max(sum(group.total_byte_size for group in groups), 4 * features) > BYTES:
        return f"has more than {BYTES:,} bytes of values"
    if {column.compression for column in columns} - CODECS:
        return f"is compressed with something else than {' or '.join(sorted(CODECS))}"
    texts = {c.path_in_schema for c in columns if c.physical_type == "BYTE_ARRAY"}
    table = pq.read_table(path, columns=sorted(texts), read_dictionary=sorted(texts))
    chunks = [chunk for column in table.columns for chunk in column.chunks]
    longest = [max((len(t or "") for t in c.dictionary.to_pylist()), default=0) for c in chunks]
    if sum(len(c) * n for c, n in zip(chunks, longest, strict=True)) > BYTES:
        return f"has more than {BYTES:,} bytes of text"
    return None


def no_tensors(path: Path) -> str | None:
    """Why ``path`` is no file of tensors, if so; none of them is read."""
    try:
        with safe_open(path, "np"):
            return None
    except SafetensorError as error:
        return f"is no safetensors file ({error})"


def is_feature(column: pq.ColumnChunkMetaData) -> bool:
    """Whether it holds lists of float32, of which there are many: hundreds for each image."""
    return column.physical_type == "FLOAT" and column.path_in_schema.startswith("feature.")


def misfits(folder: Path, index: Document) -> Iterator[str]:
    """What is wrong with the unpacked bundle in ``folder``."""
    for path in folder.rglob("*.parquet"):
        if reason := too_large(path):
            yield f"{path.relative_to(folder)} {reason}"
    for path in folder.rglob("*.safetensors"):
        if reason := no_tensors(path):
            yield f"{path.relative_to(folder)} {reason}"
    plan = read_plan(folder)
    Comparison(**plan["comparison"])
    digests = {name: d["manifest_digest"] for name, d in index["datasets"].items()}
    wanted = [f"manifests/{name}.parquet" for name in plan["datasets"]]
    wanted += [f"{path.relative_to(folder)}/config.json" for _, _, path in runs_of(plan)]
    for name in wanted:
        if name not in index["files"]:  # also: leads elsewhere
            yield f"its {PLAN} asks for {name}, which it does not have"
    opened = {name: read_manifest(Path(d["manifest"])) for name, d in plan["datasets"].items()}
    for _, _, path in runs_of(plan):
        run = read_run(path)
        if run.key != path.relative_to(folder / "runs").as_posix():
            yield f"{path.relative_to(folder)} holds the run {run.key}"
        if not run.config["manifest_digest"] == opened[run.dataset].digest == digests[run.dataset]:
            yield f"{run.key}: its manifest is not the one that {INDEX} names"
        for subset in PREDICTED:
            if opened[run.dataset].has(run.split, subset):
                for read in READ[run.task]:
                    read(run, opened[run.dataset], subset)
    read_long(folder / LONG)
