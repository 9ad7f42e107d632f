"""The tables: right cells, marks and captions, whatever methods are there."""

from __future__ import annotations

import re
import shutil

import pandas as pd
import pytest
from helpers import SKILL, fake_results

from pedbench.collect import collect, read_long, select
from pedbench.config import ROOT, read_protocol, resolve
from pedbench.contracts import PedbenchError
from pedbench.describe import copy_results, fill, read_results
from pedbench.files import write_json
from pedbench.score import score_runs
from pedbench.stats import write_stats
from pedbench.tables import Cell, departures, latex, write_tables


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Two datasets, a user's own method ``my_method``, and one method refused on dataset b."""
    root = tmp_path_factory.mktemp("tables")
    results = fake_results(root, ("a", "b"), ("standard",), SKILL | {"my_method/wide": 1.0})
    plan = results.plan
    absent = [f for f in results.folders if f.parts[-5] == "b" and f.parts[-3] == "full"]
    for folder in absent:
        results.folders.remove(folder)
    write_json(absent[0].with_name("refused.json"), {"reason": "needs patch tokens"})
    score_runs(results.folders, results.manifests, root / "scored.json")
    collect(results.folders, root / "long.parquet")
    write_stats(results.folders, results.manifests, root / "stats", baseline="linear_probe/default")
    (root / "figures").mkdir()
    (root / "figures" / "curve.png").touch()
    args = root / "long.parquet", root / "stats", root / "figures", plan
    write_tables(*args, root / "tables")
    write_tables(*args, root / "again")
    return root


def test_cells_are_mean_and_deviation_over_seeds(tables):
    csv = pd.read_csv(tables / "tables" / "standard.csv", keep_default_na=False)
    long = read_long(tables / "long.parquet")
    place = {"dataset": "a", "method": "full", "subset": "test", "attribute": ""}
    values = 100 * select(long, **place, metric="F1_instance")["value"]
    cell = csv.query("dataset == 'a' and method == 'full' and metric == 'F1 (instance)'").iloc[0]
    assert float(cell["mean"]) == pytest.approx(values.mean(), abs=1e-4)
    assert float(cell["sd"]) == pytest.approx(values.std(ddof=1), abs=1e-4)
    assert cell["seeds"] == 3
    text = f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"
    assert text in (tables / "tables" / "standard.md").read_text()


