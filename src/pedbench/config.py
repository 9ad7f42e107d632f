"""Configuration: what a run's settings are, where each value comes from, and what is refused.

Layers, later wins: ``Params`` defaults of the method, the protocol file, the presets' sections on
the method, the variant, the presets' sections on the variant, the sweep. Every resolved value keeps
its origin.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from pedbench import registry
from pedbench.contracts import BACKBONES, PedbenchError, TaskKind
from pedbench.registry import suggest

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = "workflow/schemas/config.schema.yaml"
VARIANTS = "config/variants.yaml"
KINDS = ["par", "reid"]
AT_LEAST_ONE = (
    *("epochs", "batch_size", "accumulate", "eval_batch_size", "checkpoint_steps"),
    *("patch_stride", "images_per_identity"),
)
RELEASED = (
    "'released' would choose epochs by their test scores, one for each metric, as released code "
    "does, and no run may. To see how much that flatters a method, name it under "
    "'released_selection' in the plan"
)
DEFAULT = "default"  # the label of a method without changes


@dataclass(frozen=True)
class Protocol:
    """The settings all methods share. A protocol file in ``config/protocols/`` states each one;
    a variant may override any but name and version."""

    name: str  # of the file
    version: str  # raised whenever the protocol's meaning changes, which invalidates all runs
    resize: Literal[
        "pad_square", "pad_square_released", "stretch"
    ]  # black padding to a square, also with the released code's arithmetic, or plain resizing
    normalisation: Literal["half", "clip", "imagenet"]  # mean and deviation: 0.5, or whose
    flip: bool  # mirror a training image with probability 1/2
    crop_padding: int  # black border in pixels before the random crop in training; 0: no crop
    optimiser: Literal["sgd", "adamw", "adam"]  # update rule; adam's decay is in the gradient
    momentum: float  # of SGD
    weight_decay: float  # of every group that does not set its own
    epochs: int  # passes over the training subset
    batch_size: int  # images per optimiser step
    accumulate: int  # micro-batches that make up one step
    schedule: Literal[
        "cosine", "constant", "epoch_cosine", "delayed_cosine", "multistep"
    ]  # learning rate after the warm-up; the last three are set per epoch, as in released code
    warmup_epochs: int  # epochs of linear warm-up; a group may set its own
    warmup_from: float  # learning rate at the start of the warm-up, as a share of the base rate
    final_lr_fraction: float  # learning rate at the end, as a share of the base rate
    clip_norm: float  # largest gradient norm of each group; 0: no clipping
    precision: Literal["fp32", "bf16"]  # of the forward and backward pass
    loss_weighting: Literal["released", "paper", "balanced", "none"]  # of the BCE, see tasks/par.py
    selection: Literal["last_epoch", "best_val_mA", "best_val_mAP"]  # epoch whose weights are kept
    eval_batch_size: int  # images per forward pass in prediction
    checkpoint_steps: int  # optimiser steps between resumable checkpoints
    # defaults are for runs from before there was the setting: a protocol file states each one
    task: TaskKind = "par"  # what it is a protocol of
    image_size: tuple[int, int] | None = None  # height, width in pixels; null: the backbone's own
    patch_stride: int | None = None  # pixels between patches; null: the patch's size, more overlap
    random_erasing: float = 0.0  # probability that a random box of a training image is hidden
    erasing_fill: Literal["mean", "pixel"] = "mean"  # the mean colour, or each pixel's own noise
    milestones: tuple[int, ...] = (30, 50)  # epochs from which multistep takes a tenth of the rate
    # what follows is read in attribute recognition alone
    head_init: Literal["random", "linear_probe"] = (
        "random"  # how linear heads above something trained start
    )
    probe_epochs: int = 1  # of that linear probe, on frozen features
    probe_lr: float = 0.0  # its learning rate
    threshold: float = 0.5  # probability above which an attribute counts as present
    f1: Literal["instance", "harmonic"] = "instance"  # the headline F1: mean over images, or of
    # mean precision and recall
    label_fraction: float = 1.0  # share of the training images whose labels are used
    unknown_labels: Literal["ignored", "negative_in_training", "negative"] = (
        "ignored"  # left out everywhere, or 0 in training, or 0 in training and scores
    )
    # what follows is read in re-identification alone
    sampler: Literal["identity", "shuffle"] = "identity"  # a batch is P persons, or any images
    images_per_identity: int = 4  # K images of each of the P = batch_size / K persons of a batch
    id_loss: Literal["cross_entropy", "cosface", "arcface", "circle"] = "cross_entropy"  # of the
    # training identities' scores
    id_loss_weight: float = 1.0  # its weight in the sum
    id_margin: float = 0.35  # margin of cosface, arcface and circle
    id_scale: float = 30.0  # factor of their cosines
    label_smoothing: float = 0.1  # share of the target spread over all identities
    pair_loss: Literal["none", "triplet", "triplet_soft", "contrastive", "cosface", "circle"] = (
        "triplet"  # of the features in a batch, before the neck
    )
    pair_loss_weight: float = 1.0  # its weight in the sum
    margin: float = 0.3  # margin of the pair loss
    feature: Literal["before", "after"] = "before"  # what is compared: before the BNNeck or after

    @property
    def selects_by(self) -> str | None:
        """The metric of validation images that chooses the epoch, if one does."""
        metric = self.selection.removeprefix("best_val_")
        return metric if metric != self.selection else None


# settings that protocols of the other task do not state, and by which metric epochs are chosen
ONLY: Mapping[TaskKind, tuple[str, ...]] = {
    "par": ("head_init", "probe_epochs", "probe_lr", "threshold", "f1", "label_fraction")
    + ("unknown_labels",),
    "reid": ("sampler", "images_per_identity", "id_loss", "id_loss_weight", "id_margin", "id_scale")
    + ("label_smoothing", "pair_loss", "pair_loss_weight", "margin", "feature"),
}
HEADLINE: Mapping[TaskKind, str] = {"par": "mA", "reid": "mAP"}


def foreign_to(task: TaskKind) -> frozenset[str]:
    """The settings that nothing reads in ``task``."""
    return frozenset(key for kind, keys in ONLY.items() if kind != task for key in keys)


@dataclass(frozen=True)
class ProtocolFile:
    """A protocol as read, with the presets laid over it: file -> section -> changed values.
    ``made_for``: file -> the backbone and protocol that a preset was made for, where it says so;
    presets made for protocols of the other task are left out."""

    name: str
    task: TaskKind
    source: str
    values: Mapping[str, Any]
    presets: Mapping[str, Mapping[str, Mapping[str, Any]]]
    made_for: Mapping[str, Mapping[str, str]]


class _Loader(yaml.SafeLoader):
    """YAML without repeated keys, of which PyYAML keeps the last. Merges (``<<``) stay allowed."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key.value, str) and first.setdefault(key.value, line) != line:
                raise PedbenchError(
                    f"line {line}: the key '{key.value}' stands in line {first[key.value]} too; "
                    "delete one of them"
                )
        return node


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping; relative paths start at the repository's root.

    Raises PedbenchError naming the file when it is missing, not YAML or not a mapping, or when a
    key stands twice.
    """
    try:
        value = yaml.load((ROOT / path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise PedbenchError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise PedbenchError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except PedbenchError as error:
        raise PedbenchError(f"{path}: {error}") from None
    if not isinstance(value, dict | None):
        raise PedbenchError(f"{path}: a mapping of keys to values is wanted, not {value!r}")
    return value or {}


def check_config(config: Mapping[str, Any], source: str = "config") -> dict[str, Any]:
    """``config`` with defaults filled in. Raises PedbenchError for the first key in error."""
    schema = read_yaml(SCHEMA)
    texts = [key for key, entry in schema["properties"].items() if entry["type"] == "string"]
    config = {key: value if key in texts else _numbers(value) for key, value in config.items()}
    check_schema(config, SCHEMA, source)
    defaults = {
        key: entry["default"] for key, entry in schema["properties"].items() if "default" in entry
    }
    return {**defaults, **config}


def check_schema(value: Any, schema: str, source: str) -> Any:
    """``value`` itself. Raises PedbenchError, naming ``source``, for the first key in error."""
    errors = sorted(Draft202012Validator(read_yaml(schema)).iter_errors(value), key=_depth)
    if errors:
        raise PedbenchError(_explain(source, errors[0]))
    return value


@cache
def read_protocol(
    name: str, presets: tuple[str, ...] = (), plan: str = "config", key: str = "protocol"
) -> ProtocolFile:
    """``config/protocols/{name}.yaml``, complete and well-typed, under ``presets`` (later wins).
    ``plan`` and its ``key`` name in messages what asked for them.

    Raises PedbenchError for an unknown name, key, method or value, and for a missing setting.
    """
    source = _file_of("protocol", name, f"{plan}: {key}")
    values = read_yaml(source)
    facts = {"version": registry.Field(..., "str"), "task": registry.Field(..., f"Literal{KINDS}")}
    wanted = {**facts, **protocol_fields()}
    values = _checked(source, values, wanted)
    task: TaskKind = values.get("task", "par")
    foreign = foreign_to(task)
    _check_read(source, values, task)
    for key in wanted:
        if key not in values and key not in foreign:
            raise PedbenchError(f"{source}: '{key}' is missing; a protocol states every setting")
    files = [_file_of("preset", preset, f"{plan}: presets") for preset in presets]
    read = {file: _read_preset(file) for file in files}
    read = {file: preset for file, preset in read.items() if _made_for_task(preset[1], task)}
    sections = {file: preset[0] for file, preset in read.items()}
    return ProtocolFile(name, task, source, values, sections, {f: p[1] for f, p in read.items()})


def _made_for_task(made_for: Mapping[str, Any], task: TaskKind) -> bool:
    """Whether a preset is of ``task``: that of the protocol it was made for, if it names one."""
    name = made_for.get("protocol")
    return name is None or read_yaml(f"config/protocols/{name}.yaml").get("task") == task


def files_of(kind: Literal["protocol", "preset"]) -> list[str]:
    """Names of the protocols, or of the presets, at hand."""
    return sorted(path.stem for path in (ROOT / f"config/{kind}s").glob("*.yaml"))


def _file_of(kind: Literal["protocol", "preset"], name: str, where: str) -> str:
    """``config/protocols/NAME.yaml``, if there is one."""
    known = files_of(kind)
    if Path(name).stem in known and name not in known:
        raise PedbenchError(f"{where}: name it without folder and .yaml: {Path(name).stem}")
    if name not in known:
        raise PedbenchError(
            f"{where}: unknown {kind} '{name}'{suggest(name, known)} (the {kind}s are the files of "
            f"config/{kind}s/: {', '.join(known)})"
        )
    return f"config/{kind}s/{name}.yaml"


def _read_preset(source: str) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Section (`section_of`) -> changed values, each checked against the method's settings; and
    what the preset was made for."""
    sections, file = {}, read_yaml(source)
    made_for = _mapping(source, "for", file.pop("for", None))
    known = {"backbone": list(BACKBONES), "protocol": files_of("protocol")}
    wanted = {key: registry.Field(..., f"Literal{names}") for key, names in known.items()}
    _checked(f"{source}: for", made_for, wanted)
    for name, values in file.items():
        where, (method, _, label) = f"{source}: {name}", str(name).partition("/")
        if name in protocol_fields():
            raise PedbenchError(
                f"{where}: a setting stands below a method; what all methods share belongs in "
                "config/protocols/"
            )
        _known_method(source, method)
        changes = changes_of(method, label or DEFAULT, source)
        wanted = section_of(method, label or DEFAULT)
        if name != wanted:
            raise PedbenchError(f"{where}: the variant changes nothing; its section is '{wanted}'")
        sections[name] = _checked(where, _mapping(source, name, values), settings(method))
        fixed = changes.keys() & sections[name].keys()
        if fixed:
            raise PedbenchError(f"{where}: {min(fixed)}: the variant fixes it; delete it here")
    return sections, made_for


