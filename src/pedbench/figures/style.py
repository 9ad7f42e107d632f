"""How every figure looks and is saved: one style, legible in grey, equal bytes each time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import cycle, islice
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pedbench.files import CAPTIONS, empty_folder, write_atomic, write_json

WIDTH = 7.0  # inches: the text width of a two-column paper
STYLE: Any = {
    **sns.axes_style("whitegrid"),
    **sns.plotting_context("paper"),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "figure.titlesize": "medium",
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
    "savefig.dpi": 200,
}
PALETTE = sns.color_palette("colorblind").as_hex()
BLUE, ORANGE = PALETTE[:2]
GREY = "0.55"
LOG_FROM = 8  # an axis whose values span this factor is logarithmic
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
PLAIN = {"pdf": {"CreationDate": None}, "png": {"Software": None}}  # no time, no version


@dataclass(frozen=True)
class Picture:
    """A figure with what a page needs to show it.

    ``stem`` is the file name without its ending; ``caption`` holds whole sentences, which say
    what is drawn and over what it was averaged; pages group pictures by ``category``.
    """

    stem: str
    figure: Figure = field(repr=False)
    title: str
    caption: str
    category: str


def looks(count: int) -> list[dict[str, Any]]:
    """Looks of ``count`` lines; marker and line style tell them apart in grey."""
    cycles = zip(cycle(PALETTE), cycle(MARKERS), cycle(DASHES), strict=False)
    return [{"color": c, "marker": m, "linestyle": d} for c, m, d in islice(cycles, count)]


def wide(values: Iterable[float]) -> bool:
    """Whether positive ``values`` span so much that their axis is logarithmic."""
    known = [value for value in values if value > 0]
    return bool(known) and max(known) / min(known) >= LOG_FROM


def scale_x(ax: Any, values: Iterable[float]) -> None:
    """A logarithmic axis with few plain ticks where ``values`` span much, a linear one elsewhere.

    Where some are 0 they stand left of the logarithmic part.
    """
    values = list(values)
    if not wide(values):
        return
    low, high = min(v for v in values if v > 0), max(values)
    if min(values) > 0:
        ax.set_xscale("log")
    else:
        ax.set_xscale("symlog", linthresh=low, linscale=0.5)
    tens = range(floor(log10(low)), ceil(log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 20 else (1, 3) if high / low < 100 else (1,)
    ticks = [
        step * 10.0**n for n in tens for step in steps if low / 1.3 <= step * 10**n <= 1.3 * high
    ]
    ax.set_xticks(([0] if min(values) == 0 else []) + ticks)
    ax.set_xticks([], minor=True)
    ax.xaxis.set_major_formatter(short)


def short(value: float, _: object = None) -> str:
    """``0.5``, ``200``, ``10k``, ``3M``."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / min(size, 1e3 if unit == 'k' else size):g}{unit}"
    return f"{value:g}"


def signed(value: float) -> str:
    """A whole number with its sign; 0 has none."""
    return f"{value:+.0f}".replace("-", "−") if round(value) else "0"


def cell(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes without frame, placed in inches from the upper left corner."""
    wide, high = figure.get_size_inches()
    ax = figure.add_axes((left / wide, 1 - (top + height) / high, width / wide, height / high))
    ax.set_axis_off()
    return ax


def write(figure: Figure, x: float, y: float, text: str, ha: str = "center", **look: Any) -> None:
    """``text`` at a point in inches from the upper left corner."""
    wide, high = figure.get_size_inches()
    figure.text(x / wide, 1 - y / high, text, ha=ha, va="center", **look)


def save_all(pictures: Iterable[Picture], out: Path, style: Any = STYLE) -> None:
    """Fill ``out``, which is emptied first: PDF and PNG of every picture, drawn in ``style``, and
    ``captions.json``, which maps a picture's stem to ``title``, ``caption`` and ``category``."""
    empty_folder(out)
    captions = {}
    with rc_context(style):
        for picture in pictures:
            save(picture.figure, out / picture.stem)
            keys = ("title", "caption", "category")
            captions[picture.stem] = {key: getattr(picture, key) for key in keys}
    write_json(out / CAPTIONS, captions)


def save(figure: Figure, stem: Path) -> None:
    """``stem``.pdf and ``stem``.png."""
    for kind, metadata in PLAIN.items():
        path = stem.with_name(f"{stem.name}.{kind}")
        write_atomic(path, lambda p, k=kind, m=metadata: figure.savefig(p, format=k, metadata=m))
        figure.set_layout_engine("none")  # the places that were found serve the other file too
