"""Test pictures with what models make of them: PDF and PNG in ``results/pictures/``.

No picture is chosen by eye: the captions, in ``captions.json``, say by which rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from textwrap import fill
from typing import Any, get_args
from zlib import crc32

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from torch import Tensor

from pedbench import registry
from pedbench.collect import has_validation, rank_by_validation, read_long
from pedbench.config import HEADLINE
from pedbench.contracts import UNKNOWN, Attribute, Region, TaskKind
from pedbench.data import Images
from pedbench.figures.style import (
    BLUE,
    ORANGE,
    STYLE,
    WIDTH,
    Picture,
    cell,
    save_all,
    write,
)
from pedbench.files import read_json
from pedbench.galleries import gallery_figure, queries_of
from pedbench.manifest import Manifest, decode, read_manifest
from pedbench.maps import Response, relevance, responses
from pedbench.nn.backbone import Backbone, load_backbone
from pedbench.predict import predict
from pedbench.results import (
    display_name,
    read_predictions,
    read_rankings,
    read_run,
    sigmoid,
)
from pedbench.runs import refusal
from pedbench.tasks.reid import TOP
from pedbench.train import make_accelerator
from pedbench.trained import load_run

CATEGORY = "Pictures"
SHOWN = 2  # pictures with maps
ATTRIBUTES = 3  # of each, in the maps of their relevance
EXAMPLES = 3  # pictures with few errors, and as many with many
METHODS = 9  # beside each other; more go on in another figure
REGIONS = get_args(Region)[:-1]  # names of four stripes, from top to bottom
SMALL = 7  # points
EDGE = 0.04  # inches between pictures
HEAD, LINE = 0.3, 0.125  # inches: above a list of attributes, and each of its lines


@dataclass(frozen=True)
class Seen:
    """What one variant makes of the pictures ``(B, 3, H, W)``; ``falls`` and ``probabilities``
    hold, per picture, what `maps.relevance` says of every attribute."""

    experiment: Mapping[str, Any]
    pictures: Tensor
    responses: list[Response]
    falls: list[np.ndarray]  # (A, rows, columns)
    probabilities: list[np.ndarray]  # (A,)

    @property
    def name(self) -> str:
        return name_of(self.experiment)

    @property
    def regional(self) -> bool:
        return any(response.regional for response in self.responses)

    @property
    def has_tokens(self) -> bool:
        """Whether more than the class token looks at the patches."""
        return sum(response.tokens for response in self.responses) > 1


def write_pictures(plan: Mapping[str, Any], long: Path, backbones: Path, out: Path) -> None:
    """Fill ``out``, which is emptied first, with examples of every dataset and split, maps of the
    first one with attributes, and their captions.

    ``plan`` holds the contents of plan.json, ``backbones`` is the folder of what `pedbench weights`
    wrote. Of each variant the run of its first seed is shown. The same plan gives the same bytes.
    """
    torch.set_num_threads(1)  # other numbers of threads, other bits
    style = STYLE | {"font.size": SMALL, "figure.constrained_layout.use": False}
    save_all(pictures(plan, read_long(long), backbones), out, style)


def pictures(plan: Mapping[str, Any], long: pd.DataFrame, backbones: Path) -> Iterator[Picture]:
    """One after the other; what was refused has none."""
    shown = [e for e in plan["experiments"] if e["in_tables"] and not refusal(Path(e["folder"]))]
    mapped = False
    for (dataset, _), group in groupby(shown, place_of):
        manifest = read_manifest(Path(plan["datasets"][dataset]["manifest"]))
        scene = Scene(list(group), manifest, long, plan)
        if scene.task == "reid":
            yield galleries(scene)
            continue
        yield examples(scene)
        if not mapped:
            yield from maps(scene, backbones)
            mapped = True


def place_of(experiment: Mapping[str, Any]) -> tuple[str, str]:
    return experiment["dataset"], experiment["split"]


def load_backbones(experiments: Iterable[Mapping[str, Any]], folder: Path) -> dict[str, Backbone]:
    """Name -> backbone of all that ``experiments`` run on."""
    names = dict.fromkeys(backbone_of(experiment) for experiment in experiments)
    return {n: load_backbone(n, read_json(folder / f"{n}.json")["file"]) for n in names}


def backbone_of(experiment: Mapping[str, Any]) -> str:
    return read_json(Path(experiment["folder"]) / "config.json")["backbone"]


def name_of(experiment: Mapping[str, Any]) -> str:
    return display_name(experiment["method"], experiment["variant"])


class Scene:
    """The experiments of one dataset and split, and its test subset."""

    def __init__(
        self,
        experiments: list[Mapping[str, Any]],
        manifest: Manifest,
        long: pd.DataFrame,
        plan: Mapping[str, Any],
    ) -> None:
        self.experiments, self.manifest = experiments, manifest
        self.dataset, self.split = place_of(experiments[0])
        self.task: TaskKind = "reid" if manifest.is_reid(self.split) else "par"
        self.test = manifest.subset(self.split, "test")
        self.seed = [plan["comparison"]["seed"], crc32(f"{self.dataset}/{self.split}".encode())]
        rows = {(e["method"], e["variant"]): e for e in experiments}
        ranked = rank_by_validation(rows, long, self.dataset, self.split, HEADLINE[self.task])
        self.ranking = [rows[row] for row in ranked]
        self.first = (
            f"best by validation {HEADLINE[self.task]}"
            if has_validation(long, self.dataset, self.split)
            else "last in the plan (there are no validation images to choose by)"
        )
        baseline = plan["comparison"]["baseline"]
        self.baseline = next((e for e in experiments if key_of(e) == baseline), None)

    @property
    def name(self) -> str:
        return f"{self.dataset}, {self.split} split"

    def best(self, among: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """By validation mA, or mAP, the mean over the seeds; else what ``first`` says."""
        return min(among, key=self.ranking.index)

    @property
    def compared(self) -> list[Mapping[str, Any]]:
        """The best variant but for the baseline, the baseline, and one that is not trained."""
        untrained = [e for e in self.experiments if not registry.trains(e["method"])]
        best = [e for e in self.ranking if e != self.baseline][:1]
        wanted = [*best, self.baseline, *untrained[:1]]
        return [e for i, e in enumerate(wanted) if e is not None and e not in wanted[:i]]

    @property
    def aside(self) -> str:
        """Said of the best variant where the baseline is another."""
        return ", the baseline aside" if self.baseline and len(self.ranking) > 1 else ""

    def shuffled(self) -> np.ndarray:
        """The test pictures in random order: each figure takes the first of them that it may."""
        return np.random.default_rng(self.seed).permutation(len(self.test.rows))


def key_of(experiment: Mapping[str, Any]) -> str:
    return f"{experiment['method']}/{experiment['variant']}"


def run_of(experiment: Mapping[str, Any]) -> Path:
    return Path(experiment["folder"]) / f"seed{experiment['seeds'][0]}"


# Predicted attributes


def examples(scene: Scene) -> Picture:
    """The pictures with the fewest and the most errors of the best variant, see the caption."""
    variants = scene.compared
    labels = scene.test.labels
    guesses = np.stack([predicted(e, scene.manifest) for e in variants])
    errors = ((guesses[0] != labels) & (labels != UNKNOWN)).sum(1)
    few, many = extremes(errors, scene.shuffled())
    rows = {f"Fewest errors of {name_of(variants[0])}": few}
    rows[f"Most errors of {name_of(variants[0])}"] = many
    figure = example_figure(scene, variants, guesses, rows)
    return Picture(
        f"examples_{scene.dataset}_{scene.split}",
        figure,
        f"Predicted attributes, {scene.name}",
        "Test pictures with the attributes that they have or, in italics, that a method gives them "
        f"wrongly. Above the {len(few)} pictures with the fewest errors of {name_of(variants[0])}, "
        f"the {scene.first}{scene.aside}, below the {len(many)} with the most; ties are "
        "broken at random, with the seed of the comparison. One run each, its first seed. "
        "Attributes that nobody could label are left out.",
        CATEGORY,
    )


def galleries(scene: Scene) -> Picture:
    """Queries drawn at random and hard ones with what is found for them, see the caption."""
    runs = [read_run(run_of(experiment)) for experiment in scene.compared]
    names = [name_of(experiment) for experiment in scene.compared]
    found = [read_rankings(run, scene.manifest, "test") for run in runs]
    drawn, hard = queries_of(found[0], scene.shuffled())
    rows = {"Queries drawn at random": drawn, f"Lowest AP of {names[0]}": hard}
    shown = {title: numbers for title, numbers in rows.items() if len(numbers)}
    return Picture(
        f"galleries_{scene.dataset}_{scene.split}",
        gallery_figure(scene.test, dict(zip(names, found, strict=True)), shown),
        f"Ranked galleries, {scene.name}",
        f"Test queries and, on their right, the {TOP} nearest images of the gallery, nearest "
        "first; images of the query's person by its own camera are left out. Solid frame, ✓: the "
        "same person; dotted frame, ✗: another. Above, queries drawn at random with the seed of "
        f"the comparison; below, those with the lowest AP of {names[0]}, the {scene.first}"
        f"{scene.aside}. Queries without a right image are none of them. AP is that of the query. "
        "One run each, its first seed.",
        CATEGORY,
    )


def extremes(errors: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Up to `EXAMPLES` pictures with the fewest of ``errors (M,)`` and as many with the most;
    those with equally many stand in ``order``."""
    order = order[np.argsort(errors[order], kind="stable")]
    count = max(1, min(EXAMPLES, len(order) // 2))
    return order[:count], order[-count:]


def predicted(experiment: Mapping[str, Any], manifest: Manifest) -> np.ndarray:
    """``(M, A)`` of 0 and 1: the test pictures' attributes by the run that is shown."""
    run = read_run(run_of(experiment))
    probabilities = read_predictions(run, manifest, "test").probabilities
    return (probabilities > run.protocol["threshold"]).astype(np.int8)


def example_figure(
    scene: Scene,
    variants: Sequence[Mapping[str, Any]],
    guesses: np.ndarray,
    rows: Mapping[str, np.ndarray],
) -> Figure:
    """One panel per picture: ``rows`` holds, by their title, positions in the test subset,
    ``guesses (V, M, A)`` is of each variant."""
    test, names = scene.test, [a.name for a in scene.test.attributes]
    files, known = test.pictures, test.labels != UNKNOWN
    listed = ((guesses == 1) & known).any(0) | (test.labels == 1)
    heights = [HEAD + LINE * max(int(listed[row].sum(1).max()), 9) for row in rows.values()]
    gap, key, count = 0.2, 0.45, max(len(row) for row in rows.values())
    figure = Figure(figsize=(WIDTH, sum(heights) + gap * len(rows) + key))
    width, top = WIDTH / count, 0.0
    for (title, row), height in zip(rows.items(), heights, strict=True):
        top += gap
        write(figure, EDGE, top - gap / 2, title, ha="left", weight="bold")
        for column, position in enumerate(row):
            left, picture = column * width, decode(*files[position])
            high = min(height - HEAD, 1.4, 0.32 * width * picture.height / picture.width)
            wide = high * picture.width / picture.height
            ax = cell(figure, left + EDGE, top + HEAD, wide, high)
            ax.imshow(np.asarray(picture), interpolation="bilinear")
            panel = cell(figure, left + 0.36 * width, top, 0.62 * width, height)
            panel.set(xlim=(0, 0.62 * width), ylim=(height, 0))
            shown = np.flatnonzero(listed[position])
            list_attributes(
                panel,
                [names[a] for a in shown],
                test.labels[position, shown] == 1,
                guesses[:, position, shown] == 1,
            )
        top += height
    numbered = "     ".join(f"{i + 1}  {name_of(e)}" for i, e in enumerate(variants))
    write(figure, WIDTH / 2, figure.get_figheight() - 0.27, numbered)
    handles = [Line2D([], [], label=name, **look) for name, look in MARKS.items()]
    figure.legend(handles=handles, ncols=3, loc="lower center", fontsize=SMALL, borderaxespad=0.2)
    return figure


def list_attributes(
    ax: Axes, names: Sequence[str], labels: np.ndarray, guesses: np.ndarray
) -> None:
    """Lines with the mark of each variant: ``labels (L,)`` and ``guesses (V, L)`` are bool."""
    columns = [0.06 + 0.15 * v for v in range(len(guesses))]
    x = columns[-1] + 0.15
    for v, found in enumerate(guesses):
        ax.text(columns[v], 0.07, str(v + 1), weight="bold", ha="center", va="center")
        ax.text(columns[v], 0.19, str((found != labels).sum()), ha="center", va="center")
    ax.text(x, 0.19, "errors", va="center")
    for line, (name, true) in enumerate(zip(names, labels, strict=True)):
        y = HEAD + LINE * (line + 0.5)
        look: Any = {"color": "k"} if true else {"color": "0.4", "style": "italic"}
        ax.text(x, y, name, va="center", **look)
        for v, found in enumerate(guesses[:, line]):
            if mark := mark_of(true, found):
                ax.plot(columns[v], y, **MARKS[mark])


_SIZE: Any = {"linestyle": "", "markersize": 4.5}
MARKS: dict[str, Any] = {
    "found": {"marker": "o", "color": BLUE, **_SIZE},
    "missed": {"marker": "o", "color": ORANGE, "markerfacecolor": "white", **_SIZE},
    "false alarm": {"marker": "x", "color": ORANGE, "markeredgewidth": 1.5, **_SIZE},
}


def mark_of(true: bool, found: bool) -> str | None:
    """Key of `MARKS`; None: rightly not predicted."""
    if true:
        return "found" if found else "missed"
    return "false alarm" if found else None


# Maps


def maps(scene: Scene, weights: Path) -> Iterator[Picture]:
    """Responses of tokens to the patches, and relevance of the patches for attributes."""
    positions = scene.shuffled()[:SHOWN]
    rows = scene.test.rows.iloc[np.sort(positions)].reset_index(drop=True)
    few = replace(scene.test, rows=rows)
    methods = dict.fromkeys(e["method"] for e in scene.experiments)
    best = [scene.best([e for e in scene.experiments if e["method"] == m]) for m in methods]
    backbones = load_backbones(scene.experiments, weights)
    seen = [look(e, few, backbones[backbone_of(e)], e in best) for e in scene.experiments]
    rows = rows_of_responses(scene, seen)
    if any(one.has_tokens for one in rows):
        yield response_picture(scene, rows)
    yield from relevance_pictures(scene, few, [s for s in seen if s.experiment in best])


def look(
    experiment: Mapping[str, Any], few: Manifest, backbone: Backbone, with_relevance: bool
) -> Seen:
    """Load the variant's run and let it look at the pictures, in float32."""
    trained = load_run(run_of(experiment), backbone)
    protocol = replace(trained.config.protocol, precision="fp32")
    accelerator = make_accelerator(protocol)
    model = trained.model.to(accelerator.device)
    images = Images.decoded(few, backbone.image_size, protocol.resize)
    pictures = images[torch.arange(len(images))]

    def answer(pictures: Tensor) -> np.ndarray:
        return predict(model, pictures, backbone, protocol, accelerator)

    found = responses(model, lambda: answer(pictures))
    pairs = [relevance(answer, p, backbone.patch) for p in pictures] if with_relevance else []
    falls, probabilities = [fall for _, fall in pairs], [sigmoid(logits) for logits, _ in pairs]
    return Seen(experiment, pictures, found, falls, probabilities)


def rows_of_responses(scene: Scene, seen: Sequence[Seen]) -> list[Seen]:
    """The baseline, and of each method that brings tokens its best variant with regions and its
    best without."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for one in seen:
        if one.has_tokens:
            groups.setdefault((one.experiment["method"], one.regional), []).append(one.experiment)
    best = [scene.best(group) for group in groups.values()]
    return [
        one
        for one in seen
        if one.experiment in best or (one.responses and one.experiment == scene.baseline)
    ]


def response_picture(scene: Scene, rows: Sequence[Seen]) -> Picture:
    return Picture(
        "responses",
        response_figure(rows),
        f"What prompts attend to, {scene.name}",
        "Attention in the last layer of the image tower over the patches, the mean over heads and "
        "tokens, each map scaled to its own maximum. Global: class token and prompts that see the "
        "whole picture; further columns: tokens that a mask confines to a region. Rows: the "
        "baseline, and of each method that brings tokens into the last layer a variant without and "
        f"one with regions, each the {scene.first}; first seed. The test pictures were drawn at "
        "random with the seed of the comparison. Attention says where a token takes its content "
        "from, not what the scores depend on.",
        CATEGORY,
    )


def response_figure(rows: Sequence[Seen]) -> Figure:
    """A row per variant; per picture the picture itself and a map per group of tokens."""
    groups = max(len(one.responses) for one in rows)
    names = ["picture", "global", *region_names(groups - 1)]
    count, label, head, gap = len(rows[0].pictures), 0.75, 0.25, 0.15
    wide = (WIDTH - label - gap * (count - 1)) / (count * len(names))
    high = wide * rows[0].pictures.shape[2] / rows[0].pictures.shape[3]
    figure = Figure(figsize=(WIDTH, head + len(rows) * high))
    for y, one in enumerate(rows):
        top = head + y * high
        write(figure, label / 2, top + high / 2, fill(one.name, 12))
        for index, picture in enumerate(one.pictures):
            left = label + index * (len(names) * wide + gap)
            maps = [None, *(response.maps[index] for response in one.responses)]
            for column, values in enumerate(maps):
                ax = cell(figure, left + column * wide, top, wide - EDGE, high - EDGE)
                ax.imshow(overlay(picture, values), interpolation="bilinear")
            for column, name in enumerate(names if y == 0 else ()):
                write(figure, left + (column + 0.5) * wide, head / 2, name)
    return figure


def region_names(count: int) -> list[str]:
    return list(REGIONS) if count == len(REGIONS) else [f"region {i + 1}" for i in range(count)]


def relevance_pictures(scene: Scene, few: Manifest, seen: Sequence[Seen]) -> Iterator[Picture]:
    """A column per method, at most `METHODS` of them in a figure."""
    rng = np.random.default_rng(scene.seed)
    rows = [
        (picture, attribute)
        for picture, labels in enumerate(few.labels)
        for attribute in some_attributes(few.attributes, labels, rng)
    ]
    for start in range(0, len(seen) if rows else 0, METHODS):
        yield Picture(
            f"relevance_{start // METHODS + 1}" if len(seen) > METHODS else "relevance",
            relevance_figure(seen[start : start + METHODS], rows, few.attributes),
            f"Patches that attributes depend on, {scene.name}",
            "Occlusion sensitivity (Zeiler and Fergus, ECCV 2014): how much the attribute's logit "
            "falls when a square, an eighth of the picture high, is hidden by the picture's mean "
            "colour; each map scaled to its own maximum, rises not shown. Below: the attribute's "
            "probability for the whole picture. Columns: a variant of each method, the "
            f"{scene.first}; first seed. The pictures were drawn at random with the seed of the "
            "comparison, and so were their attributes, among those that are present, each of "
            "another part of the body.",
            CATEGORY,
        )


def some_attributes(
    attributes: Sequence[Attribute], labels: np.ndarray, rng: np.random.Generator
) -> list[int]:
    """Up to `ATTRIBUTES` present attributes, each of another region, in their order."""
    chosen: dict[str, int] = {}
    for index in rng.permutation(np.flatnonzero(labels == 1)):
        chosen.setdefault(attributes[index].region, int(index))
    return sorted(list(chosen.values())[:ATTRIBUTES])


def relevance_figure(
    columns: Sequence[Seen], rows: Sequence[tuple[int, int]], attributes: Sequence[Attribute]
) -> Figure:
    """``rows``: picture and attribute."""
    height, width = columns[0].pictures.shape[2:]
    label, head, foot = 0.75, 0.45, 0.13
    wide = (WIDTH - label) / (1 + METHODS)
    high = wide * height / width + foot
    figure = Figure(figsize=(label + (1 + len(columns)) * wide, head + len(rows) * high))
    for x, one in enumerate(columns):
        write(figure, label + (x + 1.5) * wide, head / 2, fill(one.name, 11))
    for y, (picture, attribute) in enumerate(rows):
        top = head + y * high
        write(figure, label / 2, top + (high - foot) / 2, fill(attributes[attribute].name, 12))
        for x, one in enumerate([None, *columns]):
            source = one or columns[0]
            values = None if one is None else one.falls[picture][attribute]
            ax = cell(figure, label + x * wide, top, wide - EDGE, high - foot)
            ax.imshow(overlay(source.pictures[picture], values), interpolation="bilinear")
            if one is not None:
                probability = one.probabilities[picture][attribute]
                write(figure, label + (x + 0.5) * wide, top + high - foot / 2, f"{probability:.2f}")
    return figure


def overlay(picture: Tensor, values: np.ndarray | None) -> np.ndarray:
    """``picture (3, H, W)`` uint8 as ``(H, W, 3)``; with ``values (rows, columns)``, in grey under
    their colours: dark is 0 or less, light the maximum."""
    if values is None:
        return picture.permute(1, 2, 0).numpy()
    peak = values.max()
    scaled = Image.fromarray(
        (np.clip(values, 0, None) / (peak if peak > 0 else 1)).astype(np.float32)
    )
    size = (picture.shape[2], picture.shape[1])
    smooth = np.clip(np.asarray(scaled.resize(size, Image.Resampling.BICUBIC)), 0, 1)
    colours = matplotlib.colormaps["inferno"](smooth)[..., :3]
    grey = picture.float().mean(0).numpy()[..., None] / 255
    return 1 - (1 - 0.5 * grey) * (1 - 0.9 * colours)  # neither hides the other
