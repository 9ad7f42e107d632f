"""Logits of a model for images, and their Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pedbench.config import Protocol
from pedbench.contracts import Batch, as_output
from pedbench.data import Images, normalise
from pedbench.engine import read
from pedbench.files import write_atomic
from pedbench.manifest import Manifest
from pedbench.nn.backbone import Backbone
from pedbench.tasks.reid import Rankings
from pedbench.together import Team

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalisation(backbone: Backbone, protocol: Protocol):
    """(mean, std) per channel: the backbone's own, 0.5 as PromptPAR's and VTB's code use, or
    those of ImageNet."""
    if protocol.normalisation == "half":
        return (0.5,) * 3, (0.5,) * 3
    if protocol.normalisation == "imagenet":
        return IMAGENET_MEAN, IMAGENET_STD
    return backbone.mean, backbone.std


@torch.no_grad()
def predict(
    model: nn.Module,
    images: Images | Tensor,
    backbone: Backbone,
    protocol: Protocol,
    accelerator: Accelerator,
    kept: Literal["logits", "features"] = "logits",
    cameras: Tensor | None = None,
) -> np.ndarray:
    """``kept`` of the outputs, ``(N, A)`` or ``(N, D)`` float32 in manifest order; no augmentation;
    the model is left in eval mode. Several processes share the batches, and each returns all rows.
    ``images`` may be a tensor, ``(N, 3, H, W)`` uint8; ``cameras (N,)`` are for models that read
    them."""
    model.eval()
    mean, std = normalisation(backbone, protocol)
    team = Team(accelerator.num_processes, accelerator.process_index)

    def outputs(positions: Tensor) -> Tensor:
        pictures = normalise(images[positions].to(accelerator.device), mean, std)
        seen = None if cameras is None else cameras[positions].to(accelerator.device)
        batch = Batch(pictures, torch.empty(0), cameras=seen)
        with accelerator.autocast():
            output = as_output(model(pictures, **read(model, batch)))
        return getattr(output, kept).float().cpu()

    return team.in_batches(len(images), protocol.eval_batch_size, outputs).numpy()


def write_predictions(path: Path, manifest: Manifest, logits: np.ndarray, run: str) -> None:
    """``image``, then one float32 column of logits per attribute; the run's digest in the
    metadata."""
    columns: dict[str, pa.Array] = {"image": pa.array(manifest.rows["image"])}
    for index, attribute in enumerate(manifest.attributes):
        columns[attribute.name] = pa.array(logits[:, index].astype(np.float32))
    _write(path, columns, run)


def write_features(path: Path, manifest: Manifest, features: np.ndarray, run: str) -> None:
    """``image`` and ``feature``, a list of float32, not normalised; the run's digest in the
    metadata."""
    values = pa.array(features.astype(np.float32).ravel())
    lists = pa.FixedSizeListArray.from_arrays(values, features.shape[1])
    _write(path, {"image": pa.array(manifest.rows["image"]), "feature": lists}, run)


def write_rankings(path: Path, queries: pd.DataFrame, rankings: Rankings, run: str) -> None:
    """One row per query: its image, identity and camera, and what `Rankings` says of it."""
    columns: dict[str, pa.Array] = {
        name: pa.array(queries[name]) for name in ("image", "identity", "camera")
    }
    for name in ("matches", "first", "AP", "INP"):
        columns[name] = pa.array(getattr(rankings, name))
    nearest = pa.array(rankings.top.astype(np.int32).ravel())
    columns["top"] = pa.FixedSizeListArray.from_arrays(nearest, rankings.top.shape[1])
    _write(path, columns, run)


def _write(path: Path, columns: dict[str, pa.Array], run: str) -> None:
    table = pa.table(columns).replace_schema_metadata({b"digest": run.encode()})
    write_atomic(path, lambda temporary: pq.write_table(table, temporary))
