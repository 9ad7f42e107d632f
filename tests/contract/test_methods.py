"""What every method in methods/ must do; a new file is tested without being named here."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import MODEL

from pedbench import registry
from pedbench.checkpoint import Checkpoints, Trained, load_tensors, load_trained, save_tensors
from pedbench.config import plain as without_origins
from pedbench.config import protocol_of, read_protocol, read_variants, resolve
from pedbench.contracts import BaseMethod, Output, Task, as_output
from pedbench.data import Images, normalise
from pedbench.engine import Fit, read
from pedbench.maps import relevance, responses
from pedbench.nn.backbone import Backbone
from pedbench.predict import normalisation
from pedbench.runs import RunConfig
from pedbench.train import Part, make_task, training_set


def is_new(method, label, task):
    """Variants of a method for both tasks differ in the same way in each; those of slow networks in
    nothing that a contract sees."""
    if label == "default" or (method, label) in ALSO_FOR_REID:
        return True
    if method == "ianet":
        return False
    return registry.class_attribute(method, "tasks") == (task,) if task == "reid" else True


ANEW = ("backbone", "patch_stride", "pair_loss", "weights")  # what is nothing new to a contract
ALSO_FOR_REID = (("promptpar", "global_deep"), ("peft_tuner", "adalora"))
PROTOCOLS = {"par": ("embedded", "tiny_clip"), "reid": ("embedded_reid", "tiny_clip_reid")}
SPLITS = {"par": "standard", "reid": "reid"}
CASES = [
    (method, label, task)
    for method in registry.methods()
    for task in registry.class_attribute(method, "tasks")
    for label, changes in {"default": {}, **read_variants().get(method, {})}.items()
    if not changes.keys() & set(ANEW) and is_new(method, label, task)
]
FOREIGN = [c for c in CASES if len(registry.class_attribute(c[0], "tasks")) == 1]
TRAINED = [case for case in CASES if registry.trains(case[0])]
# Trainable in the published setting, yet the loss cannot see them: keys' biases cancel in the
# softmax, biases in front of a batch-norm in its mean; the released text prompts stand behind
# end-of-text, where the causal mask hides them.
INERT = {
    "bitfit": ("attn.k_proj.bias", "visual.ln_post.bias"),
    "ssf": ("attn.k_proj.shift", "visual.ln_post.shift"),
    "clip_reid": ("attn.k_proj.bias",),
    "full_finetune": ("attn.k_proj.bias",),
    "full_finetune/default": ("visual.ln_post.bias",),
    "ianet": ("layer2.5.norm.bias", "layer3.7.norm.bias"),
    "apr": ("attn.k_proj.bias",),
    "promptpar": ("fusion.linear.bias", "fusion.norm.bias", "head.bias"),
    "promptpar/released_code": ("text_prompts",),
    "peft_tuner/ln_tuning": ("visual.ln_post.ln_tuning_layers.default.bias",),
    "vtb": ("attn.k_proj.bias", "fusion.norm.bias", "head.bias"),
}

TRAINING_FREE = "training-free: sets itself from the training images"


@pytest.fixture(autouse=True)
def _no_downloads(monkeypatch):
    """Networks of other authors start from random weights here."""
    monkeypatch.setattr("pedbench.nn.pretrained._only_shapes", lambda: True)


class Setting:
    """A method's variant, built on the small backbone as the embedded protocol resolves it."""

    def __init__(self, case, backbone, manifest):
        self.name, self.label, task = name, label, _ = case
        protocol, *presets = PROTOCOLS[task]
        spec = resolve(name, label, read_protocol(protocol, tuple(presets)))
        self.protocol = replace(
            protocol_of(spec), epochs=1, batch_size=24, warmup_epochs=0, checkpoint_steps=1000
        )
        params = without_origins(spec["params"])
        self.method = registry.load_method(name)(registry.load_params(name, params))
        self.split = SPLITS[task]
        self.train = manifest.subset(self.split, "train")
        config = RunConfig("noise", self.split, name, label, "random", self.protocol, params)
        self.task = make_task(config, self.train, cameras=3)
        self.backbone = backbone
        self.mean, self.std = normalisation(backbone, self.protocol)
        images = Images.decoded(self.train, backbone.image_size, "stretch")
        self.data = training_set(Part(self.train, images), self.split, self.mean, self.std)

    def build(self):
        torch.manual_seed(3)
        return self.method.build(copy.deepcopy(self.backbone), self.task)

    def read(self, output):
        """What predictions are made of: logits, or the features that retrieval compares."""
        return output.features if self.task.kind == "reid" else output.logits

    def answer(self, model, batch):
        model.eval()
        return self.read(model(batch.images, **read(model, replace(batch, identities=None))))

    def batch(self, of=slice(0, 8)):
        """Eight images: in re-identification four of each of two persons."""
        chosen = torch.arange(8)[of]
        images = normalise(self.data.images[chosen], self.mean, self.std)
        return self.data.batch(images, chosen, torch.device("cpu"))

    def fit(self, model, folder):
        return Fit(
            self.method, model, self.task, self.data, self.protocol, 5, Accelerator(cpu=True),
            Checkpoints(folder, "contract"), folder / "metrics.jsonl", lambda _: 0.5,
        ).run()  # fmt: skip


