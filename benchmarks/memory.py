"""Memory of a training step and of prediction, counted on shapes alone for every method: the rows
`step_mb` of config/timings.yaml, from which cluster jobs ask for GPU memory (docs/resources.md)."""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pedbench import registry
from pedbench.config import plain, protocol_of, read_protocol, read_variants, resolve
from pedbench.contracts import (
    OPENAI,
    Attribute,
    BaseMethod,
    ReidSettings,
    Task,
    TaskKind,
    as_output,
)
from pedbench.nn.backbone import load_backbone

ATTRIBUTES = 54  # RAPv2's, the most of a dataset
IDENTITIES, CAMERAS = 1041, 15  # MSMT17's, the most of a dataset
BATCHES = (8, 16)  # two points of a line
NEAREST = {"ViT-L-14": (252, 126)}  # to 256x128, that a patch divides
OWN_WEIGHTS = {  # what would be downloaded is built without, of the same shape
    "vtb": {"tower": "clip", "text_encoder": "clip"},
    "resnet50": {"weights": "random"},
    "ianet": {"weights": "random"},
}


class Live(TorchDispatchMode):
    """Bytes of the tensors that were made inside and are alive, and their most so far."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        result = function(*args, **(kwargs or {}))
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if _is(t)}
        for tensor in filter(_is, tree_leaves(result)):
            storage = tensor.untyped_storage()
            if id(storage) not in given | self.known:
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def _is(value: Any) -> bool:
    return isinstance(value, Tensor)


def fused(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    """The attention that a GPU uses in float32, which keeps no weights; shapes alone would get
    another."""
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*q.shape[:-1], k.shape[-2])
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return attend(q, k, v, attn_mask, compute_log_sumexp=True)[0]


def all_different(self: Tensor, return_inverse: bool = False) -> Any:
    """`Tensor.unique` has no answer for shapes alone."""
    return (self, torch.arange(len(self))) if return_inverse else self


@contextmanager
def shapes_alone() -> Iterator[None]:
    with (
        torch.device("meta"),
        patch.object(F, "scaled_dot_product_attention", fused),
        patch.object(Tensor, "unique", all_different),
    ):
        yield


def a_task(kind: TaskKind, attributes: int = ATTRIBUTES) -> Task:
    words = [
        Attribute(f"a{n}", "whole", f"in a long coat {n}", "without it") for n in range(attributes)
    ]
    if kind == "par":
        return Task("par", tuple(words), (0.3,) * attributes)
    losses = ReidSettings("cross_entropy", 1, 0.35, 30, 0.1, "triplet", 1, 0.3, "before")
    return Task("reid", tuple(words[:27]), (0.3,) * 27, "balanced", (), IDENTITIES, CAMERAS, losses)


def count(backbone: str, kind: TaskKind, method: str, variant: str, attributes: int) -> list[float]:
    """Bytes of a step that do not grow with the batch (beside the backbone's weights and the
    optimiser's moments), bytes per image of a step, and per image of prediction."""
    files = {"par": ("paper", ("reference",)), "reid": ("paper_reid", ("reference_reid",))}
    spec = resolve(method, variant, read_protocol(*files[kind]))
    protocol, params = protocol_of(spec), plain(spec["params"]) | OWN_WEIGHTS.get(method, {})
    made = registry.load_method(method)(registry.load_params(method, params))
    with shapes_alone():
        shape = load_backbone(
            f"random:{backbone}",
            image_size=NEAREST.get(backbone, protocol.image_size) if kind == "reid" else None,
            stride=protocol.patch_stride,
        )
        beside, shown = -size(shape), shape.image_size
        model = made.build(shape, a_task(kind, attributes))
        beside += size(model)
        found = [peaks(made, model, batch, shown) for batch in BATCHES]
    (step, predicted), (larger, more) = found
    slopes = [(b - a) / (BATCHES[1] - BATCHES[0]) for a, b in ((step, larger), (predicted, more))]
    return [max(0.0, beside) + max(0.0, step - BATCHES[0] * slopes[0]), *slopes]


def peaks(
    made: BaseMethod[Any], model: nn.Module, batch: int, shown: tuple[int, int]
) -> tuple[int, int]:
    """Most bytes alive in a step, of the stage that takes most, and in prediction."""
    images = torch.zeros(batch, 3, *shown)
    known = {"cameras": torch.zeros(batch).long(), "identities": torch.arange(batch)}
    read = {name: known[name] for name in getattr(model, "reads", ())}
    groups = {g["name"]: g["params"] for g in made.param_groups(model)} if made.trains else {}
    most = 0
    for stage in made.stages(tuple(groups)):
        for name, parameters in groups.items():
            for parameter in parameters:
                parameter.requires_grad_(name in stage.groups)
        made.start_stage(model, stage)
        most = max(most, of_step(model.train(), images, read))
        model.zero_grad()
    with Live() as live, torch.no_grad():
        model.eval()(images, **{name: read[name] for name in read if name != "identities"})
    return most, live.most


def of_step(model: nn.Module, images: Tensor, read: dict[str, Tensor]) -> int:
    with Live() as live:
        output = as_output(model(images, **read))
        parts = [output.logits, output.features, *output.extras.values()]
        sums = [part.float().sum() for part in parts if part is not None and part.requires_grad]
        torch.stack(sums).sum().backward()
    return live.most


def size(module: nn.Module) -> int:
    tensors = (*module.parameters(), *module.buffers())
    kept = {id(t.untyped_storage()): t.untyped_storage().nbytes() for t in tensors}
    return sum(kept.values())


def cases(kind: TaskKind) -> Iterator[tuple[str, str]]:
    """All methods of the task as they are, and their variants."""
    for method in registry.methods():
        if kind in registry.class_attribute(method, "tasks"):
            yield method, "default"
            for variant, changes in read_variants().get(method, {}).items():
                if "backbone" not in changes:
                    yield method, variant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    backbones, tasks = list(OPENAI), ["par", "reid"]
    about = f"of {', '.join(backbones)} (default: all)"
    add("--backbones", nargs="+", default=backbones, choices=OPENAI, metavar="NAME", help=about)
    add("--tasks", nargs="+", default=tasks, choices=tasks, help="default: both")
    about = "methods or method/variant (default: all)"
    add("--only", nargs="+", default=[], metavar="NAME", help=about)
    about = "number of attributes in task par (default: %(default)s)"
    add("--attributes", type=int, default=ATTRIBUTES, help=about)
    options = parser.parse_args()
    for kind in options.tasks:
        for backbone in options.backbones:
            print(f"  # {kind}\n  {backbone}:")
            for method, variant in cases(kind):
                name = method if variant == "default" else f"{method}/{variant}"
                if name in options.only or not options.only:
                    try:
                        found = count(backbone, kind, method, variant, options.attributes)
                        cells = ", ".join(f"{value / 1e6:.3g}" for value in found)
                        print(f"    {name}: [{cells}]", flush=True)
                    except Exception as error:  # of any method; the others go on
                        print(f"    # {name}: {type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
