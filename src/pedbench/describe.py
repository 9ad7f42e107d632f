"""Pages of the docs that the files themselves write: ``docs/methods.md`` out of ``methods/`` and
``config/``, and the tables of results out of ``resources/embedded_results.csv``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pedbench import registry
from pedbench.collect import select
from pedbench.config import DEFAULT, ROOT, files_of, read_protocol, read_variants
from pedbench.contracts import PedbenchError
from pedbench.files import read_json, write_text
from pedbench.results import display_name
from pedbench.tables.definitions import DEFINITIONS
from pedbench.tables.model import Block, Cell, Column, Row, Table, ranked
from pedbench.tables.render import FIELDS, to_markdown
from pedbench.tune import TUNED, read_record, tuning_markdown

RESULTS = "resources/embedded_results.csv"
PICTURES = "docs/img"
METHODS = "docs/methods.md"
WITH_RESULTS = ("README.md", "docs/embedded-default.md")  # between these two lines:
RUN_PLAN = "run the plan first: snakemake --cores all results/tables"
KEPT = ("mA", "mAP", "Rank-1")  # metrics, with F1
BAR = "\\|"  # in a cell
BLOCK = re.compile(r"(<!-- generated: results(?: (\w+))? -->\n).*?(<!-- end -->)", re.DOTALL)

Cells = dict[tuple[str, str], Cell]  # one column: (method, variant) -> cell

INTRODUCTION = f"""\
# Methods

`pedbench docs` writes this page from the files of `methods/`, `config/variants.yaml`,
`config/presets/` and `{RESULTS}`; edit those.

- **Parameters** counts the scalars that train with the defaults.
- **Published** figures are as printed; none of them was measured here.
- **Tuned over** is what `make tune` searches: a range on a log scale, or choices.
- **Embedded default** is the release run on its test images, in percent: mean ± standard deviation
  over the seeds (without ±: one run), ↑ ↓ significantly above or below the baseline.
  [embedded-default.md](embedded-default.md) says what it shows and what not.
- `pedbench cite` prints the BibTeX of what a plan or a table compares.

