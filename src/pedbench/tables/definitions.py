"""``config/tables.yaml``: what each table shows, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from typing import Any, Literal

from pedbench import published, registry
from pedbench.config import DEFAULT, changes_of, check_schema, protocol_fields, read_yaml, settings
from pedbench.contracts import PedbenchError, TaskKind
from pedbench.registry import suggest
from pedbench.tasks import reid

DEFINITIONS = "config/tables.yaml"
SCHEMA = "workflow/schemas/tables.schema.yaml"

# What a definition calls a metric of each task -> what the long table calls it. F1 alone stands for
# the protocol's definition, and beside published rows for every definition that they use.
METRICS: Mapping[TaskKind, Mapping[str, str]] = {
    "par": {
        "mA": "mA",
        "Acc": "accuracy",
        "Prec": "precision",
        "Recall": "recall",
        "F1": "F1",
        "F1_instance": "F1_instance",
        "F1_harmonic": "F1_harmonic",
        "F1_label": "F1_label",
        "Acc_label": "accuracy_label",
        "AP": "AP",
        "mAP": "AP",  # over attributes: its name where papers report nothing else
        "AUC": "AUC",
    },
    "reid": {metric: metric for metric in reid.METRICS},
}
OF_EPOCHS = ("mA", "Acc", "Prec", "Recall", "F1", "F1_instance", "F1_harmonic")  # selection.csv's
FACTS = ("backbone", "parameters_trained", "parameters_trained_M")  # of a run, besides settings
MAIN: Mapping[TaskKind, tuple[str, ...]] = {"par": ("mA", "F1"), "reid": ("mAP", "rank1")}
NONE = "none"  # no baseline
OTHER = "other"  # every split that no other table of the task names
CROSS = "cross"  # every split "a_to_b": trained on one dataset, tested on another
PLACED = ("split", "places", "complete", "metrics")
ALLOWED = {  # keys of each kind, besides those of all
    "scores": (*PLACED, "task", "baseline", "average", "columns", "published"),
    "cost": ("task",),
    "selection": PLACED,
}
RESERVED = ("index", "notes", "tuning", "per_attribute", "intervals", "vs_baseline", "all_pairs")

Kind = Literal["scores", "cost", "selection"]
Variant = tuple[str, str]  # method, variant


@dataclass(frozen=True)
class Lead:
    """A leading column: ``published`` is a template over a CSV, ``measured`` a setting or one of
    `FACTS`; with ``tick`` a check mark stands where the condition holds. ``only``: settings that a
    measured row must have for the column to say anything of it."""

    label: str
    published: str = ""
    measured: str = ""
    tick: Mapping[str, Any] | None = None
    only: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Definition:
    """One table, of the places of one task. ``places`` None: all of the plan, with ``split`` if
    that is given; ``rows`` None: all of the plan, with ``complete`` those that it runs on all
    places of the table that it has; ``baseline`` None: the plan's, ``NONE``: no marks."""

    name: str
    title: str
    kind: Kind = "scores"
    task: TaskKind = "par"
    caption: str = ""
    split: str | None = None
    named: tuple[str, ...] = ()  # where ``split`` is OTHER: those of the other tables
    places: tuple[str, ...] | None = None
    rows: tuple[Variant, ...] | None = None
    complete: bool = False
    metrics: tuple[str, ...] = MAIN["par"]
    baseline: str | None = None
    average: bool = False
    columns: tuple[Lead, ...] = ()
    published: published.Selection | None = None
    labels: Mapping[str, str] = field(default_factory=dict)  # place -> the papers' name of it

    def has_split(self, split: str) -> bool:
        """Whether a table of ``split``, or of all, is about it."""
        names = {split, CROSS} if "_to_" in split else {split}
        return names.isdisjoint(self.named) if self.split == OTHER else self.split in (None, *names)

    @property
    def where(self) -> str:
        return f"{DEFINITIONS}: {self.name}"

    def published_rows(self) -> list[published.Row]:
        """``lead`` as in ``columns``."""
        if self.published is None:
            return []
        lead = [column.published for column in self.columns]
        return published.read_rows(self.published, self.metrics, lead, f"{self.where}.published")


def read_definitions(file: str = DEFINITIONS) -> list[Definition]:
    """All tables, in the file's order. Raises PedbenchError for the first mistake in it."""
    raw = check_schema(read_yaml(file), SCHEMA, file)
    found = [_read(name, entry) for name, entry in raw.items()]
    named = {d.task: {o.split for o in found if o.task == d.task} for d in found}
    others = {task: tuple(sorted(filter(None, names - {OTHER}))) for task, names in named.items()}
    return [replace(d, named=others[d.task]) if d.split == OTHER else d for d in found]


