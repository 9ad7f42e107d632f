from __future__ import annotations

import re
from datetime import date
from typing import Any

import pytest
import yaml

from pedbench import cite, registry, scaffold
from pedbench.cli import main
from pedbench.config import ROOT
from pedbench.contracts import PedbenchError
from pedbench.registry import Kind

METHODS: list[tuple[Kind, str]] = [("method", name) for name in registry.methods()]
DATASETS: list[tuple[Kind, str]] = [("dataset", name) for name in registry.datasets()]
SHIPPED = METHODS + DATASETS


def title(entry: str) -> str:
    found = re.search(r"^\s*title = \{(.*?)\},$", entry, re.DOTALL | re.MULTILINE)
    assert found, f"no title in {entry}"
    return re.sub(r"[^a-z]", "", found[1].lower())


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_what_is_to_be_cited_is_bibtex(kind, name):
    text = registry.bibtex(kind, name)
    assert text is not None, f"{kind}s/{name}.py has no BIBTEX"
    found = cite.entries(text)
    assert "\n".join(found.values()).split() == text.split(), "something besides entries"
    for entry in found.values():
        assert entry.count("{") == entry.count("}"), entry
        for field in ("author", "title", "year"):
            assert re.search(rf"^\s*{field} = \{{.+", entry, re.MULTILINE), f"{field}: {entry}"


def test_one_work_has_one_entry():
    every = [cite.CLIP, *(registry.bibtex(kind, name) or "" for kind, name in SHIPPED)]
    pairs = {(key, entry) for text in every for key, entry in cite.entries(text).items()}
    assert len(pairs) == len({key for key, _ in pairs}), "one key, two texts"
    assert len(pairs) == len({title(entry) for _, entry in pairs}), "one title, two keys"


def test_a_plan_is_cited_once_per_work(capsys):
    assert main(["cite", "--configfile", str(ROOT / "config/config.yaml")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("% the suite\n@software{pedbench,")
    assert re.search(r"% the backbone, zero_shot, linear_probe.*\n@inproceedings\{radford", shown)
    assert shown.count("@inproceedings{radford2021clip,") == 1
    assert "states nothing" not in shown
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f"title = {{{cff['title']}}}" in shown and f"version = {{{cff['version']}}}" in shown


def test_a_table_is_cited(tmp_path, capsys):
    table = tmp_path / "standard.csv"
    table.write_text("dataset,method\nsynthetic_a,promptpar\nsynthetic_b,promptpar\n")
    assert main(["cite", "--table", str(table)]) == 0
    shown = capsys.readouterr().out
    assert "@article{wang2024promptpar," in shown and "kumar2022" not in shown
    table.write_text("metric\nmA\n")
    for file, reason in (
        (table, "no column 'method'"),
        (tmp_path / "none.csv", "No such file"),
        (tmp_path / "long.parquet", "can't decode"),
    ):
        (tmp_path / "long.parquet").write_bytes(b"PAR1\xff")
        with pytest.raises(PedbenchError, match=f"{file.name}: names no .*{reason}.*give a CSV"):
            cite.in_table(file)


def test_a_file_that_states_nothing_is_named_not_refused(tmp_path, monkeypatch):
    for kind, text in {
        "method": '"""Mine."""\n',
        "dataset": 'class Dataset:\n    SPEC = DatasetSpec(citation="Somebody,\\n  2020")\n',
    }.items():
        (tmp_path / f"{kind}s").mkdir()
        (tmp_path / f"{kind}s" / f"my_{kind}.py").write_text(text)
    monkeypatch.setattr(registry, "_PACKAGE", tmp_path)
    shown = cite.bibliography(["my_method"], ["my_dataset"])
    assert shown.endswith(
        "% methods/my_method.py states nothing to cite; give it a BIBTEX\n\n"
        "% my_dataset: Somebody, 2020\n"
    )


@pytest.mark.parametrize("kind", ["method", "dataset"])
def test_a_scaffold_says_what_to_fill_in(kind, tmp_path, monkeypatch):
    scaffold.create(kind, "demo", tmp_path)
    monkeypatch.setattr(registry, "_PACKAGE", tmp_path)
    assert registry.bibtex(kind, "demo") is None
    text = (tmp_path / f"{kind}s/demo.py").read_text().replace("\n# ", "\n")
    assert "BIBTEX" in text and list(cite.entries(text)) == ["(key)"]
    if kind == "method":
        assert list(registry.header("demo")) == list(registry.HEADER)
        assert registry.notes("demo").startswith("(Where and why")


def test_a_citation_file_as_bibtex(monkeypatch):
    cff: dict[str, Any] = {
        "authors": [{"family-names": "Doe", "given-names": "Jo"}, {"name": "The team"}]
    }
    cff |= {"title": "T", "version": "1"}
    monkeypatch.setattr(cite, "read_yaml", lambda _: cff)
    assert "author = {Doe, Jo and {The team}}" in cite.suite() and "year" not in cite.suite()
    cff["date-released"] = date(2026, 1, 31)
    assert "  year = {2026},\n" in cite.suite()
