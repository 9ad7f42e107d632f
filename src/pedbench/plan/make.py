"""From a config to the plan, checked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pedbench import registry
from pedbench.config import ProtocolFile, check_config, read_protocol
from pedbench.contracts import PedbenchError, TaskKind
from pedbench.files import write_json
from pedbench.plan.builder import Builder, sweeps_of
from pedbench.plan.checks import (
    check_checkpoints,
    check_names,
    check_scored_alike,
    check_selection,
)
from pedbench.plan.data import at_hand, source_of
from pedbench.plan.entries import read_choice, read_place, runs_asked, task_of
from pedbench.plan.model import PROTOCOL_OF, TASKS, Choice, Comparison, Place, Plan


def make_plan(config: Mapping[str, Any], source: str = "config") -> Plan:
    """Check ``config`` and expand it. ``source`` names it in messages.

    Raises PedbenchError for the first mistake found.
    """
    config = check_config(config, source)
    check_names(config, source)
    notes: list[str] = []
    asked = [read_place(f"{source}: datasets", entry) for entry in config["datasets"]]
    protocols = _protocols(source, config, {task_of(place) for place in asked})
    runs = runs_asked(source, config, asked, notes)
    runs = {place: runs[place] for place in at_hand(source, config, list(runs), notes)}
    builder = Builder(config, protocols)
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
    sweeps = tuple(sweeps_of(source, config, builder, asked, runs, notes))
    comparison = _comparison(source, config, runs, notes)
    audited = _audited(source, config, asked, runs, notes)
    plan = Plan(
        config,
        {name: source_of(source, config, name) for name in dict.fromkeys(d for d, _ in runs)},
        tuple(replace(e, keep_epochs=e.key in audited) for e in builder.experiments),
        sweeps,
        comparison,
        tuple(notes),
    )
    check_checkpoints(plan, source)
    check_scored_alike(plan, source)
    for e in plan.experiments:
        check_selection(plan, e, source)
    return plan


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


def _comparison(
    source: str, config: Mapping[str, Any], runs: Mapping[Place, list[Choice]], notes: list[str]
) -> Comparison:
    entries = dict(config["comparison"])
    wanted = entries.pop("baseline", "linear_probe")
    choice = read_choice(f"{source}: comparison.baseline", wanted)
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
    place = read_place(where, entry["dataset"])
    if task_of(place) != "par":
        raise PedbenchError(
            f"{where}: {entry['dataset']} is for re-identification, whose released code chooses no "
            "epoch by test images; name a split for attribute recognition"
        )
    wanted = {method: read_choice(where, method) for method in entry["methods"]}
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


def config_source(files: Iterable[Path], overrides: Mapping[str, Any]) -> str:
    """How messages name a config: its files, and ``--config`` if that was given."""
    names = [os.path.relpath(file) for file in files] + (["--config"] if overrides else [])
    return " + ".join(names) or "config"


def write_plan(config: Mapping[str, Any], out: Path) -> None:
    """Write ``results/plan.json``."""
    write_json(out, make_plan(config).as_json())
