"""Ranked galleries: queries with the images that methods find for them, right and wrong."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from pedbench.figures.style import BLUE, ORANGE, WIDTH, cell, write
from pedbench.manifest import Manifest, decode
from pedbench.results import Retrieved
from pedbench.tasks.reid import TOP

QUERIES = 2  # drawn at random, and as many hard ones
HIGH = 0.72  # inches: of a picture, at most
LABEL, TITLE, SIGN, GAP, KEY = 1.0, 0.25, 0.14, 0.1, 0.3  # inches
# colour and line of a frame, and the sign below it, which tell them apart in grey
LOOKS: dict[bool, dict[str, Any]] = {
    True: {"color": BLUE, "linestyle": "-"},
    False: {"color": ORANGE, "linestyle": ":"},
}
SIGNS = {True: "✓", False: "✗"}


def queries_of(found: Retrieved, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of up to `QUERIES` queries that count, the first of them in ``order`` (positions in
    the subset), and of as many others with the lowest AP."""
    number_of = {position: number for number, position in enumerate(found.query)}
    numbers = np.array([number_of[p] for p in order if p in number_of], dtype=int)
    numbers = numbers[found.rankings.valid[numbers]]
    drawn, others = np.split(numbers, [min(QUERIES, -(-len(numbers) // 2))])
    return drawn, others[np.argsort(found.rankings.AP[others], kind="stable")][:QUERIES]


def gallery_figure(
    test: Manifest, variants: Mapping[str, Retrieved], rows: Mapping[str, np.ndarray]
) -> Figure:
    """``rows`` holds numbers of queries by their title, ``variants`` what each, by its name, found:
    a line for every query and variant."""
    files, who = test.pictures, test.rows["identity"].to_numpy()
    step = HIGH + SIGN
    blocks = [len(numbers) * (len(variants) * step + GAP) for numbers in rows.values()]
    figure = Figure(figsize=(WIDTH, sum(blocks) + TITLE * len(rows) + KEY))
    wide, top = (WIDTH - LABEL) / (1 + TOP), 0.0
    for title, numbers in rows.items():
        write(figure, 0.04, top + TITLE / 2, title, ha="left", weight="bold")
        top += TITLE
        for number in numbers:
            for index, (name, found) in enumerate(variants.items()):
                ap = 100 * found.rankings.AP[number]
                label = f"{fill(name, 16)}\nAP {ap:.0f} %"
                write(figure, 0.04, top + HIGH / 2, label, ha="left")
                query, nearest = found.query[number], found.rankings.top[number]
                if index == 0:
                    picture(figure, files[query], LABEL, top, wide)
                for column, position in enumerate(found.gallery[nearest[nearest >= 0]], 1):
                    left, right = LABEL + column * wide, bool(who[position] == who[query])
                    ax = picture(figure, files[position], left, top, wide)
                    ax.add_patch(Rectangle((0, 0), 1, 1, transform=ax.transAxes, fill=False,
                                           linewidth=2, clip_on=False, **LOOKS[right]))  # fmt: skip
                    write(figure, left + wide / 2, top + HIGH + SIGN / 2, SIGNS[right])
                top += step
            top += GAP
    meaning = {True: "✓ the same person", False: "✗ another"}
    handles = [Line2D([], [], label=meaning[right], **look) for right, look in LOOKS.items()]
    figure.legend(handles=handles, ncols=2, loc="lower center", borderaxespad=0.2)
    return figure


def picture(figure: Figure, file: Any, left: float, top: float, room: float) -> Any:
    """Axes with a picture, in the middle of ``room`` inches."""
    content = decode(*file)
    high = min(HIGH, (room - 0.08) * content.height / content.width)
    wide = high * content.width / content.height
    ax = cell(figure, left + (room - wide) / 2, top + HIGH - high, wide, high)
    ax.imshow(np.asarray(content), interpolation="bilinear", aspect="auto")
    return ax
