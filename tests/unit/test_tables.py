"""The tables: right cells, marks and captions, whatever methods are there."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml
from helpers import SKILL, fake_results

from pedbench.cite import in_table
from pedbench.collect import collect, read_long, select
from pedbench.config import ROOT, read_protocol, resolve
from pedbench.contracts import PedbenchError
from pedbench.describe import copy_results, fill, read_results
from pedbench.files import read_json, write_json, write_text
from pedbench.manifest import read_manifest, write_manifest
from pedbench.runs import device_of
from pedbench.score import score_runs
from pedbench.stats import write_stats
from pedbench.tables.cost import ppt
from pedbench.tables.definitions import Definition, read_definitions
from pedbench.tables.model import Cell, cell_of
from pedbench.tables.render import latex, markdown
from pedbench.tables.source import Results
from pedbench.tables.text import departures
from pedbench.tables.write import write_tables

FORMATS = ("csv", "md", "tex", "html")
OURS: dict[str, Any] = {  # definitions of a user
    "components": {
        "title": "Ours",
        "split": "standard",
        "metrics": ["mA", "AP"],
        "average": True,
        "baseline": "none",
        "columns": [
            {"label": "Backbone", "measured": "backbone"},
            {"label": "Trained", "measured": "parameters_trained"},
            {"label": "Rate", "measured": "lr"},
            {"label": "Fast", "measured": "lr", "tick": {"above": 0.005}},
            {"label": "Ours", "tick": {"rows": ["linear_probe"]}},
            {"label": "Layers", "measured": "lr", "only": {"lr": 3}},
        ],
    },
    "probe": {
        "title": "Marks against another baseline",
        "places": ["a/standard"],
        "rows": ["zero_shot", "linear_probe", "promptpar"],
        "baseline": "promptpar",
    },
    "gone": {"title": "Two rows wanted", "rows": ["zero_shot", "lora"], "split": "standard"},
    "not_run": {"title": "No such place", "places": ["c/standard"]},
    "cost": {"title": "Cost", "kind": "cost"},
    "bias": {"title": "Bias", "kind": "selection", "metrics": ["mA", "F1"]},
}


class Fake:
    """A folder with the results of fake runs, and the arguments of ``write_tables``."""

    def __init__(
        self, results: Any, plan: Any = None, baseline: str | None = "linear_probe/default"
    ):
        self.root, self.plan = results.root, plan or results.plan
        root = self.root
        score_runs(results.folders, results.manifests, root / "scored.json")
        collect(results.folders, root / "long.parquet")
        write_stats(
            results.folders, results.manifests, root / "stats", baseline=baseline, resamples=200
        )

    def write(self, out: str, definitions: Mapping[str, Any] | None = None, **more: Path) -> Path:
        args = self.root / "long.parquet", self.root / "stats", [self.root / "figures"], self.plan
        file = "config/tables.yaml"
        if definitions is not None:
            file = str(self.root / "tables.yaml")
            write_text(Path(file), yaml.safe_dump(definitions, sort_keys=False))
        write_tables(*args, self.root / out, definitions=file, **more)
        return self.root / out


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    """Two datasets, a user's own method ``my_method``, and one method refused on dataset b."""
    root = tmp_path_factory.mktemp("tables")
    results = fake_results(root, ("a", "b"), ("standard",), SKILL | {"my_method/wide": 1.0})
    plan = results.plan
    absent = [f for f in results.folders if f.parts[-5] == "b" and f.parts[-3] == "full"]
    for folder in absent:
        results.folders.remove(folder)
    write_json(absent[0].with_name("refused.json"), {"reason": "needs patch tokens"})
    for folder in results.folders:
        write_json(folder / "cost.json", {"parameters_trained": 12345, "seconds_fit": 1.5})
    (root / "figures").mkdir()
    (root / "figures" / "curve.png").write_bytes(b"picture")
    captions = {"curve": {"title": "A curve", "caption": "It <rises>.", "category": "x"}}
    write_json(root / "figures" / "captions.json", captions)
    return Fake(results, plan)


@pytest.fixture(scope="module")
def tables(fake):
    fake.write("tables")
    fake.write("again")
    return fake.root


