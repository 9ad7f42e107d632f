"""CLIP-ReID: what each stage learns, who is in a batch and who is not, cameras, resuming."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import MODEL
from helpers import Killed, kill_after_save
from torch import Tensor

from pedbench.checkpoint import Checkpoints
from pedbench.config import protocol_of, read_protocol, resolve
from pedbench.contracts import Batch, PedbenchError, ReidSettings, Task
from pedbench.data import Images
from pedbench.engine import Fit, TrainingSet
from pedbench.methods.clip_reid import IMAGE, PROMPTS, Method, Params
from pedbench.nn.backbone import Backbone, shape_only

IDENTITIES = torch.tensor([0] * 5 + [1] * 4 + [2] * 4 + [3] * 2 + [4] + [5] * 4)  # 4: one image
CAMERAS = torch.arange(len(IDENTITIES)) % 3
REID = ReidSettings(
    id_loss="cross_entropy", id_loss_weight=0.25, id_margin=0.35, id_scale=30.0,
    label_smoothing=0.1, pair_loss="triplet", pair_loss_weight=1.0, margin=0.3, feature="before",
)  # fmt: skip
TASK = Task("reid", (), (), identities=6, cameras=3, reid=REID)
FAST: dict[str, Any] = {
    "prompt_epochs": 2,
    "prompt_lr": 1e-2,
    "lr": 1e-3,
    "prompt_warmup_epochs": 0,
}


class Bench:
    """Fits the method on noise of 20 images of six persons."""

    def __init__(self, backbone: Backbone, folder) -> None:
        self.backbone, self.folder = backbone, folder
        spec = resolve("clip_reid", "default", read_protocol("embedded_reid"))
        self.protocol = dataclasses.replace(
            protocol_of(spec), epochs=2, batch_size=8, images_per_identity=2, checkpoint_steps=1
        )
        size = (20, 3, *backbone.image_size)
        self.pictures = torch.from_numpy(
            np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        )

    def build(self, **params: Any) -> tuple[Method, Any]:
        method = Method(Params(**params))
        torch.manual_seed(0)
        return method, method.build(copy.deepcopy(self.backbone), TASK)

    def fit(
        self, name: str = "run", kill_at: int | None = None, epochs: int = 2, **params: Any
    ) -> tuple[dict[str, Tensor], Any]:
        """The trained tensors and the model; dies behind save ``kill_at`` of this start."""
        method, model = self.build(**FAST | params)
        images = Images(lambda at: self.pictures[at], np.arange(20), self.backbone.image_size)
        half = (0.5, 0.5, 0.5)
        data = TrainingSet(images, torch.empty(20, 0), half, half, IDENTITIES, CAMERAS)
        protocol = dataclasses.replace(self.protocol, epochs=epochs)
        fit = Fit(
            method, model, TASK, data, protocol, 7, Accelerator(cpu=True),
            Checkpoints(self.folder / name, "run"), self.folder / f"{name}.jsonl",
        )  # fmt: skip
        if kill_at is not None:
            kill_after_save(fit, kill_at)
        return fit.run(), model

    def batch(self, size: int = 20) -> Batch:
        images = self.pictures[:size].float() / 128 - 1
        return Batch(images, torch.empty(size, 0), IDENTITIES[:size], CAMERAS[:size])


@pytest.fixture
def bench(backbone, tmp_path) -> Bench:
    return Bench(backbone, tmp_path)


def start(method: Method, model: Any, name: str) -> None:
    (stage,) = (s for s in method.stages((PROMPTS, IMAGE, "biases")) if s.name == name)
    method.start_stage(model, stage)


def values(model: Any) -> dict[str, Tensor]:
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: t.detach().clone() for name, t in named if name != "text_features"}


def moved(before: dict[str, Tensor], model: Any) -> set[str]:
    return {name for name, t in values(model).items() if not torch.equal(before[name], t)}


def test_killed_in_either_stage_it_ends_with_the_same_bits(bench):
    """Two steps of prompts in each of two epochs, then two of images in each of two."""
    whole, _ = bench.fit("whole")
    for kill_at in (2, 0, 2):  # in the first stage, at its end, in the second
        with pytest.raises(Killed):
            bench.fit("killed", kill_at)
    resumed, _ = bench.fit("killed")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    logs = [(bench.folder / f"{name}.jsonl").read_text() for name in ("whole", "killed")]
    assert logs[0] == logs[1]
    assert [log.count('"stage": "prompts"') for log in logs] == [2, 2]
    assert [log.count('"stage": "image"') for log in logs] == [2, 2]


def test_each_stage_moves_only_what_it_trains(bench):
    before = values(bench.build(sie="cls")[1])
    _, prompted = bench.fit("a", epochs=0, sie="cls")
    assert moved(before, prompted) == {"head.context"}
    _, tuned = bench.fit("b", prompt_epochs=0, sie="cls")
    changed = moved(before, tuned)
    assert {"camera", "neck.norm.running_mean", "projected_neck.classifier.weight"} <= changed
    assert "backbone.clip.visual.conv1.weight" in changed
    kept = ("backbone.clip.visual.", "neck.", "projected_neck.", "camera")
    assert all(name.startswith(kept) for name in changed)
    assert not {"neck.norm.bias", "projected_neck.norm.bias"} & changed


def test_texts_are_those_the_first_stage_learned(bench):
    tensors, model = bench.fit()
    everybody = torch.arange(6)
    with torch.no_grad():
        assert torch.equal(model.text_features, model.head.texts(everybody))
    assert torch.equal(model.head.context, tensors["head.context"])
    assert "text_features" not in tensors


def prompt_gradient(bench: Bench, images: Tensor, **params: Any) -> Tensor:
    """Of the learned tokens in the first stage, decay of the optimiser left out."""
    method, model = bench.build(prompt_weight_decay=0.5, **params)
    start(method, model, PROMPTS)
    batch = bench.batch()
    batch = Batch(batch.images[images], batch.labels[images], IDENTITIES[images], CAMERAS[images])
    assert batch.identities is not None
    terms = method.loss(model(batch.images, batch.identities), batch, TASK)
    torch.stack(list(terms.values())).sum().backward()
    return model.head.context.grad


def test_identities_that_are_not_there_do_not_decay(bench):
    there = torch.tensor([0, 1, 5, 15])  # of persons 0, 1 and 4
    ours = prompt_gradient(bench, there)
    released = prompt_gradient(bench, there, decay_absent_ids="released")
    assert not ours[[2, 3, 5]].any() and not released[[2, 3, 5]].any()
    context = bench.build()[1].head.context
    present = [0, 1, 4]
    torch.testing.assert_close(ours[present] - released[present], 0.5 * context[present])
    for choice, decay in (("off", 0.0), ("released", 1e-4)):
        method, model = bench.build(decay_absent_ids=choice)
        groups = {group["name"]: group for group in method.param_groups(model)}
        assert groups[PROMPTS]["weight_decay"] == decay


def test_the_text_tower_reads_each_identity_once_and_no_padding(bench):
    method, model = bench.build()
    start(method, model, PROMPTS)
    seen = []
    block = model.backbone.clip.transformer.resblocks[0]
    block.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    output = model(bench.batch().images, IDENTITIES)
    # start, a photo of a, four tokens, person and full stop, end
    assert seen == [(6, 12, 32)]
    texts = output.extras["texts"]
    assert texts.shape == (20, 32)
    assert torch.equal(texts[0], texts[4]) and not torch.equal(texts[0], texts[5])


def test_an_unfrozen_text_tower_changes_nothing(bench):
    frozen, _ = bench.fit("frozen", epochs=1)
    released, model = bench.fit("released", epochs=1, freeze_text_stage1=False)
    assert all(torch.equal(frozen[name], released[name]) for name in frozen)
    assert frozen.keys() == released.keys()
    for freeze in (True, False):
        method, model = bench.build(freeze_text_stage1=freeze)
        start(method, model, PROMPTS)
        batch = bench.batch()
        terms = method.loss(model(batch.images, IDENTITIES), batch, TASK)
        torch.stack(list(terms.values())).sum().backward()
        clip = model.backbone.clip
        assert (clip.text_projection.grad is None) == freeze
        start(method, model, IMAGE)
        assert clip.text_projection.grad is None and not clip.text_projection.requires_grad


@pytest.mark.parametrize(("sie", "tokens"), [("cls", 1), ("all_tokens", 33)])
@torch.no_grad()
def test_cameras_are_added_to_the_tokens_named_and_in_the_second_stage_alone(bench, sie, tokens):
    images = bench.batch(6).images
    method, plain = bench.build()
    method, model = bench.build(sie=sie, sie_coefficient=5.0)
    without, cameras = plain.eval()(images), torch.zeros(6, dtype=torch.long)
    model.eval()
    assert torch.equal(model(images).features, without.features)
    first = model(images, cameras=cameras).features
    assert not torch.allclose(first, without.features)
    assert not torch.allclose(first, model(images, cameras=cameras + 1).features)
    embed = model.backbone.embed_image
    added = (embed(images, model._shift(cameras)) != embed(images)).any(2)
    assert added[:, :tokens].all() and not added[:, tokens:].any()
    start(method, model, PROMPTS)
    assert torch.equal(model.stem(images), plain.backbone.encode_image(images))
    assert torch.equal(model(images, cameras=cameras).features, first)  # a validation in between


@torch.no_grad()
def test_features_lie_side_by_side_before_or_behind_the_necks(bench, backbone):
    images = bench.batch(4).images
    _, model = bench.build()
    _, normed, projected = backbone.image_features(images)
    torch.testing.assert_close(model.eval()(images).features, torch.cat([normed, projected], 1))
    after = dataclasses.replace(TASK, reid=dataclasses.replace(REID, feature="after"))
    model: Any = Method(Params()).build(copy.deepcopy(backbone), after).eval()
    for neck in (model.neck, model.projected_neck):
        neck.norm.running_mean.fill_(1.0)
    expected = torch.cat([normed, projected], 1) - 1
    torch.testing.assert_close(model(images).features, expected, rtol=1e-4, atol=1e-4)


def test_biases_learn_at_another_rate(bench):
    method, model = bench.build(lr=1e-3, bias_lr_factor=2.0)
    groups = {group["name"]: group for group in method.param_groups(model)}
    names = {id(p): name for name, p in model.named_parameters()}
    assert groups["biases"]["lr"] == 2 * groups[IMAGE]["lr"] == 2e-3
    assert all(names[id(p)].endswith("bias") for p in groups["biases"]["params"])
    assert not any(names[id(p)].endswith("bias") for p in groups[IMAGE]["params"])


def test_a_resnet_goes_through_both_stages(tmp_path):
    tower = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}
    config = MODEL | {"vision_cfg": tower}
    resnet = Backbone.from_config(
        config, name="small ResNet", seed=1, image_size=(64, 32), stride=16
    )
    bench = Bench(resnet, tmp_path)
    before = values(bench.build()[1])
    _, prompted = bench.fit("a", epochs=0, prompt_epochs=1)
    assert moved(before, prompted) == {"head.context"}  # batch-norms of the tower stand still
    tensors, model = bench.fit("b", epochs=1, prompt_epochs=1)
    assert "backbone.clip.visual.layer4.0.bn1.running_mean" in moved(before, model)
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    with torch.no_grad():
        assert model.eval()(bench.batch(4).images).features.shape == (4, 512 + 32)
    assert "small ResNet has none" in (Method(Params(sie="cls")).supports(TASK, resnet) or "")


def test_what_it_cannot_do_is_said(backbone):
    assert Method(Params(sie="cls")).supports(TASK, backbone) is None
    unknown = dataclasses.replace(TASK, cameras=0)
    assert "cameras" in (Method(Params(sie="cls")).supports(unknown, backbone) or "")
    assert Method(Params()).supports(unknown, backbone) is None
    assert "not for par" in (Method(Params()).supports(Task("par", (), ()), backbone) or "")
    for length in (0, 17):
        with pytest.raises(PedbenchError, match="room for 1 to 16 learned tokens"):
            Method(Params(context_length=length)).build(backbone, TASK)


@pytest.mark.parametrize(
    ("name", "count", "tokens"),
    [("ViT-B-16", 88_693_248, 1_538_048), ("ViT-L-14", 307_620_864, 2_307_072)],
)
def test_trained_parameters_at_real_size(name, count, tokens):
    task = dataclasses.replace(TASK, identities=751)
    with torch.device("meta"):
        model: Any = Method(Params()).build(shape_only(name), task)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
    assert model.head.context.numel() == tokens
