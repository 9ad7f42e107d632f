"""Mirroring run folders into MLflow. The folders are the truth; the mirror can be rebuilt.

The only module that imports mlflow. One process does the writing, because several that open a
fresh SQLite store at once break its migration. What is mirrored, and how: docs/tracking.md.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import webbrowser
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

from pedbench.addresses import shown, without_secrets
from pedbench.config import HEADLINE
from pedbench.contracts import PedbenchError
from pedbench.files import digest, file_sha256, read_json, write_atomic, write_json
from pedbench.plan import TASKS
from pedbench.results import Run, display_name, read_runs
from pedbench.runs import PREDICTED, RunFolder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as Mirrored

KEY, CONTENT = "pedbench.run", "pedbench.content"
PARENT, NOTE, KIND = "mlflow.parentRunId", "mlflow.note.content", "mlflow.experimentKind"
SCORES = tuple(f"scores.{subset}.json" for subset in PREDICTED)
FILES = ("config.json", "environment.json", "metrics.jsonl", "cost.json", *SCORES)
DIGEST = 36  # characters of a data set's digest that MLflow keeps
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # of language-model jobs, in `ui`
}
RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}  # 14 s; MLflow's own are four minutes
ABOUT = """\
Pedestrian {task} on **{dataset}**, split **{split}**. One row per method and variant, with mean
(`test/{metric}`) and standard deviation (`test_sd/{metric}`) over its seeds; open a row to see the
seeds. Scores are fractions. Copied from the run folders of pedbench, which are the truth:
what is changed here is not seen there.
"""


def track(folders: Iterable[Path], marker: Path) -> Counter[str]:
    """Bring MLflow up to the state of the run folders; count what was created, replaced, skipped.

    The store is ``MLFLOW_TRACKING_URI`` or, without it, ``mlflow.db`` beside ``marker``. There is
    one experiment per dataset and split, in it one parent run per variant and below that one run
    per seed. All are found again by their tags: what is unchanged is skipped, what is changed or
    half-written is deleted and made anew. ``marker`` maps every run to its digest and is written
    last. Raises PedbenchError when the store cannot be reached or written.
    """
    os.environ |= QUIET | {name: os.environ.get(name, value) for name, value in RETRIES.items()}
    from mlflow import MlflowClient

    local, given = marker.with_name("mlflow.db"), os.environ.get("MLFLOW_TRACKING_URI")
    counts, digests = Counter(created=0, replaced=0, skipped=0), {}
    with explained(given or str(local)):
        client = MlflowClient(login_apart(given) if given else sqlite_store(local))
        for _, group in groupby(read_runs(folders), lambda r: (r.dataset, r.split)):
            runs = list(group)
            mirror = open_mirror(client, runs[0], local)
            for _, seeds in groupby(runs, variant_key):
                found = {run: content_of(run) for run in seeds}
                counts.update(mirror.bring(found))
                digests |= {run.key: run.config["digest"] for run in found}
    write_json(marker, digests)
    return counts


@contextmanager
def explained(store: str) -> Iterator[None]:
    """Turn what MLflow, its database and the network raise into a PedbenchError naming ``store``,
    without the password that its URI may hold. ValueError: of an address that is none."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError, ValueError) as error:
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise PedbenchError(
            f"MLflow's store {shown(store)} cannot be used "
            f"({without_secrets(reason, store)}). Make room, start the server or correct "
            "MLFLOW_TRACKING_URI, and run the same command again: it goes on where it was, and "
            "all run folders are kept"
        ) from error


