"""LoRA and the other tuners of peft: where they start, what trains, AdaLoRA's budget."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from conftest import ATTRIBUTES
from peft.tuners.tuners_utils import BaseTunerLayer
from test_engine import Bench as EngineBench
from test_engine import Killed, equal
from torch.nn import functional as F

from pedbench import engine
from pedbench.config import read_variants
from pedbench.contracts import PedbenchError, Task
from pedbench.methods import lora, peft_tuner
from pedbench.nn.backbone import shape_only
from pedbench.nn.blocks import Attention
from pedbench.nn.tuners import adapt, peft_config
from pedbench.registry import load_method, load_params

TASK = Task("par", ATTRIBUTES, (0.5,) * len(ATTRIBUTES))
TUNERS = [label for label in read_variants()["peft_tuner"] if label != "ia3"]  # the default
NOT_IDENTITY = ("fourierft",)  # docs/decisions/peft.md


def build(backbone, method, seed=0, **params) -> Any:
    torch.manual_seed(seed)
    instance = load_method(method)(load_params(method, params))
    return instance.build(copy.deepcopy(backbone), TASK)


def variant(backbone, method, label, seed=0) -> Any:
    return build(backbone, method, seed, **read_variants()[method][label])


def shaken(model):
    """Moved off the start, where most updates are zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def pictures(count=3):
    return torch.randn(count, 3, 64, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("name", "count"), [("ViT-B-16", 184_320), ("ViT-L-14", 405_504)])
def test_clip_lora_trains_as_many_scalars_as_its_code(name, count):
    with torch.device("meta"):
        model = variant(shape_only(name), "lora", "clip_lora")
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


@pytest.mark.parametrize(("scaling", "factor"), [("alpha_over_r", 2), ("alpha_over_sqrt_r", 4)])
def test_the_update_is_scaled_as_named(backbone, scaling, factor):
    model = shaken(build(backbone, "lora", rank=4, alpha=8.0, scaling=scaling))
    layer = model.backbone.clip.visual.transformer.resblocks[0].attn.q_proj
    x = torch.randn(2, 32)
    update = F.linear(F.linear(x, layer.lora_A.default.weight), layer.lora_B.default.weight)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + factor * update)


@pytest.mark.parametrize("tower", ["visual", "text", "both"])
def test_nothing_is_differentiated_before_the_first_adapter(backbone, tower):
    model = build(backbone, "lora", tower=tower, head="pair")
    wanted = {}

    def note(name):
        return lambda _, inputs: wanted.update({name: inputs[0].requires_grad})

    clip = model.backbone.clip
    for name, transformer in {"visual": clip.visual.transformer, "text": clip.transformer}.items():
        first, second = transformer.resblocks[:2]
        first.attn.k_proj.register_forward_pre_hook(note(f"{name} 1"))
        second.attn.k_proj.register_forward_pre_hook(note(f"{name} 2"))
    model(pictures()).logits.sum().backward()
    adapted = {"visual", "text"} if tower == "both" else {tower}
    assert {name.split()[0] for name in wanted} == adapted | {"visual"}
    assert all(wanted[n] == (n[-1] == "2" and n.split()[0] in adapted) for n in wanted)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen)


def test_image_features_are_cached_while_only_texts_are_adapted(bench, monkeypatch):
    params = {"tower": "text", "head": "pair", "lr": 1e-2}
    cached, _ = bench.fit("lora", params, name="cached")
    calls = []
    monkeypatch.setattr(engine, "cached_stem", lambda *_: calls.append(1))
    plain, _ = bench.fit("lora", params, name="plain")
    assert calls and cached.keys() == plain.keys()
    for name in cached:
        torch.testing.assert_close(cached[name], plain[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("label", TUNERS)
def test_tuners_start_from_clip_itself(backbone, label):
    model = variant(backbone, "peft_tuner", label).eval()
    with torch.no_grad():
        expected, found = backbone.encode_image(pictures()), model.stem(pictures())
    same = torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert same == (label not in NOT_IDENTITY)


@pytest.mark.parametrize("label", TUNERS)
def test_what_does_not_train_is_the_same_for_every_seed(backbone, label):
    """Random projections come from a key in the options, so that an adapter fits them again."""
    models = [variant(backbone, "peft_tuner", label, seed) for seed in (0, 1)]
    first, second = (
        {n: p for n, p in (*m.named_parameters(), *m.named_buffers()) if not p.requires_grad}
        for m in models
    )
    assert equal(first, second)


@pytest.mark.parametrize("label", TUNERS)
def test_merged_adapters_compute_the_same(backbone, label):
    model = shaken(variant(backbone, "peft_tuner", label))
    with torch.no_grad():
        apart = model(pictures()).logits
        for layer in model.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
        merged = model(pictures()).logits
    torch.testing.assert_close(merged, apart, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"tuner": "Ia3"}, "tuner: peft has no 'Ia3Config' .*; did you mean 'IA3'"),
        ({"tuner": "PrefixTuning"}, "peft has no 'PrefixTuningConfig' that adapts layers"),
        ({"tuner": "Lora", "options": {"rnk": 4}}, "LoraConfig has no 'rnk'"),
        ({"tuner": "Lora", "options": {"lora_droput": 0.1}}, "did you mean 'lora_dropout'"),
        ({"tuner": "Lora", "options": {"r": 0}}, "Lora cannot adapt k, v, proj of random: `r`"),
        ({"tuner": "Lora", "options": {"target_modules": "q"}}, "is set by targets and tower"),
        ({"tuner": "Lora", "options": {"init_lora_weights": "eva"}}, "'eva' is computed from data"),
        ({"tuner": "Lora", "options": {"init_lora_weights": "loftq"}}, "'loftq' quantises"),
        ({"tuner": "OFT", "options": {"oft_block_size": 5}}, "OFT cannot adapt k, v, proj of r"),
        ({"tuner": "FourierFT", "options": {"n_frequency": -1}}, "FourierFT cannot adapt"),
        ({"targets": ()}, "targets is empty"),
        ({"tuner": "AdaLora", "options": {"tinit": 20}}, "shares of all steps"),
        ({"tuner": "AdaLora", "options": {"init_r": 4}}, "target_r 8 must be below init_r 4"),
    ],
)
def test_mistakes_are_named(backbone, params, message):
    with pytest.raises(PedbenchError, match=message):
        build(backbone, "peft_tuner", **params)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lora.Method(lora.Params(tower="both")), "tower must be visual"),
        (lora.Method(lora.Params(head="softmax")), "use pair or sigmoid"),
        (peft_tuner.Method(peft_tuner.Params("AdaLora", tower="text")), "visual or both"),
    ],
)
def test_what_cannot_be_tuned_is_refused(backbone, method, message):
    assert message in method.supports(TASK, backbone)