def rows(path: Path) -> dict[str, list[str]]:
    """Name of a row -> its cells, of a Markdown table."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ")]
    return {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in lines}


def cells(path: Path) -> dict[str, list[str]]:
    return {name: [cell.strip(" |") for cell in row] for name, row in rows(path).items()}


def test_cells_are_mean_and_deviation_over_seeds(tables):
    csv = pd.read_csv(tables / "tables" / "standard.csv", keep_default_na=False)
    long = read_long(tables / "long.parquet")
    place = {"dataset": "a", "method": "full", "subset": "test", "attribute": ""}
    values = 100 * select(long, **place, metric="F1_instance")["value"]
    cell = csv.query("dataset == 'a' and method == 'full' and metric == 'F1 (instance)'").iloc[0]
    assert float(cell["mean"]) == pytest.approx(values.mean(), abs=1e-4)
    assert float(cell["sd"]) == pytest.approx(values.std(ddof=1), abs=1e-4)
    assert cell["seeds"] == 3 and cell["kind"] == "measured"
    text = f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"
    assert text in (tables / "tables" / "standard.md").read_text()


def test_one_run_has_no_deviation_and_a_refused_one_is_a_dash_with_its_reason(tables):
    table = cells(tables / "tables" / "standard.md")
    assert all("±" not in cell for cell in table["Zero-shot CLIP"])
    assert all("±" in cell for cell in table["full"][:5])
    assert table["full"][5:] == ["–"] * 5
    for kind in ("md", "tex", "html"):
        text = (tables / "tables" / f"standard.{kind}").read_text()
        assert text.count(" full was not run on b: needs patch tokens.") == 1


def test_the_docs_show_the_same_cells(tables, fake, tmp_path):
    write_json(tables / "plan.json", fake.plan)
    copy_results(tables, tmp_path / "kept.csv")
    page = tmp_path / "page.md"
    markers = "<!-- generated: results -->\n<!-- end -->"
    page.write_text(fill(markers, read_results(tmp_path / "kept.csv")))
    shown = cells(tables / "tables" / "standard.md")
    for row in shown.values():
        row[:] = [row[0], row[4], row[5], row[9]]  # mA and F1 of the two datasets
    assert list(cells(page).values())[1:] == list(shown.values())[1:]
    assert list(cells(page)) == list(shown)


def test_best_is_bold_and_second_underlined(tables):
    table = cells(tables / "tables" / "standard.md")
    assert table["full"][0].startswith("**")
    assert table["PromptPAR"][0].startswith("<u>")
    assert table["PromptPAR"][5].startswith("**")  # best where full is absent
    tex = (tables / "tables" / "standard.tex").read_text()
    assert tex.count(r"\textbf{") == 10 and tex.count(r"\underline{") == 10
    html = (tables / "tables" / "standard.html").read_text()
    assert html.count("<b>") == 10 and html.count('class="second"') == 10


def test_a_users_method_appears_and_is_tested(tables):
    for name in ("standard", "parameters", "index"):
        assert "my_method (wide)" in rows(tables / "tables" / f"{name}.md")
        assert "my_method (wide)" in (tables / "tables" / f"{name}.html").read_text()
    tests = pd.read_csv(tables / "tables" / "vs_baseline.csv")
    assert len(tests.query("method == 'my_method'")) == 4
    assert r"my\_method (wide)" in (tables / "tables" / "standard.tex").read_text()


def test_marks_agree_with_the_tests(tables):
    table = pd.read_csv(tables / "tables" / "standard.csv", keep_default_na=False)
    tests = pd.read_csv(tables / "tables" / "vs_baseline.csv")
    assert set(tests["significant"]) == {True, False}
    for test in tests.to_dict("records"):
        metric = "F1 (instance)" if test["metric"] == "F1" else test["metric"]
        place = {key: test[key] for key in ("dataset", "method", "variant")}
        mark = select(table, **place, metric=metric)["mark"].item()
        better = "↑" if test["difference"] > 0 else "↓"
        assert mark == (better if test["significant"] else "")
    assert set(select(table, method="linear_probe")["mark"]) == {""}


def test_the_caption_states_the_settings_and_the_notes_the_departures(tables):
    text = (tables / "tables" / "standard.md").read_text()
    for part in (
        "over 3 seeds",
        "Protocol embedded (version 1), backbone tiny, threshold 0.5, weights of the last epoch.",
        "F1 (instance): mean of the F1 of each image.",
        "p \\< 0.05 after Holm's correction over the 8 or 6 tests",
    ):
        assert part in text, part
    assert "native 2:1 input" not in text
    assert device_of({"device": "cpu"}) == "cpu"  # of a run that noted no more
    made_by = "commit c0ffee, torch 2.0, Fake CPU, 1 thread: "
    assert made_by in (tables / "tables/notes.md").read_text()
    for name in ("notes.md", "index.md", "index.html"):
        page = (tables / "tables" / name).read_text()
        assert page.count("native 2:1 input") == 1 and page.count("Linear probe: lr") == 1


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Dataset a with unknown labels and remarks, b with neither, c with both but no run."""
    root = tmp_path_factory.mktemp("odd")
    skill = {"zero_shot": 0.2, "linear_probe": 1.0}
    results = fake_results(root, ("a", "b"), ("standard",), skill, {0, 1}, images=30)
    a, b = (read_manifest(results.manifests[name]) for name in ("a", "b"))
    said = (f"{a.root}/train: 3 files\nare no images", "counts were not checked")
    write_manifest(replace(a, remarks=said), results.manifests["a"])
    labels = [column for column in b.rows if column.startswith("label:")]
    known = b.rows.assign(
        **{c: b.rows[c].where(b.rows["split:standard"] != "test", 1) for c in labels}
    )
    write_manifest(replace(b, rows=known), results.manifests["b"])
    write_manifest(replace(a, dataset="c", remarks=said), root / "manifests/c.parquet")
    return Fake(results)


