"""A finished run back as the model that made its predictions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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

    Raises PedbenchError when the run is not finished or was made with other weights.
    """
    folder = RunFolder(run)
    raw, config = read_json(folder.config), RunConfig.read(folder.config)
    if not folder.done.is_file():
        raise PedbenchError(f"{run}: this run is not finished; run the benchmark again first")
    made_with = read_json(folder.path / "environment.json")["weights_sha256"]
    if backbone.weights_sha256 != made_with:
        raise PedbenchError(
            f"{run}: trained on other weights ({made_with[:12]}...) than {config.backbone} has "
            f"here ({backbone.weights_sha256[:12]}...); name their file with --weights"
        )
    values = raw["task"]
    values |= {"attributes": tuple(Attribute(**a) for a in values["attributes"])}
    values |= {"reid": ReidSettings(**values["reid"]) if values.get("reid") else None}
    task = Task(**values)
    method, model = build_model(config, backbone, task, raw["seed"])
    if method.trains:
        load_trained(model, load_tensors(folder.adapter)[0], folder.adapter)
    return Trained(config, task, model)
