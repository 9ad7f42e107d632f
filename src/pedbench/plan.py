"""From a config to the runs it asks for: experiments, seeds, job batches, sweeps, comparison.

Everything is checked here, before any job starts, and every message names the key to mend.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pedbench import registry
from pedbench.config import (
    DEFAULT,
    HEADLINE,
    ProtocolFile,
    changes_of,
    check_config,
    foreign_to,
    plain,
    protocol_of,
    read_protocol,
)
from pedbench.config import resolve as resolve_values
from pedbench.contracts import BACKBONES, TINY, PedbenchError, TaskKind, own_options
from pedbench.files import digest, write_json
from pedbench.phrases import words
from pedbench.runs import RunFolder, refusal, store_of

# of results
FOLDERS = (
    *("data", "figures", "logs", "manifests", "pictures", "prepared", "pretrain", "runs"),
    *("stats", "tables", "weights"),
)
PER_SUBSET = (("predictions", "parquet"), ("scores", "json"))  # of a run's folder
ANALYSIS = (
    "plan.json",
    "scored.json",
    "long.parquet",
    "cost.csv",
    "selection.csv",
    "mlflow.json",
    "stats",
    "figures",
    "pictures",
)


PROTOCOL_OF: Mapping[TaskKind, str] = {"par": "protocol", "reid": "reid_protocol"}  # keys
TASKS: Mapping[TaskKind, str] = {"par": "attribute recognition", "reid": "re-identification"}

Place = tuple[str, str]  # dataset and split
Choice = tuple[str, str]  # method and variant


@dataclass(frozen=True)
class Source:
    """A dataset of the plan: where its files are and what it is made with."""

    name: str
    root: str
    options: Mapping[str, Any]
    manifest: str
    generated: bool  # the suite can make its files
    parents: Mapping[str, str] = field(default_factory=dict)  # folders that it links to

    @property
    def inputs(self) -> tuple[str, ...]:
        """Files of the repository, and the user's own phrases: what makes its manifest."""
        dataset, phrases = registry.load_dataset(self.name), self.options.get("phrases")
        files = [f"datasets/{name}.py" for name in (self.name, *dataset.PARENTS)]
        return (*files, *dataset.inputs, *([phrases] if phrases else []))

    @property
    def given(self) -> Mapping[str, Any]:
        """Options of the command that makes the manifest."""
        return {**self.options, **({"roots": self.parents} if self.parents else {})}


@dataclass(frozen=True)
class Experiment:
    """One dataset, split, method and variant; each of its seeds is a run."""

    dataset: str
    split: str
    method: str
    variant: str
    seeds: tuple[int, ...]
    folder: str
    spec: Mapping[str, Any] = field(repr=False)  # every value with its origin
    in_tables: bool = True  # False: only a sweep asked for it
    keep_epochs: bool = False  # True: the audit of `released_selection` reads them

    @property
    def key(self) -> str:
        return f"{self.dataset}/{self.split}/{self.method}/{self.variant}"

    @property
    def backbone(self) -> str:
        """The plan's, or that of its variant."""
        return self.spec["backbone"]


@dataclass(frozen=True)
class Batch:
    """The seeds of one experiment that one job fits and predicts."""

    experiment: Experiment
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """``0-1-2``: part of the marker's name, so that other seeds do not disturb it."""
        return "-".join(str(seed) for seed in self.seeds)

    @property
    def marker(self) -> str:
        return f"{self.experiment.folder}/seeds{self.name}.done.json"

    def is_finished(self) -> bool:
        """Whether its marker stands for something: every seed ended, or the method refused."""
        folder, keep = Path(self.experiment.folder), self.experiment.keep_epochs
        runs = [RunFolder(folder / f"seed{n}") for n in self.seeds]
        return (folder / "config.json").is_file() and (
            refusal(folder) is not None
            or all(run.done.is_file() and (not keep or run.keeps_epochs) for run in runs)
        )


