"""From the long table to ``results/tables/``: CSV, Markdown and LaTeX, one table per split."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pedbench.collect import read_long, select
from pedbench.config import DEFAULT, plain, read_protocol
from pedbench.contracts import PedbenchError
from pedbench.files import explain_os_error, read_json, write_text
from pedbench.results import display_name, headline
from pedbench.runs import refusal
from pedbench.stats import ALL_PAIRS, INTERVALS, VS_BASELINE, read_stats
from pedbench.tune import PRESET, tuning_markdown

Experiment = Mapping[str, Any]  # dataset, split, method, variant, seeds, folder
ROW = ["dataset", "split", "method", "variant"]
INSTANCE = {"mA": "mA", "Acc": "accuracy", "Prec": "precision", "Recall": "recall"}
F1_MEANING = {
    "instance": "mean of the F1 of each image",
    "harmonic": "harmonic mean of mean precision and mean recall",
}
SELECTION = {
    "last_epoch": "weights of the last epoch",
    "best_val_mA": "weights of the epoch with the best validation mA",
}
TUNING = "tuning.md"
ABSENT, BETTER, WORSE = "–", "↑", "↓"
IN_WORDS = {
    "stretch": "stretch (native 2:1 input)",
    "pad_square": "pad_square (square padding)",
    "clip_last_block": "clip_last_block (last visual block of the CLIP)",
}
WITHOUT_EFFECT = ("version", "eval_batch_size", "checkpoint_steps")  # settings that move no score
LATEX = str.maketrans(
    {
        **{symbol: f"\\{symbol}" for symbol in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
        ABSENT: "--",
        BETTER: r"$\uparrow$",
        WORSE: r"$\downarrow$",
    }
)


@dataclass(frozen=True)
class Cell:
    """One metric of one variant over its seeds, in percent; ranks 1 and 2 are set off."""

    mean: float = float("nan")
    sd: float = float("nan")
    seeds: int = 0
    mark: str = ""
    rank: int = 0

    @property
    def text(self) -> str:
        if np.isnan(self.mean):
            return ABSENT
        spread = f" ± {self.sd:.2f}" if self.seeds > 1 else ""
        return f"{self.mean:.2f}{spread}{self.mark}"

    def markdown(self) -> str:
        return {1: f"**{self.text}**", 2: f"<u>{self.text}</u>"}.get(self.rank, self.text)

    def latex(self) -> str:
        text = latex(self.text)
        return {1: f"\\textbf{{{text}}}", 2: f"\\underline{{{text}}}"}.get(self.rank, text)


UNITS = {"image": "images", "identity": "identities"}


@dataclass(frozen=True)
class Table:
    """``cells``: rows are (method, variant), columns (dataset, metric), values :class:`Cell`."""

    name: str
    title: str
    caption: str
    cells: pd.DataFrame


def write_tables(
    long: Path, stats: Path, figures: Path, plan: Mapping[str, Any], out: Path
) -> None:
    """Fill ``out``, which is emptied first: a table per split, attributes, tests, an index.

    ``plan`` holds the contents of plan.json; ``stats`` and ``figures`` are the folders that
    ``stats.write_stats`` and ``figures.write_figures`` wrote.
    """
    experiments = [e for e in plan["experiments"] if e["in_tables"]]
    alpha = plan["comparison"]["alpha"]
    try:
        if out.exists():
            shutil.rmtree(out)
    except OSError as error:
        raise PedbenchError(explain_os_error(out, error)) from error
    scores = test_scores(read_long(long), experiments)
    tests = read_stats(stats / VS_BASELINE)
    splits = dict.fromkeys(experiment["split"] for experiment in experiments)
    tables = [make_table(split, experiments, scores, tests, alpha) for split in splits]
    for table in tables:
        write_text(out / f"{table.name}.csv", to_csv(table))
        write_text(out / f"{table.name}.md", to_markdown(table))
        write_text(out / f"{table.name}.tex", to_latex(table))
    write_text(out / "attributes.csv", attributes_csv(scores))
    for name in (INTERVALS, VS_BASELINE, ALL_PAIRS):
        write_text(out / name, (stats / name).read_text(encoding="utf-8"))
    if PRESET in plan["presets"]:
        write_text(out / TUNING, tuning_markdown())
    write_text(out / "index.md", index(tables, sorted(figures.glob("*.png")), out))


def test_scores(long: pd.DataFrame, experiments: Sequence[Experiment]) -> pd.DataFrame:
    """The long table's test rows of ``experiments``, in percent."""
    wanted = pd.DataFrame([{key: e[key] for key in ROW} for e in experiments])
    scores = select(long, subset="test").merge(wanted, on=ROW)
    return scores.assign(value=100 * scores["value"])


