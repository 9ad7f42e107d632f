"""The words around a table: caption, reasons for gaps, settings that depart from the paper's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pedbench.config import DEFAULT, plain, read_protocol
from pedbench.contracts import TaskKind
from pedbench.files import read_json
from pedbench.manifest import Manifest
from pedbench.plan import TASKS
from pedbench.published import TOLERANCE, UNSTATED
from pedbench.published import Row as Published
from pedbench.results import display_name
from pedbench.runs import commit_of, device_of, refusal
from pedbench.tables.definitions import Definition
from pedbench.tables.model import BETTER, WORSE
from pedbench.tables.source import Experiment, Results, place_of, task_of
from pedbench.tasks.reid import LABELS

F1_MEANING = {
    "F1_instance": "F1 (instance): mean of the F1 of each image",
    "F1_harmonic": "F1 (harmonic): harmonic mean of mean precision and mean recall",
    f"F1_{UNSTATED}": "F1 (not stated): published without a definition that could be told",
}
MEANING: Mapping[TaskKind, Mapping[str, str]] = {
    "par": {
        **{"Acc_label": "Acc label: share of right predictions of each attribute, mean over them"},
        "mAP": "mAP: average precision of each attribute, mean over attributes; it needs no "
        "threshold",
        **F1_MEANING,
    },
    "reid": {
        "mAP": "mAP: average precision of each query, mean over queries",
        "rank1": "Rank-k: share of queries with a right image among the first k of the gallery",
        "mINP": "mINP: share of right images down to the last of them, mean over queries",
    },
}
SELECTION = {
    "last_epoch": "weights of the last epoch",
    **{
        f"best_val_{m}": f"weights of the epoch with the best validation {m}" for m in ("mA", "mAP")
    },
}
PAPER: Mapping[TaskKind, str] = {"par": "paper", "reid": "paper_reid"}  # protocols
UNKNOWN_LABELS = {
    "ignored": "are left out",
    "negative_in_training": "are left out",
    "negative": "count as negative",
}
UNITS = {"image": "images", "identity": "identities"}
IN_WORDS = {
    "stretch": "stretch (native 2:1 input)",
    "pad_square": "pad_square (square padding)",
    "clip_last_block": "clip_last_block (last visual block of the CLIP)",
}
CAMERAS = (
    "For a query the gallery is without the images of its own person by its own camera; images of "
    "persons whom no query asks for stay in it. Features are compared by their cosine; images that "
    "are equally near stand in the manifest's order"
)
WITHOUT_EFFECT = ("version", "eval_batch_size", "checkpoint_steps")  # settings that move no score


def caption(
    definition: Definition,
    shown: Sequence[Experiment],
    results: Results,
    tests: pd.DataFrame,
    metrics: Sequence[str],
    published: Sequence[Published],
) -> str:
    """What the numbers are, under which settings, and what the marks mean."""
    sentences = [definition.caption] if definition.caption else []
    if shown:
        sentences += [*measured(shown, results), *of_data(shown, results)]
        sentences += parameters(definition, shown)
        if definition.average and len(results.places(definition)) > 1:
            sentences.append("Average: mean over the datasets, seed by seed.")
    meanings = MEANING[definition.task]
    sentences += [f"{text}." for key, text in meanings.items() if key in metrics]
    if published:
        mended = (
            " (notes.md says where cells were mended)" if any(r.notes for r in published) else ""
        )
        sentences.append(f"Published rows stand as printed{mended}; none was measured here.")
        if definition.task == "par":
            sentences.append(definitions_of(metrics))
    if shown:
        best = "best of ours" if published else "best"
        sentences.append(f"Bold: {best}; underlined: second.")
        sentences += marks(tests, results.alpha)
    return " ".join(sentences)


def definitions_of(metrics: Sequence[str]) -> str:
    """How we know what published rows mean by F1, and their threshold."""
    if not any(metric.startswith("F1") for metric in metrics):
        return "Thresholds are those of released code."
    known = "Threshold and definition of F1 are those of released code where we know it"
    if "F1_harmonic" not in metrics:
        return f"{known}."
    return (
        f"{known}; else an F1 is harmonic if it equals the harmonic mean of the printed Prec and "
        f"Recall to {TOLERANCE}."
    )


def measured(shown: Sequence[Experiment], results: Results) -> list[str]:
    """Subset, seeds and protocol of the runs in a table."""
    seeds = sorted({seed for e in shown for seed in e["seeds"]})
    configs = [plain(results.specs[e["folder"]]) for e in shown]
    protocol = configs[0]["protocol"]
    kept = dict.fromkeys(config["protocol"]["selection"] for config in configs)
    backbones = ", ".join(dict.fromkeys(str(config["backbone"]) for config in configs))
    over = (
        f"mean ± standard deviation over {len(seeds)} seeds; without ±: one run"
        if len(seeds) > 1
        else "one seed"
    )
    asked, threshold = "Test images", f"threshold {protocol['threshold']}, "
    if protocol.get("task") == "reid":
        asked, threshold = "Queries of the test subset against its gallery", ""
    return [
        f"{asked}, in percent, {over}.",
        f"Protocol {protocol['name']} (version {protocol['version']}), backbone {backbones}, "
        f"{threshold}"
        f"{' or '.join(SELECTION.get(str(name), str(name)) for name in kept)}.",
    ]


def of_data(shown: Sequence[Experiment], results: Results) -> list[str]:
    """What becomes of unknown labels in the test images of a table's datasets, and on which of
    these there are remarks in notes.md."""
    treated: dict[str, dict[str, None]] = {}
    for e in shown:
        if place_of(e) in results.with_unknown:
            protocol = plain(results.specs[e["folder"]]["protocol"])
            how = UNKNOWN_LABELS[protocol.get("unknown_labels", "ignored")]
            treated.setdefault(how, {})[e["dataset"]] = None
    sentences = [
        f"Unknown labels in the test images of {', '.join(datasets)} {how}."
        for how, datasets in treated.items()
    ]
    datasets = dict.fromkeys(e["dataset"] for e in shown)
    remarked = [name for name in datasets if results.manifests[name].remarks]
    return sentences + ([f"See notes.md: remarks on {', '.join(remarked)}."] if remarked else [])


def remarks(manifest: Manifest) -> list[str]:
    """What was noticed in a dataset's files, without the folder where its user keeps them."""
    root = rf"(?<!\S){re.escape(str(manifest.root))}(?=[/:\s])"
    return [re.sub(root, manifest.dataset, " ".join(r.split())) for r in manifest.remarks]