@dataclass(frozen=True)
class Point:
    """One value on a sweep's axis and the variant that was run with it."""

    value: Any
    variant: str


@dataclass(frozen=True)
class Line:
    """One method's part of a sweep."""

    method: str
    base: str  # the variant all points start from
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Sweep:
    """Curves over one parameter of one or more methods on one dataset and split."""

    name: str
    dataset: str
    split: str
    parameter: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Comparison:
    """The significance test; ``baseline`` is None when the plan does not run it."""

    baseline: str | None = "linear_probe/default"
    metrics: tuple[str, ...] = ("mA", "F1", "mAP", "rank1")  # a place tests those of its task
    alpha: float = 0.05
    resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """A checked config. ``notes`` say, one line each, what was asked for and left out."""

    config: Mapping[str, Any]
    sources: Mapping[str, Source]
    experiments: tuple[Experiment, ...]
    sweeps: tuple[Sweep, ...]
    comparison: Comparison
    notes: tuple[str, ...]

    @property
    def results(self) -> str:
        return self.config["results"]

    @cached_property
    def batches(self) -> tuple[Batch, ...]:
        """The training jobs."""
        size = self.config["seeds_per_job"]
        return tuple(
            Batch(experiment, experiment.seeds[start : start + size])
            for experiment in self.experiments
            for start in range(0, len(experiment.seeds), size)
        )

    @cached_property
    def _by_key(self) -> dict[str, Experiment]:
        return {experiment.key: experiment for experiment in self.experiments}

    def experiment(self, dataset: str, split: str, method: str, variant: str) -> Experiment:
        """The one of that name."""
        return self._by_key[f"{dataset}/{split}/{method}/{variant}"]

    def lacks_validation(self, experiment: Experiment) -> bool:
        """Whether its dataset says that its split has no validation images."""
        options = own_options(self.sources[experiment.dataset].options)
        counts = registry.load_dataset(experiment.dataset).expected(options)
        return experiment.split in counts and "val" not in counts[experiment.split]

    @cached_property
    def backbones(self) -> tuple[str, ...]:
        """Those that experiments run on."""
        return tuple(dict.fromkeys(experiment.backbone for experiment in self.experiments))

    @property
    def weights(self) -> dict[str, str]:
        """Backbone -> the record of its weights and their checksum."""
        return {name: f"{self.results}/weights/{name}.json" for name in self.backbones}

    def store(self, experiment: Experiment) -> str:
        """The prepared pictures that its runs read; they may be deleted when all are done."""
        return f"{self.results}/prepared/{self._store(experiment)}.json"

    def prepared(self, experiment: Experiment) -> str:
        """The marker of `store`, which stays when that is deleted: a job whose missing input comes
        back would be run again."""
        return f"{self.results}/manifests/{self._store(experiment)}.done"

    def _store(self, experiment: Experiment) -> str:
        protocol = protocol_of(experiment.spec)
        return store_of(experiment.dataset, experiment.backbone, protocol)

    @property
    def rebuilt(self) -> str | None:
        """The tiny CLIP that the plan trains anew."""
        wanted = self.config["pretrain"] and TINY in self.backbones
        return f"{self.results}/pretrain/{TINY}.safetensors" if wanted else None

    def weights_file(self, backbone: str) -> str | None:
        """Its checkpoint, where it is neither the shipped nor the downloaded one."""
        rebuilt = self.rebuilt if backbone == TINY else None
        return rebuilt or self.config["checkpoints"].get(backbone)

    def weights_inputs(self, backbone: str) -> tuple[str, ...]:
        """Files whose change means other weights."""
        file, shipped = self.weights_file(backbone), f"resources/{TINY}/{TINY}"
        if file or backbone != TINY:
            return (file,) if file else ()
        return (f"{shipped}.safetensors", f"{shipped}.sha256")

    @property
    def outputs(self) -> set[str]:
        """What the DAG makes on its way to the tables."""
        return {
            *(f"{self.results}/{name}" for name in ANALYSIS),
            *self.weights.values(),
            *([self.rebuilt] if self.rebuilt else []),
            *(source.manifest for source in self.sources.values()),
            *(batch.marker for batch in self.batches),
        }

    def as_json(self) -> dict[str, Any]:
        """What ``results/plan.json`` holds, for score, collect and everything after them.

        ``datasets``: name -> root, manifest. ``experiments``: in table order, with ``folder``,
        ``seeds``, ``in_tables`` and ``keep_epochs``. ``sweeps`` and ``comparison``: as the classes
        above.
        """
        experiments = [
            {key: value for key, value in vars(e).items() if key != "spec"}
            for e in self.experiments
        ]
        return {
            **{key: self.config.get(key) for key in PROTOCOL_OF.values()},
            "presets": self.config["presets"],
            "backbone": self.config["backbone"],
            "results": self.results,
            "datasets": {name: asdict(source) for name, source in self.sources.items()},
            "experiments": experiments,
            "sweeps": [asdict(sweep) for sweep in self.sweeps],
            "comparison": asdict(self.comparison),
        }

    @property
    def digest(self) -> str:
        return digest(self.as_json())


