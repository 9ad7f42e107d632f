"""What papers print reaches the tables character by character, and its F1 is told apart."""

from __future__ import annotations

import csv
from collections import Counter

import pandas as pd
import pytest

from pedbench import published
from pedbench.config import ROOT
from pedbench.contracts import PedbenchError
from pedbench.tables.definitions import read_definitions
from pedbench.tables.model import ABSENT, TICK
from pedbench.tables.render import to_csv, to_html, to_latex, to_markdown
from pedbench.tables.scores import label_of, scores_table
from pedbench.tables.source import Results

WITH_PUBLISHED = [d for d in read_definitions() if d.published is not None]
TESTS = ("dataset", "split", "metric", "method", "variant", "difference", "significant")
VERSUS = pd.DataFrame(columns=TESTS)
NOTHING = Results([], pd.DataFrame(), {}, VERSUS, pd.DataFrame(), 0.05, None)


def lines(file: str) -> list[dict[str, str]]:
    with (ROOT / "resources/published" / file).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def chosen(definition):
    """The CSV's lines that ``definition`` shows."""
    wanted = definition.published
    return [
        line
        for line in lines(wanted.file)
        if line["dataset"] in wanted.datasets
        and all(line[column] in values for column, values in wanted.where.items())
    ]


@pytest.mark.parametrize("definition", WITH_PUBLISHED, ids=lambda d: d.name)
def test_every_cell_is_the_csvs(definition):
    """Nothing is rounded, moved, lost or doubled: by row, dataset and metric."""
    table = scores_table(definition, NOTHING)
    assert table is not None and len(table.blocks) == 1
    templates = [definition.published.name, *(column.published for column in definition.columns)]
    expected = Counter(
        (
            *(t.format_map(line).strip() for t in templates),
            *(line["dataset"], label_of(metric), line[metric]),
        )
        for line in chosen(definition)
        for metric in definition.metrics
        if line.get(metric)
    )
    shown = Counter(
        (
            row.name,
            *row.lead[: len(definition.columns)],
            column.group,
            column.label.split(" (")[0],
            cell.text,
        )
        for row in table.blocks[0].rows
        for column, cell in zip(table.columns, row.cells, strict=True)
        if cell.text != ABSENT
    )
    raw = {"1": TICK, "0": ""}
    ticked = [column.tick is not None for column in definition.columns]

    def as_shown(entry):
        name, *rest = entry
        leads = [raw[t] if tick else t or ABSENT for t, tick in zip(rest, ticked, strict=False)]
        return (name, *leads, *rest[len(ticked) :])

    assert shown == Counter({as_shown(entry): n for entry, n in expected.items()})
    assert max(shown.values()) == 1


@pytest.mark.parametrize("definition", WITH_PUBLISHED, ids=lambda d: d.name)
def test_every_format_shows_every_printed_number(definition):
    table = scores_table(definition, NOTHING)
    assert table is not None
    numbers = Counter(cell.text for row in table.blocks[0].rows for cell in row.cells)
    del numbers[ABSENT]
    for form in (to_csv, to_markdown, to_latex, to_html):
        text = form(table)
        for number, times in numbers.items():
            assert text.count(number) >= times, (form.__name__, number)


def test_the_papers_tables_are_all_there():
    """Tables I to IX, with every line of their CSVs."""
    of_par = [d for d in WITH_PUBLISHED if d.task == "par"]
    found = Counter(line["paper_table"] for d in of_par for line in chosen(d))
    files = {d.published.file for d in of_par if d.published}
    assert found == Counter(line["paper_table"] for file in files for line in lines(file))
    assert set(found) == {"I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX"}


def test_every_published_line_of_re_identification_is_in_a_table():
    of_reid = [d for d in WITH_PUBLISHED if d.task == "reid"]
    shown = {tuple(line.items()) for d in of_reid for line in chosen(d)}
    assert shown == {tuple(line.items()) for line in lines("published_reid.csv")}


@pytest.mark.parametrize(
    ("table", "metric", "best"),
    [("paper/table_3", "mAP", "92.0"), ("paper/table_4", "Acc label", "87.16")],
)
def test_what_is_printed_as_ma_stands_under_its_own_name(table, metric, best):
    (definition,) = [d for d in WITH_PUBLISHED if d.name == table]
    shown = scores_table(definition, NOTHING)
    assert shown is not None
    assert [column.label for column in shown.columns] == [metric, "mA"]
    (row,) = [row for row in shown.blocks[0].rows if row.name == "PromptPAR"]
    assert [cell.text for cell in row.cells] == [best, ABSENT]
    assert "The printed column is headed mA" in shown.caption
    assert f"{metric}: " in shown.caption


def test_f1_is_told_apart():
    """By arithmetic in 42 of the 78 rows (resources/published/README.md), never a row of both."""
    rows = lines("par_standard.csv") + lines("par_zero_shot.csv")
    definitions = [published.f1_of(row, "unknown") for row in rows]
    assert len(rows) == 78 and definitions.count(("harmonic", "")) == 42
    assert definitions.count((published.UNSTATED, "")) == 36
    for row in rows:
        f1, threshold = published.f1_of(row, row["method"])
        if row["method"] in ("VTB", "VTB*", "PromptPAR"):
            assert (f1, threshold) == ("instance", "0.45")
        elif row["method"] == "Jia et al.":
            assert (f1, threshold) == ("harmonic", "0.5")
        else:
            assert f1 in ("harmonic", published.UNSTATED) and threshold == ""


def test_a_row_of_two_definitions_fills_two_columns():
    """VAC: the harmonic mean on PA100K, neither on RAPv2."""
    selection = published.Selection("par_standard.csv", {"PA100K": "a/standard", "RAPv2": "b/s"})
    rows = published.read_rows(selection, ["F1"], [], "test")
    (vac,) = [row for row in rows if row.name == "VAC"]
    assert vac.scores == {("a/standard", "F1_harmonic"): "87.59", ("b/s", "F1_unstated"): "77.10"}
    assert vac.notes["b/s"].startswith("OCR decimal mark repaired")


def test_one_definition_of_f1_can_be_asked_for():
    selection = published.Selection("par_standard.csv", {"PETA": "a/standard"})
    for metrics in (["F1_instance"], ["F1", "F1_instance"]):
        rows = published.read_rows(selection, metrics, [], "test")
        scores = {row.name: row.scores for row in rows}
        assert scores["VTB"] == {("a/standard", "F1_instance"): "86.71"}
        harmonic = {("a/standard", "F1_harmonic"): "86.85"}
        assert scores.get("ALM") == (harmonic if "F1" in metrics else None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "par_standrd.csv"}, "no resources/published/par_standrd.csv; did you mean"),
        ({"datasets": {"PETTA": "a/standard"}}, "has dataset 'PETTA'; did you mean 'PETA'"),
        ({"where": {"venu": ["ICCV"]}}, "no column 'venu'; did you mean 'venue'"),
        ({"where": {"year": ["1066"]}}, "has year '1066' (there are: 2015"),
        ({"name": "{metod}"}, "no column 'metod'; did you mean 'method'"),
        ({"name": "PAR", "method": "PAR"}, "two lines of resources/published/par_standard.csv"),
    ],
)
def test_mistakes_are_named(change, message):
    values = {"file": "par_standard.csv", "datasets": {"PETA": "a/standard"}, **change}
    with pytest.raises(PedbenchError, match="^here: ") as error:
        published.read_rows(published.Selection(**values), ["mA"], [], "here")
    assert message in str(error.value)