def test_captions_and_notes_tell_what_is_odd_about_the_data(odd):
    one = {"title": "T", "metrics": ["mA"]}
    defined = {name: one | {"places": [f"{name}/standard"]} for name in ("a", "b")}
    defined |= {"both": one, "cost": {"title": "C", "kind": "cost"}}
    defined |= {"bias": {"title": "B", "kind": "selection", "metrics": ["mA"]}}
    more = {name: odd.root / f"{name}.csv" for name in ("cost", "selection")}
    for name, text in (("cost", COST), ("selection", SELECTION)):
        more[name].write_text(text)
    out = odd.write("tables", defined, **more)
    unknown = "Unknown labels in the test images of a are left out. See notes.md: remarks on a."
    for name in ("a", "both", "cost", "bias"):
        assert (out / f"{name}.md").read_text().count(unknown) == 1, name
    text = (out / "b.md").read_text()
    assert "Unknown labels" not in text and "notes.md" not in text
    notes = (out / "notes.md").read_text()
    lines = "- a/train: 3 files are no images\n- counts were not checked\n"
    assert f"## Remarks on a\n\n{lines}" in notes and notes.count("Remarks on") == 1


def test_the_caption_follows_how_unknown_labels_are_treated(odd):
    for file in odd.root.glob("runs/a/standard/*/default/config.json"):
        config = read_json(file)
        config["protocol"]["unknown_labels"] = {"value": "negative", "from": "x.yaml"}
        write_json(file, config)
    out = odd.write("negative", {"both": {"title": "T", "metrics": ["mA"]}})
    assert "in the test images of a count as negative." in (out / "both.md").read_text()


def test_latex_is_balanced_escaped_and_uses_booktabs(tables):
    tex = (tables / "tables" / "standard.tex").read_text()
    label = r"\label{tab:standard}"
    for command in (r"\toprule", r"\midrule", r"\bottomrule", r"\caption{", label):
        assert tex.count(command) == 1
    opened = re.findall(r"\\begin\{([\w*]+)\}", tex)
    assert sorted(opened) == sorted(re.findall(r"\\end\{([\w*]+)\}", tex))
    assert tex.count("{") - tex.count(r"\{") == tex.count("}") - tex.count(r"\}")
    assert not re.search(r"(?<!\\)[_#]", tex.replace("tab:standard", ""))
    assert tex.isascii()
    body = tex.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert {line.count("&") for line in body.strip().splitlines()} == {10}