def make_plan(config: Mapping[str, Any], source: str = "config") -> Plan:
    """Check ``config`` and expand it. ``source`` names it in messages.

    Raises PedbenchError for the first mistake found.
    """
    config = check_config(config, source)
    _check_names(config, source)
    notes: list[str] = []
    asked = [_place(f"{source}: datasets", entry) for entry in config["datasets"]]
    protocols = _protocols(source, config, {task_of(place) for place in asked})
    runs = _runs(source, config, asked, notes)
    runs = {place: runs[place] for place in _at_hand(source, config, list(runs), notes)}
    builder = _Builder(config, protocols)
    for place, choices in runs.items():
        for choice in choices:
            builder.add(f"{source}: methods", *place, *choice)
    backbones = {e.backbone for e in builder.experiments}
    notes += dict.fromkeys(
        f"preset {Path(file).stem} was made for {wanted}; the plan runs {other}: choose others "
        "with presets"
        for protocol in protocols.values()
        for file, made_for in protocol.made_for.items()
        for key, wanted in made_for.items()
        for other in sorted({"protocol": {protocol.name}, "backbone": backbones}[key] - {wanted})
    )
    sweeps = tuple(_sweeps(source, config, builder, asked, runs, notes))
    comparison = _comparison(source, config, runs, notes)
    audited = _audited(source, config, asked, runs, notes)
    plan = Plan(
        config,
        {name: _source(source, config, name) for name in dict.fromkeys(d for d, _ in runs)},
        tuple(replace(e, keep_epochs=e.key in audited) for e in builder.experiments),
        sweeps,
        comparison,
        tuple(notes),
    )
    _check_checkpoints(plan, source)
    _check_scored_alike(plan, source)
    for e in plan.experiments:
        _check_selection(plan, e, source)
    return plan


def task_of(place: Place) -> TaskKind:
    """Of a dataset and its split, both known."""
    dataset, split = place
    return registry.load_dataset(dataset).SPEC.task_of(split)


def _protocols(
    source: str, config: Mapping[str, Any], tasks: set[TaskKind]
) -> dict[TaskKind, ProtocolFile]:
    """The protocols of these tasks."""
    protocols = {}
    for task in sorted(tasks):
        key = PROTOCOL_OF[task]
        if key not in config:
            raise PedbenchError(
                f"{source}: '{key}' is missing: the file in config/protocols/ by which splits for "
                f"{TASKS[task]} are run"
            )
        protocol = read_protocol(config[key], tuple(config["presets"]), source, key)
        if protocol.task != task:
            raise PedbenchError(
                f"{source}: {key}: {protocol.name} is a protocol for {TASKS[protocol.task]}"
            )
        protocols[task] = protocol
    return protocols