@pytest.fixture
def setting(request, backbone, manifest):
    made = Setting(request.param, backbone, manifest)
    reason = made.method.supports(made.task, backbone)
    if reason:
        pytest.skip(f"{'/'.join(request.param)}: {reason}")
    return made


attributes = pytest.mark.parametrize(
    "setting", [c for c in CASES if c[2] == "par"], indirect=True, ids="/".join
)
every = pytest.mark.parametrize("setting", CASES, indirect=True, ids="/".join)
trained = pytest.mark.parametrize("setting", TRAINED, indirect=True, ids="/".join)


@pytest.mark.parametrize("name", registry.methods())
def test_its_title_is_its_own(name):
    assert [m for m in registry.methods() if registry.title(m) == registry.title(name)] == [name]


@attributes
def test_maps_of_where_it_looks_need_nothing_of_a_method(setting):
    model, size, patch = setting.build().eval(), setting.backbone.image_size, setting.backbone.patch
    pictures = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)

    @torch.no_grad()
    def predict(pictures):
        return model(normalise(pictures, setting.mean, setting.std)).logits.numpy()

    before, inside = predict(pictures), []
    found = responses(model, lambda: inside.append(predict(pictures)))
    assert all(np.array_equal(logits, before) for logits in (*inside, predict(pictures)))
    for response in found:
        assert response.maps.shape == (2, *setting.backbone.grid)
        assert (response.maps >= 0).all() and (response.maps.sum((1, 2)) < 1 + 1e-4).all()
    logits, falls = relevance(predict, pictures[0], patch)
    assert falls.shape == (len(logits), *setting.backbone.grid) and np.isfinite(falls).all()


@every
def test_output_has_one_logit_per_attribute_or_features(setting):
    assert isinstance(setting.method, BaseMethod)
    model, batch = setting.build().eval(), setting.batch()
    with torch.no_grad():
        output = model(batch.images, **read(model, replace(batch, identities=None)))
        answer = setting.answer(model, batch)
    assert isinstance(output, Output)
    if setting.task.kind == "par":
        assert output.logits.shape == (8, len(setting.task.attributes))
    assert len(answer) == 8 and answer.ndim == 2
    assert torch.isfinite(answer).all()


@every
def test_images_of_a_batch_do_not_mix_in_evaluation(setting):
    model, batch = setting.build().eval(), setting.batch()
    with torch.no_grad():
        whole = setting.answer(model, batch)
        alone = (setting.batch(of=slice(i, i + 1)) for i in range(8))
        single = torch.cat([setting.answer(model, one) for one in alone])
    torch.testing.assert_close(whole, single, rtol=1e-4, atol=1e-4)


