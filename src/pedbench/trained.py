"""A finished run back as the model that made its predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pedbench.checkpoint import load_tensors, load_trained
from pedbench.contracts import Attribute, PedbenchError, ReidSettings, Task
from pedbench.files import read_json
from pedbench.nn.backbone import Backbone
from pedbench.runs import RunConfig, RunFolder
from pedbench.train import build_model


@dataclass(frozen=True)
class Trained:
    """``model`` holds the trained tensors; it is on the backbone's device."""

    config: RunConfig
    task: Task
    model: nn.Module


def load_run(run: Path, backbone: Backbone) -> Trained:
    """The model of a seed's folder, on a copy of ``backbone``.

    The folder may be somebody else's: raises PedbenchError when the run is not finished, was made
    with other weights, or holds an adapter that it did not note, or that is not finite.
    """
    folder = RunFolder(run)
    raw, config = read_json(folder.config), RunConfig.read(folder.config)
    if not folder.done.is_file():
        raise PedbenchError(f"{run}: this run is not finished; run the benchmark again first")
    try:
        made_with = read_json(folder.path / "environment.json")["weights_sha256"]
        task, seed = _task(raw["task"]), raw["seed"]
        noted = read_json(folder.done)["files"].get(folder.adapter.name)
    except (KeyError, TypeError, AttributeError) as error:
        raise PedbenchError(
            f"{run}: not what a run leaves ({type(error).__name__}: {error}); run it again"
        ) from error
    if backbone.weights_sha256 != made_with:
        raise PedbenchError(
            f"{run}: trained on other weights ({str(made_with)[:12]}...) than {config.backbone} "
            f"has here ({backbone.weights_sha256[:12]}...); name their file with --weights"
        )
    method, model = build_model(config, backbone, task, seed)
    if method.trains:
        tensors, _ = load_tensors(folder.adapter, noted or "")
        wrong = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
        if wrong:
            raise PedbenchError(f"{folder.adapter}: '{wrong[0]}' is not finite; run it again")
        load_trained(model, tensors, folder.adapter)
    return Trained(config, task, model)


def _task(values: Mapping[str, Any]) -> Task:
    attributes = tuple(Attribute(**a) for a in values["attributes"])
    settings = ReidSettings(**values["reid"]) if values.get("reid") else None
    return Task(**{**values, "attributes": attributes, "reid": settings})