@cache
def read_variants() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """Method -> label -> changed values, each checked against the method's ``Params``."""
    variants = read_yaml(VARIANTS)
    for method, labels in variants.items():
        _known_method(VARIANTS, method)
        for label, changes in _mapping(VARIANTS, method, labels).items():
            where = f"{VARIANTS}: {method}.{label}"
            if label == DEFAULT or not str(label).replace("_", "").isalnum():
                raise PedbenchError(
                    f"{where}: a label is made of letters, digits and '_', and is not '{DEFAULT}'"
                )
            _checked(where, _mapping(VARIANTS, f"{method}.{label}", changes), changeable(method))
    return {m: {label: c or {} for label, c in labels.items()} for m, labels in variants.items()}


def changes_of(method: str, label: str, where: str = VARIANTS) -> Mapping[str, Any]:
    """What a variant changes. Raises PedbenchError, starting with ``where``, if there is none."""
    variants = {DEFAULT: {}, **read_variants().get(method, {})}
    if label not in variants:
        raise PedbenchError(
            f"{where}: method '{method}' has no variant '{label}'{suggest(label, variants)} "
            f"(it has: {', '.join(variants)})"
        )
    return variants[label]


def section_of(method: str, label: str) -> str:
    """The presets' section on a variant: ``method/label``, or ``method`` if it changes nothing."""
    return f"{method}/{label}" if changes_of(method, label) else method


