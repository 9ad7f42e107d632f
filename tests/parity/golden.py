"""What all golden checks share: a case, the CLIP in it, a task without meaning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pedbench.contracts import Attribute, Task
from pedbench.nn.backbone import Backbone

# role -> (share of the tensor's largest entry, absolute)
Tolerances = dict[str, tuple[float, float]]


class Case:
    """A golden file, its kind's tolerances, and which of its arrays were compared."""

    def __init__(self, path: Path, tolerances: Tolerances) -> None:
        with np.load(path) as file:
            self.arrays: dict[str, np.ndarray] = {n: a for n, a in file.items() if a.size}
        self.config: dict[str, Any] = json.loads(str(self.arrays.pop("config")))
        self.tolerances = tolerances
        self.open = {n for n in self.arrays if n.split("/")[0] not in ("input", "param", "buffer")}

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(np.array(self.arrays[name]))

    def names(self, prefix: str) -> list[str]:
        """Names of arrays that begin with ``prefix``, without it."""
        return [n.removeprefix(prefix) for n in self.arrays if n.startswith(prefix)]

    def compare(
        self,
        name: str,
        value: Any,
        scale: float | None = None,
        slack: float = 0.0,
        role: str = "",
        rows: slice = slice(None),
    ) -> None:
        """``value`` equals array ``name`` (or ``rows`` of its second axis) within the tolerance
        of ``role``, the first word of the name if empty.

        ``scale`` replaces the largest entry, ``slack`` is added to the absolute tolerance.
        """
        self.open.discard(name)
        expected = np.asarray(self.arrays[name], dtype=np.float64)
        expected = expected if rows == slice(None) else expected[:, rows]
        found = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        assert found.shape == expected.shape, f"{name}: shape {found.shape}, not {expected.shape}"
        relative, absolute = self.tolerances[role or name.split("/")[0]]
        largest = np.abs(expected).max(initial=0.0) if scale is None else scale
        error = np.abs(found.astype(np.float64) - expected).max(initial=0.0)
        allowed = relative * largest + absolute + slack
        assert error <= allowed, f"{name}: off by {error:.3g}, allowed {allowed:.3g}"

    def finish(self) -> None:
        assert not self.open, f"arrays nobody compared: {sorted(self.open)}"


def plain_task(attributes: int, ratio: Tensor | None = None, weighting: str = "released") -> Task:
    named = tuple(Attribute(f"a{i}", "whole", f"a{i}", f"no a{i}") for i in range(attributes))
    shares = [0.5] * attributes if ratio is None else ratio.tolist()
    return Task("par", named, tuple(shares), weighting)


def tiny_backbone(
    config: dict[str, Any], state: dict[str, Tensor], ids: Tensor, **grid: Any
) -> Backbone:
    """The CLIP of a case, on another ``grid`` if given. Its tokenizer returns ``ids`` whatever the
    text."""
    model = {
        "embed_dim": config["embed_dim"],
        "quick_gelu": config["quick_gelu"],
        "vision_cfg": {
            "image_size": config["image_size"],
            "patch_size": config["patch"],
            "width": config["vision_width"],
            "layers": config["vision_layers"],
            "head_width": config["vision_width"] // config["vision_heads"],
        },
        "text_cfg": {
            "context_length": config["context_length"],
            "vocab_size": config["text_vocab"],
            "width": config["text_width"],
            "heads": config["text_heads"],
            "layers": config["text_layers"],
        },
    }
    backbone = Backbone.from_config(model, state, **grid)
    backbone.tokenizer = lambda texts: ids  # type: ignore[assignment]
    return backbone