def make_table(
    split: str,
    experiments: Sequence[Experiment],
    scores: pd.DataFrame,
    tests: pd.DataFrame,
    alpha: float,
) -> Table:
    """All datasets that have ``split`` side by side; a variant missing from one is absent."""
    shown = [e for e in experiments if e["split"] == split]
    specs = [read_json(Path(e["folder"]) / "config.json") for e in shown]
    protocol = plain(specs[0]["protocol"])
    f1 = headline(protocol)
    metrics = {**INSTANCE, f"F1 ({protocol['f1']})": f1}
    overall = select(scores, split=split, attribute="")
    tests = select(tests, split=split)
    marks = significance_marks(tests)
    columns = {}
    for dataset in dict.fromkeys(e["dataset"] for e in shown):
        for label, metric in metrics.items():
            here = select(overall, dataset=dataset, metric=metric)
            name = "F1" if metric == f1 else metric
            columns[dataset, label] = _column(here, marks.get((dataset, name), {}))
    rows = list(dict.fromkeys((e["method"], e["variant"]) for e in shown))
    cells = pd.DataFrame({c: [cell.get(r, Cell()) for r in rows] for c, cell in columns.items()})
    cells.index = pd.MultiIndex.from_tuples(rows)
    title = f"Pedestrian attribute recognition, {split.replace('_', '-')} split"
    notes = [caption(title, specs, overall, tests, alpha), *refusals(shown)]
    return Table(split, title, " ".join(notes), cells)


def _column(scores: pd.DataFrame, marks: Mapping[tuple[str, str], str]) -> dict[Any, Cell]:
    cells = {}
    for row, values in scores.groupby(["method", "variant"])["value"]:
        mean, sd = values.mean(skipna=False), values.std(skipna=False)
        cells[row] = Cell(mean, sd, len(values), marks.get(row, ""))  # type: ignore[arg-type]
    return ranked(cells)


def ranked(cells: Mapping[Any, Cell]) -> dict[Any, Cell]:
    """The ``cells`` of a column with best and second, as printed, set off; ties share a rank."""
    means = {round(cell.mean, 2) for cell in cells.values() if not np.isnan(cell.mean)}
    shown = sorted(means, reverse=True)
    ranks = {value: rank for rank, value in enumerate(shown[:2], start=1)}
    return {row: replace(c, rank=ranks.get(round(c.mean, 2), 0)) for row, c in cells.items()}


def significance_marks(tests: pd.DataFrame) -> dict[tuple[str, str], dict[tuple[str, str], str]]:
    """(dataset, metric) -> (method, variant) -> the mark of a significant difference."""
    marks: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for test in select(tests, significant=True).to_dict("records"):
        mark = BETTER if test["difference"] > 0 else WORSE
        place = test["dataset"], test["metric"]
        marks.setdefault(place, {})[test["method"], test["variant"]] = mark
    return marks


def caption(
    title: str,
    specs: Sequence[Mapping[str, Any]],
    scores: pd.DataFrame,
    tests: pd.DataFrame,
    alpha: float,
) -> str:
    """What the numbers are, under which settings (``specs``: the variants' config.json), and
    what the marks mean."""
    configs = [plain(spec) for spec in specs]
    protocol = configs[0]["protocol"]
    backbones = ", ".join(dict.fromkeys(str(config["backbone"]) for config in configs))
    seeds = ", ".join(str(seed) for seed in sorted(scores["seed"].unique()))
    selections = dict.fromkeys(SELECTION[config["protocol"]["selection"]] for config in configs)
    sentences = [
        f"{title}, test images, in percent",
        f"Mean ± standard deviation over the seeds {seeds}; without ±: one run",
        f"Protocol {protocol['name']} (version {protocol['version']}), backbone {backbones}, "
        f"threshold {protocol['threshold']}, F1 ({protocol['f1']}): {F1_MEANING[protocol['f1']]}; "
        + " or ".join(selections),
        "Bold: best; underlined: second",
    ]
    if len(tests):
        first = tests.iloc[0]
        sentences.append(
            f"{BETTER} {WORSE}: above or below "
            f"{display_name(first['against_method'], first['against_variant'])} in "
            f"{' or '.join(dict.fromkeys(tests['metric']))}, "
            f"paired bootstrap of the test {UNITS[first['unit']]} "
            f"({first['resamples']} resamples), "
            f"p < {alpha} after Holm's correction over the {first['family']} tests of a dataset"
        )
    return ". ".join([*sentences, *departures(specs)]) + "."


