"""Equal tuning budgets: spaces, trials, and the preset made of them."""

from __future__ import annotations

import dataclasses
import re
import shutil

import numpy as np
import pytest
import yaml

from pedbench import registry
from pedbench import train as job
from pedbench import tune as module
from pedbench.config import ROOT, read_protocol, read_yaml, resolve, section_of
from pedbench.contracts import PedbenchError
from pedbench.files import read_json, write_json
from pedbench.manifest import write_manifest
from pedbench.plan import make_plan, write_plan
from pedbench.tune import (
    best,
    encode,
    outdated,
    preset_text,
    suggest,
    tune,
    tuned,
    tuning_markdown,
    unsearched,
)

PLAN = {**read_yaml("config/tune.yaml"), "trials": 4}
REID = {**read_yaml("config/tune_reid.yaml"), "trials": 4}
SPACE = {"lr": (1e-4, 1e-1), "width": [1, 2, 4]}
TRAINED = [name for name in registry.methods() if registry.trains(name)]


def fails(message: str):
    return pytest.raises(PedbenchError, match=f"^{re.escape(message)}")


def trial(score: float | None, **values):
    return {"values": values, "score": score}


@pytest.mark.parametrize("method", TRAINED)
def test_every_method_that_trains_declares_a_space_around_its_start(method):
    """In every task that it solves."""
    for task in registry.class_attribute(method, "tasks"):
        plan = {"par": PLAN, "reid": REID}[task]
        assert list(tuned(make_plan({**plan, "methods": [method]}))) == [method]


def test_what_does_not_train_is_not_tuned():
    plan = make_plan({**PLAN, "methods": ["zero_shot", "linear_probe"]})
    assert {m: e.variant for m, e in tuned(plan).items()} == {"linear_probe": "default"}


def test_the_form_that_changes_nothing_is_tuned_for_its_method_another_for_itself():
    plan = make_plan({**PLAN, "methods": ["promptpar/global_deep", "promptpar/region_deep"]})
    variants = {section: e.variant for section, e in tuned(plan).items()}
    assert variants == {"promptpar/global_deep": "global_deep", "promptpar": "region_deep"}


def test_the_shipped_plans_can_be_tuned():
    sections = tuned(make_plan(PLAN))
    assert len(sections) == len(PLAN["methods"])
    assert {"lora", "lora/text", "peft_tuner", "peft_tuner/dora"} <= sections.keys()
    persons = tuned(make_plan(REID))
    assert len(persons) == len(REID["methods"]) and "clip_reid" in persons


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"datasets": ["synthetic_a/standard", "synthetic_b/standard"]},
            "tune: 'datasets' names several; methods are tuned on one",
        ),
        (
            {"methods": ["promptpar", "promptpar/vit_b16"]},
            "tune: 'methods' run on several backbones (tiny_clip, ViT-B-16); a preset is tuned on",
        ),
        (
            {"methods": ["zero_shot"]},
            "tune: nothing under 'methods' trains; add what is to be tuned",
        ),
    ],
)
def test_a_plan_that_cannot_be_tuned_says_why(change, message):
    with fails(message):
        tuned(make_plan({**PLAN, **change}))


def test_a_plan_without_trials_points_to_the_one_that_has_them():
    with fails("tune: the config does not say how many 'trials' a method gets; use --configfile c"):
        tuned(make_plan({key: value for key, value in PLAN.items() if key != "trials"}))


def test_what_only_a_sweep_runs_is_not_tuned():
    sweep = {"dataset": "synthetic_a/standard", "method": "linear_probe", "parameter": "lr"}
    plan = make_plan(
        {**PLAN, "methods": ["linear_probe"], "sweeps": {"r": {**sweep, "values": [1]}}}
    )
    assert len(plan.experiments) == 2
    assert [e.variant for e in tuned(plan).values()] == ["default"]


def test_a_start_without_a_value_is_refused(monkeypatch):
    plan = make_plan({**PLAN, "methods": ["linear_probe"]})
    spec = plan.experiments[0].spec
    monkeypatch.setitem(spec["params"], "lr", {"value": None, "from": "methods/linear_probe.py"})
    with fails("methods/linear_probe.py: Method.search: lr: (") as raised:
        tuned(plan)
    assert "does not hold the start None of methods/linear_probe.py; widen" in str(raised.value)


