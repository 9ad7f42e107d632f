"""A finished plan becomes one file: only what is whole, scored and collected goes in."""

from __future__ import annotations

import stat
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pedbench import registry
from pedbench.bundle.index import INDEX, LONG, index_of
from pedbench.collect import COLUMNS, read_long
from pedbench.contracts import PedbenchError
from pedbench.files import canonical_json, file_sha256, write_atomic
from pedbench.manifest import Manifest, read_manifest, write_manifest
from pedbench.plan import PER_SUBSET, runs_of
from pedbench.results import PLAN, Document, Run, located, read_plan, read_run
from pedbench.runs import PREDICTED, REFUSED, RunFolder
from pedbench.score import basis, is_current

OF_RUN = (
    *("config.json", "environment.json", "metrics.jsonl", "cost.json", "train.done.json"),
    *(f"{name}.{subset}.{end}" for name, end in PER_SUBSET for subset in PREDICTED),
    *(f"rankings.{subset}.parquet" for subset in PREDICTED),
)
ADAPTER = "adapter.safetensors"
BY_VARIANT = ("cost.csv", "selection.csv")  # tables of the results folder that may be there
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same time for every file in a zip


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
        for subset in RunFolder(folder).predicted:
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
    """The rows of ``manifest`` that some of ``splits`` predicts; the digest stays that of all.
    Where persons are asked for, with cameras, which decide what counts."""
    asked = [f"query:{split}" for split in splits if manifest.is_reid(split)]
    columns = [f"split:{split}" for split in splits]
    labels = [f"label:{attribute.name}" for attribute in manifest.attributes]
    predicted = manifest.rows[columns].isin(PREDICTED).any(axis=1)
    known = ["image", "sha256", "identity", *(["camera"] if asked else [])]
    rows = manifest.rows.loc[predicted, [*known, *labels, *columns, *asked]]
    rows = rows.reset_index(drop=True)
    told = manifest.dataset, Path(), manifest.attributes, manifest.digest, rows
    return Manifest(*told, unseen=tuple(s for s in splits if manifest.new_persons(s)))


def write_zip(path: Path, files: Mapping[str, Path | bytes]) -> None:
    """A zip whose bytes depend on names and contents alone."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in sorted(files.items()):
            info = zipfile.ZipInfo(name, EPOCH)
            info.compress_type, info.create_system = zipfile.ZIP_DEFLATED, 3  # 3: Unix
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            data = content.read_bytes() if isinstance(content, Path) else content
            archive.writestr(info, data)


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