def settings(method: str) -> dict[str, registry.Field]:
    """Everything a preset may set for ``method``: its ``Params`` and the protocol."""
    shared, own = protocol_fields(), registry.read_params(method)
    both = sorted(shared.keys() & own.keys())
    if both:
        raise PedbenchError(
            f"methods/{method}.py: Params.{both[0]} has the name of a protocol setting; rename it"
        )
    return {**shared, **own}


def changeable(method: str) -> dict[str, registry.Field]:
    """Everything a variant or a sweep may change: the settings, and the backbone."""
    backbone = registry.Field(..., f"Literal{list(BACKBONES)}")
    return {**settings(method), "backbone": backbone}


@cache
def protocol_fields() -> Mapping[str, registry.Field]:
    """Type and doc line of every protocol setting; name, version and task are no settings."""
    every = registry.read_dataclass(Path(__file__), "Protocol")
    return {key: field for key, field in every.items() if key not in ("name", "version", "task")}


def resolve(
    method: str,
    label: str,
    protocol: ProtocolFile,
    swept: Mapping[str, Any] | None = None,
    sweep: str = "",
) -> dict[str, dict[str, Any]]:
    """``{"protocol": ..., "params": ...}``: every value of a run as ``{"value", "from"}``; and
    ``"backbone"``, its name, where the variant or the sweep names another than the plan's.

    ``swept`` are the values that the sweep named ``sweep`` puts on top of the variant. Raises
    PedbenchError for a value that does not fit, or that the protocol's task does not read.
    """
    changes, section = changes_of(method, label), section_of(method, label)
    own, known = registry.read_params(method), changeable(method)

    def preset(name: str) -> list[tuple[str, Mapping[str, Any]]]:
        return [(f"{file}: {name}", p.get(name, {})) for file, p in protocol.presets.items()]

    layers = (
        (f"methods/{method}.py", _defaults(own)),
        ("src/pedbench/config.py", _defaults(protocol_fields())),
        (protocol.source, {k: v for k, v in protocol.values.items() if k in protocol_fields()}),
        *preset(method),
        (f"{VARIANTS}: {method}.{label}", changes),
        *preset(section),
        (f"sweep {sweep}", swept or {}),
    )
    merged: dict[str, Any] = {}
    for origin, values in layers[2:]:
        _check_read(origin, values, protocol.task)
    for origin, values in layers:
        for key, value in _checked(origin, values, known).items():
            merged[key] = {"value": value, "from": origin}
    backbone = {"backbone": merged["backbone"]["value"]} if "backbone" in merged else {}
    return {
        **backbone,
        "protocol": {
            "name": protocol.name,
            "version": protocol.values["version"],
            "task": protocol.task,
            **{key: merged[key] for key in protocol_fields()},
        },
        "params": {key: merged[key] for key in own},
    }