def test_special_characters_are_escaped():
    assert latex(r"50% of a_b & {c} #1 $x ~ ^ \d [e") == (
        r"50\% of a\_b \& \{c\} \#1 \$x \textasciitilde{} \textasciicircum{} \textbackslash{}d {[}e"
    )
    assert latex(Cell(85.456, 0.3, 3, "↑", 1).text) == r"85.46 $\pm$ 0.30$\uparrow$"
    assert markdown("VTB* | <a>") == r"VTB\* \| \<a>"


def test_no_average_over_a_gap():
    assert cell_of([50.0, float("nan"), 60.0]).text == "–"
    assert cell_of([50.0]).text == "50.00"


def test_departures_are_those_of_the_protocol_and_of_presets():
    spec = resolve("linear_probe", "default", read_protocol("paper"))
    assert departures([{"method": "linear_probe", **spec}]) == []
    spec = resolve("linear_probe", "default", read_protocol("paper", ("tiny_clip",)))
    assert departures([{"method": "linear_probe", **spec}]) == [
        "Linear probe: epochs 18, lr 0.02"
    ]  # fmt: skip


def test_departures_tell_a_variants_values_from_its_methods():
    lr = {section: {"value": 0.5, "from": f"config/presets/a.yaml: {section}"} for section in
          ("lora", "lora/text")}  # fmt: skip
    spec = resolve("lora", "default", read_protocol("paper"))
    specs = [{"method": "lora", **spec, "params": {"lr": value}} for value in lr.values()]
    assert departures(specs) == ["LoRA: lr 0.5", "LoRA (text): lr 0.5"]


def test_attributes_and_index(tables):
    attributes = pd.read_csv(tables / "tables" / "per_attribute.csv")
    assert set(attributes["attribute"]) == {"hat", "bag", "a_b"}
    index = (tables / "tables" / "index.md").read_text()
    assert "![A curve](../figures/curve.png)\n\n**A curve.** It \\<rises>.\n" in index
    assert "<b>A curve.</b> It &lt;rises&gt;." in (tables / "tables" / "index.html").read_text()
    assert "](tuning.md)" in index
    links = re.findall(r"\]\(([^)]+)\)", index)
    links += re.findall(r'href="([^#"]+)"', (tables / "tables" / "index.html").read_text())
    assert all((tables / "tables" / link).exists() for link in links)


def test_pages_open_offline(tables):
    """They load nothing: pictures are inside, and nothing comes from elsewhere."""
    pages = [*(tables / "tables").rglob("*.html")]
    assert len(pages) >= 10
    for page in pages:
        text = page.read_text()
        assert not re.search(r"https?:|<script|<link", text), page
        assert all(
            s.startswith("data:image/png;base64,") for s in re.findall(r'src="([^"]+)', text)
        )
    index = (tables / "tables" / "index.html").read_text()
    ids = re.findall(r' id="([^"]+)"', index)
    assert len(set(ids)) == len(ids) and set(re.findall(r'href="#([^"]+)"', index)) == set(ids)


def test_writing_twice_gives_the_same_bytes(tables):
    names = [path.relative_to(tables / "tables") for path in (tables / "tables").rglob("*.*")]
    assert len(names) > 4 * 10
    for name in names:
        assert (tables / "tables" / name).read_bytes() == (tables / "again" / name).read_bytes()


def test_papers_tables_are_written_without_our_rows(tables):
    for number in range(1, 10):
        for kind in FORMATS:
            text = (tables / f"tables/paper/table_{number}.{kind}").read_text()
            assert "easured here" not in text.replace("none was measured here", "")
    assert not (tables / "tables/mm_layers.md").exists()  # none of its rows is in the plan


def test_cite_reads_the_csvs(tables):
    assert in_table(tables / "tables/standard.csv")[1] == ("a", "b")
    assert in_table(tables / "tables/paper/table_1.csv") == ((), ())


def test_a_split_that_no_table_names_has_one():
    (other,) = (d for d in read_definitions() if d.split == "other" and d.task == "par")
    assert other.has_split("peta_to_pa100k") and other.has_split("trainval_2")
    assert not any(other.has_split(split) for split in ("standard", "trainval", "zero_shot"))


