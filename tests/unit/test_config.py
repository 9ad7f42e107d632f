from __future__ import annotations

import re
import shutil
from dataclasses import fields

import pytest
import yaml

from pedbench import config as module
from pedbench import registry
from pedbench.config import (
    ROOT,
    check_config,
    plain,
    protocol_of,
    read_protocol,
    read_variants,
    resolve,
)
from pedbench.contracts import PedbenchError
from pedbench.files import write_json
from pedbench.runs import RunConfig

PLAN = {
    "protocol": "embedded",
    "backbone": "tiny_clip",
    "datasets": ["synthetic_a/standard"],
    "methods": ["linear_probe"],
    "seeds": [0],
}


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A copy of config/ and the schemas that a test may spoil."""
    for folder in ("config", "workflow/schemas"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    clear = (module.read_variants.cache_clear, module.read_protocol.cache_clear)
    for forget in clear:
        forget()
    yield tmp_path
    for forget in clear:
        forget()


def fails(message: str):
    return pytest.raises(PedbenchError, match=f"^{re.escape(message)}")


@pytest.mark.parametrize(
    "name", [path.stem for path in ROOT.glob("config/*.yaml") if "\nmethods:" in path.read_text()]
)
def test_shipped_configs_are_valid(name):
    checked = check_config(yaml.safe_load((ROOT / f"config/{name}.yaml").read_text()))
    assert checked["threads_per_job"] >= 1


@pytest.mark.parametrize(
    ("name", "presets"),
    [
        ("embedded", ("tiny_clip", "equal_budget")),
        ("paper", ()),
        ("paper", ("reference",)),
        ("embedded_reid", ("tiny_clip_reid",)),
        ("paper_reid", ("reference_reid",)),
    ],
)
def test_shipped_protocols_and_presets_resolve_every_method(name, presets):
    protocol = read_protocol(name, presets)
    for method in registry.methods():
        spec = resolve(method, "default", protocol)
        assert protocol_of(spec).name == name
        registry.load_params(method, plain(spec["params"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sedes": [0]}, "c.yaml: unknown key 'sedes'; did you mean 'seeds'?"),
        ({"qqq": 1}, "c.yaml: unknown key 'qqq' (known: protocol, reid_protocol, presets, "),
        ({"seeds": 0}, "c.yaml: seeds: a list is wanted: [0] (list of whole numbers"),
        ({"presets": "reference"}, "c.yaml: presets: a list is wanted: [reference] (list of files"),
        ({"seeds": [0, "x"]}, "c.yaml: seeds.1: 'x' is not of type 'integer' (a whole number"),
        ({"seeds": []}, "c.yaml: seeds: [] should be non-empty"),
        ({"datasets": ["peta"]}, "c.yaml: datasets.0: 'peta' does not match"),
        ({"methods": ["a", "a"]}, "c.yaml: methods: ['a', 'a'] has non-unique elements"),
        (
            {"sweeps": {"depth": {"dataset": "a/b", "method": "m", "values": [1]}}},
            "c.yaml: sweeps.depth: 'parameter' is missing; a field of the method's Params, or a",
        ),
        (
            {"comparison": {"alpa": 0.1}},
            "c.yaml: comparison: unknown key 'alpa'; did you mean 'alpha'?",
        ),
    ],
)
def test_config_errors(change, message):
    with fails(message):
        check_config({**PLAN, **change}, "c.yaml")


RELEASED = "selection: 'released' would choose epochs by their test scores, one for each metric"


def test_choosing_by_test_scores_is_refused_wherever_it_is_asked_for(shelf):
    """With the reason, and the key of the plan that audits it."""
    protocol = shelf / "config/protocols/embedded.yaml"
    text = protocol.read_text()
    variants = shelf / "config/variants.yaml"
    variants.write_text("linear_probe: {best: {selection: released}}")
    with fails(f"config/variants.yaml: linear_probe.best: {RELEASED}"):
        read_variants()
    variants.write_text("{}")
    (shelf / "config/presets/first.yaml").write_text("linear_probe: {selection: released}")
    with fails(f"config/presets/first.yaml: linear_probe: {RELEASED}"):
        read_protocol("embedded", ("first",))
    protocol.write_text(text.replace("selection: last_epoch", "selection: released"))
    with pytest.raises(PedbenchError, match="name it under 'released_selection' in the plan"):
        read_protocol("embedded")


def test_missing_key_is_explained():
    with fails("config: 'backbone' is missing; tiny_clip, or an open_clip model"):
        check_config({key: value for key, value in PLAN.items() if key != "backbone"})


def test_numbers_given_as_text_on_the_command_line():
    given = {**PLAN, "seeds": ["0", "1"], "pretrain": "true", "results": "2026"}
    checked = check_config(given)
    assert checked["seeds"] == [0, 1] and checked["pretrain"] is True
    assert checked["results"] == "2026"


def test_later_layers_win_and_leave_their_origin(shelf):
    (shelf / "config/variants.yaml").write_text("linear_probe: {hot: {lr: 0.5, epochs: 3}}")
    presets = shelf / "config/presets"
    (presets / "first.yaml").write_text("linear_probe: {lr: 0.125, batch_size: 16}")
    (presets / "second.yaml").write_text("linear_probe: {lr: 0.25}")
    protocol = read_protocol("embedded", ("first", "second"))

    def lr(label, swept=None):
        return resolve("linear_probe", label, protocol, swept, "rates")["params"]["lr"]

    source = "config/presets/second.yaml: linear_probe"
    assert lr("default") == {"value": 0.25, "from": source}
    batch_size = resolve("linear_probe", "default", protocol)["protocol"]["batch_size"]
    assert batch_size == {"value": 16, "from": "config/presets/first.yaml: linear_probe"}
    assert lr("hot") == {"value": 0.5, "from": "config/variants.yaml: linear_probe.hot"}
    assert lr("hot", {"lr": 1}) == {"value": 1.0, "from": "sweep rates"}
    epochs = resolve("linear_probe", "hot", protocol)["protocol"]["epochs"]
    assert epochs == {"value": 3, "from": "config/variants.yaml: linear_probe.hot"}
    full = resolve("full_finetune", "default", read_protocol("paper"))["params"]["lr"]
    assert full["from"] == "methods/full_finetune.py"


def test_a_variants_section_wins_over_those_of_its_method(shelf):
    """Also over a later file's, and for that variant alone."""
    presets = shelf / "config/presets"
    (presets / "first.yaml").write_text("lora: {lr: 0.25}\nlora/text: {lr: 0.5}")
    (presets / "second.yaml").write_text("lora: {lr: 0.125}")
    protocol = read_protocol("embedded", ("first", "second"))
    lr = {v: resolve("lora", v, protocol)["params"]["lr"] for v in ("default", "text", "pair_head")}
    assert lr["text"] == {"value": 0.5, "from": "config/presets/first.yaml: lora/text"}
    second = {"value": 0.125, "from": "config/presets/second.yaml: lora"}
    assert lr["default"] == lr["pair_head"] == second
    swept = resolve("lora", "text", protocol, {"lr": 1.0}, "rates")["params"]["lr"]
    assert swept == {"value": 1.0, "from": "sweep rates"}


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        (
            "linear_probe: {hot: {epoch: 3}}",
            "config/variants.yaml: linear_probe.hot: unknown key 'epoch'; did you mean 'epochs'?",
        ),
        (
            "linear_probe: {hot: {lr: high}}",
            "config/variants.yaml: linear_probe.hot: lr: 'high' is not float",
        ),
        (
            "linear_probe: {hot: {batch_size: 0}}",
            "config/variants.yaml: linear_probe.hot: batch_size: 0 is too small; it must be at le",
        ),
        (
            "linear_probe: {hot: {version: '2'}}",
            "config/variants.yaml: linear_probe.hot: unknown key 'version' (known: ",
        ),
        (
            "linear_prob: {hot: {lr: 1}}",
            "config/variants.yaml: unknown method 'linear_prob'; did you mean 'linear_probe'?",
        ),
        (
            "linear_probe: {default: {lr: 1}}",
            "config/variants.yaml: linear_probe.default: a label is made of letters",
        ),
        (
            "linear_probe: {hot: 3}",
            "config/variants.yaml: linear_probe.hot: 'key: value' pairs are wanted, not 3",
        ),
        ("linear_probe: {", "config/variants.yaml: not valid YAML: "),
        (
            "linear_probe:\n  hot: {lr: 1.0}\n  hot: {lr: 2.0}",
            "config/variants.yaml: line 3: the key 'hot' stands in line 2 too; delete one of them",
        ),
        ("- 1", "config/variants.yaml: a mapping of keys to values is wanted, not [1]"),
    ],
)
def test_variant_errors(shelf, variants, message):
    (shelf / "config/variants.yaml").write_text(variants)
    with fails(message):
        resolve("linear_probe", "hot", read_protocol("embedded"))