def _check_selection(plan: Plan, e: Experiment, source: str) -> None:
    protocol, where = protocol_of(e.spec), f"{source}: {e.key}: selection {{}}"
    where = where.format(protocol.selection)
    if protocol.selects_by and plan.lacks_validation(e):
        raise PedbenchError(
            f"{where} chooses epochs by validation images, and {e.dataset}/{e.split} has none: use "
            "last_epoch, or a split that has some"
        )
    if protocol.selects_by not in (None, HEADLINE[protocol.task]):
        known = f"best_val_{HEADLINE[protocol.task]}"
        raise PedbenchError(f"{where}: in {TASKS[protocol.task]} it is {known}")


def check_results_folder(results: str) -> None:
    """Raises PedbenchError unless ``results`` is, or can be made, a folder to write into, and
    no file is in the place of one of its folders."""
    path = Path(results).absolute()
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        what = "cannot be written" if nearest.is_dir() else "is a file"
        raise PedbenchError(
            f"{results}: the results folder cannot be used: {nearest} {what}. Make it writable, or "
            "name another with 'results' in the config"
        )
    for name in FOLDERS:
        if (path / name).is_file():
            raise PedbenchError(
                f"{results}/{name}: is a file where a folder has to be; move it away, or name "
                "another results folder with 'results' in the config"
            )


def lost(plan: Plan) -> set[str]:
    """Outputs of the DAG that were deleted after they were made, or whose content was.

    Snakemake does not ask for an output whose successors exist, and knows nothing of what a marker
    or a manifest stands for: seed folders with their scores, the pictures of a generated dataset.
    """
    outputs = plan.outputs
    gone = {output for output in outputs if not Path(output).exists()}
    if gone == outputs:  # a first run
        return set()
    sources = plan.sources.values()
    pending = [batch for batch in plan.batches if not batch.is_finished()]
    unfinished = {batch.marker for batch in pending}
    wanted = [batch.experiment for batch in pending]
    unprepared = {plan.prepared(e) for e in wanted if not Path(plan.store(e)).exists()}
    generated = {s.manifest for s in sources if s.generated and not Path(s.root).is_dir()}
    unscored = {f"{plan.results}/scored.json"} if _unscored(plan) else set()
    return gone | unfinished | unprepared | generated | unscored


def _unscored(plan: Plan) -> bool:
    """Whether a run lacks a file that comes before the tables."""
    runs = [RunFolder(folder) for _, _, folder in runs_of(plan.as_json())]
    return any(not run.done.is_file() or not _scored(run) for run in runs)


def _scored(run: RunFolder) -> bool:
    names = [f"{n}.{s}.{end}" for n, end in PER_SUBSET for s in run.predicted]
    return all((run.path / name).is_file() for name in names)


def config_source(files: Iterable[Path], overrides: Mapping[str, Any]) -> str:
    """How messages name a config: its files, and ``--config`` if that was given."""
    names = [os.path.relpath(file) for file in files] + (["--config"] if overrides else [])
    return " + ".join(names) or "config"


def write_plan(config: Mapping[str, Any], out: Path) -> None:
    """Write ``results/plan.json``."""
    write_json(out, make_plan(config).as_json())


