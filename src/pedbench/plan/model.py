"""What a plan consists of: datasets, experiments, jobs, sweeps, the comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from pedbench import registry
from pedbench.config import Protocol, protocol_of
from pedbench.contracts import TINY, TaskKind, own_options
from pedbench.files import digest
from pedbench.runs import RunFolder, refusal, store_of

PER_SUBSET = (("predictions", "parquet"), ("scores", "json"))  # of a run's folder
ANALYSIS = (  # files and folders of results, between runs and tables
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

    @cached_property
    def protocol(self) -> Protocol:
        """Its settings; asked for several times for every job."""
        return protocol_of(self.spec)


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
        return store_of(experiment.dataset, experiment.backbone, experiment.protocol)

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
            {key.name: getattr(e, key.name) for key in fields(e) if key.name != "spec"}
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