def test_unknown_variant_and_protocol():
    with fails("config/variants.yaml: method 'zero_shot' has no variant 'defalt'; did you mean"):
        resolve("zero_shot", "defalt", read_protocol("embedded"))
    with fails("config: protocol: unknown protocol 'embeded'; did you mean 'embedded'? (the pro"):
        read_protocol("embeded")
    with fails(
        "config: presets: unknown preset 'tiny'; did you mean 'tiny_clip'? (the presets are"
    ):
        read_protocol("embedded", ("tiny",))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("flip: true", "", "config/protocols/paper.yaml: 'flip' is missing; a protocol states"),
        ("flip: true", "flip: maybe", "config/protocols/paper.yaml: flip: 'maybe' is not bool"),
        (
            "schedule: epoch_cosine",
            "schedule: cosin",
            "config/protocols/paper.yaml: schedule: 'cosin' is not one of 'cosine', 'constant', "
            "'epoch_cosine', 'delayed_cosine', 'multistep'; did you mean 'cosine'?",
        ),
        (
            "flip: true",
            "flip: true\nflop: 1",
            "config/protocols/paper.yaml: unknown key 'flop'; di",
        ),
    ],
)
def test_protocol_errors(shelf, old, new, message):
    file = shelf / "config/protocols/paper.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with fails(message):
        resolve("linear_probe", "default", read_protocol("paper"))