@pytest.fixture(scope="module")
def peta(tmp_path_factory):
    """A plan with two datasets of the papers."""
    root = tmp_path_factory.mktemp("peta")
    skill = {"zero_shot": 0.2, "linear_probe": 1.0, "my_method": 1.2}
    skill |= {f"promptpar/{variant}": 0.9 for variant in ("region_deep", "mlp", "mm2")}
    results = fake_results(root, ("peta", "rapv1"), ("trainval",), skill, images=60)
    for file in root.glob("runs/*/*/promptpar/*/config.json"):
        settings = resolve("promptpar", file.parent.name, read_protocol("embedded"))
        write_json(file, {**read_json(file), "params": settings["params"]})
    return Fake(results).write("tables")


def test_published_and_measured_rows_stand_apart_and_definitions_too(peta):
    text = (peta / "paper/table_1.md").read_text()
    shown = cells(peta / "paper/table_1.md")
    heads = shown["Method"]
    published = text.index("***Published: Table I of Wang et al. (IEEE TCSVT 2024)***")
    assert published < text.index("| PromptPAR |") < text.index("***Measured here***")
    assert text.index("***Measured here***") < text.index("| my_method |")
    ours, theirs = (dict(zip(heads, shown[n], strict=True)) for n in ("my_method", "PromptPAR"))
    assert theirs["PETA F1 (instance)"] == "89.18" and theirs["Threshold"] == "0.45"
    assert theirs["PETA F1 (harmonic)"] == "–" == theirs["PETA F1 (not stated)"]
    assert "±" in ours["PETA F1 (instance)"] and "±" in ours["PETA F1 (harmonic)"]
    assert ours["PETA F1 (not stated)"] == "–" and ours["Threshold"] == "0.5"
    assert ours["PETA F1 (instance)"] != ours["PETA F1 (harmonic)"]
    assert {ours[head] for head in heads if head.startswith("PA100K")} == {"–"}
    above, _, below = text.partition("***Measured here***")
    assert not re.search(r"\*\*\d|<u>", above) and re.search(r"\*\*\d", below)
    csv = pd.read_csv(peta / "paper/table_1.csv", dtype=str, keep_default_na=False)
    assert set(csv["kind"]) == {"published", "measured"}
    row = csv.query("name == 'SCRL' and dataset == 'peta' and metric == 'mA'").iloc[0]
    assert row["mean"] == "87.2" and row["sd"] == row["method"] == "" != row["source"]
    row = csv.query("name == 'HPNet' and dataset == 'peta' and metric == 'Prec'").iloc[0]
    assert row["mean"] == "84.92" and row["note"].startswith("OCR decimal mark repaired")
    html = (peta / "paper/table_1.html").read_text()
    assert html.count('<tr class="heading">') == 2
    tex = (peta / "paper/table_1.tex").read_text()
    assert r"\emph{Measured here}" in tex and tex.count(r"\midrule") == 4
    compared, _ = in_table(peta / "paper/table_1.csv")
    assert set(compared) == {"zero_shot", "linear_probe", "my_method", "promptpar"}


def test_tables_of_variants_read_their_settings(peta):
    """The shipped ablations, ours and the paper's, of whatever the plan runs of them."""
    assert not (peta / "mm_layers.md").exists()  # of standard splits, which the plan has not
    assert "my_method" in cells(peta / "trainval.md") and not (peta / "other_splits.md").exists()
    shown = cells(peta / "paper/table_6.md")
    assert [shown[f"PromptPAR ({name})"][:2] for name in ("mlp", "region deep", "mm2")] == [
        ["mlp", "–"],
        ["mm_former", "1"],
        ["mm_former", "2"],
    ]
    assert "PromptPAR (mm4)" not in shown and not (peta / "initialisation.md").exists()
    assert cells(peta / "paper/table_6.md")["PromptPAR (mm2)"][:3] == ["mm_former", "2", "0.5"]
    shown = cells(peta / "paper/table_7.md")
    ticks = dict(zip(shown["Method"], shown["PromptPAR (region deep)"], strict=True))
    ticked = [name for name, text in ticks.items() if text == "✓"]
    assert ticked == ["PTM", "PTune-V", "PTune-T", "RegionPTune", "ExpandSen"]
    assert shown["Row 5"][:7] == shown["PromptPAR (region deep)"][:7]


