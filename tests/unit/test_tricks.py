"""Each trick gives the logits and gradients of the plain computation, in every method.

In double precision, so that what is left is no rounding of float32.
"""

from __future__ import annotations

import copy
from typing import Any

import naive
import pytest
import torch

from pedbench import registry
from pedbench.config import plain, read_protocol, resolve
from pedbench.contracts import Batch, Task
from pedbench.nn.blocks import split_qkv

CLOSE: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-8}
USERS = {
    "fixed_texts": ("clip_adapter", "vpt"),
    "short_texts": ("coop", "promptpar"),
    "packed_texts": ("coop", "maple"),
    "batched_images": ("cocoop",),
    "kv_prompts": ("maple", "promptpar", "vpt"),
    "read": ("coop", "lora", "promptpar"),
    "split_attention": ("full_finetune", "maple"),
    "late_backward": ("adapter", "coop"),
}


def run(name, tricks, backbone, manifest):
    """Logits, gradients by parameter and what `naive.without` counted."""
    spec = plain(resolve(name, "default", read_protocol("embedded", ("tiny_clip",))))
    method = registry.load_method(name)(registry.load_params(name, spec["params"]))
    train = manifest.subset("standard", "train")
    task = Task("par", manifest.attributes, train.positive_ratio(), "balanced")
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(4, 3, *backbone.image_size, generator=generator, dtype=torch.float64)
    batch = Batch(images, torch.from_numpy(train.labels[:4].copy()))
    backbone = copy.deepcopy(backbone).double()
    with naive.without(backbone, *tricks) as used:
        torch.manual_seed(3)
        model = method.build(backbone, task).double().eval()
        for module in model.modules():  # masks depend on how many tokens there are
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        with torch.no_grad():
            method.prepare(model, iter([batch]))
        used.clear()
        torch.manual_seed(4)
        output = model.train()(images)
        if not method.trains:
            return output.logits, {}, used
        terms = method.loss(output, batch, task)
        torch.stack([*terms.values()]).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return output.logits, split_qkv(gradients), used


def check(found, expected):
    """Gradients that cancel, as those of the keys' biases, are rounding alone: hence a floor."""
    torch.testing.assert_close(found[0], expected[0], **CLOSE)
    assert found[1].keys() == expected[1].keys()
    largest = {name: float(gradient.abs().max()) for name, gradient in expected[1].items()}
    for name, gradient in expected[1].items():
        scale = max(largest[name], 1e-3 * max(largest.values()))
        torch.testing.assert_close(
            found[1][name] / scale, gradient / scale, **CLOSE, msg=lambda m, n=name: f"{n}: {m}"
        )


ATTRIBUTES = [n for n in registry.methods() if "par" in registry.class_attribute(n, "tasks")]
METHODS = [name for name in ATTRIBUTES if name != "resnet50"]  # it has nothing of CLIP


@pytest.mark.parametrize("name", METHODS)
def test_tricks_change_nothing(name, backbone, manifest):
    """All together, then one by one those that the method uses."""
    with_tricks = run(name, (), backbone, manifest)
    assert with_tricks[1] or not registry.trains(name)
    every = [t for t in naive.TRICKS if t != "split_attention" or name not in naive.NEED_SPLIT]
    naively = run(name, every, backbone, manifest)
    check(with_tricks, naively)
    for trick in naively[2]:
        check(with_tricks, run(name, (trick,), backbone, manifest))


@pytest.mark.parametrize("trick", USERS)
def test_tricks_are_in_use(trick, backbone, manifest):
    for name in USERS[trick]:
        assert run(name, (trick,), backbone, manifest)[2][trick], f"{name} makes no use of it"
