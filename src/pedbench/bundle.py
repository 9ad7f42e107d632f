"""Sharing results: ``pedbench export`` packs a finished plan into one file, ``pedbench import``
checks such a file and unpacks it below ``imported/``. Explained in docs/sharing.md.

A bundle is a zip laid out as the results folder, with an index ``bundle.json`` that holds the
sha256 of every other file. It holds no image.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jsonschema import Draft202012Validator

from pedbench import __version__, registry
from pedbench.collect import COLUMNS, read_long
from pedbench.contracts import PedbenchError
from pedbench.files import canonical_json, file_sha256, read_json, write_atomic
from pedbench.manifest import Manifest, read_manifest, write_manifest
from pedbench.plan import PER_SUBSET, Comparison, runs_of
from pedbench.results import Run, read_predictions, read_run
from pedbench.runs import REFUSED, RunFolder
from pedbench.score import SUBSETS, basis, is_current

Document = dict[str, Any]  # the contents of a plan.json or a bundle.json

FORMAT = 1
INDEX, PLAN, LONG = "bundle.json", "plan.json", "long.parquet"
OF_RUN = (
    *("config.json", "environment.json", "metrics.jsonl", "cost.json", "train.done.json"),
    *(f"{name}.{subset}.{end}" for name, end in PER_SUBSET for subset in SUBSETS),
)
ADAPTER = "adapter.safetensors"
BY_VARIANT = ("cost.csv", "selection.csv")  # tables of the results folder that may be there
ENDINGS = (".json", ".jsonl", ".csv", ".parquet", ".safetensors")
NAME = re.compile(r"[a-zA-Z0-9][\w-]*", re.ASCII)
RATIO = 100  # an honest bundle unpacks to about five times its size
ROWS = 10_000_000  # of one Parquet file
STEP = 1 << 20  # bytes copied at once
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same time for every file in a zip
SCHEMA = {
    "type": "object",
    "required": ["format", "pedbench", "protocols", "datasets", "variants", "commits", "files"],
    "properties": {
        "datasets": {
            "type": "object",
            "additionalProperties": {"type": "object", "required": ["licence", "manifest_digest"]},
        },
        "files": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["sha256", "bytes"],
                "properties": {
                    "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
                    "bytes": {"type": "integer", "minimum": 0},
                },
            },
        },
    },
}


def read_plan(root: Path) -> Document:
    """The plan of the results in ``root``, with the folders of its runs as seen from here.

    Raises PedbenchError when there is none.
    """
    if not (root / PLAN).is_file():
        raise PedbenchError(
            f"{root / PLAN}: no such file, so no results are here; run 'snakemake --cores all "
            f"{root}/tables', or name another folder with --results"
        )
    return located(read_json(root / PLAN), PurePosixPath(root.as_posix()))


def located(plan: Mapping[str, Any], root: PurePosixPath) -> Document:
    """``plan`` with its results in ``root``, wherever they were made. The datasets' own folders,
    which only their owner has, are left out."""
    place = ("dataset", "split", "method", "variant")
    return {
        **plan,
        "results": str(root),
        "datasets": {
            name: {k: v for k, v in d.items() if k != "root"}
            | {"manifest": str(root / "manifests" / f"{name}.parquet")}
            for name, d in plan["datasets"].items()
        },
        "experiments": [
            {**e, "folder": str(root.joinpath("runs", *(e[key] for key in place)))}
            for e in plan["experiments"]
        ],
    }


def export_bundle(
    results: Path, out: Path, methods: Sequence[str] = (), adapters: bool = False
) -> Document:
    """Write the finished plan in ``results`` to the zip ``out`` and return its index.

    ``methods`` narrows it: "method" is all of its variants, "method/variant" one. The statistics
    and the sweeps speak about all methods, so they come with the whole plan only. Equal results
    give equal bytes. Raises PedbenchError when a method is unknown, a run is not finished, or
    what follows from the runs is older than they are.
    """
    plan = narrowed(read_plan(results), methods)
    runs = [finished(folder) for _, _, folder in runs_of(plan)]
    if not runs:
        raise PedbenchError(f"{results}: no run to export: every method was refused")
    files: dict[str, Path | bytes] = {
        PLAN: canonical_json(located(plan, PurePosixPath())).encode(),
        LONG: long_table(results / LONG, runs),
        **tables_by_variant(results, plan),
        **manifests(plan, runs),
    }
    folders = [run.folder for run in runs] + [Path(e["folder"]) for e in plan["experiments"]]
    names = (*OF_RUN, *([ADAPTER] if adapters else []), REFUSED)
    sources = [folder / name for folder in folders for name in names]
    if not methods:
        sources += statistics(results)
    files |= {s.relative_to(results).as_posix(): s for s in sources if s.is_file()}
    index = index_of(plan, runs, files)
    files[INDEX] = canonical_json(index).encode()
    write_atomic(out, lambda path: write_zip(path, files))
    return index


def narrowed(plan: Document, methods: Sequence[str]) -> Document:
    """``plan`` with the experiments of ``methods`` alone; all of it if none is named."""
    if not methods:
        return plan
    known = [(e["method"], f"{e['method']}/{e['variant']}") for e in plan["experiments"]]
    for name in methods:
        if not any(name in names for names in known):
            every = sorted({word for names in known for word in names})
            raise PedbenchError(
                f"--methods: the plan in {plan['results']} has no '{name}'"
                f"{registry.suggest(name, every)} (it has: {', '.join(every)})"
            )
    kept = [
        e
        for e, names in zip(plan["experiments"], known, strict=True)
        if not set(names).isdisjoint(methods)
    ]
    used = {e["dataset"] for e in kept}
    datasets = {name: d for name, d in plan["datasets"].items() if name in used}
    return {**plan, "experiments": kept, "sweeps": [], "datasets": datasets}


def finished(folder: Path) -> Run:
    """The run in ``folder``. Raises PedbenchError unless it is whole, unchanged and scored."""
    try:
        run = read_run(folder)
        if not RunFolder(folder).is_finished(run.config["digest"]):
            raise PedbenchError(f"{folder}: not finished")
        for subset in SUBSETS:
            path = folder / f"scores.{subset}.json"
            if not is_current(path, basis(run, subset)):
                raise PedbenchError(f"{path}: missing, or not of these predictions")
        return run
    except PedbenchError as error:
        raise PedbenchError(
            f"{error}. Only a finished plan is exported: run 'snakemake --cores all' for its "
            "tables first"
        ) from error


def long_table(path: Path, runs: Sequence[Run]) -> bytes:
    """The rows of the long table that are of ``runs``, as Parquet."""
    long, digests = read_long(path), {run.config["digest"] for run in runs}
    long = long[long["digest"].isin(list(digests))]
    if set(long["digest"]) != digests:
        raise PedbenchError(f"{path}: older than the runs; run snakemake for the tables first")
    stream = BytesIO()
    table = pa.Table.from_pandas(long, pa.schema(list(COLUMNS.items())), preserve_index=False)
    pq.write_table(table.replace_schema_metadata(None), stream)
    return stream.getvalue()


def tables_by_variant(results: Path, plan: Document) -> dict[str, bytes]:
    """The rows of ``BY_VARIANT`` that are of the plan's variants, as CSV."""
    variants = {(e["method"], e["variant"]) for e in plan["experiments"]}
    found = {}
    for name in BY_VARIANT:
        if (results / name).is_file():
            rows = pd.read_csv(results / name, dtype=str, keep_default_na=False)
            pairs = zip(rows["method"], rows["variant"], strict=True)
            found[name] = rows[[pair in variants for pair in pairs]].to_csv(index=False).encode()
    return found


