"""From the long table, the statistics and the runs to ``results/figures/``.

One module per family of figures, each with ``pictures(material)``, which yields what the plan has
data for; ``style`` holds what they share.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pedbench.figures import (
    agreement,
    attributes,
    cost,
    overview,
    ranks,
    retrieval,
    selection,
    sweeps,
    training,
)
from pedbench.figures.material import Material
from pedbench.figures.style import save_all

FAMILIES = (
    *(overview, ranks, retrieval, agreement, attributes, cost, sweeps, training, selection),
)


def write_figures(
    plan: Mapping[str, Any], long: Path, stats: Path, cost: Path, selection: Path, out: Path
) -> None:
    """Fill ``out``, which is emptied first: see `style.save_all`.

    ``plan`` holds the contents of plan.json; ``stats`` is the folder of the statistics; ``cost``
    and ``selection`` are the CSV files of these steps, which may have no rows.
    """
    material = Material.read(plan, long, stats, cost, selection)
    save_all((picture for family in FAMILIES for picture in family.pictures(material)), out)
