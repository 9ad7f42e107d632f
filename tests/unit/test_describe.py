"""What the method files say of themselves is complete and true, and the docs repeat it."""

from __future__ import annotations

import copy
import re

import pytest
import torch

from pedbench import describe, registry
from pedbench.cli import main
from pedbench.config import files_of
from pedbench.contracts import Attribute, PedbenchError, ReidSettings, Task
from pedbench.files import write_json
from pedbench.nn.backbone import shape_only

# for which the headers count parameters: RAPv1, or, of re-identification alone, Market-1501
ATTRIBUTES = {"par": 51, "reid": 30}
IDENTITIES, CAMERAS = 751, 6
COUNT = re.compile(r"([\d,]+) (?:at (ViT-B/16|ViT-L/14)|whatever the backbone)")


@pytest.mark.parametrize("name", registry.methods())
def test_every_method_opens_alike(name):
    header = registry.header(name)
    assert list(header) == list(registry.HEADER), "keywords of the docstring, in this order"
    assert all(header.values())
    command = rf"snakemake --cores all results/{name}/tables --config results=results/{name} "
    places = "('datasets=\\[synthetic_reid/reid\\]' )?"
    assert re.fullmatch(rf"{command}{places}'methods=\[\w+(/\w+)?,{name}(/\w+)?\]'", header["Run"])
    assert describe.about(name), "the first line is 'Name: what it is'"


@pytest.fixture(scope="module")
def towers():
    return {name: shape_only(name.replace("/", "-")) for name in ("ViT-B/16", "ViT-L/14")}


@pytest.mark.parametrize("name", registry.methods())
def test_parameters_of_the_header_are_those_that_train(name, towers):
    """The first count of each tower is the default's."""
    kind = registry.class_attribute(name, "tasks")[0]
    count = ATTRIBUTES[kind]
    attributes = tuple(Attribute(f"a{i}", "whole", f"with {i}", f"no {i}") for i in range(count))
    losses = ReidSettings("cross_entropy", 1, 0.35, 30, 0.1, "triplet", 1, 0.3, "before")
    task = Task(kind, attributes, (0.5,) * count, "released", (), IDENTITIES, CAMERAS, losses)
    found = COUNT.findall(registry.header(name)["Parameters"])
    stated = {t: count for count, tower in reversed(found) for t in ([tower] if tower else towers)}
    counted = {}
    for tower, backbone in towers.items():
        backbone = copy.deepcopy(backbone)  # methods change it
        with torch.device("meta"):
            model = registry.load_method(name)(registry.load_params(name, {})).build(backbone, task)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        counted[tower] = f"{trained:,}"
    assert stated == counted


def test_the_pages_are_what_the_files_say(capsys):
    assert main(["docs", "--check"]) == 0, capsys.readouterr().err


@pytest.fixture
def pages(tmp_path):
    """A copy of the generated pages and of their numbers, to be spoiled."""
    for name in (*describe.WITH_RESULTS, describe.METHODS, describe.RESULTS):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((describe.ROOT / name).read_text())
    describe.write_pages(tmp_path)
    return tmp_path


def test_drift_is_refused_by_name_and_mended(pages):
    describe.check_pages(pages)
    for page, old, new in (
        (describe.METHODS, "learning rate", "speed of learning"),
        ("README.md", "| Linear probe | ", "| Linear probe | 1"),
    ):
        text = (pages / page).read_text()
        (pages / page).write_text(text.replace(old, new))
        with pytest.raises(PedbenchError, match=f"^{page}: .*run 'pedbench docs'"):
            describe.check_pages(pages)
        assert describe.write_pages(pages) == [page]
        assert (pages / page).read_text() == text
    (pages / describe.METHODS).unlink()
    assert describe.write_pages(pages) == [describe.METHODS]


def test_new_numbers_reach_every_page(pages):
    file = pages / describe.RESULTS
    old = describe.read_results(file).query("method == 'linear_probe'")["mean"].iloc[0]
    file.write_text(file.read_text().replace(f",{old:.6f},", ",12.345600,"))
    assert set(describe.write_pages(pages)) == {*describe.WITH_RESULTS, describe.METHODS}
    assert all("12.35" in (pages / page).read_text() for page in describe.WITH_RESULTS)