def rows(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ")]
    return {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in lines}


def test_one_run_has_no_deviation_and_a_refused_one_is_a_dash_with_its_reason(tables):
    table = rows(tables / "tables" / "standard.md")
    assert all("±" not in cell for cell in table["Zero-shot CLIP"])
    assert all("±" in cell for cell in table["full"][:5])
    assert table["full"][5:] == ["–"] * 5
    for kind in ("md", "tex"):
        text = (tables / "tables" / f"standard.{kind}").read_text()
        assert text.count(" full was not run on b: needs patch tokens.") == 1


def test_the_docs_show_the_same_cells(tables, tmp_path):
    copy_results(tables, tmp_path / "kept.csv")
    page = tmp_path / "page.md"
    markers = "<!-- generated: results -->\n<!-- end -->"
    page.write_text(fill(markers, read_results(tmp_path / "kept.csv")))
    shown = rows(tables / "tables" / "standard.md")
    for row in shown.values():
        row[:] = [row[0], row[4], row[5], row[9]]  # mA and F1 of the two datasets
    assert list(rows(page).values())[1:] == list(shown.values())[1:]
    assert list(rows(page)) == list(shown)


def test_best_is_bold_and_second_underlined(tables):
    table = rows(tables / "tables" / "standard.md")
    assert table["full"][0].startswith("**")
    assert table["PromptPAR"][0].startswith("<u>")
    assert table["PromptPAR"][5].startswith("**")  # best where full is absent
    tex = (tables / "tables" / "standard.tex").read_text()
    assert tex.count(r"\textbf{") == 10 and tex.count(r"\underline{") == 10


def test_a_users_method_appears_and_is_tested(tables):
    assert "my_method (wide)" in rows(tables / "tables" / "standard.md")
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


def test_the_caption_states_the_settings(tables):
    text = (tables / "tables" / "standard.md").read_text()
    for part in (
        "seeds 0, 1, 2",
        "Protocol embedded (version 1)",
        "backbone tiny",
        "threshold 0.5",
        "F1 (instance): mean of the F1 of each image; weights of the last epoch.",
        "p < 0.05 after Holm's correction over the 8 tests",
        "native 2:1 input",
        "Linear probe with lr",
    ):
        assert part in text, part


def test_latex_is_balanced_escaped_and_uses_booktabs(tables):
    tex = (tables / "tables" / "standard.tex").read_text()
    for command in (
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"\caption{",
        r"\label{tab:standard}",
    ):
        assert tex.count(command) == 1
    opened = re.findall(r"\\begin\{([\w*]+)\}", tex)
    assert sorted(opened) == sorted(re.findall(r"\\end\{([\w*]+)\}", tex))
    assert tex.count("{") - tex.count(r"\{") == tex.count("}") - tex.count(r"\}")
    assert not re.search(r"(?<!\\)[_#]", tex.replace("tab:standard", ""))
    assert tex.isascii()
    body = tex.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert {line.count("&") for line in body.strip().splitlines()} == {10}


def test_latex_escapes_every_special_character():
    assert latex(r"50% of a_b & {c} #1 $x ~ ^ \d") == (
        r"50\% of a\_b \& \{c\} \#1 \$x \textasciitilde{} \textasciicircum{} \textbackslash{}d"
    )
    assert Cell(85.456, 0.3, 3, "↑", 1).latex() == r"\textbf{85.46 $\pm$ 0.30$\uparrow$}"


def test_no_average_over_a_gap():
    assert Cell(float("nan"), 0.1, 3).text == "–"


def test_departures_are_those_of_the_protocol_and_of_presets():
    spec = resolve("linear_probe", "default", read_protocol("paper"))
    assert departures([{"method": "linear_probe", **spec}]) == []
    spec = resolve("linear_probe", "default", read_protocol("paper", ("tiny_clip",)))
    assert departures([{"method": "linear_probe", **spec}]) == [
        "Departures from the paper's protocol: Linear probe with epochs 18, lr 0.02"
    ]


def test_departures_tell_a_variants_values_from_its_methods():
    lr = {section: {"value": 0.5, "from": f"config/presets/a.yaml: {section}"} for section in
          ("lora", "lora/text")}  # fmt: skip
    spec = resolve("lora", "default", read_protocol("paper"))
    specs = [{"method": "lora", **spec, "params": {"lr": value}} for value in lr.values()]
    assert departures(specs) == [
        "Departures from the paper's protocol: LoRA with lr 0.5; LoRA (text) with lr 0.5"
    ]


def test_the_documents_lines_recompute_every_p_value(tables, monkeypatch):
    monkeypatch.chdir(tables)
    (tables / "results").symlink_to(tables)
    code = (ROOT / "docs" / "statistics.md").read_text().split("```python")[1].split("```")[0]
    found: dict[str, pd.DataFrame] = {}
    exec(code, found)
    tests = found["tests"]
    assert list(tests["p_again"]) == pytest.approx(list(tests["p"]), rel=1e-3)


def test_attributes_and_index(tables):
    attributes = pd.read_csv(tables / "tables" / "attributes.csv")
    assert set(attributes["attribute"]) == {"hat", "bag", "a_b"}
    index = (tables / "tables" / "index.md").read_text()
    assert "](../figures/curve.png)" in index and "](tuning.md)" in index
    links = re.findall(r"\]\(([^)]+)\)", index)
    assert all((tables / "tables" / link).exists() for link in links)


def test_writing_twice_gives_the_same_bytes(tables):
    names = sorted(path.name for path in (tables / "tables").iterdir())
    for name in names:
        assert (tables / "tables" / name).read_bytes() == (tables / "again" / name).read_bytes()


def test_leftovers_go_and_an_unwritable_folder_is_explained(tmp_path):
    results = fake_results(tmp_path, splits=("standard",), images=30)
    score_runs(results.folders, results.manifests, tmp_path / "scored.json")
    collect(results.folders, tmp_path / "long.parquet")
    write_stats(results.folders, results.manifests, tmp_path / "stats", baseline=None, resamples=20)
    args = tmp_path / "long.parquet", tmp_path / "stats", tmp_path / "figures", results.plan
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "stale.csv").touch()
    write_tables(*args, tmp_path / "tables")
    assert not (tmp_path / "tables" / "stale.csv").exists()
    assert "↑ ↓" not in (tmp_path / "tables" / "standard.md").read_text()
    shutil.rmtree(tmp_path / "tables")
    (tmp_path / "tables").touch()
    with pytest.raises(PedbenchError, match="tables: cannot be written"):
        write_tables(*args, tmp_path / "tables")
