"""What a variant costs: counts by hand on small models, and the table of a plan."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pedbench import cost
from pedbench.config import read_protocol, resolve
from pedbench.contracts import PedbenchError, Stage
from pedbench.cost import COLUMNS, Bench, EnergyMeter, count_flops, count_parameters
from pedbench.files import write_json
from pedbench.manifest import write_manifest
from pedbench.memory import Memory
from pedbench.nn.blocks import Attention
from pedbench.train import train

CPU = torch.device("cpu")
MEASURE = cost.measure
TRAINING = ["parameters_trained", "parameters_effective", "share_of_full", "adapter_bytes"]
TRAINING += ["train_images_per_s", "train_peak_mb", "seconds_fit"]


@pytest.fixture
def settings(tmp_path, manifest, backbone, monkeypatch):
    """Write what the jobs of ``method/variant`` read; returns config, manifest and weights."""
    monkeypatch.setattr("pedbench.train.load_backbone", lambda *_, **__: backbone)
    monkeypatch.setattr(cost, "SECONDS", 0.0)

    def write(method, variant="default", split="standard", **values):
        swept = {"epochs": 1, "batch_size": 12, **values}
        protocol = read_protocol("embedded_reid" if split == "reid" else "embedded", ("tiny_clip",))
        spec = resolve(method, variant, protocol, swept, "test")
        names = {"dataset": "noise", "split": split, "method": method, "variant": variant}
        path = tmp_path / split / method / variant / "config.json"
        write_json(path, {**names, "backbone": "random", **spec})
        write_json(tmp_path / "random.json", {"sha256": backbone.weights_sha256, "file": None})
        write_manifest(manifest, tmp_path / "noise.parquet")
        return path, tmp_path / "noise.parquet", tmp_path / "random.json"

    return write


def entry(config: Path, **values):
    """An experiment of plan.json."""
    method, variant = config.parts[-3:-1]
    place = {"dataset": "noise", "split": "standard", "method": method, "variant": variant}
    return {**place, "seeds": [0], "folder": str(config.parent), "in_tables": True, **values}


def plan_of(*experiments, manifest):
    return {"datasets": {"noise": {"manifest": str(manifest)}}, "experiments": list(experiments)}


def fragile(config, *rest):
    """`cost.measure` on a bad day."""
    if "lora" in config.parts:
        os._exit(9)
    if "linear_probe" in config.parts:
        raise RuntimeError("no such kernel")
    return MEASURE(config, *rest)


def broken(*_):
    raise PedbenchError("the weights changed")


def effective_of(files):
    """Sizes of the trained tensors, and how many of their scalars had a gradient."""
    bench = Bench(*files, threads=1)
    method, model = bench.build()
    sizes = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    return sizes, cost.training_speed(bench, method, model)["parameters_effective"]


def measured(files):
    return cost.measure(*files, threads=1)


def test_linear_probe_trains_its_head_only(settings, backbone, manifest):
    row = measured(settings("linear_probe"))
    head = (backbone.embed_dim + 1) * len(manifest.attributes)
    plain = sum(p.numel() for p in backbone.parameters())
    assert row["parameters_trained"] == row["parameters_effective"] == head
    assert row["parameters_allocated"] == plain + head
    assert row["share_of_full"] == pytest.approx(100 * head / plain, rel=1e-3)
    assert row["train_images_per_s"] > 0 and row["latency_ms_1"] > 0
    assert row["images_per_s_1"] == pytest.approx(1000 / row["latency_ms_1"], rel=1e-3)


def test_text_prompts_that_nothing_reads_are_not_effective(settings):
    """The released ones stand behind end-of-text, where the causal mask hides them."""
    sizes, effective = effective_of(settings("promptpar", "paper"))
    assert effective == sum(sizes.values())
    sizes, effective = effective_of(settings("promptpar", "released_code"))
    hidden = sum(size for name, size in sizes.items() if name.endswith("text_prompts"))
    assert effective == sum(sizes.values()) - hidden < sum(sizes.values())


def test_lora_is_effective_although_its_first_step_leaves_one_factor_without_gradient(settings):
    sizes, effective = effective_of(settings("lora"))
    assert effective == sum(sizes.values()) > 0


def test_a_method_that_trains_nothing_has_no_training_columns(settings):
    files = settings("zero_shot")
    row = measured(files)
    assert row["parameters_trained"] == row["parameters_effective"] == row["share_of_full"] == 0
    assert not {"train_images_per_s", "train_peak_mb"} & row.keys()
    assert row["parameters_allocated"] > 0 and row["images_per_s_32"] > 0


def test_stages_count_by_their_epochs_and_all_are_looked_at(settings, monkeypatch):
    """A method of two stages, each of which trains a part."""
    bench = Bench(*settings("lora"), threads=1)
    method, model = bench.build()
    first, *rest = (group["name"] for group in method.param_groups(model))
    stages = (Stage("first", (first,), settings={"epochs": 3}), Stage("second", tuple(rest)))
    monkeypatch.setattr(method, "stages", lambda groups: stages)
    clock = iter(range(10_000))
    monkeypatch.setattr(cost.time, "perf_counter", lambda: float(next(clock)))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    row = cost.training_speed(bench, method, model)
    assert row["parameters_effective"] == trained
    assert row["train_images_per_s"] == bench.batch  # a step a second


def test_two_stages_of_re_identification(settings, backbone):
    """Batches of three persons, or shuffled; what trains in either stage is counted."""
    files = settings("clip_reid", split="reid")
    bench = Bench(*files, threads=1)
    assert (bench.batch, bench.steps, bench.task.identities, bench.task.cameras) == (12, 4, 12, 3)
    row = measured(files)
    assert 0 < row["parameters_effective"] <= row["parameters_trained"]
    assert row["parameters_allocated"] > sum(p.numel() for p in backbone.parameters())
    assert row["gflop_per_image"] > 0 and row["images_per_s_8"] > 0
    assert row["train_images_per_s"] > 0


def test_a_few_images_of_many_persons_fill_the_batches(settings, manifest):
    """Two images of a person at a time: the first of each come before the third of any."""
    files = settings("clip_reid", split="reid", batch_size=4, images_per_identity=2)
    bench = Bench(*files, threads=1)
    rows = manifest.subset("reid", "train").rows
    few = bench.job.fitted.manifest.rows
    assert len(few) == 16 and len(set(few["identity"])) == 8
    assert set(few["image"]) <= set(rows["image"])
    assert bench.batch == 4


def test_a_variant_is_measured_once_for_each_task(settings):
    configs = [settings("zero_shot")[0], settings("clip_reid", split="reid")[0]]
    plan = {"experiments": [entry(config) for config in (*configs, *configs)]}
    assert [e["method"] for e in cost.first_experiments(plan)] == ["zero_shot", "clip_reid"]
    both = settings("zero_shot")[0], settings("zero_shot", "default", "reid")[0]
    plan = {"experiments": [entry(config) for config in (*both, *both)]}
    assert [Path(e["folder"]).parts[-3] for e in cost.first_experiments(plan)] == [
        "standard",
        "reid",
    ]


def test_a_training_set_smaller_than_a_batch_is_enough(settings):
    row = measured(settings("linear_probe", batch_size=64))
    assert row["train_images_per_s"] > 0 and row["train_peak_mb"] is not None


def test_flops_of_linear_layers_and_attention_by_hand():
    tokens, width, heads = 7, 8, 2
    attention = Attention(width, heads).eval()
    x = torch.randn(3, tokens, width)
    projections = 4 * tokens * width * width
    mixing = 2 * tokens * tokens * width  # query with key, and weights with value, all heads
    with torch.no_grad():
        assert count_flops(lambda: attention(x, x, x)) == 2 * 3 * (projections + mixing)
        mask = torch.zeros(tokens, tokens)
        assert count_flops(lambda: attention(x, x, x, attn_mask=mask)) == 2 * 3 * (
            projections + mixing
        )


def test_flops_of_the_backbone_by_hand(settings, backbone):
    """Zero-shot CLIP: patches, layers of width W with an MLP of 4W, of which the last computes
    the CLS token only, projection, cosines."""
    patches, width, layers = 32, backbone.visual_width, backbone.visual_layers
    tokens = patches + 1
    embed = patches * width * 3 * 8 * 8
    layer = 12 * tokens * width**2 + 2 * tokens**2 * width
    last = 2 * tokens * width**2 + 2 * tokens * width + 10 * width**2
    head = width * backbone.embed_dim + backbone.embed_dim * 5
    row = measured(settings("zero_shot"))
    by_hand = 2 * (embed + (layers - 1) * layer + last + head)
    assert row["gflop_per_image"] * 1e9 == pytest.approx(by_hand)


def test_count_of_a_model_with_shared_and_frozen_parameters():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    row = count_parameters(model, nn.Linear(4, 4, bias=False))
    assert row["parameters_allocated"] == 16 + 4 + 4
    assert row["parameters_trained"] == 16 + 4 and row["share_of_full"] == 125


def test_peak_memory_of_the_process():
    if not Memory.CLEAR.exists():
        pytest.skip("not Linux")
    memory = Memory(CPU)
    kept = torch.ones(25_000_000)  # 100 MB
    temporary = torch.ones(50_000_000)
    del temporary
    assert memory.peak() == pytest.approx(300, abs=15)
    memory.restart()
    assert memory.peak() == pytest.approx(100, abs=15)
    del kept
    memory.restart()
    assert memory.peak() == pytest.approx(0, abs=15)


def test_memory_is_unknown_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(Memory, "CLEAR", tmp_path / "absent")
    assert Memory(CPU).peak() is None


def zone(folder: Path, name: str, energy: int) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "energy_uj").write_text(f"{energy}\n")
    (folder / name / "max_energy_range_uj").write_text("1000000\n")


def test_energy_is_the_packages_and_survives_a_wrap(tmp_path):
    for name, energy in (("intel-rapl:0", 10), ("intel-rapl:1", 999_000), ("intel-rapl:0:0", 5)):
        zone(tmp_path, name, energy)
    meter = EnergyMeter(CPU, tmp_path)
    start = meter.read()
    assert start == [10, 999_000]
    assert meter.joules(start, [500_010, 1_000]) == pytest.approx(0.502)


def test_energy_is_never_estimated(tmp_path, monkeypatch):
    meter = EnergyMeter(CPU, tmp_path)
    assert meter.joules(meter.read(), meter.read()) is None
    zone(tmp_path, "intel-rapl:0", 10)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert EnergyMeter(CPU, tmp_path).read() == []


def test_the_table_has_a_row_per_variant_and_empty_cells(settings, tmp_path):
    zero_shot, probe, refused = (settings(m) for m in ("zero_shot", "linear_probe", "coop"))
    for files in (zero_shot, probe):
        train(*files, seeds=[0], threads=1)
    write_json(refused[0].with_name("refused.json"), {"reason": "cannot"})
    again = entry(probe[0], split="zero_shot")
    swept = entry(probe[0], variant="default-lr1", in_tables=False)
    entries = [entry(files[0]) for files in (zero_shot, probe, refused)]
    plan = plan_of(*entries, again, swept, manifest=probe[1])
    out = tmp_path / "cost.csv"
    cost.write_costs(plan, tmp_path, 1, out)
    table = pd.read_csv(out, dtype={"split": str})
    assert tuple(table.columns) == COLUMNS
    assert list(table["method"]) == ["zero_shot", "linear_probe"]
    assert list(table["split"]) == ["standard", "standard"] and set(table["threads"]) == {1}
    known = table.set_index("method")
    assert known.loc["zero_shot", ["adapter_bytes", "seconds_fit"]].isna().all()
    adapter = probe[0].parent / "seed0/adapter.safetensors"
    assert known.loc["linear_probe", "adapter_bytes"] == adapter.stat().st_size
    assert known.loc["linear_probe", TRAINING].notna().all()
    assert ".0," not in ",".join(out.read_text().splitlines()[1].split(",")[5:9])  # counts


def test_a_variant_that_fails_or_dies_does_not_lose_the_others(settings, tmp_path, monkeypatch):
    zero_shot, probe, lora = (settings(m) for m in ("zero_shot", "linear_probe", "lora"))
    train(*probe, seeds=[0], threads=1)
    monkeypatch.setattr(cost, "measure", fragile)
    out = tmp_path / "cost.csv"
    entries = [entry(files[0]) for files in (lora, probe, zero_shot)]
    cost.write_costs(plan_of(*entries, manifest=probe[1]), tmp_path, 1, out)
    table = pd.read_csv(out).set_index("method")
    assert list(table.index) == ["lora", "linear_probe", "zero_shot"]
    assert table["latency_ms_1"].notna().tolist() == [False, False, True]
    assert table.loc["linear_probe", "seconds_fit"] >= 0  # its runs are there


def test_all_failing_is_an_error_that_says_why(settings, tmp_path, monkeypatch):
    files = settings("zero_shot")

    monkeypatch.setattr(cost, "measure", broken)
    with pytest.raises(PedbenchError, match="noise/standard/zero_shot/default: the weights chang"):
        cost.write_costs(plan_of(entry(files[0]), manifest=files[1]), tmp_path, 1, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_fused_attention_would_not_be_counted():
    """Why `count_flops` asks for plain attention: when this fails, it need not any more."""
    from torch.utils.flop_counter import FlopCounterMode

    q = torch.randn(1, 2, 5, 4)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        F.scaled_dot_product_attention(q, q, q)
    assert counter.get_total_flops() == 0