def test_a_cell_mixes_no_definitions(peta):
    """Columns of F1 hold what their heading says, on every dataset."""
    long = read_long(peta.parent / "long.parquet")
    csv = pd.read_csv(peta / "paper/table_2.csv", keep_default_na=False)
    for metric, label in (("F1_instance", "F1 (instance)"), ("F1_harmonic", "F1 (harmonic)")):
        place = {"dataset": "rapv1", "method": "my_method"}
        values = select(long, **place, subset="test", attribute="", metric=metric)["value"]
        cell = select(csv, **place, metric=label).iloc[0]
        assert float(cell["mean"]) == pytest.approx(100 * values.mean(), abs=1e-5)
    ours = csv.query("method == 'my_method' and metric == 'F1 (not stated)'")
    assert list(ours["mean"]) == ["", ""] and list(ours["dataset"]) == ["rapv1", "rapv2"]


COST = """\
dataset,split,method,variant,device,threads,parameters_allocated,parameters_trained,\
parameters_effective,share_of_full,adapter_bytes,gflop_per_image,train_images_per_s,latency_ms_1,\
images_per_s_1,images_per_s_8,images_per_s_32,train_peak_mb,predict_peak_mb,seconds_fit,\
device_of_runs,energy_j_per_image
a,standard,linear_probe,default,Small CPU,1,2000,1000,1000,0.5,4096,0.0123,100.5,2.5,400,500,600,\
50,40,12.5,Small CPU,
a,standard,full,default,Big GPU,,3000,3000,2900,100,12288,0.5,1000,1,1000,2000,4000,900,800,3.5,\
Big GPU,0.2
a,standard,zero_shot,default,Small CPU,1,0,0,0,0,,0.01,,2,500,600,700,,30,,,
b,standard,other,default,Small CPU,1,0,0,0,0,,0.01,,2,500,600,700,,30,,,
"""
SELECTION = """\
dataset,split,method,variant,seed,metric,last_epoch,validation,released,epoch_last,\
epoch_validation,epoch_released
a,standard,linear_probe,default,0,mA,0.70,0.71,0.74,8,7,3
a,standard,linear_probe,default,1,mA,0.72,0.73,0.74,8,7,3
a,standard,linear_probe,default,0,F1_instance,0.50,,0.54,8,7,3
a,standard,linear_probe,default,1,F1_instance,0.50,0.51,0.54,8,7,3
"""


@pytest.fixture(scope="module")
def ours(fake):
    (fake.root / "cost.csv").write_text(COST)
    (fake.root / "selection.csv").write_text(SELECTION)
    more = {name: fake.root / f"{name}.csv" for name in ("cost", "selection")}
    return fake.write("ours", OURS, **more)


def test_leading_columns_come_from_settings(ours):
    shown = cells(ours / "components.md")
    assert shown["Method"][:6] == ["Backbone", "Trained", "Rate", "Fast", "Ours", "Layers"]
    assert shown["Linear probe"][:6] == ["tiny", "12,345", "0.01", "✓", "✓", "–"]
    assert shown["my_method (wide)"][:6] == ["tiny", "12,345", "0.01", "✓", "", "–"]
    assert "Parameters as on a/standard." in (ours / "components.md").read_text()


def test_the_average_is_over_places_seed_by_seed_and_never_over_a_gap(ours, fake):
    shown = dict(zip(cells(ours / "components.md")["Method"], range(99), strict=False))
    column = shown["Average mA"]
    assert cells(ours / "components.md")["full"][column] == "–"
    long = read_long(fake.root / "long.parquet")
    probe = select(long, method="linear_probe", subset="test", attribute="", metric="mA")
    values: Any = [100 * group["value"].mean() for _, group in probe.groupby("seed")]
    expected = cell_of(values).text
    assert cells(ours / "components.md")["Linear probe"][column].strip("*<u>/") == expected


def test_marks_against_a_tables_own_baseline(ours, fake):
    pairs = pd.read_csv(fake.root / "stats/all_pairs.csv").query("dataset == 'a'")
    csv = pd.read_csv(ours / "probe.csv", keep_default_na=False)
    for method in ("zero_shot", "linear_probe"):
        both = {method, "promptpar"}
        here = select(pairs, metric="mA")
        names = zip(here["method"], here["against_method"], strict=True)
        test = here[[{*pair} == both for pair in names]].iloc[0]
        above = (test["difference"] > 0) == (test["method"] == method)
        mark = ("↑" if above else "↓") if test["significant"] else ""
        assert select(csv, method=method, metric="mA")["mark"].item() == mark
    assert set(csv["mark"]) >= {"↓"}
    assert "above or below PromptPAR in mA or F1" in (ours / "probe.md").read_text()


