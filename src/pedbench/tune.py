"""Equal budgets: every method, and every variant that is tuned by itself, gets the same number of
trials over the space the method declares.

A trial trains on the training subset and is scored on the validation subset, by mA or, in
re-identification, by mAP; test images are never read. What came out is a *record* (every trial) and
the preset made of it, both committed in ``config/presets/``. Only `tune` imports torch and optuna.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import yaml
from tqdm import tqdm

from pedbench import registry
from pedbench.config import (
    HEADLINE,
    ROOT,
    ProtocolFile,
    changes_of,
    plain,
    read_protocol,
    resolve,
    section_of,
    settings,
)
from pedbench.contracts import PedbenchError, TaskKind
from pedbench.files import digest, only_writer, read_json, write_json, write_text
from pedbench.plan import PROTOCOL_OF, Experiment, Plan, task_of
from pedbench.runs import RunConfig, RunFolder, derive_seed, run_digest

if TYPE_CHECKING:
    from pedbench.train import Job

Space = Mapping[str, tuple[float, float] | list[Any]]
Trial = Mapping[str, Any]  # values: key -> value; score: of the validation subset, None: diverged

PRESETS = "config/presets"
TUNED: Mapping[TaskKind, str] = {"par": "equal_budget", "reid": "equal_budget_reid"}  # presets
RANDOM_TRIALS = 5  # after the start, before the sampler trusts what it has seen


def tuned(plan: Plan) -> dict[str, Experiment]:
    """Section of the preset -> the experiment of ``plan`` that is tuned: each that trains.

    Raises PedbenchError unless the plan says ``trials``, has one dataset and something that trains,
    and every method declares a space that holds its start and nothing that its variant fixes.
    """
    if "trials" not in plan.config:
        raise PedbenchError(
            "tune: the config does not say how many 'trials' a method gets; use "
            "--configfile config/tune.yaml, or add them to yours"
        )
    if len(plan.config["datasets"]) > 1:
        raise PedbenchError("tune: 'datasets' names several; methods are tuned on one")
    if len(plan.backbones) > 1:
        raise PedbenchError(
            f"tune: 'methods' run on several backbones ({', '.join(plan.backbones)}); a preset is "
            "tuned on one"
        )
    chosen: dict[str, Experiment] = {}
    for experiment in plan.experiments:
        if plan.lacks_validation(experiment):
            raise PedbenchError(no_trials(experiment.dataset, experiment.split))
        if experiment.in_tables and registry.trains(experiment.method):
            _check_start(experiment, registry.read_search(experiment.method))
            chosen[section_of(experiment.method, experiment.variant)] = experiment
    if not chosen:
        raise PedbenchError("tune: nothing under 'methods' trains; add what is to be tuned")
    return chosen


def preset_of(plan: Plan) -> str:
    """The preset that tuning ``plan`` makes."""
    experiment = plan.experiments[0]
    return TUNED[task_of((experiment.dataset, experiment.split))]


def no_trials(dataset: str, split: str) -> str:
    """Why nothing is tuned on a split that has no validation images."""
    return (
        f"tune: {dataset}/{split} has no validation images, which trials are scored by; tune on a "
        "split that has some, and name the preset under 'presets'"
    )


def _check_start(experiment: Experiment, space: Space) -> None:
    method, label = experiment.method, experiment.variant
    where = f"methods/{method}.py: Method.search"
    if not space:
        raise PedbenchError(
            f"{where} is missing; declare what is tuned, e.g. search = {{'lr': (1e-4, 1e-1)}}"
        )
    fixed = changes_of(method, label).keys() & space
    if fixed:
        raise PedbenchError(
            f"tune: the variant {method}/{label} fixes '{min(fixed)}', which is searched; tune "
            "another variant"
        )
    for key, values in space.items():
        start = experiment.spec["params"][key]
        value = start["value"]
        if isinstance(values, tuple):
            inside = value is not None and values[0] <= value <= values[1]
        else:
            inside = value in values
        if not inside:
            raise PedbenchError(
                f"{where}: {key}: {values} does not hold the start {value} of {start['from']}; "
                "widen the space, or let a preset of the plan start inside"
            )


def tune(
    config_path: Path,
    manifest_path: Path,
    weights_path: Path,
    trials: int,
    seeds: Sequence[int],
    threads: int,
    out: Path,
    prepared: Path | None = None,
) -> None:
    """Run what is missing of the first ``trials`` trials and write their record to ``out``, under
    its section. The first trial is the start. Finished trials are kept beside ``config_path``,
    and each depends on those before it alone: a killed tuning goes on to the same record.

    A trial whose training diverges counts, without a score. Raises PedbenchError where several
    processes share the training: each would write the trials.
    """
    import torch

    from pedbench.manifest import read_manifest
    from pedbench.train import Job

    torch.set_num_threads(threads)
    config, raw = RunConfig.read(config_path), read_json(config_path)
    weights = read_json(weights_path)
    space = registry.read_search(config.method)
    whole = read_manifest(manifest_path)
    if not whole.has(config.split, "val"):
        raise PedbenchError(no_trials(config.dataset, config.split))
    manifest = whole.subset(config.split, "train", "val")
    job = Job(config, raw, manifest, weights_path, threads, ("val",), prepared)
    if job.accelerator.num_processes > 1:
        raise PedbenchError(
            "tune: a trial runs in one process; start it without torchrun (snakemake --cores tunes "
            "methods side by side)"
        )
    runs = [run_digest(config, s, manifest.digest, weights["sha256"], threads) for s in seeds]
    study = digest({"space": encode(space), "runs": runs})
    folder = config_path.parent / "trials"
    kept = folder / "finished.json"
    name = f"{config.method}/{config.variant}"
    with only_writer(folder.with_name(".trials.lock"), "tunes", folder):
        before = read_json(kept) if kept.is_file() else {}
        done: list[Trial] = before["trials"] if before.get("study") == study else []
        for number in tqdm(range(len(done), trials), f"{name}: trials", trials, initial=len(done)):
            start = {k: config.params[k] for k in space}
            values = suggest(space, done, seeds[0]) if done else start
            score = _score(job, {**config.params, **values}, seeds, folder / str(number))
            tqdm.write(f"{name}: trial {number}: {values}: {_percent(score)}")
            done = [*done, {"values": values, "score": score}]
            write_json(kept, {"study": study, "trials": done})
            shutil.rmtree(folder / str(number), ignore_errors=True)
    record = {
        "variant": config.variant,
        "settings": unsearched(config.method, raw, space),
        "space": encode(space),
        "trials": done[:trials],
    }
    write_json(out, {section_of(config.method, config.variant): record})


def _score(job: Job, params: dict[str, Any], seeds: Sequence[int], folder: Path) -> float | None:
    """Mean validation score over ``seeds``, as a fraction; None when training diverged."""
    from pedbench.engine import Diverged

    try:
        scores = [job.try_out(params, s, RunFolder(folder / f"seed{s}")) for s in seeds]
    except Diverged as error:
        tqdm.write(str(error))
        return None
    return round(fmean(scores), 6)


def suggest(space: Space, done: Sequence[Trial], seed: int) -> dict[str, Any]:
    """The next trial's values by TPE: a function of the arguments alone.

    Floats are rounded to three digits. Diverged trials count as worse than any other.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ranges: dict[str, optuna.distributions.BaseDistribution] = {
        key: optuna.distributions.FloatDistribution(*values, log=True)
        if isinstance(values, tuple)
        else optuna.distributions.CategoricalDistribution(values)
        for key, values in space.items()
    }
    sampler = optuna.samplers.TPESampler(
        n_startup_trials=1 + RANDOM_TRIALS,
        multivariate=True,
        seed=derive_seed(seed, "trial", str(len(done))) % 2**32,
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    states = optuna.trial.TrialState
    for trial in done:
        study.add_trial(
            optuna.create_trial(
                state=states.PRUNED if trial["score"] is None else states.COMPLETE,
                value=trial["score"],
                params=trial["values"],
                distributions=ranges,
            )
        )
    asked = study.ask(ranges).params
    return {key: _rounded(asked[key], values) for key, values in space.items()}


def _rounded(value: Any, values: tuple[float, float] | list[Any]) -> Any:
    if not isinstance(values, tuple):
        return value
    return min(max(float(f"{value:.3g}"), values[0]), values[1])


def encode(space: Space) -> dict[str, dict[str, list[Any]]]:
    """``space`` for JSON: key -> ``{"range": [low, high]}`` or ``{"choices": [...]}``."""
    return {
        key: {"range" if isinstance(values, tuple) else "choices": list(values)}
        for key, values in space.items()
    }


def unsearched(method: str, spec: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Key -> value of the settings in the resolved ``spec`` that all trials share."""
    every = plain({**spec["protocol"], **spec["params"]})
    return {key: every[key] for key in settings(method) if key not in space}


def outdated(section: str, one: Mapping[str, Any], protocol: ProtocolFile) -> str | None:
    """Why the record ``one`` of ``section`` says nothing about the method as it is now, under
    ``protocol`` with the presets it starts from; None if it does.

    A setting that came later is taken to leave things as they were.
    """
    method, label = section.partition("/")[0], one["variant"]
    try:
        space, spec = registry.read_search(method), resolve(method, label, protocol)
    except PedbenchError as error:  # the method or the variant is gone
        return f"{section}: {error}"
    now = unsearched(method, spec, space)
    changed = [key for key, value in one.get("settings", {}).items() if now.get(key) != value]
    remedy = f"run 'make tune' again and copy the preset {TUNED[protocol.task]} to {PRESETS}/"
    if "settings" not in one:
        return f"{section}: the record does not say with which settings it was tuned; {remedy}"
    if one["space"] != encode(space):
        return f"{section}: tuned over another space than Method.search; {remedy}"
    if changed:
        key = min(changed)
        was, is_now = (json.dumps(values.get(key)) for values in (one["settings"], now))
        return f"{section}: tuned with {key} = {was}, which is {is_now} now; {remedy}"
    return None


def best(section: str, trials: Sequence[Trial]) -> Trial:
    """The trial with the highest score, the earliest of equals."""
    scored = [trial for trial in trials if trial["score"] is not None]
    if not scored:
        raise PedbenchError(
            f"tune: every trial of {section} diverged; lower the rates in Method.search of "
            f"methods/{section.partition('/')[0]}.py and its start"
        )
    return max(scored, key=lambda trial: trial["score"])


def write_preset(plan: Mapping[str, Any], trials: int, records: Sequence[Path], out: Path) -> None:
    """Write the record of all methods to ``out`` and the preset beside it, as YAML.

    ``plan`` holds the contents of plan.json. Sections outside the plan keep what the committed
    record says of them if it was made under the same conditions and is not `outdated`.
    """
    first = next(e for e in plan["experiments"] if registry.trains(e["method"]))
    task = task_of((first["dataset"], first["split"]))
    protocol = read_protocol(plan[PROTOCOL_OF[task]], tuple(plan["presets"]))
    record: dict[str, Any] = {
        "protocol": protocol.name,
        "version": protocol.values["version"],
        "metric": HEADLINE[task],
        "presets": plan["presets"],
        "backbone": plan["backbone"],
        "dataset": f"{first['dataset']}/{first['split']}",
        "options": plan["datasets"][first["dataset"]]["options"],
        "seeds": first["seeds"],
        "trials": trials,
    }
    committed = read_record(TUNED[task])
    same = all(committed.get(key) == value for key, value in record.items())
    new = {section: one for path in records for section, one in read_json(path).items()}
    kept = {}
    for section, one in committed["methods"].items() if same else ():
        if section not in new and (reason := outdated(section, one, protocol)):
            tqdm.write(f"left out: {reason}")
        else:
            kept[section] = one
    record["methods"] = kept | new
    write_json(out, record)
    write_text(out.with_suffix(".yaml"), preset_text(record))


def read_record(preset: str) -> dict[str, Any]:
    """The committed record of ``config/presets/{preset}.yaml``; empty before the first."""
    path = ROOT / PRESETS / f"{preset}.json"
    return read_json(path) if path.is_file() else {"methods": {}}


def preset_text(record: Mapping[str, Any]) -> str:
    """The preset that ``record`` gives, as YAML with its origin."""
    plan = "tune.yaml" if record["metric"] == HEADLINE["par"] else "tune_reid.yaml"
    made = (
        f"Made by `snakemake --cores all tune --configfile config/{plan}`, not by hand: "
        "docs/decisions/tuning.md. Spaces and every trial: the JSON file beside this one. "
    )
    lines = [f"# {line}" for line in wrap(made + _conditions(record), 98)]
    lines += ["", f"for: {{backbone: {record['backbone']}, protocol: {record['protocol']}}}"]
    for section, one in sorted(record["methods"].items()):
        chosen, start = best(section, one["trials"]), one["trials"][0]
        values = yaml.safe_dump(chosen["values"], default_flow_style=True, width=1000).strip()
        scores = f"{_percent(chosen['score'])}, at the start {_percent(start['score'])}"
        lines += ["", f"# validation {record['metric']} {scores}", f"{section}: {values}"]
    return "\n".join(lines) + "\n"


def _conditions(record: Mapping[str, Any]) -> str:
    """How the trials of ``record`` were made."""
    if not record["methods"]:
        return "Nothing is tuned yet."
    options = ", ".join(f"{key} {value}" for key, value in record["options"].items())
    return (
        f"{record['trials']} trials per method, each trained on {record['dataset']} ({options}) "
        f"with {record['backbone']} under protocol {record['protocol']} (version "
        f"{record['version']}), seed {', '.join(str(seed) for seed in record['seeds'])}, starting "
        f"from the presets {', '.join(record['presets']) or 'none'}; chosen by {record['metric']} "
        "on validation images."
    )


def tuning_markdown(preset: str) -> str:
    """How ``preset`` was tuned: conditions, then space, chosen values and scores per section."""
    from pedbench.results import display_name

    record = read_record(preset)
    if not record["methods"]:
        return f"{_conditions(record)}\n"
    score = f"Validation {record['metric']}"
    head = ("Method", "Searched (log scale)", "Chosen", score, "At the start", "Diverged")
    rows = [head, ("---", "---", "---", "---:", "---:", "---:")]
    for section, one in sorted(record["methods"].items()):
        chosen, trials = best(section, one["trials"]), one["trials"]
        searched = [f"`{key}` {_in_words(values)}" for key, values in one["space"].items()]
        values = [f"`{key}` {_shown(value)}" for key, value in chosen["values"].items()]
        rows.append(
            (
                display_name(section.partition("/")[0], one["variant"]),
                "; ".join(searched),
                "; ".join(values),
                _percent(chosen["score"]),
                _percent(trials[0]["score"]),
                str(sum(trial["score"] is None for trial in trials)),
            )
        )
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{_conditions(record)}\n\n{table}\n"


def _in_words(values: Mapping[str, list[Any]]) -> str:
    if "range" in values:
        return " to ".join(_shown(value) for value in values["range"])
    return "one of " + ", ".join(_shown(value) for value in values["choices"])


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _percent(score: float | None) -> str:
    return "diverged" if score is None else f"{100 * score:.2f}"