def test_a_variant_that_fixes_what_is_searched_is_refused(monkeypatch):
    monkeypatch.setattr(registry, "read_search", lambda _: {"gl_weight": [0.0, 0.5]})
    with fails("tune: the variant promptpar/global_deep fixes 'gl_weight', which is searched"):
        tuned(make_plan({**PLAN, "methods": ["promptpar/global_deep"]}))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{}", "methods/mine.py: Method.search is missing; declare what is tuned"),
        ("{'rate': (1, 2)}", "methods/mine.py: Method.search: rate is no field of Params"),
        ("{'lr': 0.1}", "methods/mine.py: Method.search: lr: a tuple (low, high) or a list"),
        ("{'lr': (0.1, 'x')}", "methods/mine.py: Method.search: lr: 'x' is not float"),
        ("{'lr': (0.0, 0.1)}", "methods/mine.py: Method.search: lr: (0.0, 0.1) is no range"),
        ("{'lr': (0.1, 0.2)}", "methods/mine.py: Method.search: lr: (0.1, 0.2) does not hold the "),
        ("{'lr': [0.1, 0.2]}", "methods/mine.py: Method.search: lr: [0.1, 0.2] does not hold the "),
        ("dict(lr=(1, 2))", "methods/mine.py: line 4: Method.search must be a literal"),
    ],
)
def test_a_bad_space_is_refused(space, message, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "methods", tmp_path / "methods")
    (tmp_path / "datasets").symlink_to(ROOT / "datasets")
    (tmp_path / "methods/mine.py").write_text(
        f"class Params:\n    lr: float = 1e-3\nclass Method:\n    search = {space}\n"
    )
    monkeypatch.setattr(registry, "_PACKAGE", tmp_path)
    with fails(message):
        tuned(make_plan({**PLAN, "methods": ["mine"]}))


def test_suggestions_follow_from_what_was_seen_alone():
    done = [trial(0.5, lr=1e-3, width=1), trial(None, lr=0.1, width=4)]
    first = suggest(SPACE, done, seed=0)
    assert first == suggest(SPACE, list(done), seed=0)
    assert first != suggest(SPACE, done, seed=1)
    assert first != suggest(SPACE, done[:1], seed=0)


def test_suggestions_stay_in_the_space_and_find_its_better_part():
    """The score falls with the distance from lr = 1e-2 and prefers width 4."""
    done = [trial(0.0, lr=1e-4, width=1)]
    for _ in range(24):
        values = suggest(SPACE, done, seed=0)
        assert 1e-4 <= values["lr"] <= 1e-1 and values["width"] in SPACE["width"]
        assert values["lr"] == float(f"{values['lr']:.3g}")
        score = values["width"] / 10 - abs(np.log10(values["lr"]) + 2)
        done.append(trial(None if values["lr"] > 5e-2 else score, **values))
    late = [one["values"] for one in done[-8:]]
    assert np.mean([abs(np.log10(values["lr"]) + 2) for values in late]) < 0.5
    assert [values["width"] for values in late].count(4) >= 5


def test_the_best_trial_is_the_earliest_of_equals():
    assert best("m", [trial(0.5, lr=1), trial(None, lr=2), trial(0.5, lr=3)])["values"] == {"lr": 1}
    with fails(
        "tune: every trial of m/v diverged; lower the rates in Method.search of methods/m.py"
    ):
        best("m/v", [trial(None, lr=1)])


@pytest.fixture
def prepare(tmp_path, manifest, backbone, monkeypatch):
    """Write a tuning's inputs below a fresh folder; returns what runs it and reads the record."""
    monkeypatch.setattr(job, "load_backbone", lambda *_, **__: backbone)

    def inputs(name="t", shown=manifest, **values):
        folder = tmp_path / name
        protocol = read_protocol("embedded", ("tiny_clip",))
        chosen = resolve("linear_probe", "default", protocol, {"epochs": 2, **values}, "test")
        place = {"dataset": "noise", "split": "standard", "variant": "default"}
        place |= {"method": "linear_probe", "backbone": "random"}
        write_json(folder / "config.json", {**place, **chosen})
        write_json(folder / "w.json", {"sha256": backbone.weights_sha256, "file": None})
        write_manifest(shown, folder / "noise.parquet")
        spec, images, weights = (folder / n for n in ("config.json", "noise.parquet", "w.json"))

        def run(trials=4, seeds=(0,)):
            tune(spec, images, weights, trials, seeds, 1, folder / "record.json")
            return read_json(folder / "record.json")["linear_probe"]

        return run

    return inputs


