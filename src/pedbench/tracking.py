"""Mirroring run folders into MLflow. The folders are the truth; the mirror can be rebuilt.

The only module that imports mlflow. One process does the writing, because several that open a
fresh SQLite store at once break its migration.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pedbench.contracts import PedbenchError
from pedbench.files import digest, file_sha256, read_json, write_atomic, write_json
from pedbench.results import Run, read_runs
from pedbench.score import SUBSETS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as Mirrored

KEY, CONTENT = "pedbench.run", "pedbench.content"
BATCH = 1000  # metrics that MLflow takes in one call; of parameters, 100


def track(folders: Iterable[Path], marker: Path) -> dict[str, int]:
    """Bring MLflow up to the state of the run folders; count what was created, replaced, skipped.

    The store is ``MLFLOW_TRACKING_URI`` or, without it, ``mlflow.db`` beside ``marker``. There is
    one experiment per dataset and split and one MLflow run per seed, found again by its tags: an
    unchanged one is skipped, a changed or half-written one is deleted and made anew. ``marker``
    maps every run to the digest of its content and is written last. Raises PedbenchError when
    the store cannot be reached or written.
    """
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    from mlflow import MlflowClient

    local, given = marker.with_name("mlflow.db"), os.environ.get("MLFLOW_TRACKING_URI")
    counts, contents = {"created": 0, "replaced": 0, "skipped": 0}, {}
    by_split = groupby(read_runs(folders), lambda run: f"{run.dataset}/{run.split}")
    with explained(given or str(local)):
        client = MlflowClient(given or sqlite_store(local))
        for name, runs in by_split:
            experiment = open_experiment(client, name, marker.with_name("mlflow_artifacts"))
            known = mirrored(client, experiment)
            for run in runs:
                contents[run.key] = content_of(run)
                counts[mirror(client, experiment, run, contents[run.key], known[run.key])] += 1
    write_json(marker, contents)
    return counts


@contextmanager
def explained(store: str) -> Iterator[None]:
    """Turn what MLflow and its database raise into a PedbenchError naming ``store``, without the
    password that its URI may hold."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, ImportError) as error:  # ImportError: no driver
        secret = urlsplit(store).netloc.rpartition("@")[0]
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        place, reason = (
            text.replace(f"{secret}@", "") if secret else text
            for text in (store.partition("?")[0], reason)
        )
        raise PedbenchError(
            f"MLflow's store {place} cannot be used ({reason}). Make room, start the server or "
            "correct MLFLOW_TRACKING_URI, and run the same command again; all runs are kept"
        ) from error


def sqlite_store(path: Path) -> str:
    """URI of the SQLite store at ``path``. A new one is migrated under another name first, so
    that an interrupted migration leaves nothing behind."""
    from mlflow import MlflowClient

    def migrate(new: Path) -> None:
        MlflowClient(f"sqlite:///{new.resolve()}").search_experiments()

    if not path.exists():
        write_atomic(path, migrate)
    return f"sqlite:///{path.resolve()}"


def open_experiment(client: MlflowClient, name: str, artifacts: Path) -> str:
    """Id of the experiment ``name``, made if need be; a server chooses its own artifact store."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    local = client.tracking_uri.startswith("sqlite:")
    return client.create_experiment(name, (artifacts / name).resolve().as_uri() if local else None)


def mirrored(client: MlflowClient, experiment: str) -> Mapping[str, list[Mirrored]]:
    """The MLflow runs of every run key."""
    found: defaultdict[str, list[Mirrored]] = defaultdict(list)
    token: str | None = None
    while True:
        page = client.search_runs([experiment], max_results=BATCH, page_token=token)
        for entity in page:
            found[entity.data.tags.get(KEY, "")].append(entity)
        token = page.token
        if not token:
            return found


def content_of(run: Run) -> str:
    """Digest of all that is mirrored of ``run``."""
    names = ["config.json", "metrics.jsonl", *(f"scores.{subset}.json" for subset in SUBSETS)]
    files = [run.folder / name for name in names]
    return digest({file.name: file_sha256(file) for file in files if file.is_file()})


def mirror(
    client: MlflowClient, experiment: str, run: Run, content: str, known: list[Mirrored]
) -> str:
    """Make MLflow hold ``run`` once, whole and with this content; say what that took."""
    from mlflow.entities import Metric, Param

    if [entity.data.tags.get(CONTENT) for entity in known] == [content]:
        return "skipped"
    for entity in known:
        client.delete_run(entity.info.run_id)
    began, ended = (_milliseconds(run.folder / n) for n in ("config.json", "train.done.json"))
    name = f"{run.method}/{run.variant}/seed{run.seed}"
    new = client.create_run(experiment, began, tags={KEY: run.key}, run_name=name).info.run_id
    for params in _parts(flat(run.config), 100):
        client.log_batch(new, params=[Param(key, str(value)) for key, value in params])
    for metrics in _parts(steps(run), BATCH):
        client.log_batch(new, [Metric(key, value, ended, at) for key, value, at in metrics])
    client.set_terminated(new, end_time=ended)
    client.set_tag(new, CONTENT, content)  # last: a run without it is taken for half-written
    return "replaced" if known else "created"


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``protocol.epochs`` and its like: every leaf of the run's config, but the long task."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.") if key != "task" else ()
        else:
            yield f"{prefix}{key}", value


def steps(run: Run) -> Iterator[tuple[str, float, int]]:
    """Name, value and step of every number in ``metrics.jsonl``, then of the final scores."""
    log, last = run.folder / "metrics.jsonl", 0
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        entry = json.loads(line)
        last = entry["step"]
        for name, value in entry.items():
            if isinstance(value, float):
                yield name, value, last
    for subset in SUBSETS:
        overall = read_json(run.folder / f"scores.{subset}.json")["overall"]
        for name, value in overall.items():
            if value is not None:
                yield f"{subset}/{name}", value, last


def _parts(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """``items`` in lists of at most ``size``."""
    remaining = iter(items)
    while part := list(islice(remaining, size)):
        yield part


def _milliseconds(path: Path) -> int:
    return int(path.stat().st_mtime * 1000)