class _Builder:
    """Collects experiments; the same values are never run twice: a second entry of ``methods``
    with them is refused, a sweep's point uses the run that is there."""

    def __init__(
        self, config: Mapping[str, Any], protocols: Mapping[TaskKind, ProtocolFile]
    ) -> None:
        self.config, self.protocols = config, protocols
        self.experiments: list[Experiment] = []

    def add(self, where: str, dataset: str, split: str, method: str, variant: str) -> None:
        values = self._values((dataset, split), method, variant)
        twin = self._same(dataset, split, method, values)
        if twin is not None:
            raise PedbenchError(
                f"{where}: '{method}/{variant}' has the same values as '{method}/{twin.variant}' "
                f"under protocol {values['protocol']['name']}; delete one of them"
            )
        self._append(dataset, split, method, variant, values, in_tables=True)

    def line(
        self,
        name: str,
        where: str,
        place: tuple[str, str],
        choice: tuple[str, str],
        entry: Mapping[str, Any],
    ) -> Line:
        (method, base), parameter = choice, entry["parameter"]
        points = []
        for value in entry["values"]:
            try:
                values = self._values(place, method, base, {parameter: value}, name)
            except PedbenchError as error:
                reason = str(error).removeprefix(f"sweep {name}: ")
                raise PedbenchError(f"{where}: {reason}") from None
            same = self._same(*place, method, values)
            variant = same.variant if same else f"{base}-{parameter}{value}"
            if same is None:
                self._append(*place, method, variant, values, in_tables=False)
            points.append(Point(value, variant))
        return Line(method, base, tuple(points))

    def _values(self, place: Place, method: str, variant: str, *swept: Any) -> dict[str, Any]:
        values = resolve_values(method, variant, self.protocols[task_of(place)], *swept)
        return {"backbone": self.config["backbone"], **values}

    def _same(self, dataset: str, split: str, method: str, values: Any) -> Experiment | None:
        """The experiment that already runs these values, whatever their origin."""
        place = (dataset, split, method)
        for other in self.experiments:
            here = (other.dataset, other.split, other.method) == place
            if here and plain({part: other.spec[part] for part in values}) == plain(values):
                return other
        return None

    def _append(
        self, dataset: str, split: str, method: str, variant: str, values: Any, in_tables: bool
    ) -> None:
        key = {"dataset": dataset, "split": split, "method": method, "variant": variant}
        spec = {**key, **values}
        seeds = tuple(self.config["seeds"]) if registry.trains(method) else (0,)
        folder = "/".join((self.config["results"], "runs", *key.values()))
        self.experiments.append(
            Experiment(
                **key,
                seeds=seeds,
                folder=folder,
                spec=spec,
                in_tables=in_tables,
                keep_epochs=False,
            )
        )


def _place(where: str, entry: str) -> Place:
    """``dataset/split``, both known."""
    dataset, _, split = entry.partition("/")
    try:
        spec = registry.load_dataset(dataset).SPEC
    except PedbenchError as error:
        raise PedbenchError(f"{where}: {error}") from None
    if split in spec.without:
        raise PedbenchError(f"{where}: {dataset} has no split '{split}': {spec.without[split]}")
    if split not in spec.splits:
        raise PedbenchError(
            f"{where}: {dataset} has no split '{split}'{registry.suggest(split, spec.splits)} "
            f"(it has: {', '.join(spec.splits)})"
        )
    return dataset, split


def _choice(where: str, entry: str) -> Choice:
    """``method/variant``; the method is known, `resolve` knows the variants."""
    method, _, variant = entry.partition("/")
    try:
        registry.source_path("method", method)
    except PedbenchError as error:
        raise PedbenchError(f"{where}: {error}") from None
    return method, variant or DEFAULT


