"""Logits of a model for images, and their Parquet files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pedbench.config import Protocol
from pedbench.data import Images, normalise
from pedbench.engine import as_output
from pedbench.files import write_atomic
from pedbench.manifest import Manifest
from pedbench.nn.backbone import Backbone

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
def predict_logits(
    model: nn.Module,
    images: Images | Tensor,
    backbone: Backbone,
    protocol: Protocol,
    accelerator: Accelerator,
) -> np.ndarray:
    """``(N, A)`` float32 in manifest order; no augmentation; the model is left in eval mode.
    ``images`` may be a tensor, ``(N, 3, H, W)`` uint8."""
    model.eval()
    mean, std = normalisation(backbone, protocol)
    parts = []
    for positions in torch.arange(len(images)).split(protocol.eval_batch_size):
        pictures = normalise(images[positions].to(accelerator.device), mean, std)
        with accelerator.autocast():
            parts.append(as_output(model(pictures)).logits.float().cpu())
    return torch.cat(parts).numpy()


def write_predictions(path: Path, manifest: Manifest, logits: np.ndarray, run: str) -> None:
    """``image``, then one float32 column of logits per attribute; the run's digest in the
    metadata."""
    columns: dict[str, pa.Array] = {"image": pa.array(manifest.rows["image"])}
    for index, attribute in enumerate(manifest.attributes):
        columns[attribute.name] = pa.array(logits[:, index].astype(np.float32))
    table = pa.table(columns).replace_schema_metadata({b"digest": run.encode()})
    write_atomic(path, lambda temporary: pq.write_table(table, temporary))
