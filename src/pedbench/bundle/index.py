"""``bundle.json``, the index of a bundle: what it says and how it is made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pedbench import __version__, registry
from pedbench.contracts import PedbenchError
from pedbench.files import file_sha256, read_json
from pedbench.results import Document, Run
from pedbench.runs import commit_of

FORMAT = 1
INDEX, LONG = "bundle.json", "long.parquet"
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