def test_a_record_holds_the_space_and_every_trial(prepare):
    record = prepare()(trials=3)
    space = registry.read_search("linear_probe")
    assert record["space"] == encode(space) == {"lr": {"range": list(space["lr"])}}
    assert [sorted(one) for one in record["trials"]] == [["score", "values"]] * 3
    assert record["trials"][0]["values"] == {"lr": 0.02}  # the start
    assert record["settings"]["epochs"] == 2 and "lr" not in record["settings"]
    rates = [one["values"]["lr"] for one in record["trials"]]
    assert len(set(rates)) == 3 and all(space["lr"][0] <= rate <= space["lr"][1] for rate in rates)
    assert all(0 <= one["score"] <= 1 for one in record["trials"])


def test_a_trial_scores_as_a_run_with_its_values(prepare, tmp_path):
    """The same training and the same metric, on validation images."""
    trials = prepare()(trials=2, seeds=(0, 1))["trials"]
    scores = []
    for seed in (0, 1):
        alone = prepare(f"s{seed}", **trials[1]["values"])(trials=1, seeds=(seed,))
        scores.append(alone["trials"][0]["score"])
    assert trials[1]["score"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert scores[0] != scores[1]


def test_test_images_are_never_read(prepare, manifest, tmp_path):
    """Their files are gone and their labels differ: the record is the same."""
    shutil.copytree(manifest.root, tmp_path / "other")
    rows = manifest.rows.copy()
    for index in np.flatnonzero(rows["split:standard"] == "test"):
        (tmp_path / "other" / rows["image"][index]).unlink()
        rows.loc[index, "label:hat"] = 1 - rows["label:hat"][index]
    changed = dataclasses.replace(manifest, root=tmp_path / "other", rows=rows)
    assert prepare("without", changed)(trials=2) == prepare("with")(trials=2)


def test_a_killed_tuning_goes_on_to_the_same_record(prepare, tmp_path, monkeypatch):
    undisturbed = prepare("undisturbed")()
    killed, real, calls = prepare("killed"), job.Job.try_out, []

    def dies_in_the_third(self, *arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(job.Job, "try_out", dies_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        killed()
    assert len(read_json(tmp_path / "killed/trials/finished.json")["trials"]) == 2
    assert killed() == undisturbed
    assert len(calls) == 5  # the two that were finished are not repeated


def test_more_trials_go_on_where_fewer_ended(prepare):
    short = prepare()
    two = short(trials=2)["trials"]
    assert short(trials=4)["trials"][:2] == two == short(trials=2)["trials"]


def test_other_settings_start_anew(prepare):
    before = prepare()(trials=2)["trials"]
    after = prepare(lr=0.1)(trials=2)["trials"]
    assert after[0]["values"] == {"lr": 0.1} and before[0] != after[0]


def test_a_diverged_trial_counts_without_a_score(prepare, monkeypatch):
    monkeypatch.setattr(registry, "read_search", lambda _: {"lr": (1e-3, 1e38)})
    trials = prepare(lr=1e38)(trials=3)["trials"]
    assert trials[0] == {"values": {"lr": 1e38}, "score": None}
    assert len(trials) == 3


def test_several_processes_are_refused(prepare, monkeypatch):
    monkeypatch.setattr(job.Accelerator, "num_processes", property(lambda _: 2))
    with fails("tune: a trial runs in one process; start it without torchrun"):
        prepare()()


def test_other_errors_end_the_tuning(prepare, monkeypatch):
    def full(*_):
        raise PedbenchError("the disk is full")

    monkeypatch.setattr(job.Job, "try_out", full)
    with fails("the disk is full"):
        prepare()()


RECORD = {
    "variant": "default",
    "space": {"lr": {"range": [1e-3, 0.3]}},
    "trials": [trial(0.8, lr=0.02), trial(0.8125, lr=0.1), trial(None, lr=0.3)],
}


FOR = {"for": {"backbone": "tiny_clip", "protocol": "embedded"}}


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A repository whose committed record tuned ``full_finetune`` with three trials."""
    presets = tmp_path / "config/presets"
    presets.mkdir(parents=True)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    write_json(presets / "equal_budget.json", {"methods": {}})
    write_json(tmp_path / "full.json", {"full_finetune": RECORD})
    write_json(tmp_path / "probe.json", {"linear_probe": RECORD})
    return tmp_path


def recorded(method, variant="default"):
    """A record whose space and settings are those of now."""
    space = registry.read_search(method)
    spec = resolve(method, variant, read_protocol(PLAN["protocol"], tuple(PLAN["presets"])))
    now = {"space": encode(space), "settings": unsearched(method, spec, space)}
    return {**RECORD, "variant": variant, **now}


def made(shelf, name, trials=3):
    write_plan({**PLAN, "trials": trials}, shelf / "plan.json")
    module.write_preset(
        read_json(shelf / "plan.json"), trials, [shelf / f"{name}.json"], shelf / "out.json"
    )
    return read_json(shelf / "out.json")


def test_a_preset_is_made_of_records(shelf):
    record = made(shelf, "probe")
    text = (shelf / "out.yaml").read_text()
    assert yaml.safe_load(text) == {**FOR, "linear_probe": {"lr": 0.1}}
    for part in ("3 trials per method", "seed 1)", "validation mA 81.25, at the start 80.00"):
        assert part in " ".join(text.replace("#", "").split())
    assert text == preset_text(record)


def test_a_method_tuned_alone_joins_those_of_the_same_budget(shelf):
    write_json(shelf / "full.json", {"full_finetune": recorded("full_finetune")})
    committed = made(shelf, "full")
    write_json(shelf / "config/presets/equal_budget.json", committed)
    assert sorted(made(shelf, "probe")["methods"]) == ["full_finetune", "linear_probe"]
    assert sorted(made(shelf, "probe", trials=5)["methods"]) == ["linear_probe"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"settings": {"head": "linear"}},
            'lora/text: tuned with head = "linear", which is "pair"',
        ),
        (
            {"settings": {"epochs": 1}},
            "lora/text: tuned with epochs = 1, which is 8 now; run 'make",
        ),
        ({"settings": {"removed": 1}}, "lora/text: tuned with removed = 1, which is null now"),
        ({"space": {"lr": {"range": [1, 2]}}}, "lora/text: tuned over another space than Meth"),
        ({"variant": "gone"}, "lora/text: config/variants.yaml: method 'lora' has no variant"),
    ],
)
def test_a_record_made_with_other_settings_is_outdated(change, message, shelf, capsys):
    protocol = read_protocol(PLAN["protocol"], tuple(PLAN["presets"]))
    record = recorded("lora", "text")
    assert outdated("lora/text", record, protocol) is None
    settings = {**record["settings"], **change.pop("settings", {})}
    record |= {"settings": settings, **change}
    assert str(outdated("lora/text", record, protocol)).startswith(message)
    write_json(shelf / "full.json", {"lora/text": record})
    write_json(shelf / "config/presets/equal_budget.json", made(shelf, "full"))
    assert sorted(made(shelf, "probe")["methods"]) == ["linear_probe"]
    assert f"left out: {message}" in capsys.readouterr().out


def test_a_record_without_settings_is_outdated():
    protocol = read_protocol(PLAN["protocol"], tuple(PLAN["presets"]))
    assert "does not say with which settings" in str(outdated("linear_probe", RECORD, protocol))


def test_a_record_of_a_variant_is_a_preset_of_that_variant(shelf):
    write_json(shelf / "probe.json", {"lora/text": {**RECORD, "variant": "text"}})
    write_json(shelf / "config/presets/equal_budget.json", made(shelf, "probe"))
    assert yaml.safe_load((shelf / "out.yaml").read_text()) == {**FOR, "lora/text": {"lr": 0.1}}
    assert "| LoRA (text) | `lr` 0.001 to 0.3 | `lr` 0.1 |" in tuning_markdown("equal_budget")


def test_the_report_shows_spaces_and_chosen_values(shelf):
    assert tuning_markdown("equal_budget") == "Nothing is tuned yet.\n"
    write_json(shelf / "config/presets/equal_budget.json", made(shelf, "probe"))
    words = {"choices": ["a photo of a", "", 4]}
    assert module._in_words(words) == 'one of "a photo of a", "", 4'
    row = "| Linear probe | `lr` 0.001 to 0.3 | `lr` 0.1 | 81.25 | 80.00 | 1 |"
    assert row in tuning_markdown("equal_budget").splitlines()


def test_the_committed_preset_is_what_its_record_says():
    record = module.read_record("equal_budget")
    assert (ROOT / "config/presets/equal_budget.yaml").read_text() == preset_text(record)
    protocol = read_protocol(PLAN["protocol"], tuple(PLAN["presets"]))
    stale = [outdated(section, one, protocol) for section, one in record["methods"].items()]
    assert list(filter(None, stale)) == []
    for section, one in record["methods"].items():
        assert section == section_of(section.partition("/")[0], one["variant"])
        assert len(one["trials"]) == record["trials"], section
