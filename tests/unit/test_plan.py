from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from pedbench import registry
from pedbench.config import ROOT, plain, read_yaml
from pedbench.contracts import BaseDataset, DatasetSpec, PedbenchError
from pedbench.estimate import (
    COUNTED,
    FEATURES,
    NAME,
    TIMINGS,
    describe,
    gigabytes,
    gpu_hours,
    minutes,
    work_of,
)
from pedbench.files import write_json
from pedbench.plan import (
    check_results_folder,
    config_source,
    lost,
    make_plan,
    runs_of,
)
from pedbench.tune import tuned

CONFIG = {
    "protocol": "embedded",
    "presets": ["tiny_clip"],
    "backbone": "tiny_clip",
    "datasets": ["synthetic_a/standard", "synthetic_a/zero_shot"],
    "methods": ["zero_shot", "linear_probe", "promptpar/global_deep", "promptpar/global_shallow"],
    "seeds": [0, 1, 2],
    "seeds_per_job": 2,
}
SWEEP = {
    "dataset": "synthetic_a/standard",
    "method": "promptpar/global_deep",
    "parameter": "prompt_length",
    "values": [1, 25],
}


def fails(message: str):
    return pytest.raises(PedbenchError, match=f"^{re.escape(message)}")


def test_expands_in_the_order_of_the_config():
    plan = make_plan(CONFIG)
    assert [e.key for e in plan.experiments][:5] == [
        "synthetic_a/standard/zero_shot/default",
        "synthetic_a/standard/linear_probe/default",
        "synthetic_a/standard/promptpar/global_deep",
        "synthetic_a/standard/promptpar/global_shallow",
        "synthetic_a/zero_shot/zero_shot/default",
    ]
    assert plan.notes == ()
    assert plan.comparison.baseline == "linear_probe/default"


def test_what_does_not_train_runs_once_and_seeds_share_jobs():
    plan = make_plan(CONFIG)
    markers = [b.marker for b in plan.batches if b.experiment.split == "standard"]
    run = "results/runs/synthetic_a/standard"
    assert markers[:3] == [
        f"{run}/zero_shot/default/seeds0.done.json",
        f"{run}/linear_probe/default/seeds0-1.done.json",
        f"{run}/linear_probe/default/seeds2.done.json",
    ]


def test_spec_carries_origins():
    plan = make_plan(CONFIG)
    spec = plan.experiment("synthetic_a", "standard", "promptpar", "global_shallow").spec
    assert spec["params"]["prompt_depth"] == {
        "value": 1,
        "from": "config/variants.yaml: promptpar.global_shallow",
    }
    assert spec["backbone"] == "tiny_clip" and spec["protocol"]["name"] == "embedded"
    json.dumps(spec)


def test_sweep_reuses_runs_with_the_same_values():
    sweeps = {"length": SWEEP, "again": {**SWEEP, "values": [1, 5]}}
    plan = make_plan({**CONFIG, "sweeps": sweeps})
    (first,), (again,) = (sweep.lines for sweep in plan.sweeps)
    assert [(p.value, p.variant) for p in first.points] == [
        (1, "global_deep-prompt_length1"),
        (25, "global_deep"),
    ]
    assert [p.variant for p in again.points] == [
        "global_deep-prompt_length1",
        "global_deep-prompt_length5",
    ]
    extra = [e for e in plan.experiments if not e.in_tables]
    assert [e.variant for e in extra] == [
        "global_deep-prompt_length1",
        "global_deep-prompt_length5",
    ]
    assert plain(extra[0].spec["params"])["prompt_length"] == 1
    assert extra[0].spec["params"]["prompt_length"]["from"] == "sweep length"


def test_numbers_that_yaml_reads_as_text_are_numbers():
    rates = {**SWEEP, "parameter": "lr", "values": ["1e-3", "2E+1"]}
    alpha = {"baseline": "linear_probe", "alpha": "1e-2"}
    plan = make_plan({**CONFIG, "sweeps": {"rate": rates}, "comparison": alpha})
    assert [point.value for point in plan.sweeps[0].lines[0].points] == [0.001, 20.0]
    assert plan.sweeps[0].lines[0].points[-1].variant == "global_deep-lr20.0"
    assert plan.comparison.alpha == 0.01


def test_a_sweep_compares_methods_and_may_name_a_setting_of_the_protocol():
    methods = ["linear_probe", "promptpar/global_deep", "lora"]
    sweep = {"dataset": "synthetic_a/standard", "parameter": "batch_size", "values": [32, 64]}
    plan = make_plan({**CONFIG, "sweeps": {"batch": {**sweep, "methods": methods}}})
    assert plan.notes == ("sweep batch: lora left out, it is not in the plan",)
    found = plan.as_json()["sweeps"]
    assert [(line["method"], line["base"]) for line in found[0]["lines"]] == [
        ("linear_probe", "default"),
        ("promptpar", "global_deep"),
    ]
    assert found[0]["parameter"] == "batch_size"
    assert [list(line["points"]) for line in found[0]["lines"]] == [
        [{"value": 32, "variant": f"{base}-batch_size32"}, {"value": 64, "variant": base}]
        for base in ("default", "global_deep")
    ]