def _runs(
    source: str, config: Mapping[str, Any], places: list[Place], notes: list[str]
) -> dict[Place, list[Choice]]:
    """What runs where, in the order of ``methods``: of those for everywhere what is defined for
    the task of the place."""
    runs: dict[Place, list[Choice]] = {place: [] for place in places}
    for entry in config["methods"]:
        everywhere = isinstance(entry, str)
        choices = [
            _choice(f"{source}: methods", name)
            for name in ([entry] if everywhere else entry["methods"])
        ]
        wanted = config["datasets"] if everywhere else entry["datasets"]
        what = ", ".join("/".join(choice).removesuffix(f"/{DEFAULT}") for choice in choices)
        if everywhere and not any(_defined(*choices[0], task_of(place)) for place in places):
            notes.append(f"methods: {entry} left out: no place of the plan is of its task")
        for name in wanted:
            place = _place(f"{source}: methods: datasets", name)
            fit = [choice for choice in choices if _defined(*choice, task_of(place))]
            if not everywhere and len(fit) < len(choices):
                strange = next(choice for choice in choices if choice not in fit)
                method = "/".join(strange).removesuffix(f"/{DEFAULT}")
                raise PedbenchError(
                    f"{source}: methods: {method} is not defined for {TASKS[task_of(place)]}, and "
                    f"{name} is for that; delete it there"
                )
            if place in runs:
                runs[place] += fit
            else:
                notes.append(f"methods: {what} left out on {name}, which is not in the plan")
    if not any(runs.values()):
        entries = [e if isinstance(e, str) else ", ".join(e["methods"]) for e in config["methods"]]
        named = ", ".join(entries)
        wanted = "; ".join(f"{'/'.join(p)} is for {TASKS[task_of(p)]}" for p in places)
        raise PedbenchError(
            f"{source}: methods: none of {named} is defined where it would run: {wanted}; add "
            "methods for that, or datasets for theirs (pedbench list says which)"
        )
    return {place: choices for place, choices in runs.items() if choices}


def _defined(method: str, variant: str, task: TaskKind) -> bool:
    """Whether the method solves the task and the variant sets nothing that only others read.
    Raises PedbenchError for an unknown variant."""
    if task not in registry.class_attribute(method, "tasks"):
        return False
    return not foreign_to(task).intersection(changes_of(method, variant))


