"""Training for re-identification: batches of persons, erasing, files of a run, resuming."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from helpers import Killed, kill_after_save

from pedbench.checkpoint import Checkpoints, load_tensors
from pedbench.config import protocol_of, read_protocol, resolve
from pedbench.contracts import PedbenchError
from pedbench.data import Images, erase, identity_batches
from pedbench.engine import Fit
from pedbench.files import read_json
from pedbench.registry import load_method, load_params
from pedbench.runs import RunConfig, RunFolder, epoch_file
from pedbench.tasks import reid
from pedbench.train import Part, make_task, train, training_set

PERSONS = torch.tensor([0] * 9 + [1] * 4 + [2] * 2 + [3] * 1 + [4] * 8 + [5] * 4)


def test_a_batch_is_p_persons_with_k_images_each():
    for batch in identity_batches(PERSONS, 3, 4, seed=1, epoch=0):
        shown = Counter(PERSONS[batch].tolist())
        assert len(shown) == 3 and set(shown.values()) == {4}


def test_who_has_fewer_images_than_k_is_shown_with_repetitions():
    batches = [identity_batches(PERSONS, 3, 4, 1, epoch) for epoch in range(8)]
    seen = torch.cat(batches).flatten()
    assert {2, 3} <= set(PERSONS[seen].tolist())
    assert set(seen[PERSONS[seen] == 3].tolist()) == {15}
    assert set(seen[PERSONS[seen] == 2].tolist()) == {13, 14}


def test_no_image_is_twice_in_an_epoch_unless_its_person_has_too_few():
    positions = identity_batches(PERSONS, 2, 4, 3, 0).flatten()
    enough = positions[torch.isin(PERSONS[positions], torch.tensor([0, 1, 4, 5]))]
    assert len(enough.unique()) == len(enough)


def test_batches_follow_from_seed_and_epoch_alone():
    again = [identity_batches(PERSONS, 2, 4, 3, epoch) for epoch in (0, 0, 1)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])
    assert not torch.equal(again[0], identity_batches(PERSONS, 2, 4, 4, 0))


@pytest.mark.parametrize("persons", [2, 3, 4, 6])
def test_every_epoch_has_the_same_number_of_steps(persons):
    """Groups of K: persons 0 and 4 have two, the others one: eight."""
    counts = {len(identity_batches(PERSONS, persons, 4, 5, epoch)) for epoch in range(20)}
    assert counts == {{2: 4, 3: 2, 4: 2, 6: 1}[persons]}


def test_erasing_hides_a_box_and_repeats_with_the_seed():
    images = torch.rand(64, 3, 64, 32) + 1
    torch.manual_seed(0)
    first = erase(images, 0.5, "mean")
    torch.manual_seed(0)
    assert torch.equal(first, erase(images, 0.5, "mean"))
    hidden = (first == 0).all(1)
    share = hidden.float().mean((1, 2))
    assert 16 < int((share > 0).sum()) < 48
    assert share.max() < 0.45
    for mask in hidden[share > 0]:
        rows, columns = mask.any(1), mask.any(0)
        assert int(mask.sum()) == int(rows.sum()) * int(columns.sum())
    assert torch.equal(torch.where(hidden[:, None], 0, images), first)


def test_erased_boxes_are_noise_where_the_protocol_says_so():
    images = torch.full((32, 3, 64, 32), 5.0)
    torch.manual_seed(0)
    shown = erase(images, 1.0, "pixel")
    noise = shown[shown != 5]
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert len(noise.unique()) > 0.9 * len(noise)


@pytest.fixture
def run(prepare, tmp_path):
    """Train on the noise persons; returns the seed's folder."""

    def start(method="linear_probe", **values):
        arguments = prepare(method, split="reid", **{"epochs": 1, "batch_size": 16, **values})
        train(*arguments, seeds=[0], threads=1)
        return RunFolder(arguments[0].parent / "seed0")

    return start


def test_a_run_keeps_features_and_what_every_query_found(run, manifest):
    folder = run()
    for subset in ("val", "test"):
        rows = manifest.subset("reid", subset)
        kept = pq.read_table(folder.predictions(subset)).to_pandas()
        assert list(kept["image"]) == list(rows.rows["image"])
        features, asks = np.stack(kept["feature"].tolist()), rows.is_query("reid")
        who, camera = rows.rows["identity"].to_numpy(), rows.rows["camera"].to_numpy()
        sides = features[asks], features[~asks], who[asks], who[~asks], camera[asks], camera[~asks]
        again = reid.rank(*sides)
        found = pq.read_table(folder.rankings(subset)).to_pandas()
        assert list(found["image"]) == list(rows.rows["image"][asks])
        assert np.array_equal(found["AP"], again.AP) and np.array_equal(found["first"], again.first)
        assert np.array_equal(np.stack(found["top"].tolist()), again.top)
    files = read_json(folder.done)["files"]
    assert {"rankings.val.parquet", "rankings.test.parquet"} <= files.keys()
    versions = read_json(folder.path / "environment.json")["packages"]
    assert {"torch", "pytorch-metric-learning"} <= versions.keys()


def test_a_method_that_reads_cameras_predicts_with_them(run):
    folder = run("clip_reid", sie="cls", prompt_epochs=1)
    assert pq.read_table(folder.rankings("test"), columns=["AP"]).num_rows == 4
    features = pq.read_table(folder.predictions("test"))["feature"].to_pylist()
    assert np.isfinite(features).all()