def _defaults(fields: Mapping[str, registry.Field]) -> dict[str, Any]:
    return {key: field.default for key, field in fields.items() if field.default is not ...}


def plain(value: Any) -> Any:
    """``value`` with every ``{"value": v, "from": origin}`` replaced by ``v``."""
    if not isinstance(value, Mapping):
        return value
    if value.keys() == {"value", "from"}:
        return value["value"]
    return {key: plain(entry) for key, entry in value.items()}


def protocol_of(spec: Mapping[str, Any]) -> Protocol:
    """The protocol of a resolved run, as the engine reads it."""
    values: dict[str, Any] = plain(spec["protocol"])
    lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return Protocol(**{**values, **lists})


def _numbers(value: Any) -> Any:
    """``value`` with text that is a number or a truth value read as one: Snakemake's --config
    delivers the members of a list as text, and YAML 1.1 reads ``1e-3`` as text."""
    if isinstance(value, dict):
        return {key: _numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_numbers(entry) for entry in value]
    if isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d*)?e[+-]?\d+", value, re.IGNORECASE):
        return float(value)
    number = isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d*)?|true|false", value)
    return yaml.safe_load(value) if number else value


def _checked(
    origin: str, values: Mapping[str, Any], known: Mapping[str, registry.Field]
) -> dict[str, Any]:
    """``values`` with the types that ``known`` asks for, or an error naming origin and key."""
    fitted = {}
    for key, value in values.items():
        if key not in known:
            raise PedbenchError(
                f"{origin}: unknown key '{key}'{suggest(str(key), known)}"
                if suggest(str(key), known)
                else f"{origin}: unknown key '{key}' (known: {', '.join(known)})"
            )
        try:
            if (key, value) == ("selection", "released"):
                raise PedbenchError(RELEASED)
            fitted[key] = registry.checked(known[key], value)
            if key in AT_LEAST_ONE and fitted[key] is not None and fitted[key] < 1:
                raise PedbenchError(f"{value} is too small; it must be at least 1")
            if key == "label_fraction" and not 0 < fitted[key] <= 1:
                raise PedbenchError(f"{value} is no share; it must be above 0 and at most 1")
        except PedbenchError as error:
            raise PedbenchError(f"{origin}: {key}: {error}") from None
    return fitted


