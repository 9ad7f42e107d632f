"""From the long table and the statistics to ``results/tables/``, as ``config/tables.yaml`` says."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from pedbench.collect import read_csv, read_long, select
from pedbench.files import empty_folder, read_captions, write_text
from pedbench.manifest import read_manifest
from pedbench.stats import ALL_PAIRS, INTERVALS, VS_BASELINE, read_stats
from pedbench.tables.cost import cost_table
from pedbench.tables.definitions import DEFINITIONS, Definition, Kind, read_definitions
from pedbench.tables.model import Table
from pedbench.tables.render import (
    PAGES,
    groups_of,
    markdown,
    to_csv,
    to_html,
    to_latex,
    to_markdown,
)
from pedbench.tables.scores import scores_table
from pedbench.tables.selection import selection_table
from pedbench.tables.source import Experiment, Results
from pedbench.tables.text import departures, provenance, remarks, retrieval
from pedbench.tune import TUNED, tuning_markdown

NOTES, TUNING, PER_ATTRIBUTE = "notes.md", "tuning.md", "per_attribute.csv"
ROW = ["dataset", "split", "method", "variant"]
KINDS: dict[Kind, Callable[[Definition, Results], Table | None]] = {
    "scores": scores_table,
    "cost": cost_table,
    "selection": selection_table,
}
FORMATS: dict[str, Callable[[Table], str]] = {
    "csv": to_csv,
    "md": lambda table: f"**{markdown(table.title)}**\n\n{to_markdown(table)}",
    "tex": to_latex,
    "html": to_html,
}
COPIED = {
    VS_BASELINE: "tests against the baseline",
    ALL_PAIRS: "tests of all pairs",
    INTERVALS: "confidence intervals",
}


@dataclass(frozen=True)
class Picture:
    """A figure, and what its folder's ``captions.json`` says of it."""

    file: Path
    title: str
    caption: str

    @property
    def content(self) -> str:
        """The PNG as HTML embeds it."""
        return base64.b64encode(self.file.read_bytes()).decode()


@dataclass(frozen=True)
class Section:
    """A part of the index page."""

    id: str
    title: str
    table: Table | None = None
    lines: Sequence[str] = ()
    links: Sequence[tuple[str, str]] = ()
    pictures: Sequence[Picture] = ()


def write_tables(
    long: Path,
    stats: Path,
    figures: Sequence[Path],
    plan: Mapping[str, Any],
    out: Path,
    *,
    cost: Path | None = None,
    selection: Path | None = None,
    definitions: str = DEFINITIONS,
) -> None:
    """Fill ``out``, which is emptied first, with every table of ``definitions`` that there are
    numbers for, a page of notes and an index.

    ``plan`` holds the contents of plan.json; ``stats`` is the folder that ``stats.write_stats``
    wrote, ``figures`` are folders of pictures; ``cost`` and ``selection`` are CSV files.
    """
    defined = read_definitions(definitions)
    empty_folder(out)
    experiments = [e for e in plan["experiments"] if e["in_tables"]]
    scores = test_scores(read_long(long), experiments)
    datasets = dict.fromkeys(e["dataset"] for e in experiments)
    manifests = {d: read_manifest(Path(plan["datasets"][d]["manifest"])) for d in datasets}
    results = Results(
        experiments=experiments,
        scores=scores,
        manifests=manifests,
        versus=read_stats(stats / VS_BASELINE),
        pairs=read_stats(stats / ALL_PAIRS),
        alpha=plan["comparison"]["alpha"],
        baseline=plan["comparison"]["baseline"],
        cost=read_csv(cost) if cost else None,
        selection=read_csv(selection) if selection else None,
    )
    made = [KINDS[definition.kind](definition, results) for definition in defined]
    tables = [table for table in made if table is not None]
    for table in tables:
        for kind, form in FORMATS.items():
            write_text(out / f"{table.name}.{kind}", form(table))
    write_text(out / PER_ATTRIBUTE, per_attribute_csv(scores))
    for name in COPIED:
        write_text(out / name, (stats / name).read_text(encoding="utf-8"))
    settings = departures(list(results.specs.values()))
    made_by = provenance(experiments)
    if len(made_by) > 1:
        tqdm.write(f"{out}: the tables mix runs of different versions or devices; see {NOTES}")
    about = {"Queries and galleries": retrieval(results)}
    about |= {f"Remarks on {name}": remarks(manifest) for name, manifest in manifests.items()}
    write_text(out / NOTES, notes(tables, settings, made_by, about))
    tuned = [preset for preset in TUNED.values() if preset in plan["presets"]]
    if tuned:
        write_text(out / TUNING, "\n".join(map(tuning_markdown, tuned)))
    sections = index(
        tables, settings, [p for folder in figures for p in pictures(folder)], bool(tuned)
    )
    write_text(out / "index.md", index_markdown(sections, out))
    page = PAGES.get_template("index.html.j2")
    write_text(
        out / "index.html", page.render(sections=sections, kinds=list(FORMATS), groups_of=groups_of)
    )