def _at_hand(
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


def _needed(config: Mapping[str, Any], name: str) -> dict[str, str | None]:
    """The obtained datasets that ``name`` is read from, and their folders as far as we are told."""
    dataset, root = registry.load_dataset(name), root_of(config, name)
    obtained = not registry.is_made(type(dataset))
    if obtained or (root and dataset.PARENTS):
        return {name: root}
    made_of = dataset.PARENTS.items()
    return {p: root_of(config, p) for p, parent in made_of if not registry.is_made(parent)}


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


def _sweeps(
    source: str,
    config: Mapping[str, Any],
    builder: _Builder,
    asked: list[Place],
    runs: Mapping[Place, list[Choice]],
    notes: list[str],
) -> Iterator[Sweep]:
    """Each that has a line; ``asked``: the places of the plan, also without data."""
    for name, entry in config["sweeps"].items():
        where = f"{source}: sweeps.{name}"
        place, swept = _place(where, entry["dataset"]), _swept(where, entry)
        if place not in runs:
            if place not in asked:
                notes.append(f"sweep {name} left out: {entry['dataset']} is not in the plan")
            continue
        absent = [method for method, choice in swept.items() if choice not in runs[place]]
        notes += [f"sweep {name}: {method} left out, it is not in the plan" for method in absent]
        lines = [
            builder.line(name, where, place, choice, entry)
            for method, choice in swept.items()
            if method not in absent
        ]
        if lines:
            yield Sweep(name, *place, entry["parameter"], tuple(lines))


def _swept(where: str, entry: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The methods of a sweep as written -> method and variant."""
    if ("method" in entry) == ("methods" in entry):
        raise PedbenchError(f"{where}: name either one 'method' or a list of 'methods'")
    choices = {m: _choice(where, m) for m in entry.get("methods", [entry.get("method")])}
    twice = [
        method for method, choice in choices.items() if list(choices.values()).count(choice) > 1
    ]
    if twice:
        raise PedbenchError(f"{where}: methods: {' and '.join(twice)} are the same; delete one")
    return choices


def _check_names(config: Mapping[str, Any], source: str) -> None:
    """The backbone, and the keys under which datasets and backbones get something, are known."""
    datasets = registry.datasets()
    for key, names, known in (
        ("backbone", [config["backbone"]], BACKBONES),
        ("checkpoints", config["checkpoints"], BACKBONES),
        ("roots", config["roots"], datasets),
        ("dataset_options", config["dataset_options"], datasets),
    ):
        what = "dataset" if known is datasets else "backbone"
        for name in names:
            if name not in known:
                raise PedbenchError(
                    f"{source}: {key}: unknown {what} '{name}'{registry.suggest(name, known)} "
                    f"(known: {', '.join(known)})"
                )


def _check_checkpoints(plan: Plan, source: str) -> None:
    """The files named for the plan's backbones exist; other backbones' need not."""
    for name in plan.backbones:
        file = plan.config["checkpoints"].get(name)
        if file is not None and not Path(file).is_file():
            raise PedbenchError(
                f"{source}: checkpoints.{name}: there is no file {file}; correct the path, or "
                "delete the entry to use the shipped or downloaded weights"
            )


def _check_scored_alike(plan: Plan, source: str) -> None:
    """No two experiments of a dataset differ in what their test scores mean: `collect` would
    refuse them, after the training."""
    for dataset in plan.sources:
        seen: dict[str, str] = {}
        for e in plan.experiments:
            if e.dataset == dataset and e.spec["protocol"]["task"] == "par":
                seen.setdefault(_scoring(plain(e.spec["protocol"])), e.key)
        if len(seen) > 1:
            (one, first), (other, second) = list(seen.items())[:2]
            raise PedbenchError(
                f"{source}: {first} and {second} cannot stand in one table: one is scored with "
                f"{one}, the other with {other}; give both the same, or make two plans with "
                "results folders of their own"
            )


def _scoring(protocol: Mapping[str, Any]) -> str:
    unknown = "counted as negative" if protocol["unknown_labels"] == "negative" else "left out"
    return f"threshold {protocol['threshold']}, f1 {protocol['f1']}, unknown test labels {unknown}"


def _comparison(
    source: str, config: Mapping[str, Any], runs: Mapping[Place, list[Choice]], notes: list[str]
) -> Comparison:
    entries = dict(config["comparison"])
    wanted = entries.pop("baseline", "linear_probe")
    choice = _choice(f"{source}: comparison.baseline", wanted)
    known = any(choice in choices for choices in runs.values())
    if not known:
        notes.append(f"no significance tests: their baseline {wanted} is not in the plan")
    entries["metrics"] = tuple(entries.get("metrics", Comparison.metrics))
    return Comparison(baseline="/".join(choice) if known else None, **entries)


def _audited(
    source: str,
    config: Mapping[str, Any],
    asked: list[Place],
    runs: Mapping[Place, list[Choice]],
    notes: list[str],
) -> set[str]:
    """Keys of the experiments that `released_selection` names."""
    entry, where = config["released_selection"], f"{source}: released_selection"
    if not entry:
        return set()
    place = _place(where, entry["dataset"])
    if task_of(place) != "par":
        raise PedbenchError(
            f"{where}: {entry['dataset']} is for re-identification, whose released code chooses no "
            "epoch by test images; name a split for attribute recognition"
        )
    wanted = {method: _choice(where, method) for method in entry["methods"]}
    untrained = [method for method, (name, _) in wanted.items() if not registry.trains(name)]
    if untrained:
        raise PedbenchError(f"{where}: {untrained[0]} is not trained: it has no epochs; delete it")
    if place not in runs and place in asked:  # its data are absent, which is said once
        return set()
    known = runs.get(place, list(wanted.values()))
    absent = [entry["dataset"]] if place not in runs else []
    absent += [method for method, choice in wanted.items() if choice not in known]
    notes += [f"released_selection: {name} left out, it is not in the plan" for name in absent]
    return {"/".join((*place, *c)) for c in wanted.values() if c in runs.get(place, ())}


def _source(source: str, config: Mapping[str, Any], name: str) -> Source:
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


def runs_of(document: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], int, Path]]:
    """Experiment, seed and folder of every run in the contents of a ``plan.json``, but of those
    that the method refused."""
    for experiment in document["experiments"]:
        if refusal(Path(experiment["folder"])) is not None:
            continue
        for seed in experiment["seeds"]:
            yield experiment, seed, Path(experiment["folder"]) / f"seed{seed}"
