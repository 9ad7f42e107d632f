"""The training loop: resuming, selection, refusals, cached features."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
from accelerate import Accelerator
from helpers import Killed, kill_after_save

from pedbench import engine
from pedbench.checkpoint import Checkpoints, load_tensors, load_trained
from pedbench.config import Protocol
from pedbench.contracts import PedbenchError, Task
from pedbench.data import Images, augment, epoch_order, labelled, normalise
from pedbench.engine import Fit, TrainingSet
from pedbench.registry import load_method, load_params

PROTOCOL = Protocol(
    name="test", version="test", resize="stretch", normalisation="clip", flip=True, crop_padding=0,
    optimiser="adamw", momentum=0.9, weight_decay=0.01, epochs=2, batch_size=16, accumulate=1,
    schedule="cosine", warmup_epochs=1, warmup_from=0.1, final_lr_fraction=0.0, clip_norm=5.0,
    head_init="linear_probe", probe_epochs=1, probe_lr=1e-2,
    precision="fp32", loss_weighting="released", selection="last_epoch", threshold=0.5,
    f1="instance", eval_batch_size=32, checkpoint_steps=1, task="par", image_size=None,
    patch_stride=None, random_erasing=0.0,
)  # fmt: skip


class Bench:
    """Fits a method on the noise dataset and hands out what came of it."""

    def __init__(self, backbone, manifest, folder):
        self.backbone, self.folder, self.fits = backbone, folder, []
        self.train, self.val = (
            manifest.subset("standard", "train"),
            manifest.subset("standard", "val"),
        )
        self.images = Images.decoded(self.train, (64, 32), "stretch")
        self.task = Task("par", manifest.attributes, self.train.positive_ratio())

    def fit(
        self, method="full_finetune", params=None, name="a", kill_at=None, validate=None,
        epochs_kept=None, **change,
    ):  # fmt: skip
        protocol = dataclasses.replace(PROTOCOL, **change)
        params = {"lr": 1e-3, "head_lr": 1e-2} if params is None else params
        instance = load_method(method)(load_params(method, params))
        torch.manual_seed(0)
        model = instance.build(copy.deepcopy(self.backbone), self.task)
        labels = torch.from_numpy(self.train.labels.copy())
        data = TrainingSet(self.images, labels, self.backbone.mean, self.backbone.std)
        fit = Fit(
            instance, model, self.task, data, protocol, 7, Accelerator(cpu=True),
            Checkpoints(self.folder / name, "run"), self.folder / f"{name}.jsonl", validate, name,
            epochs_kept,
        )  # fmt: skip
        self.fits.append(fit)
        if kill_at is not None:
            kill_after_save(fit, kill_at)
        return fit.run(), model


@pytest.fixture
def bench(backbone, manifest, tmp_path):
    return Bench(backbone, manifest, tmp_path)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("kills", [(0,), (2, 1), (4, 0, 2)])
@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_killed_runs_end_with_the_same_bits(bench, kills, optimiser):
    undisturbed, _ = bench.fit(name="whole", optimiser=optimiser)
    for kill_at in kills:
        with pytest.raises(Killed):
            bench.fit(name="killed", kill_at=kill_at, optimiser=optimiser)
    resumed, _ = bench.fit(name="killed", optimiser=optimiser)
    assert equal(undisturbed, resumed)
    whole, killed = ((bench.folder / f"{n}.jsonl").read_text() for n in ("whole", "killed"))
    assert whole == killed


def test_the_time_of_a_killed_run_counts(bench, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(engine.time, "perf_counter", lambda: next(clock))
    with pytest.raises(Killed):
        bench.fit(name="killed", kill_at=4)
    before = bench.fits[-1].state.seconds
    monkeypatch.setattr(engine.time, "perf_counter", lambda: 0.0)  # from here on it stands still
    bench.fit(name="killed")
    assert 0 < before == bench.fits[-1].state.seconds


def test_sparse_checkpoints_resume_to_the_same_bits(bench):
    undisturbed, _ = bench.fit(name="whole", checkpoint_steps=2)
    with pytest.raises(Killed):
        bench.fit(name="killed", kill_at=1, checkpoint_steps=2)
    assert equal(undisturbed, bench.fit(name="killed", checkpoint_steps=2)[0])


def test_kept_epochs_survive_kills(bench):
    """Also where the run that was killed had not kept them: it starts anew."""
    whole, killed = bench.folder / "whole_epochs", bench.folder / "killed_epochs"
    bench.fit(name="whole", epochs_kept=whole)
    for kept, kill_at in ((None, 6), (killed, 7)):  # both in the second epoch of its own
        with pytest.raises(Killed):
            bench.fit(name="killed", kill_at=kill_at, epochs_kept=kept)
    resumed, _ = bench.fit(name="killed", epochs_kept=killed)
    names = ["0.safetensors", "1.safetensors"]  # the method's own, not the probe's
    assert sorted(p.name for p in whole.iterdir()) == sorted(p.name for p in killed.iterdir())
    assert sorted(p.name for p in whole.iterdir()) == names
    assert all((whole / n).read_bytes() == (killed / n).read_bytes() for n in names)
    assert equal(resumed, load_tensors(killed / names[-1])[0])


def test_seed_repeats_and_training_changes_weights(bench, backbone):
    first, model = bench.fit(name="a")
    second, _ = bench.fit(name="b")
    assert equal(first, second)
    weight = "backbone.clip.visual.proj"
    assert not torch.equal(first[weight], backbone.clip.visual.proj)


def test_linear_heads_start_from_the_probe(bench):
    """The stage before is the linear probe itself, to the bit, whatever the body's method."""
    stages = [{"epochs": 0, "probe_epochs": 2}, {"head_init": "random", "epochs": 0}]
    (probed, _), (random, _) = (bench.fit(name=str(i), **s) for i, s in enumerate(stages))
    probe, _ = bench.fit("linear_probe", {"lr": 1e-2}, name="probe", epochs=2)
    own = {name: tensor for name, tensor in probed.items() if name.startswith("head.")}
    assert equal(own, probe)
    assert not torch.equal(random["head.1.weight"], probe["head.1.weight"])