def pictures(folder: Path) -> Iterator[Picture]:
    """Every PNG in ``folder``, by name."""
    captions = read_captions(folder)
    for file in sorted(folder.glob("*.png")):
        of = captions.get(file.stem, {})
        yield Picture(file, of.get("title", file.stem), of.get("caption", ""))


def test_scores(long: pd.DataFrame, experiments: Sequence[Experiment]) -> pd.DataFrame:
    """The long table's test rows of ``experiments``, in percent."""
    wanted = pd.DataFrame([{key: e[key] for key in ROW} for e in experiments])
    scores = select(long, subset="test").merge(wanted, on=ROW)
    return scores.assign(value=100 * scores["value"])


def per_attribute_csv(scores: pd.DataFrame) -> str:
    """Every metric of every attribute, mean and standard deviation over the seeds."""
    rows = scores.query("attribute != ''")
    values = rows.groupby([*ROW, "attribute", "metric"])["value"]
    found = values.agg(mean="mean", sd="std", defined="count", size="size").reset_index()
    gaps = found["defined"] < found["size"]
    found.loc[gaps, ["mean", "sd"]] = float("nan")  # no average over a gap
    return found.drop(columns=["defined", "size"]).to_csv(index=False, float_format="%.4f")


def notes(
    tables: Sequence[Table],
    settings: Sequence[str],
    made_by: Sequence[str],
    data: Mapping[str, Sequence[str]],
) -> str:
    """What is too long for captions: settings, provenance, ``data`` (heading -> lines on datasets)
    and remarks on published numbers."""
    parts = ["# Notes on the tables", "## Settings", *_settings(settings)]
    parts += ["## Provenance", *_provenance(made_by)]
    about = {**data} | {f"{table.name}: {table.title}": table.notes for table in tables}
    for heading, lines in about.items():
        if lines:
            parts += [f"## {markdown(heading)}", "\n".join(f"- {markdown(line)}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def _settings(settings: Sequence[str]) -> list[str]:
    if not settings:
        return ["Nothing departs from the paper's protocol and the methods' papers."]
    opening = "Departures from the paper's protocol, and what presets set for single methods:"
    return [opening, "\n".join(f"- {markdown(line)}" for line in settings)]


def _provenance(made_by: Sequence[str]) -> list[str]:
    several = "Runs of different versions or devices stand side by side; the same seed repeats "
    opening = [f"{several}its numbers only within one."] if len(made_by) > 1 else []
    return [*opening, "\n".join(f"- {markdown(line)}" for line in made_by)]


def index(
    tables: Sequence[Table], settings: Sequence[str], shown: Sequence[Picture], tuned: bool
) -> list[Section]:
    """Everything on one page: our tables, figures, the papers' tables, files, settings."""

    def of(table: Table) -> Section:
        return Section(table.name.replace("/", "-"), table.title, table)

    own = [of(table) for table in tables if "/" not in table.name]
    theirs = [of(table) for table in tables if "/" in table.name]
    links = {
        **COPIED,
        PER_ATTRIBUTE: "metrics of each attribute",
        NOTES: "settings, remarks on datasets, published numbers",
    }
    if tuned:
        links[TUNING] = "how each method was tuned, over which space"
    figures = [Section("figures", "Figures", pictures=shown)] if shown else []
    files = Section("files", "Numbers behind the tables", links=list(links.items()))
    return [*own, *figures, *theirs, files, Section("settings", "Settings", lines=settings)]


def index_markdown(sections: Sequence[Section], out: Path) -> str:
    parts = ["# Results\n"]
    for section in sections:
        parts.append(f"## {markdown(section.title)}\n")
        if section.table is not None:
            name = section.table.name
            links = ", ".join(f"[{kind}]({name}.{kind})" for kind in FORMATS)
            parts.append(f"{to_markdown(section.table)}\n{links}\n")
        if section.id == "settings":
            parts += [f"{line}\n" for line in _settings(section.lines)]
        if section.links:
            parts.append("\n".join(f"- [{name}]({name}): {about}" for name, about in section.links))
            parts.append("")
        for picture in section.pictures:
            title, path = markdown(picture.title), os.path.relpath(picture.file, out)
            parts.append(f"![{title}]({path})\n\n**{title}.** {markdown(picture.caption)}\n")
    return "\n".join(parts)
