"""The training job: run folders, skipping finished seeds, labelling pictures with the result."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import NoiseDataset
from PIL import Image

from pedbench import train as job
from pedbench.checkpoint import load_tensors
from pedbench.cli import main
from pedbench.contracts import PedbenchError
from pedbench.data import labelled
from pedbench.engine import Diverged
from pedbench.files import file_sha256, read_json, write_json
from pedbench.intake import build_manifest
from pedbench.label import label_pictures
from pedbench.manifest import write_manifest
from pedbench.nn.backbone import load_backbone
from pedbench.results import sigmoid
from pedbench.runs import RunFolder, derive_seed, epoch_file, refusal


def test_a_job_leaves_a_complete_run_folder(prepare, tmp_path):
    digests = job.train(*prepare(), seeds=[0, 1], threads=1)
    for seed in (0, 1):
        folder = RunFolder(tmp_path / f"v/seed{seed}")
        assert folder.is_finished(digests[str(seed)])
        config = read_json(folder.config)
        assert config["seed"] == seed and config["digest"] == digests[str(seed)]
        assert config["params"]["lr"]["from"].startswith("config/presets/tiny_clip")
        assert set(read_json(folder.path / "environment.json")) >= {"commit", "packages", "threads"}
        lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        assert [line["epoch"] for line in lines] == [0, 1]
        table = pq.read_table(folder.predictions("test"))
        assert (
            table.num_rows == 16 and table.schema.metadata[b"digest"].decode() == config["digest"]
        )
        assert not folder.checkpoint.exists()
    assert digests["0"] != digests["1"]
    cost = read_json(tmp_path / "v/seed1/cost.json")
    assert 200 < cost["peak_memory_mb"] < 20_000  # torch and a small model


def test_finished_seeds_are_kept_and_others_added(prepare, tmp_path, monkeypatch):
    inputs = prepare()
    job.train(*inputs, seeds=[0], threads=1)
    stamp = (tmp_path / "v/seed0/adapter.safetensors").stat().st_mtime_ns
    job.train(*inputs, seeds=[0, 1], threads=1)
    assert (tmp_path / "v/seed0/adapter.safetensors").stat().st_mtime_ns == stamp
    monkeypatch.setattr(job, "Job", None)
    job.train(*inputs, seeds=[0, 1], threads=1)


def test_a_changed_setting_repeats_the_run(prepare, tmp_path):
    before = job.train(*prepare(), seeds=[0], threads=1)
    after = job.train(*prepare(lr=0.5), seeds=[0], threads=1)
    assert before != after
    assert read_json(tmp_path / "v/seed0/config.json")["params"]["lr"]["value"] == 0.5


@pytest.mark.parametrize(
    "change", [{"region": "upper"}, {"phrase": "in a cap"}, {"negative": "bare"}]
)
def test_other_words_for_an_attribute_repeat_the_run(change, prepare, manifest, tmp_path):
    """Texts are made of them: the images and labels are the same."""
    inputs = prepare()
    before = job.train(*inputs, seeds=[0], threads=1)
    first = dataclasses.replace(manifest.attributes[0], **change)

    class Worded(NoiseDataset):
        SPEC = dataclasses.replace(
            NoiseDataset.SPEC, attributes=(first, *NoiseDataset.SPEC.attributes[1:])
        )

    changed = build_manifest("noise", Worded(), manifest.root, {}, inputs[1])
    assert changed.digest != manifest.digest and changed.rows.equals(manifest.rows)
    after = job.train(*inputs, seeds=[0], threads=1)
    assert after != before
    assert read_json(tmp_path / "v/seed0/config.json")["digest"] == after["0"]


def test_a_last_step_that_ruins_the_model_leaves_no_finished_run(prepare, tmp_path):
    """One step, whose loss and gradient are finite."""
    one = {"epochs": 1, "batch_size": 48, "warmup_epochs": 0, "selection": "last_epoch"}
    with pytest.raises(
        Diverged, match=r"^linear_probe: .* logits are not finite\. Lower the learn"
    ):
        job.train(*prepare(lr=3e37, **one), seeds=[0], threads=1)
    assert (tmp_path / "v/seed0/adapter.safetensors").exists()
    assert not (tmp_path / "v/seed0/train.done.json").exists()


def test_a_tampered_result_is_noticed(prepare, tmp_path):
    inputs = prepare()
    job.train(*inputs, seeds=[0], threads=1)
    path = tmp_path / "v/seed0/predictions.test.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PedbenchError, match="predictions.test.parquet: changed or missing"):
        job.train(*inputs, seeds=[0], threads=1)


def test_a_method_that_cannot_solve_the_task_leaves_its_reason(prepare, tmp_path, monkeypatch):
    inputs = prepare()
    with monkeypatch.context() as patch:
        method = job.load_method("linear_probe")
        patch.setattr(method, "supports", lambda self, task, backbone: "needs tokens")
        assert job.train(*inputs, seeds=[0], threads=1) == {}
    assert refusal(tmp_path / "v") == "needs tokens"
    assert not (tmp_path / "v/seed0").exists()
    job.train(*inputs, seeds=[0], threads=1)
    assert refusal(tmp_path / "v") is None and (tmp_path / "v/seed0/train.done.json").exists()


def test_zero_shot_needs_no_adapter(prepare, tmp_path):
    job.train(*prepare("zero_shot"), seeds=[0], threads=1)
    assert not (tmp_path / "v/seed0/adapter.safetensors").exists()
    assert (tmp_path / "v/seed0/predictions.val.parquet").exists()


def test_what_the_held_out_pictures_show_does_not_reach_training(prepare, manifest, tmp_path):
    """Other pictures and labels in val and test, same trained tensors."""
    config, shown, weights = prepare("full_finetune")
    job.train(config, shown, weights, [0], 1, keep_epochs=True)
    trained = [tmp_path / "v/seed0" / n for n in ("adapter.safetensors", "epochs/0.safetensors")]
    before = [file_sha256(path) for path in trained]
    shutil.copytree(manifest.root, tmp_path / "other")
    rows = manifest.rows.copy()
    for index in np.flatnonzero(rows["split:standard"] != "train"):
        Image.new("RGB", (32, 64), "red").save(tmp_path / "other" / rows["image"][index])
        rows.loc[index, "label:hat"] = 1 - rows["label:hat"][index]
    changed = dataclasses.replace(manifest, root=tmp_path / "other", rows=rows)
    write_manifest(changed, shown)
    shutil.rmtree(tmp_path / "v/seed0")
    job.train(config, shown, weights, [0], 1, keep_epochs=True)
    assert [file_sha256(path) for path in trained] == before


def test_unknown_labels_train_as_the_protocol_says(prepare, manifest, tmp_path, monkeypatch):
    """As negatives they give the very run of a manifest that has negatives in their place: loss,
    ratios and what is set before training; in validation only ``negative`` makes them so."""
    unknown = np.flatnonzero(manifest.labels[:, 0] == 0)[::3]
    validated = []
    monkeypatch.setattr(job.par, "score", lambda p, y, t: validated.append(y) or {"mA": 0.5})

    def run(code: int, setting: str):
        chosen = {"unknown_labels": setting, "selection": "best_val_mA"}
        config, shown, weights = prepare(**chosen, epochs=1)
        rows = manifest.rows.copy()
        rows.loc[unknown, "label:hat"] = np.int8(code)
        write_manifest(dataclasses.replace(manifest, rows=rows), shown)
        shutil.rmtree(tmp_path / "v/seed0", ignore_errors=True)
        job.train(config, shown, weights, [0], 1)
        ratio = read_json(tmp_path / "v/seed0/config.json")["task"]["positive_ratio"][0]
        return load_tensors(tmp_path / "v/seed0/adapter.safetensors")[0], ratio

    plain, plain_ratio = run(0, "ignored")
    for setting in ("ignored", "negative_in_training", "negative"):
        tensors, ratio = run(-1, setting)
        same = all(torch.equal(tensors[name], plain[name]) for name in plain)
        assert same == (ratio == plain_ratio) == (setting != "ignored")
        assert (validated[-1] == -1).any() == (setting != "negative")


def test_a_share_of_the_labels_is_all_that_training_sees(prepare, manifest, tmp_path):
    """Other labels and pictures of the images that are left out change no bit; the kept ones
    do, and so do those of all images once the share is 1."""
    config, shown, weights = prepare("full_finetune", label_fraction=0.5, batch_size=8)
    train = np.flatnonzero(manifest.rows["split:standard"] == "train")
    kept = train[labelled(len(train), 0.5, derive_seed(0, "labels")).numpy()]

    def adapter(changed) -> str:
        shutil.rmtree(tmp_path / "v/seed0", ignore_errors=True)
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        shutil.copytree(manifest.root, tmp_path / "other")
        rows = manifest.rows.copy()
        for index in changed:
            Image.new("RGB", (32, 64), "red").save(tmp_path / "other" / rows["image"][index])
            rows.loc[index, "label:hat"] = 1 - rows["label:hat"][index]
        write_manifest(dataclasses.replace(manifest, root=tmp_path / "other", rows=rows), shown)
        job.train(config, shown, weights, [0], 1)
        return file_sha256(tmp_path / "v/seed0/adapter.safetensors")

    left_out = np.setdiff1d(train, kept)
    assert len(kept) == len(left_out) == 24
    before = adapter([])
    task = read_json(tmp_path / "v/seed0/config.json")["task"]
    hats = manifest.rows["label:hat"][kept]
    assert task["positive_ratio"][0] == pytest.approx((hats == 1).mean())
    lines = (tmp_path / "v/seed0/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 2 * 24 // 8
    assert adapter(left_out) == before
    assert adapter(kept[:1]) != before


def test_kept_epochs_change_nothing_else_and_end_at_the_adapter(prepare, tmp_path):
    inputs = prepare("full_finetune", epochs=3)
    plain = job.train(*inputs, seeds=[0], threads=1)
    folder = RunFolder(tmp_path / "v/seed0")
    names = ("adapter.safetensors", "predictions.test.parquet", "metrics.jsonl", "config.json")
    before = {name: file_sha256(folder.path / name) for name in names}
    assert not folder.epochs.exists() and not folder.is_finished(plain["0"], epochs=True)
    # asked for later: the run is trained again, to the same bits
    assert job.train(*inputs, seeds=[0], threads=1, keep_epochs=True) == plain
    assert {name: file_sha256(folder.path / name) for name in names} == before
    assert sorted(path.name for path in folder.epochs.iterdir()) == [
        f"{n}.safetensors" for n in range(3)
    ]
    assert folder.is_finished(plain["0"], epochs=True) and folder.is_finished(plain["0"])
    last, adapter = (load_tensors(p)[0] for p in (epoch_file(folder.epochs, 2), folder.adapter))
    assert last.keys() == adapter.keys()
    assert all(torch.equal(last[name], adapter[name]) for name in last)
    first = load_tensors(epoch_file(folder.epochs, 0))[0]
    assert not torch.equal(first["head.1.weight"], last["head.1.weight"])
    # deleted to save space: finished for all but the audit
    shutil.rmtree(folder.epochs)
    assert folder.is_finished(plain["0"]) and not folder.is_finished(plain["0"], epochs=True)


def test_an_adapter_on_other_weights_is_refused(prepare, tmp_path, manifest):
    config, shown, weights = prepare()
    job.train(config, shown, weights, [0], 1)
    path = tmp_path / "v/seed0/environment.json"
    write_json(path, {**read_json(path), "weights_sha256": "0" * 64})
    with pytest.raises(PedbenchError, match="trained on other weights .* name their file with --w"):
        label_pictures(tmp_path / "v/seed0", [manifest.root])


@pytest.mark.system
def test_two_processes_of_torchrun_share_a_run(prepare, tmp_path):
    """Both take part, one writes, and the run is complete."""
    spec, manifest_path, _ = prepare("linear_probe", epochs=4)
    weights = {"sha256": load_backbone("tiny_clip").weights_sha256, "file": None}
    write_json(tmp_path / "weights.json", weights)
    write_json(spec, {**read_json(spec), "backbone": "tiny_clip"})
    words = ["train", "--settings", spec, "--manifest", manifest_path, "--seeds", "0"]
    words += ["--weights", tmp_path / "weights.json", "--out", tmp_path / "done.json"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, "-m", "pedbench.cli", *map(str, words)],
        capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = RunFolder(tmp_path / "v/seed0")
    assert folder.is_finished(read_json(tmp_path / "done.json")["0"])
    assert len(folder.metrics.read_text().splitlines()) == 4


def test_pictures_are_labelled_as_in_the_benchmark(prepare, tmp_path, manifest):
    job.train(*prepare("full_finetune"), seeds=[0], threads=1)
    test = manifest.subset("standard", "test")
    pictures = [manifest.root / image for image in test.rows["image"]]
    table = label_pictures(tmp_path / "v/seed0", pictures)
    logits = pq.read_table(tmp_path / "v/seed0/predictions.test.parquet").to_pandas()
    expected = sigmoid(logits.drop(columns="image").to_numpy(float))
    assert list(table.columns) == ["image", *(a.name for a in manifest.attributes)]
    np.testing.assert_allclose(table.drop(columns="image").to_numpy(), expected, atol=1e-5)


def test_wrong_pictures_are_named(prepare, tmp_path, capsys):
    job.train(*prepare(), seeds=[0], threads=1)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    assert main(["predict", "--run", str(tmp_path / "v/seed0"), str(broken)]) == 1
    assert "broken.png: image is truncated or not an image" in capsys.readouterr().err
    assert main(["predict", "--run", str(tmp_path / "v/seed0"), str(tmp_path / "v")]) == 1
    assert "no pictures" in capsys.readouterr().err


def test_seeds_are_named_streams():
    assert derive_seed(0, "init", "a") != derive_seed(0, "init", "b")
    assert derive_seed(0, "data") != derive_seed(1, "data")
    assert derive_seed(0, "data") == derive_seed(0, "data")
