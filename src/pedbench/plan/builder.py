"""The experiments of a plan, each with all its settings, and the curves over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pedbench import registry
from pedbench.config import ProtocolFile, plain
from pedbench.config import resolve as resolve_values
from pedbench.contracts import PedbenchError, TaskKind
from pedbench.files import digest
from pedbench.plan.entries import read_choice, read_place, task_of
from pedbench.plan.model import Choice, Experiment, Line, Place, Point, Sweep


class Builder:
    """Collects experiments; the same values are never run twice: a second entry of ``methods``
    with them is refused, a sweep's point uses the run that is there."""

    def __init__(
        self, config: Mapping[str, Any], protocols: Mapping[TaskKind, ProtocolFile]
    ) -> None:
        self.config, self.protocols = config, protocols
        self.experiments: list[Experiment] = []
        self._known: dict[str, Experiment] = {}  # by what they run

    def add(self, where: str, dataset: str, split: str, method: str, variant: str) -> None:
        values = self._values((dataset, split), method, variant)
        twin = self._known.get(_identity(dataset, split, method, values))
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
            same = self._known.get(_identity(*place, method, values))
            variant = same.variant if same else f"{base}-{parameter}{value}"
            if same is None:
                self._append(*place, method, variant, values, in_tables=False)
            points.append(Point(value, variant))
        return Line(method, base, tuple(points))

    def _values(self, place: Place, method: str, variant: str, *swept: Any) -> dict[str, Any]:
        values = resolve_values(method, variant, self.protocols[task_of(place)], *swept)
        return {"backbone": self.config["backbone"], **values}

    def _append(
        self, dataset: str, split: str, method: str, variant: str, values: Any, in_tables: bool
    ) -> None:
        key = {"dataset": dataset, "split": split, "method": method, "variant": variant}
        spec = {**key, **values}
        seeds = tuple(self.config["seeds"]) if registry.trains(method) else (0,)
        folder = "/".join((self.config["results"], "runs", *key.values()))
        one = Experiment(dataset, split, method, variant, seeds, folder, spec, in_tables)
        self.experiments.append(one)
        self._known[_identity(dataset, split, method, values)] = one


def _identity(dataset: str, split: str, method: str, values: Any) -> str:
    """The same for the same values, whatever their origin."""
    return digest([dataset, split, method, plain(values)])


def sweeps_of(
    source: str,
    config: Mapping[str, Any],
    builder: Builder,
    asked: list[Place],
    runs: Mapping[Place, list[Choice]],
    notes: list[str],
) -> Iterator[Sweep]:
    """Each that has a line; ``asked``: the places of the plan, also without data."""
    for name, entry in config["sweeps"].items():
        where = f"{source}: sweeps.{name}"
        place, swept = read_place(where, entry["dataset"]), _swept(where, entry)
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
    choices = {m: read_choice(where, m) for m in entry.get("methods", [entry.get("method")])}
    twice = [
        method for method, choice in choices.items() if list(choices.values()).count(choice) > 1
    ]
    if twice:
        raise PedbenchError(f"{where}: methods: {' and '.join(twice)} are the same; delete one")
    return choices
