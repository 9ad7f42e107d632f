"""The runs of both sides, whether they may be compared, and the tests.

The differences are those of ``stats``: the same pairs have the same numbers there and here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pedbench.collect import mismatch
from pedbench.config import DEFAULT, Protocol
from pedbench.contracts import PedbenchError, TaskKind
from pedbench.evaluation import KINDS, evaluation
from pedbench.files import read_json
from pedbench.manifest import Manifest, read_manifest
from pedbench.plan import Comparison, runs_of
from pedbench.registry import suggest
from pedbench.results import PLAN, Document, Run, read_plan, read_runs
from pedbench.stats import (
    Samples,
    family,
    pairs_of,
    resample_runs,
    stream,
    unit_of,
    units_of,
)
from pedbench.tasks import TESTED

UNKNOWN = "not known"

Row = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """One of the two: ``name`` as asked, the results it is from, its runs by dataset/split."""

    name: str
    root: Path
    plan: Document
    local: bool
    runs: Mapping[str, list[Run]]

    def manifest(self, dataset: str) -> Manifest:
        return read_manifest(Path(self.plan["datasets"][dataset]["manifest"]))


@dataclass(frozen=True)
class Versus:
    """A comparison: ``tests`` has one row per place and metric, ``seeds`` one per seed of it, in
    percent; ``notes`` say what else differs and what was left out."""

    a: Side
    b: Side
    tests: list[Row]
    seeds: list[Row]
    notes: list[str]
    alpha: float
    resamples: int


def versus(
    first: str,
    second: str,
    results: Path,
    imported: Path,
    places: Sequence[str] = (),
    metrics: Sequence[str] = (),
) -> Versus:
    """Test ``first`` against ``second``, each "method[/variant]" or "import:method[/variant]".

    ``places`` ("dataset/split") and ``metrics`` narrow the comparison; by default they are all
    places where both were run and the metrics of the plan, at each place those that its task has.
    Raises PedbenchError for unknown names,
    and when the two were not made under one protocol version, threshold and definition of F1 from
    one manifest.
    """
    a, b = (read_side(name, results, imported) for name in (first, second))
    if (a.root, a.name) == (b.root, b.name):
        raise PedbenchError(f"compare: both sides are {a.name}; name two variants")
    settings = Comparison(**(b if b.local and not a.local else a).plan["comparison"])
    metrics = check_metrics(metrics or settings.metrics)
    alpha, resamples = settings.alpha, settings.resamples
    notes: list[str] = []
    tests: list[Row] = []
    seeds: list[Row] = []
    for place in common_places(a, b, places, notes):
        dataset, split = place.split("/")
        runs = [*named(a, place), *named(b, place)]
        here = [m for m in metrics if m in known_metrics(runs[0].task)]
        if not here:
            notes.append(f"{place}: left out, it has none of the metrics {', '.join(metrics)}")
            continue
        check_same(a, b, dataset, runs)
        check_weights(a, b, place)
        manifest = (b if b.local else a).manifest(dataset)
        evaluated = [evaluation(run, manifest, "test") for run in runs]
        unit = unit_of(manifest, split)
        units = units_of(evaluated[0].identity, unit)
        rng = np.random.default_rng(stream(settings.seed, dataset, split))
        samples = resample_runs(runs, evaluated, here, resamples, units, rng)
        by_seed = values_of(samples, place)
        count = {"place": place, "n": units.max() + 1, "unit": unit}
        for row in family(samples, [((a.name, ""), (b.name, ""))], alpha):
            values = [(s["a"], s["b"]) for s in by_seed if s["metric"] == row["metric"]]
            tests.append(row | count | dict(zip("ab", np.mean(values, axis=0), strict=True)))
        seeds += by_seed
        notes += [f"{place}: {line}" for line in differing(a, b, place)]
        notes += unpaired(a, b, place)
    if not tests:
        raise PedbenchError(f"{a.name} and {b.name} were compared nowhere: {'; '.join(notes)}")
    return Versus(a, b, tests, seeds, notes, alpha, resamples)


def read_side(name: str, results: Path, imported: Path) -> Side:
    """The variant that ``name`` stands for and its finished runs."""
    source, _, variant = name.rpartition(":")
    root = imported / source if source else results
    if source and not (root / PLAN).is_file():
        known = sorted(path.parent.name for path in imported.glob(f"[!.]*/{PLAN}"))
        raise PedbenchError(
            f"{name}: nothing was imported as '{source}'{suggest(source, known)} (imported: "
            f"{', '.join(known) or 'nothing'}). Unpack a bundle with 'pedbench import FILE --as "
            f"{source}'"
        )
    plan = read_plan(root)
    method, _, label = variant.partition("/")
    wanted = f"{method}/{label or DEFAULT}"
    found: dict[str, list[Path]] = {}
    for experiment, _, folder in runs_of(plan):
        if f"{experiment['method']}/{experiment['variant']}" == wanted:
            place = f"{experiment['dataset']}/{experiment['split']}"
            found.setdefault(place, []).append(folder)
    if not found:
        raise PedbenchError(f"{name}: {absence(plan, wanted)}")
    lacking = [f for folders in found.values() for f in folders if not done(f)]
    if lacking:
        raise PedbenchError(
            f"{lacking[0]}: not finished; run 'snakemake --cores all {root}/tables' first"
        )
    runs = {place: read_runs(folders) for place, folders in found.items()}
    short = wanted.removesuffix(f"/{DEFAULT}")
    return Side(f"{source}:{short}" if source else short, root, plan, not source, runs)


def done(folder: Path) -> bool:
    return (folder / "train.done.json").is_file()


def absence(plan: Document, wanted: str) -> str:
    """Why ``plan`` has no run of ``wanted``, and what it has."""
    known = dict.fromkeys(f"{e['method']}/{e['variant']}" for e in plan["experiments"])
    if wanted in known:
        return f"the method refused every dataset of {plan['results']}"
    of_method = [name for name in known if name.partition("/")[0] == wanted.partition("/")[0]]
    short = [name.removesuffix(f"/{DEFAULT}") for name in of_method or known]
    hint = suggest(wanted.removesuffix(f"/{DEFAULT}"), short)
    return f"not in {plan['results']}{hint} (it has: {', '.join(short)})"


def known_metrics(task: TaskKind) -> dict[str, None]:
    """Those that two runs can be compared in."""
    return dict.fromkeys([*TESTED[task], *KINDS[task].metrics])


def check_metrics(metrics: Sequence[str]) -> list[str]:
    known = [metric for task in KINDS for metric in known_metrics(task)]
    for metric in metrics:
        if metric not in known:
            raise PedbenchError(
                f"--metrics: unknown metric '{metric}'{suggest(metric, known)} (known: "
                f"{', '.join(known)})"
            )
    return list(dict.fromkeys(metrics))


def common_places(a: Side, b: Side, wanted: Sequence[str], notes: list[str]) -> list[str]:
    """Where both were run, in the order of the plan; the others go to ``notes``."""
    every = dict.fromkeys([*a.runs, *b.runs])
    common = [place for place in every if place in a.runs and place in b.runs]
    for place in wanted:
        if place not in common:
            missing = [side.name for side in (a, b) if place not in side.runs]
            raise PedbenchError(
                f"--place {place}: {' and '.join(missing)} was not run there"
                f"{suggest(place, common)} (both were run on: {', '.join(common) or 'no place'})"
            )
    if not common:
        raise PedbenchError(
            f"{a.name} and {b.name} have no dataset and split in common: {a.name} was run on "
            f"{', '.join(a.runs)}; {b.name} on {', '.join(b.runs)}"
        )
    for place in every if not wanted else ():
        missing = [side.name for side in (a, b) if place not in side.runs]
        notes += [f"{place}: left out, {name} was not run there" for name in missing]
    return [place for place in common if place in (wanted or common)]


def named(side: Side, place: str) -> list[Run]:
    """The runs of ``side``, under its name: both sides may hold a method of the same name."""
    return [replace(run, method=side.name, variant="") for run in side.runs[place]]


def check_same(a: Side, b: Side, dataset: str, runs: list[Run]) -> None:
    """Raises PedbenchError, with what to do, when the two must not be compared."""
    found = mismatch(runs)
    if found is None:
        return
    if found.what == "protocols":
        raise PedbenchError(
            f"{a.name} and {b.name} cannot be compared: they were run under different protocols "
            f"({' against '.join(found.values)}), so their numbers mean different things. Run both "
            "under one: the same 'protocol' in both plans and the same version of pedbench"
        )
    reason = between(a.manifest(dataset), b.manifest(dataset))
    raise PedbenchError(
        f"{a.name} and {b.name} cannot be compared: {dataset} was not the same for both: {reason}. "
        "Use the same release of the dataset, the same 'dataset_options' and the same version of "
        "pedbench, and run one of them again"
    )


def check_weights(a: Side, b: Side, place: str) -> None:
    """Raises PedbenchError when backbones of one name had different weights."""
    seen: dict[str, str] = {}
    for run in (*a.runs[place], *b.runs[place]):
        sha256 = read_json(run.folder / "environment.json")["weights_sha256"]
        known = seen.setdefault(run.config["backbone"], sha256)
        if known != sha256:
            raise PedbenchError(
                f"{a.name} and {b.name} cannot be compared on {place}: the weights of "
                f"{run.config['backbone']} were not the same for both (sha256 {known[:12]} against "
                f"{sha256[:12]}), so it is another backbone under the same name. Run both with the "
                "same checkpoint ('checkpoints' in the config)"
            )


def between(one: Manifest, other: Manifest) -> str:
    """What differs in two manifests, as far as both hold it."""
    if one.attributes != other.attributes:
        return "their attributes differ, or the words for them"
    left, right = (m.rows.set_index("image") for m in (one, other))
    columns = [c for c in left if c in right and c != "camera"]
    shared = left.index.intersection(right.index)
    if shared.empty:
        return "they have no image in common"
    for column in columns:
        count = int((left.loc[shared, column] != right.loc[shared, column]).sum())
        if count:
            what = {"sha256": "the files of", "identity": "the persons on"}.get(
                str(column), f"'{column}' of"
            )
            return f"{what} {count} of {len(shared)} images differ"
    return f"their digests differ ({one.digest[:12]} against {other.digest[:12]})"


def values_of(samples: Samples, place: str) -> list[Row]:
    """The values of both at each pair of seeds, one row per metric and pair."""
    rows = []
    for metric, sides in samples.items():
        a, b = sides.values()
        for i, j in pairs_of(a, b):
            row = {"place": place, "metric": metric, "seed_a": i, "seed_b": j}
            row |= {"a": a.value[i], "b": b.value[j]}
            rows.append(row | {"difference": a.value[i] - b.value[j]})
    return rows


def differing(a: Side, b: Side, place: str) -> list[str]:
    """The backbone and the shared settings in which the two differ."""
    one, other = (settings_of(side.runs[place][0]) for side in (a, b))
    return [
        f"{key} {shown(one.get(key, UNKNOWN))} against {shown(other.get(key, UNKNOWN))}"
        for key in sorted({*one, *other})
        if one.get(key) != other.get(key)
    ]


def unpaired(a: Side, b: Side, place: str) -> list[str]:
    """The seeds that one side alone has; a run that trains nothing is paired with every seed."""
    seeds = {side.name: {run.seed for run in side.runs[place]} for side in (a, b)}
    if not all(run.trained for side in (a, b) for run in side.runs[place]):
        return []
    common = set.intersection(*seeds.values())
    return [
        f"{place}: seeds {', '.join(map(str, sorted(own - common)))} of {name} left out"
        for name, own in seeds.items()
        if own - common
    ]


def settings_of(run: Run) -> dict[str, Any]:
    known = {field.name for field in fields(Protocol)}
    settings = {key: value for key, value in run.protocol.items() if key in known}
    return {"backbone": run.config.get("backbone"), **settings}


def shown(value: Any) -> str:
    """A setting on one line."""
    return str(value).replace("\n", " ")[:80]