@trained
def test_every_trainable_parameter_receives_a_gradient(setting):
    """Apart from rounding; what is initialised with zeros is moved first, so that one factor of
    a product does not hide the other."""
    model, batch, method = setting.build(), setting.batch(), setting.method
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        pytest.skip(TRAINING_FREE)
    with torch.no_grad():
        method.prepare(model.eval(), iter([batch]))
        model.train()
        for parameter in trainable.values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    groups = {group["name"]: group["params"] for group in method.param_groups(model)}
    for stage in method.stages(tuple(groups)):
        for name, parameters in groups.items():
            for parameter in parameters:
                parameter.requires_grad_(name in stage.groups)
        method.start_stage(model, stage)
        output = as_output(model(batch.images, **read(model, batch)))
        terms = method.loss(output, batch, setting.task)
        assert all(term.ndim == 0 for term in terms.values())
        torch.stack(list(terms.values())).sum().backward()
    largest = {
        n: 0.0 if p.grad is None else float(p.grad.abs().max()) for n, p in trainable.items()
    }
    inert = {name for name, value in largest.items() if value <= 1e-4 * max(largest.values())}
    keys = setting.name, f"{setting.name}/{setting.label}"
    declared = tuple(end for key in keys for end in INERT.get(key, ()))
    assert inert == {name for name in trainable if name.endswith(declared)}, (
        "trainable but without a gradient: freeze it, use it or declare it in INERT"
    )


@trained
def test_two_steps_leave_frozen_weights_untouched(setting, tmp_path):
    model = setting.build()
    names = set(Trained(model).names)
    if not names:
        pytest.skip(TRAINING_FREE)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    setting.fit(model, tmp_path)
    after = dict(model.named_parameters())
    assert all(torch.equal(before[n], after[n]) for n in before if n not in names)
    assert any(not torch.equal(before[n], after[n]) for n in names)


@trained
def test_adapter_round_trip_gives_identical_predictions(setting, tmp_path):
    model = setting.build()
    save_tensors(tmp_path / "adapter.safetensors", setting.fit(model, tmp_path / "fit"), {})
    fresh = setting.build()
    load_trained(fresh, load_tensors(tmp_path / "adapter.safetensors")[0], tmp_path)
    batch = setting.batch()
    with torch.no_grad():
        assert torch.equal(setting.answer(model, batch), setting.answer(fresh, batch))


@trained
def test_stem_and_head_make_the_model(setting):
    model = setting.build().eval()
    if not hasattr(model, "stem"):
        pytest.skip("no frozen stem to cache")
    images = setting.batch().images
    with torch.no_grad():
        split = as_output(model.head(model.stem(images)))
        assert torch.equal(setting.answer(model, setting.batch()), setting.read(split))


def test_an_unsupported_task_is_refused_with_a_reason(backbone):
    class Unheard(BaseMethod):
        tasks = ()

    reason = Unheard(None).supports(Task("par", (), ()), backbone)
    assert reason and "par" in reason


@pytest.mark.parametrize("setting", FOREIGN, indirect=True, ids="/".join)
def test_a_foreign_task_is_refused(setting):
    """A method's own `supports` keeps what `BaseMethod` refuses."""
    (foreign,) = {"par", "reid"} - set(setting.method.tasks)
    assert setting.method.supports(replace(setting.task, kind=foreign), setting.backbone)


@pytest.fixture(scope="module")
def resnet():
    tower = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}
    return Backbone.from_config(MODEL | {"vision_cfg": tower}, name="small ResNet", seed=1)


def test_a_method_may_need_patch_tokens(resnet, backbone):
    class Prompts(BaseMethod):
        needs_tokens = True

    task = Task("par", (), ())
    assert Prompts(None).supports(task, backbone) is None
    assert "patch tokens; small ResNet" in (Prompts(None).supports(task, resnet) or "")


@pytest.mark.parametrize("case", CASES, ids="/".join)
def test_on_a_resnet_a_method_says_why_not_or_works(case, resnet, manifest):
    """Its norms move only with the weights that train."""
    setting = Setting(case, resnet, manifest)
    reason = setting.method.supports(setting.task, resnet)
    if reason is not None:
        assert "small ResNet" in reason
        return
    model, batch = setting.build().train(), setting.batch()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    before = [norm.get_buffer("running_mean").clone() for norm in norms]
    found = setting.read(as_output(model(batch.images, **read(model, batch))))
    assert found is not None and len(found) == len(batch.labels)
    assert torch.isfinite(found).all()
    for norm, mean in zip(norms, before, strict=True):
        assert torch.equal(norm.get_buffer("running_mean"), mean) != norm.weight.requires_grad