def test_methods_of_a_seed_share_the_order_of_images_with_and_without_a_probe(bench, monkeypatch):
    orders: list[torch.Tensor] = []

    def noted(count, seed, epoch):
        orders.append(epoch_order(count, seed, epoch))
        return orders[-1]

    monkeypatch.setattr(engine, "epoch_order", noted)
    bench.fit(name="probed", epochs=2, probe_epochs=1)
    probe, *tuned = orders
    orders.clear()
    bench.fit(name="random", epochs=2, head_init="random")
    assert all(torch.equal(a, b) for a, b in zip(orders, tuned, strict=True))
    assert torch.equal(probe, orders[0])


def test_the_probe_is_never_selected(bench):
    """Its head could beat what follows; the result would no longer be the method's."""
    scores = iter([0.9, 0.1])
    choice = {"validate": lambda _: next(scores), "selection": "best_val_mA"}
    kept, _ = bench.fit(name="kept", epochs=2, **choice)
    assert next(scores, None) is None, "one validation per epoch of the method's own"
    probe, _ = bench.fit(name="probe", epochs=0)
    weight = "backbone.clip.visual.proj"
    assert not torch.equal(kept[weight], probe[weight])


def test_a_linear_head_without_a_group_of_its_own_is_refused(bench, monkeypatch):
    def together(self, model):
        trained = [p for p in model.parameters() if p.requires_grad]
        return [{"name": "all", "params": trained, "lr": 1e-3}]

    monkeypatch.setattr(load_method("full_finetune"), "param_groups", together)
    with pytest.raises(PedbenchError, match="in a group named 'head'"):
        bench.fit()


def test_corrupt_checkpoint_names_file_and_remedy(bench):
    with pytest.raises(Killed):
        bench.fit(name="killed", kill_at=2)
    state = next((bench.folder / "killed").glob("*.safetensors"))
    state.write_bytes(state.read_bytes()[:-40])
    with pytest.raises(
        PedbenchError, match=rf"{state.name}: not a .*its checksum is not.*delete the folder"
    ):
        bench.fit(name="killed")


def test_cached_stem_equals_recomputed(bench, monkeypatch):
    params = {"lr": 1e-2}
    cached, _ = bench.fit("linear_probe", params, name="cached")
    monkeypatch.setattr(engine, "cached_stem", lambda *_: None)
    plain, _ = bench.fit("linear_probe", params, name="plain")
    for name in cached:
        torch.testing.assert_close(cached[name], plain[name], rtol=1e-4, atol=1e-5)


def test_a_stem_that_trains_is_not_cached(bench):
    """Although the head, which computes texts with the same backbone, holds all parameters."""
    tensors, _ = bench.fit("lora", {"tower": "both", "head": "pair", "lr": 1e-2}, epochs=1)
    start_at_zero = {name: value for name, value in tensors.items() if "lora_B" in name}
    assert {name for name in start_at_zero if ".visual." in name}
    assert all(value.abs().max() > 0 for value in start_at_zero.values())