def refusals(experiments: Sequence[Experiment]) -> list[str]:
    """A sentence on every variant whose method cannot solve the task, with the reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for e in experiments:
        if reason := refusal(Path(e["folder"])):
            name = display_name(e["method"], e["variant"])
            found.setdefault((name, reason), []).append(e["dataset"])
    return [f"{name} was not run on {', '.join(on)}: {why}." for (name, why), on in found.items()]


def departures(specs: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence on the settings that are not the paper's protocol's, if any: those of the
    protocol of ``specs``, and what presets set for single methods."""
    name, paper = plain(specs[0]["protocol"])["name"], read_protocol("paper").values
    changed = [
        f"{key} {in_words(value)} instead of {in_words(paper[key])}"
        for key, value in read_protocol(name).values.items()
        if value != paper[key] and key not in WITHOUT_EFFECT
    ]
    own: dict[str, dict[str, str]] = {}
    for spec in specs:
        for section, key, value in from_presets(spec):
            method, _, label = section.partition("/")
            own.setdefault(display_name(method, label or DEFAULT), {})[key] = value
    listed = [
        f"{title} with {', '.join(f'{key} {value}' for key, value in values.items())}"
        for title, values in own.items()
    ]
    if not changed + listed:
        return []
    sentence = "; ".join([*([", ".join(changed)] if changed else []), *listed])
    return [f"Departures from the paper's protocol: {sentence}"]


def from_presets(spec: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Section, setting and value, in words, of all that ``config/presets/`` sets in a run."""
    for key, entry in {**spec["protocol"], **spec["params"]}.items():
        if isinstance(entry, Mapping) and entry["from"].startswith("config/presets/"):
            yield entry["from"].partition(": ")[2], key, in_words(entry["value"])


def in_words(value: Any) -> str:
    return IN_WORDS.get(str(value), str(value))


def to_csv(table: Table) -> str:
    """Numbers for machines: one row per variant, dataset and metric."""
    rows = []
    for (method, variant), cells in zip(table.cells.index, table.cells.to_numpy(), strict=True):
        for (dataset, metric), cell in zip(table.cells, cells, strict=True):
            place = {"dataset": dataset, "split": table.name, "method": method, "variant": variant}
            name = {"name": display_name(method, variant), "metric": metric}
            value = {"mean": cell.mean, "sd": cell.sd, "seeds": cell.seeds, "mark": cell.mark}
            rows.append({**place, **name, **value})
    return pd.DataFrame(rows).to_csv(index=False, float_format="%.6f")


def to_markdown(table: Table) -> str:
    header = ["Method", *(f"{dataset} {metric}" for dataset, metric in table.cells)]
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for row, cells in zip(table.cells.index, table.cells.to_numpy(), strict=True):
        lines.append([display_name(*row), *(cell.markdown() for cell in cells)])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\n{table.caption}\n"


def to_latex(table: Table) -> str:
    """A float for a document with the packages booktabs and graphicx; as wide as the page."""
    named = table.cells.set_axis([display_name(*row) for row in table.cells.index])
    style: Any = named.style.format(Cell.latex)
    style = style.format_index(latex, axis=0).format_index(latex, axis=1)
    text = style.to_latex(
        hrules=True,
        column_format="l" + "c" * len(named.columns),
        multicol_align="c",
        environment="table*",
        position="t",
        position_float="centering",
        caption=latex(table.caption),
        label=f"tab:{table.name}",
    )
    text = text.replace(r"\begin{tabular}", "\\resizebox{\\textwidth}{!}{%\n\\begin{tabular}")
    return text.replace(r"\end{tabular}", "\\end{tabular}}")


def latex(text: str) -> str:
    """``text`` with LaTeX's special characters escaped."""
    return text.translate(LATEX)


def attributes_csv(scores: pd.DataFrame) -> str:
    """Every metric of every attribute, mean and standard deviation over the seeds."""
    rows = scores.query("attribute != ''")
    values = rows.groupby([*ROW, "attribute", "metric"])["value"]
    found = values.agg(mean="mean", sd="std", defined="count", size="size").reset_index()
    gaps = found["defined"] < found["size"]
    found.loc[gaps, ["mean", "sd"]] = float("nan")  # no average over a gap
    return found.drop(columns=["defined", "size"]).to_csv(index=False, float_format="%.4f")


def index(tables: Sequence[Table], pictures: Sequence[Path], out: Path) -> str:
    """All tables and figures on one page."""
    parts = ["# Results\n"]
    for table in tables:
        links = ", ".join(f"[{kind}]({table.name}.{kind})" for kind in ("csv", "md", "tex"))
        parts.append(f"## {table.title}\n\n{to_markdown(table)}\n{links}\n")
    parts.append(
        "## Numbers behind the tables\n\n"
        f"- [{VS_BASELINE}]({VS_BASELINE}): tests against the baseline\n"
        f"- [{ALL_PAIRS}]({ALL_PAIRS}): tests of all pairs\n"
        f"- [{INTERVALS}]({INTERVALS}): confidence intervals\n"
        "- [attributes.csv](attributes.csv): metrics of each attribute\n"
    )
    if (out / TUNING).exists():
        parts.append(f"- [{TUNING}]({TUNING}): how each method was tuned, over which space\n")
    if pictures:
        parts.append("## Figures\n")
        parts += [f"![{p.stem}]({os.path.relpath(p, out)})\n" for p in pictures]
    return "\n".join(parts)