def login_apart(uri: str) -> str:
    """``uri`` without the login of a server, which MLflow, since it prints addresses, gets by its
    own variables of the environment; a database's stays."""
    parts = urlsplit(uri)
    if not parts.scheme.startswith("http") or parts.password is None:
        return uri
    user, password = unquote(parts.username or ""), unquote(parts.password)
    os.environ |= {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def sqlite_store(path: Path) -> str:
    """URI of the SQLite store at ``path``. A new one is migrated under another name first, so
    that an interrupted migration leaves nothing behind; artifacts of an older one are deleted."""
    from mlflow import MlflowClient

    def migrate(new: Path) -> None:
        MlflowClient(f"sqlite:///{new.resolve()}").delete_experiment("0")  # the empty "Default"

    if not path.exists():
        shutil.rmtree(artifacts_of(path), ignore_errors=True)
        write_atomic(path, migrate)
    return f"sqlite:///{path.resolve()}"


def artifacts_of(store: Path) -> Path:
    return store.with_name("mlflow_artifacts")


def open_mirror(client: MlflowClient, run: Run, local: Path) -> ExperimentMirror:
    """The experiment of the dataset and split of ``run``, made if need be, and the runs in it. A
    server chooses its own place for artifacts."""
    name = f"{run.dataset} {run.split}"  # of names with a slash the pages show the end
    place = artifacts_of(local) / name if client.tracking_uri.startswith("sqlite:") else None
    found = client.get_experiment_by_name(name)
    if found is None:
        about = {"task": TASKS[run.task], "metric": HEADLINE[run.task]}
        about |= {"dataset": run.dataset, "split": run.split}
        tags = {NOTE: ABOUT.format(**about), KIND: "custom_model_development"}
        number = client.create_experiment(name, place and place.resolve().as_uri(), tags)
    else:
        number = found.experiment_id
    known: defaultdict[str, list[Mirrored]] = defaultdict(list)
    token: str | None = None
    while True:
        page = client.search_runs([number], max_results=1000, page_token=token)
        for entity in page:
            known[entity.data.tags.get(KEY, "")].append(entity)
        token = page.token
        if not token:
            return ExperimentMirror(client, number, known)


@dataclass
class ExperimentMirror:
    """One MLflow experiment; ``known`` are the runs it had, by their key."""

    client: MlflowClient
    number: str
    known: defaultdict[str, list[Mirrored]]

    def bring(self, contents: Mapping[Run, str]) -> Counter[str]:
        """Make MLflow hold the runs of one variant, given with their contents, and their parent
        once, whole and as they are; count what that took."""
        counts: Counter[str] = Counter()
        runs = list(contents)
        key, content = variant_key(runs[0]), digest({run.key: contents[run] for run in runs})
        name = display_name(runs[0].method, runs[0].variant)
        whole = self.kept(key, content)
        parent = whole.info.run_id if whole else self.start(key, name, content, runs)
        for run in runs:
            former = "replaced" if self.known[run.key] else "created"
            same = self.kept(run.key, contents[run])
            if same is None:
                title = f"{name}, seed {run.seed}"
                self.fill(self.start(run.key, title, contents[run], [run], parent), run)
            elif same.data.tags.get(PARENT) != parent:
                self.client.set_tag(same.info.run_id, PARENT, parent)
            counts[former if same is None else "skipped"] += 1
        if whole is None:
            self.log(parent, runs, [(name, value, 0) for name, value in summary(runs)])
            self.end(parent, runs)
        for other in [k for k in self.known if k.startswith(f"{key}/")]:  # no longer in the plan
            self.kept(other, None)
        return counts

    def kept(self, key: str, content: str | None) -> Mirrored | None:
        """The finished MLflow run of this key and content; all others of the key are deleted."""
        found = self.known.pop(key, [])
        ended = [entity for entity in found if entity.info.status == "FINISHED"]
        same = [e for e in ended if content and e.data.tags.get(CONTENT) == content][:1]
        for entity in found:
            if entity not in same:
                self.client.delete_run(entity.info.run_id)
        return same[0] if same else None

    def start(
        self, key: str, name: str, content: str, runs: Sequence[Run], parent: str | None = None
    ) -> str:
        """Id of a new MLflow run of one run, or of several that differ in their seeds."""
        tags = {KEY: key, CONTENT: content, **tags_of(runs), **({PARENT: parent} if parent else {})}
        began, _ = times_of(runs)
        return self.client.create_run(self.number, began, tags, name).info.run_id

    def fill(self, number: str, run: Run) -> None:
        """Everything of one run: settings, curves, scores, cost, dataset, and its files."""
        self.log(number, [run], metrics_of(run))
        with TemporaryDirectory() as folder:  # of links: one call for all files
            for file in files_of(run):
                Path(folder, file.name).symlink_to(file.resolve())
            self.client.log_artifacts(number, folder)
        self.end(number, [run])

    def log(self, number: str, runs: Sequence[Run], metrics: Iterable[Any]) -> None:
        """Settings and dataset of the ``runs``, and ``metrics``: name, value, step."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

        _, ended = times_of(runs)
        values = (Metric(name, value, ended, step) for name, value, step in metrics)
        settings = (Param(name, str(value)) for name, value in params_of(runs[0]).items())
        parts = zip_longest(_parts(values, 900), _parts(settings, 100), fillvalue=())
        for batch in parts:  # what MLflow takes in one call
            self.client.log_batch(number, *batch)
        name, split = runs[0].dataset, runs[0].split
        source = json.dumps({"manifest": f"manifests/{name}.parquet"})
        version = runs[0].config["manifest_digest"][:DIGEST]
        data = Dataset(name, version, "pedbench manifest", source)
        context = [InputTag("mlflow.data.context", split)]
        self.client.log_inputs(number, [DatasetInput(data, context)])

    def end(self, number: str, runs: Sequence[Run]) -> None:
        """Comes last: an MLflow run that has not ended is taken for half-written."""
        _, ended = times_of(runs)
        self.client.set_terminated(number, end_time=ended)


def variant_key(run: Run) -> str:
    return run.key.rpartition("/")[0]


def files_of(run: Run) -> list[Path]:
    """What is mirrored of a run. Pictures never are; adapter and predictions stay in its folder."""
    return [run.folder / name for name in FILES if (run.folder / name).is_file()]


def content_of(run: Run) -> str:
    """Digest of all that is mirrored of ``run``."""
    return digest({file.name: file_sha256(file) for file in files_of(run)})


def times_of(runs: Sequence[Run]) -> tuple[int, int]:
    """When the first began and the last ended, in milliseconds."""
    began = min((run.folder / "config.json").stat().st_mtime for run in runs)
    ended = max((run.folder / "train.done.json").stat().st_mtime for run in runs)
    return int(1000 * began), int(1000 * ended)


def tags_of(runs: Sequence[Run]) -> dict[str, str]:
    """What tells a run, or several that differ in their seeds, from others; unknown is left out."""
    tags: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        path = run.folder / "environment.json"
        machine = read_json(path) if path.is_file() else {}
        names = ("dataset", "split", "method", "variant", "backbone", "digest", "manifest_digest")
        found = {name: run.config[name] for name in names}
        found |= {
            "seed": run.seed,
            "protocol": run.protocol_label,
            "mlflow.source.name": "pedbench",
        }
        found |= {name: machine.get(name) for name in ("commit", "dirty", "device")}
        found["mlflow.source.git.commit"] = machine.get("commit")
        for name, value in found.items():
            if value is not None and (name != "digest" or len(runs) == 1):
                tags[name].add(str(value))
    return {name: ", ".join(sorted(values)) for name, values in tags.items()}


def params_of(run: Run) -> dict[str, Any]:
    """The method's hyperparameters by their names, the settings that all share as
    ``protocol.NAME``."""
    return dict(flat({**run.config["params"], "protocol": run.protocol}))


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf, with the names above it."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def metrics_of(run: Run) -> Iterator[tuple[str, float, int]]:
    """Name, value and step of every number in ``metrics.jsonl`` (``{stage}/…``: each stage counts
    its own steps), then `final`."""
    log, last = run.folder / "metrics.jsonl", 0
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        entry = json.loads(line)
        last = entry["step"]
        for name, value in entry.items():
            if isinstance(value, float):
                yield f"{entry['stage']}/{name}", value, last
    for name, value in final(run).items():
        yield name, value, last


def final(run: Run) -> dict[str, float]:
    """Scores, as ``{subset}/{metric}``, and ``cost/…``; what is undefined is left out."""
    found = {
        f"{subset}/{name}": value
        for subset in RunFolder(run.folder).predicted
        for name, value in read_json(run.folder / f"scores.{subset}.json")["overall"].items()
    }
    cost = run.folder / "cost.json"
    found |= {f"cost/{n}": v for n, v in (read_json(cost) if cost.is_file() else {}).items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def summary(runs: Sequence[Run]) -> Iterator[tuple[str, float]]:
    """Mean over the runs of each number of `final` that all have, and, as ``{group}_sd/…``, its
    standard deviation."""
    numbers = [final(run) for run in runs]
    for name in numbers[0]:
        values = [found[name] for found in numbers if name in found]
        if len(values) == len(runs):
            yield name, statistics.fmean(values)
            if len(runs) > 1:
                group, _, metric = name.partition("/")
                yield f"{group}_sd/{metric}", statistics.stdev(values)


def ui(results: Path, port: int) -> None:
    """Show the mirror in the browser until interrupted: MLflow's server on this machine, or the
    one of ``MLFLOW_TRACKING_URI``.

    Raises PedbenchError when nothing was mirrored below ``results`` or the server does not start.
    """
    store, given = results / "mlflow.db", os.environ.get("MLFLOW_TRACKING_URI", "")
    if given.startswith("http"):
        return show(shown(given))
    if not given and not store.is_file():
        raise PedbenchError(
            f"{store}: no such file; 'snakemake --cores all {results}/mlflow.json' makes it, and "
            "--results names another folder"
        )
    server = serve(given or f"sqlite:///{store.resolve()}", artifacts_of(store), port)
    try:
        show(f"http://127.0.0.1:{port}")
        print("Ctrl-C stops it", flush=True)
        server.wait()
    finally:
        server.terminate()


def show(server: str) -> None:
    """Open the page of all experiments. MLflow remembers the choice below in the browser only, and
    not where it stands in the address."""
    address = f"{server.rstrip('/')}/#/experiments"
    print(f"{address}\nChoose 'Model training' at the top left, once", flush=True)
    webbrowser.open(address)


def serve(store: str, artifacts: Path, port: int) -> subprocess.Popen[bytes]:
    """MLflow's server on this machine, when it answers; one worker takes half the memory."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--artifacts-destination", str(artifacts.resolve())]
    command += ["--host", "127.0.0.1", "--port", str(port)]  # anybody who reaches it may write
    private = {"MLFLOW_BACKEND_STORE_URI": store}  # all users of the machine see a command
    server = subprocess.Popen(command, env=os.environ | QUIET | private)
    while server.poll() is None:
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return server
        except (URLError, OSError):
            time.sleep(0.2)
    raise PedbenchError(
        f"mlflow server ended with status {server.returncode}; if port {port} is taken, name "
        "another with --port"
    )


def _parts(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """``items`` in lists of at most ``size``."""
    remaining = iter(items)
    while part := list(islice(remaining, size)):
        yield part