def test_accumulated_batch_equals_whole_batch(bench):
    """Up to batch statistics, so the tower is tuned with a head of fixed statistics."""
    params = {"lr": 1e-3, "head_lr": 1e-2}

    def fit(accumulate: int) -> dict[str, torch.Tensor]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.BatchNorm1d, "forward", lambda self, x: x)
            return bench.fit("full_finetune", params, name=f"x{accumulate}", accumulate=accumulate,
                             optimiser="sgd", epochs=1)[0]  # fmt: skip

    whole, parts = fit(1), fit(4)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-3, atol=1e-5)


def test_more_parts_than_images_of_a_step_are_refused(bench):
    with pytest.raises(PedbenchError, match="16 images .*at least 2 .*lower accumulate"):
        bench.fit(accumulate=9)


def test_non_finite_loss_names_step_and_group(bench):
    with pytest.raises(PedbenchError, match=r"step \d+: .*not finite.*parameter group"):
        bench.fit(params={"lr": 1e30, "head_lr": 1e30}, clip_norm=0.0, epochs=3,
                  optimiser="sgd")  # fmt: skip


def test_best_val_keeps_the_best_epoch(bench):
    scores = iter([0.3, 0.9, 0.5, 0.4])
    seen: list[dict[str, torch.Tensor]] = []

    def validate(model):
        seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
        return next(scores)

    best, _ = bench.fit(
        "linear_probe", {"lr": 1e-2}, validate=validate, selection="best_val_mA", epochs=4
    )
    assert torch.equal(best["head.1.weight"], seen[1]["head.1.weight"])
    assert not torch.equal(best["head.1.weight"], seen[3]["head.1.weight"])


def test_what_was_set_without_steps_is_kept_under_best_val(bench):
    params = {"finetune": False, "shots": 2}
    kept, model = bench.fit("tip_adapter", params, validate=lambda _: 0.5, selection="best_val_mA")
    assert kept["head.signs"].any() and torch.equal(kept["head.keys"], model.head.keys)


def test_best_val_without_validation_is_refused(bench):
    with pytest.raises(PedbenchError, match="needs a validation subset"):
        bench.fit(selection="best_val_mA")


def test_adapter_of_another_model_is_refused(bench, tmp_path):
    tensors, model = bench.fit("linear_probe", {"lr": 1e-2})
    tensors["head.1.weight"] = tensors["head.1.weight"][:, :-1]
    with pytest.raises(PedbenchError, match=r"head\.1\.weight.*belongs to another method"):
        load_trained(model, tensors, tmp_path / "adapter.safetensors")


def test_shares_of_labels_are_nested_and_drawn_from_the_seed():
    shares = [set(labelled(40, f, 1).tolist()) for f in (0.01, 0.1, 0.25, 0.5, 1.0)]
    assert [len(share) for share in shares] == [1, 4, 10, 20, 40]
    assert all(a < b for a, b in itertools.pairwise(shares))
    assert labelled(40, 1.0, 1).tolist() == list(range(40))
    assert not torch.equal(labelled(40, 0.25, 1), labelled(40, 0.25, 2))


def test_order_depends_on_seed_and_epoch():
    assert sorted(epoch_order(10, 1, 0).tolist()) == list(range(10))
    assert not torch.equal(epoch_order(10, 1, 0), epoch_order(10, 1, 1))
    assert not torch.equal(epoch_order(10, 1, 0), epoch_order(10, 2, 0))


def test_augment_flips_and_crops():
    pictures = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    flipped = augment(pictures.repeat(20, 1, 1, 1), True, 0, torch.Generator().manual_seed(0))
    originals = pictures.repeat(20, 1, 1, 1)
    kept = (flipped == originals).flatten(1).all(1)
    mirrored = (flipped == originals.flip(3)).flatten(1).all(1)
    assert (kept | mirrored).all() and kept.any() and mirrored.any()
    cropped = augment(pictures, False, 1, torch.Generator().manual_seed(3))
    assert cropped.shape == pictures.shape and not torch.equal(cropped, pictures)


def test_normalise_is_per_channel():
    white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    result = normalise(white, (0.5, 0.4, 0.3), (0.5, 0.2, 0.1))
    torch.testing.assert_close(result[0, :, 0, 0], torch.tensor([1.0, 3.0, 7.0]))
