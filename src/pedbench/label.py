"""Pictures + a finished run -> a table of attribute probabilities."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from pedbench.contracts import PedbenchError
from pedbench.data import Images
from pedbench.formats.layout import SUFFIXES, is_picture
from pedbench.manifest import Manifest
from pedbench.nn.backbone import load_backbone
from pedbench.predict import predict
from pedbench.results import sigmoid
from pedbench.runs import RunConfig, RunFolder
from pedbench.train import make_accelerator
from pedbench.trained import load_run


def label_pictures(
    run: Path, pictures: Iterable[Path], weights: Path | None = None
) -> pd.DataFrame:
    """One row per picture: ``image`` and the probability of every attribute.

    Raises PedbenchError when the run is not finished, a picture cannot be read or none is found.
    """
    backbone = load_backbone(RunConfig.read(RunFolder(run).config).backbone, weights)
    trained = load_run(run, backbone)
    if trained.task.kind == "reid":
        raise PedbenchError(f"{run}: it tells persons apart, not attributes; name another run")
    attributes, protocol = trained.task.attributes, trained.config.protocol
    files = find_pictures(pictures)
    rows = pd.DataFrame({"image": [str(file) for file in files]})
    shown = Manifest("pictures", Path(), attributes, "", rows)
    images = Images.decoded(shown, backbone.image_size, protocol.resize)
    accelerator = make_accelerator(protocol)
    model = trained.model.to(accelerator.device)
    logits = predict(model, images, backbone, protocol, accelerator)
    names = [attribute.name for attribute in attributes]
    return pd.concat([rows, pd.DataFrame(sigmoid(logits), columns=names)], axis=1)


def find_pictures(places: Iterable[Path]) -> list[Path]:
    """Picture files among ``places`` and below folders among them, sorted within each."""
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += sorted(p for p in place.rglob("*") if is_picture(p))
        else:
            found.append(place)
    if not found:
        raise PedbenchError(f"no pictures ({', '.join(sorted(SUFFIXES))}) in what was given")
    return found