def test_a_table_without_its_rows_is_left_out(ours):
    names = {path.stem for path in ours.glob("*.html")}
    assert names == {"index", "components", "probe", "cost", "bias"}


def test_no_column_of_the_cost_table_mixes_devices(ours):
    shown = cells(ours / "cost.md")
    assert list(shown)[2:] == ["Zero-shot CLIP", "Linear probe", "full"]
    heads = shown["Method"]
    assert heads[:3] == ["Parameters Allocated", "Parameters Trained", "Parameters Effective"]
    probe, full, zero = (
        dict(zip(heads, shown[name], strict=True))
        for name in ("Linear probe", "full", "Zero-shot CLIP")
    )
    assert probe["Small CPU, 1 thread images/s at 1"] == "400"
    assert full["Small CPU, 1 thread images/s at 1"] == "–"
    assert full["Big GPU images/s at 1"] == "1,000" and full["Big GPU J/image"] == "0.20"
    assert probe["Big GPU images/s at 1"] == "–" == zero["Adapter (kB)"]
    assert probe["Adapter (kB)"] == "4.1" and probe["Parameters Trained"] == "1,000"
    assert "Small CPU, 1 thread J/image" not in heads  # nothing measured it
    text = (ours / "cost.md").read_text()
    assert "device: Small CPU, 1 thread; Big GPU" in text and "Measured on a/standard" in text


def test_ppt_discounts_a_score_by_trained_parameters(ours):
    assert ppt(80, 0) == 80
    assert ppt(80, 1e7) == pytest.approx(80 * 2.718281828**-0.30103, rel=1e-6)
    csv = pd.read_csv(ours / "cost.csv").query("metric == 'ppt'").set_index("method")
    mean = (
        pd.read_csv(ours / "components.csv")
        .query("dataset == 'a' and metric == 'mA' and method == 'full'")["mean"]
        .item()
    )
    assert csv.loc["full", "mean"] == pytest.approx(ppt(mean, 3000), abs=1e-4)


def test_selection_bias_is_the_test_maximum_minus_what_is_fair(ours):
    shown = cells(ours / "bias.md")
    assert "***a/standard***" in shown
    row = dict(zip(shown["Method"], shown["Linear probe"], strict=True))
    assert row["mA last epoch"] == "71.00 ± 1.41" and row["mA test maximum"] == "74.00 ± 0.00"
    assert row["mA over validation"] == "2.00 ± 1.41" and row["mA over last"] == "3.00 ± 1.41"
    assert row["F1 (instance) best validation"] == "–" == row["F1 (instance) over validation"]
    assert row["F1 (instance) over last"] == "4.00 ± 0.00"
    text = (ours / "bias.md").read_text()
    assert "selecting epochs on the test split gives" in text and "it is no result" in text


def test_an_empty_selection_or_no_cost_makes_no_table(fake):
    (fake.root / "empty.csv").write_text(SELECTION.splitlines()[0] + "\n")
    out = fake.write("none", OURS, selection=fake.root / "empty.csv")
    assert not (out / "bias.md").exists() and not (out / "cost.md").exists()


def test_the_shipped_definitions_are_valid():
    names = [definition.name for definition in read_definitions()]
    assert names[:2] == ["standard", "zero_shot"]
    published = [f"paper/table_{n}" for n in range(1, 10)]
    published += ["report/table_2_1", "report/table_2_2", "paper/reid"]
    assert [name for name in names if "/" in name] == published


def test_the_documents_example_is_valid(tmp_path):
    text = (ROOT / "docs/configuration.md").read_text()
    example = text[text.index("my_table:") :].partition("```")[0]
    (tmp_path / "tables.yaml").write_text(example)
    (definition,) = read_definitions(str(tmp_path / "tables.yaml"))
    assert [row.name for row in definition.published_rows()][-1] == "PromptPAR"


