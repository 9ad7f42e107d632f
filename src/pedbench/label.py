"""Pictures + a finished run -> a table of attribute probabilities."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from pedbench.checkpoint import load_tensors, load_trained
from pedbench.contracts import Attribute, PedbenchError, Task
from pedbench.data import Images
from pedbench.files import read_json
from pedbench.manifest import Manifest
from pedbench.nn.backbone import load_backbone
from pedbench.predict import predict_logits
from pedbench.results import sigmoid
from pedbench.runs import RunConfig, RunFolder
from pedbench.train import build_model, make_accelerator

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp"}


def label_pictures(
    run: Path, pictures: Iterable[Path], weights: Path | None = None
) -> pd.DataFrame:
    """One row per picture: ``image`` and the probability of every attribute.

    Raises PedbenchError when the run is not finished, a picture cannot be read or none is found.
    """
    folder = RunFolder(run)
    raw, config = read_json(folder.config), RunConfig.read(folder.config)
    if not folder.done.is_file():
        raise PedbenchError(f"{run}: this run is not finished; run the benchmark again first")
    task = Task(
        **{**raw["task"], "attributes": tuple(Attribute(**a) for a in raw["task"]["attributes"])}
    )
    backbone = load_backbone(config.backbone, weights)
    made_with = read_json(folder.path / "environment.json")["weights_sha256"]
    if backbone.weights_sha256 != made_with:
        raise PedbenchError(
            f"{run}: trained on other weights ({made_with[:12]}...) than {config.backbone} has "
            f"here ({backbone.weights_sha256[:12]}...); name their file with --weights"
        )
    method, model = build_model(config, backbone, task, raw["seed"])
    if method.trains:
        load_trained(model, load_tensors(folder.adapter)[0], folder.adapter)
    files = find_pictures(pictures)
    rows = pd.DataFrame({"image": [str(file) for file in files]})
    shown = Manifest("pictures", Path(), task.attributes, "", rows)
    images = Images(shown, backbone.image_size, config.protocol.resize)
    accelerator = make_accelerator(config.protocol)
    logits = predict_logits(
        model.to(accelerator.device), images, backbone, config.protocol, accelerator
    )
    names = [attribute.name for attribute in task.attributes]
    return pd.concat([rows, pd.DataFrame(sigmoid(logits), columns=names)], axis=1)


def find_pictures(places: Iterable[Path]) -> list[Path]:
    """Picture files among ``places`` and below folders among them, sorted within each."""
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES)
        else:
            found.append(place)
    if not found:
        raise PedbenchError(f"no pictures ({', '.join(sorted(SUFFIXES))}) in what was given")
    return found
