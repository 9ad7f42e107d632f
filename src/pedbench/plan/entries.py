"""From the words of a config to places and methods, and which of them run where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pedbench import registry
from pedbench.config import DEFAULT, changes_of, foreign_to
from pedbench.contracts import PedbenchError, TaskKind
from pedbench.plan.model import TASKS, Choice, Place


def task_of(place: Place) -> TaskKind:
    """Of a dataset and its split, both known."""
    dataset, split = place
    return registry.load_dataset(dataset).SPEC.task_of(split)


def read_place(where: str, entry: str) -> Place:
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


def read_choice(where: str, entry: str) -> Choice:
    """``method/variant``; the method is known, `resolve` knows the variants."""
    method, _, variant = entry.partition("/")
    try:
        registry.source_path("method", method)
    except PedbenchError as error:
        raise PedbenchError(f"{where}: {error}") from None
    return method, variant or DEFAULT


def runs_asked(
    source: str, config: Mapping[str, Any], places: list[Place], notes: list[str]
) -> dict[Place, list[Choice]]:
    """What runs where, in the order of ``methods``: of those for everywhere what is defined for
    the task of the place."""
    runs: dict[Place, list[Choice]] = {place: [] for place in places}
    for entry in config["methods"]:
        everywhere = isinstance(entry, str)
        choices = [
            read_choice(f"{source}: methods", name)
            for name in ([entry] if everywhere else entry["methods"])
        ]
        wanted = config["datasets"] if everywhere else entry["datasets"]
        what = ", ".join("/".join(choice).removesuffix(f"/{DEFAULT}") for choice in choices)
        if everywhere and not any(is_defined(*choices[0], task_of(place)) for place in places):
            notes.append(f"methods: {entry} left out: no place of the plan is of its task")
        for name in wanted:
            place = read_place(f"{source}: methods: datasets", name)
            fit = [choice for choice in choices if is_defined(*choice, task_of(place))]
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


def is_defined(method: str, variant: str, task: TaskKind) -> bool:
    """Whether the method solves the task and the variant sets nothing that only others read.
    Raises PedbenchError for an unknown variant."""
    if task not in registry.class_attribute(method, "tasks"):
        return False
    return not foreign_to(task).intersection(changes_of(method, variant))