def test_an_adapter_that_no_gradient_reaches_stops_the_run(bench, monkeypatch):
    """As in `nn.MultiheadAttention`, which reads the weight of out_proj without calling it."""

    def attend(self, q, k, v, mask=None):
        q, k, v = self._heads(q), self._heads(k), self._heads(v)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        mixed = mixed.transpose(-3, -2).flatten(-2)
        out = self.out_proj
        base = getattr(out, "base_layer", out)
        return F.linear(mixed, base.weight, base.bias)

    monkeypatch.setattr(Attention, "attend", attend)
    params = {"tuner": "Lora", "targets": ["q", "out"]}
    with pytest.raises(PedbenchError, match=r"8 trained tensors have no gradient.*attn\.out_proj"):
        bench.fit("peft_tuner", params)


ADALORA = {"init_r": 4, "target_r": 2, "tinit": 0.2, "tfinal": 0.3, "deltaT": 20}


@pytest.fixture
def bench(backbone, manifest, tmp_path):
    return EngineBench(backbone, manifest, tmp_path)


@pytest.mark.parametrize(("head", "kills"), [("pair", (4,)), ("linear", (10,))])
def test_adalora_resumes_to_the_same_bits(bench, head, kills):
    """Of nine steps, after a probe of three with a linear head, the seventh chooses the ranks; a
    kill after the fifth would lose what was averaged till then, after the eighth what was chosen.
    """
    params = {"tuner": "AdaLora", "options": ADALORA, "head": head, "tower": "visual", "lr": 1e-2}
    change = {"epochs": 3, "probe_epochs": 1}
    undisturbed, model = bench.fit("peft_tuner", params, name="whole", **change)
    for kill_at in kills:
        with pytest.raises(Killed):
            bench.fit("peft_tuner", params, name="killed", kill_at=kill_at, **change)
    resumed, _ = bench.fit("peft_tuner", params, name="killed", **change)
    assert equal(undisturbed, resumed)
    values = [p for name, p in model.named_parameters() if "lora_E" in name]
    assert sum(int(p.count_nonzero()) for p in values) == 2 * len(values)
    assert len({int(p.count_nonzero()) for p in values}) > 1, "ranks moved between layers"
    assert not model.budget.averages.any(), "what is no longer needed is not saved"


def test_adaloras_budget_and_penalty_are_pefts(backbone):
    """Step by step against peft's own model, which keeps its state in attributes."""
    options = {k: v for k, v in ADALORA.items() if k not in ("tinit", "tfinal")}
    torch.manual_seed(0)
    theirs = adapt(
        copy.deepcopy(backbone),
        peft_config("AdaLora", {**options, "tinit": 2, "tfinal": 3, "total_step": 10}),
        "visual",
        ("q", "v"),
    )
    params = {"tuner": "AdaLora", "options": ADALORA, "targets": ["q", "v"], "head": "pair"}
    method = load_method("peft_tuner")(load_params("peft_tuner", params))
    torch.manual_seed(0)
    ours: Any = method.build(copy.deepcopy(backbone), TASK).train()
    pairs = [
        (p, q)
        for p, q in zip(ours.backbone.clip.parameters(), theirs.model.parameters(), strict=True)
        if p.requires_grad
    ]
    optimisers = [torch.optim.AdamW(side, lr=0.1) for side in zip(*pairs, strict=True)]
    kept = []
    for step in range(1, 11):
        theirs.model.forward = lambda: dataclasses.make_dataclass("Out", ["loss"])(torch.zeros(()))
        penalty = ours(pictures()).extras["orthogonality"]
        torch.testing.assert_close(penalty, theirs.forward().loss)
        for p, q in pairs:
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
        method.after_step(ours, step, 10)
        theirs.update_and_allocate(step)
        assert all(torch.equal(p, q) for p, q in pairs)
        kept.append(int(ours.budget.kept.sum()))
    assert kept[0] == 32 and kept[-1] == 16 and sorted(kept, reverse=True) == kept