def _check_read(origin: str, values: Mapping[str, Any], task: TaskKind) -> None:
    unread = sorted(foreign_to(task).intersection(values))
    if unread:
        raise PedbenchError(f"{origin}: '{unread[0]}' means nothing in a protocol of task {task}")


def _known_method(where: str, method: str) -> None:
    if method not in registry.methods():
        raise PedbenchError(
            f"{where}: unknown method '{method}'{suggest(str(method), registry.methods())}"
        )


def _mapping(source: str, where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict | None):
        raise PedbenchError(f"{source}: {where}: 'key: value' pairs are wanted, not {value!r}")
    return value or {}


def _depth(error: ValidationError) -> tuple[int, str]:
    return len(error.absolute_path), str(list(error.absolute_path))


def _explain(source: str, error: ValidationError) -> str:
    """One line: source, key, what is wrong, and a suggestion where there is a close word."""
    where = ".".join(str(part) for part in error.absolute_path)
    place = f"{source}: {where}" if where else source
    instance: Any = error.instance
    schema: Any = error.schema
    if error.validator == "additionalProperties":
        known = list(schema.get("properties", {}))
        extra = next(key for key in instance if key not in known)
        hint = suggest(str(extra), known) or f" (known: {', '.join(known)})"
        return f"{place}: unknown key '{extra}'{hint}"
    if error.validator == "required":
        missing = next(key for key in schema["required"] if key not in instance)
        return f"{place}: '{missing}' is missing; {schema['properties'][missing]['description']}"
    wanted = schema.get("description", "")
    if error.validator == "type" and schema["type"] == "array":
        given = instance if isinstance(instance, str) else repr(instance)
        return f"{place}: a list is wanted: [{given}] ({wanted})"
    return f"{place}: {error.message}" + (f" ({wanted})" if wanted else "")