def statistics(results: Path) -> list[Path]:
    files = sorted((results / "stats").glob("*.csv"))
    if not files:
        raise PedbenchError(f"{results}/stats: no statistics; run snakemake for the tables first")
    return files


def manifests(plan: Document, runs: Sequence[Run]) -> dict[str, bytes]:
    """What scoring needs of each manifest: the images of the exported splits that have
    predictions, without the folder they lie in."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, dataset in plan["datasets"].items():
            full = read_manifest(Path(dataset["manifest"]))
            other = [run for run in runs if run.dataset == name and not is_of(run, full)]
            if other:
                raise PedbenchError(
                    f"{other[0].folder}: made from another manifest than {dataset['manifest']}; "
                    "run snakemake for the tables first"
                )
            splits = sorted({run.split for run in runs if run.dataset == name})
            path = Path(folder) / f"{name}.parquet"
            write_manifest(reduced(full, splits), path)
            found[f"manifests/{path.name}"] = path.read_bytes()
    return found


def is_of(run: Run, manifest: Manifest) -> bool:
    return run.config["manifest_digest"] == manifest.digest


def reduced(manifest: Manifest, splits: Sequence[str]) -> Manifest:
    """The rows of ``manifest`` that some of ``splits`` predicts; the digest stays that of all."""
    columns = [f"split:{split}" for split in splits]
    labels = [f"label:{attribute.name}" for attribute in manifest.attributes]
    predicted = manifest.rows[columns].isin(SUBSETS).any(axis=1)
    rows = manifest.rows.loc[predicted, ["image", "sha256", "identity", *labels, *columns]]
    rows = rows.reset_index(drop=True)
    return Manifest(manifest.dataset, Path(), manifest.attributes, manifest.digest, rows)


def index_of(
    plan: Document, runs: Sequence[Run], files: Mapping[str, Path | bytes]
) -> dict[str, Any]:
    """The contents of ``bundle.json``."""
    variants = dict.fromkeys(f"{e['method']}/{e['variant']}" for e in plan["experiments"])
    environments = [read_json(run.folder / "environment.json") for run in runs]
    protocols = {(run.protocol["name"], run.protocol["version"]) for run in runs}
    digests = {run.dataset: run.config["manifest_digest"] for run in runs}
    return {
        "format": FORMAT,
        "pedbench": __version__,
        "commits": sorted({commit_of(environment) for environment in environments}),
        "protocols": [{"name": n, "version": v} for n, v in sorted(protocols)],
        "datasets": {
            name: {"licence": licence(name), "manifest_digest": digests[name]}
            for name in sorted(digests)
        },
        "variants": list(variants),
        "runs": len(runs),
        "files": {
            name: {"sha256": sha256_of(content), "bytes": size_of(content)}
            for name, content in files.items()
        },
    }


def commit_of(environment: Mapping[str, Any]) -> str:
    """The commit that made a run; as git says it, "-dirty" if files had been changed since."""
    return f"{environment.get('commit')}{'-dirty' if environment.get('dirty') else ''}"


def describe(out: Path, index: Document) -> str:
    """What a person who is about to publish ``out`` has to know."""
    licences = [f"  {name}: {d['licence']}" for name, d in index["datasets"].items()]
    return "\n".join(
        [
            f"{out}: {index['runs']} runs of {len(index['variants'])} variants, "
            f"{out.stat().st_size / 1e6:.1f} MB, no images",
            f"sha256 {file_sha256(out)}",
            "It holds labels, identities and image names of these datasets; see that their licence "
            "lets you pass them on:",
            *licences,
        ]
    )


def licence(dataset: str) -> str:
    try:
        return registry.load_dataset(dataset).SPEC.licence
    except PedbenchError:  # results may outlive the file of their dataset
        return f"unknown: there is no datasets/{dataset}.py"


def sha256_of(content: Path | bytes) -> str:
    if isinstance(content, Path):
        return file_sha256(content)
    return hashlib.sha256(content).hexdigest()


def size_of(content: Path | bytes) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def write_zip(path: Path, files: Mapping[str, Path | bytes]) -> None:
    """A zip whose bytes depend on names and contents alone."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in sorted(files.items()):
            info = zipfile.ZipInfo(name, EPOCH)
            info.compress_type, info.create_system = zipfile.ZIP_DEFLATED, 3  # 3: Unix
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            data = content.read_bytes() if isinstance(content, Path) else content
            archive.writestr(info, data)


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
    packed, unpacked = file.stat().st_size, sum(e.file_size for e in archive.infolist())
    if unpacked > RATIO * packed:
        refuse(
            file,
            f"its {packed:,} bytes unpack to {unpacked:,}, more than {RATIO} times as many, which "
            "results never do (a zip bomb)",
        )


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
    for wrong, reason in (
        ({name for name, count in names.items() if count > 1}, "is in it twice"),
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
    except (KeyError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        reason = f"its contents do not fit together ({type(error).__name__}: {error})"
    if reason:
        refuse(file, reason)


def misfits(folder: Path, index: Document) -> Iterator[str]:
    """What is wrong with the unpacked bundle in ``folder``."""
    for path in folder.rglob("*.parquet"):
        if pq.read_metadata(path).num_rows > ROWS:
            yield f"{path.relative_to(folder)} has more than {ROWS:,} rows"
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
        for subset in SUBSETS:
            read_predictions(run, opened[run.dataset], subset)
    read_long(folder / LONG)