AUDIT = {"dataset": "synthetic_a/standard", "methods": ["linear_probe", "promptpar/global_deep"]}


def test_a_checked_config_passes_again():
    """The rules `plan` and `report` get the config with its defaults."""
    plan = make_plan(CONFIG)
    assert make_plan(plan.config).digest == plan.digest


def test_released_selection_keeps_the_epochs_of_what_it_names():
    plan = make_plan({**CONFIG, "released_selection": AUDIT})
    kept = [e["method"] for e in plan.as_json()["experiments"] if e["keep_epochs"]]
    assert kept == ["linear_probe", "promptpar"]
    without = make_plan(CONFIG)
    assert not any(e.keep_epochs for e in without.experiments)
    assert [e.spec for e in plan.experiments] == [e.spec for e in without.experiments]
    narrow = make_plan({**CONFIG, "methods": ["linear_probe"], "released_selection": AUDIT})
    assert [e.method for e in narrow.experiments if e.keep_epochs] == ["linear_probe"]
    assert narrow.notes == (
        "released_selection: promptpar/global_deep left out, it is not in the plan",
    )


def test_sweep_and_tests_without_their_method_are_left_out_with_a_note():
    narrow = {**CONFIG, "methods": ["zero_shot"], "sweeps": {"length": SWEEP}}
    plan = make_plan(narrow)
    assert plan.sweeps == () and plan.comparison.baseline is None
    assert plan.notes == (
        "sweep length: promptpar/global_deep left out, it is not in the plan",
        "no significance tests: their baseline linear_probe is not in the plan",
    )
    assert all(note in describe(plan, 2, []) for note in plan.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"methods": ["linear_prob"]},
            "c.yaml: methods: unknown method 'linear_prob'; did you mean 'linear_probe'? (the ",
        ),
        (
            {"methods": ["promptpar/global_dep"]},
            "config/variants.yaml: method 'promptpar' has no variant 'global_dep'; did you mean "
            "'global_deep'?",
        ),
        (
            {"methods": ["zero_shot", "zero_shot/default"]},
            "c.yaml: methods: 'zero_shot/default' has the same values as 'zero_shot/default'",
        ),
        (
            {"methods": ["promptpar", "promptpar/region_deep"]},
            "c.yaml: methods: 'promptpar/region_deep' has the same values as 'promptpar/default'",
        ),
        (
            {"backbone": "ViT-B16"},
            "c.yaml: backbone: unknown backbone 'ViT-B16'; did you mean 'ViT-B-16'? (known: tiny",
        ),
        (
            {"checkpoints": {"ViT-L14": "/w"}},
            "c.yaml: checkpoints: unknown backbone 'ViT-L14'; did you mean 'ViT-L-14'?",
        ),
        (
            {"checkpoints": {"tiny_clip": "/nowhere/a file"}},
            "c.yaml: checkpoints.tiny_clip: there is no file /nowhere/a file; correct the path",
        ),
        (
            {"roots": {"synthetic_aa": "/data"}},
            "c.yaml: roots: unknown dataset 'synthetic_aa'; did you mean 'synthetic_a'?",
        ),
        (
            {"dataset_options": {"synthetik_b": {"seed": 1}}},
            "c.yaml: dataset_options: unknown dataset 'synthetik_b'; did you mean 'synthetic_b'?",
        ),
        (
            {"datasets": ["synthetic_c/standard"]},
            "c.yaml: datasets: unknown dataset 'synthetic_c'; did you mean 'synthetic_",
        ),
        (
            {"datasets": ["synthetic_a/zeroshot"]},
            "c.yaml: datasets: synthetic_a has no split 'zeroshot'; did you mean 'zero_shot'? (it",
        ),
        (
            {"dataset_options": {"synthetic_a": {"identites": 9}}},
            "c.yaml: synthetic_a: dataset_options: unknown key 'identites'; did you mean 'ide",
        ),
        (
            {"sweeps": {"length": {**SWEEP, "parameter": "promt_length"}}},
            "c.yaml: sweeps.length: unknown key 'promt_length'; did you mean 'prompt_length'?",
        ),
        (
            {"sweeps": {"length": {**SWEEP, "methods": ["linear_probe"]}}},
            "c.yaml: sweeps.length: name either one 'method' or a list of 'methods'",
        ),
        (
            {
                "sweeps": {
                    "rate": {
                        "dataset": "synthetic_a/standard",
                        "methods": ["linear_probe", "linear_probe/default"],
                        "parameter": "lr",
                        "values": [1],
                    }
                }
            },
            "c.yaml: sweeps.rate: methods: linear_probe and linear_probe/default are the same",
        ),
        (
            {"sweeps": {"length": {**SWEEP, "values": ["long"]}}},
            "c.yaml: sweeps.length: prompt_length: 'long' is not int",
        ),
        (
            {"comparison": {"baseline": "linearprobe"}},
            "c.yaml: comparison.baseline: unknown method 'linearprobe'; did you mean 'linear_pr",
        ),
        (
            {"sweeps": {"length": {**SWEEP, "values": ["a b"]}}},
            "c.yaml: sweeps.length.values.0: 'a b' does not match",
        ),
        (
            {"sweeps": {"length": {**SWEEP, "values": [".."]}}},
            "c.yaml: sweeps.length.values.0: '..' does not match",
        ),
        (
            {"released_selection": {**AUDIT, "methods": ["zero_shot"]}},
            "c.yaml: released_selection: zero_shot is not trained: it has no epochs; delete it",
        ),
        (
            {"sweeps": {"x": {**SWEEP, "parameter": "selection", "values": ["released"]}}},
            "c.yaml: sweeps.x: selection: 'released' would choose epochs by their test scores",
        ),
        (
            {"sweeps": {"x": {**SWEEP, "parameter": "label_fraction", "values": [1.5]}}},
            "c.yaml: sweeps.x: label_fraction: 1.5 is no share; it must be above 0 and at most 1",
        ),
        (
            {"methods": [{"methods": ["lora"], "dataset": ["synthetic_a/standard"]}]},
            "c.yaml: methods.0: unknown key 'dataset'; did you mean 'datasets'?",
        ),
        (
            {"methods": ["zero_shot", {"methods": ["zero_shot"], "datasets": CONFIG["datasets"]}]},
            "c.yaml: methods: 'zero_shot/default' has the same values as 'zero_shot/default'",
        ),
        ({"absent_data": "skipp"}, "c.yaml: absent_data: 'skipp' is not one of ['refuse', 'skip']"),
        ({"protocol": "papr"}, "c.yaml: protocol: unknown protocol 'papr'; did you mean 'paper'?"),
        (
            {"presets": ["tiny"]},
            "c.yaml: presets: unknown preset 'tiny'; did you mean 'tiny_clip'?",
        ),
        (
            {"presets": ["config/presets/tiny_clip.yaml"]},
            "c.yaml: presets: name it without folder and .yaml: tiny_clip",
        ),
    ],
)
def test_mistakes_are_named(change, message):
    with fails(message):
        make_plan({**CONFIG, **change}, "c.yaml")