@pytest.mark.parametrize("name", [f.name for f in fields(module.Protocol) if f.name != "name"])
def test_a_protocol_file_states_also_what_has_a_default(shelf, name):
    """Defaults are for runs from before there was the setting."""
    task = "reid" if name in module.ONLY["reid"] else "par"
    file = shelf / "config/protocols" / {"par": "paper.yaml", "reid": "paper_reid.yaml"}[task]
    values = yaml.safe_load(file.read_text())
    del values[name]
    file.write_text(yaml.safe_dump(values))
    with fails(f"config/protocols/{file.name}: '{name}' is missing; a protocol states every"):
        read_protocol(file.stem)


def test_runs_from_before_re_identification_are_read(tmp_path):
    spec = resolve("lora", "default", read_protocol("embedded"))
    later = ("task", "image_size", "patch_stride", "random_erasing", *module.ONLY["reid"])
    before = {key: value for key, value in spec["protocol"].items() if key not in later}
    names = {"dataset": "d", "split": "s", "method": "lora", "variant": "default"}
    run = {**names, "backbone": "tiny_clip", "params": spec["params"], "protocol": before}
    write_json(tmp_path / "config.json", run)
    protocol = RunConfig.read(tmp_path / "config.json").protocol
    assert (protocol.task, protocol.random_erasing) == ("par", 0.0)
    assert protocol.image_size is None and protocol.patch_stride is None


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("promptpra: {}", "config/presets/own.yaml: unknown method 'promptpra'; did you mean"),
        (
            "linear_probe: {rate: 1}",
            "config/presets/own.yaml: linear_probe: unknown key 'rate' (known: ",
        ),
        (
            "epochs: 3",
            "config/presets/own.yaml: epochs: a setting stands below a method; what all methods",
        ),
        (
            "for: {backbone: tiny_klip}",
            "config/presets/own.yaml: for: backbone: 'tiny_klip' is not one of 'tiny_clip'",
        ),
        ("for: {epochs: 3}", "config/presets/own.yaml: for: unknown key 'epochs' (known: backbone"),
        ("linear_probe: 1", "config/presets/own.yaml: linear_probe: 'key: value' pairs are wanted"),
        (
            "lora/txt: {}",
            "config/presets/own.yaml: method 'lora' has no variant 'txt'; did you mean",
        ),
        (
            "vpt/deep: {}",
            "config/presets/own.yaml: vpt/deep: the variant changes nothing; its secti",
        ),
        (
            "maple/shallow: {prompt_depth: 2}",
            "config/presets/own.yaml: maple/shallow: prompt_depth: the variant fixes it; delete it",
        ),
    ],
)
def test_preset_errors(shelf, preset, message):
    (shelf / "config/presets/own.yaml").write_text(preset)
    with fails(message):
        read_protocol("embedded", ("own",))


def test_merged_keys_may_be_overridden(shelf):
    (shelf / "merged.yaml").write_text(
        "a: {x: &inner {<<: &base {k: 1, l: 1}, k: 2}}\nb: {<<: [*inner, *base], l: 3}"
    )
    read = module.read_yaml("merged.yaml")
    assert read["a"]["x"] == {"k": 2, "l": 1} and read["b"] == {"k": 2, "l": 3}


def test_params_and_protocol_share_no_name():
    for method in registry.methods():
        assert not registry.read_params(method).keys() & module.protocol_fields().keys()


def test_every_key_of_a_plan_is_documented():
    text = (ROOT / "docs/configuration.md").read_text()
    schema = yaml.safe_load((ROOT / module.SCHEMA).read_text())
    for key, entry in schema["properties"].items():
        assert f"| `{key}` |" in text, key
        nested = entry.get("additionalProperties") or {}
        inner = {**entry.get("properties", {}), **(nested or {}).get("properties", {})}
        for name in inner:
            assert f"`{name}`" in text, f"{key}.{name}"


def test_every_setting_of_a_protocol_is_documented_with_its_choices():
    text = (ROOT / "docs/configuration.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    for key, field in module.protocol_fields().items():
        found = [row for row in rows if f"`{key}`" in row.split("|")[1]]
        assert len(found) == 1, key
        choices = re.findall(r"'(\w+)'", field.annotation)
        assert [c for c in choices if f"`{c}`" not in found[0]] == [], key
