"""Where the datasets of a plan are, and which of them the user has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pedbench import registry
from pedbench.contracts import PedbenchError, own_options
from pedbench.phrases import words
from pedbench.plan.model import Place, Source


def at_hand(
    source: str, config: Mapping[str, Any], places: list[Place], notes: list[str]
) -> list[Place]:
    """Those of ``places`` whose data the user has. Raises PedbenchError for the others, all at
    once, unless the config says to skip them and there is something else to run."""
    skip, needed = config["absent_data"] == "skip", {d: _needed(config, d) for d, _ in places}
    read = {d for d in needed if Path(_manifest(config, d)).is_file()}  # its folder may be gone
    absent = {
        name: f" ({folder} is no folder)" if folder else ""
        for dataset, folders in needed.items()
        for name, folder in folders.items()
        if folder is None or not (Path(folder).is_dir() or dataset in read)
    }
    if absent and not skip:
        raise PedbenchError("\n".join(_no_data(source, *entry) for entry in absent.items()))
    here = [place for place in places if not absent.keys() & needed[place[0]]]
    if absent:
        first = next(iter(absent))
        said = (
            f"no data, so left out: {', '.join(name + why for name, why in absent.items())}; name "
            f"their folders, roots: {{{first}: /path/to/it}}, or set PEDBENCH_ROOT_{first.upper()}"
        )
        if not here:
            raise PedbenchError(f"{source}: nothing is left to run: {said}")
        notes.append(said)
    return here


def _no_data(source: str, name: str, why: str) -> str:
    spec = registry.load_dataset(name).SPEC
    if why:
        return (
            f"{source}: roots: {name} ({spec.title}): no data{why}; correct the path there, or in "
            f"PEDBENCH_ROOT_{name.upper()}"
        )
    return (
        f"{source}: roots: {name} ({spec.title}) must be obtained first ({spec.licence}); then "
        f"name its folder, roots: {{{name}: /path/to/it}}, or set PEDBENCH_ROOT_{name.upper()}"
    )


def source_of(source: str, config: Mapping[str, Any], name: str) -> Source:
    dataset, root, results = registry.load_dataset(name), root_of(config, name), config["results"]
    generated = registry.is_made(type(dataset))
    options = config["dataset_options"].get(name, {})
    try:
        dataset.expected(own_options(options))
        words(dataset.SPEC.attributes, options)
    except PedbenchError as error:
        raise PedbenchError(f"{source}: {name}: {error}") from None
    return Source(
        name,
        root or f"{results}/data/{name}",
        options,
        _manifest(config, name),
        generated,
        {key: folder for key, folder in _needed(config, name).items() if folder and key != name},
    )


def _needed(config: Mapping[str, Any], name: str) -> dict[str, str | None]:
    """The obtained datasets that ``name`` is read from, and their folders as far as we are told."""
    dataset, root = registry.load_dataset(name), root_of(config, name)
    obtained = not registry.is_made(type(dataset))
    if obtained or (root and dataset.PARENTS):
        return {name: root}
    made_of = dataset.PARENTS.items()
    return {p: root_of(config, p) for p, parent in made_of if not registry.is_made(parent)}


def _manifest(config: Mapping[str, Any], name: str) -> str:
    return f"{config['results']}/manifests/{name}.parquet"


def root_of(config: Mapping[str, Any], name: str) -> str | None:
    """Where the user has a dataset, as far as they say: in ``roots`` or else the environment. One
    that is read from the folder of another may be named by that."""
    root = config["roots"].get(name) or os.environ.get(f"PEDBENCH_ROOT_{name.upper()}")
    if root:
        return os.path.expanduser(root)
    other = registry.load_dataset(name).FOLDER_OF
    return root_of(config, other) if other else None