TABLE = """\
dataset,split,method,variant,name,metric,mean,sd,seeds,mark
a,{split},linear_probe,default,Linear probe,mA,70.12345,0.5,3,
a,{split},linear_probe,default,Linear probe,Acc,60.0,0.5,3,
a,{split},linear_probe,default,Linear probe,F1 (instance),65.0,0.5,3,
a,{split},zero_shot,default,Zero-shot CLIP,mA,60.0,,1,↓
"""


def test_numbers_are_kept_from_a_plans_tables(tmp_path):
    with pytest.raises(PedbenchError, match="plan.json: no such file; run the plan first"):
        describe.copy_results(tmp_path)
    splits = ("standard", "zero_shot")
    experiments = [{"split": split, "in_tables": True} for split in splits]
    write_json(tmp_path / "plan.json", {"experiments": experiments})
    (tmp_path / "tables").mkdir()
    for split in splits:
        with pytest.raises(PedbenchError, match=f"{split}.csv: .* '{split}' in config/tables.yaml"):
            describe.copy_results(tmp_path)
        (tmp_path / "tables" / f"{split}.csv").write_text(TABLE.format(split=split))
    out = tmp_path / "kept.csv"
    describe.copy_results(tmp_path, out)
    lines = out.read_text().splitlines()
    assert lines[:2] == [
        "dataset,split,method,variant,metric,mean,sd,seeds,mark",
        "a,standard,linear_probe,default,mA,70.123450,0.500000,3,",
    ]
    assert len(lines) == 1 + 2 * 3 and ",Acc," not in out.read_text()
    shown = describe.fill(
        "x\n<!-- generated: results a -->\n<!-- end -->\ny", describe.read_results(out)
    )
    assert "| Zero-shot CLIP | <u>60.00↓</u> | – | <u>60.00↓</u> | – |" in shown
    assert "| Linear probe | **70.12 ± 0.50** | **65.00 ± 0.50** |" in shown
    assert shown.startswith("x\n<!-- generated: results a -->\n\n| Method | a/standard mA |")
    assert shown.endswith("\n\n<!-- end -->\ny")
    with pytest.raises(PedbenchError, match="no numbers of b, which a page shows"):
        describe.fill(shown.replace("results a", "results b"), describe.read_results(out))


@pytest.mark.parametrize(
    ("make", "given", "shown"),
    [
        (describe.changes, {}, "nothing: the defaults"),
        (describe.changes, {"a": True, "b": {"r": 8}}, "`a: true, b: {r: 8}`"),
        (describe.kind, "Literal['a', 'b'] | None", "'a', 'b' | None"),
        (describe.kind, "tuple[Literal['q'], ...]", "tuple[Literal['q'], ...]"),
        (describe.in_words, (0.0001, 10.0), "0.0001 to 10"),
        (describe.in_words, [2, 4], "`2`, `4`"),
        (describe.in_words, None, ""),
        (describe.escape, "as ``a * b``: <x>", "as `a * b`: \\<x>"),
        (describe.escape, "VTB* and `a * b` <x>", "VTB\\* and `a * b` \\<x>"),
        (describe.anchor, "Tip-Adapter(-F) so_so", "tip-adapter-f-so_so"),
    ],
)
def test_words_of_the_page(make, given, shown):
    assert make(given) == shown


def test_presets_of_both_tasks_are_shown():
    shown = describe.presets()
    assert list(shown) == files_of("preset")
    assert shown["reference"]["vtb"]["optimiser"] == "sgd"
    assert shown["reference_reid"]["clip_reid"]["id_loss_weight"] == 0.25


def test_cells_with_a_bar_stay_one_cell():
    rows = [*describe.table(("a", "b"), [("int | None", "x")])]
    assert rows == ["| a | b |", "| --- | --- |", "| int \\| None | x |", ""]


def test_pictures_of_the_docs_follow_the_plans(tmp_path):
    docs, figures = tmp_path / "docs", tmp_path / "results/figures"
    for folder, names in ((docs, "ab"), (figures, "bc")):
        folder.mkdir(parents=True)
        for name in names:
            (folder / f"{name}.png").write_bytes(str(folder).encode())
    assert describe.copy_pictures(tmp_path / "results", docs) == [docs / "b.png"]
    assert (docs / "b.png").read_bytes() == (figures / "b.png").read_bytes()
    assert sorted(file.name for file in docs.iterdir()) == ["a.png", "b.png"]
    assert describe.copy_pictures(tmp_path / "results", docs) == []