def variant_of(entry: str) -> Variant:
    """``method`` or ``method/variant``."""
    method, _, variant = entry.partition("/")
    return method, variant or DEFAULT


def _read(name: str, entry: Mapping[str, Any]) -> Definition:
    where = f"{DEFINITIONS}: {name}"
    kind: Kind = entry.get("kind", "scores")
    if name in RESERVED:
        raise PedbenchError(f"{where}: results/tables/ has a file of that name; choose another")
    for key in entry:
        if key not in ("kind", "title", "caption", "rows", *ALLOWED[kind]):
            raise PedbenchError(f"{where}: '{key}' means nothing in a table of kind {kind}")
    if "split" in entry and "places" in entry:
        raise PedbenchError(f"{where}: 'split' and 'places' exclude each other; delete one")
    if entry.get("split", OTHER) not in (OTHER, CROSS, "standard", "trainval", "zero_shot", "reid"):
        of_each = (registry.load_dataset(dataset).SPEC.splits for dataset in registry.datasets())
        _known(f"{where}.split", "split", entry["split"], sorted(set(chain(*of_each))))
    task: TaskKind = entry.get("task", "par")
    for metric in entry.get("metrics", ()):
        known = OF_EPOCHS if kind == "selection" else METRICS[task]
        _known(f"{where}.metrics", "metric", metric, known)
    for i, column in enumerate(entry.get("columns", ())):
        _check_column(f"{where}.columns.{i}", column)
    _check_variants(f"{where}.rows", entry.get("rows", ()))
    if entry.get("baseline", NONE) != NONE:
        _check_variants(f"{where}.baseline", [entry["baseline"]])
    shown = dict(entry.get("published", {}))
    labels = {place: label for label, place in shown.get("datasets", {}).items()}
    values: dict[str, Any] = {
        **entry,
        "columns": tuple(Lead(**column) for column in entry.get("columns", ())),
        "published": published.Selection(**shown) if shown else None,
        "labels": labels,
    }
    if "baseline" in entry and entry["baseline"] != NONE:
        values["baseline"] = "/".join(variant_of(entry["baseline"]))
    if "rows" in entry:
        values["rows"] = tuple(variant_of(row) for row in entry["rows"])
    values["metrics"] = tuple(entry.get("metrics", MAIN[task]))
    if labels and "split" not in entry:
        values["places"] = tuple(dict.fromkeys([*entry.get("places", ()), *labels]))
    elif "places" in entry:
        values["places"] = tuple(entry["places"])
    definition = Definition(name=name, **values)
    _check_ticks(definition)
    return definition


def _check_column(where: str, column: Mapping[str, Any]) -> None:
    rows = column.get("tick", {}).get("rows")
    named = [column["measured"]] if "measured" in column else []
    for name in (*named, *column.get("only", ())):
        _known(where, "setting", name, _settings())
    if not named and "tick" in column and rows is None:
        raise PedbenchError(f"{where}: 'tick' asks for a setting; name it with 'measured'")
    _check_variants(f"{where}.tick.rows", rows or ())


@cache
def _settings() -> tuple[str, ...]:
    """What a run can be asked for."""
    own = {key for method in registry.methods() for key in settings(method)}
    return (*FACTS, *sorted(own | protocol_fields().keys()))


def _check_variants(where: str, rows: Iterable[str]) -> None:
    for row in rows:
        method, variant = variant_of(row)
        _known(where, "method", method, registry.methods())
        changes_of(method, variant, where)


def _check_ticks(definition: Definition) -> None:
    """Published rows can be read, and say 0 or 1 where a tick is wanted."""
    for row in definition.published_rows():
        for column, text in zip(definition.columns, row.lead, strict=True):
            if column.tick is not None and text not in ("0", "1", ""):
                raise PedbenchError(
                    f"{definition.where}: column '{column.label}' wants 0 or 1 for a tick, and "
                    f"'{row.name}' has '{text}'"
                )


def _known(where: str, what: str, word: str, known: Iterable[str]) -> None:
    known = list(known)
    if word not in known:
        hint = suggest(word, known) or f" (known: {', '.join(known)})"
        raise PedbenchError(f"{where}: unknown {what} '{word}'{hint}")
