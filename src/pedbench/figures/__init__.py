"""From the long table, the statistics and the runs to ``results/figures/``.

One module per family of figures, each with ``pictures(material)``, which yields what the plan has
data for; ``style`` holds what they share.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context

from pedbench.contracts import PedbenchError
from pedbench.figures import (
    agreement,
    attributes,
    cost,
    overview,
    ranks,
    selection,
    sweeps,
    training,
)
from pedbench.figures.material import Material
from pedbench.figures.style import STYLE, save
from pedbench.files import explain_os_error, write_json

FAMILIES = (overview, ranks, agreement, attributes, cost, sweeps, training, selection)
CAPTIONS = "captions.json"


def write_figures(
    plan: Mapping[str, Any],
    long: Path,
    stats: Path,
    cost: Path | None,
    selection: Path | None,
    out: Path,
) -> None:
    """Fill ``out``, which is emptied first: PDF and PNG of every figure, and ``captions.json``.

    ``plan`` holds the contents of plan.json; ``stats`` is the folder of the statistics; ``cost``
    and ``selection`` are the CSV files of these steps, if there are any. ``captions.json`` maps a
    figure's name to ``title``, ``caption`` and ``category``.
    """
    try:
        if out.exists():
            shutil.rmtree(out)
    except OSError as error:
        raise PedbenchError(explain_os_error(out, error)) from error
    material = Material.read(plan, long, stats, cost, selection)
    captions = {}
    with rc_context(STYLE):
        for family in FAMILIES:
            for picture in family.pictures(material):
                save(picture.figure, out / picture.stem)
                captions[picture.stem] = {
                    key: getattr(picture, key) for key in ("title", "caption", "category")
                }
    write_json(out / CAPTIONS, captions)