def parameters(definition: Definition, shown: Sequence[Experiment]) -> list[str]:
    """Where parameters were counted, if they may differ between the places of a table."""
    counted = any(c.measured.startswith("parameters_") for c in definition.columns)
    places = list(dict.fromkeys(f"{e['dataset']}/{e['split']}" for e in shown))
    return [f"Parameters as on {places[0]}."] if counted and len(places) > 1 else []


def marks(tests: pd.DataFrame, alpha: float) -> list[str]:
    """What ↑ and ↓ mean, if there are any tests."""
    if tests.empty:
        return []
    first = tests.iloc[0]
    units = " or ".join(UNITS[unit] for unit in dict.fromkeys(tests["unit"]))
    families = " or ".join(str(size) for size in dict.fromkeys(tests["family"]))
    metrics = dict.fromkeys(LABELS.get(metric, metric) for metric in map(str, tests["metric"]))
    return [
        f"{BETTER} {WORSE}: above or below "
        f"{display_name(first['against_method'], first['against_variant'])} in "
        f"{' or '.join(metrics)} (paired bootstrap of the test "
        f"{units}, variance of the seeds; p < {alpha} after Holm's correction over the {families} "
        "tests of a dataset and split). No mark: not shown to differ, which with few seeds takes a "
        "large difference."
    ]