class Obtained(BaseDataset):
    SPEC = DatasetSpec("PETA", "research only", (), ("standard",))


def test_real_data_needs_a_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "datasets", lambda: ("peta",))
    monkeypatch.setattr(registry, "load_dataset", lambda name: Obtained())
    config = {**CONFIG, "datasets": ["peta/standard"]}
    with fails("c.yaml: roots: peta (PETA) must be obtained first (research only); then name"):
        make_plan(config, "c.yaml")
    monkeypatch.setenv("PEDBENCH_ROOT_PETA", "")
    with fails("c.yaml: roots: peta (PETA) must be obtained first"):
        make_plan({**config, "roots": {"peta": ""}}, "c.yaml")
    for name in ("data", "disk"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("PEDBENCH_ROOT_PETA", str(tmp_path / "data"))
    assert make_plan(config).sources["peta"].root == f"{tmp_path}/data"
    monkeypatch.setenv("HOME", str(tmp_path))
    named = {**config, "roots": {"peta": "~/disk"}}
    assert make_plan(named).sources["peta"].root == f"{tmp_path}/disk"
    wrong = {**config, "roots": {"peta": "/nowhere"}, "results": str(tmp_path)}
    with fails("c.yaml: roots: peta (PETA): no data (/nowhere is no folder); correct the path th"):
        make_plan(wrong, "c.yaml")
    write_json(tmp_path / "manifests/peta.parquet", {})  # read once: the folder may be removed
    assert make_plan(wrong).sources["peta"].root == "/nowhere"


def test_a_division_of_another_dataset_is_read_from_its_folder(monkeypatch, tmp_path):
    for name in ("PETA", "PETA_ZS", "RAPV2", "RAP_ZS"):
        monkeypatch.delenv(f"PEDBENCH_ROOT_{name}", raising=False)
    base, own = tmp_path / "base", tmp_path / "own"
    base.mkdir()
    own.mkdir()
    monkeypatch.setenv("PEDBENCH_ROOT_PETA", str(base))
    config = {**CONFIG, "datasets": ["peta_zs/zero_shot", "rap_zs/zero_shot"]}
    config["roots"] = {"rapv2": str(base)}
    assert {s.root for s in make_plan(config).sources.values()} == {str(base)}
    config["roots"]["peta_zs"] = str(own)
    assert [s.root for s in make_plan(config).sources.values()] == [str(own), str(base)]


def test_runs_that_are_scored_differently_are_refused_before_they_train():
    """`collect` would refuse them afterwards; other settings of the training may differ."""
    sweep = {"dataset": "synthetic_a/standard", "method": "linear_probe"}
    key = "synthetic_a/standard/linear_probe/default"
    for parameter, good, bad in (
        ("unknown_labels", ["negative_in_training", "ignored"], "negative"),
        ("threshold", [0.5], 0.4),
    ):
        one = {**sweep, "parameter": parameter, "values": good}
        assert make_plan({**CONFIG, "sweeps": {"x": one}}).sweeps
        with fails(f"c.yaml: synthetic_a/standard/zero_shot/default and {key}-{parameter}{bad}"):
            make_plan({**CONFIG, "sweeps": {"x": {**one, "values": [*good, bad]}}}, "c.yaml")


def test_every_dataset_without_a_folder_is_named_at_once(monkeypatch):
    datasets = ["peta/trainval", "synthetic_a/standard", "rapv1/trainval"]
    for name in ("PETA", "RAPV1"):
        monkeypatch.delenv(f"PEDBENCH_ROOT_{name}", raising=False)
    with pytest.raises(PedbenchError) as failure:
        make_plan({**CONFIG, "datasets": datasets})
    assert [line.split(" must")[0] for line in str(failure.value).splitlines()] == [
        "config: roots: peta (PETA)",
        "config: roots: rapv1 (RAPv1)",
    ]


def test_absent_data_are_left_out_and_named_once(tmp_path, monkeypatch):
    """With what hangs on them; the rest runs as it would alone."""
    for name in ("PETA", "RAPV1", "WIDER"):
        monkeypatch.delenv(f"PEDBENCH_ROOT_{name}", raising=False)
    datasets = ["peta/trainval", "rapv1/trainval", "wider/trainval", "synthetic_a/standard"]
    sweep = {**SWEEP, "dataset": "peta/trainval"}
    audit = {**AUDIT, "dataset": "rapv1/trainval"}
    config = {**CONFIG, "datasets": datasets, "absent_data": "skip", "sweeps": {"length": sweep}}
    config |= {"released_selection": audit, "roots": {"rapv1": "/nowhere", "wider": str(tmp_path)}}
    plan = make_plan(config, "c.yaml")
    assert plan.notes == (
        "no data, so left out: peta, rapv1 (/nowhere is no folder); name their folders, roots: "
        "{peta: /path/to/it}, or set PEDBENCH_ROOT_PETA",
    )
    assert list(plan.sources) == ["wider", "synthetic_a"] and plan.sweeps == ()
    alone = make_plan({**CONFIG, "datasets": ["synthetic_a/standard"]})
    assert [e.spec for e in plan.experiments][-len(alone.experiments) :] == [
        e.spec for e in alone.experiments
    ]
    with fails("c.yaml: nothing is left to run: no data, so left out: peta, rapv1 (/nowhere is"):
        make_plan({**config, "datasets": datasets[:2]}, "c.yaml")
    manifest = tmp_path / "manifests/rapv1.parquet"  # of an earlier run: the rest needs no folder
    write_json(manifest, {})
    again = make_plan({**config, "results": str(tmp_path)})
    assert list(again.sources) == ["rapv1", "wider", "synthetic_a"]


def test_some_methods_run_on_some_datasets_only():
    """In the order of `methods`; sweeps and the audit know what runs where."""
    some = {"datasets": ["synthetic_a/zero_shot"], "methods": ["promptpar/mm2", "lora"]}
    config = {**CONFIG, "methods": ["linear_probe", some, "promptpar/mlp"]}
    found = [e.key.removeprefix("synthetic_a/") for e in make_plan(config).experiments]
    assert found == [
        "standard/linear_probe/default",
        "standard/promptpar/mlp",
        "zero_shot/linear_probe/default",
        "zero_shot/promptpar/mm2",
        "zero_shot/lora/default",
        "zero_shot/promptpar/mlp",
    ]
    audit = {"dataset": "synthetic_a/standard", "methods": ["promptpar/mlp", "lora"]}
    sweeps = {"length": {**SWEEP, "method": "promptpar/mm2"}}
    plan = make_plan({**config, "sweeps": sweeps, "released_selection": audit})
    assert plan.notes == (
        "sweep length: promptpar/mm2 left out, it is not in the plan",
        "released_selection: lora left out, it is not in the plan",
    )
    narrow = make_plan({**config, "datasets": ["synthetic_a/standard"]})
    assert narrow.notes == (
        "methods: promptpar/mm2, lora left out on synthetic_a/zero_shot, which is not in the plan",
    )


BOTH = {
    "reid_protocol": "embedded_reid",
    "datasets": ["synthetic_a/standard", "synthetic_reid/reid"],
}


def test_a_method_that_no_place_asks_for_is_noted_and_a_plan_of_none_refused():
    here = {**CONFIG, **BOTH, "datasets": ["synthetic_reid/reid"], "presets": []}
    plan = make_plan({**here, "methods": ["coop", "zero_shot"]})
    assert plan.notes[0] == "methods: coop left out: no place of the plan is of its task"
    assert [e.method for e in plan.experiments] == ["zero_shot"]
    assert make_plan({**CONFIG, **BOTH, "methods": ["coop", "linear_probe"]}).notes == ()
    for methods, place, task in (
        (["coop"], "synthetic_reid/reid", "re-identification"),
        (["clip_reid"], "synthetic_a/standard", "attribute recognition"),
    ):
        with fails(f"c.yaml: methods: none of {methods[0]} is defined where"):
            make_plan({**here, "datasets": [place], "methods": methods}, "c.yaml")
        with pytest.raises(PedbenchError, match=f"{place} is for {task}; add"):
            make_plan({**here, "datasets": [place], "methods": methods}, "c.yaml")


def test_what_only_the_other_task_reads_is_no_variant_and_no_sweep():
    """Runs that differ in a number that nobody reads would be copies."""
    config = {**CONFIG, **BOTH, "methods": ["linear_probe", "resnet50/reid_triplet"]}
    plan = make_plan(config)
    found = [e.key for e in plan.experiments if e.method == "resnet50"]
    assert found == ["synthetic_reid/reid/resnet50/reid_triplet"]
    named = {"datasets": ["synthetic_a/standard"], "methods": ["resnet50/reid_triplet"]}
    with fails("c.yaml: methods: resnet50/reid_triplet is not defined for attribute recognition"):
        make_plan({**config, "methods": ["linear_probe", named]}, "c.yaml")
    for place, key, values, task in (
        ("synthetic_a/standard", "margin", [0.1, 0.2], "par"),
        ("synthetic_reid/reid", "label_fraction", [0.5, 1.0], "reid"),
    ):
        sweep = {"dataset": place, "method": "linear_probe", "parameter": key, "values": values}
        with fails(f"c.yaml: sweeps.x: '{key}' means nothing in a protocol of task {task}"):
            make_plan({**config, "sweeps": {"x": sweep}}, "c.yaml")


def test_generated_data_lie_below_results():
    source = make_plan({**CONFIG, "results": "out"}).sources["synthetic_a"]
    assert (source.root, source.manifest) == (
        "out/data/synthetic_a",
        "out/manifests/synthetic_a.parquet",
    )


def test_options_of_datasets_and_backbones_outside_the_plan_are_left_alone():
    elsewhere = {"checkpoints": {"ViT-L-14": "/nowhere"}, "roots": {"synthetic_b": "/nowhere"}}
    assert make_plan({**CONFIG, **elsewhere}).weights_file("tiny_clip") is None


def test_weights_follow_the_config(tmp_path):
    shipped = make_plan(CONFIG)
    assert shipped.weights_file("tiny_clip") is None
    assert shipped.weights_inputs("tiny_clip") == (
        "resources/tiny_clip/tiny_clip.safetensors",
        "resources/tiny_clip/tiny_clip.sha256",
    )
    rebuilt = make_plan({**CONFIG, "pretrain": True})
    assert rebuilt.weights_inputs("tiny_clip") == ("results/pretrain/tiny_clip.safetensors",)
    large = {**CONFIG, "backbone": "ViT-B-16"}
    assert make_plan(large).weights_inputs("ViT-B-16") == ()
    file = tmp_path / "b16.pt"
    file.touch()
    local = make_plan({**large, "checkpoints": {"ViT-B-16": str(file)}})
    assert local.weights_file("ViT-B-16") == str(file)
    assert local.weights_inputs("ViT-B-16") == (str(file),)


def test_a_variant_may_run_on_another_backbone(tmp_path):
    """Each experiment asks for the weights of its own; both towers stand in one table."""
    two = {**CONFIG, "methods": ["promptpar", "promptpar/vit_b16"], "backbone": "ViT-L-14"}
    plan = make_plan({**two, "pretrain": True, "presets": []})
    found = [(e.variant, e.spec["backbone"]) for e in plan.experiments[:2]]
    assert found == [("default", "ViT-L-14"), ("vit_b16", "ViT-B-16")]
    assert plan.backbones == ("ViT-L-14", "ViT-B-16") and plan.rebuilt is None
    assert {f"results/weights/{name}.json" for name in plan.backbones} <= plan.outputs
    only = make_plan({**two, "methods": ["promptpar/vit_b16"], "presets": []})
    assert only.backbones == ("ViT-B-16",)
    with fails("c.yaml: checkpoints.ViT-B-16: there is no file /nowhere"):
        make_plan({**two, "checkpoints": {"ViT-B-16": "/nowhere"}}, "c.yaml")
    with fails("c.yaml: methods: 'promptpar/vit_b16' has the same values as 'promptpar/default'"):
        make_plan({**two, "backbone": "ViT-B-16"}, "c.yaml")
    swept = {**SWEEP, "parameter": "backbone", "values": ["tiny_clip", "ViT-B-16"]}
    plan = make_plan({**CONFIG, "sweeps": {"tower": swept}})
    assert [p.variant for p in plan.sweeps[0].lines[0].points] == [
        "global_deep",
        "global_deep-backboneViT-B-16",
    ]
    made_for = "preset tiny_clip was made for tiny_clip; the plan runs ViT-B-16: choose others"
    notes = make_plan({**CONFIG, "methods": ["promptpar/vit_b16", "promptpar"]}).notes
    assert any(note.startswith(made_for) for note in notes)


def test_document_lists_every_run_and_its_digest_follows_the_plan():
    plan = make_plan(CONFIG)
    document = json.loads(json.dumps(plan.as_json()))
    folders = [str(folder) for _, _, folder in runs_of(document)]
    assert len(folders) == len(set(folders)) == 2 * (1 + 3 * 3)
    assert folders[1] == "results/runs/synthetic_a/standard/linear_probe/default/seed0"
    assert plan.digest == make_plan(CONFIG).digest
    assert plan.digest != make_plan({**CONFIG, "seeds": [0, 1]}).digest


def test_presets_made_for_something_else_are_noted():
    presets = {"presets": ["tiny_clip", "reference"]}
    told = "preset {} was made for {}; the plan runs {}: choose others with presets"
    assert make_plan({**CONFIG, **presets}).notes == (
        told.format("reference", "paper", "embedded"),
    )
    assert make_plan({**CONFIG, **presets, "backbone": "ViT-B-16", "protocol": "paper"}).notes == (
        told.format("tiny_clip", "tiny_clip", "ViT-B-16"),
        told.format("tiny_clip", "embedded", "paper"),
    )


def test_estimate_counts_jobs_and_cores():
    plan = make_plan(CONFIG)
    every = [batch.marker for batch in plan.batches]

    def estimate(cores, markers):
        return minutes(plan, cores, work_of(plan, markers))

    assert estimate(1, every) > estimate(2, every) > estimate(2, every[:2])
    assert estimate(2, every[:1]) == estimate(1, every[:1])
    assert estimate(4, []) > 0  # tables and the like
    assert "2 of 14 training jobs to run, about " in describe(plan, 2, every[:2])
    assert gpu_hours(plan, work_of(plan, every)) == 0  # rates of the tiny CLIP are measured


def test_estimate_counts_trials():
    plan = make_plan({**CONFIG, "seeds": [0], "trials": 16})
    tuned = [plan.experiment("synthetic_a", "standard", "promptpar", "global_deep")]
    once = f"{tuned[0].folder}/seeds0.done.json"
    rest = minutes(plan, 1, [])
    trials = minutes(plan, 1, work_of(plan, [], tuned)) - rest
    assert trials > 4 * (minutes(plan, 1, work_of(plan, [once])) - rest)
    assert "1 method to tune, 16 trials, about " in describe(plan, 1, [], tuned)
    told = describe(plan, 2, [], [tuned[0], plan.experiments[0]])
    assert "2 methods to tune, 16 trials each, about " in told


def test_the_estimate_of_a_small_plan_is_worded_for_it():
    one = {"datasets": ["synthetic_a/standard"], "methods": ["linear_probe"], "seeds": [0]}
    plan = make_plan({**CONFIG, **one, "sweeps": {}})
    every = [batch.marker for batch in plan.batches]
    told = describe(plan, 1, every)
    assert "1 experiment, 1 run\n" in told and "1 of 1 training job to run, about " in told
    assert " min on 1 core\n" in told and " min on 2 cores\n" in describe(plan, 2, every)
    assert re.search(r"[1-9]\d* MB of predictions and weights", told) and "0.0 GB" not in told


def test_estimate_of_a_large_backbone_by_hand(tmp_path):
    """Operations over speed; pictures of all splits in one store; what is there costs nothing."""
    options = {"synthetic_a": {"seed": 1, "identities": 100, "images_per_identity": 10}}
    config = {**CONFIG, "protocol": "paper", "presets": [], "dataset_options": options}
    config |= {"methods": ["promptpar"], "backbone": "ViT-L-14", "results": str(tmp_path)}
    plan = make_plan({**config, "datasets": ["synthetic_a/standard"], "seeds": [0, 1]})
    work = work_of(plan, [batch.marker for batch in plan.batches])
    counts = registry.load_dataset("synthetic_a").expected(options["synthetic_a"])["standard"]
    assert sum(counts.values()) == 1000
    trained, predicted = 40 * counts["train"], counts["val"] + counts["test"]
    flops = 2 * 1e9 * (359 * trained + 156 * predicted)
    assert gpu_hours(plan, work) == pytest.approx(flops / 12e12 / 3600)
    pictures, written = gigabytes(plan, work)
    assert pictures == pytest.approx(1000 * 3 * 224 * 224 / 1e9)
    assert 2 * 4 * 3.4e6 < written * 1e9 < 2.1 * 4 * 3.4e6
    said = describe(plan, 2, [batch.marker for batch in plan.batches])
    assert "GPU hours\n" in said and "config/timings.yaml" in said
    assert f"{2 * trained / 1e6:.1f} million training images" in said
    store = Path(plan.store(plan.experiments[0]))
    store.parent.mkdir(parents=True)
    store.touch()
    assert gigabytes(plan, work)[0] == 0 and gigabytes(plan, []) == (0, 0)


@pytest.mark.parametrize(
    ("kind", "method", "size", "batch"),
    [
        ("par", "promptpar", (224, 224), 16),
        ("reid", "promptpar", (256, 128), 64),
        ("reid", "full_finetune", (256, 128), 64),
    ],
)
def test_operations_are_those_that_are_counted(kind, method, size, batch):
    """Of one training image, forward and backward, without a number computed."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from pedbench.contracts import Attribute, ReidSettings, Task
    from pedbench.nn.backbone import shape_only

    backbone = shape_only("ViT-B-16", size).requires_grad_(False)
    words = [Attribute(f"a{n}", "whole", f"with a long coat {n}", "without") for n in range(35)]
    task = Task("par", tuple(words), (0.3,) * 35)
    if kind == "reid":
        losses = ReidSettings("cross_entropy", 1, 0.35, 30, 0.1, "triplet", 1, 0.3, "before")
        task = Task("reid", (), (), identities=1041, cameras=15, reid=losses)
    built = registry.load_method(method)(registry.load_params(method, {}))
    with torch.device("meta"):
        model = built.build(backbone, task).train()
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(torch.zeros(batch, 3, *size)).logits.sum().backward()
    known = read_yaml(TIMINGS)[COUNTED[task.kind]]["ViT-B-16"][method]
    assert counter.get_total_flops() / batch / 1e9 == pytest.approx(known, rel=0.15)


def test_the_estimate_of_re_identification_by_hand(monkeypatch, tmp_path):
    """Its own counts of operations; queries and gallery are predicted."""
    monkeypatch.setenv("PEDBENCH_ROOT_MARKET1501", str(tmp_path))
    config = {"reid_protocol": "paper_reid", "backbone": "ViT-B-16", "seeds": [0, 1]}
    config |= {"datasets": ["market1501/reid"], "methods": ["zero_shot", "full_finetune"]}
    plan = make_plan({**config, "results": str(tmp_path / "results")})
    work = work_of(plan, [batch.marker for batch in plan.batches])
    predicted, trained = 3368 + 15913, 60 * 12936
    flops = 1e9 * (2 * 63 * trained + 3 * 21 * predicted)
    assert gpu_hours(plan, work) == pytest.approx(flops / 12e12 / 3600)
    pictures, written = gigabytes(plan, work)
    assert pictures >= (12936 + predicted) * 3 * 256 * 128 / 1e9
    assert written * 1e9 == pytest.approx(3 * predicted * (4 * FEATURES + NAME) + 2 * 4 * 86e6)


def test_the_plan_of_re_identification_runs_what_papers_print(monkeypatch, tmp_path):
    """All of it with the three sets at hand; with one, what hangs on the others is left out."""
    known = ("MARKET1501", "MSMT17", "CUHK03")
    for name in known:
        monkeypatch.setenv(f"PEDBENCH_ROOT_{name}", str(tmp_path))
    config = {**read_yaml("config/paper_reid.yaml"), "results": str(tmp_path / "results")}
    plan = make_plan(config)
    assert plan.notes == () and {e.spec["protocol"]["task"] for e in plan.experiments} == {"reid"}
    tables = read_yaml("config/tables.yaml")
    run = {(e.dataset, e.split): set() for e in plan.experiments}
    for e in plan.experiments:
        run[e.dataset, e.split] |= {f"{e.method}/{e.variant}".removesuffix("/default")}
    assert len(run) == len(config["datasets"])
    assert set(tables["report/table_2_1"]["rows"]) <= run["market1501", "reid"]
    assert set(tables["report/table_2_2"]["rows"]) <= run["msmt17", "reid"]
    assert run["market1501_attributes", "reid"] == {"full_finetune", "apr"}
    # the released settings reach the runs
    protocol = plain(plan.experiment("market1501", "reid", "clip_reid", "sie_olp").spec)
    assert protocol["params"]["sie_coefficient"] == 1 and protocol["protocol"]["patch_stride"] == 12
    simple = plan.experiment("msmt17", "reid", "resnet50", "reid_triplet").spec
    assert plain(simple)["protocol"]["milestones"] == [20, 40]
    for name in known[1:]:
        monkeypatch.delenv(f"PEDBENCH_ROOT_{name}")
    alone = make_plan(config)
    assert {e.dataset for e in alone.experiments} == {"market1501", "market1501_attributes"}
    assert alone.notes[0].startswith("no data, so left out: msmt17, cuhk03; name their folders")


def test_results_folder_that_is_a_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_results_folder("results/deep")
    (tmp_path / "results").write_text("")
    with fails("results/deep: the results folder cannot be used: "):
        check_results_folder("results/deep")
    assert (tmp_path / "results").read_text() == ""


@pytest.fixture
def complete(tmp_path):
    """A plan whose outputs are all there, and the marker of every seed."""
    plan = make_plan({**CONFIG, "results": str(tmp_path)})
    assert lost(plan) == set()  # a first run
    for output in plan.outputs:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).touch()
    done = [
        Path(batch.experiment.folder, f"seed{seed}", "train.done.json")
        for batch in plan.batches
        for seed in batch.seeds
    ]
    for file in done:
        file.parent.mkdir()
        (file.parents[1] / "config.json").touch()
        names = [f"predictions.{subset}.parquet" for subset in ("val", "test")]
        write_json(file, {"files": dict.fromkeys(names, "sha256")})
        for subset in ("val", "test"):
            (file.parent / f"predictions.{subset}.parquet").touch()
            (file.parent / f"scores.{subset}.json").touch()
    Path(plan.sources["synthetic_a"].root).mkdir(parents=True)
    assert lost(plan) == set()
    return plan, done


def test_what_was_deleted_is_found(complete, tmp_path):
    plan, done = complete
    done[-1].unlink()
    Path(plan.sources["synthetic_a"].root).rmdir()
    (tmp_path / "scored.json").unlink()
    assert lost(plan) == {
        plan.batches[-1].marker,
        plan.prepared(plan.batches[-1].experiment),  # nothing was: it is wanted again
        plan.sources["synthetic_a"].manifest,
        f"{tmp_path}/scored.json",
    }
    assert (tmp_path / "long.parquet").exists()


@pytest.mark.parametrize("name", ["scores.test.json", "predictions.val.parquet"])
def test_a_lost_file_of_a_run_is_missed_by_what_scores(name, complete):
    plan, done = complete
    (done[0].parent / name).unlink()
    assert lost(plan) == {f"{plan.results}/scored.json"}


def test_a_run_without_validation_images_lacks_nothing(complete):
    plan, done = complete
    for subset in ("predictions.val.parquet", "scores.val.json"):
        (done[0].parent / subset).unlink()
    write_json(done[0], {"files": {"predictions.test.parquet": "sha256"}})
    assert lost(plan) == set()
    (done[0].parent / "scores.test.json").unlink()
    assert lost(plan) == {f"{plan.results}/scored.json"}


def test_what_needs_validation_images_is_refused_where_there_are_none(monkeypatch):
    counts = {"standard": {"train": 5, "test": 5}, "zero_shot": {"train": 5, "val": 1, "test": 5}}
    dataset = type(registry.load_dataset("synthetic_a"))
    monkeypatch.setattr(dataset, "expected", lambda self, options: counts)
    place = "synthetic_a/standard"
    chooses = {"parameter": "selection", "values": ["best_val_mA"]}
    sweep = {"dataset": place, "method": "linear_probe", **chooses}
    with fails(f"config: {place}/linear_probe/default-selectionbest_val_mA: selection best_val_mA"):
        make_plan({**CONFIG, "sweeps": {"epoch": sweep}})
    make_plan({**CONFIG, "sweeps": {"epoch": {**sweep, "dataset": "synthetic_a/zero_shot"}}})
    one = {"trials": 2, "methods": ["linear_probe"]}
    with fails(f"tune: {place} has no validation images, which trials are scored by"):
        tuned(make_plan({**CONFIG, **one, "datasets": [place]}))
    assert tuned(make_plan({**CONFIG, **one, "datasets": ["synthetic_a/zero_shot"]}))


def test_a_refused_variant_is_finished_and_has_no_runs(tmp_path):
    plan = make_plan({**CONFIG, "results": str(tmp_path)})
    batch = plan.batches[0]
    assert not batch.is_finished()
    for name in ("config.json", "refused.json"):
        write_json(Path(batch.experiment.folder, name), {"reason": "needs tokens"})
    assert batch.is_finished()
    refused = Path(batch.experiment.folder)
    assert refused not in {folder.parent for _, _, folder in runs_of(plan.as_json())}


def test_a_run_without_the_epochs_that_are_wanted_is_not_finished(tmp_path):
    """They were deleted, or the audit was added to the plan when the run was done."""
    plan = make_plan({**CONFIG, "results": str(tmp_path), "released_selection": AUDIT})
    batch = next(b for b in plan.batches if b.experiment.keep_epochs)
    folders = [Path(batch.experiment.folder, f"seed{seed}") for seed in batch.seeds]
    for folder in folders:
        write_json(folder / "train.done.json", {"epochs": {}})
        (folder / "epochs").mkdir()
    assert not batch.is_finished()  # without settings nobody reads it
    write_json(folders[0].parent / "config.json", {})
    assert batch.is_finished()
    (folders[-1] / "epochs").rmdir()
    assert not batch.is_finished()
    write_json(folders[-1] / "train.done.json", {})
    (folders[-1] / "epochs").mkdir()
    assert not batch.is_finished()


def test_messages_name_the_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_source([tmp_path / "config/a.yaml"], {}) == "config/a.yaml"
    assert config_source([tmp_path / "a.yaml"], {"seeds": [0]}) == "a.yaml + --config"


def test_default_config_is_what_the_release_runs():
    plan = make_plan(yaml.safe_load((ROOT / "config/config.yaml").read_text()))
    trained = [e for e in plan.experiments if e.dataset == "synthetic_a"]
    assert all(len(e.seeds) == 3 for e in trained if e.method != "zero_shot")
    assert {sweep.name for sweep in plan.sweeps} == {"prompt_length", "prompt_depth"}
    assert plan.notes == ()