def test_rows_that_ran_on_some_places_only_can_be_left_out():
    """Nothing but the names of experiments is read."""
    names = [("a", "lora"), ("b", "lora"), ("a", "coop"), ("c", "vpt")]
    places = [("a", "standard"), ("b", "standard")]
    keys = ("dataset", "split", "method", "variant")
    found = [dict(zip(keys, (d, "standard", m, "default"), strict=True)) for d, m in names]
    results: Any = SimpleNamespace(experiments=found, places=lambda _: places)
    for complete, wanted in ((False, ["lora", "lora", "coop"]), (True, ["lora", "lora"])):
        definition = Definition("t", "T", complete=complete)
        assert [e["method"] for e in Results.shown(results, definition)] == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"titel": "x"}, "unknown key 'titel'; did you mean 'title'?"),
        ({"title": None}, "title: None is not of type 'string'"),
        ({"metrics": ["ma1"]}, "metrics: unknown metric 'ma1'"),
        ({"metrics": ["F1_instanc"]}, "unknown metric 'F1_instanc'; did you mean 'F1_instance'?"),
        ({"rows": ["promptpr"]}, "rows: unknown method 'promptpr'; did you mean 'promptpar'?"),
        ({"rows": ["promptpar/mm3"]}, "mine.rows: method 'promptpar' has no variant 'mm3'"),
        ({"baseline": "lorra"}, "baseline: unknown method 'lorra'; did you mean 'lora'?"),
        ({"split": "standrd"}, "did you mean 'standard'?"),
        ({"places": ["a"]}, "dataset/split, e.g. peta/standard"),
        ({"split": "standard", "places": ["a/standard"]}, "exclude each other"),
        ({"task": "reid", "metrics": ["mA"]}, "metrics: unknown metric 'mA'; did you mean 'mAP'?"),
        ({"kind": "selection", "task": "reid"}, "'task' means nothing in a table of kind selec"),
        ({"kind": "costs"}, "kind: 'costs' is not one of"),
        ({"kind": "selection", "metrics": ["F1_label"]}, "metrics: unknown metric 'F1_label'"),
        ({"kind": "selection", "metrics": ["mA", "AP"]}, "metrics: unknown metric 'AP'"),
        ({"kind": "cost", "metrics": ["mA"]}, "'metrics' means nothing in a table of kind cost"),
        ({"columns": [{"label": "x", "measured": "mm_layer"}]}, "did you mean 'mm_layers'?"),
        ({"columns": [{"label": "x", "tick": {"above": 0}}]}, "name it with 'measured'"),
        ({"columns": [{"measured": "lr"}]}, "'label' is missing"),
        ({"published": {"file": "x.csv", "datasets": {"A": "a/standard"}}}, "there is no"),
        (
            {"columns": [{"label": "x", "published": "{venue}", "tick": {"rows": ["lora"]}}],
             "published": {"file": "par_standard.csv", "datasets": {"PETA": "w/standard"}}},
            "column 'x' wants 0 or 1 for a tick, and 'DeepMAR' has 'ACPR'",
        ),
    ],
)  # fmt: skip
def test_mistakes_in_definitions_are_named(tmp_path, change, message):
    file = tmp_path / "tables.yaml"
    file.write_text(json.dumps({"mine": {"title": "Mine", **change}}))
    with pytest.raises(PedbenchError) as error:
        read_definitions(str(file))
    assert message in str(error.value) and "mine" in str(error.value)


def test_a_name_that_is_taken_is_refused(tmp_path):
    for name, message in (("index", "has a file of that name"), ("a b", "does not match")):
        file = tmp_path / "tables.yaml"
        file.write_text(json.dumps({name: {"title": "Mine"}}))
        with pytest.raises(PedbenchError, match=message):
            read_definitions(str(file))


def test_leftovers_go_and_an_unwritable_folder_is_explained(tmp_path):
    results = fake_results(tmp_path, splits=("standard",), images=30)
    fake = Fake(results, baseline=None)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "stale.csv").touch()
    fake.write("tables", OURS)
    assert not (tmp_path / "tables" / "stale.csv").exists()
    shutil.rmtree(tmp_path / "tables")
    (tmp_path / "tables").touch()
    with pytest.raises(PedbenchError, match="tables: cannot be written"):
        fake.write("tables", OURS)