def refusals(experiments: Sequence[Experiment]) -> list[str]:
    """A sentence on every variant whose method cannot solve the task, with the reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for e in experiments:
        if reason := refusal(Path(e["folder"])):
            name = display_name(e["method"], e["variant"])
            found.setdefault((name, reason), []).append(e["dataset"])
    return [f"{name} was not run on {', '.join(on)}: {why}." for (name, why), on in found.items()]


def provenance(experiments: Sequence[Experiment]) -> list[str]:
    """Commit, torch and device of the runs, a line for each combination with the number of runs.

    Only equal settings make a run count as finished, not equal versions, so a table may hold
    runs of several; numbers repeat to the bit only within one.
    """
    folders = (Path(e["folder"]) / f"seed{n}" for e in experiments for n in e["seeds"])
    files = [folder / "environment.json" for folder in folders]
    counts = Counter(_made_by(read_json(file)) for file in files if file.is_file())
    return [f"{how}: {runs} run{'s' * (runs > 1)}" for how, runs in counts.most_common()]


def _made_by(record: dict[str, Any]) -> str:
    torch = record["packages"]["torch"]
    threads = f"{record['threads']} thread{'s' * (record['threads'] > 1)}"
    return f"commit {commit_of(record)}, torch {torch}, {device_of(record)}, {threads}"


def departures(specs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line on the protocol of each task of ``specs`` (config.json of variants) and one for each
    method, of the settings that are not those of the paper's protocol or of the method's paper."""
    by_task: dict[TaskKind, list[Mapping[str, Any]]] = {}
    for spec in specs:
        by_task.setdefault(task_of(spec), []).append(spec)
    lines = []
    for task, of_task in by_task.items():
        about = f" in {TASKS[task]}" if len(by_task) > 1 else ""
        lines += [f"{who}{about}: {what}" for who, what in _departures(task, of_task)]
    return lines


def _departures(task: TaskKind, specs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    name, paper = plain(specs[0]["protocol"])["name"], read_protocol(PAPER[task]).values
    changed = [
        f"{key} {in_words(value)} instead of {in_words(paper[key])}"
        for key, value in read_protocol(name).values.items()
        if value != paper[key] and key not in WITHOUT_EFFECT
    ]
    if changed:
        yield "All methods", ", ".join(changed)
    own: dict[str, dict[str, str]] = {}
    for spec in specs:
        for section, key, value in from_presets(spec):
            method, _, label = section.partition("/")
            own.setdefault(display_name(method, label or DEFAULT), {})[key] = value
    for title, values in own.items():
        yield title, ", ".join(f"{key} {value}" for key, value in values.items())


def retrieval(results: Results) -> list[str]:
    """What is asked for where, a line per place for re-identification."""
    lines = []
    for place in (place for place, task in results.tasks.items() if task == "reid"):
        scores = next(_scores(e) for e in results.experiments if place_of(e) == place and _ran(e))
        skipped = scores["skipped"]
        lines.append(
            f"{'/'.join(place)}: {scores['queries']:,} queries, {scores['gallery']:,} images in "
            f"the gallery; skipped, for want of a right image there: {skipped:,}"
        )
    return lines + [CAMERAS] * bool(lines)


def _ran(experiment: Experiment) -> bool:
    return refusal(Path(experiment["folder"])) is None


def _scores(experiment: Experiment) -> Mapping[str, Any]:
    folder = Path(experiment["folder"]) / f"seed{experiment['seeds'][0]}"
    return read_json(folder / "scores.test.json")


def from_presets(spec: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Section, setting and value, in words, of all that ``config/presets/`` sets in a run."""
    for key, entry in {**spec["protocol"], **spec["params"]}.items():
        if isinstance(entry, Mapping) and entry["from"].startswith("config/presets/"):
            yield entry["from"].partition(": ")[2], key, in_words(entry["value"])


def in_words(value: Any) -> str:
    return IN_WORDS.get(str(value), str(value))