def test_the_first_stage_of_clip_reid_is_neither_validated_nor_chosen(prepare, monkeypatch):
    """Nothing that is compared moves in it."""
    scores = iter([0.5, 0.75, 0.25])
    monkeypatch.setattr("pedbench.train.Job._validation", lambda job: lambda model: next(scores))
    values = {"selection": "best_val_mAP", "prompt_epochs": 2, "epochs": 3, "batch_size": 16}
    arguments = prepare("clip_reid", split="reid", lr=1e-3, **values)
    train(*arguments, seeds=[0], threads=1, keep_epochs=True)
    folder = RunFolder(arguments[0].parent / "seed0")
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    known = [(line["stage"], line.get("val/mAP")) for line in lines]
    assert known == [("prompts", None)] * 2 + [("image", 0.5), ("image", 0.75), ("image", 0.25)]
    chosen, best = (load_tensors(f)[0] for f in (folder.adapter, epoch_file(folder.epochs, 3)))
    assert chosen.keys() == best.keys()
    assert all(torch.equal(chosen[name], best[name]) for name in best)


def test_a_protocol_without_a_loss_is_refused(run):
    values = {"id_loss_weight": 0.0, "pair_loss": "none"}
    with pytest.raises(PedbenchError, match=r"raise id_loss_weight, or name a pair_loss"):
        run("full_finetune", **values)
    with pytest.raises(PedbenchError, match=r"raise id_loss_weight, or name a pair_loss"):
        run("clip_reid", prompt_epochs=1, i2t_weight=0.0, **values)


def test_a_changed_ranking_is_noticed(run):
    folder = run()
    digest = read_json(folder.done)["digest"]
    assert folder.is_finished(digest)
    folder.rankings("test").write_bytes(b"other")
    with pytest.raises(PedbenchError, match=r"rankings\.test\.parquet: changed or missing"):
        folder.is_finished(digest)


def test_epochs_may_be_chosen_by_the_map_of_validation_persons(run):
    folder = run("full_finetune", selection="best_val_mAP", epochs=2)
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert len(lines) == 2 and all(0 < line["val/mAP"] <= 1 for line in lines)


def test_frozen_features_need_no_training(run):
    folder = run("zero_shot")
    assert not folder.adapter.exists() and folder.rankings("test").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 15}, "a batch must be a whole number of persons"),
        ({"batch_size": 4}, "at least two"),
        ({"accumulate": 3}, "the same number in each part"),
    ],
)
def test_batches_that_cannot_be_made_are_refused(run, values, message):
    with pytest.raises(PedbenchError, match=message):
        run(**values)


class Bench:
    def __init__(self, backbone, manifest, folder):
        self.backbone, self.folder = backbone, folder
        spec = resolve("full_finetune", "default", read_protocol("embedded_reid"))
        changes = {"epochs": 2, "batch_size": 16, "checkpoint_steps": 1, "random_erasing": 0.5}
        self.protocol = dataclasses.replace(protocol_of(spec), **changes)
        names = ("noise", "reid", "full_finetune", "default", "random")
        self.train = manifest.subset("reid", "train")
        self.config = RunConfig(*names, self.protocol, {})
        self.task = make_task(self.config, self.train, cameras=3)
        images = Images.decoded(self.train, (64, 32), "stretch")
        self.data = training_set(Part(self.train, images), "reid", backbone.mean, backbone.std)

    def fit(self, name, kill_at=None, **change):
        method = load_method("full_finetune")(load_params("full_finetune", {"lr": 1e-3}))
        torch.manual_seed(0)
        model = method.build(copy.deepcopy(self.backbone), self.task)
        protocol = dataclasses.replace(self.protocol, **change)
        fit = Fit(
            method, model, self.task, self.data, protocol, 7, Accelerator(cpu=True),
            Checkpoints(self.folder / name, "run"), self.folder / f"{name}.jsonl", None, name,
        )  # fmt: skip
        if kill_at is not None:
            kill_after_save(fit, kill_at)
        return fit.run()


@pytest.fixture
def bench(backbone, manifest, tmp_path):
    return Bench(backbone, manifest, tmp_path)


@pytest.mark.parametrize("kill_at", [0, 3])
def test_killed_runs_end_with_the_same_bits(bench, kill_at):
    whole = bench.fit("whole")
    with pytest.raises(Killed):
        bench.fit("killed", kill_at=kill_at)
    resumed = bench.fit("killed")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_any_images_may_be_a_batch_if_the_protocol_says_so(bench):
    """Persons may be alone in it; nothing becomes NaN."""
    tensors = bench.fit("shuffled", sampler="shuffle", batch_size=6, epochs=1)
    assert all(torch.isfinite(value).all() for value in tensors.values())


def test_persons_are_numbered_in_the_order_of_their_identities(bench):
    identity = bench.train.rows["identity"].to_numpy()
    assert bench.task.identities == len(set(identity)) == 12
    assert bench.data.identities is not None
    numbers = bench.data.identities.numpy()
    assert set(numbers) == set(range(12))
    assert all((np.diff(numbers) > 0) == (np.diff(identity) > 0))


def test_a_protocol_of_the_other_task_is_refused(bench, manifest):
    par = protocol_of(resolve("lora", "default", read_protocol("embedded")))
    config = dataclasses.replace(bench.config, protocol=par)
    with pytest.raises(PedbenchError, match="noise/reid cannot be run by embedded, .* of task par"):
        make_task(config, bench.train)
    other = dataclasses.replace(bench.config, split="standard")
    with pytest.raises(PedbenchError, match="noise/standard cannot be run by embedded_reid"):
        make_task(other, manifest.subset("standard", "train"))