## Contents
"""
CAPTION = (
    "Test images, in percent: mean ± standard deviation over the seeds; without ±: one run. Bold: "
    "best; underlined: second; ↑ ↓: significantly above or below the baseline (paired bootstrap, "
    "Holm-corrected)."
)


def write_pages(root: Path = ROOT) -> list[str]:
    """Write what has changed and return its paths."""
    stale = stale_pages(root)
    for page, text in stale.items():
        write_text(root / page, text)
    return list(stale)


def check_pages(root: Path = ROOT) -> None:
    """Raises PedbenchError naming the pages that their sources have left behind."""
    stale = list(stale_pages(root))
    if stale:
        raise PedbenchError(
            f"{', '.join(stale)}: not what the method files, config/ and {RESULTS} say; run "
            "'pedbench docs' and commit what it writes"
        )


def stale_pages(root: Path = ROOT) -> dict[str, str]:
    """Path -> text as it should be, of the pages below ``root`` that read otherwise."""
    results = read_results(root / RESULTS)
    texts = {page: (root / page).read_text(encoding="utf-8") for page in WITH_RESULTS}
    wanted = {page: fill(text, results) for page, text in texts.items()}
    file = root / METHODS
    texts[METHODS] = file.read_text(encoding="utf-8") if file.exists() else ""
    wanted[METHODS] = methods_page(results)
    return {page: text for page, text in wanted.items() if text != texts[page]}


def copy_results(results: Path, out: Path = ROOT / RESULTS) -> None:
    """Keep mA and F1, or mAP and Rank-1, of the tables of a finished plan below ``results`` as
    ``out``: one row per dataset, split, method, variant and metric, in the tables' order.

    They are read from the tables named after the plan's splits. Raises PedbenchError when one of
    them is missing.
    """
    plan = results / "plan.json"
    if not plan.is_file():
        raise PedbenchError(f"{plan}: no such file; {RUN_PLAN}")
    splits = {e["split"] for e in read_json(plan)["experiments"] if e["in_tables"]}
    shown = [name for name in ("standard", "zero_shot", "reid") if name in splits]
    files = [results / "tables" / f"{name}.csv" for name in shown]
    for file in files:
        if not file.is_file():
            raise PedbenchError(
                f"{file}: no such file, and the docs are written from it; {RUN_PLAN}, with a table "
                f"'{file.stem}' in {DEFINITIONS}"
            )
    found = [pd.read_csv(file) for file in files]
    table = pd.concat(found)
    table = table.dropna(subset="method")  # published rows have none
    table = table[table["metric"].isin(KEPT) | table["metric"].str.startswith("F1")]
    columns = [field for field in FIELDS if field != "name"]
    write_text(out, table.to_csv(columns=columns, index=False, float_format="%.6f"))


def copy_pictures(results: Path, out: Path = ROOT / PICTURES) -> list[Path]:
    """Bring the pictures in ``out`` that the plan drew again up to date; returns which changed."""
    changed = []
    for kept in sorted(out.glob("*.png")):
        drawn = [results / folder / kept.name for folder in ("figures", "pictures")]
        new = next((file.read_bytes() for file in drawn if file.is_file()), None)
        if new is not None and new != kept.read_bytes():
            kept.write_bytes(new)
            changed.append(kept)
    return changed


def read_results(file: Path) -> pd.DataFrame:
    """What `copy_results` wrote."""
    return pd.read_csv(file, dtype={"mark": str}).fillna({"mark": ""})


def fill(text: str, results: pd.DataFrame) -> str:
    """``text`` with the table of all results, or of the dataset named in the marker, between the
    markers ``<!-- generated: results [dataset] -->`` and ``<!-- end -->``."""

    def block(found: re.Match[str]) -> str:
        rows = select(results, dataset=found[2]) if found[2] else results
        if rows.empty:
            wanted = found[2] or "any dataset"
            raise PedbenchError(f"{RESULTS}: no numbers of {wanted}, which a page shows")
        return f"{found[1]}\n{results_table(rows, ranked, CAPTION)}\n{found[3]}"

    return BLOCK.sub(block, text)


def results_table(
    rows: pd.DataFrame, rank: Callable[[Cells], Cells] = dict, caption: str = ""
) -> str:
    """Variants down, datasets, splits and metrics across."""
    columns: dict[tuple[str, str], Cells] = {}
    variants: dict[tuple[str, str], None] = {}
    for row in rows.to_dict("records"):
        variant = row["method"], row["variant"]
        cell = Cell(row["mean"], row["sd"], row["seeds"], row["mark"])
        place = f"{row['dataset']}/{row['split']}", row["metric"]
        columns.setdefault(place, {})[variant] = cell
        variants[variant] = None
    ranks = {place: rank(cells) for place, cells in columns.items()}
    shown = tuple(
        Row(display_name(*v), (), tuple(cells.get(v, Cell()) for cells in ranks.values()), *v)
        for v in variants
    )
    heads = tuple(Column(place, metric) for place, metric in columns)
    return to_markdown(Table("results", "", caption, (), heads, (Block("", shown),)))


def methods_page(results: pd.DataFrame) -> str:
    """The text of ``docs/methods.md``."""
    names = registry.methods()
    titles = {name: display_name(name, DEFAULT) for name in names}
    contents = [f"- [{title}](#{anchor(title)}): {about(name)}" for name, title in titles.items()]
    sections = ["\n".join(section(name, select(results, method=name))) for name in names]
    made = [preset for preset in TUNED.values() if read_record(preset)["methods"]]
    tuning = "\n".join(["## Equal tuning budgets\n", *map(tuning_markdown, made)])
    return "\n".join([INTRODUCTION, *contents, "", *sections, tuning])


def section(name: str, results: pd.DataFrame) -> Iterator[str]:
    """Lines on method ``name``; ``results`` holds its rows."""
    header = registry.header(name)
    yield f"## {display_name(name, DEFAULT)}\n"
    yield f"`methods/{name}.py`: {about(name)}.\n"
    for keyword in ("Paper", "Trains", "Parameters", "Published"):
        yield f"- **{keyword}**: {escape(header.get(keyword, 'not stated'))}"
    yield f"- **Solves**: {solves(name)}"
    yield f"- **Run**: `{header.get('Run', 'not stated')}`\n"
    if registry.notes(name):
        yield f"{escape(registry.notes(name))}\n"
    yield from hyperparameters(name)
    named = {f"variant {code(k)}": v for k, v in read_variants().get(name, {}).items()}
    for preset, sections in presets().items():
        for key, values in sections.items():
            method, _, label = key.partition("/")
            if method == name:
                on = f" on {code(label)}" if label else ""
                named[f"preset {code(preset)}{on}"] = values
    if named:
        rows = ((label, changes(values)) for label, values in named.items())
        yield from table(("Named settings", "What they change"), rows)
    if len(results):
        yield f"**Embedded default**\n\n{results_table(results).strip()}\n"


def hyperparameters(name: str) -> Iterator[str]:
    """The table of ``Params``, with what tuning searches where the method says so."""
    space = registry.read_search(name)
    header = ("Hyperparameter", "Type", "Default", "Meaning")
    rows = [
        (code(key), code(kind(field.annotation)), code(repr(field.default)), escape(field.doc))
        for key, field in registry.read_params(name).items()
    ]
    if not space:
        return table(header, rows)
    searched = [in_words(space.get(key)) for key in registry.read_params(name)]
    return table((*header, "Tuned over"), zip(*zip(*rows, strict=True), searched, strict=True))


def kind(annotation: str) -> str:
    """A type as readers know it: the choices of a Literal by themselves."""
    return re.sub(r"^Literal\[(.*?)\]", r"\1", annotation)


def in_words(space: tuple[float, float] | list[Any] | None) -> str:
    """A range, or choices, that tuning searches."""
    if isinstance(space, tuple):
        return "{:g} to {:g}".format(*space)
    return ", ".join(code(str(value)) for value in space or ())


def presets() -> dict[str, Mapping[str, Mapping[str, Any]]]:
    """Every preset: its name -> section -> settings."""
    names = tuple(files_of("preset"))
    read = {**read_protocol("paper", names).presets, **read_protocol("paper_reid", names).presets}
    return {Path(file).stem: read[file] for file in sorted(read)}


def about(name: str) -> str:
    """What the method does, in words: the first line of its file behind the title."""
    return escape(registry.summary("method", name).partition(": ")[2])


def solves(name: str) -> str:
    """The tasks a method is defined for, and on which image towers."""
    tasks = ", ".join(code(task) for task in registry.class_attribute(name, "tasks"))
    if registry.class_attribute(name, "needs_tokens"):
        return f"{tasks}, on vision transformers (it works among their patch tokens)"
    return f"{tasks}, on any image tower; settings that need patch tokens are refused without them"


def changes(values: Mapping[str, Any]) -> str:
    """Settings as they are written in ``config/``."""
    if not values:
        return "nothing: the defaults"
    flow = yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=10**6)
    return code(flow.strip()[1:-1])


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """A Markdown table and an empty line."""
    for row in (header, ("---",) * len(header), *rows):
        yield f"| {' | '.join(cell.replace('|', BAR) for cell in row)} |"
    yield ""


def code(text: str) -> str:
    return f"`{text}`"


def escape(text: str) -> str:
    """``text`` with what Markdown would take for markup escaped, code spans apart."""
    return re.sub(r"`+([^`]*)`+|([*<])", lambda m: f"\\{m[2]}" if m[2] else code(m[1]), text)


def anchor(title: str) -> str:
    """The fragment GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
